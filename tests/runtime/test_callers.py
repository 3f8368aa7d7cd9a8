"""Callers and what they are to each other: who waits for whom, whose context a call runs in, what an error keeps."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import weakref

from agents import Counter
from waiting import outcome, rest

from overwinter import Agent, InstanceManager, MemoryStore, readonly
from overwinter.errors import ReentrantCallError, StateTooLargeError
from overwinter.runtime._turn import current_turn
from overwinter.testing import FaultyStore, until


class Peer(Agent):
    """Calls others."""

    n: int = 0

    async def on_start(self, context) -> None:
        self.peers = context.get("peers")

    async def add(self) -> int:
        self.n += 1
        return self.n

    async def add_at(self, other: str) -> int:
        return await self.peers.call(other, Peer.add)

    async def count(self):
        for number in range(3):
            yield number

    async def ask_much_of(self, other: str) -> list[int]:
        await self.peers.call(other, Peer.add)
        items = self.peers.call(other, Peer.count)
        return [len(current_turn().awaits), *[len(current_turn().awaits) async for _ in items]]

    async def watch_at(self, other: str, event: asyncio.Event) -> int:
        return await self.peers.call(other, Peer.watch, event)

    @readonly
    async def watch(self, event: asyncio.Event) -> int:
        await event.wait()
        return self.n

    @readonly
    async def look_and_add_at(self, other: str) -> int:
        return await self.peers.call(other, Peer.add)


async def peers(store) -> InstanceManager[Peer]:
    context: dict[str, InstanceManager[Peer]] = {}
    manager = context["peers"] = InstanceManager(Peer, store=store, context=context)
    await manager.open()
    await manager.get("a")
    await manager.get("b")
    return manager


# ---------------------------------------------------------------- who waits for whom


async def test_who_waits_for_the_disk_only_waits_for_no_turn():
    store = FaultyStore(MemoryStore())
    manager = await peers(store)
    gate = store.hold("put", key="Peer:b")
    there = asyncio.create_task(manager.call("a", Peer.add_at, "b"))
    await gate.reached()  # b's turn is over: a waits for b's put
    back = asyncio.create_task(manager.call("b", Peer.add_at, "a"))
    await rest()
    assert not back.done()
    gate.release()
    assert await outcome(there) == 1
    assert await outcome(back) == 1
    await manager.close()


async def test_a_turn_keeps_nothing_that_it_waits_for_no_longer():
    manager = await peers(MemoryStore())
    assert await outcome(manager.call("a", Peer.ask_much_of, "b")) == [0, 0, 0, 0]
    await manager.close()


async def test_a_call_that_was_made_outside_a_turn_and_is_awaited_in_one_is_waited_for_by_that_turn():
    manager = await peers(MemoryStore())
    made = manager.call("a", Peer.add)  # outside
    await manager.call("b", Peer.add)

    class Awaiting(Agent):
        async def go(self, call) -> int:
            return await call

        async def back(self) -> int:
            return 1

    async with InstanceManager(Awaiting, store=MemoryStore()) as others:
        await others.get("x")
        await others.get("y")
        assert await outcome(others.call("x", Awaiting.go, made)) == 1
        to_and_fro = others.call("y", Awaiting.go, others.call("x", Awaiting.back))
        assert isinstance(await outcome(others.call("x", Awaiting.go, to_and_fro)), ReentrantCallError)
    await manager.close()


async def test_a_call_that_is_awaited_after_the_life_it_was_made_in_goes_to_the_next():
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        for end in (counters.stop, counters.delete):
            before = await counters.call("ada", Counter.increment)
            late = counters.call("ada", Counter.increment)
            await end("ada")
            assert not counters.keys()
            assert await outcome(asyncio.ensure_future(late)) == (before + 1 if end == counters.stop else 1)


async def test_a_call_that_is_never_awaited_leaves_nothing_behind():
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        await counters.call("ada", Counter.increment)
        counters.call("ada", Counter.increment).close()
        assert await counters.call("ada", Counter.read) == 1
        assert counters.inspect("ada").running == 0


async def test_a_reader_beside_another_is_not_waited_for_by_whom_the_other_waits_for():
    manager, event = await peers(MemoryStore()), asyncio.Event()
    there = asyncio.create_task(manager.call("a", Peer.watch_at, "b", event))
    await until(lambda: manager.inspect("b").running == 1)
    back = asyncio.create_task(manager.call("b", Peer.look_and_add_at, "a"))
    await rest()
    assert not back.done()
    event.set()
    assert await outcome(there) == 0
    assert await outcome(back) == 1
    await manager.close()


# ---------------------------------------------------------------- tells


async def test_a_tell_runs_in_the_context_of_whoever_told_it():
    user = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    class Teller(Agent):
        n: int = 0

        async def on_start(self, context) -> None:
            self.context = context

        async def add(self) -> None:
            self.n += 1

        async def add_and_tell(self) -> None:
            self.n += 1
            self.context["tellers"].tell("sink", Teller.note)

        async def note(self) -> None:
            seen.append(user.get())

    context: dict[str, InstanceManager] = {}
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Teller, store=store, context=context) as tellers:
        context["tellers"] = tellers
        await tellers.get("a")

        async def call_as(name: str, method) -> None:
            user.set(name)
            await tellers.call("a", method)

        gate = store.hold("put")
        alice = asyncio.create_task(call_as("alice", Teller.add))
        await gate.reached()
        bob = asyncio.create_task(call_as("bob", Teller.add_and_tell))
        await rest()  # what he told leaves when the put does, which is alice's
        gate.release()
        await asyncio.gather(alice, bob)
        await until(lambda: seen)
    assert seen == ["bob"]


async def test_tells_to_one_key_keep_their_order_whenever_its_thaw_ends():
    for passes in range(12):
        seen: list[int] = []

        class Noting(Agent):
            async def on_start(self, seen: list[int]) -> None:
                self.seen = seen

            async def note(self, number: int) -> None:
                self.seen.append(number)

        async with InstanceManager(Noting, store=MemoryStore(), context=seen) as manager:
            manager.tell("a", Noting.note, 1)
            await rest(passes)
            manager.tell("a", Noting.note, 2)
            await until(lambda seen=seen: len(seen) == 2)
        assert seen == [1, 2], passes


# ---------------------------------------------------------------- what errors say and keep


async def test_no_state_gets_into_an_exception_text_by_a_repr_of_the_agents_own():
    class Talkative(Agent):
        secret: str = ""

        def __repr__(self) -> str:
            return f"Talkative({self.secret[:20]})"

        async def grow(self) -> None:
            self.secret = "hunter2 " * 500

    async with InstanceManager(Talkative, store=MemoryStore(), max_state=100) as manager:
        error = await outcome(manager.call("a", Talkative.grow))
        assert isinstance(error, StateTooLargeError)
        assert "Talkative 'a'" in str(error)
        assert "hunter2" not in str(error)


async def test_the_last_error_of_an_agent_does_not_keep_its_callers_memory():
    class Body:
        pass

    async with InstanceManager(Counter) as counters:

        async def request() -> weakref.ref[Body]:
            body = Body()
            assert isinstance(await outcome(counters.call("ada", Counter.fail)), ValueError)
            with contextlib.suppress(ValueError):
                await counters.call("ada", Counter.fail)
            return weakref.ref(body)

        body = await asyncio.create_task(request())
        gc.collect()
        assert counters.inspect("ada").last_error == "ValueError"
        assert body() is None
