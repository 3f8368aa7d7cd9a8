"""Stores that fail in odd ways, at odd times: what callers are told is true, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import math

import pytest
from agents import Counter
from waiting import outcome, pass_time, reports, rest, stored, write_behind

from overwinter import Agent, InstanceManager, MemoryStore, readonly
from overwinter.errors import (
    OutcomeUnknownError,
    RevisionConflictError,
    StoreUnavailableError,
    SupersededError,
    ThawError,
)
from overwinter.testing import FaultyStore, ManualClock, until


def down() -> StoreUnavailableError:
    return StoreUnavailableError("down")


def reset() -> OutcomeUnknownError:
    return OutcomeUnknownError("reset")


# ---------------------------------------------------------------- unknown outcomes


async def test_a_change_that_landed_is_never_called_not_made_when_the_store_then_goes_down():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=5) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", reset, after=True)  # it landed, and nobody knows
        store.fail("put", RevisionConflictError("moved"))  # as it would, by our own write: that one is adopted
        store.fail("put", down, times=math.inf)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), OutcomeUnknownError)
        assert (await stored(store.inner)).count == 2
        store.heal()
        await pass_time(clock, lambda: not counters.stats().dirty)
        assert await outcome(counters.call("ada", Counter.increment)) == 3


async def test_calls_are_taken_again_once_the_store_is_well_however_it_was_ill():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=1) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", reset, after=True)
        store.fail("put", reset, times=5)
        store.fail("put", down, times=20)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), OutcomeUnknownError)
        with pytest.raises(StoreUnavailableError, match="not called"):
            await counters.call("ada", Counter.increment)
        await pass_time(clock, lambda: not counters.stats().dirty)
        assert await outcome(counters.call("ada", Counter.increment)) == 3
        assert (await stored(store.inner)).count == 3


# ---------------------------------------------------------------- stores that raise what they like


class NoRoute(MemoryStore):
    """Raises at once, and nothing that a store may raise."""

    broken = False

    def submit(self, key, data, *, revision, expected):
        if self.broken:
            raise ConnectionError("no route")
        return super().submit(key, data, revision=revision, expected=expected)


async def test_a_submit_that_raises_at_once_fails_its_call_and_not_those_after_it():
    store, clock = NoRoute(), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=1) as counters:
        await counters.call("ada", Counter.increment)
        store.broken = True
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), OutcomeUnknownError)
        store.broken = False
        await pass_time(clock, lambda: not counters.stats().dirty)
        assert await outcome(counters.call("ada", Counter.increment)) == 3


async def test_a_submit_that_raises_at_the_first_put_of_a_fresh_agent_leaves_nobody_waiting():
    store, clock = NoRoute(), ManualClock()
    store.broken = True
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=1) as counters:
        counter = await outcome(counters.get("ada", initial={"count": 1}))
        assert counter.key == "ada"
        store.broken = False
        call = asyncio.create_task(counter.increment())
        await pass_time(clock, call.done)
        assert await call == 2


@pytest.mark.parametrize("verb", ["get", "head", "delete"])
async def test_a_store_that_hangs_is_given_up_at_its_timeout(verb):
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, shared=True) as counters:
        if verb != "get":
            await counters.call("ada", Counter.increment)
        store.timeout = 0.01
        gate = store.hold(verb)
        use = counters.delete("ada") if verb == "delete" else counters.call("ada", Counter.read)
        error = await outcome(use)
        assert isinstance(error, {"get": ThawError, "head": StoreUnavailableError, "delete": OutcomeUnknownError}[verb])
        gate.release()
        assert await outcome(counters.call("ada", Counter.read)) == (0 if verb == "get" else 1)


# ---------------------------------------------------------------- giving up


class Stubborn(Agent):
    n: int = 0

    async def add(self) -> int:
        self.n += 1
        return self.n

    async def stay(self, event: asyncio.Event) -> None:
        try:
            await event.wait()
        except asyncio.CancelledError:
            await event.wait()


async def test_who_waits_for_the_store_is_told_though_a_running_call_will_not_end():
    reports()
    store, clock, event = FaultyStore(MemoryStore()), ManualClock(), asyncio.Event()
    async with InstanceManager(Stubborn, store=store, clock=clock, store_patience=1) as manager:
        await manager.get("a")
        store.fail("put", down, times=math.inf)
        gate = store.hold("put")
        waits = asyncio.create_task(manager.call("a", Stubborn.add))
        await gate.reached()
        stays = asyncio.create_task(manager.call("a", Stubborn.stay, event))
        await until(lambda: manager.inspect("a").running)
        gate.release()
        await pass_time(clock, waits.done)
        assert isinstance(waits.exception(), StoreUnavailableError)
        assert not stays.done()
        store.heal()
        again = asyncio.create_task(manager.call("a", Stubborn.add))
        await pass_time(clock, again.done)
        assert await again == 1  # in a life of its own: the stubborn one keeps the old object
        event.set()
        assert isinstance(await outcome(stays), StoreUnavailableError)


# ---------------------------------------------------------------- other owners


async def test_a_call_that_waits_for_a_delete_which_lost_a_race_never_sees_the_stale_copy():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("delete")
        delete = asyncio.create_task(counters.delete("ada"))
        await gate.reached()
        await write_behind(store.inner, 10)
        read = asyncio.create_task(counters.call("ada", Counter.read))
        await until(lambda: counters.stats().queued == 1)
        gate.release()
        assert isinstance(await outcome(delete), SupersededError)
        assert await outcome(read) == 11


class SlowHeads(MemoryStore):
    """Answers ``head`` when it is told to, with what is true then, or was when it was asked."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late, self.slow = late, False
        self.asked: list[asyncio.Future[None]] = []

    async def head(self, key):
        found = self._revision(key)
        if self.slow:
            self.asked.append(asyncio.get_running_loop().create_future())
            await self.asked[-1]
        return self._revision(key) if self.late else found


class Known(Agent):
    """Says which of its lives it is."""

    count: int = 0

    async def on_start(self, lives: list[Agent]) -> None:
        self.lives = lives
        lives.append(self)

    async def increment(self) -> int:
        self.count += 1
        return self.count

    @readonly
    async def look(self) -> tuple[int, int]:
        return self.lives.index(self), self.count


@pytest.mark.parametrize("late", [False, True])
async def test_a_shared_reader_whose_copy_another_reader_found_stale_reads_the_new_one(late):
    store = SlowHeads(late)
    async with InstanceManager(Known, store=store, shared=True, context=[]) as manager:
        await manager.call("ada", Known.increment)
        store.slow = True
        first = asyncio.create_task(manager.call("ada", Known.look))
        await until(lambda: len(store.asked) == 1)  # what it is told, unless late, is that its copy is current
        await write_behind(store, 10, Known)
        second = asyncio.create_task(manager.call("ada", Known.look))
        await until(lambda: len(store.asked) == 2)
        store.slow = False
        store.asked[1].set_result(None)
        await rest()
        store.asked[0].set_result(None)
        assert await outcome(first) == (1, 11)
        assert await outcome(second) == (1, 11)
        assert await outcome(manager.call("ada", Known.increment)) == 12


class Overtaken(MemoryStore):
    """Runs *meanwhile* in the loop's pass in which a put is found to come too late."""

    meanwhile = None

    async def put(self, key, data, *, revision, expected):
        if self.meanwhile is not None:
            await rest(2)
            asyncio.get_running_loop().call_soon(self.meanwhile)
            self.meanwhile = None
            raise RevisionConflictError("moved")
        await super().put(key, data, revision=revision, expected=expected)


async def test_a_call_that_ends_just_as_its_copy_is_found_stale_is_not_acknowledged_under_hibernate():
    reports()
    store, event = Overtaken(), asyncio.Event()
    async with InstanceManager(Counter, store=store, durability="hibernate") as counters:
        await counters.call("ada", Counter.increment)
        await counters.save("ada")
        await counters.call("ada", Counter.increment)
        store.meanwhile = event.set
        save = asyncio.create_task(counters.save("ada"))
        call = asyncio.create_task(counters.call("ada", Counter.wait, event, 100))
        assert isinstance(await outcome(call), SupersededError)
        assert isinstance(await outcome(save), SupersededError)
        assert await outcome(counters.call("ada", Counter.read)) == 1
