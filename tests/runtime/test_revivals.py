"""Lives that end in bad times and go on after all: never a second one beside them, and nothing half-made is stored."""

from __future__ import annotations

import asyncio
import math
from typing import ClassVar

import pytest
from waiting import outcome, pass_time, reports, rest, stored

from overwinter import Agent, AgentSystem, InstanceManager, MemoryStore, Persistence, interleave, readonly, transient
from overwinter.errors import (
    AgentDeletedError,
    ClosedError,
    CloseError,
    ReentrantCallError,
    StoreUnavailableError,
    SupersededError,
    ThawError,
    TooManyLiveError,
)
from overwinter.runtime import _closing
from overwinter.testing import FaultyStore, ManualClock, until


def down() -> StoreUnavailableError:
    return StoreUnavailableError("down")


class Tidy(Agent):
    """Changes itself as it stops."""

    n: int = 0
    stops: int = 0

    async def on_stop(self) -> None:
        self.stops += 1

    async def add(self) -> int:
        self.n += 1
        return self.n


@pytest.mark.parametrize("how", ["stop", "idle"])
@pytest.mark.parametrize("durability", ["call", "hibernate"])
async def test_a_call_that_comes_while_a_life_fails_to_end_goes_to_that_life(durability, how):
    store, clock, seen = FaultyStore(MemoryStore()), ManualClock(), reports()
    options = {"durability": durability, "store_patience": 3, "idle_timeout": 60}
    async with InstanceManager(Tidy, store=store, clock=clock, **options) as manager:
        assert await manager.call("a", Tidy.add) == 1
        await manager.save("a")
        life = manager._registry.servers["a"]
        store.fail("put", down, times=math.inf)
        if how == "idle":
            clock.advance(60)
        else:
            stop = asyncio.create_task(manager.stop("a"))
        await rest()
        some = 1 if durability == "call" else 3  # a store that is down is probed by one at a time
        calls = [asyncio.create_task(manager.call("a", Tidy.add)) for _ in range(some)]
        late = clock.monotonic() + 4
        await pass_time(clock, lambda: clock.monotonic() > late)
        store.heal()
        await pass_time(clock, calls[-1].done)
        assert [await outcome(call) for call in calls] == [2, 3, 4][:some]
        assert manager._registry.servers["a"] is life
        if how == "stop":
            assert isinstance(await outcome(stop), StoreUnavailableError)
        assert await manager.call("a", Tidy.add) == 2 + some
        assert manager.stats().superseded == 0
        assert seen == [] or how == "idle"  # where nobody waits for the end, its failure is reported
    assert (await stored(store.inner, Tidy, "a")).n == 2 + some


class Slow(Tidy, name="slow"):
    async def on_start(self, begun: asyncio.Event) -> None:
        await begun.wait()


async def test_a_life_that_another_owner_overtakes_while_it_comes_back_ends():
    store, clock, begun = FaultyStore(MemoryStore()), ManualClock(), asyncio.Event()
    reports()
    begun.set()
    options = {"durability": "hibernate", "store_patience": 3, "context": begun}
    async with InstanceManager(Slow, store=store, clock=clock, **options) as manager:
        await manager.call("ada", Slow.add)
        await manager.save("ada")
        begun.clear()
        store.fail("put", down, times=math.inf)
        stop = asyncio.create_task(manager.stop("ada"))
        await rest()
        late = clock.monotonic() + 5
        await pass_time(clock, lambda: clock.monotonic() > late)  # it comes back, and on_start waits
        async with Persistence(store.inner) as other:
            agent = await other.thaw(Slow, "ada")
            agent.n += 5
            await other.hibernate("ada", agent)
        store.heal()
        await pass_time(clock, lambda: manager.stats().superseded)
        begun.set()
        assert isinstance(await outcome(stop), StoreUnavailableError | SupersededError)
        assert await outcome(manager.call("ada", Slow.add)) == 7


class Fragile(Agent):
    """Can't be restored while ``broken``."""

    n: int = 0
    ready: bool = transient()
    broken = False
    starts = 0
    gate: ClassVar[asyncio.Event | None] = None

    async def on_start(self) -> None:
        self.ready = False
        Fragile.starts += 1
        await (asyncio.sleep(0) if Fragile.gate is None else Fragile.gate.wait())
        self.ready = True

    async def on_stop(self) -> None:
        """It has one."""

    def dump(self):
        return {"n": self.n}

    @classmethod
    def load(cls, data, version):
        if Fragile.broken:
            raise RuntimeError("as asked")
        return cls(n=data["n"])

    async def add(self) -> int:
        self.n += 1
        return self.n

    async def fail(self) -> None:
        self.n = 666
        raise ValueError("as asked")

    @readonly
    async def is_ready(self) -> bool:
        return self.ready

    @readonly
    async def count(self) -> int:
        return self.n


@pytest.fixture
def _whole():
    Fragile.broken, Fragile.starts = False, 0
    yield
    Fragile.broken, Fragile.gate = False, None


@pytest.mark.usefixtures("_whole")
@pytest.mark.parametrize("end", ["stop", "close"])
async def test_what_a_call_left_that_could_not_be_undone_is_never_stored(end):
    store = FaultyStore(MemoryStore())
    reports()
    async with InstanceManager(Fragile, store=store) as manager:
        assert await manager.call("a", Fragile.add) == 1
        Fragile.broken = True
        assert isinstance(await outcome(manager.call("a", Fragile.fail)), ValueError)
        Fragile.broken = False
        if end == "stop":
            await manager.stop("a")
    assert (await stored(store.inner, Fragile, "a")).n == 1


@pytest.mark.usefixtures("_whole")
async def test_of_many_readers_one_makes_a_broken_agent_anew():
    for passes in range(6):
        reports()
        async with InstanceManager(Fragile, store=MemoryStore()) as manager:
            await manager.call("a", Fragile.add)
            Fragile.broken = True
            await outcome(manager.call("a", Fragile.fail))
            Fragile.broken, Fragile.starts = False, 0
            readers = [asyncio.create_task(manager.call("a", Fragile.is_ready))]
            await rest(passes)
            readers += [asyncio.create_task(manager.call("a", Fragile.is_ready)) for _ in range(2)]
            assert [await outcome(reader) for reader in readers] == [True] * 3
            assert Fragile.starts == 1


class Hooked(Agent):
    n: int = 0

    async def on_start(self, gate: asyncio.Event) -> None:
        self.gate = gate
        await gate.wait()

    async def on_stop(self) -> None:
        await self.gate.wait()
        self.n += 100

    async def add(self) -> int:
        self.n += 1
        return self.n


async def test_cancel_ends_calls_and_no_hooks():
    store, gate = MemoryStore(), asyncio.Event()
    async with InstanceManager(Hooked, store=store, context=gate) as manager:
        calls = [asyncio.create_task(manager.call("a", Hooked.add)) for _ in range(2)]
        await until(lambda: manager.inspect("a").running)
        assert manager.cancel("a") is False
        gate.set()
        assert [await outcome(call) for call in calls] == [1, 2]
        gate.clear()
        stop = asyncio.create_task(manager.stop("a"))
        await until(lambda: manager.inspect("a").running)
        assert manager.cancel("a") is False
        gate.set()
        await stop
        assert (await stored(store, Hooked, "a")).n == 102


class Stubborn(Agent):
    n: int = 0

    async def on_start(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.n = 5


async def test_an_on_start_that_is_too_slow_fails_though_it_keeps_that_to_itself():
    clock = ManualClock()
    async with InstanceManager(Stubborn, store=MemoryStore(), clock=clock, turn_timeout=5) as manager:
        get = asyncio.create_task(manager.get("a"))
        await until(lambda: manager.inspect("a").running)
        clock.advance(6)
        assert "TurnTimeoutError" in repr(getattr(await outcome(get), "__cause__", None))
        assert manager.keys() == []


async def test_tells_keep_their_order_over_the_end_of_a_life():
    class Listing(Agent):
        got: list[int] = []

        async def add(self, number: int) -> None:
            self.got.append(number)

    event = asyncio.Event()
    async with InstanceManager(Listing, store=MemoryStore()) as manager:
        hold = asyncio.create_task(manager.call("a", Listing.add, 0))
        await hold
        async with manager.attach("a"):
            wait = asyncio.create_task(_hold_turn(manager, event))
            await rest()

            async def stop() -> None:
                await manager.stop("a")
                for number in (4, 5):
                    manager.tell("a", Listing.add, number)

            stopping = asyncio.create_task(stop())
            await rest()
            for number in (1, 2, 3):
                manager.tell("a", Listing.add, number)
            await rest()
            event.set()
            await stopping
            await wait
            await rest()
            assert (await manager.state("a")).got == [0, 1, 2, 3, 4, 5]


async def _hold_turn(manager: InstanceManager, event: asyncio.Event) -> None:
    """Keep the agent's turn as a call does that takes long."""
    turns = manager._registry.servers["a"].turns
    assert turns.try_enter(False)
    await event.wait()
    turns.leave(False)


async def test_what_was_told_and_came_to_nothing_is_reported():
    class Told(Agent):
        async def lose(self) -> None:
            task = asyncio.create_task(asyncio.sleep(0))
            task.cancel()
            await task

        async def stay(self, event: asyncio.Event) -> None:
            while not event.is_set():
                try:
                    await event.wait()
                except asyncio.CancelledError:
                    continue

    seen, event, clock = reports(), asyncio.Event(), ManualClock()
    manager = InstanceManager(Told, store=MemoryStore(), clock=clock)
    await manager.open()
    manager.tell("a", Told.lose)
    await rest()
    assert [context["message"] for context in seen] == ["overwinter: agent Told 'a': told lose()"]
    call = asyncio.create_task(manager.call("a", Told.stay, event))
    await rest()
    manager.tell("a", Told.lose)
    await rest()
    close = asyncio.create_task(manager.close(2))
    await pass_time(clock, close.done)
    await outcome(close)
    await rest()
    assert len(seen) == 2
    event.set()
    await outcome(call)


# ---------------------------------------------------------------- when the end does not come, or comes twice


async def test_a_life_that_ends_while_the_manager_closes_is_named_whoever_waits_for_the_next(monkeypatch):
    monkeypatch.setattr(_closing, "LAST_LOOK", 0.01)
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    reports()
    manager = InstanceManager(Tidy, store=store, clock=clock)
    await manager.open()
    await manager.call("a", Tidy.add)
    gate = store.hold("put")
    store.fail("put", down)
    stop = asyncio.create_task(manager.stop("a"))
    await gate.reached()  # what on_stop changed is on its way
    call = asyncio.create_task(manager.call("a", Tidy.add))
    await rest()
    close = asyncio.create_task(manager.close(0))
    for _ in range(3):
        await rest()
        clock.advance(0)
    error = await outcome(close)
    assert isinstance(error, CloseError)
    assert (error.unknown, error.abandoned) == (("a",), ())
    assert [type(await outcome(task)) for task in (stop, call)] == [ClosedError, ClosedError]
    gate.release()
    await rest()
    assert (manager._home.tasks, clock.timers) == (set(), 0)


class Asked(Agent):
    """Asks another agent as it comes or goes."""

    n: int = 0
    context: dict = transient()

    async def on_start(self, context) -> None:
        self.context = context
        if context["asks"] == "on_start":
            await context["askers"].call("b", Asker.ping)

    async def on_stop(self) -> None:
        self.n += 1
        if self.context["asks"] == "on_stop":
            await self.context["askers"].call("b", Asker.ping)

    @readonly
    async def look(self) -> int:
        return self.n


class Asker(Agent):
    async def on_start(self, context) -> None:
        self.context = context

    async def ping(self) -> None:
        """It answers."""

    async def ask(self) -> int:
        await self.context["go"].wait()
        return await self.context["asked"].call("a", Asked.look)


@pytest.mark.parametrize("hook", ["on_start", "on_stop"])
async def test_who_waits_for_a_life_that_ends_and_is_waited_for_by_it_is_told(hook):
    reports()
    store, clock, context = FaultyStore(MemoryStore()), ManualClock(), {"asks": "", "go": asyncio.Event()}
    system = AgentSystem(store=store, context=context)
    asked = context["asked"] = system.manager(Asked, clock=clock, store_patience=1)
    askers = context["askers"] = system.manager(Asker, clock=clock)
    async with system:
        await asked.get("a")
        await asked.save("a")
        ask = asyncio.create_task(askers.call("b", Asker.ask))
        await until(lambda: askers.inspect("b").running)
        context["asks"] = hook
        if hook == "on_start":  # it comes back to life, for what on_stop changed can't be stored
            store.fail("put", down, times=math.inf)
        stop = asyncio.create_task(asked.stop("a"))
        await pass_time(clock, lambda: askers.inspect("b").queued)  # its hook waits for who asks
        context["go"].set()
        await rest()
        assert isinstance(await outcome(ask), ReentrantCallError)
        context["asks"] = ""
        store.heal()
        assert isinstance(await outcome(stop), StoreUnavailableError if hook == "on_start" else type(None))


@pytest.mark.usefixtures("_whole")
async def test_readers_of_a_broken_copy_that_is_dropped_go_to_the_next_life():
    reports()
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Fragile, store=store, durability="hibernate") as manager:
        await manager.call("a", Fragile.add)
        await manager.save("a")
        async with Persistence(store.inner) as other:
            agent = await other.thaw(Fragile, "a")
            agent.n = 100
            await other.hibernate("a", agent)
        await manager.call("a", Fragile.add)
        Fragile.broken = True
        await outcome(manager.call("a", Fragile.fail))
        Fragile.broken, Fragile.starts, Fragile.gate = False, 0, asyncio.Event()
        gate = store.hold("put")
        save = asyncio.create_task(manager.save("a"))
        await gate.reached()
        readers = [asyncio.create_task(manager.call("a", Fragile.count)) for _ in range(3)]
        await rest()
        gate.release()
        await rest()
        Fragile.gate.set()
        assert [await outcome(reader) for reader in readers] == [100] * 3
        assert isinstance(await outcome(save), SupersededError)
        assert Fragile.starts == 2


class Cancelling(Tidy, name="cancelling"):
    lost = False

    async def on_start(self) -> None:
        if Cancelling.lost:
            task = asyncio.create_task(asyncio.sleep(0))
            task.cancel()
            await task


async def test_an_on_start_that_ends_in_a_cancellation_of_its_own_is_a_failure_like_any_other():
    store, clock, seen = FaultyStore(MemoryStore()), ManualClock(), reports()
    async with InstanceManager(Cancelling, store=store, clock=clock, store_patience=0) as manager:
        await manager.call("a", Cancelling.add)
        store.fail("put", down)
        Cancelling.lost = True
        stop = asyncio.create_task(manager.stop("a"))
        await pass_time(clock, stop.done)
        assert isinstance(await outcome(stop), StoreUnavailableError)
        assert isinstance(await outcome(manager.call("a", Cancelling.add)), ThawError)
        Cancelling.lost = False
        assert await outcome(manager.call("a", Cancelling.add)) == 2
        assert "it could not come back to life" in seen[0]["message"]


async def test_an_interleaved_call_finds_a_whole_agent():
    class Seen(Fragile, name="seen"):
        @interleave
        async def peek(self) -> int:
            return self.n

    reports()
    async with InstanceManager(Seen, store=MemoryStore()) as manager:
        await manager.call("a", Seen.add)
        Fragile.broken = True
        await outcome(manager.call("a", Seen.fail))
        Fragile.broken = False
        assert await outcome(manager.call("a", Seen.peek)) == 1


async def test_a_full_manager_whose_store_is_down_does_not_spin():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    reports()
    async with InstanceManager(Tidy, store=store, clock=clock, store_patience=1, max_live=1) as manager:
        await manager.call("a", Tidy.add)
        store.fail("put", down, times=math.inf)
        other = asyncio.create_task(manager.call("b", Tidy.add))
        await pass_time(clock, lambda: manager._registry.servers["a"].ledger.down, step=0.01)
        puts = store.calls["put"]
        await rest(500)
        assert store.calls["put"] - puts < 5
        await pass_time(clock, other.done)
        assert isinstance(await outcome(other), TooManyLiveError)
        store.heal()
        assert await outcome(manager.call("a", Tidy.add)) == 2


async def test_a_delete_ends_interleaved_calls_before_the_next_life_begins():
    class Peeked(Tidy, name="peeked"):
        @interleave
        async def peek(self, event: asyncio.Event) -> int:
            await event.wait()
            return self.n

    async with InstanceManager(Peeked, store=MemoryStore()) as manager:
        await manager.call("a", Peeked.add)
        peek = asyncio.create_task(manager.call("a", Peeked.peek, asyncio.Event()))
        await until(lambda: manager.inspect("a").running)
        await manager.delete("a")
        assert isinstance(await outcome(peek), AgentDeletedError)
        assert await outcome(manager.call("a", Peeked.add)) == 1


async def test_a_save_that_begins_as_the_agent_leaves_is_done_before_it_has_left():
    class Grumpy(Agent):
        async def on_stop(self) -> None:
            raise ValueError("no")

    store, seen = FaultyStore(MemoryStore()), reports()
    async with InstanceManager(Grumpy, store=store) as manager:
        await manager.get("a")
        gate = store.hold("put")
        stop = asyncio.create_task(manager.stop("a"))
        save = asyncio.create_task(manager.save("a"))
        await rest()
        assert not stop.done()
        gate.release()
        assert [await outcome(stop), await outcome(save)] == [None, None]
        assert await stored(store.inner, Grumpy, "a") is not None
    assert [type(report["exception"]) for report in seen] == [ValueError]
