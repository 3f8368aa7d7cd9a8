"""What both stores on a local disk do beside the contract."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
import threading

import pytest
from storing import create, new

from overwinter import Agent, InstanceManager
from overwinter.errors import (
    ClosedError,
    InvalidKeyError,
    OutcomeUnknownError,
    RevisionConflictError,
    StoreInUseError,
    UsageError,
)
from overwinter.stores import Expect, FileStore, MemoryStore, SQLiteStore, Stored
from overwinter.stores._local import LocalStore
from overwinter.testing import until


class Tally(Agent):
    n: int = 0

    async def add(self) -> int:
        self.n += 1
        return self.n


@pytest.fixture(params=[SQLiteStore, FileStore])
def make(request, in_memory):
    """Make a store; each of one name has the same data."""
    return lambda name="store": request.param(in_memory / name)


async def test_a_closed_store_says_so_and_opens_again(make):
    store = make()
    for _ in range(2):
        with pytest.raises(ClosedError):
            store.submit("key", b"x", revision=new(), expected=Expect.ABSENT)
        async with store:
            assert isinstance(await store.get("key"), Stored | None)


def test_another_loop_is_refused(make):
    store = make()

    async def elsewhere():
        with pytest.raises(UsageError, match="another event loop"):
            await asyncio.wait_for(store.get("key"), 5)

    async def main():
        async with store:
            await asyncio.to_thread(asyncio.run, elsewhere())
            await create(store, "key")

    asyncio.run(main())


async def outcomes(store, puts):
    """Begin puts, and wait until each was told of."""
    told: dict[str, list] = {key: [] for key, _ in puts}
    for key, expected in puts:
        store.begin_put(key, b"x", revision=new(), expected=expected, done=told[key].append)
        assert not told[key], "told before the call returned"
    await until(lambda: all(told.values()))
    return {key: error for key, (error,) in told.items()}


async def test_outcomes_of_puts_can_be_told_without_futures(make):
    async with make() as store:
        told = await outcomes(store, [("key", Expect.ABSENT), ("other", new())])
        assert told["key"] is None
        assert isinstance(told["other"], RevisionConflictError)
        assert (await store.get("key")).data == b"x"
        assert await store.get("other") is None


async def test_what_one_listener_raises_keeps_no_other_from_its_outcome(make):
    told, loop_errors = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, error: loop_errors.append(error))

    def bad(error):
        raise RuntimeError("a listener's own")

    async with make() as store:
        for number in range(8):
            done = bad if number % 2 else told.append
            store.begin_put(f"key {number}", b"x", revision=new(), expected=Expect.ABSENT, done=done)
        await until(lambda: len(told) == 4 and len(loop_errors) == 4)
    assert told == [None] * 4
    assert {str(error["exception"]) for error in loop_errors} == {"a listener's own"}


async def test_begin_put_refuses_what_submit_refuses(make):
    store = make()
    with pytest.raises(ClosedError):
        store.begin_put("key", b"x", revision=new(), expected=Expect.ABSENT, done=print)
    async with store:
        for key, expected in (("key", Expect.ANY), ("\ud800", Expect.ABSENT)):
            with pytest.raises((UsageError, InvalidKeyError)):
                store.begin_put(key, b"x", revision=new(), expected=expected, done=print)

        async def elsewhere() -> None:
            store.begin_put("key", b"x", revision=new(), expected=Expect.ABSENT, done=print)

        with pytest.raises(UsageError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())
        if (child := os.fork()) == 0:
            try:
                store.begin_put("key", b"x", revision=new(), expected=Expect.ABSENT, done=print)
            except UsageError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(InvalidKeyError):
            store.begin_get("\ud800", print)
        assert await store.get("key") is None
    with pytest.raises(ClosedError):
        store.begin_get("key", print)


@pytest.mark.parametrize("kind", [SQLiteStore, FileStore, MemoryStore])
async def test_a_submit_of_ones_own_sees_each_put_of_a_manager(kind, in_memory):
    seen = []

    class Mine(kind):
        def submit(self, key, data, *, revision, expected):
            seen.append(key)
            return super().submit(key, data, revision=revision, expected=expected)

    store = Mine() if kind is MemoryStore else Mine(in_memory / "store")
    async with InstanceManager(Tally, store=store) as tallies:
        assert await tallies.call("a", Tally.add) == 1
        assert await tallies.call("a", Tally.add) == 2
    assert seen == ["Tally:a"] * 2


async def test_a_put_that_its_store_cancels_has_an_unknown_outcome():
    class Cancels(MemoryStore):
        def submit(self, key, data, *, revision, expected):
            put = super().submit(key, data, revision=revision, expected=expected)
            put.cancel()
            return put

    async with Cancels() as store:
        assert isinstance((await outcomes(store, [("key", Expect.ABSENT)]))["key"], OutcomeUnknownError)


async def test_closing_does_what_was_begun(make):
    async with make() as store:
        futures = [
            store.submit(f"key {number}", b"x", revision=new(), expected=Expect.ABSENT) for number in range(1000)
        ]
        get = asyncio.ensure_future(store.get("key 0"))
        await asyncio.sleep(0)
    assert all(future.done() and not future.exception() for future in futures)
    assert get.done()


def test_a_loop_that_ended_before_the_store_harms_nobody(make):
    async def main():
        store = make()
        await store.__aenter__()
        await store.claim("Agent", shared=False, wait=0)
        store.submit("key", b"x", revision=new(), expected=Expect.ABSENT)
        await asyncio.sleep(0)
        return store

    async def again():
        async with make() as store:
            await store.claim("Agent", shared=False, wait=0)

    threads = set(threading.enumerate())
    store = asyncio.run(main())
    with pytest.warns(ResourceWarning, match="was not closed"):  # noqa: PT031
        del store
        gc.collect()
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()
    asyncio.run(again())


async def test_an_open_that_is_cancelled_leaves_nothing(make):
    threads = set(threading.enumerate())
    for passes in range(12):
        store = make(f"{passes}")
        opening = asyncio.create_task(store.__aenter__())
        for _ in range(passes):
            await asyncio.sleep(0)
        opening.cancel()
        if isinstance((await asyncio.gather(opening, return_exceptions=True))[0], LocalStore):
            await store.__aexit__()
        async with store:
            await create(store, "key")
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("leave", ["return", "sys.exit(0)", "loop.stop()"])
def test_an_exit_without_a_close_does_not_hang(make, child, leave):
    store = make()
    process = child(
        f"""
        async def main(path):
            loop = asyncio.get_running_loop()
            store = keep.append({type(store).__name__}(path)) or keep[0]
            await store.__aenter__()
            await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
            for number in range(3000):
                store.submit(f"key {{number}}", b"x" * 3000, revision=new(), expected=Expect.ABSENT)
            await asyncio.sleep(0)
            {leave}
        keep = []
        try: asyncio.run(main(sys.argv[1]))
        except RuntimeError as error: assert "stopped before" in str(error)
        """,
        store.path,
    )
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, ""), errors
    assert not re.search(r"Error|Fatal", errors), errors  # a ResourceWarning is right


async def test_a_claim_is_exclusive_in_a_process_too(make):
    async with make() as one, make() as other:
        await one.claim("agent", shared=False, wait=0)
        with pytest.raises(StoreInUseError, match="share that manager"):
            await one.claim("agent", shared=False, wait=0)
        for shared in (False, True):
            with pytest.raises(StoreInUseError) as caught:
                await other.claim("agent", shared=shared, wait=0)
        message = str(caught.value)
        for word in (
            "'agent'",
            one.path,
            f"process {os.getpid()} on {socket.gethostname()}",
            "since 20",
            "shared=True",
        ):
            assert word in message
        await other.claim("another agent", shared=False, wait=0)
        await one.release("agent")
        await one.release("agent")
        await other.claim("agent", shared=False, wait=0)


async def test_bytes_like_data_is_copied(make):
    for store in (make(), MemoryStore()):
        async with store:
            revision, data = new(), bytearray(b"before")
            put = store.submit("key", data, revision=revision, expected=Expect.ABSENT)
            if isinstance(store, LocalStore):
                data[:] = b"after!"
            await put
            data[:] = b"later!"
            assert await store.get("key") == Stored(b"before", revision)
