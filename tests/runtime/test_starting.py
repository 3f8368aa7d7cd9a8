"""``on_start``: each in a context and a turn of its own, and what it changes is there as long as the agent is."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, ClassVar

import msgspec
import pytest
from agents import Counter
from waiting import outcome, pass_time, rest, stored

from overwinter import Agent, InstanceManager, MemoryStore, interleave, readonly
from overwinter.errors import AgentStateError, ReentrantCallError, StoreUnavailableError, ThawError
from overwinter.testing import FaultyStore, ManualClock, until

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")


class Starter(Agent):
    """Waits in ``on_start`` for an event of its own, then does what it was made for."""

    count: int = 0
    began_as: str = ""

    async def on_start(self, context: dict[str, Any]) -> None:
        self.began_as = TENANT.get()
        TENANT.set(self.key)
        await context["gates"][self.key].wait()
        await context[self.key](context["manager"])

    async def increment(self) -> int:
        self.count += 1
        return self.count

    @readonly
    async def began(self) -> str:
        return self.began_as


async def nothing(manager) -> None:
    return None


async def begin(manager, *keys: str) -> list[asyncio.Task[Any]]:
    """Have agents come alive beside each other, each as far as its gate."""
    calls = []
    for key in keys:
        calls.append(asyncio.create_task(manager.call(key, Starter.increment)))
        await rest()
    return calls


def starters(**does) -> tuple[InstanceManager[Starter], dict[str, asyncio.Event]]:
    context: dict[str, Any] = {**does, "gates": {key: asyncio.Event() for key in does}}
    context["manager"] = InstanceManager(Starter, store=MemoryStore(), context=context)
    return context["manager"], context["gates"]


async def test_what_one_tells_as_it_starts_is_not_anothers():
    async with InstanceManager(Counter) as counters:

        async def tell(_) -> None:
            counters.tell("told", Counter.increment)

        async def tell_and_fail(_) -> None:
            counters.tell("never told", Counter.increment)
            raise ValueError("as asked")

        manager, gates = starters(good=tell, bad=tell_and_fail)
        async with manager:
            good, bad = await begin(manager, "good", "bad")
            gates["good"].set()
            assert await outcome(good) == 1
            await until(lambda: counters.keys() == ["told"])
            gates["bad"].set()
            assert isinstance(await outcome(bad), ThawError)
            await rest()
            assert counters.keys() == ["told"]


async def test_one_that_waits_for_another_that_starts_waits_for_no_circle():
    async def ask(manager) -> None:
        await manager.call("parent", Starter.increment)

    manager, gates = starters(child=ask, parent=nothing)
    async with manager:
        child, parent = await begin(manager, "child", "parent")
        gates["child"].set()
        await rest()
        gates["parent"].set()
        assert (await outcome(child), await outcome(parent)) == (1, 1)


async def test_one_that_calls_itself_is_told_whoever_starts_beside_it():
    async def ask(manager) -> None:
        await manager.call("self", Starter.increment)

    manager, gates = starters(other=nothing, self=ask)
    async with manager:
        other, call = await begin(manager, "other", "self")
        gates["other"].set()
        assert await outcome(other) == 1
        gates["self"].set()
        failure = await outcome(call)
        assert isinstance(failure, ThawError)
        assert isinstance(failure.__cause__, ReentrantCallError)


async def test_what_it_sets_in_context_variables_is_its_own():
    manager, gates = starters(ada=nothing, bob=nothing)
    async with manager:
        for key in ("ada", "bob"):
            gates[key].set()
            assert await outcome(manager.call(key, Starter.began)) == "nobody"


class Looked(Agent):
    """Calls an ``@interleave`` method of its own as it starts, or has another agent do that."""

    count: int = 0

    async def on_start(self, context) -> None:
        await context(self.key)

    @interleave
    async def look(self) -> int:
        return self.count


class Asker(Agent):
    async def ask(self, lookers: InstanceManager[Looked], key: str) -> int:
        return await lookers.call(key, Looked.look)


@pytest.mark.parametrize("through", [None, "another agent"])
async def test_an_interleaved_call_that_waits_for_its_own_thaw_is_told(through):
    async def look(key: str) -> None:
        await (askers.call("bob", Asker.ask, lookers, key) if through else lookers.call(key, Looked.look))

    askers, lookers = InstanceManager(Asker), InstanceManager(Looked, store=MemoryStore(), context=look)
    async with askers, lookers:
        failure = await outcome(lookers.call("ada", Looked.look))
        assert isinstance(failure, ThawError)
        assert isinstance(failure.__cause__, ReentrantCallError)


# ---------------------------------------------------------------- what it changes


class Account(Agent):
    opened: bool = False
    balance: int = 0

    async def on_start(self) -> None:
        if not self.opened:
            self.opened, self.balance = True, 100

    async def pay(self, amount: int) -> int:
        self.balance -= amount
        return self.balance

    @readonly
    async def look(self) -> tuple[bool, int]:
        return self.opened, self.balance


@pytest.mark.parametrize("initial", [None, {"balance": 5}])
async def test_an_agent_never_lives_without_what_its_on_start_changed(initial):
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Account, store=store, clock=clock, store_patience=1) as accounts:
        store.fail("put", lambda: StoreUnavailableError("down"), times=math.inf)
        made = asyncio.create_task(accounts.get("ada", initial=initial))
        await rest()
        first = asyncio.create_task(accounts.call("ada", Account.pay, 1))
        await pass_time(clock, lambda: first.done() and made.done())
        assert isinstance(first.exception(), StoreUnavailableError)
        look = asyncio.create_task(accounts.call("ada", Account.look))
        await pass_time(clock, look.done)
        assert isinstance(look.exception(), StoreUnavailableError)  # it waits for what it saw, which is stored nowhere
        store.heal()
        assert await outcome(accounts.call("ada", Account.pay, 1)) == 99
        found = await stored(store.inner, Account)
        assert (found.opened, found.balance) == (True, 99)


async def test_a_call_that_waited_while_its_agents_start_was_undone_has_it_made_anew():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Account, store=store, clock=clock, store_patience=1, shared=True) as accounts:
        store.fail("put", lambda: StoreUnavailableError("down"), times=math.inf)
        pay = asyncio.create_task(accounts.call("ada", Account.pay, 1))  # the put of what on_start made is on its way
        look = asyncio.create_task(accounts.call("ada", Account.look))
        await until(lambda: store.calls["put"] > 0)
        await pass_time(clock, lambda: pay.done() and look.done())
        store.heal()
        for task in (pay, look):
            assert isinstance(task.exception(), StoreUnavailableError)
        assert await outcome(accounts.call("ada", Account.pay, 1)) == 99


class World:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.tenants: list[str] = []
        self.value: Any = 1
        self.ask: Callable[[], Awaitable[object]] = rest
        self.gate = asyncio.Event()
        self.gate.set()

    def is_in_order(self) -> bool:
        """Whether each that started was stopped before the next one started."""
        return self.log == ["start", "stop", "stopped"] * (len(self.log) // 3)


class Opened(Agent):
    """Has something to close; while ``gate`` is not set that takes long."""

    value: int = 0

    async def on_start(self, world: World) -> None:
        self.world = world
        world.log.append("start")
        world.tenants.append(TENANT.get())
        TENANT.set("the agent's")
        self.value = world.value
        await world.ask()

    async def on_stop(self) -> None:
        self.world.log.append("stop")
        await self.world.gate.wait()
        self.world.log.append("stopped")

    @readonly
    async def look(self) -> int:
        return self.value

    @interleave
    async def peek(self) -> int:
        return self.value


@contextlib.asynccontextmanager
async def undone(world: World) -> AsyncIterator[InstanceManager[Opened]]:
    """An agent that is live, and whose ``on_start`` was undone, since it could not be stored; by now it could be."""
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Opened, store=store, clock=clock, store_patience=1, context=world) as manager:
        store.fail("put", lambda: StoreUnavailableError("down"), times=math.inf)
        look = asyncio.create_task(manager.call("ada", Opened.look))
        await pass_time(clock, look.done)
        assert isinstance(look.exception(), StoreUnavailableError)
        store.heal()
        yield manager


async def test_whatever_started_is_stopped_before_the_next_one_starts():
    world = World()
    async with undone(world) as manager:
        assert await outcome(manager.call("ada", Opened.look)) == 1
    assert world.is_in_order()
    assert len(world.log) == 6


async def test_a_life_ends_when_what_is_made_anew_in_it_has_started_and_stopped():
    world = World()
    async with undone(world) as manager:
        world.gate.clear()
        peek = asyncio.create_task(manager.call("ada", Opened.peek))
        await until(lambda: "stop" in world.log)
        ending = asyncio.create_task(manager.stop("ada"))
        await rest()
        world.gate.set()
        assert await outcome(ending) is None
        assert await outcome(peek) == 1
        assert manager.stats().superseded == 0
    assert world.is_in_order()


async def test_a_delete_begins_nothing_anew():
    world = World()
    async with undone(world) as manager:
        world.gate.clear()
        peek = asyncio.create_task(manager.call("ada", Opened.peek))
        await until(lambda: "stop" in world.log)
        assert await outcome(manager.delete("ada")) is None  # it ends the on_stop that runs
        world.gate.set()
        assert await outcome(peek) == 1  # of the next life
    assert world.log == ["start", "stop", "start", "stop", "stopped"]


async def test_a_caller_who_leaves_does_not_hurry_what_is_made_anew():
    world = World()
    async with undone(world) as manager:
        world.gate.clear()
        first = asyncio.create_task(manager.call("ada", Opened.look))
        await until(lambda: "stop" in world.log)
        first.cancel()
        assert isinstance(await outcome(first), asyncio.CancelledError)
        second = asyncio.create_task(manager.call("ada", Opened.look))
        await rest()
        assert world.log == ["start", "stop"]
        world.gate.set()
        assert await outcome(second) == 1
    assert world.is_in_order()


async def test_what_is_made_anew_starts_in_the_context_of_open_not_of_whoever_calls():
    world = World()
    async with undone(world) as manager:
        TENANT.set("alice's")
        assert await manager.call("ada", Opened.look) == 1
        assert TENANT.get() == "alice's"
    assert world.tenants == ["nobody", "nobody"]


async def test_what_a_second_on_start_changed_is_shown_to_nobody_if_it_can_not_be_kept():
    world = World()
    async with undone(world) as manager:
        world.value = "no number"
        for _ in range(2):
            assert isinstance(await outcome(manager.call("ada", Opened.look)), AgentStateError)
        world.value = 2
        assert await outcome(manager.call("ada", Opened.look)) == 2


class Peer(Agent):
    async def ask(self, openeds: InstanceManager[Opened], method: Any) -> int:
        return await openeds.call("ada", method)


@pytest.mark.parametrize("through", [None, "another agent"])
@pytest.mark.parametrize("method", [Opened.look, Opened.peek])
@pytest.mark.parametrize("first", [Opened.look, Opened.peek])
async def test_a_call_that_waits_for_what_is_made_anew_and_is_waited_for_by_it_is_told(first, method, through):
    world = World()
    async with undone(world) as manager, InstanceManager(Peer) as peers:
        world.ask = lambda: peers.call("bob", Peer.ask, manager, method) if through else manager.call("ada", method)
        failure = await outcome(manager.call("ada", first))
        assert isinstance(failure, ThawError)
        assert isinstance(failure.__cause__, ReentrantCallError)
        world.ask = rest
        assert await outcome(manager.call("ada", first)) == 1


@pytest.mark.parametrize("method", [Opened.look, Opened.peek])
async def test_a_call_that_waits_for_what_is_made_anew_and_for_no_circle_is_answered(method):
    world, asked = World(), asyncio.Event()
    async with undone(world) as manager, InstanceManager(Peer) as peers:
        world.ask = asked.wait
        first = asyncio.create_task(manager.call("ada", Opened.look))
        await until(lambda: world.log.count("start") == 2)
        call = asyncio.create_task(peers.call("bob", Peer.ask, manager, method))
        await rest()
        asked.set()
        assert [await outcome(task) for task in (first, call)] == [1, 1]


class Late(msgspec.Struct):
    refused: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.refused:
            raise ValueError("too late")


class Invited(Account):
    late: Late = Late()


async def test_what_keeps_an_agent_from_being_made_anew_is_the_cause_of_what_its_caller_gets(monkeypatch):
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Invited, store=store, clock=clock, store_patience=1) as manager:
        store.fail("put", lambda: StoreUnavailableError("down"), times=math.inf)
        pay = asyncio.create_task(manager.call("ada", Invited.pay, 1))
        await pass_time(clock, pay.done)
        assert isinstance(pay.exception(), StoreUnavailableError)
        store.heal()
        monkeypatch.setattr(Late, "refused", True)
        error = await outcome(manager.call("ada", Invited.look))
        assert isinstance(error, ThawError)
        assert isinstance(error.__cause__, msgspec.ValidationError)
