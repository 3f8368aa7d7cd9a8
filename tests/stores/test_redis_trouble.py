"""A server that hangs, dies or resets, callers who leave, and a store that is used where it can't work."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any, Self

import pytest
import redis as driver
from servers import Valkey

from overwinter.errors import (
    ClosedError,
    InvalidKeyError,
    OutcomeUnknownError,
    RevisionConflictError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import Expect, Stored
from overwinter.stores.redis import RedisStore


def new() -> bytes:
    return os.urandom(16)


@pytest.fixture(scope="module")
def private() -> Iterator[Valkey]:
    with Valkey("--appendfsync", "no") as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4().hex}:"


def lines(store: RedisStore) -> list[Any]:
    assert store._exchange is not None
    return store._exchange._lines


@pytest.mark.parametrize("seed", range(2))
async def test_two_thousand_calls_are_cancelled_and_every_reply_reaches_its_caller(private, prefix, seed):
    dice = random.Random(seed)
    keys = [f"key {number}" for number in range(40)]
    async with RedisStore(private.url, prefix=prefix) as store:
        now: dict[str, Stored] = {}
        for key in keys:
            now[key] = Stored(key.encode(), new())
            await store.put(key, now[key].data, revision=now[key].revision, expected=Expect.ABSENT)

        async def look(key: str) -> None:
            found = await store.get(key)
            assert found is not None
            assert found.data.startswith(key.encode()), "a reply to another's request"
            assert await store.head(key) is not None

        async def change(key: str) -> None:
            for _ in range(2):
                stored = await store.get(key)
                assert stored is not None
                try:
                    await store.put(key, key.encode() + os.urandom(9), revision=new(), expected=stored.revision)
                except RevisionConflictError:
                    continue

        cancelled = 0
        while cancelled < 1000:
            tasks = [asyncio.create_task(dice.choice((look, change))(dice.choice(keys))) for _ in range(32)]
            for task in tasks:
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                if dice.random() < 0.8:
                    cancelled += task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        for key in keys:
            await look(key)
        assert not store._exchange.waiting
        with driver.Redis.from_url(private.url) as client:
            assert len(client.client_list()) <= 1 + len(lines(store))
    with driver.Redis.from_url(private.url) as client:
        assert len(client.client_list()) == 1


async def test_what_a_cancelled_caller_had_not_sent_is_not_done(private, prefix):
    async with RedisStore(private.url, prefix=prefix) as store:
        put = store.submit("key", b"x", revision=new(), expected=Expect.ABSENT)
        put.cancel()
        assert await store.get("key") is None


async def test_a_server_that_hangs_ends_calls_in_time_and_later_everything_is_known(private, prefix):
    async with RedisStore(private.url, prefix=prefix) as store:
        first = new()
        await store.put("old", b"x", revision=first, expected=Expect.ABSENT)
        store.timeout = 0.2
        private.send(signal.SIGSTOP)
        try:
            second = new()
            calls = [
                store.put("old", b"y", revision=second, expected=first),
                store.put("new", b"y", revision=second, expected=Expect.ABSENT),
                store.delete("other", expected=Expect.ANY),
                store.get("old"),
                store.head("old"),
                store.count(),
            ]
            outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
            assert [type(outcome) for outcome in outcomes] == 3 * [OutcomeUnknownError] + 3 * [StoreUnavailableError]
            late = await asyncio.gather(store.get("old"), store.put("old", b"", revision=new(), expected=first),
                                        return_exceptions=True)  # fmt: skip
            assert all(isinstance(each, StoreUnavailableError | OutcomeUnknownError) for each in late)
        finally:
            private.send(signal.SIGCONT)
        third = new()
        store.timeout = 10
        for key, expected in (("old", first), ("new", Expect.ABSENT)):  # as a manager resolves it: put once more
            try:
                await store.put(key, b"z", revision=third, expected=expected)
            except RevisionConflictError:
                found = await store.get(key)
                assert found is not None
                assert (found.revision == second) or (key == "old" and found.data == b"")
                await store.put(key, b"z", revision=third, expected=found.revision)
            assert await store.get(key) == Stored(b"z", third)


async def test_no_server_is_certainly_not_stored_and_it_works_when_it_is_back(prefix):
    with Valkey() as server:
        async with RedisStore(server.url, prefix=prefix) as store:
            first = new()
            await store.put("key", b"x", revision=first, expected=Expect.ABSENT)
            server.kill()
            for _ in range(3):
                await asyncio.sleep(0)
            for _ in range(3):
                for call in (
                    store.put("key", b"y", revision=new(), expected=first),
                    store.delete("key", expected=first),
                    store.get("key"),
                    store.head("key"),
                ):
                    with pytest.raises(StoreUnavailableError, match="nothing was done"):
                        await call
            server.start()
            assert await store.get("key") == Stored(b"x", first)
        server.kill()
        with pytest.raises(StoreUnavailableError, match="can't be used"):
            await RedisStore(server.url).__aenter__()


class Proxy:
    """Passes bytes to a server and back, and cuts the wire after as many bytes of an answer as it is told."""

    def __init__(self, target: str, path: str) -> None:
        self.target, self.path = target.removeprefix("unix://"), path
        self.left: int | None = None
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self.tasks: set[asyncio.Task[None]] = set()
        self.server = await asyncio.start_unix_server(self.accept, self.path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        inner_reader, inner_writer = await asyncio.open_unix_connection(self.target)
        there = asyncio.create_task(self.pump(reader, inner_writer, counted=False))
        back = asyncio.create_task(self.pump(inner_reader, writer, counted=True))
        try:
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in (there, back):
                pump.cancel()
            for end in (writer, inner_writer):
                end.transport.abort()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        while data := await reader.read(65536):
            if counted and self.left is not None:
                if len(data) >= self.left:
                    writer.write(data[: self.left])
                    self.left = None
                    self.cuts += 1
                    await writer.drain()
                    return
                self.left -= len(data)
            writer.write(data)
            await writer.drain()


async def test_a_wire_that_is_cut_at_any_byte_of_the_answer_tells_the_truth(private, prefix, tmp_path):
    async with (
        Proxy(private.url, str(tmp_path / "p")) as proxy,
        RedisStore(f"unix://{proxy.path}", prefix=prefix, connections=1) as store,
    ):
        base: bytes | Expect = Expect.ABSENT
        for cut in range(1, 40):
            await store.get("key")  # connect
            proxy.left = cut
            one, two = new(), new()
            calls = (
                store.put("key", b"%d" % cut, revision=one, expected=base),
                store.get("key"),
                store.put(f"other {cut}", b"x", revision=two, expected=Expect.ABSENT),
            )
            put, got, other = await asyncio.gather(*calls, return_exceptions=True)
            proxy.left = None
            assert put is None or isinstance(put, OutcomeUnknownError)
            assert isinstance(got, Stored | StoreUnavailableError)
            assert other is None or isinstance(other, OutcomeUnknownError)
            assert (await store.get("key")).revision == one
            assert (await store.get(f"other {cut}")).revision == two
            base = one
        assert proxy.cuts > 30


async def test_batches_are_bounded_and_large_ones_pass(private, prefix):
    async with RedisStore(private.url, prefix=prefix) as store:
        revisions = {f"key {number}": new() for number in range(20)}
        data = os.urandom(2_000_000)
        await asyncio.gather(
            *(store.put(key, data, revision=revision, expected=Expect.ABSENT) for key, revision in revisions.items())
        )
        found = await asyncio.gather(*(store.get(key) for key in revisions))
        assert found == [Stored(data, revision) for revision in revisions.values()]


async def test_misuse_is_an_error(private, prefix):
    store = RedisStore(private.url, prefix=prefix)
    with pytest.raises(ClosedError):
        await store.get("key")
    async with store:
        for attempt in (store.get("\ud800"), store.count("\ud800"), anext(store.keys("\ud800"))):
            with pytest.raises(InvalidKeyError):
                await attempt
        with pytest.raises(UsageError, match=r"Expect\.ANY"):
            await store.put("key", b"", revision=new(), expected=Expect.ANY)
        with pytest.raises(UsageError, match="event loop"):
            await asyncio.to_thread(asyncio.run, store.get("key"))
        child = os.fork()
        if not child:
            try:
                store.get("key").send(None)
            except UsageError:
                os._exit(7)
            finally:
                os._exit(8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        await store.put("key", b"", revision=new(), expected=Expect.ABSENT)
    with pytest.raises(ClosedError):
        await store.get("key")


async def test_closing_does_what_was_asked_first(private, prefix):
    async with RedisStore(private.url, prefix=prefix) as store:
        puts = [store.submit(str(n), b"x", revision=new(), expected=Expect.ABSENT) for n in range(1000)]
    assert await asyncio.gather(*puts) == [None] * 1000
    assert len(asyncio.all_tasks()) == 1


def test_a_store_that_is_not_closed_says_so(private, prefix):
    async def leave() -> RedisStore:
        store = RedisStore(private.url, prefix=prefix)
        await store.__aenter__()
        await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
        return store

    store = asyncio.run(leave())
    with pytest.warns(ResourceWarning, match="was not closed"):
        store.__del__()
    store._exchange = None


def test_the_driver_loads_on_first_use_and_who_lacks_it_is_told_what_to_install():
    code = """
import sys, overwinter.stores
assert "redis" not in sys.modules
sys.modules["redis"] = None
try:
    import overwinter.stores.redis
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python3 -m pip install '.[redis]' in a checkout" in done.stdout
