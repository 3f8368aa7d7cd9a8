"""Everything is bounded: over a bound there is an error at once, or a wait with an end, but never memory."""

from __future__ import annotations

import asyncio

import pytest
from agents import Counter
from waiting import outcome, rest

from overwinter import Agent, InstanceManager, MemoryStore
from overwinter.errors import MailboxFullError, StateTooLargeError, StoreUnavailableError, ThawError, TooManyLiveError
from overwinter.runtime._home import Failures
from overwinter.runtime._room import PutBudget, Room
from overwinter.testing import FaultyStore, ManualClock, until


@pytest.mark.parametrize("durability", ["call", "hibernate"])
async def test_many_keys_pass_through_few_places(durability):
    async with InstanceManager(Counter, store=MemoryStore(), max_live=10, durability=durability) as counters:
        for _ in range(2):
            for n in range(100):
                await counters.call(str(n), Counter.increment)
                assert counters.stats().live <= 11
        await asyncio.gather(*(counters.call(str(n), Counter.increment) for n in range(20)))
        assert [(await counters.state(str(n))).count for n in (0, 19, 20, 99)] == [3, 3, 2, 2]


async def test_the_least_recently_used_clean_agent_goes_first():
    async with InstanceManager(Counter, store=MemoryStore(), max_live=3, durability="hibernate") as counters:
        for key in ("dirty", "old", "young"):
            await counters.get(key)
        await counters.call("dirty", Counter.increment)
        for key in ("old", "young"):
            await counters.call(key, Counter.read)
        await counters.get("new")
        assert sorted(counters.keys()) == ["dirty", "new", "young"]


async def test_attached_agents_stay_and_who_finds_no_place_is_told_in_time():
    clock = ManualClock()
    async with InstanceManager(Counter, store=MemoryStore(), max_live=2, clock=clock) as counters:
        async with counters.attach("a"), counters.attach("b"):
            late = asyncio.create_task(counters.call("c", Counter.increment))
            await until(lambda: clock.timers)
            clock.advance(10)
            with pytest.raises(TooManyLiveError, match=r"Counter 'c'.*raise max_live"):
                await late
            waiting = asyncio.create_task(counters.call("d", Counter.increment))
            await until(lambda: clock.timers)
        assert await waiting == 1  # a place became free
        assert len(counters.keys()) == 2


async def test_those_who_wait_for_a_place_are_bounded_too():
    clock = ManualClock()
    async with InstanceManager(Counter, store=MemoryStore(), max_live=1, clock=clock) as counters:
        async with counters.attach("a"):
            waiting = [asyncio.create_task(counters.get(str(n))) for n in range(1000)]
            await until(lambda: clock.timers == 1000)
            with pytest.raises(TooManyLiveError):
                await counters.get("one more")
        assert [reference.key for reference in await asyncio.gather(*waiting)] == [str(n) for n in range(1000)]


async def test_a_full_mailbox_is_an_error_at_once():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, max_mailbox=5) as counters:
        await counters.get("ada")
        gate = store.hold("put")
        calls = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(5)]
        await gate.reached()
        with pytest.raises(MailboxFullError, match="raise max_mailbox"):
            await counters.call("ada", Counter.increment)
        gate.release()
        assert await asyncio.gather(*calls) == [1, 2, 3, 4, 5]
        assert await counters.call("ada", Counter.increment) == 6


class Heavy(Agent):
    text: str = ""

    async def fill(self, size: int) -> int:
        self.text = "x" * size
        return size


async def test_bytes_on_their_way_to_the_store_are_bounded():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Heavy, store=store, max_state=40_000_000) as heavies:
        keys = [str(n) for n in range(8)]
        for key in keys:
            await heavies.get(key)
        gate = store.hold("put")
        calls = [asyncio.create_task(heavies.call(key, Heavy.fill, 20_000_000)) for key in keys]
        await gate.reached(4)
        await until(lambda: all(heavies._registry.servers[key].ledger.cur for key in keys))
        assert store.calls["put"] == 4  # 80 MB: one over the bound, and the rest wait
        gate.release()
        assert await asyncio.gather(*calls) == [20_000_000] * 8


async def test_a_put_waits_while_all_the_bytes_are_taken_and_goes_when_some_come_back():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Heavy, store=store) as heavies:
        budget = heavies._home.terms.budget
        gate = store.hold("put")
        first = asyncio.create_task(heavies.call("a", Heavy.fill, 10))
        await gate.reached()
        budget.left = 0
        second = asyncio.create_task(heavies.call("b", Heavy.fill, 10))
        await rest()
        assert store.calls["put"] == 1
        gate.release()
        assert [await outcome(first), await outcome(second)] == [10, 10]


class Moody(Agent):
    async def on_start(self, context) -> None:
        context[self.key] = context.get(self.key, 0) + 1
        if self.key == "bad" and context.get("broken", True):
            raise LookupError("no such thing")

    async def poke(self) -> str:
        return "ok"


async def test_a_key_that_keeps_failing_is_left_alone_for_a_while_and_no_other_key_is():
    clock, context = ManualClock(), {}
    async with InstanceManager(Moody, context=context, clock=clock) as moodies:
        for _ in range(4):
            with pytest.raises(ThawError, match="on_start raised LookupError"):
                await moodies.call("bad", Moody.poke)
        with pytest.raises(ThawError, match=r"on_start raised LookupError.*4 times in a row; it is tried again in"):
            await moodies.call("bad", Moody.poke)
        assert context["bad"] == 4
        assert await moodies.call("good", Moody.poke) == "ok"
        context["broken"] = False
        clock.advance(60)
        assert await moodies.call("bad", Moody.poke) == "ok"


def test_the_pause_after_a_failure_doubles_up_to_half_a_minute_and_few_failures_are_kept(monkeypatch):
    failures, error = Failures(), ThawError("as asked")
    pauses = []
    for _ in range(40):
        failures.note("ada", 0.0, error)
        pauses.append(failures._keys["ada"][1])
    assert pauses[:5] == [0, 0, 0, 0.2, 0.4]
    assert pauses[11] == pauses[-1] == 30
    with pytest.raises(ThawError, match="40 times"):
        failures.check("ada", 29.9)
    failures.check("ada", 30.0)
    monkeypatch.setattr(Failures, "MOST", 2)
    for key in ("bob", "eve", "ada"):  # whoever failed longest ago is forgotten first
        failures.note(key, 0.0, error)
    assert [key for key in ("ada", "bob", "eve") if failures.last(key)] == ["ada", "eve"]
    failures.forget("ada")
    failures.forget("eve")
    assert not failures


async def test_a_store_that_is_down_is_not_asked_without_end():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock) as counters:
        store.fail("get", lambda: StoreUnavailableError("down"), times=1e9)
        for _ in range(50):
            with pytest.raises(ThawError):
                await counters.call("ada", Counter.read)
        assert store.calls["get"] == 4
        store.heal()
        clock.advance(1)
        assert await counters.call("ada", Counter.read) == 0


@pytest.mark.parametrize("options", [{"max_live": 0}, {"max_mailbox": 0}])
async def test_a_bound_is_one_or_more(options):
    with pytest.raises(ValueError, match="1 or more"):
        InstanceManager(Counter, **options)


async def test_those_in_the_queue_count_for_the_mailbox_too():
    async with InstanceManager(Counter, max_mailbox=3) as counters:
        event = asyncio.Event()
        running = asyncio.create_task(counters.call("ada", Counter.wait, event))
        await until(lambda: counters.inspect("ada").running)
        waiting = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(3)]
        await until(lambda: counters.stats().queued == 3)
        with pytest.raises(MailboxFullError, match="3 calls wait already"):
            await counters.call("ada", Counter.increment)
        event.set()
        assert [await running, *await asyncio.gather(*waiting)] == [0, 1, 2, 3]


@pytest.mark.parametrize("gate", [False, True])
async def test_those_who_left_do_not_count_for_the_mailbox(gate):
    store, go_on = FaultyStore(MemoryStore()), asyncio.Event()
    async with InstanceManager(Counter, store=store, max_mailbox=3) as counters:
        if gate:
            held = store.hold("put")
        else:
            running = asyncio.create_task(counters.call("ada", Counter.wait, go_on))
            await until(lambda: counters.inspect("ada").running)
        waiting = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(3)]
        await rest()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        last = asyncio.create_task(counters.call("ada", Counter.increment))
        await rest()
        assert not last.done()
        if gate:
            held.release()
        else:
            go_on.set()
            await running
        assert await outcome(last) == (4 if gate else 1)


async def test_stops_that_nobody_waits_for_any_more_are_one_for_each_life():
    event = asyncio.Event()
    async with InstanceManager(Counter, store=MemoryStore(), max_mailbox=3) as counters:
        for life in (1, 2):
            running = asyncio.create_task(counters.call("ada", Counter.wait, event, 1))
            await until(lambda: counters.inspect("ada").running)
            for _ in range(5):
                stop = asyncio.create_task(counters.stop("ada"))
                await rest()
                stop.cancel()
                assert isinstance(await outcome(stop), asyncio.CancelledError)
            assert (counters.stats().queued, len(counters._home.tasks)) == (1, 1)
            late = asyncio.create_task(counters.call("ada", Counter.read))
            await until(lambda: counters.stats().queued == 2)
            event.set()
            assert [await outcome(running), await outcome(late)] == [life, life]
            assert counters.stats().hibernated == life  # the other one read in the next
            assert not counters._registry._stopping
            event.clear()


async def test_the_default_bound_of_a_state_is_four_megabytes():
    async with InstanceManager(Heavy, store=MemoryStore()) as heavies:
        assert await heavies.call("a", Heavy.fill, 4 * 1024 * 1024 - 100)
        with pytest.raises(StateTooLargeError, match=r"max_state=4,194,304"):
            await heavies.call("a", Heavy.fill, 4 * 1024 * 1024)
        assert len((await heavies.state("a")).text) == 4 * 1024 * 1024 - 100


async def test_an_initial_state_has_the_same_bound():
    store = MemoryStore()
    async with InstanceManager(Heavy, store=store, max_state=1000) as heavies:
        with pytest.raises(StateTooLargeError, match=r"Heavy 'a'.*max_state=1,000"):
            await heavies.get("a", initial={"text": "x" * 1000})
        assert (heavies.keys(), await store.count()) == ([], 0)
        await heavies.get("a", initial={"text": "x" * 900})


async def test_who_no_longer_waits_for_a_place_is_not_counted():
    room = Room(ManualClock(), 1, lambda: False)
    await room.enter("ada")
    waiting = asyncio.create_task(room.enter("bob"))
    await until(lambda: room.wanted)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not room.wanted
    room.leave()
    assert room.try_enter()
    assert not room.try_enter()


def test_whoever_waits_for_bytes_is_called_as_soon_as_one_is_left():
    budget, called = PutBudget(1), []
    budget.left = 0
    budget.wait(lambda: called.append("first"))
    budget.let_go()
    assert called == []
    budget.left = 1
    budget.let_go()
    assert called == ["first"]
    budget.let_go()
    assert called == ["first"]
