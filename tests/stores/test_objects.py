"""ObjectStore on S3, as moto has it: requests, tombstones, listing, options, misuse."""

from __future__ import annotations

import asyncio
import http.client
import os
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import obstore.store
import pytest
from moto_server import App, MotoServer

from overwinter.errors import (
    ClosedError,
    CorruptRecordError,
    InvalidKeyError,
    RevisionConflictError,
    StateTooLargeError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import Durability, Expect, Stored
from overwinter.stores import objects as objects_module
from overwinter.stores._objects_frame import TOMBSTONE
from overwinter.stores._objects_names import name_of
from overwinter.stores.objects import ObjectStore
from overwinter.testing import until

KEY = "a:key"
PUT, GET = "PUT", "GET"
CLIENT = {"region": "us-east-1", "access_key_id": "AKIA", "secret_access_key": "hush-hush"}


def new() -> bytes:
    return os.urandom(16)


class Counter:
    """A server that notes the methods of requests."""

    store: ObjectStore

    def __init__(self) -> None:
        self.requests: list[str] = []

    def __call__(self, app: App) -> App:
        def counted(environ: dict[str, Any], start: Any) -> Any:
            self.requests.append(environ["REQUEST_METHOD"])
            return app(environ, start)

        return counted

    def taken(self) -> list[str]:
        taken, self.requests[:] = list(self.requests), []
        return taken


@pytest.fixture
def counter(s3: MotoServer) -> Iterator[Counter]:
    counter = Counter()
    with MotoServer(counter) as server:
        counter.store = ObjectStore(f"s3://{s3.bucket}/{new().hex()}", **server.options)
        yield counter


@pytest.fixture
def place(s3: MotoServer) -> str:
    return f"s3://{s3.bucket}/{new().hex()}"


async def collect(keys: AsyncIterator[str]) -> list[str]:
    return sorted([key async for key in keys])


async def into(found: list[str], keys: AsyncIterator[str]) -> None:
    async for key in keys:
        found.append(key)  # noqa: PERF401  # what came before an error counts


# ---------------------------------------------------------------- what a call costs


async def test_requests_per_call(counter: Counter) -> None:
    async with counter.store as store:
        a, b, c, d = new(), new(), new(), new()
        counter.taken()
        await store.put(KEY, b"a", revision=a, expected=Expect.ABSENT)
        assert counter.taken() == [PUT]
        await store.put(KEY, b"b", revision=b, expected=a)
        assert counter.taken() == [PUT]
        assert await store.head(KEY) == b
        assert counter.taken() == [GET]
        await store.delete(KEY, expected=b)
        assert counter.taken() == [PUT]
        await store.put(KEY, b"c", revision=c, expected=Expect.ABSENT)  # over the tombstone that it wrote
        assert counter.taken() == [PUT]
        store._seen.clear()
        await store.put(KEY, b"d", revision=d, expected=c)
        assert counter.taken() == [GET, PUT]
        await store.delete(KEY, expected=Expect.ANY)
        assert counter.taken() == [GET, PUT]
        store._seen.clear()
        await store.put(KEY, b"a", revision=new(), expected=Expect.ABSENT)
        assert counter.taken() == [PUT, GET, PUT]
        with pytest.raises(RevisionConflictError):
            await store.put(KEY, b"a", revision=new(), expected=Expect.ABSENT)
        assert counter.taken() == [PUT, GET]


async def test_what_is_remembered_is_bounded(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "_REMEMBERED", 3)
    async with counter.store as store:
        revisions = {f"a:{n}": new() for n in range(6)}
        for key, revision in revisions.items():
            await store.put(key, b"", revision=revision, expected=Expect.ABSENT)
        assert list(store._seen) == ["a:3", "a:4", "a:5"]
        for key, revision in revisions.items():
            await store.put(key, b"", revision=new(), expected=revision)


async def test_no_more_requests_at_once_than_was_said(s3: MotoServer, place: str) -> None:
    async with ObjectStore(place, concurrency=2, **s3.options) as store:
        await asyncio.gather(*(store.put(f"a:{n}", b"", revision=new(), expected=Expect.ABSENT) for n in range(20)))
        assert store._slots._value == 2
        assert await store.count() == 20


async def test_a_close_waits_for_puts_that_were_submitted(s3: MotoServer, place: str) -> None:
    store = ObjectStore(place, **s3.options)
    async with store:
        first = new()
        put = store.submit(KEY, b"first", revision=first, expected=Expect.ABSENT)
    assert (put.done(), put.exception()) == (True, None)
    async with store:
        assert await store.get(KEY) == Stored(b"first", first)


# ---------------------------------------------------------------- tombstones


async def test_a_deleted_key_leaves_a_tombstone_that_nobody_sees(s3: MotoServer, place: str) -> None:
    async with ObjectStore(place, **s3.options) as store, ObjectStore(place, **s3.options) as other:
        first = new()
        await store.put(KEY, b"first", revision=first, expected=Expect.ABSENT)
        await store.delete(KEY, expected=first)
        held = await store._bucket.read(name_of(KEY))
        assert held is not None
        assert held.size == TOMBSTONE
        for each in (store, other):
            assert (await each.get(KEY), await each.head(KEY)) == (None, None)
            assert (await collect(each.keys()), await collect(each.keys("a:")), await each.count()) == ([], [], 0)
            for expected in (first, Expect.ABSENT, Expect.ANY):
                await each.delete(KEY, expected=expected)
        assert await store._bucket.read(name_of(KEY)) == held


async def test_a_create_from_before_a_delete_does_not_come_back(s3: MotoServer, place: str) -> None:
    """The request was delayed in the network, and its sender is gone."""
    async with ObjectStore(place, **s3.options) as store:
        first, second = new(), new()
        await store.put(KEY, b"first", revision=first, expected=Expect.ABSENT)
        await store.delete(KEY, expected=first)
        assert await store.get(KEY) is None
        tombstone = store._seen[KEY].tag
        await store.put(KEY, b"second", revision=second, expected=Expect.ABSENT)
        await store.delete(KEY, expected=second)
        for over in (None, tombstone):  # as it was sent when nothing was there, and over the tombstone before
            with pytest.raises(objects_module.RefusedError):
                await store._bucket.write(name_of(KEY), b"delayed", over)
        assert await store.get(KEY) is None


async def test_any_deletes_what_can_not_be_read(s3: MotoServer, place: str) -> None:
    async with ObjectStore(place, **s3.options) as store:
        await store._bucket.write(name_of(KEY), b"not a record", None)
        for attempt in (store.get(KEY), store.head(KEY), store.delete(KEY, expected=new())):
            with pytest.raises(CorruptRecordError, match="a/key of key 'a:key' is no file"):
                await attempt
        with pytest.raises(CorruptRecordError):
            await store.put(KEY, b"", revision=new(), expected=Expect.ABSENT)
        assert await collect(store.keys()) == [KEY]  # it is there
        await store.delete(KEY, expected=Expect.ANY)
        assert await store.get(KEY) is None
        await store.put(KEY, b"", revision=new(), expected=Expect.ABSENT)


@pytest.mark.parametrize("content", [b"", b"x" * TOMBSTONE, b"\x89OWF"])
async def test_damage_of_any_size_is_not_absent(s3: MotoServer, place: str, content: bytes) -> None:
    async with ObjectStore(place, **s3.options) as store:
        await store._bucket.write(name_of(KEY), content, None)
        for attempt in (store.get(KEY), store.head(KEY), store.put(KEY, b"", revision=new(), expected=Expect.ABSENT)):
            with pytest.raises(CorruptRecordError):
                await attempt


async def test_an_object_may_be_as_large_as_a_record(
    s3: MotoServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ObjectStore(place, **s3.options) as store:
        revision = new()
        await store.put(KEY, b"data", revision=revision, expected=Expect.ABSENT)
        held = await store._bucket.read(name_of(KEY))
        assert held is not None
        for module in ("_objects_bucket", "_objects_frame"):
            monkeypatch.setattr(f"overwinter.stores.{module}.MAX_SIZE", held.size)
        assert await store.get(KEY) == Stored(b"data", revision)
        for module in ("_objects_bucket", "_objects_frame"):
            monkeypatch.setattr(f"overwinter.stores.{module}.MAX_SIZE", held.size - 1)
        assert await store._bucket.read(name_of(KEY)) == replace(held, content=b"")
        with pytest.raises(CorruptRecordError, match="is none of this store"):
            await store.get(KEY)
        assert await collect(store.keys()) == [KEY]  # it is there
        await store.delete(KEY, expected=Expect.ANY)


async def test_an_object_of_another_key_is_damage(s3: MotoServer, place: str) -> None:
    async with ObjectStore(place, **s3.options) as store:
        await store.put(KEY, b"data", revision=new(), expected=Expect.ABSENT)
        held = await store._bucket.read(name_of(KEY))
        assert held is not None
        await store._bucket.write(name_of("a:nother"), held.content, None)
        with pytest.raises(CorruptRecordError, match="of key 'a:nother' holds another key"):
            await store.get("a:nother")


# ---------------------------------------------------------------- listing


async def test_keys_and_count_by_prefix(s3: MotoServer, place: str) -> None:
    long = "Note:" + "鍵" * 300
    keys = sorted(["Note:ada", "Note:adam", "Note:a:b", long, "Notes:ada", "plain", ":x", "N" * 300 + ":k", "Note:"])
    async with ObjectStore(place, **s3.options) as store:
        for key in keys:
            await store.put(key, b"", revision=new(), expected=Expect.ABSENT)
        await store.put("Note:gone", b"", revision=new(), expected=Expect.ABSENT)
        await store.delete("Note:gone", expected=Expect.ANY)
        await store._bucket.write("readme.txt", b"somebody's", None)
        await store._bucket.write("Note/deep/er", b"somebody's", None)
        for prefix in ("", "Note", "Note:", "Note:ad", long[:-1], "N" * 300 + ":", ":", "p", "none", "none:"):
            expected = [key for key in keys if key.startswith(prefix)]
            assert await collect(store.keys(prefix)) == expected, prefix
            assert await store.count(prefix) == len(expected), prefix


def make_empty(s3: MotoServer, place: str, name: str) -> None:
    """What another program does in the bucket, also with names that obstore doesn't take."""
    connection = http.client.HTTPConnection("127.0.0.1", s3.port, timeout=10)
    try:
        connection.request(PUT, quote(f"{place.removeprefix('s3:/')}/{name}"), b"")
        assert connection.getresponse().status < 300
    finally:
        connection.close()


async def test_folders_that_a_console_makes_are_no_agents(s3: MotoServer, place: str) -> None:
    async with ObjectStore(place, **s3.options) as store:
        for key in ("Note:x", "Note:x-y"):
            await store.put(key, b"", revision=new(), expected=Expect.ABSENT)
        for folder in ("Note/", "Note/x/", "Note/y/"):
            make_empty(s3, place, folder)
        for prefix in ("", "Note:"):
            assert await collect(store.keys(prefix)) == ["Note:x", "Note:x-y"]
            assert await store.count(prefix) == 2


@pytest.mark.parametrize(
    ("name", "shown"), [("Note//x", "Note//x"), ("Note/../x", "Note/../x"), ("Note/\x01", r"Note/\u{1}")]
)
async def test_a_name_that_can_not_be_listed_is_told(s3: MotoServer, place: str, name: str, shown: str) -> None:
    async with ObjectStore(place, **s3.options) as store:
        for key in ("Note:a", "Other:b"):
            await store.put(key, b"a", revision=new(), expected=Expect.ABSENT)
        make_empty(s3, place, name)
        for listing in (collect(store.keys()), collect(store.keys("Note:")), store.count("Note:")):
            with pytest.raises(StoreUnavailableError, match="move it away") as caught:
                await listing
            assert f"{place.rpartition('/')[2]}/{shown} of" in str(caught.value)
        assert await collect(store.keys("Other:")) == ["Other:b"]
        assert await store.get("Note:a") is not None


async def test_a_listing_goes_on_over_pages_and_may_be_left(
    s3: MotoServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overwinter.stores._objects_bucket._PAGE", 7)
    async with ObjectStore(place, **s3.options) as store:
        keys = [f"a:{n:03}" for n in range(30)]
        await asyncio.gather(*(store.put(key, b"", revision=new(), expected=Expect.ABSENT) for key in keys))
        assert await collect(store.keys("a:")) == keys
        async for _ in store.keys():
            break
        assert await store.count() == 30


async def test_a_damaged_object_whose_key_is_only_inside_is_told_at_the_end(s3: MotoServer, place: str) -> None:
    long = ["Note:" + "k" * 500 + str(number) for number in range(9)]
    async with ObjectStore(place, **s3.options) as store:
        for key in ("Note:ada", long[0]):
            await store.put(key, b"", revision=new(), expected=Expect.ABSENT)
        for key in long[1:]:
            await store._bucket.write(name_of(key), b"damaged", None)
        found: list[str] = []
        with pytest.raises(CorruptRecordError, match=r"8 objects of s3://.* all others were listed: Note/~") as caught:
            await into(found, store.keys("Note:"))
        assert sorted(found) == ["Note:ada", long[0]]
        assert str(caught.value).count("Note/~") == 5
        assert await store.count() == 10


LONG = [f"a:{number:02}" + "x" * 500 for number in range(60)]


async def put_long(store: ObjectStore) -> None:
    await asyncio.gather(*(store.put(key, b"", revision=new(), expected=Expect.ABSENT) for key in LONG))


async def test_a_listing_of_long_keys_may_take_longer_than_a_call(
    s3: MotoServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ObjectStore(place, concurrency=2, **s3.options) as store:
        await put_long(store)
        read, begun = store._bucket.read, 0

        async def slow(name: str, end: int | None = None) -> Any:
            nonlocal begun
            begun += 1
            await asyncio.sleep(0.05)  # real time, as the deadlines of calls are
            return await read(name, end)

        monkeypatch.setattr(store._bucket, "read", slow)
        store.timeout = 1.0
        listing = asyncio.ensure_future(collect(store.keys()))
        await until(lambda: begun > 2)
        await store.get("a:other")  # has its turn in between
        assert not listing.done()
        assert await listing == LONG


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_listing_that_ends_early_leaves_no_request_behind(
    s3: MotoServer, place: str, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    async with ObjectStore(place, concurrency=4, **s3.options) as store:
        await put_long(store)
        begun: list[str] = []

        async def silent(name: str, end: int | None = None) -> Any:
            begun.append(name)
            if len(begun) == 3 and not leaves:
                raise StoreUnavailableError("down")
            await asyncio.Event().wait()

        monkeypatch.setattr(store._bucket, "read", silent)
        before = asyncio.all_tasks()
        listing = asyncio.ensure_future(collect(store.keys()))
        await until(lambda: len(begun) >= 3)
        if leaves:
            listing.cancel()
        with pytest.raises(asyncio.CancelledError if leaves else StoreUnavailableError):
            await listing
        await until(lambda: asyncio.all_tasks() == before)  # its generators are closed by then
        assert len(begun) <= 4
        assert store._slots._value == 4


async def test_a_listing_of_long_keys_ends_with_its_store(s3: MotoServer, place: str) -> None:
    async with ObjectStore(place, concurrency=2, **s3.options) as store:
        await put_long(store)
        keys = store.keys()
        first = [await anext(keys), await anext(keys)]
    with pytest.raises(ClosedError):
        await anext(keys)
    assert set(first) < set(LONG)


# ---------------------------------------------------------------- options and misuse


@pytest.mark.parametrize(
    ("url", "options", "durability"),
    [
        ("s3://bucket/prefix", CLIENT, Durability.REPLICATED),
        ("s3://bucket", {**CLIENT, "endpoint": "https://s3.eu-west-1.amazonaws.com"}, Durability.REPLICATED),
        ("s3://bucket", {**CLIENT, "endpoint": "http://127.0.0.1:9000"}, Durability.HOST),
        ("s3://bucket", {**CLIENT, "aws_endpoint": "http://amazonaws.com.example"}, Durability.HOST),
        ("s3://bucket", {**CLIENT, "endpoint": "http://n", "durability": Durability.PROCESS}, Durability.PROCESS),
        ("gs://bucket/prefix", {"skip_signature": True}, Durability.REPLICATED),
        ("gs://bucket", {"skip_signature": True, "base_url": "http://127.0.0.1:4443"}, Durability.HOST),
        ("az://bucket/prefix", {"account_name": "a", "account_key": "aA=="}, Durability.REPLICATED),
        ("az://bucket", {"account_name": "a", "account_key": "aA==", "endpoint": "http://n/a"}, Durability.HOST),
    ],
)
def test_what_is_declared(url: str, options: dict[str, Any], durability: Durability) -> None:
    store = ObjectStore(url, **options)
    assert store.durability is durability
    assert repr(store) == f"ObjectStore({url!r})"
    assert store.network


def test_an_endpoint_in_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert ObjectStore("s3://bucket", **CLIENT).durability is Durability.HOST


def test_a_client_of_obstore_will_do() -> None:
    client = obstore.store.S3Store("bucket", prefix="pre/fix", config=CLIENT)
    assert repr(ObjectStore(client)) == "ObjectStore('s3://bucket/pre/fix')"
    with pytest.raises(UsageError, match="region can't be set here"):
        ObjectStore(client, region="eu-west-1")


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("bucket/prefix", {}, "has no scheme"),
        ("s3://key:hush-hush@bucket", {}, "no credentials and no options"),
        ("s3://bucket?secret_access_key=hush-hush", {}, "no credentials and no options"),
        ("s3://bucket", {**CLIENT, "secret": "hush-hush"}, r"refuses the URL or the options \(.*secret.*UnknownConfig"),
        ("zz://bucket", {}, "zz://bucket: obstore refuses"),
        ("memory:///", {}, "for memory MemoryStore"),
        ("file:///tmp", {}, "for a folder use FileStore"),
        ("https://example.org/x", {}, "not a HTTPStore"),
        (obstore.store.MemoryStore(), {}, "not a MemoryStore"),
        (7, {}, "not a int"),
        ("s3://bucket/" + "p" * 401, CLIENT, "more than 400 bytes"),
    ],
)
def test_what_can_not_be_a_target(target: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        ObjectStore(target, **options)
    assert "hush-hush" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("nan")}, {"concurrency": 0}])
def test_numbers_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ObjectStore("s3://bucket", **CLIENT, **options)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[objects\]'"):
        ObjectStore("s3://bucket")


async def test_misuse_is_an_error(s3: MotoServer, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(place, **s3.options)
    with pytest.raises(ClosedError):
        await store.get(KEY)
    async with store:
        with pytest.raises(UsageError, match="only for deleting"):
            await store.put(KEY, b"", revision=new(), expected=Expect.ANY)
        for key in ("\ud800", "k" * 8193):
            with pytest.raises(InvalidKeyError):
                await store.get(key)
        with pytest.raises(UsageError, match="more than 255 bytes"):
            await store.put(KEY, b"", revision=b"r" * 256, expected=Expect.ABSENT)
        with monkeypatch.context() as patch:
            patch.setattr(objects_module, "MAX_DATA", 9)
            await store.put(KEY, b"d" * 9, revision=new(), expected=Expect.ABSENT)
            with pytest.raises(StateTooLargeError, match="10 bytes; an ObjectStore takes 9"):
                await store.put(KEY, b"d" * 10, revision=new(), expected=Expect.ABSENT)
        with pytest.raises(UsageError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(store.get(KEY)))
    with pytest.raises(ClosedError):
        await collect(store.keys())


async def test_a_missing_bucket_is_an_error_and_not_empty(s3: MotoServer) -> None:
    with pytest.raises(StoreUnavailableError, match=r"s3://nowhere/.*the bucket does not exist: create it"):
        await ObjectStore("s3://nowhere/agents", **s3.options).open()


async def test_revisions_of_other_lengths_and_keys_of_three_kilobytes(s3: MotoServer, place: str) -> None:
    async with ObjectStore(place, **s3.options) as store:
        for size in (1, 255):
            key, revision = f"{size}:" + "k" * 3000, os.urandom(size)
            await store.put(key, b"data", revision=revision, expected=Expect.ABSENT)
            assert await store.get(key) == Stored(b"data", revision)
            assert await store.head(key) == revision
            await store.put(key, b"more", revision=new(), expected=revision)
