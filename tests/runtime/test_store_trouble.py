"""Stores that fail in odd ways, at odd times: what callers are told is true, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math

import pytest
from agents import Counter
from waiting import outcome, pass_time, reports, rest, stored, write_behind

from overwinter import Agent, InstanceManager, Interval, MemoryStore, Persistence, commit, readonly
from overwinter.errors import (
    AgentDeletedError,
    CloseError,
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


async def test_a_commit_of_unknown_outcome_that_was_overtaken_is_not_called_not_stored():
    class Commits(Counter):
        async def add(self) -> None:
            self.count += 1
            await commit()

    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Commits, store=store, clock=clock) as manager:
        await manager.call("ada", Commits.increment)
        store.fail("put", reset, after=True)  # it landed, and nobody knows
        call = asyncio.create_task(manager.call("ada", Commits.add))
        await rest()
        await write_behind(store.inner, by=10, cls=Commits)
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), OutcomeUnknownError)
        assert (await stored(store.inner, Commits)).count == 12


async def test_while_an_outcome_stays_unknown_calls_are_turned_away_at_once():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=1) as counters:
        store.fail("put", reset, times=math.inf)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, call.done)
        for method in (Counter.increment, Counter.read):
            late = asyncio.create_task(counters.call("ada", method))
            await rest()  # and no time passes
            assert isinstance(late.exception(), StoreUnavailableError)
        store.heal()
        await pass_time(clock, lambda: not counters.stats().dirty)


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


@pytest.mark.parametrize("verb", ["get", "head", "delete"])
async def test_a_store_that_cancels_itself_cancels_no_caller(verb):
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, shared=True) as counters:
        if verb != "get":
            await counters.call("ada", Counter.increment)
        store.fail(verb, asyncio.CancelledError)  # as a client does to what is under way when its connection goes
        error = await outcome(counters.delete("ada") if verb == "delete" else counters.call("ada", Counter.read))
        assert isinstance(error, {"get": ThawError, "head": StoreUnavailableError, "delete": OutcomeUnknownError}[verb])
        assert await outcome(counters.call("ada", Counter.read)) == (0 if verb == "get" else 1)


async def test_a_store_call_of_a_task_that_cancelled_itself_is_cancelled():
    async def ends() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await MemoryStore().in_time(asyncio.sleep(9))

    assert isinstance(await outcome(ends()), asyncio.CancelledError)


async def test_a_look_after_a_conflict_that_cancels_itself_is_taken_again():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", lambda: OutcomeUnknownError("reset"), after=True)
        store.fail("head", asyncio.CancelledError)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, call.done)
        assert await call == 2
        assert store.calls["head"] == 2


class Former(Counter, name="former", aliases=("older",)):
    pass


class Starts(Counter, name="starts"):
    async def on_start(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Former, Starts])
async def test_a_store_that_hangs_is_given_up_where_a_thaw_is_a_task_too(kind):
    store = FaultyStore(MemoryStore())
    async with InstanceManager(kind, store=store) as manager:
        store.timeout = 0.01
        gate = store.hold("get")
        assert isinstance(await outcome(manager.get("ada")), ThawError)
        gate.release()
        assert await outcome(manager.call("ada", Counter.increment)) == 1


async def test_a_put_that_hangs_is_given_up_at_the_timeout_and_tried_again():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        store.timeout = 0.01
        gate = store.hold("put")
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: store.calls["put"] > 1)
        gate.release()
        assert await outcome(call) == 1
        assert (await stored(store.inner)).count == 1


async def test_who_has_written_is_asked_again_where_the_store_hangs_over_that():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        store.timeout = 0.01
        store.fail("put", reset, after=True)  # it landed, and nobody knows
        gate = store.hold("head")
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: store.calls["head"] > 1)
        assert not call.done()
        gate.release()
        assert await outcome(call) == 2
        assert (await stored(store.inner)).count == 2


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


async def test_an_initial_state_that_could_not_be_stored_is_shown_to_nobody_and_never_dropped():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=1, idle_timeout=5) as counters:
        store.fail("put", down, times=math.inf)
        await counters.get("ada", initial={"count": 7})
        read = asyncio.create_task(counters.call("ada", Counter.read))
        await pass_time(clock, read.done)
        assert isinstance(read.exception(), StoreUnavailableError)
        assert isinstance(await outcome(counters.call("ada", Counter.read)), StoreUnavailableError)
        assert counters.stats().dirty == 1
        clock.advance(10)
        await rest()
        store.heal()
        assert await outcome(counters.call("ada", Counter.read)) == 7
        assert (await stored(store.inner)).count == 7


# ---------------------------------------------------------------- other owners


async def test_a_copy_that_lost_its_agent_is_stopped_like_any_other():
    stopped = []

    class Mortal(Counter):
        async def on_stop(self) -> None:
            stopped.append(self.count)

    store = MemoryStore()
    async with InstanceManager(Mortal, store=store) as mortals:
        await mortals.call("ada", Mortal.increment)
        await write_behind(store, by=5, cls=Mortal)
        assert isinstance(await outcome(mortals.call("ada", Mortal.increment)), SupersededError)
        await until(lambda: stopped)
        assert await outcome(mortals.call("ada", Mortal.increment)) == 7
    assert stopped == [2, 7]


async def test_the_next_life_begins_when_a_copy_that_lost_its_agent_has_stopped():
    log, stopped = [], asyncio.Event()

    class Slow(Counter):
        async def on_start(self) -> None:
            log.append("start")

        async def on_stop(self) -> None:
            log.append("stop")
            await stopped.wait()
            log.append("stopped")

    store = MemoryStore()
    async with InstanceManager(Slow, store=store) as manager:
        await manager.call("ada", Slow.increment)
        await write_behind(store, by=5, cls=Slow)
        assert isinstance(await outcome(manager.call("ada", Slow.increment)), SupersededError)
        await until(lambda: "stop" in log)
        later = asyncio.create_task(manager.call("ada", Slow.increment))
        await rest()
        assert (log, later.done()) == (["start", "stop"], False)
        stopped.set()
        assert await outcome(later) == 7
        assert log == ["start", "stop", "stopped", "start"]


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
        assert manager.stats().superseded == 0  # nothing was lost by it
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
    told = reports()
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
        assert "acknowledged in memory and superseded before it was stored" in told[0]["message"]
        assert await outcome(counters.call("ada", Counter.read)) == 1


@pytest.mark.parametrize("durability", ["call", "hibernate"])
async def test_nothing_is_reported_where_nothing_that_was_acknowledged_is_lost(durability):
    told, store = reports(), MemoryStore()
    async with InstanceManager(Counter, store=store, durability=durability) as counters:
        await counters.call("ada", Counter.increment)
        await counters.save("ada")
        await write_behind(store, 10)
        with pytest.raises(SupersededError):
            await (counters.call("ada", Counter.increment) if durability == "call" else counters.delete("ada"))
        assert counters.stats().superseded == 1
        assert await outcome(counters.call("ada", Counter.read)) == 11
    assert told == []


@pytest.mark.parametrize("why", ["superseded", "not what the class declares"])
async def test_what_on_stop_changed_and_can_never_be_stored_is_reported_and_the_life_ends(why):
    class Tidy(Agent):
        count: int = 0

        async def add(self) -> int:
            self.count += 1
            return self.count

        async def on_stop(self) -> None:
            stops.append(self.key)
            if len(stops) > 1:
                return
            self.count = 50
            if why == "superseded":
                await write_behind(store, 10, Tidy)
            else:
                self.count = "fifty"

    told, store, stops = reports(), MemoryStore(), []
    async with InstanceManager(Tidy, store=store) as tidies:
        assert await tidies.call("ada", Tidy.add) == 1
        await tidies.stop("ada")
        assert (tidies.keys(), stops) == ([], ["ada"])
        assert ["what on_stop changed could not be kept" in report["message"] for report in told] == [True]
        assert tidies.stats().superseded == (why == "superseded")
        assert await tidies.call("ada", Tidy.add) == (12 if why == "superseded" else 2)


async def test_a_superseded_call_that_does_not_end_is_left_behind_and_reported():
    class Stays(Agent):
        count: int = 0

        async def stay(self, never: asyncio.Event) -> None:
            while not never.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await never.wait()

        async def add(self) -> int:
            self.count += 1
            return self.count

    told, store, clock, never = reports(), FaultyStore(MemoryStore()), ManualClock(), asyncio.Event()
    async with InstanceManager(Stays, store=store, clock=clock) as manager:
        await manager.call("ada", Stays.add)
        await write_behind(store.inner, 10, Stays)
        gate = store.hold("put")
        add = asyncio.create_task(manager.call("ada", Stays.add))
        await gate.reached()
        stay = asyncio.create_task(manager.call("ada", Stays.stay, never))
        await until(lambda: manager.inspect("ada").running)
        gate.release()
        assert isinstance(await outcome(add), SupersededError)
        later = asyncio.create_task(manager.call("ada", Stays.add))
        await pass_time(clock, later.done)
        assert await later == 12
        assert "a superseded call was left behind" in told[0]["message"]
        never.set()
        assert isinstance(await outcome(stay), SupersededError)


async def test_a_delete_takes_what_another_owner_writes_meanwhile_too():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        await counters.stop("ada")
        gate = store.hold("delete")
        delete = asyncio.create_task(counters.delete("ada"))
        await gate.reached()
        await write_behind(store.inner, 10)
        gate.release()
        assert await outcome(delete) is None
        assert await stored(store.inner) is None


class Watched(Agent):
    """Counts the calls that began when their copy had been dropped."""

    count: int = 0

    async def on_start(self, context) -> None:
        self.context, self.dropped = context, context["manager"].stats().superseded

    async def add(self) -> int:
        self.context["late"] += self.context["manager"].stats().superseded != self.dropped
        self.count += 1
        return self.count

    async def wait(self, event: asyncio.Event) -> None:
        await event.wait()


async def test_a_call_that_gets_its_turn_as_its_copy_is_dropped_begins_on_the_next_one():
    for first, passes in itertools.product(("the turn ends", "the put ends"), range(8)):
        store, event, context = FaultyStore(MemoryStore()), asyncio.Event(), {"late": 0}
        async with InstanceManager(Watched, store=store, context=context) as manager:
            context["manager"] = manager
            await manager.call("ada", Watched.add)
            await write_behind(store.inner, 10, Watched)
            gate = store.hold("put")
            tasks = [asyncio.create_task(manager.call("ada", Watched.add))]
            await gate.reached()
            tasks += [
                asyncio.create_task(manager.call("ada", *what)) for what in ((Watched.wait, event), (Watched.add,))
            ]
            await rest()
            happenings = [event.set, gate.release]
            for happening in happenings if first == "the turn ends" else reversed(happenings):
                happening()
                await rest(passes)
            told = [await outcome(task) for task in tasks]
            assert isinstance(told[0], SupersededError)
            made = not isinstance(told[2], SupersededError)
            assert not made or told[2] == 12
            assert ((await stored(store.inner, Watched)).count, context["late"]) == (11 + made, 0)


@pytest.mark.parametrize("method", [Counter.read, Counter.nothing])
async def test_a_put_that_is_stored_and_not_told_says_nothing_of_what_others_wrote_since(method):
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, shared=True) as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("put", after=True)  # it is stored, and the event loop does not know yet
        write = asyncio.create_task(counters.call("ada", Counter.increment))
        await gate.reached()
        await write_behind(store.inner, 10)  # and acknowledged there, before the next call here begins
        read = asyncio.create_task(counters.call("ada", method))
        await rest()
        gate.release()
        assert [await outcome(write), await outcome(read)] == [2, 12]


async def test_a_put_of_ours_while_the_store_is_asked_who_owns_it_is_no_other_owner():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, shared=True) as counters:
        await counters.get("ada")
        life = counters._registry.servers["ada"]
        gate = store.hold("head", after=True)  # it has seen that there is nothing
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await gate.reached()
        await counters.save("ada")
        gate.release()
        assert await outcome(call) == 1
        assert counters._registry.servers["ada"] is life


class Lasting(Agent):
    count: int = 0

    async def on_start(self, never: asyncio.Event) -> None:
        self.never = never

    async def add(self) -> int:
        self.count += 1
        return self.count

    async def stay(self) -> None:
        while not self.never.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.never.wait()

    async def on_stop(self) -> None:
        await self.stay()


async def test_a_copy_that_was_dropped_and_does_not_end_is_not_called_dirty():
    reports()
    store, clock, never = FaultyStore(MemoryStore()), ManualClock(), asyncio.Event()
    async with InstanceManager(Lasting, store=store, clock=clock, durability=Interval(1), context=never) as manager:
        await manager.call("ada", Lasting.add)
        async with Persistence(store.inner) as other:
            await other.hibernate("ada", Lasting())
        assert manager.stats().dirty == 1
        await pass_time(clock, lambda: manager.stats().superseded)
        seen, one = manager.stats(), manager.inspect("ada")
        never.set()
    assert (seen.live, seen.dirty, seen.dirty_since, seen.loss_window, one.dirty_since) == (1, 0, None, 0, None)


async def test_a_body_that_outlives_its_rollback_is_no_sign_of_another_owner():
    reports()
    store, clock, never = FaultyStore(MemoryStore()), ManualClock(), asyncio.Event()
    async with InstanceManager(Lasting, store=store, clock=clock, store_patience=0, context=never) as manager:
        store.fail("put", down)
        gate = store.hold("put")
        add = asyncio.create_task(manager.call("ada", Lasting.add))
        await gate.reached()
        stay = asyncio.create_task(manager.call("ada", Lasting.stay))
        await until(lambda: manager.inspect("ada").running)
        gate.release()
        await pass_time(clock, add.done)
        never.set()
        assert [type(await outcome(task)) for task in (add, stay)] == [StoreUnavailableError] * 2
        assert await outcome(manager.call("ada", Lasting.add)) == 1
        assert manager.stats().superseded == 0


async def test_deleting_what_was_never_stored_asks_the_store_to_delete_nothing():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.get("ada")
        await counters.delete("ada")
        assert store.calls["delete"] == 0
        assert counters.keys() == []


# ---------------------------------------------------------------- what is tried again, and when


async def test_no_turn_starts_while_a_put_is_tried_again():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=60) as counters:
        await counters.get("ada")
        store.fail("put", down, times=3)
        first = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: store.calls["put"] == 1)
        await rest()
        second = asyncio.create_task(counters.call("ada", Counter.increment))
        await rest()
        assert (counters.inspect("ada").queued, counters.inspect("ada").running) == (1, 0)
        await pass_time(clock, lambda: first.done() and second.done())
        assert [await first, await second] == [1, 2]


async def test_what_is_tried_again_is_the_newest_version():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=60) as counters:
        await counters.get("ada")
        store.fail("put", down)
        gate = store.hold("put")
        calls = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(3)]
        await gate.reached()
        await rest()  # all three turns are over: the put that fails holds the first version only
        gate.release()
        await pass_time(clock, lambda: all(call.done() for call in calls))
        assert [await call for call in calls] == [1, 2, 3]
        assert store.calls["put"] == 2  # the second one covered them all
        assert (await stored(store.inner)).count == 3


async def test_the_pauses_between_tries_grow():
    store, clock, tries = FaultyStore(MemoryStore()), ManualClock(), []

    def refused() -> StoreUnavailableError:
        tries.append(clock.monotonic())
        return down()

    async with InstanceManager(Counter, store=store, clock=clock, store_patience=30) as counters:
        await counters.get("ada")
        store.fail("put", refused, times=math.inf)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, call.done, step=0.01)
        assert isinstance(call.exception(), StoreUnavailableError)
        pauses = [later - sooner for sooner, later in itertools.pairwise(tries)]
        assert pauses[0] < 0.1
        store.heal()
        assert min(pauses[-5:]) > 0.9  # half of the longest, for they are not all the same
        assert max(pauses) < 2.2


async def test_queued_calls_go_on_from_what_is_durable():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=5) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", down, times=math.inf)
        refused = asyncio.create_task(counters.call("ada", Counter.increment, 100))
        await until(lambda: store.calls["put"] == 2)
        await rest()
        queued = asyncio.create_task(counters.call("ada", Counter.nothing))
        await until(lambda: counters.stats().queued == 1)
        await pass_time(clock, refused.done)
        assert isinstance(refused.exception(), StoreUnavailableError)
        assert await outcome(queued) == 1
        store.heal()
        assert await outcome(counters.call("ada", Counter.increment)) == 2


async def test_one_probe_at_a_time_while_the_store_is_down():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=1) as counters:
        await counters.get("ada")
        store.fail("put", down, times=math.inf)
        first = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, first.done)
        assert isinstance(first.exception(), StoreUnavailableError)
        gate = store.hold("put")
        probe = asyncio.create_task(counters.call("ada", Counter.increment))
        await gate.reached()
        tried = store.calls["put"]
        with pytest.raises(StoreUnavailableError, match="not called"):
            await counters.call("ada", Counter.increment)
        assert store.calls["put"] == tried
        gate.release()
        assert isinstance(await outcome(probe), StoreUnavailableError)
        assert await outcome(counters.call("ada", Counter.read)) == 0  # what is durable can be read
        store.heal()
        gate = store.hold("put")
        calls = [asyncio.create_task(counters.call("ada", each)) for each in (Counter.increment, Counter.read)]
        await gate.reached()
        gate.release()
        assert [await outcome(call) for call in calls] == [1, 1]  # it waited for what it saw


async def test_no_read_resolves_an_unknown_outcome():
    """What a reader sees after a failed flush may be the old record, and recovery may then find the new one."""

    class Hides(FaultyStore):
        hidden = None

        async def get(self, key):
            return self.hidden or await super().get(key)

        async def head(self, key):
            return self.hidden.revision if self.hidden else await super().head(key)

    store, clock = Hides(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=60) as counters:
        await counters.call("ada", Counter.increment)
        store.hidden = await store.inner.get("Counter:ada")
        store.fail("put", reset, after=True)  # it landed, and no read shows it
        store.fail("put", reset, times=5)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: store.calls["put"] == 2)
        for _ in range(20):
            await rest()
            clock.advance(0.01)
        assert not call.done()
        store.hidden = None
        await pass_time(clock, call.done, step=0.01)
        assert await call == 2
        assert (await stored(store.inner)).count == 2


async def test_the_adopted_revision_is_put_on_top():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=60) as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("put")
        store.fail("put", reset, after=True)
        first = asyncio.create_task(counters.call("ada", Counter.increment))
        await gate.reached()
        second = asyncio.create_task(counters.call("ada", Counter.increment))  # not in the put that landed
        await rest()
        gate.release()
        await pass_time(clock, lambda: first.done() and second.done())
        assert [await first, await second] == [2, 3]
        assert (await stored(store.inner)).count == 3
        assert store.calls["put"] == 4  # the first, the one that landed, the conflict, and the one on top


# ---------------------------------------------------------------- what a lost copy leaves


async def test_what_a_lost_copys_call_returns_is_discarded_and_the_next_life_waits_for_its_end():
    class Stays(Agent):
        count: int = 0

        async def on_start(self, log: list[str]) -> None:
            log.append("alive")

        async def add(self) -> int:
            self.count += 1
            return self.count

        async def stay(self, event: asyncio.Event) -> str:
            self.count += 100
            try:
                await event.wait()
            except asyncio.CancelledError:
                await event.wait()
            return "ended all the same"

    store, log, event = FaultyStore(MemoryStore()), [], asyncio.Event()
    async with InstanceManager(Stays, store=store, context=log) as manager:
        await manager.call("ada", Stays.add)
        await write_behind(store.inner, 10, Stays)
        gate = store.hold("put")
        add = asyncio.create_task(manager.call("ada", Stays.add))
        await gate.reached()
        stay = asyncio.create_task(manager.call("ada", Stays.stay, event))
        await until(lambda: manager.inspect("ada").running)
        gate.release()
        assert isinstance(await outcome(add), SupersededError)
        later = asyncio.create_task(manager.call("ada", Stays.add))
        await rest()
        assert (log, later.done(), stay.done()) == (["alive"], False, False)  # no thaw while its body runs
        event.set()
        assert isinstance(await outcome(stay), SupersededError)
        assert await outcome(later) == 12
        assert log == ["alive", "alive"]


async def test_delete_waits_for_the_put_and_releases_what_it_covered():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("put")
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await gate.reached()
        delete = asyncio.create_task(counters.delete("ada"))
        await rest()
        assert store.calls["delete"] == 0
        gate.release()
        assert await outcome(call) == 2
        assert await outcome(delete) is None
        assert await stored(store.inner) is None


async def test_a_delete_that_happened_is_never_called_undone_when_the_store_then_goes_down():
    class Renamed(Counter, name="renamed", aliases=("former",)):
        pass

    store = FaultyStore(MemoryStore())
    async with InstanceManager(Renamed, store=store, durability="hibernate") as counters:
        for is_stored in (True, False):
            await counters.call("ada", Counter.increment)
            if is_stored:
                await counters.save("ada")
            store.fail("head", down)  # it looks whether anything is left, under the former name too
            with pytest.raises(OutcomeUnknownError, match="delete it again"):
                await counters.delete("ada")
            assert not await stored(store, Renamed)
            await counters.delete("ada")
        store.fail("head", down)
        with pytest.raises(StoreUnavailableError):
            await counters.delete("ada")  # it was not there: nothing happened


async def test_a_delete_takes_nothing_that_another_owner_made_after_it():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("delete", after=True)
        delete = asyncio.create_task(counters.delete("ada"))
        await gate.reached()
        async with Persistence(store.inner) as other:
            await other.hibernate("ada", Counter(count=7))
        gate.release()
        assert await outcome(delete) is None
        assert await outcome(counters.call("ada", Counter.read)) == 7


async def test_a_save_while_it_is_deleted_does_not_put_it_back():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, durability="hibernate") as counters:
        await counters.call("ada", Counter.increment)
        await counters.save("ada")
        await counters.call("ada", Counter.increment)
        gate = store.hold("delete")
        delete = asyncio.create_task(counters.delete("ada"))
        await gate.reached()
        save = asyncio.create_task(counters.save("ada"))
        await rest()
        gate.release()
        assert await outcome(delete) is None
        assert isinstance(await outcome(save), AgentDeletedError)
        assert store.calls["put"] == 1
        assert await stored(store.inner) is None


async def test_a_save_while_a_put_is_tried_again_waits_for_that_and_puts_nothing_itself():
    reports()
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, durability="hibernate", clock=clock) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", StoreUnavailableError("disk full"))
        saves = [asyncio.create_task(counters.save("ada"))]
        await rest()
        assert store.calls["put"] == 1
        await counters.call("ada", Counter.increment)
        saves.append(asyncio.create_task(counters.save("ada")))
        await rest()
        assert store.calls["put"] == 1
        await pass_time(clock, lambda: all(save.done() for save in saves))
        assert [await outcome(save) for save in saves] == [None, None]
        assert store.calls["put"] == 2
        assert (await stored(store.inner)).count == 2


@pytest.mark.parametrize("how", ["down", "superseded"])
async def test_a_shared_call_behind_a_put_that_fails_was_not_made_or_goes_to_the_next_life(how):
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, shared=True, clock=clock, store_patience=3) as counters:
        await counters.call("ada", Counter.increment)
        if how == "down":
            store.fail("put", down, times=math.inf)
        gate = store.hold("put")
        write = asyncio.create_task(counters.call("ada", Counter.increment))
        await gate.reached()
        read = asyncio.create_task(counters.call("ada", Counter.read))
        await rest()
        if how == "superseded":
            await write_behind(store.inner, 10)
        gate.release()
        await pass_time(clock, lambda: write.done() and read.done())
        if how == "down":
            assert [type(await outcome(call)) for call in (write, read)] == [StoreUnavailableError, int]
            assert await outcome(read) == 1  # the change was rolled back
        else:
            assert [type(await outcome(write)), await outcome(read)] == [SupersededError, 11]
        store.heal()


async def test_who_waits_for_its_turn_when_patience_ends_is_told_too():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=3) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", lambda: OutcomeUnknownError("lost"), times=math.inf)
        first = asyncio.create_task(counters.call("ada", Counter.increment))
        await rest()
        waiting = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(3)]
        await rest()
        late = clock.monotonic() + 4
        await pass_time(clock, lambda: clock.monotonic() > late)
        assert isinstance(await outcome(first), OutcomeUnknownError)
        assert [type(await outcome(call)) for call in waiting] == [StoreUnavailableError] * 3
        store.heal()
        await pass_time(clock, lambda: not counters.stats().dirty)
        assert (await stored(store.inner)).count == 2


# ---------------------------------------------------------------- what was committed on the way


class Steps(Agent):
    """Commits in the middle of a call, and may be held up behind that, or as it cleans up."""

    count: int = 0

    async def add(self, behind: asyncio.Event, cleaning: asyncio.Event | None = None) -> int:
        self.count += 1
        try:
            await commit()
            await behind.wait()
        finally:
            if cleaning is not None:
                await cleaning.wait()
        self.count += 100
        return self.count

    async def increment(self) -> int:
        self.count += 1
        return self.count

    async def wait(self, event: asyncio.Event, began: list[None]) -> int:
        began.append(None)
        await event.wait()
        self.count += 100
        return self.count


async def test_a_call_that_committed_and_was_then_overtaken_is_not_run_again():
    store, go_on = MemoryStore(), asyncio.Event()
    async with InstanceManager(Steps, store=store, superseded="retry") as manager:
        call = asyncio.create_task(manager.call("ada", Steps.add, go_on))
        await rest()
        await write_behind(store, by=1000, cls=Steps)
        go_on.set()
        with pytest.raises(SupersededError, match=r"after its last commit\(\).*Read the agent"):
            await asyncio.wait_for(call, 5)
        assert (await stored(store, Steps)).count == 1001


class Impatient(Agent):
    """Does not wait for its commit for long, or goes on when it has no known outcome."""

    count: int = 0

    async def add(self, runs: list[None], behind: asyncio.Event) -> int:
        runs.append(None)
        self.count += 1
        with contextlib.suppress(TimeoutError, OutcomeUnknownError):
            async with asyncio.timeout(0):
                await commit()
        await behind.wait()
        self.count += 100
        return self.count

    async def items(self, behind: asyncio.Event):
        self.count += 1
        yield self.count
        await behind.wait()
        self.count += 100


async def test_a_call_whose_commit_landed_when_nobody_waited_for_it_is_not_run_again():
    store, go_on, runs = FaultyStore(MemoryStore()), asyncio.Event(), []
    async with InstanceManager(Impatient, store=store, superseded="retry") as manager:
        gate = store.hold("put")
        call = asyncio.create_task(manager.call("ada", Impatient.add, runs, go_on))
        await gate.reached()
        await rest()
        gate.release()
        await until(lambda: not manager.stats().dirty)
        await write_behind(store.inner, by=1000, cls=Impatient)
        go_on.set()
        assert isinstance(await outcome(call), SupersededError)
        assert len(runs) == 1
        assert (await stored(store.inner, Impatient)).count == 1001


async def test_a_call_whose_commit_may_have_landed_is_not_run_again_for_what_it_changed_later():
    store, clock, go_on, runs = FaultyStore(MemoryStore()), ManualClock(), asyncio.Event(), []
    async with InstanceManager(Impatient, store=store, clock=clock, superseded="retry") as manager:
        store.fail("put", lambda: OutcomeUnknownError("no answer"), after=True)
        call = asyncio.create_task(manager.call("ada", Impatient.add, runs, go_on))
        await rest()
        await write_behind(store.inner, by=1000, cls=Impatient)
        go_on.set()
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), OutcomeUnknownError)
        assert len(runs) == 1
        assert (await stored(store.inner, Impatient)).count == 1001


async def test_a_stream_that_is_overtaken_is_not_told_to_repeat_what_its_items_saw():
    store, go_on = MemoryStore(), asyncio.Event()
    async with InstanceManager(Impatient, store=store) as manager:
        items = manager.call("ada", Impatient.items, go_on)
        assert await anext(items) == 1
        await write_behind(store, by=1000, cls=Impatient)
        go_on.set()
        with pytest.raises(SupersededError, match="Read the agent"):
            await asyncio.wait_for(anext(items), 5)


async def test_a_call_that_was_cancelled_and_is_then_overtaken_is_not_run_again():
    store, began, never = FaultyStore(MemoryStore()), [], asyncio.Event()
    async with InstanceManager(Steps, store=store, superseded="retry") as manager:
        await manager.call("ada", Steps.increment)
        gate = store.hold("put")
        first = asyncio.create_task(manager.call("ada", Steps.increment))
        await gate.reached()
        second = asyncio.create_task(manager.call("ada", Steps.wait, never, began))
        await rest()
        assert manager.cancel("ada")
        await write_behind(store.inner, by=1000, cls=Steps)
        store.heal()
        assert await outcome(first) == 1002  # nobody cancelled this one
        assert isinstance(await outcome(second), SupersededError)
        assert len(began) == 1


@pytest.mark.parametrize("policy", ["raise", "retry"])
async def test_a_commit_that_may_be_stored_is_never_called_not_stored_however_its_call_ends(policy):
    store, clock, cleaning = FaultyStore(MemoryStore()), ManualClock(), asyncio.Event()
    async with InstanceManager(Steps, store=store, clock=clock, superseded=policy) as manager:
        await manager.call("ada", Steps.increment)
        store.fail("put", reset, after=True)  # it landed, and nobody knows
        call = asyncio.create_task(manager.call("ada", Steps.add, asyncio.Event(), cleaning))
        await rest()
        assert manager.cancel("ada")
        await write_behind(store.inner, by=1000, cls=Steps)
        await pass_time(clock, lambda: manager.inspect("ada").state == "freezing")
        cleaning.set()
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), OutcomeUnknownError)
        assert (await stored(store.inner, Steps)).count == 1002


@pytest.mark.parametrize("durability", [Interval(5), "hibernate"])
async def test_a_commit_that_fails_and_whose_change_stays_is_not_called_undone(durability):
    store, clock, go_on = FaultyStore(MemoryStore()), ManualClock(), asyncio.Event()
    go_on.set()
    async with InstanceManager(Steps, store=store, clock=clock, store_patience=1, durability=durability) as manager:
        store.fail("put", down, times=6)
        call = asyncio.create_task(manager.call("ada", Steps.add, go_on))
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), OutcomeUnknownError)
        assert "stays" in str(call.exception())
        await pass_time(clock, lambda: not manager.stats().dirty)
        assert (await stored(store.inner, Steps)).count == 1


class Teller(Agent):
    count: int = 0

    async def order(self, counters) -> int:
        self.count += 1
        counters.tell("kitchen", Counter.increment)
        return self.count


async def test_what_a_call_told_others_leaves_when_its_change_is_stored_at_last():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with (
        InstanceManager(Counter) as counters,
        InstanceManager(Teller, store=store, clock=clock, store_patience=1) as tellers,
    ):
        store.fail("put", reset, times=8)
        call = asyncio.create_task(tellers.call("ada", Teller.order, counters))
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), OutcomeUnknownError)
        assert counters.keys() == []
        await pass_time(clock, lambda: not tellers.stats().dirty)
        await until(counters.keys)
        assert await outcome(counters.call("kitchen", Counter.read)) == 1


async def test_what_a_call_told_others_is_dropped_when_somebody_else_wrote_instead():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with (
        InstanceManager(Counter) as counters,
        InstanceManager(Teller, store=store, clock=clock, store_patience=1) as tellers,
    ):
        await tellers.call("ada", Teller.order, counters)
        store.fail("put", reset, times=8)
        call = asyncio.create_task(tellers.call("ada", Teller.order, counters))
        await pass_time(clock, call.done)
        await write_behind(store.inner, by=10, cls=Teller)
        await pass_time(clock, lambda: tellers.stats().superseded)
        assert await outcome(counters.call("kitchen", Counter.read)) == 1


# ---------------------------------------------------------------- deletes and the end


@pytest.mark.parametrize("live", [True, False])
async def test_a_delete_that_closing_ends_is_unknown_once_the_store_was_asked(live):
    store = FaultyStore(MemoryStore())
    manager = InstanceManager(Counter, store=store)
    await manager.open()
    await manager.call("ada", Counter.increment)
    if not live:
        await manager.stop("ada")
    gate = store.hold("delete", after=True)
    delete = asyncio.create_task(manager.delete("ada"))
    await gate.reached()
    with pytest.raises(CloseError) as closed:
        await manager.close(0.1)
    assert (closed.value.unknown, closed.value.not_stored, closed.value.abandoned) == (("ada",), (), ())
    assert isinstance(await outcome(delete), OutcomeUnknownError)
    assert await stored(store.inner) is None


class SlowToStop(Counter, name="slow.to.stop"):
    """Takes its time to stop, whoever cancels it."""

    async def on_start(self, gate: asyncio.Event) -> None:
        self.gate = gate

    async def on_stop(self) -> None:
        while not self.gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.gate.wait()


@pytest.mark.parametrize("dirty", [False, True])
async def test_a_delete_that_the_store_has_done_is_unknown_too_if_closing_ends_what_follows(dirty):
    store, gate, clock = FaultyStore(MemoryStore()), asyncio.Event(), ManualClock()
    manager = InstanceManager(SlowToStop, store=store, context=gate, durability="hibernate", clock=clock)
    await manager.open()
    await manager.call("ada", Counter.increment)
    await manager.save("ada")
    if dirty:
        await manager.call("ada", Counter.increment)
    delete = asyncio.create_task(manager.delete("ada"))
    while await store.inner.count():
        await asyncio.sleep(0)
    reports()
    close = asyncio.create_task(manager.close(0.1))
    await pass_time(clock, close.done, step=0.01)
    error = close.exception()
    assert isinstance(error, CloseError)
    assert (error.unknown, error.not_stored, error.abandoned) == (("ada",), (), ())
    assert isinstance(await outcome(delete), OutcomeUnknownError)
    gate.set()
    await rest()
