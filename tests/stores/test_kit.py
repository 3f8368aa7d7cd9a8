"""The test kit that programs use: the manual clock and the store that fails on demand."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys

import pytest
from storing import new

from overwinter import errors
from overwinter.errors import OutcomeUnknownError, RevisionConflictError, StoreInUseError, StoreUnavailableError
from overwinter.stores import Durability, Expect, MemoryStore
from overwinter.testing import FaultyStore, ManualClock, until

# ---------------------------------------------------------------- the clock


def test_timers_fire_in_order_each_at_its_time():
    clock, fired = ManualClock(now=0), []
    for when in (3, 1, 2, 2):
        clock.call_at(when, lambda: fired.append(clock.monotonic()))
    clock.advance(0.5)
    assert (fired, clock.timers) == ([], 4)
    clock.advance(2)
    assert (fired, clock.monotonic()) == ([1, 2, 2], 2.5)
    clock.advance(0.5)
    assert (fired, clock.timers) == ([1, 2, 2, 3], 0)


def test_a_timer_may_be_cancelled_and_may_set_another():
    clock, fired = ManualClock(now=0), []
    clock.call_at(1, lambda: fired.append("cancelled")).cancel()
    clock.call_at(1, lambda: clock.call_at(2, lambda: fired.append(clock.monotonic())))
    clock.call_at(-5, lambda: fired.append("late"))
    clock.advance(0)
    assert fired == ["late"]
    clock.advance(10)
    assert fired == ["late", 2]


def test_both_times_move_together_and_never_back():
    clock = ManualClock(now=5, epoch=1000)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.time()) == (7.5, 1002.5)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


async def test_sleepers_wake_when_their_time_has_come():
    clock = ManualClock()
    short, long, cancelled = (asyncio.create_task(clock.sleep(seconds)) for seconds in (1, 2, 1))
    await until(lambda: clock.timers == 3)
    cancelled.cancel()
    await until(lambda: clock.timers == 2)
    clock.advance(1)
    await until(short.done)
    assert not long.done()
    clock.advance(1)
    await long
    await clock.sleep(0)


async def test_until_takes_no_async_function():
    with pytest.raises(TypeError, match="plain function"):
        await until(asyncio.get_running_loop().create_future)  # true, as whatever an async function returns


async def test_until_gives_up():
    with pytest.raises(AssertionError, match="not true within"):
        await until(lambda: False, limit=0.01)


# ---------------------------------------------------------------- the store that fails


async def put(store, key="key", expected=Expect.ABSENT):
    revision = new()
    await store.put(key, b"x", revision=revision, expected=expected)
    return revision


async def test_a_fault_before_and_after_the_operation():
    async with FaultyStore(MemoryStore()) as store:
        store.fail("put", StoreUnavailableError("disk full"), times=2)
        store.fail("put", OutcomeUnknownError("reset"), after=True)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await put(store)
            assert await store.get("key") is None
        with pytest.raises(OutcomeUnknownError):
            await put(store)
        assert await store.get("key"), "an unknown outcome that landed"
        with pytest.raises(RevisionConflictError):
            await put(store)
        assert store.calls["put"] == 4
        assert store.log[:3] == [("open", ""), ("put", "key"), ("get", "key")]


async def test_faults_of_one_key_and_for_ever():
    async with FaultyStore(MemoryStore()) as store:
        store.fail("get", lambda: StoreUnavailableError("again"), times=math.inf, key="bad")
        for _ in range(5):
            assert await store.get("good") is None
            with pytest.raises(StoreUnavailableError):
                await store.get("bad")
        store.heal()
        assert await store.get("bad") is None
        with pytest.raises(ValueError, match="putt"):
            store.fail("putt", StoreUnavailableError("a typo must not pass"))


@pytest.mark.parametrize("error", [StoreUnavailableError, OutcomeUnknownError, StoreInUseError, KeyError])
async def test_a_fault_may_be_an_exception_class(error):
    async with FaultyStore(MemoryStore()) as store:
        store.fail("put", error)
        with pytest.raises(error):
            await put(store)


def test_every_error_can_be_made_without_a_message():
    for name in errors.__all__:
        assert str(getattr(errors, name)()) == ""


class Misses(Exception):
    def __init__(self, host):
        super().__init__(f"{host} is down")


@pytest.mark.parametrize("error", ["boom", None, 3, int, Misses, lambda key: KeyError(key)])
def test_what_can_not_be_raised_is_refused_at_once(error):
    store = FaultyStore(MemoryStore())
    with pytest.raises(TypeError, match=r"can't be raised|needs an argument"):
        store.fail("put", error)
    assert not store._faults


async def test_a_store_that_fails_is_as_durable_and_as_far_as_the_one_in_it_says_once_it_is_open():
    class Server(MemoryStore):
        network = True

        async def open(self):
            self.durability = Durability.REPLICATED

    store = FaultyStore(Server())
    assert (store.durability, store.network) == (Durability.NONE, True)
    async with store:
        assert store.durability is Durability.REPLICATED


async def test_submitted_puts_fail_too():
    async with FaultyStore(MemoryStore()) as store:
        store.fail("put", StoreUnavailableError("disk full"))
        with pytest.raises(StoreUnavailableError):
            await store.submit("key", b"x", revision=new(), expected=Expect.ABSENT)
        await store.submit("key", b"x", revision=new(), expected=Expect.ABSENT)
        assert store.calls["put"] == 2


@pytest.mark.parametrize("after", [False, True])
async def test_a_gate_holds_operations(after):
    async with FaultyStore(MemoryStore()) as store:
        gate = store.hold("put", after=after, key="held")
        await put(store, "free")
        held = asyncio.create_task(put(store, "held"))
        await gate.reached()
        assert gate.waiting == 1
        assert (await store.get("held") is not None) == after
        with pytest.raises(AssertionError, match="1 of 2 put"):
            await gate.reached(2, limit=0.01)
        gate.release()
        await held
        await put(store, "held", expected=await store.head("held"))


async def test_a_held_operation_may_be_cancelled():
    async with FaultyStore(MemoryStore()) as store:
        gate = store.hold("put")
        held = asyncio.create_task(put(store))
        await gate.reached()
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        assert gate.waiting == 0
        gate.release()
        assert await store.get("key") is None


async def test_claims_opening_and_the_rest_reach_the_inner_store():
    inner = MemoryStore()
    store = FaultyStore(inner)
    store.fail("open", StoreUnavailableError("no disk"))
    with pytest.raises(StoreUnavailableError):
        await store.__aenter__()
    async with store, FaultyStore(inner) as other:
        await store.claim("agent", shared=False, wait=0)
        with pytest.raises(StoreInUseError):
            await other.claim("agent", shared=False, wait=0)
        await store.release("agent")
        await other.claim("agent", shared=False, wait=0)
        revision = await put(store)
        await other.delete("key", expected=revision)
    assert (store.durability, store.timeout) == (inner.durability, inner.timeout)


def test_the_kit_needs_no_test_framework():
    code = "import sys, overwinter.testing; print({'pytest', 'hypothesis'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


async def test_a_store_is_open_as_long_as_somebody_uses_it():
    store = FaultyStore(MemoryStore())
    async with store:
        async with store:
            assert store.calls["open"] == 1
        assert store.calls["close"] == 0
        await store.put("a", b"x", revision=b"r" * 16, expected=Expect.ABSENT)
    assert store.calls["close"] == 1
    async with store:
        assert store.calls["open"] == 2
