"""``@interleave``: "how far are you?" is answered while the agent is busy."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from waiting import outcome, pass_time, rest, stored

from overwinter import Agent, AgentSystem, InstanceManager, MemoryStore, interleave, readonly
from overwinter.errors import (
    AgentNotFoundError,
    AgentStateError,
    ClosedError,
    CloseError,
    MailboxFullError,
    ReentrantCallError,
    StoreUnavailableError,
    SupersededError,
    ThawError,
    TurnCancelledError,
    TurnTimeoutError,
)
from overwinter.testing import FaultyStore, ManualClock, until


class Job(Agent):
    """Does steps, and says how far it is."""

    done: int = 0

    async def on_start(self, context) -> None:
        self.context = context

    async def work(self, event: asyncio.Event) -> int:
        self.done += 1
        await event.wait()
        self.done += 1
        return self.done

    async def step(self) -> int:
        self.done += 1
        return self.done

    async def work_and_look(self) -> int:
        self.done += 1
        return await self.context["jobs"].call(self.key, Job.progress)

    @interleave
    async def progress(self) -> int:
        return self.done

    @interleave
    async def watch(self, event: asyncio.Event) -> int:
        await event.wait()
        return self.done

    @interleave
    async def fail(self) -> None:
        raise ValueError("as asked")

    @interleave
    async def follow(self, event: asyncio.Event):
        yield self.done
        await event.wait()
        yield self.done


def managed(store=None, **options) -> InstanceManager[Job]:
    context: dict = {}
    context["jobs"] = InstanceManager(Job, store=store or MemoryStore(), context=context, **options)
    return context["jobs"]


async def start(jobs: InstanceManager[Job], *call) -> asyncio.Task:
    """Begin a call, and return when it runs."""
    before = jobs.inspect("a").running
    task = asyncio.create_task(jobs.call("a", *call))
    await until(lambda: jobs.inspect("a").running == before + 1)
    return task


async def test_it_runs_while_a_turn_awaits_and_sees_what_that_turn_has_made_so_far():
    async with managed() as jobs:
        event = asyncio.Event()
        work = await start(jobs, Job.work, event)
        waiting = asyncio.create_task(jobs.call("a", Job.step))
        await until(lambda: jobs.stats().queued == 1)
        assert await outcome(jobs.call("a", Job.progress)) == 1  # not behind the one that waits either
        event.set()
        assert [await outcome(work), await outcome(waiting)] == [2, 3]


async def test_a_turn_begins_and_ends_while_it_runs():
    async with managed() as jobs:
        event = asyncio.Event()
        watch = await start(jobs, Job.watch, event)
        assert await outcome(jobs.call("a", Job.step)) == 1
        event.set()
        assert await outcome(watch) == 1


async def test_its_reply_does_not_wait_for_the_store():
    store = FaultyStore(MemoryStore())
    async with managed(store) as jobs:
        gate = store.hold("put")
        step = asyncio.create_task(jobs.call("a", Job.step))
        await gate.reached()
        assert await outcome(jobs.call("a", Job.progress)) == 1
        assert not step.done()
        gate.release()
        assert await outcome(step) == 1


async def test_an_agent_may_ask_itself_inside_a_turn():
    async with managed() as jobs:
        assert await outcome(jobs.call("a", Job.work_and_look)) == 1


async def test_its_failure_undoes_nothing_of_the_turn_beside_it():
    async with managed() as jobs:
        event = asyncio.Event()
        work = await start(jobs, Job.work, event)
        assert isinstance(await outcome(jobs.call("a", Job.fail)), ValueError)
        event.set()
        assert await outcome(work) == 2


async def test_its_items_leave_at_once_while_a_turn_awaits():
    async with managed() as jobs:
        worked, followed = asyncio.Event(), asyncio.Event()
        work = await start(jobs, Job.work, worked)
        items = jobs.call("a", Job.follow, followed)
        assert await outcome(anext(items)) == 1
        worked.set()
        assert await outcome(work) == 2
        followed.set()
        assert await outcome(anext(items)) == 2
        assert isinstance(await outcome(anext(items)), StopAsyncIteration)


async def test_it_keeps_its_agent_from_hibernating_while_it_runs():
    clock, event = ManualClock(), asyncio.Event()
    async with managed(clock=clock, idle_timeout=60) as jobs:
        await jobs.get("a")
        watch = await start(jobs, Job.watch, event)
        clock.advance(1000)
        await rest()
        assert jobs.lookup("a") is not None
        assert jobs.inspect("a").why_live == "calls are running or waiting"
        event.set()
        assert await outcome(watch) == 0
        clock.advance(59)
        await rest()
        assert jobs.lookup("a") is not None
        clock.advance(1)
        await until(lambda: jobs.lookup("a") is None)


async def test_it_thaws_an_agent_that_is_not_live():
    async with managed() as jobs:
        await jobs.call("a", Job.step)
        await jobs.stop("a")
        assert await outcome(jobs.call("a", Job.progress)) == 1


async def test_it_is_told_why_its_agent_could_not_come_alive_and_asks_no_second_time():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Job, store=store) as jobs:
        gate = store.hold("get")
        store.fail("get", StoreUnavailableError("down"))
        calls = [asyncio.create_task(jobs.call("a", Job.progress)) for _ in range(2)]
        await gate.reached()
        gate.release()
        errors = [await outcome(call) for call in calls]
        assert [type(error) for error in errors] == [ThawError, ThawError]
        assert store.calls["get"] == 1


async def test_it_is_not_refused_because_another_caller_did_not_want_to_create():
    store = FaultyStore(MemoryStore())
    async with managed(store) as jobs:
        gate = store.hold("get")
        careful = asyncio.create_task(jobs.get("a", missing="raise"))
        await gate.reached()
        look = asyncio.create_task(jobs.call("a", Job.progress))
        await rest()
        gate.release()
        assert isinstance(await outcome(careful), AgentNotFoundError)
        assert await outcome(look) == 0


async def test_a_stop_waits_for_it_and_ends_it_when_that_takes_too_long():
    store, clock, event = MemoryStore(), ManualClock(), asyncio.Event()
    async with managed(store, clock=clock) as jobs:
        await jobs.call("a", Job.step)
        for wanted, end in ((1, event.set), (TurnCancelledError, lambda: None)):
            watch = await start(jobs, Job.watch, event)
            stop = asyncio.create_task(jobs.stop("a"))
            await rest()
            assert not stop.done()
            end()
            await pass_time(clock, stop.done)
            assert stop.exception() is None
            found = await outcome(watch)
            assert found == wanted or isinstance(found, wanted)
            assert jobs.lookup("a") is None
            event.clear()
        assert (await stored(store, Job, "a")).done == 1


async def test_it_ends_with_the_copy_that_it_looks_at():
    store = FaultyStore(MemoryStore())
    async with managed(store) as jobs:
        await jobs.call("a", Job.step)
        data = await store.inner.get("Job:a")
        watch = await start(jobs, Job.watch, asyncio.Event())
        await store.inner.delete("Job:a", expected=data.revision)  # another owner
        assert isinstance(await outcome(jobs.call("a", Job.step)), SupersededError)
        assert isinstance(await outcome(watch), SupersededError)


class Stray(Agent):
    """Sets an attribute that nobody declared, in calls that change nothing."""

    count: int = 0

    async def increment(self) -> int:
        self.count += 1
        return self.count

    @interleave
    async def look(self, then: type[Exception] | None = None) -> int:
        self.seen = True
        if then:
            raise then
        return self.count

    @readonly
    async def read(self) -> None:
        self.seen = True
        raise KeyError


async def test_an_attribute_that_it_sets_first_fails_it_and_no_later_call():
    async with InstanceManager(Stray, store=MemoryStore()) as strays:
        assert isinstance(await outcome(strays.call("ada", Stray.look)), AgentStateError)
        assert await outcome(strays.call("ada", Stray.increment)) == 1
        assert isinstance(await outcome(strays.call("ada", Stray.look, KeyError)), KeyError)
        assert await outcome(strays.call("ada", Stray.increment)) == 2
        assert isinstance(await outcome(strays.call("ada", Stray.read)), KeyError)
        assert await outcome(strays.call("ada", Stray.increment)) == 3


def test_it_is_a_readonly_method():
    @interleave
    async def method(self) -> None: ...

    assert method.__overwinter_readonly__ is True


async def test_turn_timeout_ends_it_too():
    clock = ManualClock()
    async with managed(clock=clock, turn_timeout=10) as jobs:
        watch = await start(jobs, Job.watch, asyncio.Event())
        clock.advance(10)
        assert isinstance(await outcome(watch), TurnTimeoutError)


class Watcher(Agent):
    seen: int = 0

    async def on_start(self, managers) -> None:
        self.jobs, self.asked = managers["works"], asyncio.Event()

    async def look(self) -> int:
        return await self.jobs.call("a", Work.progress)

    async def report(self) -> int:
        self.seen += 1
        return self.seen


class Work(Agent):
    done: int = 0

    async def on_start(self, managers) -> None:
        self.managers = managers

    async def work(self) -> int:
        self.managers["working"].set()
        await self.managers["looking"].wait()
        return await self.managers["watchers"].call("b", Watcher.report)

    @interleave
    async def progress(self) -> int:
        self.managers["looking"].set()
        await rest(20)
        return self.done


async def test_who_waits_for_it_does_not_wait_for_what_runs_beside_it():
    context = {"working": asyncio.Event(), "looking": asyncio.Event()}
    system = AgentSystem(store=MemoryStore(), context=context)
    works, watchers = context["works"], context["watchers"] = system.manager(Work), system.manager(Watcher)
    async with system:
        work = asyncio.create_task(works.call("a", Work.work))
        await context["working"].wait()
        assert await outcome(watchers.call("b", Watcher.look)) == 0
        assert await outcome(work) == 1


class Deaf(Agent):
    @interleave
    async def watch(self) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "never mind"
        return "done"


async def test_one_that_is_ended_and_returns_all_the_same_is_told_and_keeps_no_cancellation():
    clock = ManualClock()
    async with InstanceManager(Deaf, clock=clock, turn_timeout=5) as manager:

        async def caller() -> int:
            with pytest.raises(TurnTimeoutError):
                await manager.call("a", Deaf.watch)
            return asyncio.current_task().cancelling()

        task = asyncio.create_task(caller())
        await until(lambda: manager.inspect("a").running)
        clock.advance(6)
        assert await outcome(task) == 0


async def test_how_many_wait_for_its_agent_is_bounded():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Job, store=store, max_mailbox=3) as jobs:
        gate = store.hold("get")
        first = asyncio.create_task(jobs.get("b", missing="raise"))  # on other terms than calls
        await gate.reached()
        waiting = [asyncio.create_task(jobs.get("b")) for _ in range(3)]
        await rest()
        assert isinstance(await outcome(jobs.call("b", Job.progress)), MailboxFullError)
        calls = [asyncio.create_task(jobs.call("a", Job.progress)) for _ in range(5)]
        await rest()
        gate.release()
        await asyncio.wait([first, *waiting])
        assert isinstance(first.exception(), AgentNotFoundError)
        told = [type(await outcome(call)) for call in calls]
        assert sorted(told, key=str) == sorted([int, int, int, MailboxFullError, MailboxFullError], key=str)


class Desk(Agent):
    """Whose interleaved method has a write of its own agent done, by itself or through another one."""

    notes: int = 0

    async def on_start(self, context: list[InstanceManager]) -> None:
        self.context = context

    async def work(self, go_on: asyncio.Event) -> None:
        await go_on.wait()

    async def note(self) -> int:
        self.notes += 1
        return self.notes

    @interleave
    async def own(self) -> int:
        return await self.context[0].call(self.key, Desk.note)

    @interleave
    async def through(self) -> int:
        return await self.context[1].call("bob", Clerk.ask, self.key)

    @interleave
    async def end(self) -> None:
        await self.context[0].stop(self.key)

    @interleave
    async def numbers(self):
        for number in range(1000):
            yield number


class Clerk(Agent):
    async def on_start(self, context: list[InstanceManager]) -> None:
        self.context = context

    async def ask(self, key: str) -> int:
        return await self.context[0].call(key, Desk.note)


@pytest.mark.parametrize("method", [Desk.own, Desk.through])
@pytest.mark.parametrize("busy", [False, True])
async def test_it_may_call_its_own_agent_whether_that_is_busy_or_not(method, busy):
    context, go_on = [], asyncio.Event()
    desks, clerks = InstanceManager(Desk, context=context), InstanceManager(Clerk, context=context)
    context += [desks, clerks]
    async with desks, clerks:
        await desks.get("ada")
        work = asyncio.create_task(desks.call("ada", Desk.work, go_on))
        if not busy:
            go_on.set()
            await work
        call = asyncio.create_task(desks.call("ada", method))
        await rest()
        go_on.set()
        assert await outcome(call) == 1
        await work


async def test_it_can_not_end_its_own_agent_which_waits_for_it():
    context = []
    async with InstanceManager(Desk, context=context) as desks:
        context.append(desks)
        assert isinstance(await outcome(desks.call("ada", Desk.end)), ReentrantCallError)


class Taker(Agent):
    """Takes the items of another agent."""

    async def end_it(self, desks: InstanceManager[Desk]) -> None:
        async for _ in desks.reference("ada").numbers():
            await desks.stop("ada")


async def test_who_takes_the_items_of_one_can_not_end_its_agent_meanwhile():
    async with InstanceManager(Desk, context=[]) as desks, InstanceManager(Taker) as takers:
        assert isinstance(await outcome(takers.call("bob", Taker.end_it, desks)), ReentrantCallError)


# ---------------------------------------------------------------- while the agent is rolled back


class Parting(Agent):
    """Does something yet when its call is ended."""

    n: int = 0

    async def on_start(self, context: dict[str, Any]) -> None:
        self.context = context

    async def add(self) -> int:
        self.n += 1
        return self.n

    async def work(self) -> None:
        self.n += 1
        await self._until_ended()

    @interleave
    async def watch(self) -> None:
        await self._until_ended()

    async def _until_ended(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.context["ended"].set()
            await self.context["then"](self.context["partings"])

    @interleave
    async def look(self) -> int:
        return self.n

    @interleave
    async def glance(self) -> int:
        await rest(20)
        return self.n

    @interleave
    async def stay(self) -> None:
        await asyncio.Event().wait()


class Visitor(Agent):
    async def look(self, partings: InstanceManager[Parting]) -> int:
        return await partings.call("a", Parting.look)


class RolledBack:
    """An agent whose last change could not be stored, and the call that keeps it from being rolled back."""

    def __init__(self, partings: InstanceManager[Parting], store: FaultyStore, clock: ManualClock) -> None:
        self.partings, self.store, self.clock = partings, store, clock
        self.life = partings._registry.servers["a"]

    async def begin(self, method: Any, ended: asyncio.Event) -> None:
        self.store.fail("put", lambda: StoreUnavailableError("down"), times=math.inf)
        gate = self.store.hold("put")
        self.add = asyncio.create_task(self.partings.call("a", Parting.add))
        await gate.reached()
        self.last = await start(self.partings, method)
        gate.release()
        await pass_time(self.clock, ended.is_set)

    async def is_undone(self) -> None:
        """Without any more time, and in the same life."""
        assert [type(await outcome(call)) for call in (self.add, self.last)] == [StoreUnavailableError] * 2
        self.store.heal()
        assert await outcome(self.partings.call("a", Parting.add)) == 2
        assert self.partings._registry.servers["a"] is self.life
        assert self.partings.stats().superseded == 0


@contextlib.asynccontextmanager
async def rolled_back(method: Any, then: Callable[[InstanceManager[Parting]], Awaitable[object]]) -> AsyncIterator:
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    context: dict[str, Any] = {"then": then, "ended": asyncio.Event()}
    partings = context["partings"] = InstanceManager(
        Parting, store=store, clock=clock, store_patience=1, context=context
    )
    async with partings:
        await partings.call("a", Parting.add)
        found = RolledBack(partings, store, clock)
        await found.begin(method, context["ended"])
        yield found


@pytest.mark.parametrize("method", [Parting.work, Parting.watch])
async def test_it_begins_when_what_is_being_rolled_back_is_undone(method):
    go_on = asyncio.Event()
    async with rolled_back(method, lambda _: go_on.wait()) as undone:
        look = asyncio.create_task(undone.partings.call("a", Parting.look))
        await rest()
        assert not look.done()
        go_on.set()
        assert await outcome(look) == 1
        await undone.is_undone()


async def test_calls_that_overlap_keep_no_change_from_being_undone():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Parting, store=store, clock=clock, store_patience=1, context={}) as partings:
        await partings.call("a", Parting.add)
        store.fail("put", lambda: StoreUnavailableError("down"), times=math.inf)
        add = asyncio.create_task(partings.call("a", Parting.add))

        async def poll() -> None:
            while not add.done():
                with contextlib.suppress(StoreUnavailableError):
                    await partings.call("a", Parting.glance)

        polls = []
        for _ in range(2):
            polls.append(asyncio.create_task(poll()))
            await rest(10)
        await pass_time(clock, add.done)
        assert isinstance(add.exception(), StoreUnavailableError)
        assert [await outcome(task) for task in polls] == [None, None]
        assert (partings.stats().created, partings.stats().thawed) == (1, 0)  # in one life


@pytest.mark.parametrize("through", [None, "another agent"])
@pytest.mark.parametrize("method", [Parting.work, Parting.watch])
async def test_a_call_that_is_being_rolled_back_may_look_at_its_own_agent(method, through):
    seen = []

    async def look(partings: InstanceManager[Parting]) -> None:
        call = visitors.call("bob", Visitor.look, partings) if through else partings.call("a", Parting.look)
        seen.append(await outcome(call))

    async with InstanceManager(Visitor) as visitors, rolled_back(method, look) as undone:
        await undone.is_undone()
        assert seen == [3 if method is Parting.work else 2]


@pytest.mark.parametrize("method", [Parting.work, Parting.watch])
async def test_a_call_that_is_being_rolled_back_is_told_if_it_would_wait_for_who_waits_for_its_end(method):
    told, go_on = [], asyncio.Event()

    async def visit(partings: InstanceManager[Parting]) -> None:
        await go_on.wait()
        told.append(type(await outcome(visitors.call("bob", Visitor.look, partings))))

    async with InstanceManager(Visitor) as visitors, rolled_back(method, visit) as undone:
        waits = asyncio.create_task(visitors.call("bob", Visitor.look, undone.partings))
        await rest()
        assert not waits.done()
        go_on.set()
        assert await outcome(waits) == 1
        assert told == [ReentrantCallError]
        await undone.is_undone()


async def test_who_waits_for_a_rollback_that_does_not_end_is_answered_by_the_next_life():
    told = []

    async def stay(partings: InstanceManager[Parting]) -> None:
        told.append(type(await outcome(partings.call("a", Parting.stay))))

    async with rolled_back(Parting.watch, stay) as undone:
        look = asyncio.create_task(undone.partings.call("a", Parting.look))
        await pass_time(undone.clock, look.done)
        assert await look == 1
        assert told == [StoreUnavailableError]  # nobody else has written
        assert [type(await outcome(call)) for call in (undone.add, undone.last)] == [StoreUnavailableError] * 2
        assert undone.partings._registry.servers["a"] is not undone.life
        assert undone.partings.stats().superseded == 0


async def test_who_waits_for_a_rollback_as_the_manager_closes_is_told():
    go_on = asyncio.Event()

    async def close() -> None:
        async with rolled_back(Parting.watch, lambda _: go_on.wait()) as undone:
            look = asyncio.create_task(undone.partings.call("a", Parting.look))
            await rest()
            closing = asyncio.create_task(undone.partings.close(1))
            await pass_time(undone.clock, closing.done)
            for call in (look, undone.add):
                assert isinstance(await outcome(call), ClosedError)
            go_on.set()
            assert isinstance(await outcome(undone.last), StoreUnavailableError)
            await closing

    assert isinstance(await outcome(close()), CloseError)
