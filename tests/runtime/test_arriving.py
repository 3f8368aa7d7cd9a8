"""Agents that come alive and leave in no task of their own: the same promises as in one."""

from __future__ import annotations

import asyncio
import contextvars

import msgspec
import pytest
from agents import Counter, Order, Recorder
from waiting import outcome, reports, rest, stored

from overwinter import Agent, InstanceManager, MemoryStore, SQLiteStore, transient
from overwinter.errors import (
    AgentStateError,
    ClosedError,
    InvalidKeyError,
    MissingInitialError,
    StateTooLargeError,
    StoreUnavailableError,
    ThawError,
)
from overwinter.testing import FaultyStore, until

user = contextvars.ContextVar("user", default="nobody")


def sign() -> str:
    if user.get() == "mallory":
        raise RuntimeError("never")
    return user.get()


class Signed(Agent):
    by: str = msgspec.field(default_factory=sign)

    async def who(self) -> str:
        return self.by


class Parent(Agent):
    async def on_start(self, children: InstanceManager[Signed]) -> None:
        await children.get(self.key)

    async def ping(self) -> None: ...


class Loaded(Agent):
    by: str = ""

    def dump(self):
        return None

    @classmethod
    def load(cls, data, version):
        return cls(by=user.get())

    async def who(self) -> str:
        return self.by


async def test_what_thaws_sees_the_context_of_open_whoever_calls_first(tmp_path):
    seen: list[str] = []

    class Own(MemoryStore):
        async def get(self, key):
            seen.append(user.get())
            return await super().get(key)

    user.set("opener")
    for store in (SQLiteStore(tmp_path / "a.db"), Own()):
        async with InstanceManager(Loaded, store=store) as manager:
            await manager.get("a", initial={"by": ""})
            await manager.stop("a")
            user.set("caller")
            assert await manager.call("a", Loaded.who) == "opener"
            user.set("opener")
    assert set(seen) == {"opener"}


async def test_a_get_that_is_not_answered_is_cancelled_when_the_manager_closes():
    ended: list[str] = []

    class Slow(MemoryStore):
        async def get(self, key):
            try:
                return await asyncio.get_running_loop().create_future()
            finally:
                ended.append(key)

    counters = InstanceManager(Counter, store=Slow())
    await counters.open()
    waiting = asyncio.ensure_future(counters.get("ada"))
    await rest()
    await outcome(counters.close(0.02))
    await rest()
    assert isinstance(await outcome(waiting), ClosedError)
    assert len(ended) == 1


@pytest.mark.parametrize("error", [None, StoreUnavailableError("late")])
async def test_an_answer_that_comes_after_the_end_is_not_heard(error):
    class Late(MemoryStore):
        def begin_get(self, key, done):
            self.done = done

    seen, store = reports(), Late()
    counters = InstanceManager(Counter, store=store)
    await counters.open()
    waiting = asyncio.ensure_future(counters.get("ada"))
    await rest()
    await outcome(counters.close(0.02))
    store.done(None, error)
    assert isinstance(await outcome(waiting), ClosedError)
    assert (seen, counters.stats().created, counters.inspect("ada").last_error) == ([], 0, None)


def test_before_it_is_open_a_manager_says_so_outside_of_any_loop_too():
    with pytest.raises(ClosedError, match="is not open"):
        InstanceManager(Counter).lookup("ada")


@pytest.mark.parametrize("store", [None, MemoryStore])
async def test_what_comes_alive_without_a_task_sees_the_context_of_open(store):
    user.set("opener")
    async with InstanceManager(Signed, store=store and store()) as manager:
        user.set("caller")
        assert await manager.call("a", Signed.who) == "opener"
        await manager.get("b")
        assert (await manager.state("b")).by == "opener"
        async with InstanceManager(Parent, context=manager) as parents:
            await parents.call("c", Parent.ping)  # on_start itself runs in such a context
            assert manager.lookup("c") is not None


async def test_one_that_fails_at_once_says_so_and_leaves_nothing_behind():
    user.set("mallory")
    async with InstanceManager(Signed, max_live=1) as manager:
        for attempt in (manager.get("a"), manager.call("a", Signed.who), manager.get("b")):
            error = await outcome(attempt)
            assert isinstance(error, ThawError)
            assert isinstance(error.__cause__, RuntimeError)
        assert (manager.keys(), manager.stats().live, manager.stats().created) == ([], 0, 0)
        assert manager.inspect("a").last_error == "ThawError"
    async with InstanceManager(Order, max_live=1) as orders:
        assert isinstance(await outcome(orders.get("1")), MissingInitialError)
        assert isinstance(await outcome(orders.get("1", initial={"order_id": 1})), AgentStateError)
        assert (await orders.get("1", initial={"order_id": "1"})).key == "1", "its place was given back"


async def test_a_key_is_checked_alive_or_not():
    class Text(str): ...

    async with InstanceManager(Counter) as counters:
        await counters.get("ada")
        for key in (Text("ada"), 7, [], "", "\ud800"):
            with pytest.raises(InvalidKeyError):
                await counters.get(key)


async def test_a_get_that_is_cancelled_while_the_store_reads_goes_on(tmp_path):
    async with InstanceManager(Counter, store=SQLiteStore(tmp_path / "a.db")) as counters:
        task = asyncio.ensure_future(counters.get("ada"))
        await asyncio.sleep(0)
        other = asyncio.ensure_future(counters.call("ada", Counter.increment))
        await asyncio.sleep(0)
        task.cancel()
        assert isinstance(await outcome(task), asyncio.CancelledError)
        assert await other == 1
        assert counters.stats().created == 1


async def test_a_store_that_can_not_even_begin_to_read_is_a_thaw_error():
    class Broken(MemoryStore):
        def fetch(self, key):
            raise StoreUnavailableError("no")

    async with InstanceManager(Counter, store=Broken()) as counters:
        error = await outcome(counters.get("ada"))
        assert isinstance(error, ThawError)
        assert isinstance(error.__cause__, StoreUnavailableError)
        assert not counters.keys()


async def test_closing_ends_the_wait_for_a_store_that_does_not_answer():
    seen = reports()
    store = FaultyStore(MemoryStore())
    gate = store.hold("get")
    counters = InstanceManager(Counter, store=store)
    await counters.open()
    waiting = asyncio.ensure_future(counters.get("ada"))
    await gate.reached()
    await outcome(counters.close(0.02))
    assert isinstance(await outcome(waiting), ClosedError)
    gate.release()
    await rest()
    assert (seen, counters.stats().created) == ([], 0)


async def test_an_agent_larger_than_is_allowed_by_now_does_not_thaw():
    store = MemoryStore()
    async with InstanceManager(Counter, store=store) as counters:
        await counters.get("ada", initial={"notes": ["x" * 100]})
        await counters.save("ada")
    async with InstanceManager(Counter, store=store, max_state=50) as counters:
        assert isinstance(await outcome(counters.get("ada")), StateTooLargeError)


async def test_an_agent_keeps_what_was_set_before_it_had_its_key():
    class Ready(Agent):
        ready: bool = transient()

        def __post_init__(self) -> None:
            self.ready = True

        async def look(self) -> tuple[bool, str, list[str]]:
            return self.ready, self.key, sorted(self.__dict__)

    async with InstanceManager(Ready) as manager:
        assert await manager.call("a", Ready.look) == (True, "a", ["#key", "ready"])
    async with InstanceManager(Recorder, context=[]) as recorders:
        await recorders.get("a")
        await recorders.get("b")
        a, b = (recorders._registry.servers[key].agent for key in "ab")
        assert (a.key, b.key, a.log is b.log) == ("a", "b", True)
        del b.__dict__["log"]
        assert sorted(a.__dict__) == ["#key", "log"], "nothing is shared but memory"


# ---------------------------------------------------------------- leaving


async def test_a_stop_whose_caller_is_cancelled_goes_on():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, durability="hibernate") as counters:
        await counters.call("ada", Counter.increment, 7)
        gate = store.hold("put")
        task = asyncio.ensure_future(counters.stop("ada"))
        await gate.reached()
        task.cancel()
        assert isinstance(await outcome(task), asyncio.CancelledError)
        gate.release()
        await until(lambda: not counters.keys())
        assert (await stored(store)).count == 7


async def test_a_stop_whose_caller_is_cancelled_and_that_fails_is_reported():
    seen = reports()
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, store_patience=0, durability="hibernate") as counters:
        await counters.call("ada", Counter.increment, 7)
        gate = store.hold("put")
        store.fail("put", StoreUnavailableError("down"), times=2)
        task = asyncio.ensure_future(counters.stop("ada"))
        await gate.reached()
        task.cancel()
        await outcome(task)
        store.heal()
        await until(lambda: not counters.keys() or counters.stats().dirty == 0)
    assert (await stored(store)).count == 7
    assert [type(report["exception"]) for report in seen] == [StoreUnavailableError]


async def test_a_delete_whose_caller_is_cancelled_and_that_fails_is_reported():
    seen = reports()
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment, 7)
        gate = store.hold("delete")
        store.fail("delete", StoreUnavailableError("down"))
        task = asyncio.ensure_future(counters.delete("ada"))
        await gate.reached()
        task.cancel()
        assert isinstance(await outcome(task), asyncio.CancelledError)
        gate.release()
        await until(lambda: seen)
        assert await counters.call("ada", Counter.increment) == 8
    assert [type(report["exception"]) for report in seen] == [StoreUnavailableError]


async def test_a_clean_agent_that_was_changed_outside_a_turn_is_stored_before_it_leaves():
    seen = reports()
    store = MemoryStore()
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        counters._registry.servers["ada"].agent.notes.append("by the back door")
        await counters.stop("ada")
        assert (await stored(store)).notes == ["by the back door"]
        await counters.call("ada", Counter.increment)
        counters._registry.servers["ada"].agent.stray = 1
        await counters.stop("ada")
    assert [("outside a turn" in report["message"]) for report in seen] == [True, True]


async def test_nobody_leaves_in_the_middle_of_a_call():
    event = asyncio.Event()
    async with InstanceManager(Counter) as counters:
        call = asyncio.ensure_future(counters.call("ada", Counter.wait, event))
        await until(lambda: counters.inspect("ada").running)
        stop = asyncio.ensure_future(counters.stop("ada"))
        await rest()
        assert not stop.done()
        event.set()
        assert await call == 0
        await stop
        assert not counters.keys()


async def test_who_stops_waiting_for_a_thaw_keeps_nobody_else_from_it():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        gate = store.hold("get")
        waiting = [asyncio.create_task(counters.get("ada")) for _ in range(3)]
        await gate.reached()
        waiting[0].cancel()
        await rest()
        gate.release()
        assert [(await outcome(task)).key for task in waiting[1:]] == ["ada", "ada"]
