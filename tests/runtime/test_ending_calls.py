"""Calls that are ended from outside: ``manager.cancel(key)`` and ``turn_timeout``. Whole or not at all, as ever."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial

import pytest
from waiting import outcome, pass_time, rest, stored

from overwinter import Agent, InstanceManager, MemoryStore, commit, interleave, readonly
from overwinter.errors import TurnCancelledError, TurnTimeoutError
from overwinter.testing import FaultyStore, ManualClock, until


class Writer(Agent):
    """Writes until somebody tells it to stop."""

    words: list[str] = []

    async def on_start(self, context) -> None:
        self.context = context

    async def write(self, event: asyncio.Event) -> int:
        self.words.append("draft")
        try:
            await event.wait()
        except asyncio.CancelledError:
            self.context["saw"].append("CancelledError")
            raise
        return len(self.words)

    async def write_deaf(self, event: asyncio.Event) -> str:
        self.words.append("draft")
        try:
            await event.wait()
        except asyncio.CancelledError:
            return "never mind"
        return "done"

    async def write_in_two_steps(self, event: asyncio.Event) -> None:
        self.words.append("first")
        await commit()
        self.words.append("second")
        await event.wait()

    async def dictate(self, event: asyncio.Event):
        for word in ("one", "two"):
            self.words.append(word)
            yield word
        self.words.append("three")
        await event.wait()
        yield "three"

    async def babble(self):
        while True:
            self.words.append("bla")
            yield "bla"

    async def end_itself(self) -> str:
        self.words.append("draft")
        self.context["writers"].cancel(self.key)
        return "done"

    async def end_caller(self, caller: str) -> None:
        self.words.append("draft")
        self.context["writers"].cancel(caller)
        await asyncio.Event().wait()

    async def be_ended_by(self, other: str) -> None:
        self.words.append("draft")
        await self.context["writers"].call(other, Writer.end_caller, self.key)

    async def ask(self, other: str, event: asyncio.Event) -> str:
        self.words.append("asked")
        try:
            await self.context["writers"].call(other, Writer.write, event)
        except (TurnCancelledError, TurnTimeoutError) as error:
            self.words.append(type(error).__name__)
        return "answered"

    async def add(self, word: str) -> int:
        self.words.append(word)
        return len(self.words)

    @readonly
    async def watch(self, event: asyncio.Event) -> None:
        await event.wait()

    @interleave
    async def peek(self, event: asyncio.Event) -> None:
        await event.wait()

    @readonly
    async def read(self) -> list[str]:
        return list(self.words)


class Writers:
    """A manager of writers and what its agents are told."""

    def __init__(self, **options) -> None:
        self.clock, self.store = ManualClock(), FaultyStore(MemoryStore())
        self.context: dict = {"saw": []}
        self.manager = self.context["writers"] = InstanceManager(
            Writer, **{"store": self.store, "clock": self.clock, "context": self.context, **options}
        )

    async def __aenter__(self) -> InstanceManager[Writer]:
        return await self.manager.__aenter__()

    async def __aexit__(self, *exc: object) -> None:
        await self.manager.__aexit__(*exc)


async def running(manager, key: str = "a", calls: int = 1) -> None:
    await until(lambda: manager.inspect(key).running == calls)


# ---------------------------------------------------------------- cancel


@pytest.mark.parametrize("store", [None, MemoryStore()], ids=["without a store", "with one"])
async def test_cancel_ends_the_running_call_and_rolls_it_back(store):
    async with (setup := Writers(store=store)) as writers:
        await writers.call("a", Writer.add, "kept")
        call = asyncio.create_task(writers.call("a", Writer.write, asyncio.Event()))
        await running(writers)
        assert writers.cancel("a") is True
        with pytest.raises(TurnCancelledError, match=r"Writer 'a'.*rolled back"):
            await asyncio.wait_for(call, 5)
        assert setup.context["saw"] == ["CancelledError"]
        assert await outcome(writers.call("a", Writer.read)) == ["kept"]
        assert await outcome(writers.call("a", Writer.add, "next")) == 2


async def test_a_caller_whose_call_was_cancelled_is_not_cancelled_itself():
    async with Writers() as writers:

        async def caller() -> str:
            with pytest.raises(TurnCancelledError):
                await writers.call("a", Writer.write, asyncio.Event())
            await rest(3)  # where a leftover cancellation would strike
            assert asyncio.current_task().cancelling() == 0
            return "unharmed"

        task = asyncio.create_task(caller())
        await running(writers)
        writers.cancel("a")
        assert await outcome(task) == "unharmed"


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("method", [Writer.write, Writer.write_deaf])
async def test_a_caller_who_is_cancelled_too_is_cancelled_if_its_call_was(method, ours_first):
    async with Writers() as writers:

        async def caller() -> str:
            try:
                return await writers.call("a", method, asyncio.Event())
            except TurnCancelledError:
                assert asyncio.current_task().cancelling() == 1  # its own, which it has not heard of yet
                return "told"

        task = asyncio.create_task(caller())
        await running(writers)
        for end in (partial(writers.cancel, "a"), task.cancel)[:: 1 if ours_first else -1]:
            end()
        deaf = method is Writer.write_deaf  # the body kept the cancellation to itself
        assert isinstance(await outcome(task), str if deaf else asyncio.CancelledError)
        assert await outcome(writers.call("a", Writer.read)) == []


async def test_an_agent_that_cancels_its_own_call_ends_that_call_and_nothing_after_it():
    async with Writers() as writers:

        async def caller() -> str:
            with pytest.raises(TurnCancelledError):
                await writers.call("a", Writer.end_itself)
            await rest(3)  # where a leftover cancellation would strike
            return "unharmed"

        assert await outcome(caller()) == "unharmed"
        assert await outcome(writers.call("a", Writer.read)) == []


async def test_an_agent_may_cancel_the_call_that_called_it():
    async with Writers() as writers:
        assert isinstance(await outcome(writers.call("a", Writer.be_ended_by, "b")), TurnCancelledError)
        assert [await outcome(writers.call(key, Writer.read)) for key in "ab"] == [[], []]


async def test_cancel_with_nothing_running_is_false_and_starts_nothing():
    async with Writers() as writers:
        assert writers.cancel("a") is False
        assert writers.inspect("a").state == "cold"
        await writers.call("a", Writer.add, "kept")
        assert writers.cancel("a") is False
        assert await writers.call("a", Writer.add, "next") == 2


async def test_cancel_leaves_alone_a_call_that_waits_for_the_store_only():
    async with (setup := Writers()) as writers:
        gate = setup.store.hold("put")
        call = asyncio.create_task(writers.call("a", Writer.add, "kept"))
        await gate.reached()
        assert writers.cancel("a") is False
        gate.release()
        assert await outcome(call) == 1


async def test_calls_that_wait_for_their_turn_have_it_after_a_cancel():
    async with Writers() as writers:
        call = asyncio.create_task(writers.call("a", Writer.write, asyncio.Event()))
        await running(writers)
        waiting = [asyncio.create_task(writers.call("a", Writer.add, word)) for word in ("one", "two")]
        await until(lambda: writers.stats().queued == 2)
        writers.cancel("a")
        assert isinstance(await outcome(call), TurnCancelledError)
        assert [await outcome(task) for task in waiting] == [1, 2]


async def test_a_cancelled_call_that_returns_all_the_same_has_no_effect():
    async with Writers() as writers:
        call = asyncio.create_task(writers.call("a", Writer.write_deaf, asyncio.Event()))
        await running(writers)
        writers.cancel("a")
        assert isinstance(await outcome(call), TurnCancelledError)
        assert await writers.call("a", Writer.read) == []


async def test_a_cancelled_call_rolls_back_to_its_last_commit():
    async with (setup := Writers()) as writers:
        call = asyncio.create_task(writers.call("a", Writer.write_in_two_steps, asyncio.Event()))
        await until(lambda: setup.store.calls["put"] == 1)
        await rest()
        writers.cancel("a")
        assert isinstance(await outcome(call), TurnCancelledError)
        assert await writers.call("a", Writer.read) == ["first"]
        assert (await stored(setup.store.inner, Writer, "a")).words == ["first"]


async def test_cancel_ends_readers_where_no_call_changes_state_and_lets_interleaved_ones_look_on():
    async with Writers() as writers:
        event = asyncio.Event()
        readers = [asyncio.create_task(writers.call("a", Writer.watch, event)) for _ in range(2)]
        looking = asyncio.create_task(writers.call("a", Writer.peek, event))
        await running(writers, calls=3)
        assert writers.cancel("a") is True
        for call in readers:
            assert isinstance(await outcome(call), TurnCancelledError)
        assert writers.cancel("a") is False
        event.set()
        assert not isinstance(await outcome(looking), Exception)


async def test_a_cancelled_stream_ends_with_the_error_after_the_items_that_were_sent():
    async with Writers() as writers:
        items = writers.call("a", Writer.dictate, asyncio.Event())
        assert [await anext(items), await anext(items)] == ["one", "two"]
        await rest()
        assert writers.cancel("a") is True
        assert isinstance(await outcome(anext(items)), TurnCancelledError)
        assert isinstance(await outcome(anext(items)), StopAsyncIteration)
        assert await outcome(writers.call("a", Writer.read)) == ["one", "two"]


async def test_a_stream_that_nobody_takes_items_from_can_be_cancelled():
    async with Writers() as writers:
        items = writers.call("a", Writer.babble)
        await anext(items)
        await rest(200)  # its buffer is full
        assert writers.cancel("a") is True
        words = await outcome(writers.call("a", Writer.read))
        sent = 1
        while await outcome(anext(items)) == "bla":
            sent += 1
        assert sent >= 16
        assert len(words) - sent in (0, 1)  # the last one was a commit point, and did not leave any more


async def test_a_method_whose_call_to_another_agent_is_cancelled_may_go_on():
    async with Writers() as writers:
        call = asyncio.create_task(writers.call("a", Writer.ask, "b", asyncio.Event()))
        await running(writers, "b")
        assert writers.cancel("b") is True
        assert await outcome(call) == "answered"
        assert await writers.call("a", Writer.read) == ["asked", "TurnCancelledError"]
        assert await writers.call("b", Writer.read) == []


async def test_a_cancelled_method_takes_the_call_that_it_waits_for_with_it():
    async with (setup := Writers()) as writers:
        call = asyncio.create_task(writers.call("a", Writer.ask, "b", asyncio.Event()))
        await running(writers, "b")
        assert writers.cancel("a") is True
        assert isinstance(await outcome(call), TurnCancelledError)
        assert setup.context["saw"] == ["CancelledError"]
        assert [await writers.call(key, Writer.read) for key in "ab"] == [[], []]


# ---------------------------------------------------------------- turn_timeout


async def test_a_call_that_runs_longer_than_turn_timeout_is_ended_and_rolled_back():
    async with (setup := Writers(turn_timeout=10)) as writers:
        await writers.call("a", Writer.add, "kept")
        call = asyncio.create_task(writers.call("a", Writer.write, asyncio.Event()))
        await running(writers)
        setup.clock.advance(9.9)
        await rest()
        assert not call.done()
        setup.clock.advance(0.1)
        with pytest.raises(TurnTimeoutError, match=r"Writer 'a'.*write\(\).*turn_timeout=10 s") as caught:
            await asyncio.wait_for(call, 5)
        assert isinstance(caught.value, TimeoutError)
        assert call.cancelling() == 0
        assert setup.context["saw"] == ["CancelledError"]
        assert await outcome(writers.call("a", Writer.add, "next")) == 2


async def test_the_time_in_the_queue_does_not_count():
    async with (setup := Writers(turn_timeout=timedelta(seconds=10))) as writers:
        events = [asyncio.Event(), asyncio.Event()]
        calls = [asyncio.create_task(writers.call("a", Writer.write, event)) for event in events]
        await until(lambda: writers.stats().queued == 1)
        for event, call in zip(events, calls, strict=True):
            await rest()
            setup.clock.advance(9)
            event.set()
            assert isinstance(await outcome(call), int)


@pytest.mark.parametrize("verb", ["get", "put"])
async def test_the_time_that_the_store_takes_does_not_count(verb):
    async with (setup := Writers(turn_timeout=10)) as writers:
        gate = setup.store.hold(verb)
        call = asyncio.create_task(writers.call("a", Writer.add, "kept"))
        await gate.reached()
        setup.clock.advance(1000)
        gate.release()
        assert await outcome(call) == 1


async def test_a_call_that_is_in_time_leaves_no_timer_behind():
    async with (setup := Writers(turn_timeout=10)) as writers:
        await writers.call("a", Writer.add, "kept")
        assert isinstance(await outcome(writers.call("a", Writer.add)), TypeError)  # nor does one that fails
        assert setup.clock.timers == 0


async def test_a_stream_that_runs_too_long_is_ended_at_its_last_item():
    async with (setup := Writers(turn_timeout=10)) as writers:
        items = writers.call("a", Writer.dictate, asyncio.Event())
        assert [await anext(items), await anext(items)] == ["one", "two"]
        await rest()
        setup.clock.advance(10)
        assert isinstance(await outcome(anext(items)), TurnTimeoutError)
        assert await outcome(writers.call("a", Writer.read)) == ["one", "two"]


async def test_a_call_to_another_agent_has_a_time_of_its_own():
    async with (setup := Writers(turn_timeout=10)) as writers:
        call = asyncio.create_task(writers.call("a", Writer.ask, "b", asyncio.Event()))
        await running(writers, "b")
        await pass_time(setup.clock, call.done, step=1)
        assert isinstance(call.exception(), TurnTimeoutError)  # a's came first, and took b's call with it
        assert [await writers.call(key, Writer.read) for key in "ab"] == [[], []]


@pytest.mark.parametrize("value", [-1, float("inf"), timedelta(seconds=-1)])
def test_a_turn_timeout_that_is_no_length_of_time_is_refused(value):
    with pytest.raises(ValueError, match="turn_timeout must be 0 or more seconds"):
        InstanceManager(Writer, turn_timeout=value)


async def test_that_a_call_was_too_slow_is_told_when_what_it_saw_is_durable():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    options = {"store": store, "clock": clock, "turn_timeout": 30, "context": {"saw": []}}
    async with InstanceManager(Writer, **options) as writers:
        await writers.get("a")
        gate = store.hold("put")
        go = asyncio.Event()
        go.set()
        first = asyncio.create_task(writers.call("a", Writer.write, go))
        await gate.reached()
        slow = asyncio.create_task(writers.call("a", Writer.write, asyncio.Event()))
        await rest()
        clock.advance(31)
        await rest()
        assert not slow.done()
        gate.release()
        assert isinstance(await outcome(slow), TurnTimeoutError)
        assert await outcome(first) == 1


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_call_that_is_ended_keeps_nothing_whatever_on_error_says(how):
    clock = ManualClock()
    options = {"durability": "hibernate", "on_error": "keep", "turn_timeout": 10, "clock": clock}
    async with InstanceManager(Writer, store=MemoryStore(), context={"saw": []}, **options) as manager:
        call = asyncio.create_task(manager.call("a", Writer.write, asyncio.Event()))
        await until(lambda: manager.inspect("a").running)
        if how == "cancel":
            assert manager.cancel("a")
        else:
            clock.advance(10)
        assert isinstance(await outcome(call), TurnCancelledError if how == "cancel" else TurnTimeoutError)
        assert (await manager.state("a")).words == []


async def test_the_time_of_an_interleaved_call_ends_with_it():
    class Looked(Writer):
        @interleave
        async def look(self) -> int:
            return len(self.words)

    clock = ManualClock()
    async with InstanceManager(Looked, clock=clock, turn_timeout=10, context={}) as manager:
        await manager.get("a")
        before = clock.timers
        assert await manager.call("a", Looked.look) == 0
        assert clock.timers == before
