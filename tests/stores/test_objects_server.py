"""Servers that don't keep the conditions of writes, and servers that refuse: on loopback, with moto's S3 behind."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import obstore.store
import pytest
from moto_server import App, MotoServer

from overwinter.errors import (
    CorruptRecordError,
    OutcomeUnknownError,
    OverwinterError,
    RevisionConflictError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import Expect, Stored, _file_frame
from overwinter.stores.objects import ObjectStore

IF_MATCH, IF_NONE_MATCH = "HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"
SECRETS = ("hush-hush", "StringToSign")


def new() -> bytes:
    return os.urandom(16)


def is_write(environ: dict[str, Any]) -> bool:
    return environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].count("/") > 1


def without(*headers: str) -> Any:
    """A server that doesn't know these headers."""

    def between(app: App) -> App:
        return lambda environ, start: app({k: v for k, v in environ.items() if k not in headers}, start)

    return between


def kindly(app: App) -> App:
    """A server that answers 200 to a write whose condition failed, and doesn't store."""

    def kind(environ: dict[str, Any], start: Any) -> Any:
        def start_kindly(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if is_write(environ) and status.startswith("412"):
                status, headers = "200 OK", [*headers, ("ETag", '"0123456789abcdef0123456789abcdef"')]
            return start(status, headers, *rest)

        return app(environ, start_kindly)

    return kind


def forgetful(app: App) -> App:
    """A server that stores the first write of an object and no other one, and says that it did."""

    def forget(environ: dict[str, Any], start: Any) -> Any:
        if is_write(environ) and IF_MATCH in environ:
            start("200 OK", [("ETag", '"0123456789abcdef0123456789abcdef"'), ("Content-Length", "0")])
            return [b""]
        return app(environ, start)

    return forget


def one_etag(app: App) -> App:
    """A server whose objects all have the same ETag, whatever is in them."""

    def same(environ: dict[str, Any], start: Any) -> Any:
        environ = {k: v for k, v in environ.items() if k != IF_MATCH}

        def start_same(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start(status, [(k, '"one"' if k.lower() == "etag" else v) for k, v in headers], *rest)

        return app(environ, start_same)

    return same


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (without(IF_NONE_MATCH), r"ignored the condition 'If-None-Match: \*'"),
        (without(IF_MATCH), "ignored the condition 'If-Match'"),
        (without(IF_MATCH, IF_NONE_MATCH), r"ignored the condition 'If-None-Match: \*'"),
        (kindly, r"ignored the condition 'If-None-Match: \*'"),
        (forgetful, "holds something else than it said"),
        (one_etag, "two versions of an object have one ETag"),
    ],
    ids=["creates over", "replaces anything", "ignores all", "says 200 and stores nothing", "forgets", "one ETag"],
)
async def test_a_server_without_conditions_is_refused(s3: MotoServer, between: Any, words: str) -> None:
    prefix = new().hex()
    with MotoServer(between) as broken:
        store = ObjectStore(f"s3://{s3.bucket}/{prefix}", **broken.options)
        with pytest.raises(UsageError, match=words) as caught:
            await store.open()
    assert f"s3://{s3.bucket}/{prefix}" in str(caught.value)
    assert "Use one with conditional writes" in str(caught.value)
    assert await everything(s3, prefix) == []  # the probe is removed


async def everything(s3: MotoServer, prefix: str) -> list[tuple[str, int]]:
    bucket = ObjectStore(f"s3://{s3.bucket}/{prefix}", **s3.options)._bucket
    return [each async for page in bucket.pages(None) for each in page]


async def test_a_good_server_is_tried_and_left_as_it_was(s3: MotoServer) -> None:
    prefix = new().hex()
    async with ObjectStore(f"s3://{s3.bucket}/{prefix}", **s3.options):
        assert await everything(s3, prefix) == []


async def test_an_open_without_the_right_to_remove_leaves_the_probe(s3: MotoServer) -> None:
    prefix = new().hex()

    def keep(app: App) -> App:
        def kept(environ: dict[str, Any], start: Any) -> Any:
            if environ["REQUEST_METHOD"] in ("DELETE", "POST"):
                return answer(start, "403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>")
            return app(environ, start)

        return kept

    with MotoServer(keep) as careful:
        async with ObjectStore(f"s3://{s3.bucket}/{prefix}", **careful.options) as store:
            [(name, size)] = await everything(s3, prefix)
            assert (name.startswith("=probe/"), size) == (True, 64)
            assert [key async for key in store.keys("")] == []
            assert await store.count() == 0


# ---------------------------------------------------------------- refusals and replies that are lost


def answer(start: Any, status: str, body: bytes = b"") -> list[bytes]:
    start(status, [("Content-Length", str(len(body)))])
    return [body]


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><StringToSign>hush-hush</StringToSign></Error>".encode()


class Switch:
    """A server that answers some methods with one status once it is told to, before or after it did what was asked."""

    store: ObjectStore

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.set("")

    def set(self, status: str, code: str = "", methods: tuple[str, ...] = ("GET", "PUT"), after: bool = False) -> None:
        self.status, self.body, self.methods, self.after = status, error(code), methods, after

    def __call__(self, app: App) -> App:
        def switched(environ: dict[str, Any], start: Any) -> Any:
            method = environ["REQUEST_METHOD"]
            self.requests.append(method)
            if not self.status or method not in self.methods:
                return app(environ, start)
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            if self.after:
                app({**environ, "wsgi.input": io.BytesIO(body)}, lambda *_: None)
            return answer(start, self.status, self.body)

        return switched


@pytest.fixture
def switch(s3: MotoServer) -> Iterator[Switch]:
    switch = Switch()
    with MotoServer(switch) as server:
        switch.store = ObjectStore(f"s3://{s3.bucket}/{new().hex()}", **server.options, timeout=5)
        yield switch


REFUSALS = [
    ("403 Forbidden", "SignatureDoesNotMatch", "403 SignatureDoesNotMatch: access is denied: check the credentials"),
    ("401 Unauthorized", "Whatever", "the credentials are not valid"),
    ("404 Not Found", "NoSuchBucket", "the bucket does not exist: create it"),
    ("404 Not Found", "ContainerNotFound", "the container does not exist: create it"),
    ("503 Slow Down", "SlowDown", "503 SlowDown: it is busy"),
    ("429 Too Many Requests", "", "answered 429: it is busy"),
    ("507 Insufficient Storage", "", "no space left"),
    ("413 Too Large", "EntityTooLarge", "413 EntityTooLarge"),
]


@pytest.mark.parametrize(("status", "code", "words"), REFUSALS)
async def test_what_the_server_refuses_is_certainly_not_stored(
    switch: Switch, status: str, code: str, words: str
) -> None:
    async with switch.store as store:
        first, second = new(), new()
        await store.put("a:key", b"first", revision=first, expected=Expect.ABSENT)
        switch.set(status, code)
        for attempt in (
            store.get("a:key"),
            store.head("a:key"),
            store.put("a:key", b"second", revision=second, expected=first),
            store.put("a:nother", b"second", revision=second, expected=Expect.ABSENT),
            store.delete("a:key", expected=first),
            store.delete("a:key", expected=Expect.ANY),
            collect(store),
        ):
            with pytest.raises(StoreUnavailableError, match=words) as caught:
                await attempt
            unsecret(caught.value)
        switch.set("")
        assert await store.get("a:key") == Stored(b"first", first)
        assert await collect(store) == ["a:key"]


async def collect(store: ObjectStore) -> list[str]:
    return [key async for key in store.keys("")]


def unsecret(caught: OverwinterError) -> None:
    shown = "".join(traceback.format_exception(caught))
    assert "s3://agents/" in shown
    assert not [secret for secret in SECRETS if secret in shown]


@pytest.mark.parametrize(("status", "code", "words"), REFUSALS)
async def test_a_store_is_not_opened_where_the_server_refuses(
    switch: Switch, status: str, code: str, words: str
) -> None:
    switch.set(status, code)
    with pytest.raises(StoreUnavailableError, match=words) as caught:
        await switch.store.open()
    unsecret(caught.value)


@pytest.mark.parametrize("status", ["500 Internal Server Error", "502 Bad Gateway", "503 Unavailable", "504 Timeout"])
async def test_a_server_that_fails_may_have_stored(switch: Switch, status: str) -> None:
    async with switch.store as store:
        revisions = [new() for _ in range(4)]
        await store.put("a:key", b"0", revision=revisions[0], expected=Expect.ABSENT)
        switch.set(status, methods=("PUT",), after=True)
        with pytest.raises(OutcomeUnknownError, match="perhaps stored") as caught:
            await store.put("a:key", b"1", revision=revisions[1], expected=revisions[0])
        unsecret(caught.value)
        switch.set(status, methods=("PUT",))
        with pytest.raises(OutcomeUnknownError):
            await store.put("a:key", b"2", revision=revisions[2], expected=revisions[1])
        switch.set("")
        with pytest.raises(RevisionConflictError):  # what a manager does to find out
            await store.put("a:key", b"3", revision=revisions[3], expected=revisions[0])
        assert await store.get("a:key") == Stored(b"1", revisions[1])


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Unavailable"])
async def test_reads_are_repeated(switch: Switch, status: str) -> None:
    async with switch.store as store:
        first = new()
        await store.put("a:key", b"first", revision=first, expected=Expect.ABSENT)
        switch.set(status)
        switch.requests.clear()
        with pytest.raises(StoreUnavailableError, match=f"answered {status[:3]}"):
            await store.get("a:key")
        assert switch.requests == ["GET"] * 3


async def test_a_404_that_names_nothing_is_absent_only_if_the_bucket_is_there(switch: Switch) -> None:
    async with switch.store as store:
        switch.set("404 Not Found", "", methods=("GET",))
        with pytest.raises(StoreUnavailableError, match="the bucket, or the address of the server"):
            await store.get("a:key")  # its listing is a 404 as well

        def there(app: App) -> App:
            def found(environ: dict[str, Any], start: Any) -> Any:
                if environ["REQUEST_METHOD"] == "GET" and "list-type" not in environ["QUERY_STRING"]:
                    return answer(start, "404 Not Found", b"Not Found")
                return app(environ, start)

            return found

        with MotoServer(there) as server:
            other = ObjectStore(f"s3://{server.bucket}/empty", **server.options)
            assert await other._bucket.read("a/key") is None


async def test_a_busy_object_is_tried_again(switch: Switch) -> None:
    """S3 answers 409 to one of two writes that meet, though neither has changed anything yet."""
    async with switch.store as store:
        first, second = new(), new()
        await store.put("a:key", b"first", revision=first, expected=Expect.ABSENT)
        switch.set("409 Conflict", "ConditionalRequestConflict", methods=("PUT",))
        with pytest.raises(StoreUnavailableError, match="'a:key' is too busy"):
            await store.put("a:key", b"second", revision=second, expected=first)
        with pytest.raises(StoreUnavailableError, match="'a:nother' is too busy"):
            await store.put("a:nother", b"second", revision=second, expected=Expect.ABSENT)
        switch.set("")
        await store.put("a:key", b"second", revision=second, expected=first)


async def test_a_refused_write_that_can_not_be_looked_at_is_unknown(switch: Switch) -> None:
    async with switch.store as store:
        first = new()
        await store.put("a:key", b"first", revision=first, expected=Expect.ABSENT)
        switch.set("503 Unavailable", methods=("GET",))
        with pytest.raises(OutcomeUnknownError):
            await store.put("a:key", b"second", revision=new(), expected=Expect.ABSENT)


def failing() -> tuple[list[str], Any]:
    """A server that answers the next writes with what is in the list; what it calls 500 it stored."""
    left: list[str] = []

    def between(app: App) -> App:
        def fail(environ: dict[str, Any], start: Any) -> Any:
            if not is_write(environ) or not left:
                return app(environ, start)
            status = left.pop(0)
            body = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            if status.startswith("500"):
                list(app({**environ, "wsgi.input": body}, lambda *_: None))
            return answer(start, status)

        return fail

    return left, between


def repeating(server: MotoServer, prefix: str) -> obstore.store.S3Store:
    options = server.options
    return obstore.store.S3Store(
        server.bucket,
        prefix=prefix,
        client_options=options.pop("client_options"),
        retry_config={"max_retries": 2, "backoff": {"init_backoff": timedelta(milliseconds=5)}},
        config=options,
    )


async def test_a_client_that_repeats_writes_is_understood(s3: MotoServer) -> None:
    """What a repetition is told says nothing about the first attempt."""
    left, between = failing()
    with MotoServer(between) as server:
        async with ObjectStore(repeating(server, new().hex())) as store:
            first, second, third = new(), new(), new()
            left[:] = ["500 Stored"]
            await store.put("a:key", b"1", revision=first, expected=Expect.ABSENT)  # the second attempt: 412, and ours
            left[:] = ["500 Stored"]
            await store.put("a:key", b"2", revision=second, expected=first)
            left[:] = ["500 Stored", "403 Forbidden"]
            with pytest.raises(OutcomeUnknownError):
                await store.put("a:key", b"3", revision=third, expected=second)
            assert await store.get("a:key") == Stored(b"3", third)
            left[:] = ["502 Lost", *["409 Conflict"] * 20]
            with pytest.raises(OutcomeUnknownError, match="the client repeated the write"):
                await store.put("a:key", b"4", revision=new(), expected=third)
            left[:] = ["403 Forbidden"]
            with pytest.raises(StoreUnavailableError):
                await store.put("a:key", b"4", revision=new(), expected=third)


class Between:
    """Another owner's time: a server that loses the reply to a write, and holds its repetition until told to go on."""

    store: ObjectStore
    other: ObjectStore

    def __init__(self) -> None:
        self.armed, self.lands = False, True
        self.lost, self.go = threading.Event(), threading.Event()

    def __call__(self, app: App) -> App:
        def held(environ: dict[str, Any], start: Any) -> Any:
            if is_write(environ) and self.armed and not self.lost.is_set():
                body = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
                if self.lands:
                    list(app({**environ, "wsgi.input": body}, lambda *_: None))
                self.lost.set()
                return answer(start, "500 Lost")
            if is_write(environ) and self.armed:
                self.go.wait(20)
            return app(environ, start)

        return held

    async def meanwhile(self, write: Awaitable[None], others: Callable[[], Awaitable[None]]) -> None:
        """Do *write*, whose first attempt lands or is lost, and what *others* do before its repetition."""
        self.armed = True
        writing = asyncio.ensure_future(write)
        try:
            assert await asyncio.to_thread(self.lost.wait, 20)
            await others()
        finally:
            self.go.set()
        await writing


@pytest.fixture
def between(s3: MotoServer) -> Iterator[Between]:
    between, prefix = Between(), new().hex()
    with MotoServer(between) as server:
        between.store = ObjectStore(repeating(server, prefix))
        between.other = ObjectStore(f"s3://{s3.bucket}/{prefix}", **s3.options)
        yield between


@pytest.mark.parametrize("lands", [True, False])
async def test_a_change_that_others_wrote_over_before_its_repetition_is_unknown(between: Between, lands: bool) -> None:
    async with between.store as store, between.other as other:
        first, second, third = new(), new(), new()
        await store.put("a:key", b"1", revision=first, expected=Expect.ABSENT)
        between.lands = lands

        async def others() -> None:
            seen = await other.head("a:key")
            assert seen == (second if lands else first)
            await other.put("a:key", b"3", revision=third, expected=seen)

        with pytest.raises(OutcomeUnknownError, match="perhaps stored: key 'a:key'"):
            await between.meanwhile(store.put("a:key", b"2", revision=second, expected=first), others)
        with pytest.raises(RevisionConflictError):  # what a manager does to find out
            await store.put("a:key", b"2", revision=new(), expected=first)
        assert await store.get("a:key") == Stored(b"3", third)


async def test_a_create_that_others_wrote_over_before_its_repetition_is_unknown(between: Between) -> None:
    async with between.store as store, between.other as other:
        first, second = new(), new()
        with pytest.raises(OutcomeUnknownError):
            await between.meanwhile(
                store.put("a:key", b"1", revision=first, expected=Expect.ABSENT),
                lambda: other.put("a:key", b"2", revision=second, expected=first),
            )
        assert await store.get("a:key") == Stored(b"2", second)


async def test_a_create_that_others_deleted_before_its_repetition_does_not_come_back(between: Between) -> None:
    async with between.store as store, between.other as other:
        first = new()
        with pytest.raises(OutcomeUnknownError):
            await between.meanwhile(
                store.put("a:key", b"1", revision=first, expected=Expect.ABSENT),
                lambda: other.delete("a:key", expected=first),
            )
        assert await store.get("a:key") is None


@pytest.mark.parametrize("any_revision", [True, False])
async def test_a_repeated_delete_leaves_what_others_created_since(between: Between, any_revision: bool) -> None:
    async with between.store as store, between.other as other:
        first, second = new(), new()
        await store.put("a:key", b"1", revision=first, expected=Expect.ABSENT)
        with pytest.raises(OutcomeUnknownError):
            await between.meanwhile(
                store.delete("a:key", expected=Expect.ANY if any_revision else first),
                lambda: other.put("a:key", b"2", revision=second, expected=Expect.ABSENT),
            )
        assert await store.get("a:key") == Stored(b"2", second)


async def test_a_repeated_delete_of_what_is_gone_is_done(between: Between) -> None:
    async with between.store as store, between.other as other:
        first, second = new(), new()
        await store.put("a:key", b"1", revision=first, expected=Expect.ABSENT)

        async def others() -> None:
            await other.put("a:key", b"2", revision=second, expected=Expect.ABSENT)
            await other.delete("a:key", expected=second)

        await between.meanwhile(store.delete("a:key", expected=first), others)
        assert await store.get("a:key") is None


async def test_a_repeated_write_that_never_fitted_is_a_conflict(s3: MotoServer) -> None:
    """What is there was seen before the first attempt, so that can't have landed."""
    left, between = failing()
    with MotoServer(between) as server:
        async with ObjectStore(repeating(server, new().hex())) as store:
            first = new()
            await store.put("a:key", b"1", revision=first, expected=Expect.ABSENT)
            left[:] = ["502 Lost"]
            with pytest.raises(RevisionConflictError):
                await store.put("a:key", b"2", revision=new(), expected=Expect.ABSENT)
            left[:] = ["502 Lost"]
            with pytest.raises(RevisionConflictError):
                await store.put("a:key", b"2", revision=new(), expected=new())
            assert left  # that one was seen before anything was written
            store._seen.clear()
            with pytest.raises(OutcomeUnknownError):  # nobody knows how long it has been there
                await store.put("a:key", b"2", revision=new(), expected=Expect.ABSENT)
            with pytest.raises(RevisionConflictError):
                await store.put("a:key", b"2", revision=new(), expected=Expect.ABSENT)
            assert await store.get("a:key") == Stored(b"1", first)


async def test_an_object_larger_than_any_record_is_damage_and_is_not_read(s3: MotoServer) -> None:
    revision, done = new(), threading.Event()
    head = _file_frame.pack("a:key", revision, 1 << 40)

    def large(app: App) -> App:
        def given(environ: dict[str, Any], start: Any) -> Any:
            if environ["REQUEST_METHOD"] != "GET" or not environ["PATH_INFO"].endswith("/a/key"):
                return app(environ, start)
            total = len(head) + (1 << 40)
            about = [("ETag", '"e"'), ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")]
            if "HTTP_RANGE" in environ:
                end = int(environ["HTTP_RANGE"].rpartition("-")[2])
                about += [("Content-Range", f"bytes 0-{end}/{total}"), ("Content-Length", str(end + 1))]
                start("206 Partial Content", about)
                return [head.ljust(end + 1, b"\0")]
            start("200 OK", [*about, ("Content-Length", str(total))])
            return endless()

        return given

    def endless() -> Iterator[bytes]:
        yield head
        done.wait(20)  # who reads on waits

    with MotoServer(large) as server:
        try:
            async with ObjectStore(f"s3://{s3.bucket}/{new().hex()}", timeout=5, **server.options) as store:
                for attempt in (store.get("a:key"), store.head("a:key")):
                    with pytest.raises(CorruptRecordError, match=r"has 1,099,511,\d{3},\d{3} bytes, more than 268,"):
                        await attempt
        finally:
            done.set()


def twice(app: App) -> App:
    """A network that delivers each write twice; the second reply is what the client hears."""

    def doubled(environ: dict[str, Any], start: Any) -> Any:
        if is_write(environ):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            list(app({**environ, "wsgi.input": io.BytesIO(body)}, lambda *_: None))
            environ["wsgi.input"] = io.BytesIO(body)
        return app(environ, start)

    return doubled


async def test_a_write_that_was_delivered_twice_is_recognised(s3: MotoServer) -> None:
    with MotoServer(twice) as server:
        async with ObjectStore(f"s3://{s3.bucket}/{new().hex()}", **server.options) as store:
            first, second, third = new(), new(), new()
            await store.put("a:key", b"1", revision=first, expected=Expect.ABSENT)
            await store.put("a:key", b"2", revision=second, expected=first)
            assert await store.get("a:key") == Stored(b"2", second)
            with pytest.raises(RevisionConflictError):
                await store.put("a:key", b"3", revision=third, expected=first)
            await store.delete("a:key", expected=second)
            assert await store.get("a:key") is None
            await store.put("a:key", b"3", revision=third, expected=Expect.ABSENT)
            assert await store.get("a:key") == Stored(b"3", third)
