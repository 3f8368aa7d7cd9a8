"""Streaming calls and commit(): what leaves early is durable, and what follows it can still be undone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

import pytest
from waiting import outcome, reports, rest

from overwinter import (
    Agent,
    AgentSystem,
    InstanceManager,
    MemoryStore,
    Persistence,
    commit,
    interleave,
    readonly,
    stream,
)
from overwinter.errors import ClosedError, CloseError, ReentrantCallError, TurnTimeoutError, UsageError
from overwinter.testing import FaultyStore, ManualClock, until


class Chat(Agent):
    history: list[str] = []

    async def on_start(self, context) -> None:
        self.context = context

    async def say(self, *words: str, fail: bool = False):
        self.history.append("user")
        for word in words:
            self.history.append(word)
            yield word
        if fail:
            self.history.append("never kept")
            raise ValueError("as asked")

    async def count(self, to: int):
        for number in range(to):
            yield number

    async def for_ever(self):
        number = 0
        while True:
            self.history.append(str(number))
            yield number
            number += 1
            await asyncio.sleep(0)

    async def clear(self) -> int:
        length = len(self.history)
        self.history.clear()
        return length

    @readonly
    async def read(self) -> list[str]:
        return list(self.history)

    @readonly
    async def replay(self):
        for word in self.history:
            yield word

    async def in_two_steps(self, event: asyncio.Event) -> None:
        self.history.append("first")
        await commit()
        self.history.append("second")
        await event.wait()
        raise ValueError("as asked")

    async def commit_in_a_task(self) -> None:
        await asyncio.create_task(commit())

    async def talk_to(self, key: str) -> list[str]:
        found = []
        async for word in self.context["chats"].call(key, Chat.count, 100):
            found.append(word)
            await self.context["chats"].call(key, Chat.read)
        return found


def managed(store=None, **options):
    return InstanceManager(Chat, store=MemoryStore() if store is None else store, context={}, **options)


async def kept(store) -> list[str]:
    async with Persistence(store) as persistence:
        chat = await persistence.thaw(Chat, "a")
        return [] if chat is None else chat.history


async def test_a_stream_gives_its_items_in_order_and_is_one_turn():
    async with managed() as chats:
        chat = await chats.get("a")
        words = chat.say("hello", "world")
        assert await anext(words) == "hello"
        read = asyncio.create_task(chats.call("a", Chat.read))
        assert await anext(words) == "world"
        assert not read.done()
        assert [word async for word in words] == []
        assert await read == ["user", "hello", "world"]
        assert [number async for number in chats.call("a", Chat.count, 100)] == list(range(100))


async def test_calls_wait_for_the_end_of_a_stream():
    async with managed() as chats:
        stream = chats.call("a", Chat.for_ever)
        assert await anext(stream) == 0
        calls = [asyncio.create_task(chats.call("a", call)) for call in (Chat.read, Chat.clear)]
        for _ in range(50):
            await asyncio.sleep(0)
        assert not any(call.done() for call in calls)
        await stream.aclose()
        read, cleared = await asyncio.gather(*calls)
        assert read[0] == "0"
        assert cleared == len(read)


async def test_an_item_leaves_when_the_version_it_saw_is_durable():
    store = FaultyStore(MemoryStore())
    async with managed(store) as chats:
        await chats.get("a")
        gate = store.hold("put")
        stream = chats.call("a", Chat.say, "hello", "world")
        first = asyncio.ensure_future(anext(stream))
        await gate.reached()
        assert not first.done()
        gate.release()
        assert await first == "hello"
        assert (await kept(store))[:2] == ["user", "hello"]
        await stream.aclose()


async def test_a_stream_that_fails_keeps_what_its_last_item_saw():
    store = MemoryStore()
    async with managed(store) as chats:
        words = chats.call("a", Chat.say, "hello", fail=True)
        assert await anext(words) == "hello"
        with pytest.raises(ValueError, match="as asked"):
            await anext(words)
        assert await chats.call("a", Chat.read) == ["user", "hello"] == await kept(store)


@pytest.mark.parametrize("how", ["aclose", "async with", "break", "cancel"])
async def test_a_consumer_that_leaves_ends_the_turn(how):
    async with managed() as chats:
        stream = chats.call("a", Chat.for_ever)
        assert await anext(stream) == 0
        if how == "aclose":
            await stream.aclose()
        elif how == "async with":
            async with stream:
                pass
        elif how == "break":
            async for _ in stream:
                break
            del stream
            gc.collect()
        else:

            async def consume():
                async for _ in stream:
                    pass

            task = asyncio.create_task(consume())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        history = await asyncio.wait_for(chats.call("a", Chat.read), 5)
        assert history == [str(number) for number in range(len(history))]
        assert chats.inspect("a").running == 0


async def test_a_stream_is_at_most_a_buffer_ahead():
    async with managed() as chats:
        stream = chats.call("a", Chat.for_ever)
        await anext(stream)
        for _ in range(200):
            await asyncio.sleep(0)
        await stream.aclose()
        assert len(await chats.call("a", Chat.read)) <= 20


async def test_a_stream_that_nobody_takes_never_begins():
    async with managed() as chats:
        stream = chats.call("a", Chat.say, "hello")
        for _ in range(50):
            await asyncio.sleep(0)
        assert chats.inspect("a").state == "cold"
        assert await anext(stream) == "hello"
        await stream.aclose()
        async with chats.call("a", Chat.say, "hello", "world") as entered:
            assert await anext(entered) == "hello"
        with pytest.raises(StopAsyncIteration):
            await anext(entered)
        never = chats.call("b", Chat.say, "hello")
        await never.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(never)
        assert chats.inspect("b").state == "cold"


async def test_readonly_streams_run_beside_each_other():
    async with managed() as chats:
        async for _ in chats.call("a", Chat.say, "x"):
            pass
        one, two = chats.call("a", Chat.replay), chats.call("a", Chat.replay)
        assert [await anext(one), await anext(two)] == ["user", "user"]
        await one.aclose()
        await two.aclose()


@pytest.mark.parametrize("source", ["self", "other"])
async def test_an_agent_that_takes_a_stream_and_calls_its_source_is_told(source):
    async with managed() as chats:
        chats._home.context["chats"] = chats
        with pytest.raises(ReentrantCallError):
            await asyncio.wait_for(chats.call("self", Chat.talk_to, source), 5)
        assert await asyncio.wait_for(chats.call("other", Chat.read), 5) == []


async def test_close_ends_a_stream():
    chats = managed()
    await chats.open()
    stream = chats.call("a", Chat.for_ever)
    await anext(stream)
    await chats.close(deadline=0.1)
    with pytest.raises(Exception, match="closes"):
        async for _ in stream:
            pass


async def test_commit_is_durable_and_is_where_a_failure_rolls_back_to():
    for durability in ("call", "hibernate"):
        store = MemoryStore()
        async with managed(store, durability=durability) as chats:
            event = asyncio.Event()
            call = asyncio.create_task(chats.call("a", Chat.in_two_steps, event))
            await until(lambda: chats.inspect("a").running and chats._registry.servers["a"].ledger.dur)
            assert await kept(store) == ["first"]
            event.set()
            with pytest.raises(ValueError, match="as asked"):
                await call
            assert await chats.call("a", Chat.read) == ["first"] == await kept(store)


async def test_a_readonly_call_commits_nothing_that_others_changed():
    class Reader(Agent):
        count: int = 0

        async def add(self) -> None:
            self.count += 1

        @readonly
        async def look(self) -> int:
            await commit()
            return self.count

    store = FaultyStore(MemoryStore())
    async with InstanceManager(Reader, store=store, durability="hibernate") as readers:
        await readers.call("a", Reader.add)
        assert await readers.call("a", Reader.look) == 1
        assert store.calls["put"] == 0


async def test_commit_outside_a_turn_does_nothing_and_in_another_task_is_refused():
    await commit()
    async with managed() as chats:
        with pytest.raises(UsageError, match="own task"):
            await chats.call("a", Chat.commit_in_a_task)


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def test_a_plain_object_streams_in_a_unit_test():
    chat = Chat()
    assert [word async for word in chat.say("a", "b")] == ["a", "b"]
    with pytest.raises(ValueError, match="as asked"):
        await chat.in_two_steps(_set())
    assert chat.history == ["user", "a", "b", "first", "second"]


async def test_a_stream_is_not_told():
    async with managed() as chats:
        with pytest.raises(TypeError, match="don't tell it"):
            chats.tell("a", Chat.say, "x")


async def test_an_unchanged_streams_items_leave_at_once():
    store = FaultyStore(MemoryStore())
    async with managed(store) as chats:
        await chats.get("a")
        store.hold("put")  # nothing may wait for it
        assert [number async for number in chats.call("a", Chat.count, 3)] == [0, 1, 2]
        assert store.calls["put"] == 0
        store.heal()


async def test_a_consumer_that_leaves_rolls_back_to_the_last_item():
    class Slow(Agent):
        words: list[str] = []

        async def say(self, go: asyncio.Event):
            self.words.append("one")
            yield "one"
            self.words.append("never kept")
            await go.wait()
            yield "two"

    store = MemoryStore()
    async with InstanceManager(Slow, store=store) as manager:
        stream = manager.call("a", Slow.say, asyncio.Event())
        assert await anext(stream) == "one"
        await until(lambda: manager._registry.servers["a"].agent.words == ["one", "never kept"])
        await stream.aclose()
        assert (await manager.state("a")).words == ["one"]
        assert manager._registry.servers["a"].agent.words == ["one"]


async def test_a_stream_whose_agent_hibernates_just_as_it_begins_runs_on_the_next_life():
    for passes in range(8):
        clock = ManualClock()
        async with InstanceManager(Plain, store=MemoryStore(), clock=clock, idle_timeout=5) as manager:
            first = asyncio.ensure_future(anext(manager.call("a", Plain.one)))
            for _ in range(passes):
                await asyncio.sleep(0)
            clock.advance(10)
            assert await asyncio.wait_for(first, 5) == 1


class Plain(Agent):
    async def one(self):
        yield 1


async def test_who_waits_for_an_item_is_told_though_the_body_outlasts_the_manager():
    store = FaultyStore(MemoryStore())
    chats = managed(store)
    await chats.open()
    store.hold("get")
    stream = chats.call("a", Chat.for_ever)
    waiting = asyncio.create_task(anext(stream))
    for _ in range(20):
        await asyncio.sleep(0)
    with contextlib.suppress(CloseError):
        await chats.close(deadline=0.05)
    done, _ = await asyncio.wait([waiting], timeout=5)
    assert done
    assert waiting.cancelled() or isinstance(waiting.exception(), ClosedError)


@pytest.mark.parametrize("step", ["ends", "yields", "commits"])
async def test_what_a_stream_makes_after_its_consumer_left_does_not_count(step):
    class Deaf(Agent):
        words: list[str] = []

        async def heard(self) -> None:
            self.words.append("heard")

        async def talk(self):
            self.words.append("one")
            yield "one"
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.words.append("two")
                manager.tell(self.key, Deaf.heard)
            if step == "yields":
                yield "two"
            if step == "commits":
                await commit()

    manager = InstanceManager(Deaf, store=MemoryStore())
    async with manager:
        async with manager.call("a", Deaf.talk) as items:
            assert await anext(items) == "one"
        await until(lambda: not manager.inspect("a").running)
        assert (await manager.state("a")).words == ["one"]


class Feed(Agent):
    """Streams to a reader, and may call it back."""

    n: int = 0

    async def on_start(self, managers) -> None:
        self.readers = managers["readers"]

    @stream(provisional=True)
    async def provisional(self):
        for number in range(100):
            yield number

    async def ordinary(self):
        for number in range(100):
            yield number

    async def call_back_as_it_ends(self):
        try:
            for number in range(100):
                yield number
        finally:
            await self.readers.call("reader", Reader.note)

    async def give_up(self):
        yield 1
        task = asyncio.create_task(asyncio.sleep(0))
        task.cancel()
        await task

    async def add(self) -> int:
        self.n += 1
        return self.n


class Reader(Agent):
    n: int = 0

    async def on_start(self, managers) -> None:
        self.feeds = managers["feeds"]

    async def note(self) -> None:
        self.n += 1

    async def read(self, method, call: bool) -> None:
        async with self.feeds.call("feed", method) as items:
            async for item in items:
                if item == 3:
                    if call:
                        await self.feeds.call("feed", Feed.add)
                    break


@contextlib.asynccontextmanager
async def feeds_and_readers():
    managers: dict[str, InstanceManager] = {}
    system = AgentSystem(store=MemoryStore(), context=managers)
    managers["feeds"], managers["readers"] = system.manager(Feed), system.manager(Reader)
    async with system:
        yield managers["feeds"], managers["readers"]


@pytest.mark.parametrize("method", [Feed.ordinary, Feed.provisional])
async def test_who_takes_items_and_calls_the_agent_that_waits_for_that_is_told(method):
    async with feeds_and_readers() as (_, readers):
        assert isinstance(await outcome(readers.call("reader", Reader.read, method, True)), ReentrantCallError)
        assert await outcome(readers.call("reader", Reader.read, method, False)) is None


async def test_a_stream_that_calls_the_agent_whose_turn_leaves_it_is_told():
    seen = reports()
    async with feeds_and_readers() as (_, readers):
        await outcome(readers.call("reader", Reader.read, Feed.call_back_as_it_ends, False))
        assert await outcome(readers.call("reader", Reader.note)) is None
    assert not seen


async def test_a_body_that_ends_in_a_cancellation_of_its_own_tells_nobody_that_the_manager_closed():
    async with feeds_and_readers() as (feeds, _):
        items = feeds.call("feed", Feed.give_up)
        assert await anext(items) == 1
        assert isinstance(await outcome(anext(items)), asyncio.CancelledError)
        assert await outcome(feeds.call("feed", Feed.add)) == 1


class Ended(BaseException):
    """No ``Exception``: the loop's own tasks are not ended by it."""


class Ending(Agent):
    async def items(self) -> AsyncIterator[int]:
        yield 1
        raise Ended


async def test_whatever_a_body_ends_with_its_consumer_is_told():
    async with InstanceManager(Ending) as manager:
        reports()
        items = manager.call("ada", Ending.items)
        assert await anext(items) == 1
        assert isinstance(await outcome(anext(items)), Ended)


async def test_a_stream_is_for_one_consumer():
    async with feeds_and_readers() as (feeds, _):
        items = feeds.call("feed", Feed.ordinary)
        takers = [asyncio.create_task(_take(items)) for _ in range(2)]
        told = [await outcome(taker) for taker in takers]
        await items.aclose()
        assert [type(one) for one in told] == [int, UsageError]


async def _take(items) -> int:
    return await anext(items)


async def test_a_stream_that_is_closed_before_its_first_step_leaves_nobody_waiting():
    async with InstanceManager(Chat, store=MemoryStore()) as chats:
        items = chats.call("ada", Chat.count, 3)
        first = asyncio.ensure_future(anext(items))
        end = asyncio.create_task(items.aclose())
        assert await outcome(end) is None
        assert isinstance(await outcome(first), ClosedError)


class Deaf(Agent):
    """Keeps the first cancellation to itself."""

    n: int = 0

    @stream(provisional=True)
    async def numbers(self, more: asyncio.Event):
        while True:
            self.n += 1
            yield self.n
            with contextlib.suppress(asyncio.CancelledError):
                await more.wait()

    @interleave
    async def looks(self, more: asyncio.Event):
        while True:
            yield self.n
            with contextlib.suppress(asyncio.CancelledError):
                await more.wait()

    @readonly
    async def read(self) -> int:
        return self.n


@pytest.mark.parametrize("method", [Deaf.numbers, Deaf.looks])
async def test_a_provisional_stream_that_keeps_a_cancellation_to_itself_ends_all_the_same(method):
    more = asyncio.Event()
    async with InstanceManager(Deaf, store=MemoryStore()) as agents:
        items = agents.call("ada", method, more)
        await anext(items)
        await rest()
        assert await outcome(items.aclose()) is None
        assert await outcome(agents.call("ada", Deaf.read)) == 0


@pytest.mark.parametrize("method", [Deaf.numbers, Deaf.looks])
async def test_a_provisional_stream_that_keeps_its_timeout_to_itself_ends_all_the_same(method):
    clock, more = ManualClock(), asyncio.Event()
    async with InstanceManager(Deaf, store=MemoryStore(), clock=clock, turn_timeout=1) as agents:
        items = agents.call("ada", method, more)
        await anext(items)
        await rest()
        clock.advance(1)
        assert isinstance(await outcome(anext(items)), TurnTimeoutError)


class Leaver(Agent):
    """Takes items of a chat inside a turn of its own."""

    async def leave_early(self, chat: Chat, how: str) -> int:
        if how == "break":
            async for _ in chat.for_ever():
                break
        elif how == "aclose":
            async with chat.for_ever() as items:
                await anext(items)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    async for _ in chat.for_ever():
                        pass
        gc.collect()
        return len(await chat.read())

    async def beside(self, chat: Chat) -> tuple[list[int], int]:
        async def take() -> list[int]:
            return [number async for number in chat.count(3)]

        taking = asyncio.create_task(take())
        await asyncio.sleep(0)
        said = await chat.read()
        return await taking, len(said)


@pytest.mark.parametrize("how", ["break", "aclose", "timeout"])
async def test_a_turn_that_left_a_stream_may_call_its_agent(how):
    async with InstanceManager(Chat, store=MemoryStore(), context=None) as chats, InstanceManager(Leaver) as leavers:
        assert await outcome(leavers.call("bob", Leaver.leave_early, chats.reference("ada"), how)) >= 0


async def test_a_turn_may_call_an_agent_whose_stream_a_task_of_its_own_takes():
    async with InstanceManager(Chat, store=MemoryStore(), context=None) as chats, InstanceManager(Leaver) as leavers:
        found = await outcome(leavers.call("bob", Leaver.beside, chats.reference("ada")))
        assert found == ([0, 1, 2], 0)


async def test_a_stream_is_taken_in_the_loop_of_its_manager():
    async with InstanceManager(Chat, store=MemoryStore(), context=None) as chats:
        items = chats.call("ada", Chat.count, 3)

        async def take() -> int:
            return await anext(items)

        with pytest.raises(UsageError, match="another event loop or thread"):
            await asyncio.to_thread(asyncio.run, take())
        assert await outcome(anext(items)) == 0
        with pytest.raises(UsageError, match="another event loop or thread"):
            await asyncio.to_thread(asyncio.run, take())
        assert await outcome(anext(items)) == 1
        held, carried = chats.attach("ada"), chats.call("ada", Chat.read)

        async def attach() -> None:
            async with held:
                pass

        async def call() -> None:
            await carried

        for elsewhere in (attach(), call()):
            with pytest.raises(UsageError, match="another event loop or thread"):
                await asyncio.to_thread(asyncio.run, elsewhere)
