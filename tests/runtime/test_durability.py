"""The gate: what a reply means, and what a failing store does to it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from typing import Any

import msgspec
import pytest
from agents import Counter
from waiting import reports

from overwinter import Agent, InstanceManager, MemoryStore, Persistence, readonly, transient, upcast
from overwinter.errors import (
    MailboxFullError,
    OutcomeUnknownError,
    StoreUnavailableError,
    SupersededError,
    ThawError,
)
from overwinter.persistence import default_key
from overwinter.record import unpack
from overwinter.testing import FaultyStore, ManualClock, until


async def stored(store, key: str, cls=Counter):
    async with Persistence(store) as persistence:
        return await persistence.thaw(cls, key)


async def test_a_reply_waits_for_its_put_and_the_next_turn_does_not():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.get("ada")
        gate = store.hold("put")
        calls = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(100)]
        await gate.reached()
        await until(lambda: counters._registry.servers["ada"].ledger.cur == 100)  # all turns are over
        assert not any(call.done() for call in calls)
        gate.release()
        assert await asyncio.gather(*calls) == list(range(1, 101))
        assert store.calls["put"] == 2  # the first turn's, and one for the ninety-nine that came meanwhile
        assert (await stored(store, "ada")).count == 100


async def test_a_reply_leaves_with_its_own_version_though_later_ones_wait():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, max_mailbox=3) as counters:
        await counters.get("ada")
        first, second = store.hold("put"), None
        calls = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(3)]
        await first.reached()
        await until(lambda: counters._registry.servers["ada"].ledger.cur == 3)
        second = store.hold("put")
        first.release()
        assert await calls[0] == 1
        await second.reached()
        assert not any(call.done() for call in calls[1:])
        assert counters._registry.servers["ada"].ledger.waiting == 2
        second.release()
        assert await asyncio.gather(*calls[1:]) == [2, 3]
        store.hold("put")  # nobody waits any more: there is room for three
        calls = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(4)]
        await until(lambda: any(call.done() for call in calls))
        assert [call.done() for call in calls] == [False, False, False, True]
        assert isinstance(calls[3].exception(), MailboxFullError)
        store.heal()
        assert await asyncio.gather(*calls[:3]) == [4, 5, 6]


async def test_readers_errors_and_copies_wait_for_the_version_they_saw():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.get("ada")
        gate = store.hold("put")
        write = asyncio.create_task(counters.call("ada", Counter.increment))
        await gate.reached()
        others = [
            asyncio.create_task(counters.call("ada", Counter.read)),
            asyncio.create_task(counters.call("ada", Counter.nothing)),
            asyncio.create_task(counters.call("ada", Counter.fail)),
            asyncio.create_task(counters.state("ada")),
        ]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in (write, *others))
        gate.release()
        read, nothing, failed, copy = await asyncio.gather(*others, return_exceptions=True)
        assert (read, nothing, copy.count) == (1, 1, 1)
        assert isinstance(failed, ValueError)


async def test_a_turn_that_changes_nothing_writes_nothing():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        assert await counters.call("ada", Counter.nothing) == 0
        assert await counters.call("ada", Counter.increment, 0) == 0
        with pytest.raises(ValueError, match="as asked"):
            await counters.call("ada", Counter.fail)
        assert store.calls["put"] == 0
        await counters.call("ada", Counter.increment)
        await counters.call("ada", Counter.nothing)
        assert store.calls["put"] == 1


async def test_there_and_back_while_a_put_is_in_flight_is_not_unchanged():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment, 0)
        gate = store.hold("put")
        calls = [asyncio.create_task(counters.call("ada", Counter.increment, by)) for by in (1, -1)]
        await gate.reached()
        gate.release()
        assert await asyncio.gather(*calls) == [1, 0]
        assert store.calls["put"] == 2
        assert (await stored(store, "ada")).count == 0


async def test_each_version_that_is_stored_has_the_next_number():
    store = FaultyStore(MemoryStore())
    for lives in (1, 2):
        async with InstanceManager(Counter, store=store) as counters:
            for turn in (1, 2, 3):
                await counters.call("ada", Counter.increment)
                data = (await store.get(default_key("Counter", "ada"))).data
                assert unpack(data)[0].sequence == 3 * (lives - 1) + turn


async def test_what_changes_while_a_save_is_under_way_is_put_no_earlier_than_it_must_be():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, durability="hibernate") as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("put")
        save = asyncio.create_task(counters.save("ada"))
        await gate.reached()
        await counters.call("ada", Counter.increment)
        gate.release()
        await save
        for _ in range(20):
            await asyncio.sleep(0)
        assert store.calls["put"] == 1
        assert counters.stats().dirty == 1
    assert (await stored(store, "ada")).count == 2


async def test_a_caller_cancelled_at_the_gate_stops_waiting_and_the_change_stays():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        gate = store.hold("put")
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await gate.reached()
        call.cancel()
        await asyncio.wait([call])
        gate.release()
        assert await counters.call("ada", Counter.increment) == 2
        assert (await stored(store, "ada")).count == 2


async def test_a_definite_failure_is_retried_and_nobody_notices():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=60) as counters:
        await counters.get("ada")
        store.fail("put", StoreUnavailableError("disk full"), times=3)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        while not call.done():
            await asyncio.sleep(0)
            clock.advance(1)
        assert await call == 1
        assert store.calls["put"] == 4


async def test_after_patience_nothing_unacknowledged_exists_and_callers_are_told():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=5) as counters:
        assert await counters.call("ada", Counter.increment) == 1
        store.fail("put", lambda: StoreUnavailableError("disk full"), times=math.inf)
        calls = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(3)]
        calls.append(asyncio.create_task(counters.call("ada", Counter.fail)))
        while not all(call.done() for call in calls):
            await asyncio.sleep(0)
            clock.advance(0.5)
        for call in calls:
            assert isinstance(call.exception(), StoreUnavailableError), call
        assert len({id(call.exception()) for call in calls}) == 4  # each has an error of its own
        assert isinstance(calls[3].exception().__cause__, ValueError)
        assert await counters.call("ada", Counter.read) == 1  # reads of what is durable go on
        with pytest.raises(StoreUnavailableError):  # writes fail fast now: no time has to pass
            await asyncio.wait_for(counters.call("ada", Counter.increment), 5)
        store.heal()
        assert await counters.call("ada", Counter.increment) == 2
        assert (await stored(store, "ada")).count == 2


async def test_a_turn_that_runs_when_patience_ends_is_ended_with_the_stores_error():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=1) as counters:
        await counters.get("ada")
        store.fail("put", lambda: StoreUnavailableError("disk full"), times=math.inf)
        gate = store.hold("put")
        first = asyncio.create_task(counters.call("ada", Counter.increment))
        await gate.reached()
        second = asyncio.create_task(counters.call("ada", Counter.wait, asyncio.Event(), 10))
        await until(lambda: counters.inspect("ada").running)
        gate.release()
        while not (first.done() and second.done()):
            await asyncio.sleep(0)
            clock.advance(0.5)
        assert isinstance(first.exception(), StoreUnavailableError)
        assert isinstance(second.exception(), StoreUnavailableError)
        assert second.cancelling() == 0
        assert await counters.call("ada", Counter.read) == 0
        store.heal()


@pytest.mark.parametrize("landed", [True, False])
async def test_an_unknown_outcome_is_resolved_by_another_put(landed):
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=60) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", OutcomeUnknownError("reset"), after=landed)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        while not call.done():
            await asyncio.sleep(0)
            clock.advance(0.1)
        assert await call == 2
        assert await counters.call("ada", Counter.increment) == 3
        assert (await stored(store, "ada")).count == 3


async def test_an_outcome_that_stays_unknown_is_told_and_still_resolved():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=5) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", lambda: OutcomeUnknownError("reset"), times=math.inf)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        while not call.done():
            await asyncio.sleep(0)
            clock.advance(0.5)
        assert isinstance(call.exception(), OutcomeUnknownError)
        with pytest.raises(StoreUnavailableError, match="not called"):
            await counters.call("ada", Counter.increment)
        store.heal()
        while counters.stats().dirty:
            await asyncio.sleep(0)
            clock.advance(0.5)
        assert await counters.call("ada", Counter.read) == 2
        assert (await stored(store, "ada")).count == 2


async def test_an_unknown_outcome_that_somebody_else_overtook():
    inner = MemoryStore()
    store, clock = FaultyStore(inner), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=60) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", OutcomeUnknownError("reset"))
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: store.calls["put"] == 2)
        async with Persistence(inner) as persistence:
            other = await persistence.thaw(Counter, "ada")
            other.count = 50
            await persistence.hibernate("ada", other)
        while not call.done():
            await asyncio.sleep(0)
            clock.advance(0.1)
        assert isinstance(call.exception(), OutcomeUnknownError)
        assert await counters.call("ada", Counter.increment) == 51


async def test_a_store_that_raises_what_it_likes_while_an_outcome_is_unknown():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=60) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", OutcomeUnknownError("reset"), after=True)
        store.fail("head", ConnectionResetError("bug"), times=2)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        while not call.done():
            await asyncio.sleep(0)
            clock.advance(0.1)
        assert await call == 2
        assert store.calls["head"] == 3


@pytest.mark.parametrize("verb", ["get", "head"])
async def test_a_store_that_raises_what_it_likes_on_reading(verb):
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, shared=True) as counters:
        if verb == "head":
            await counters.call("ada", Counter.increment)
        store.fail(verb, ConnectionResetError("by peer"))
        with pytest.raises((ThawError, StoreUnavailableError), match=r"Counter 'ada'.*can't be read") as caught:
            await counters.call("ada", Counter.increment)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert await counters.call("ada", Counter.increment) == (2 if verb == "head" else 1)


async def write_behind(store, by: int) -> None:
    async with Persistence(store) as persistence:
        other = await persistence.thaw(Counter, "ada")
        other.count += by
        await persistence.hibernate("ada", other)


async def test_a_stale_owner_is_told_and_its_copy_dropped():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        await write_behind(store, 10)
        with pytest.raises(SupersededError, match=r"Counter 'ada'"):
            await counters.call("ada", Counter.increment)
        assert await counters.call("ada", Counter.increment) == 12
        assert counters.stats().superseded == 1


async def test_superseded_retry_runs_the_call_again_on_what_is_there_now():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, superseded="retry") as counters:
        await counters.call("ada", Counter.increment)
        await write_behind(store, 10)
        assert await asyncio.gather(*(counters.call("ada", Counter.increment) for _ in range(5)))
        assert await counters.call("ada", Counter.read) == 16


async def test_calls_that_wait_when_the_copy_is_dropped_go_to_the_next_life():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        await write_behind(store, 10)
        event = asyncio.Event()
        running_gate = store.hold("put")
        first = asyncio.create_task(counters.call("ada", Counter.increment))
        await running_gate.reached()
        second = asyncio.create_task(counters.call("ada", Counter.wait, event, 5))
        await until(lambda: counters.inspect("ada").running)
        third = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: counters.stats().queued == 1)
        running_gate.release()
        assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], SupersededError)
        assert isinstance((await asyncio.gather(second, return_exceptions=True))[0], SupersededError)
        assert await third == 12


async def test_shared_owners_see_each_others_writes_at_the_start_of_a_turn():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, shared=True) as counters:
        assert await counters.call("ada", Counter.increment) == 1
        await write_behind(store, 10)
        assert await counters.call("ada", Counter.read) == 11
        await write_behind(store, 10)
        assert await counters.call("ada", Counter.increment) == 22


async def test_hibernate_replies_at_once_and_stores_on_stop():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store, durability="hibernate") as counters:
        assert await counters.call("ada", Counter.increment) == 1
        for _ in range(20):
            await asyncio.sleep(0)
        assert store.calls["put"] == 0
        assert counters.stats().dirty == 1
        assert counters.stats().dirty_since is not None
        await counters.save("ada")
        assert (await stored(store, "ada")).count == 1
        assert counters.stats().dirty == 0
        await counters.call("ada", Counter.increment)
        with pytest.raises(ValueError, match="as asked"):
            await counters.call("ada", Counter.fail)
        await counters.stop("ada")
        assert (await stored(store, "ada")).count == 2


async def test_a_failed_hibernation_keeps_the_agent_live_dirty_and_tried_again():
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(
        Counter, store=store, durability="hibernate", clock=clock, idle_timeout=60, store_patience=5
    ) as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", lambda: StoreUnavailableError("disk full"), times=math.inf)
        while not seen:
            clock.advance(10)
            await asyncio.sleep(0)
        assert isinstance(seen[0]["exception"], StoreUnavailableError)
        assert counters.stats().dirty == 1
        assert counters.inspect("ada").why_live == "it could not be stored"
        assert await counters.call("ada", Counter.increment) == 2  # alive, and calls go on
        store.heal()
        while counters.lookup("ada") is not None:
            clock.advance(10)
            await asyncio.sleep(0)
        assert (await stored(store, "ada")).count == 2


async def test_save_stores_a_fresh_agent_that_nothing_changed():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.get("ada")
        assert await stored(store, "ada") is None
        await counters.save("ada")
        assert (await stored(store, "ada")).count == 0


async def test_initial_and_on_start_make_a_fresh_agent_dirty_and_its_first_reply_waits():
    class Born(Agent):
        at: int = 0

        async def on_start(self) -> None:
            self.at = self.at or 7

        @readonly
        async def read(self) -> int:
            return self.at

    store = FaultyStore(MemoryStore())
    async with InstanceManager(Born, store=store) as manager:
        gate = store.hold("put")
        call = asyncio.create_task(manager.call("a", Born.read))
        await gate.reached()
        assert not call.done()
        gate.release()
        assert await call == 7
        assert (await stored(store, "a", Born)).at == 7


@pytest.mark.parametrize("error", [StoreUnavailableError("down"), OutcomeUnknownError("?"), RuntimeError("bug")])
async def test_only_absent_starts_fresh(error):
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        await counters.stop("ada")
        store.fail("get", error, times=2)
        outcomes = await asyncio.gather(
            *(counters.call("ada", Counter.increment) for _ in range(5)), return_exceptions=True
        )
        assert all(isinstance(outcome, (ThawError, RuntimeError)) for outcome in outcomes)
        assert counters.lookup("ada") is None
        store.heal()
        assert await counters.call("ada", Counter.increment) == 2


async def test_the_first_reply_of_an_agent_made_with_initial_waits_readonly_too():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        gate = store.hold("put")
        await counters.get("ada", initial={"count": 5})
        read = asyncio.create_task(counters.call("ada", Counter.read))
        await gate.reached()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not read.done()
        gate.release()
        assert await read == 5
        assert (await stored(store, "ada")).count == 5


async def test_every_put_has_a_write_id_of_its_own():
    store, seen = MemoryStore(), set()
    async with InstanceManager(Counter, store=store) as counters:
        for _ in range(5):
            await counters.call("ada", Counter.increment)
            seen.add((await store.get("Counter:ada")).revision)
        await counters.delete("ada")
        await counters.call("ada", Counter.increment)
        seen.add((await store.get("Counter:ada")).revision)  # nor does it come back after a delete
    assert len(seen) == 6
    assert {len(revision) for revision in seen} == {16}


async def test_what_was_told_is_dropped_when_the_change_could_not_be_stored():
    class Teller(Agent):
        n: int = 0

        async def on_start(self, context) -> None:
            self.counters = context

        async def pass_on(self) -> None:
            self.n += 1
            self.counters.tell("ada", Counter.increment)

    store = FaultyStore(MemoryStore())
    async with (
        InstanceManager(Counter, store=MemoryStore()) as counters,
        InstanceManager(Teller, store=store, context=counters, store_patience=0) as tellers,
    ):
        await tellers.get("t")
        store.fail("put", StoreUnavailableError("disk full"))
        with pytest.raises(StoreUnavailableError):
            await tellers.call("t", Teller.pass_on)
        await tellers.call("t", Teller.pass_on)
        await until(lambda: not tellers._home.tasks and not counters._home.tasks)
        assert await counters.call("ada", Counter.read) == 1  # the second one's


async def test_retrying_ends_with_patience():
    inner, clock, foreign = MemoryStore(), ManualClock(), 0

    class Overtaken(FaultyStore):
        """Somebody else writes just before each of our puts."""

        async def put(self, key, data, *, revision, expected):
            nonlocal foreign
            if foreign >= 0:
                foreign += 1
                await write_behind(inner, 1)
            await super().put(key, data, revision=revision, expected=expected)

    async with InstanceManager(
        Counter, store=Overtaken(inner), superseded="retry", clock=clock, store_patience=5
    ) as counters:
        async with Persistence(inner) as persistence:
            await persistence.hibernate("ada", Counter())
        call = asyncio.create_task(counters.call("ada", Counter.increment, 1000))
        while not call.done():
            await asyncio.sleep(0)
            clock.advance(0.01)
        assert isinstance(call.exception(), SupersededError)
        assert foreign > 2  # it was tried again
        done, foreign = foreign, -1
        assert await counters.call("ada", Counter.increment) == done + 1


async def test_another_agents_superseded_error_is_not_ones_own():
    runs = []

    class Outer(Agent):
        async def on_start(self, context) -> None:
            self.counters = context

        async def go(self) -> None:
            runs.append(1)
            await self.counters.call("ada", Counter.increment)

    inner = MemoryStore()
    async with (
        InstanceManager(Counter, store=inner) as counters,
        InstanceManager(Outer, context=counters, superseded="retry") as outers,
    ):
        await counters.call("ada", Counter.increment)
        await write_behind(inner, 10)
        with pytest.raises(SupersededError, match="Counter 'ada'"):
            await outers.call("o", Outer.go)
    assert runs == [1]


class Ticket(Agent, name="ticket"):
    number: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    uses: int = 0

    @readonly
    async def show(self) -> str:
        return self.number


class Plain(Agent, name="ticket"):
    uses: int = 0

    async def use(self) -> None:
        self.uses += 1


class Stamped(Agent, name="ticket", version=2):
    number: str
    uses: int = 0

    @staticmethod
    @upcast(since=1)
    def _number(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "number": uuid.uuid4().hex}

    @readonly
    async def show(self) -> str:
        return self.number


@pytest.mark.parametrize("durability", ["call", "hibernate"])
@pytest.mark.parametrize(("before", "kind"), [(None, Ticket), (Plain, Ticket), (Plain, Stamped)])
async def test_what_a_default_or_an_upcast_made_anew_is_stored_before_anybody_sees_it(before, kind, durability):
    store = FaultyStore(MemoryStore())
    if before is not None:
        async with InstanceManager(before, store=store) as manager:
            await manager.call("a", before.use)
    puts = store.calls["put"]
    async with InstanceManager(kind, store=store, durability=durability) as manager:
        shown = await manager.call("a", kind.show)
        assert store.calls["put"] - puts == (durability == "call")
    async with InstanceManager(kind, store=store) as manager:
        assert await manager.call("a", kind.show) == shown
    assert store.calls["put"] - puts == 1


async def test_a_default_that_is_always_alike_is_not_stored_for_being_seen():
    class Usual(Agent):
        numbers: list[int] = msgspec.field(default_factory=lambda: [1, 2])
        names: list[str] = []

        @readonly
        async def show(self) -> list[int]:
            return list(self.numbers)

    store = FaultyStore(MemoryStore())
    async with InstanceManager(Usual, store=store) as manager:
        assert await manager.call("a", Usual.show) == [1, 2]
    assert store.calls["put"] == 0


async def test_a_field_of_another_name_in_the_record_keeps_what_was_acknowledged_over_changes_of_the_class():
    class First(Agent, name="account"):
        balance: int = msgspec.field(default=0, name="bal")
        left: set[int] | list[int] = []

        async def add(self, by: int) -> int:
            self.balance += by
            return self.balance

    class Second(Agent, name="account"):
        note: str = ""
        balance: int = msgspec.field(default=0, name="bal")

        async def add(self, by: int) -> int:
            self.balance += by
            return self.balance

        async def fail(self) -> None:
            raise ValueError("as asked")

    store = MemoryStore()
    async with InstanceManager(First, store=store) as manager:
        assert await manager.call("a", First.add, 5) == 5
    async with InstanceManager(Second, store=store) as manager:
        assert await manager.call("a", Second.add, 100) == 105
        with pytest.raises(ValueError, match="as asked"):
            await manager.call("a", Second.fail)
        assert await manager.call("a", Second.add, 1) == 106
    async with InstanceManager(Second, store=store) as manager:
        assert (await manager.state("a")).balance == 106


async def test_a_class_whose_fields_were_moved_changes_nothing_by_being_read():
    class Before(Agent, name="moved"):
        a: int = 1
        b: int = 2

        async def set(self, a: int) -> None:
            self.a = a

    class After(Agent, name="moved"):
        b: int = 2
        a: int = 1

        @readonly
        async def read(self) -> tuple[int, int]:
            return self.a, self.b

    store, seen = FaultyStore(MemoryStore()), reports()
    async with InstanceManager(Before, store=store) as manager:
        await manager.call("x", Before.set, 7)
    async with InstanceManager(After, store=store) as manager:
        assert await manager.call("x", After.read) == (7, 2)
    assert (seen, store.calls["put"]) == ([], 1)


async def test_a_rollback_takes_back_what_a_load_of_ones_own_made_beside_the_fields():
    class Words(Agent, name="words"):
        count: int = 0
        words: list[str] = transient()

        def dump(self) -> list[str]:
            return getattr(self, "words", [])

        @classmethod
        def load(cls, data: list[str], version: int) -> Words:
            made = cls(count=len(data))
            made.words = data
            return made

        async def on_start(self) -> None:
            self.words = getattr(self, "words", [])

        async def add(self, word: str) -> None:
            self.words.append(word)
            if word == "bad":
                raise ValueError(word)

    store = MemoryStore()
    async with InstanceManager(Words, store=store) as manager:
        for word in ("good", "bad", "good"):
            with contextlib.suppress(ValueError):
                await manager.call("a", Words.add, word)
    async with InstanceManager(Words, store=store) as manager:
        assert (await manager.state("a")).words == ["good", "good"]
