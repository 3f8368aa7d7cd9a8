"""Coming alive and leaving when something goes wrong on the way: a key is never stuck, and never forgotten."""

from __future__ import annotations

import asyncio
import contextvars
import math
from typing import ClassVar

import msgspec
import pytest
from agents import Counter, Order, Recorder
from waiting import outcome, pass_time, reports, rest, stored

from overwinter import Agent, InstanceManager, MemoryStore
from overwinter.errors import (
    AgentNotFoundError,
    AgentStateError,
    CorruptRecordError,
    MissingInitialError,
    ReentrantCallError,
    StoreUnavailableError,
    ThawError,
)
from overwinter.runtime._lifecycle import Event, State, after
from overwinter.testing import FaultyStore, ManualClock, until


def down() -> StoreUnavailableError:
    return StoreUnavailableError("down")


# ---------------------------------------------------------------- coming alive


async def test_those_who_asked_alike_for_an_agent_share_its_failure_and_others_do_not():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        gate = store.hold("get")
        strict = asyncio.create_task(counters.get("ada", missing="raise"))
        others = [asyncio.create_task(counters.get("ada")) for _ in range(2)]
        await gate.reached()
        gate.release()
        assert isinstance(await outcome(strict), AgentNotFoundError)
        assert [await outcome(other) for other in others] == [counters.lookup("ada")] * 2
        assert store.calls["get"] == 2
        store.fail("get", down)
        gate = store.hold("get", after=True)
        alike = [asyncio.create_task(counters.get("bob")) for _ in range(3)]
        await rest()
        gate.release()
        errors = [await outcome(each) for each in alike]
        assert all(isinstance(error, ThawError) for error in errors)
        assert len(set(map(id, errors))) == 3
        assert store.calls["get"] == 3


async def test_whoever_asks_while_an_agent_leaves_gets_its_next_life():
    class Slow(Agent):
        async def on_start(self, event: asyncio.Event) -> None:
            self.event = event

        async def wait(self) -> None:
            await self.event.wait()

        async def items(self):
            yield "item"

        async def on_stop(self) -> None:
            await self.event.wait()

    event = asyncio.Event()
    async with InstanceManager(Slow, context=event) as manager:
        await manager.get("a")
        stop = asyncio.create_task(manager.stop("a"))
        await until(lambda: manager.inspect("a").state == "freezing")
        get = asyncio.create_task(manager.get("a"))
        await rest()
        assert not get.done()
        event.set()
        assert await outcome(get) == manager.lookup("a")
        assert manager.inspect("a").state == "live"
        await stop
        event.clear()
        wait = asyncio.create_task(manager.call("a", Slow.wait))
        await until(lambda: manager.inspect("a").running)
        stop = asyncio.create_task(manager.stop("a"))
        await rest()
        first = asyncio.ensure_future(anext(manager.call("a", Slow.items)))  # behind the stop
        await rest()
        event.set()
        assert await outcome(first) == "item"
        assert [await outcome(task) for task in (wait, stop)] == [None, None]


@pytest.mark.parametrize("durability", ["call", "hibernate"])
async def test_initial_of_a_key_that_is_stored_is_never_looked_at(durability):
    async with InstanceManager(Order, store=MemoryStore(), durability=durability) as orders:
        await orders.get("1", initial={"order_id": "1"})
        await orders.stop("1")
        await orders.get("1", initial={"order_id": "other", "x": 1})  # not even checked
        await orders.stop("1")
        await orders.get("1", initial={"order_id": "other"})
        assert (await orders.state("1")).order_id == "1"
        assert (orders.stats().created, orders.stats().superseded) == (1, 0)


async def test_a_good_initial_is_not_refused_for_the_bad_one_of_another_caller():
    async with InstanceManager(Order, store=MemoryStore()) as orders:
        bad, good = await asyncio.gather(
            orders.get("1", initial={"x": 1}), orders.get("1", initial={"order_id": "1"}), return_exceptions=True
        )
        assert isinstance(bad, MissingInitialError)
        assert good.key == "1"
        assert (await orders.state("1")).order_id == "1"


async def test_an_on_start_that_awaits_a_cancelled_task_is_a_thaw_error_and_cancels_nobody():
    class Careless(Agent):
        async def on_start(self) -> None:
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            await task

        async def ping(self) -> None: ...

    async with InstanceManager(Careless, store=MemoryStore()) as manager:
        error = await outcome(manager.call("a", Careless.ping))
        assert isinstance(error, ThawError)
        assert isinstance(error.__cause__, asyncio.CancelledError)


async def test_agents_come_alive_in_the_context_of_open_whoever_calls_first():
    user = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    class Listening(Agent):
        async def on_start(self) -> None:
            seen.append(user.get())

        async def ping(self) -> None: ...

    user.set("operator")
    async with InstanceManager(Listening, store=MemoryStore()) as manager:
        user.set("alice")
        await manager.call("a", Listening.ping)
    assert seen == ["operator"]


# ---------------------------------------------------------------- waiting for oneself


class Knower(Agent):
    """Knows its manager, and does with it what it had better not."""

    async def on_start(self, context) -> None:
        self.manager = context["manager"]
        if self.key == "calls back":
            await self.manager.call("a", Knower.ping)

    async def ping(self) -> str:
        return "pong"

    async def do(self, what: str, key: str) -> None:
        if what == "attach":
            async with self.manager.attach(key):
                pass
        else:
            await getattr(self.manager, what)(key)

    async def do_then(self, go: asyncio.Event, what: str, key: str) -> None:
        await go.wait()
        await self.do(what, key)

    async def give_up(self, what: str, key: str, given_up: asyncio.Event, go: asyncio.Event) -> None:
        asking = asyncio.create_task(self.do(what, key))
        await rest()
        asking.cancel()
        await asyncio.wait([asking])
        given_up.set()
        await go.wait()

    async def ping_then(self, go: asyncio.Event, key: str) -> str:
        await go.wait()
        return await self.manager.call(key, Knower.ping)


async def knowers(store=None) -> InstanceManager[Knower]:
    context: dict[str, InstanceManager[Knower]] = {}
    context["manager"] = InstanceManager(Knower, store=store or MemoryStore(), context=context)
    await context["manager"].open()
    return context["manager"]


@pytest.mark.parametrize("what", ["stop", "delete"])
async def test_an_agent_that_ends_itself_in_its_own_turn_is_told_that_it_would_wait_for_itself(what):
    manager = await knowers()
    assert isinstance(await outcome(manager.call("a", Knower.do, what, "a")), ReentrantCallError)
    assert await outcome(manager.call("a", Knower.ping)) == "pong"
    assert await outcome(manager.close()) is None


@pytest.mark.parametrize("what", ["stop", "delete"])
async def test_a_turn_that_ends_an_agent_which_waits_for_it_is_told_and_so_is_who_comes_to_wait_for_such_a_turn(what):
    manager, ends, calls = await knowers(), asyncio.Event(), asyncio.Event()
    for first, second in ((calls, ends), (ends, calls)):
        end = asyncio.create_task(manager.call("a", Knower.do_then, ends, what, "b"))
        call = asyncio.create_task(manager.call("b", Knower.ping_then, calls, "a"))
        await until(lambda: manager.inspect("a").running == manager.inspect("b").running == 1)
        first.set()
        await rest()
        assert not end.done()
        assert not call.done()
        second.set()
        last, other = (end, call) if second is ends else (call, end)
        assert isinstance(await outcome(last), ReentrantCallError)
        assert await outcome(other) == (None if other is end else "pong")
        ends.clear()
        calls.clear()
    assert await outcome(manager.close()) is None


@pytest.mark.parametrize("what", ["stop", "delete"])
async def test_a_turn_that_gave_up_ending_an_agent_does_not_wait_for_it_though_that_goes_on(what):
    manager = await knowers()
    calls, given_up, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
    call = asyncio.create_task(manager.call("b", Knower.ping_then, calls, "a"))
    await until(lambda: manager.inspect("b").running)
    end = asyncio.create_task(manager.call("a", Knower.give_up, what, "b", given_up, go))
    await given_up.wait()
    await rest()
    assert manager.inspect("b").queued == 1
    calls.set()
    await rest()
    assert not call.done()  # it waits for a, which waits for nobody
    go.set()
    assert [await outcome(end), await outcome(call)] == [None, "pong"]
    await until(lambda: manager.keys() == ["a"])
    assert await outcome(manager.close()) is None


async def test_a_turn_whose_delete_of_an_agent_has_failed_does_not_wait_for_it():
    store = FaultyStore(MemoryStore())
    manager, go = await knowers(store), asyncio.Event()
    await manager.get("b")
    await manager.save("b")
    store.fail("delete", down)
    gate = store.hold("delete")
    end = asyncio.create_task(manager.call("a", Knower.do, "delete", "b"))
    await gate.reached()
    go.set()
    call = asyncio.create_task(manager.call("b", Knower.ping_then, go, "a"))  # it runs before a hears of the failure
    await until(lambda: manager.inspect("b").queued)
    gate.release()
    assert isinstance(await outcome(end), StoreUnavailableError)
    assert await outcome(call) == "pong"
    assert await outcome(manager.close()) is None


@pytest.mark.parametrize("what", ["get", "attach"])
async def test_a_thaw_inside_a_turn_that_calls_back_into_that_turn_is_an_error_not_a_deadlock(what):
    manager = await knowers()
    error = await outcome(manager.call("a", Knower.do, what, "calls back"))
    assert isinstance(error, ThawError)
    assert isinstance(error.__cause__, ReentrantCallError)
    assert await outcome(manager.call("a", Knower.ping)) == "pong"
    assert manager.stats().attached == 0
    assert await outcome(manager.close()) is None


class TornError(CorruptRecordError):
    """A store's own error, which is not made of its text."""

    def __init__(self, key: str, at: int) -> None:
        super().__init__(f"{key!r} is torn at {at}")
        self.at = at


async def test_an_error_of_a_stores_own_reaches_everybody_who_waits():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        gate = store.hold("get", after=True)
        store.fail("get", lambda: TornError("ada", 7))
        waiting = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(2)]
        waiting += [asyncio.create_task(counters.get("ada"))]
        await rest()
        gate.release()
        for task in waiting:
            error = await outcome(task)
            assert isinstance(error, TornError)
            assert (str(error), error.at) == ("'ada' is torn at 7", 7)
        assert len({id(task.exception()) for task in waiting}) == 3


# ---------------------------------------------------------------- an end that fails


class Tidy(Agent):
    """Changes itself once more when it ends."""

    n: int = 0

    async def add(self) -> int:
        self.n += 1
        return self.n

    async def on_stop(self) -> None:
        self.n += 100


class Untidy(Agent):
    n: int = 0

    async def on_stop(self) -> None:
        self.n = "no number"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_save_beside_the_end_of_a_life_is_told_what_became_of_it(fails):
    seen, store = reports(), FaultyStore(MemoryStore())
    async with InstanceManager(Untidy, store=store) as manager:
        await manager.get("a")
        gate = store.hold("put")
        if fails:
            store.fail("put", down)
        stop, save = asyncio.create_task(manager.stop("a")), asyncio.create_task(manager.save("a"))
        assert await outcome(stop) is None
        gate.release()
        assert isinstance(await outcome(save), StoreUnavailableError if fails else type(None))
    assert [type(report["exception"]) for report in seen] == [AgentStateError]


class Due(msgspec.Struct):
    """What can be refused later, though it was taken before."""

    refused: ClassVar[bool] = False
    at: int = 0

    def __post_init__(self) -> None:
        if self.refused:
            raise ValueError("it is too late")


class Reminder(Tidy):
    due: Due = Due()


async def test_an_agent_that_can_not_be_made_anew_when_its_stop_failed_is_tried_again(monkeypatch):
    seen = reports()
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Reminder, store=store, clock=clock, store_patience=5) as manager:
        await manager.call("a", Reminder.add)
        gate = store.hold("put")
        store.fail("put", down, times=math.inf)
        stop = asyncio.create_task(manager.stop("a"))
        await gate.reached()
        monkeypatch.setattr(Due, "refused", True)
        gate.release()
        await pass_time(clock, stop.done)
        assert isinstance(stop.exception(), StoreUnavailableError)
        assert any(isinstance(report["exception"].__cause__, ValueError) for report in seen)
        assert isinstance(await outcome(manager.call("a", Reminder.add)), ThawError)
        monkeypatch.setattr(Due, "refused", False)
        store.heal()
        await pass_time(clock, lambda: not manager.stats().dirty)
        assert await outcome(manager.call("a", Reminder.add)) == 2


async def test_a_stop_whose_last_put_fails_says_so_and_the_agent_lives_on():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Tidy, store=store, clock=clock, store_patience=5) as manager:
        await manager.call("a", Tidy.add)
        store.fail("put", down, times=math.inf)
        stop = asyncio.create_task(manager.stop("a"))
        await pass_time(clock, stop.done)
        assert isinstance(stop.exception(), StoreUnavailableError)
        assert manager.lookup("a") is not None
        store.heal()
        assert await outcome(manager.call("a", Tidy.add)) == 2  # what on_stop changed was undone
        await manager.stop("a")
        assert (await stored(store.inner, Tidy, "a")).n == 102


async def test_one_that_can_not_come_back_after_a_failed_end_is_tried_again_by_the_next_call():
    class Fragile(Tidy, name="fragile"):
        async def on_start(self, broken: list[str]) -> None:
            if broken:
                raise LookupError(broken[0])

    told, broken, store, clock = reports(), [], FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Fragile, store=store, context=broken, clock=clock, store_patience=5) as manager:
        await manager.call("a", Fragile.add)
        store.fail("put", down, times=math.inf)
        broken.append("not now")
        stop = asyncio.create_task(manager.stop("a"))
        await pass_time(clock, stop.done)
        assert isinstance(stop.exception(), StoreUnavailableError)
        assert any("could not come back to life" in report["message"] for report in told)
        store.heal()
        with pytest.raises(ThawError, match="on_start raised LookupError"):
            await manager.call("a", Fragile.add)
        broken.clear()
        assert await manager.call("a", Fragile.add) == 2


async def test_what_on_stop_changed_and_could_not_be_stored_is_kept_where_it_was_acknowledged():
    class Parting(Tidy, name="parting"):
        async def on_start(self, store: FaultyStore) -> None:
            self.store = store

        async def on_stop(self) -> None:
            self.n += 100
            self.store.fail("put", down, times=math.inf)  # after what it was before is stored

    reports()
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    options = {"durability": "hibernate", "clock": clock, "store_patience": 5}
    async with InstanceManager(Parting, store=store, context=store, **options) as manager:
        await manager.call("a", Parting.add)
        stop = asyncio.create_task(manager.stop("a"))
        await pass_time(clock, stop.done)
        assert isinstance(stop.exception(), StoreUnavailableError)
        assert (await stored(store.inner, Parting, "a")).n == 1
        assert manager.stats().dirty == 1
        reads = store.calls["get"]
        assert await outcome(manager.call("a", Parting.add)) == 102  # from its bytes, not from the store
        assert store.calls["get"] == reads
        store.heal()
        await pass_time(clock, lambda: not manager.stats().dirty)
        assert (await stored(store.inner, Parting, "a")).n == 102
        store.fail = lambda *_, **__: None


async def test_a_call_that_waits_for_an_end_which_fails_runs_in_the_life_that_goes_on():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Tidy, store=store, clock=clock, store_patience=5) as manager:
        await manager.call("a", Tidy.add)
        store.fail("put", down, times=math.inf)
        stop = asyncio.create_task(manager.stop("a"))
        await until(lambda: manager.inspect("a").state == "freezing")
        call = asyncio.create_task(manager.call("a", Tidy.add))
        await rest()
        assert not call.done()
        await pass_time(clock, lambda: manager.inspect("a").state == "live")
        store.heal()
        assert await outcome(call) == 2
        assert isinstance(await outcome(stop), StoreUnavailableError)


class Custom(Agent):
    """Its dump and load fail as long as *trouble* names them."""

    n: int = 0

    async def add(self) -> int:
        self.n += 1
        return self.n

    async def fail(self) -> None:
        self.n += 1
        raise ValueError("as asked")

    def dump(self):
        if "dump" in trouble:
            raise KeyError("dump")
        return {"n": self.n}

    @classmethod
    def load(cls, data, version):
        if "load" in trouble:
            raise KeyError("load")
        return cls(n=data["n"])


trouble: set[str] = set()


@pytest.fixture(autouse=True)
def no_trouble():
    yield
    trouble.clear()


async def test_a_dump_that_raises_once_while_it_hibernates_does_not_lock_the_agent():
    seen, clock = reports(), ManualClock()
    async with InstanceManager(Custom, store=MemoryStore(), idle_timeout=5, clock=clock) as manager:
        await manager.call("a", Custom.add)
        trouble.add("dump")
        clock.advance(5)
        await until(lambda: seen)
        trouble.clear()
        assert await outcome(manager.call("a", Custom.add)) == 2
        await pass_time(clock, lambda: manager.lookup("a") is None)


async def test_a_rollback_that_fails_does_not_leave_half_a_change_behind():
    reports()
    async with InstanceManager(Custom, store=MemoryStore()) as manager:
        await manager.call("a", Custom.add)
        trouble.add("load")
        assert isinstance(await outcome(manager.call("a", Custom.fail)), ValueError)
        trouble.clear()
        assert await outcome(manager.call("a", Custom.add)) == 2


# ---------------------------------------------------------------- idle, in spite of everything


async def test_an_agent_whose_idle_timeout_came_in_an_outage_hibernates_after_it():
    reports()
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, idle_timeout=5, store_patience=20) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", down, times=math.inf)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), StoreUnavailableError)
        store.heal()
        await pass_time(clock, lambda: counters.lookup("ada") is None)
        assert (await stored(store.inner)).count == 1


@pytest.mark.parametrize("method", [Counter.nothing, Counter.read])
async def test_a_call_that_changes_nothing_restarts_the_idle_clock(method):
    clock = ManualClock()
    async with InstanceManager(Counter, store=MemoryStore(), idle_timeout=60, clock=clock) as counters:
        await counters.get("ada")
        clock.advance(59)
        await counters.call("ada", method)  # nothing is stored, so the call alone counts
        clock.advance(59)
        await rest()  # it would leave in a task
        assert counters.keys() == ["ada"]
        clock.advance(1)
        await until(lambda: counters.keys() == [])


async def test_an_agent_whose_last_caller_left_as_it_got_its_turn_hibernates():
    clock, event = ManualClock(), asyncio.Event()
    async with InstanceManager(Counter, store=MemoryStore(), clock=clock, idle_timeout=5) as counters:
        first = asyncio.create_task(counters.call("ada", Counter.wait, event))
        await until(lambda: counters.inspect("ada").running)
        second = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: counters.stats().queued == 1)
        clock.advance(6)  # the idle timer finds it busy
        await rest()
        event.set()
        asyncio.get_running_loop().call_soon(second.cancel)  # when the first has left, and the second not begun
        assert await outcome(first) == 0
        assert isinstance(await outcome(second), asyncio.CancelledError)
        await pass_time(clock, lambda: counters.lookup("ada") is None)
        assert await counters.call("ada", Counter.read) == 0


async def test_an_agent_whose_deletion_failed_hibernates():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, idle_timeout=5) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("delete", down)
        gate = store.hold("delete")
        delete = asyncio.create_task(counters.delete("ada"))
        await gate.reached()
        clock.advance(6)  # the idle timer finds it busy
        await rest()
        gate.release()
        assert isinstance(await outcome(delete), StoreUnavailableError)
        await pass_time(clock, lambda: counters.lookup("ada") is None)
        assert await outcome(counters.call("ada", Counter.read)) == 1


# ---------------------------------------------------------------- ended twice


async def test_a_delete_waits_for_another_of_the_same_key():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        await counters.stop("ada")
        gate = store.hold("delete")
        deletes = [asyncio.create_task(counters.delete("ada")) for _ in range(2)]
        await gate.reached()
        await rest()
        assert (gate.waiting, [delete.done() for delete in deletes]) == (1, [False, False])
        gate.release()
        assert [await outcome(delete) for delete in deletes] == [None, None]
        assert (store.calls["delete"], await stored(store.inner)) == (1, None)


async def test_a_call_that_comes_while_a_key_that_nobody_has_alive_is_deleted_begins_after_that():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        await counters.stop("ada")
        gate = store.hold("delete")
        delete = asyncio.create_task(counters.delete("ada"))
        await gate.reached()
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await rest()  # if it were acknowledged by now, the same delete would take it
        gate.release()
        assert await outcome(delete) is None
        assert await outcome(call) == 1
        assert (await stored(store.inner)).count == 1


class Lingering(Counter, name="lingering"):
    async def on_start(self, gate: asyncio.Event) -> None:
        self.gate = gate

    async def on_stop(self) -> None:
        await self.gate.wait()


@pytest.mark.parametrize("durability", ["call", "hibernate"])
async def test_a_delete_leaves_alone_what_begins_after_it(durability):
    store, stopped = FaultyStore(MemoryStore()), asyncio.Event()
    async with InstanceManager(Lingering, store=store, durability=durability, context=stopped) as counters:
        await counters.call("ada", Counter.increment, 5)
        delete = asyncio.create_task(counters.delete("ada"))
        await rest()
        call = asyncio.create_task(counters.call("ada", Counter.increment))  # finds one that is being deleted
        await rest()
        assert not call.done()
        if (
            durability == "hibernate"
        ):  # there was no record: what may be stored is looked for before the next life begins
            gate = store.hold("head")
            stopped.set()
            await gate.reached()
            await rest()
            assert (counters.stats().created, call.done()) == (1, False)
            gate.release()
        stopped.set()
        assert await outcome(delete) is None
        assert await outcome(call) == 1
        assert await outcome(counters.call("ada", Counter.read)) == 1


async def test_where_nobody_lives_or_nothing_is_stored_there_is_nothing_to_end_or_keep():
    async with InstanceManager(Counter) as counters:
        for verb in (counters.save, counters.stop, counters.delete):
            await verb("nobody")
        await counters.get("ada")
        await counters.save("ada")
        assert await counters.call("ada", Counter.increment) == 1
        await counters.save("ada")
        await counters.delete("ada")
        assert counters.keys() == []


async def test_two_deletes_and_a_stop_at_once_all_succeed():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("delete")
        first = asyncio.create_task(counters.delete("ada"))
        await gate.reached()
        others = [asyncio.create_task(counters.delete("ada")), asyncio.create_task(counters.stop("ada"))]
        await rest()
        assert not any(task.done() for task in (first, *others))
        gate.release()
        assert [await outcome(task) for task in (first, *others)] == [None, None, None]
        assert await stored(store.inner) is None


# ---------------------------------------------------------------- the order of an end


@pytest.mark.parametrize("how", ["idle", "stop"])
async def test_put_comes_before_on_stop(how):
    log: list[str] = []

    class Noted(FaultyStore):
        async def put(self, key, data, *, revision, expected):
            log.append("put")
            await super().put(key, data, revision=revision, expected=expected)

    clock = ManualClock()
    async with InstanceManager(
        Recorder, store=Noted(MemoryStore()), durability="hibernate", context=log, idle_timeout=5, clock=clock
    ) as manager:
        await manager.call("a", Recorder.add)
        if how == "idle":
            clock.advance(5)
            await until(lambda: manager.keys() == [])
        else:
            await manager.stop("a")
    assert log == ["start a", "put", "stop a"]


def test_a_step_that_is_not_in_the_table_raises():
    taken = {(state, event): after(state, event) for state in State for event in Event if _may(state, event)}
    assert taken == {
        (State.COLD, Event.CLAIMED): State.THAWING,
        (State.THAWING, Event.STARTED): State.LIVE,
        (State.THAWING, Event.FAILED): State.COLD,
        (State.LIVE, Event.LEAVING): State.FREEZING,
        (State.LIVE, Event.LOST): State.FREEZING,
        (State.FREEZING, Event.LEFT): State.COLD,
        (State.FREEZING, Event.KEPT): State.LIVE,
        (State.FREEZING, Event.LOST): State.FREEZING,
    }


def _may(state: State, event: Event) -> bool:
    try:
        after(state, event)
    except RuntimeError:
        return False
    return True
