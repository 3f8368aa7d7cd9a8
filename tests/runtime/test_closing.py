"""Closing in bad times: it ends, it says what is not stored, and nobody who waits is left without an answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math

import pytest
from agents import Counter
from waiting import outcome, pass_time, reports, rest, stored

from overwinter import Agent, AgentSystem, InstanceManager, MemoryStore
from overwinter.errors import ClosedError, CloseError, OutcomeUnknownError, StoreUnavailableError, UsageError
from overwinter.runtime import _closing
from overwinter.testing import FaultyStore, ManualClock, until


def down() -> StoreUnavailableError:
    return StoreUnavailableError("down")


async def opened(cls=Counter, **options) -> tuple[InstanceManager, ManualClock]:
    clock = ManualClock()
    manager = InstanceManager(cls, clock=clock, **{"store": MemoryStore(), **options})
    await manager.open()
    return manager, clock


async def closed(manager, clock: ManualClock, deadline: float = 10) -> object:
    """What closing in *deadline* seconds of *clock* comes to."""
    close = asyncio.create_task(manager.close(deadline))
    late = clock.monotonic() + deadline + 30  # then all that is left takes the machine's time
    await pass_time(clock, lambda: close.done() or clock.monotonic() > late)
    return await outcome(close)


# ---------------------------------------------------------------- it ends


class Ticking(Agent):
    async def run(self, ticks: int) -> None:
        for _ in range(ticks):
            await asyncio.sleep(0)


async def test_closing_never_freezes_the_loop_whenever_its_tells_end():
    for more, before in itertools.product(range(6), range(8)):
        manager, _ = await opened(Ticking, store=None)
        await manager.get("a")
        await manager.get("b")
        manager.tell("a", Ticking.run, 10)
        manager.tell("b", Ticking.run, 10 + more)
        await rest(before)
        assert await outcome(manager.close()) is None


class Stopping(Agent):
    n: int = 0

    async def on_start(self, stops: list[str]) -> None:
        self.stops = stops

    async def add(self) -> None:
        self.n += 1

    async def on_stop(self) -> None:
        self.stops.append(self.key)
        self.n += 1


async def test_closing_tries_an_agent_that_can_not_be_stored_again_but_in_no_hurry():
    store, stops = FaultyStore(MemoryStore()), []
    manager, clock = await opened(Stopping, store=store, store_patience=0, context=stops)
    await manager.call("a", Stopping.add)
    store.fail("put", down, times=math.inf)
    close = asyncio.create_task(manager.close(10))
    await rest(1000)
    assert stops == ["a"]  # no time has passed
    await pass_time(clock, lambda: len(stops) == 3)
    store.heal()
    await pass_time(clock, close.done)
    assert await outcome(close) is None
    assert (await stored(store.inner, Stopping, "a")).n == 2


class Undumpable(Agent):
    n: int = 0
    dumps = 0
    broken = False

    async def add(self) -> None:
        self.n += 1

    def dump(self):
        if Undumpable.broken:
            Undumpable.dumps += 1
            raise KeyError("dump")
        return {"n": self.n}

    @classmethod
    def load(cls, data, version):
        return cls(n=data["n"])


async def test_closing_does_not_spin_over_an_agent_that_can_not_be_encoded():
    seen = reports()
    manager, clock = await opened(Undumpable)
    await manager.call("a", Undumpable.add)
    Undumpable.broken, Undumpable.dumps = True, 0
    try:
        close = asyncio.create_task(manager.close(10))
        await rest(1000)
        assert Undumpable.dumps < 5
        await pass_time(clock, close.done)
        assert close.exception() is None  # what is stored is all that it could ever be
        assert seen
    finally:
        Undumpable.broken = False


# ---------------------------------------------------------------- it says what is not stored


async def test_a_second_close_returns_no_earlier_than_the_first():
    store = FaultyStore(MemoryStore())
    counters = InstanceManager(Counter, store=store, durability="hibernate")
    await counters.open()
    await counters.call("ada", Counter.increment)
    gate = store.hold("put")
    first = asyncio.create_task(counters.close())
    await gate.reached()
    second = asyncio.create_task(counters.close())
    await rest()
    assert not second.done()
    gate.release()
    assert await outcome(second) is None
    assert await outcome(first) is None


async def test_a_system_that_is_closed_twice_returns_no_earlier_than_the_first():
    store = FaultyStore(MemoryStore())
    system = AgentSystem(store=store)
    await system.open()
    counters = system.manager(Counter, durability="hibernate")
    await counters.call("ada", Counter.increment)
    gate = store.hold("put")
    first = asyncio.create_task(system.close())
    await gate.reached()
    second = asyncio.create_task(system.close())
    await rest()
    assert not second.done()
    gate.release()
    assert await outcome(second) is None
    assert await outcome(first) is None


async def test_a_close_whose_caller_left_goes_on_and_can_be_waited_for_again():
    store = FaultyStore(MemoryStore())
    counters = InstanceManager(Counter, store=store, durability="hibernate")
    await counters.open()
    await counters.call("ada", Counter.increment)
    gate = store.hold("put")
    first = asyncio.create_task(counters.close())
    await gate.reached()
    first.cancel()
    assert isinstance(await outcome(first), asyncio.CancelledError)
    gate.release()
    assert await outcome(counters.close()) is None
    assert (await stored(store.inner)).count == 1


async def test_a_put_that_is_under_way_at_the_deadline_has_an_unknown_outcome(monkeypatch):
    monkeypatch.setattr(_closing, "LAST_LOOK", 0.01)
    store = FaultyStore(MemoryStore())
    counters, clock = await opened(store=store)
    gate = store.hold("put", after=True)  # it landed, and nobody knows
    call = asyncio.create_task(counters.call("ada", Counter.increment))
    await gate.reached()
    error = await closed(counters, clock)
    assert isinstance(error, CloseError)
    assert (error.unknown, error.not_stored, error.abandoned) == (("ada",), (), ())
    assert isinstance(await outcome(call), OutcomeUnknownError)


async def test_a_put_that_fails_after_the_end_starts_nothing_any_more(monkeypatch):
    monkeypatch.setattr(_closing, "LAST_LOOK", 0.01)
    store = FaultyStore(MemoryStore())
    counters, clock = await opened(store=store)
    store.fail("put", down)
    gate = store.hold("put")
    call = asyncio.create_task(counters.call("ada", Counter.increment))
    await gate.reached()
    assert isinstance(await closed(counters, clock), CloseError)
    gate.release()
    await rest()
    assert (counters._home.tasks, store.calls["put"], clock.timers) == (set(), 1, 0)
    assert isinstance(await outcome(call), OutcomeUnknownError)


@pytest.mark.parametrize("fresh", [True, False])
async def test_a_change_that_was_never_stored_is_told_as_undone_by_closing(fresh):
    store = FaultyStore(MemoryStore())
    counters, clock = await opened(store=store, store_patience=60)
    if not fresh:
        await counters.call("ada", Counter.increment)
    store.fail("put", down, times=math.inf)
    call = asyncio.create_task(counters.call("ada", Counter.increment))
    await rest()
    error = await closed(counters, clock, 2)
    assert isinstance(error, CloseError)
    assert (error.unknown, error.not_stored) == ((), ("ada",))
    assert isinstance(await outcome(call), ClosedError)
    await rest()
    assert (counters._home.tasks, clock.timers) == (set(), 0)


async def test_a_put_that_was_tried_again_and_is_stored_in_the_last_look_is_told_as_stored():
    store = FaultyStore(MemoryStore())
    counters, clock = await opened(store=store)
    store.fail("put", down)
    call = asyncio.create_task(counters.call("ada", Counter.increment))
    await rest()
    gate = store.hold("put")
    clock.advance(1)
    await gate.reached()
    close = asyncio.create_task(counters.close(2))
    await rest()
    clock.advance(1)
    await rest()
    clock.advance(1)
    await rest()
    gate.release()
    assert isinstance(await outcome(close), CloseError)  # it did not end in time
    assert await outcome(call) == (await stored(store.inner)).count == 1


async def test_a_put_that_ends_just_after_the_deadline_is_known_to_be_stored():
    store = FaultyStore(MemoryStore())
    counters, clock = await opened(store=store)
    gate = store.hold("put")
    call = asyncio.create_task(counters.call("ada", Counter.increment))
    await gate.reached()
    ledger = counters._registry.servers["ada"].ledger
    close = asyncio.create_task(counters.close(deadline=1))
    while not ledger.paused:  # the last look
        await rest()
        clock.advance(0.5)
    gate.release()
    error = await outcome(close)
    assert not isinstance(error, CloseError) or (error.unknown, error.not_stored) == ((), ())
    assert (await stored(store.inner)).count == 1
    assert await outcome(call) == 1


async def test_what_is_not_stored_is_named_though_the_store_fails_to_close_too():
    store = FaultyStore(MemoryStore())
    counters, clock = await opened(store=store, durability="hibernate", store_patience=0.01)
    await counters.call("ada", Counter.increment)
    store.fail("put", down, times=math.inf)
    store.fail("close", down)
    error = await closed(counters, clock)
    assert isinstance(error, CloseError)
    assert error.not_stored == ("ada",)
    assert any("its store failed to close" in note for note in error.__notes__)


# ---------------------------------------------------------------- everybody gets an answer


class Slow(Agent):
    async def items(self, event: asyncio.Event):
        yield 1
        with contextlib.suppress(asyncio.CancelledError):
            await event.wait()
        await event.wait()
        yield 2

    async def on_stop(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()


@pytest.mark.parametrize("what", ["stream", "stop", "delete"])
async def test_what_closing_gives_up_is_told_to_its_caller_as_closed_and_cancels_nobody(what):
    reports()
    manager, clock = await opened(Slow)
    event = asyncio.Event()

    async def take() -> list[int]:
        return [item async for item in manager.call("a", Slow.items, event)]

    await manager.get("a")
    use = asyncio.create_task(
        {"stream": take, "stop": lambda: manager.stop("a"), "delete": lambda: manager.delete("a")}[what]()
    )
    await rest()
    error = await closed(manager, clock, 2)
    assert isinstance(error, CloseError)
    assert error.abandoned == ("a",)
    assert isinstance(await outcome(use), ClosedError)


async def test_a_call_whose_thaw_hangs_when_the_manager_closes_is_told_so():
    store = FaultyStore(MemoryStore())
    counters, clock = await opened(store=store)
    gate = store.hold("get")
    call = asyncio.create_task(counters.call("ada", Counter.increment))
    await gate.reached()
    error = await closed(counters, clock)
    assert isinstance(error, CloseError)
    assert error.abandoned == ("ada",)
    assert isinstance(await outcome(call), ClosedError)


async def test_a_call_that_waits_for_an_on_stop_which_hangs_is_told_that_the_manager_closed():
    class Hanging(Agent):
        async def on_stop(self) -> None:
            await asyncio.Event().wait()

        async def ping(self) -> None: ...

    reports()
    manager, clock = await opened(Hanging)
    await manager.get("a")
    stop = asyncio.create_task(manager.stop("a"))
    await until(lambda: manager.inspect("a").state == "freezing")
    call = asyncio.create_task(manager.call("a", Hanging.ping))
    await rest()
    assert await closed(manager, clock, deadline=1) is None  # at half time it is ended, and no other life begins
    assert isinstance(await outcome(call), ClosedError)
    assert manager.stats().live == 0
    assert await outcome(stop) is None


async def test_a_turn_in_a_turn_that_closing_ends_does_not_save_the_one_around_it():
    class Nested(Agent):
        async def on_start(self, context) -> None:
            self.context = context

        async def outer(self) -> None:
            with contextlib.suppress(ClosedError):
                await self.context["manager"].call("in", Nested.inner)
            await asyncio.Event().wait()

        async def inner(self) -> None:
            await asyncio.Event().wait()

    context: dict[str, InstanceManager] = {}
    manager, clock = await opened(Nested, context=context)
    context["manager"] = manager
    await manager.get("out")
    call = asyncio.create_task(manager.call("out", Nested.outer))
    await until(lambda: manager.inspect("in").running)
    assert await closed(manager, clock) is None
    assert isinstance(await outcome(call), ClosedError)
    assert call.cancelling() == 0


# ---------------------------------------------------------------- nothing begins on a closed manager


class Working(Agent):
    begun: int = 0

    async def work(self) -> None:
        self.begun += 1
        await asyncio.Event().wait()


@pytest.mark.parametrize("store", [None, MemoryStore()])
async def test_calls_that_wait_at_half_time_do_not_begin(store):
    manager, clock = await opened(Working, store=store)
    calls = [asyncio.create_task(manager.call("a", Working.work)) for _ in range(5)]
    await rest()
    assert await closed(manager, clock, 10) is None  # and nobody is named as abandoned
    told = [str(await outcome(call)) for call in calls]
    assert "took too long; it was rolled back" in told[0]
    assert all("had not begun" in text for text in told[1:])


@pytest.mark.parametrize("method", [Counter.increment, Counter.read])
async def test_a_call_whose_agent_comes_alive_after_half_time_does_not_begin(method):
    store = FaultyStore(MemoryStore())
    manager, clock = await opened(store=store)
    gate = store.hold("get")
    call = asyncio.create_task(manager.call("a", method))
    await gate.reached()
    close = asyncio.create_task(manager.close(10))
    late = clock.monotonic() + 6
    await pass_time(clock, lambda: clock.monotonic() > late)
    gate.release()
    await pass_time(clock, close.done)
    assert await outcome(close) is None
    error = await outcome(call)
    assert isinstance(error, ClosedError)
    assert "had not begun" in str(error)


@pytest.mark.parametrize("store", [None, MemoryStore()], ids=["without a store", "with one"])
async def test_what_was_made_before_close_and_is_awaited_after_it_is_refused(store):
    counters = InstanceManager(Counter, store=store)
    await counters.open()
    call, attachment = counters.call("a", Counter.increment), counters.attach("b")
    await counters.close()
    assert isinstance(await outcome(call), ClosedError)
    assert isinstance(await outcome(attachment.__aenter__()), ClosedError)
    assert (counters.keys(), counters.stats().attached) == ([], 0)


async def test_a_turn_of_another_manager_can_not_call_a_closed_one():
    class Caller(Agent):
        async def on_start(self, counters) -> None:
            self.counters = counters

        async def go(self) -> int:
            return await self.counters.call("x", Counter.increment)

    counters = InstanceManager(Counter)
    await counters.open()
    await counters.close()
    async with InstanceManager(Caller, context=counters) as callers:
        assert isinstance(await outcome(callers.call("a", Caller.go)), ClosedError)
    assert counters.keys() == []


async def test_close_stores_everybody_at_once():
    store = FaultyStore(MemoryStore())
    counters, _ = await opened(store=store, durability="hibernate")
    for n in range(20):
        await counters.call(str(n), Counter.increment)
    gate = store.hold("put")
    close = asyncio.create_task(counters.close())
    await gate.reached(20)  # none waits for another
    gate.release()
    assert await outcome(close) is None


async def test_closing_waits_for_a_put_no_longer_than_it_takes():
    store = FaultyStore(MemoryStore())
    gate = store.hold("put")
    manager, _ = await opened(store=store)
    call = asyncio.ensure_future(manager.call("ada", Counter.increment))
    await gate.reached()
    ledger = manager._registry.servers["ada"].ledger
    put = ledger.pause()
    await rest()
    assert not put.done()
    gate.release()
    assert await outcome(put) is None
    assert await outcome(call) == 1
    assert ledger.pause() is None
    ledger.resume()
    await manager.close()


async def test_a_system_waits_for_all_its_managers_though_one_failed_to_close_before():
    store = FaultyStore(MemoryStore())
    system = AgentSystem(store=store)
    kinds = [type(f"Kind{number}", (Counter,), {}) for number in range(6)]
    managers = [system.manager(kind, durability="hibernate", store_patience=0) for kind in kinds]
    await system.open()
    for manager in managers:
        await manager.call("a", Counter.increment)
    store.fail("put", down, times=math.inf)
    for manager in managers[:5]:
        assert isinstance(await outcome(manager.close(0)), CloseError)
    store.heal()
    gate = store.hold("put")
    close = asyncio.create_task(system.close())
    await gate.reached()
    await rest()
    assert not close.done()
    gate.release()
    assert isinstance(await outcome(close), CloseError)
    assert (await stored(store.inner, kinds[5], "a")).count == 1


async def test_a_system_is_closed_where_it_was_opened():
    system = AgentSystem(store=MemoryStore())
    counters = system.manager(Counter)
    await system.open()

    def elsewhere() -> None:
        with pytest.raises(UsageError, match="another event loop or thread"):
            asyncio.run(system.close())

    await asyncio.to_thread(elsewhere)
    assert await outcome(counters.call("ada", Counter.increment)) == 1
    assert await outcome(system.close()) is None


async def test_a_manager_that_is_closed_while_it_opens_owns_nothing():
    store = FaultyStore(MemoryStore())
    gate = store.hold("claim")
    counters = InstanceManager(Counter, store=store)
    opening = asyncio.create_task(counters.open())
    await gate.reached()
    assert await outcome(counters.close()) is None
    gate.release()
    assert isinstance(await outcome(opening), ClosedError)
    async with InstanceManager(Counter, store=store, owner_wait=0) as others:
        assert await outcome(others.call("ada", Counter.increment)) == 1


class SlowToOpen(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def open(self) -> None:
        await self.gate.wait()


async def test_a_system_that_is_closed_while_it_opens_is_closed_when_that_is_done():
    store = SlowToOpen()
    system = AgentSystem(store=store)
    counters = system.manager(Counter)
    opening = asyncio.create_task(system.open())
    await rest()
    assert isinstance(await outcome(system.open()), UsageError)
    closing = asyncio.create_task(system.close())
    await rest()
    assert not closing.done()
    store.gate.set()
    assert [await outcome(opening), await outcome(closing)] == [None, None]
    with pytest.raises(ClosedError):
        await counters.call("ada", Counter.increment)
    assert store._leases == 0


async def test_an_agent_that_could_not_be_stored_is_tried_again_until_the_deadline():
    store = FaultyStore(MemoryStore())
    manager, clock = await opened(store=store, durability="hibernate", store_patience=0)
    await manager.call("ada", Counter.increment)
    store.fail("put", down, times=3)
    assert await closed(manager, clock) is None
    assert (await stored(store.inner)).count == 1


class NeverEnds(MemoryStore):
    timeout = 0.01

    async def close(self) -> None:
        await asyncio.Event().wait()


async def test_a_store_that_hangs_as_it_closes_is_left_behind():
    manager = InstanceManager(Counter, store=NeverEnds())
    await manager.open()
    assert await manager.call("ada", Counter.increment) == 1
    error = await outcome(manager.close())
    assert isinstance(error, StoreUnavailableError)


class Teller(Agent):
    n: int = 0

    async def on_start(self, context: list[InstanceManager]) -> None:
        self.context = context

    async def add(self) -> None:
        self.n += 1
        self.context[0].tell("bob", Teller.hear)

    async def hear(self) -> None:
        pass


async def test_what_is_told_as_the_last_put_lands_is_reported():
    seen, context = reports(), []
    store = FaultyStore(MemoryStore())
    manager, clock = await opened(Teller, store=store, store_patience=100, context=context)
    context.append(manager)
    store.fail("put", down)
    add = asyncio.create_task(manager.call("ada", Teller.add))
    await rest()
    gate = store.hold("put")
    clock.advance(1)
    await gate.reached()
    close = asyncio.create_task(manager.close(2))
    for _ in range(2):
        await rest()
        clock.advance(1)
    await rest()
    gate.release()  # the last look finds it stored
    assert isinstance(await outcome(close), CloseError)
    assert await outcome(add) is None
    await until(lambda: seen)
    assert [(report["message"], type(report["exception"])) for report in seen] == [
        ("overwinter: agent Teller 'bob': told hear()", ClosedError)
    ]


class PanicError(BaseException):
    """What code in another language may raise, and is no ``Exception``."""


class Panicky(Agent):
    n: int = 0
    panics = False

    async def add(self) -> int:
        self.n += 1
        return self.n

    def dump(self) -> dict[str, int]:
        if type(self).panics and self.key == "ada":
            raise PanicError
        return {"n": self.n}

    @classmethod
    def load(cls, data: dict[str, int], version: int) -> Panicky:
        return cls(n=data["n"])


@pytest.mark.parametrize("durability", ["call", "hibernate"])
async def test_a_dump_that_panics_keeps_nobody_from_closing(durability, monkeypatch):
    seen, store = reports(), MemoryStore()
    manager = InstanceManager(Panicky, store=store, durability=durability)
    await manager.open()
    for key in ("ada", "bob"):
        await manager.call(key, Panicky.add)
    monkeypatch.setattr(Panicky, "panics", True)
    assert await outcome(manager.close(1)) is None
    assert len(seen) <= 1
    monkeypatch.setattr(Panicky, "panics", False)
    assert [(await stored(store, Panicky, key)).n for key in ("ada", "bob")] == [1, 1]


async def test_a_dump_that_panics_keeps_nobody_from_hibernating(monkeypatch):
    reports()
    async with InstanceManager(Panicky, store=MemoryStore(), clock=(clock := ManualClock()), idle_timeout=1) as manager:
        for key in ("ada", "bob"):
            await manager.call(key, Panicky.add)
        monkeypatch.setattr(Panicky, "panics", True)
        await pass_time(clock, lambda: manager.lookup("bob") is None)
