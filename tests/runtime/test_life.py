"""One life: thaw, attachments, idleness, hibernation, stop, delete, close."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import threading
from typing import Any

import pytest
from agents import Counter, Order, Recorder
from waiting import pass_time

from overwinter import Agent, AgentSystem, InstanceManager, MemoryStore, Persistence
from overwinter.errors import (
    AgentDeletedError,
    AgentNotFoundError,
    ClosedError,
    CloseError,
    CorruptRecordError,
    OutsideTurnError,
    StoreInUseError,
    StoreUnavailableError,
    ThawError,
    UsageError,
)
from overwinter.stores import Expect
from overwinter.testing import FaultyStore, ManualClock, until


def managed(cls=Counter, **options):
    clock = ManualClock()
    return InstanceManager(cls, **{"store": MemoryStore(), "idle_timeout": 60, "clock": clock, **options}), clock


async def test_an_idle_agent_hibernates_and_thaws_on_demand():
    manager, clock = managed()
    async with manager as counters:
        counter = await counters.get("ada")
        await counter.increment()
        clock.advance(59)
        await counter.read()  # a call restarts the idle clock
        clock.advance(59)
        assert counters.lookup("ada") == counter
        clock.advance(1)
        await until(lambda: counters.lookup("ada") is None)
        assert counters.keys() == []
        assert await counter.increment() == 2  # a reference never goes stale
        assert (counters.stats().created, counters.stats().thawed, counters.stats().hibernated) == (1, 1, 1)


async def test_touch_restarts_the_idle_clock():
    manager, clock = managed()
    async with manager as counters:
        await counters.get("ada")
        clock.advance(59)
        counters.touch("ada")
        clock.advance(59)
        assert counters.lookup("ada") is not None
        assert counters.inspect("ada").why_live == "idle for 1 s more"


async def test_without_a_store_an_idle_agent_ends():
    manager, clock = managed(store=None)
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        clock.advance(60)
        await until(lambda: counters.lookup("ada") is None)
        assert await counters.call("ada", Counter.increment) == 1


async def test_an_attached_agent_stays_until_the_last_one_lets_go():
    manager, clock = managed()
    async with manager as counters:
        async with counters.attach("ada"):
            async with counters.attach("ada"):
                clock.advance(1000)
                assert counters.inspect("ada").why_live == "2 attached"
            clock.advance(1000)
            await asyncio.sleep(0)
            assert counters.lookup("ada") is not None
        clock.advance(59)
        await asyncio.sleep(0)
        assert counters.lookup("ada") is not None
        clock.advance(1)
        await until(lambda: counters.lookup("ada") is None)


async def test_a_long_turn_keeps_its_agent_live():
    manager, clock = managed()
    async with manager as counters:
        event = asyncio.Event()
        call = asyncio.create_task(counters.call("ada", Counter.wait, event))
        await until(lambda: counters.inspect("ada").running)
        clock.advance(1000)
        assert counters.lookup("ada") is not None
        event.set()
        await call
        clock.advance(60)
        await until(lambda: counters.lookup("ada") is None)


@pytest.mark.parametrize("how", ["returns", "raises", "is cancelled", "never leaves"])
async def test_an_attachment_ends_with_its_task(how):
    manager, clock = managed()
    async with manager as counters:
        inside = asyncio.Event()

        async def holder():
            attachment = counters.attach("ada")
            if how == "never leaves":
                await attachment.__aenter__()
                inside.set()
                return
            async with attachment:
                inside.set()
                if how == "raises":
                    raise ValueError
                if how == "is cancelled":
                    await asyncio.Event().wait()

        task = asyncio.create_task(holder())
        await inside.wait()
        if how == "is cancelled":
            assert counters.stats().attached == 1
            task.cancel()
        await asyncio.wait([task])
        await until(lambda: counters.stats().attached == 0)
        task.exception() if how == "raises" else None
        clock.advance(60)
        await until(lambda: counters.lookup("ada") is None)


async def test_an_attachment_may_be_left_when_the_task_that_made_it_is_gone():
    async with InstanceManager(Counter) as counters:
        attachment = counters.attach("ada")
        await asyncio.create_task(attachment.__aenter__())
        await until(lambda: counters.stats().attached == 0)
        await attachment.__aexit__(None, None, None)
        assert counters.stats().attached == 0


async def test_an_attachment_whose_thaw_fails_holds_nothing():
    store = FaultyStore(MemoryStore())
    manager, _ = managed(store=store)
    async with manager as counters:
        store.fail("get", StoreUnavailableError("down"))
        with pytest.raises(ThawError):
            async with counters.attach("ada"):
                pytest.fail("not entered")
        assert counters.stats().attached == 0


async def test_an_attachment_is_for_one_block():
    manager, _ = managed()
    async with manager as counters:
        attachment = counters.attach("ada")
        async with attachment:
            with pytest.raises(UsageError, match="attach\\(\\) for each block"):
                await attachment.__aenter__()


async def test_an_attached_agent_is_held_from_before_its_thaw():
    store, inside, leave = FaultyStore(MemoryStore()), asyncio.Event(), asyncio.Event()
    log: list[str] = []
    async with InstanceManager(Recorder, store=store, idle_timeout=0, context=log) as recorders:

        async def hold() -> None:
            async with recorders.attach("a"):
                inside.set()
                await leave.wait()

        gate = store.hold("get")
        holder = asyncio.create_task(hold())
        await gate.reached()
        assert recorders.inspect("a").attached == 1  # so it can't leave as soon as it is alive
        gate.release()
        await inside.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert recorders.keys() == ["a"]
        leave.set()
        await holder
        await until(lambda: recorders.keys() == [])
    assert log == ["start a", "stop a"]


@pytest.mark.parametrize("who", ["an attachment", "a call"])
async def test_whoever_comes_while_the_idle_timeout_stores_it_keeps_the_same_life(who):
    store = FaultyStore(MemoryStore())
    log: list[str] = []
    manager, clock = managed(Recorder, store=store, durability="hibernate", context=log)
    async with manager as recorders:
        await recorders.call("a", Recorder.add)
        gate = store.hold("put")
        clock.advance(60)
        await gate.reached()
        async with recorders.attach("a") if who == "an attachment" else contextlib.nullcontext():
            gate.release()
            if who == "a call":
                assert await recorders.call("a", Recorder.add) == 2
            await until(lambda: not recorders._home.tasks)
            assert log == ["start a"]
            assert recorders.lookup("a") is not None


async def test_a_call_while_on_stop_runs_gets_the_next_life_never_the_old_one():
    lives: list[str] = []
    stopping, go = asyncio.Event(), asyncio.Event()

    class Slow(Agent):
        n: int = 0

        async def on_start(self) -> None:
            lives.append("start")

        async def on_stop(self) -> None:
            lives.append("stopping")
            stopping.set()
            await go.wait()
            lives.append("stopped")

        async def add(self) -> int:
            self.n += 1
            return self.n

    manager, _ = managed(Slow)
    async with manager as slow:
        await slow.call("a", Slow.add)
        stop = asyncio.create_task(slow.stop("a"))
        await stopping.wait()
        call = asyncio.create_task(slow.call("a", Slow.add))
        for _ in range(10):
            await asyncio.sleep(0)
        assert lives == ["start", "stopping"]
        go.set()
        assert await call == 2
        await stop
        assert lives == ["start", "stopping", "stopped", "start"]


async def test_what_on_stop_changes_is_stored_once_more():
    class Tidy(Agent):
        open: bool = False

        async def use(self) -> None:
            self.open = True

        async def on_stop(self) -> None:
            self.open = False

    store = MemoryStore()
    manager, _ = managed(Tidy, store=store)
    async with manager as tidies:
        await tidies.call("a", Tidy.use)
        await tidies.stop("a")
        async with Persistence(store) as persistence:
            assert (await persistence.thaw(Tidy, "a")).open is False


async def test_an_on_stop_that_raises_or_hangs_is_reported_and_the_agent_is_gone():
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))

    class Bad(Agent):
        async def on_stop(self) -> None:
            if self.key == "raises":
                raise ValueError("as asked")
            await asyncio.Event().wait()

    manager, clock = managed(Bad)
    async with manager as bad:
        for key in ("raises", "hangs"):
            await bad.get(key)
            stop = asyncio.create_task(bad.stop(key))
            while not stop.done():
                await asyncio.sleep(0)
                clock.advance(1)
            assert bad.lookup(key) is None
    assert [type(context["exception"]) for context in seen] == [ValueError, TimeoutError]


async def test_stop_while_attached_ends_the_life_and_the_attachment_holds_the_next():
    manager, clock = managed()
    async with manager as counters, counters.attach("ada") as counter:
        await counter.increment()
        await counters.stop("ada")
        assert counters.lookup("ada") is None
        assert await counter.increment() == 2
        clock.advance(1000)
        await asyncio.sleep(0)
        assert counters.lookup("ada") is not None


async def test_delete_removes_what_lives_and_what_is_stored():
    store = FaultyStore(MemoryStore())
    manager, _ = managed(store=store)
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        await counters.delete("ada")
        assert counters.lookup("ada") is None
        assert await store.get("Counter:ada") is None
        assert await counters.call("ada", Counter.increment) == 1
        await counters.stop("ada")
        await counters.delete("ada")  # not live
        await counters.delete("ada")  # idempotent
        assert await counters.call("ada", Counter.read) == 0


async def test_delete_fails_the_calls_that_wait():
    store = FaultyStore(MemoryStore())
    manager, _ = managed(store=store)
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("delete")
        delete = asyncio.create_task(counters.delete("ada"))
        await gate.reached()
        waiting = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: counters.stats().queued == 1)
        gate.release()
        await delete
        with pytest.raises(AgentDeletedError):
            await waiting
        assert await counters.call("ada", Counter.read) == 0


async def test_a_failed_delete_deletes_nothing():
    store = FaultyStore(MemoryStore())
    manager, _ = managed(store=store)
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        store.fail("delete", StoreUnavailableError("down"))
        with pytest.raises(StoreUnavailableError):
            await counters.delete("ada")
        assert await counters.call("ada", Counter.increment) == 2


async def corrupt(store: MemoryStore, key: str, change) -> bytes:
    stored = await store.get(key)
    data = change(stored.data)
    await store.delete(key, expected=Expect.ANY)
    await store.put(key, data, revision=stored.revision, expected=Expect.ABSENT)
    return data


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: b"", lambda d: d[:40] + bytes([d[40] ^ 1]) + d[41:]])
async def test_a_corrupt_record_is_refused_left_alone_and_can_be_deleted(change):
    store = MemoryStore()
    manager, _ = managed(store=store)
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        await counters.stop("ada")
        data = await corrupt(store, "Counter:ada", change)
        for _ in range(2):
            with pytest.raises(CorruptRecordError, match="Counter 'ada'"):
                await counters.call("ada", Counter.increment)
        assert (await store.get("Counter:ada")).data == data
        await counters.delete("ada")
        assert await counters.call("ada", Counter.increment) == 1


async def test_what_else_missing_may_say_is_an_error_and_creates_nothing():
    manager, _ = managed()
    async with manager as counters:
        for wrong in ("error", "Raise", None):
            with pytest.raises(ValueError, match='"create" or "raise"'):
                await counters.get("ada", missing=wrong)
            with pytest.raises(ValueError, match='"create" or "raise"'):
                counters.attach("ada", missing=wrong)
        assert counters.stats().created == 0


async def test_missing_raise_does_not_create():
    manager, _ = managed()
    async with manager as counters:
        with pytest.raises(AgentNotFoundError):
            await counters.get("ada", missing="raise")
        with pytest.raises(AgentNotFoundError):
            async with counters.attach("ada", missing="raise"):
                pass
        created, refused = await asyncio.gather(
            counters.get("ada"), counters.get("bob", missing="raise"), return_exceptions=True
        )
        assert created.key == "ada"
        assert isinstance(refused, AgentNotFoundError)


async def test_on_start_that_raises_starts_nothing_and_hurts_only_its_key():
    class Picky(Agent):
        n: int = 0

        async def on_start(self) -> None:
            if self.key == "bad":
                raise LookupError("no such thing")

        async def add(self) -> int:
            self.n += 1
            return self.n

    manager, _ = managed(Picky)
    noise = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context))
    async with manager as picky:
        outcomes = await asyncio.gather(*(picky.call("bad", Picky.add) for _ in range(3)), return_exceptions=True)
        assert all(
            isinstance(outcome, ThawError) and isinstance(outcome.__cause__, LookupError) for outcome in outcomes
        )
        assert len({id(outcome) for outcome in outcomes}) == 3
        assert await picky.call("good", Picky.add) == 1
        assert picky.keys() == ["good"]
    gc.collect()
    assert noise == []  # those who waited were told, and nobody else


class Leaky(Agent):
    items: list[int] = []

    async def leak(self) -> list[int]:
        return self.items


class LeakyAndTidy(Leaky):
    async def on_stop(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Leaky, LeakyAndTidy])
@pytest.mark.parametrize("end", ["stop", "idle", "close"])
async def test_a_change_outside_a_turn_is_reported_and_kept(kind, end):
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
    store = MemoryStore()
    manager, clock = managed(kind, store=store, idle_timeout=60)
    async with manager as leaky:
        items = await leaky.call("a", kind.leak)
        items.append(1)
        if end == "stop":
            await leaky.stop("a")
        elif end == "idle":
            clock.advance(60)
            await until(lambda: not leaky.keys())
    assert [type(report["exception"]) for report in seen] == [OutsideTurnError] or end == "close"
    async with InstanceManager(kind, store=store) as leaky:
        assert await leaky.call("a", kind.leak) == [1]


async def test_a_fresh_agent_that_nothing_changed_is_not_stored_when_it_goes():
    class Looker(Recorder):
        async def look(self) -> int:
            return self.n

    for kind in (Counter, Looker):
        store = FaultyStore(MemoryStore())
        manager, clock = managed(kind, store=store, idle_timeout=60, context=[])
        async with manager as agents:
            await agents.get("a")
            clock.advance(60)
            await until(lambda: not agents.keys())
        assert store.calls["put"] == 0


async def test_what_hooks_tell_is_told_when_what_they_changed_is_stored():
    class Herald(Agent):
        told: list[str] = []
        starts: int = 0

        async def on_start(self, context: dict[str, Any]) -> None:
            self.agents, self.quiet = context["agents"], self.key == "log"
            if not self.quiet:
                self.starts += 1
                self.agents.tell("log", Herald.hear, "start")

        async def on_stop(self) -> None:
            if not self.quiet:
                self.agents.tell("log", Herald.hear, "stop")

        async def hear(self, what: str) -> list[str]:
            self.told.append(what)
            return self.told

    context: dict[str, Any] = {}
    manager, _ = managed(Herald, context=context)
    async with manager as agents:
        context["agents"] = agents
        await agents.get("a")
        await agents.stop("a")
        assert await agents.call("log", Herald.hear, "asked") == ["start", "stop", "asked"]


async def test_state_is_a_detached_copy():
    manager, _ = managed(Order)
    async with manager as orders:
        await orders.get("1", initial={"order_id": "1"})
        copy = await orders.state("1")
        copy.done.append("not there")
        assert copy.key == "1"
        assert (await orders.state("1")).done == []


async def test_close_stores_everybody_and_names_whom_it_could_not():
    store = FaultyStore(MemoryStore())
    counters = InstanceManager(Counter, store=store, durability="hibernate", store_patience=0.01)
    await counters.open()
    for key in ("a", "b", "c"):
        await counters.call(key, Counter.increment)
    store.fail("put", lambda: StoreUnavailableError("disk full"), times=1e9, key="Counter:b")
    with pytest.raises(CloseError, match="'b'") as caught:
        await counters.close(deadline=0.2)
    assert caught.value.not_stored == ("b",)
    async with Persistence(store) as persistence:
        assert (await persistence.thaw(Counter, "a")).count == 1
        assert await persistence.thaw(Counter, "b") is None


async def test_close_lets_calls_finish_and_ends_those_that_do_not():
    manager, clock = managed()
    counters = manager
    await counters.open()
    event = asyncio.Event()
    quick = asyncio.create_task(counters.call("quick", Counter.wait, event, 1))
    stuck = asyncio.create_task(counters.call("stuck", Counter.wait, asyncio.Event(), 1))
    await until(lambda: counters.inspect("quick").running and counters.inspect("stuck").running)
    close = asyncio.create_task(counters.close(deadline=10))
    await asyncio.sleep(0)
    with pytest.raises(ClosedError):
        counters.call("other", Counter.read)
    await until(lambda: clock.timers)
    clock.advance(4)
    for _ in range(20):
        await asyncio.sleep(0)
    event.set()
    assert await quick == 1
    clock.advance(1)
    with pytest.raises(ClosedError, match="rolled back"):
        await stuck
    await close
    await counters.close()


async def test_one_manager_for_an_agent_name_on_a_store():
    store = MemoryStore()

    class Other(Agent, name="Counter"):
        pass

    async with InstanceManager(Counter, store=store):
        for cls in (Counter, Other):
            with pytest.raises(StoreInUseError, match="already has a manager"):
                await InstanceManager(cls, store=store).open()
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.read)


async def test_another_loop_or_thread_is_told_so():
    counters = InstanceManager(Counter, store=MemoryStore())
    await counters.open()
    outcomes = []

    def elsewhere():
        async def use():
            await counters.call("ada", Counter.read)

        try:
            asyncio.run(use())
        except UsageError as error:
            outcomes.append(str(error))
        try:
            counters.call("ada", Counter.read)
        except UsageError as error:
            outcomes.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0)
    assert len(outcomes) == 2
    assert all("another event loop or thread" in text for text in outcomes)
    await counters.close()


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
async def test_after_a_fork_use_raises():
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        await counters.get("ada")
        pid = os.fork()
        if pid == 0:
            try:
                counters.call("ada", Counter.read)
            except UsageError as error:
                os._exit(0 if "fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


async def test_a_system_shares_store_and_context_and_drains_before_it_closes():
    class App:
        carts: InstanceManager

    class Cart(Agent):
        items: int = 0

        async def add(self) -> int:
            self.items += 1
            return self.items

    class Shop(Agent):
        sold: int = 0

        async def on_start(self, app: App) -> None:
            self.app = app

        async def sell(self, event: asyncio.Event) -> int:
            await event.wait()
            self.sold += 1
            return await self.app.carts.call("c", Cart.add)

    app, store, event = App(), MemoryStore(), asyncio.Event()
    async with AgentSystem(store=store, context=app) as system:
        app.carts = system.manager(Cart)
        shops = system.manager(Shop)
        sale = asyncio.create_task(shops.call("s", Shop.sell, event))
        await until(lambda: shops.inspect("s").running)
        asyncio.get_running_loop().call_later(0.01, event.set)
    assert await sale == 1
    async with Persistence(store) as persistence:
        assert (await persistence.thaw(Cart, "c")).items == 1
        assert (await persistence.thaw(Shop, "s")).sold == 1
    with pytest.raises(UsageError, match="closed"):
        system.manager(Cart)


async def test_two_classes_of_one_name_in_a_system():
    class Twin(Agent, name="Counter"):
        async def poke(self) -> None: ...

    async with AgentSystem(store=MemoryStore()) as system:
        counters, twins = system.manager(Counter), system.manager(Twin)
        await counters.call("a", Counter.increment)
        with pytest.raises(StoreInUseError):
            await twins.call("a", Twin.poke)


async def test_stop_and_get_at_once_two_thousand_times():
    lives = {"now": 0, "most": 0}

    class Alive(Agent):
        n: int = 0

        async def on_start(self) -> None:
            lives["now"] += 1
            lives["most"] = max(lives["most"], lives["now"])

        async def on_stop(self) -> None:
            await asyncio.sleep(0)
            lives["now"] -= 1

        async def add(self) -> int:
            self.n += 1
            return self.n

    async with InstanceManager(Alive, store=MemoryStore()) as manager:
        for turn in range(2000):
            results = await asyncio.gather(
                manager.stop("a"), manager.call("a", Alive.add), manager.get("a"), manager.stop("a")
            )
            assert results[1] == turn + 1
    assert lives == {"now": 0, "most": 1}


async def test_nothing_is_left_behind():
    class Left(Counter):  # none of another test's, whose errors may have kept some
        pass

    async with InstanceManager(Left, store=MemoryStore()) as counters:
        for n in range(50):
            await counters.call(str(n), Left.increment)
            await counters.stop(str(n))
        assert counters._registry.servers == {}
        gc.collect()
        assert not [agent for agent in gc.get_objects() if type(agent) is Left]


async def test_a_callers_context_variables_reach_the_method():
    request = contextvars.ContextVar("request", default="none")

    class Traced(Agent):
        async def see(self) -> str:
            return request.get()

    async with InstanceManager(Traced) as traced:
        request.set("r1")
        assert await traced.call("a", Traced.see) == "r1"


async def test_a_task_factory_of_the_programs_own_makes_no_task_of_ours():
    """One that starts tasks at once would do so in the midst of what we are doing."""
    made: list[str] = []

    def factory(loop, coroutine, **options):
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    loop, store = asyncio.get_running_loop(), FaultyStore(MemoryStore())
    loop.set_task_factory(factory)
    try:
        manager, clock = managed(store=store)
        async with manager as counters:
            store.fail("put", StoreUnavailableError("down"))
            call = asyncio.create_task(counters.call("ada", Counter.increment))
            await pass_time(clock, call.done)
            counters.tell("ada", Counter.increment)
            await counters.stop("ada")
    finally:
        loop.set_task_factory(None)
    assert "Registry._call" in made  # of which the test makes a task, once
    assert made.count("Registry._call") == 1
    assert not [name for name in made if name.startswith(("AgentServer.", "Ledger.", "_close", "_end"))]
