"""Google's conditions are generations, not ETags. Its storage can't run here: moto's S3 speaks them in its place.

This shows what is sent and understood. It does not show what Google does.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from moto_server import App, MotoServer

from overwinter.errors import RevisionConflictError, StoreUnavailableError, UsageError
from overwinter.stores import Expect, Stored
from overwinter.stores.objects import ObjectStore

KEY = "a:key"
SIGNED = "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"  # S3's


def new() -> bytes:
    return os.urandom(16)


def google(heeded: bool) -> Callable[[App], App]:
    """Give each version of an object a number, and, if that is *heeded*, compare it before a write."""
    lock, numbers, versions = threading.Lock(), itertools.count(7), dict[str, int]()

    def between(app: App) -> App:
        def spoken(environ: dict[str, Any], start: Any) -> Any:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            wanted = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
            environ["HTTP_AUTHORIZATION"] = SIGNED

            def start_here(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                if method == "PUT" and status.startswith("200"):
                    versions[path] = next(numbers)
                if method == "GET" and status[0] != "2":
                    return start(status, headers, *rest)
                return start(status, [*headers, ("x-goog-generation", str(versions.get(path, 0)))], *rest)

            with lock:
                if heeded and wanted is not None and int(wanted) != versions.get(path, 0):
                    start("412 Precondition Failed", [("Content-Length", "0")])
                    return [b""]
                return list(app(environ, start_here))

        return spoken

    return between


def store_at(server: MotoServer, prefix: str) -> ObjectStore:
    account = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    url = f"http://127.0.0.1:{server.port}"
    return ObjectStore(
        f"gs://{server.bucket}/{prefix}",
        service_account_key=json.dumps({"gcs_base_url": url, **account}),
        client_options={"allow_http": True},
    )


async def collect(keys: AsyncIterator[str]) -> list[str]:
    return [key async for key in keys]


async def test_a_life_by_generations() -> None:
    prefix = new().hex()
    with MotoServer(google(heeded=True)) as server:
        async with store_at(server, prefix) as store, store_at(server, prefix) as other:
            first, second, third = new(), new(), new()
            await store.put(KEY, b"1", revision=first, expected=Expect.ABSENT)
            assert set(store._seen[KEY].tag or ()) == {"e_tag", "version"}
            await other.put(KEY, b"2", revision=second, expected=first)
            for attempt in (
                store.put(KEY, b"x", revision=new(), expected=first),
                store.put(KEY, b"x", revision=new(), expected=Expect.ABSENT),
                store.delete(KEY, expected=first),
            ):
                with pytest.raises(RevisionConflictError):
                    await attempt
            assert await store.get(KEY) == Stored(b"2", second)
            assert await collect(store.keys("a:")) == [KEY]
            await store.delete(KEY, expected=second)
            assert (await other.get(KEY), await other.count()) == (None, 0)
            await other.put(KEY, b"3", revision=third, expected=Expect.ABSENT)
            assert await store.get(KEY) == Stored(b"3", third)


async def test_a_server_that_ignores_generations_is_refused() -> None:
    with MotoServer(google(heeded=False)) as server, pytest.raises(UsageError, match="can't keep two owners apart"):
        await store_at(server, new().hex()).open()


async def test_a_missing_bucket_is_an_error() -> None:
    with MotoServer(google(heeded=True)) as server:
        server.bucket = "nowhere"
        with pytest.raises(StoreUnavailableError, match="the bucket does not exist"):
            await store_at(server, new().hex()).open()
