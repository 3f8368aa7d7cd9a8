"""The direct API: hibernate and thaw by hand, also when a write has no known outcome."""

from __future__ import annotations

import asyncio
import struct
from functools import partial

import msgspec
import pytest
from agents import Counter
from pydantic import BaseModel
from waiting import pass_time, rest

from overwinter import Agent, InstanceManager, MemoryStore, Persistence, upcast
from overwinter.agent import agent_type
from overwinter.agent._receipts import add_receipt
from overwinter.errors import (
    CorruptRecordError,
    InvalidKeyError,
    OutcomeUnknownError,
    RevisionConflictError,
    StateTooLargeError,
    StoreUnavailableError,
)
from overwinter.persistence import Keeper, default_key
from overwinter.record import MAX_BYTES, pack, unpack
from overwinter.stores.base import Expect
from overwinter.testing import FaultyStore, ManualClock


class Renamed(Agent, aliases=("before",)):
    count: int = 0


async def count(persistence: Persistence, key: str) -> int:
    counter = await persistence.thaw(Counter, key)
    assert counter is not None
    return counter.count


async def test_an_agent_is_hibernated_as_often_as_one_likes():
    async with Persistence(MemoryStore()) as persistence:
        counter = Counter()
        for counter.count in (1, 2, 3):
            await persistence.hibernate("ada", counter)
            assert await count(persistence, "ada") == counter.count


async def test_of_two_hibernations_at_once_the_later_one_is_stored_last():
    store = FaultyStore(MemoryStore())
    async with Persistence(store) as persistence:
        counter = Counter()
        await persistence.hibernate("ada", counter)
        gate = store.hold("put")  # the first request is slow to arrive
        counter.count = 1
        first = asyncio.create_task(persistence.hibernate("ada", counter))
        await gate.reached()
        counter.count = 2
        second = asyncio.create_task(persistence.hibernate("ada", counter))
        await rest()
        gate.release()
        await asyncio.gather(first, second)
        assert await count(persistence, "ada") == 2


async def test_two_first_hibernations_at_once_are_in_one_line():
    store = FaultyStore(MemoryStore())
    async with Persistence(store) as persistence:
        counter = Renamed()
        gate = store.hold("head")
        both = [asyncio.create_task(persistence.hibernate("ada", counter)) for _ in range(2)]
        while gate.waiting < 2:
            await asyncio.sleep(0)
        gate.release()
        await asyncio.gather(*both)
        counter.count = 3
        await persistence.hibernate("ada", counter)
        found = await persistence.thaw(Renamed, "ada")
        assert found is not None
        assert found.count == 3


async def test_under_another_key_it_is_another_agent():
    async with Persistence(MemoryStore()) as persistence:
        await persistence.hibernate("ada", Counter(count=1))
        await persistence.hibernate("bob", Counter(count=2))
        ada = await persistence.thaw(Counter, "ada")
        with pytest.raises(RevisionConflictError, match="'bob'"):
            await persistence.hibernate("bob", ada)
        await persistence.hibernate("eve", ada)
        assert [await count(persistence, key) for key in ("ada", "bob", "eve")] == [1, 2, 1]


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
async def test_repeated_after_an_unknown_outcome_it_finds_out(fresh, landed):
    store = FaultyStore(MemoryStore())
    async with Persistence(store) as persistence:
        counter = Counter(count=1)
        if not fresh:
            await persistence.hibernate("ada", counter)
            counter.count = 2
        store.fail("put", OutcomeUnknownError("the connection was reset"), after=landed)
        with pytest.raises(OutcomeUnknownError):
            await persistence.hibernate("ada", counter)
        counter.count = 3
        await persistence.hibernate("ada", counter)
        assert await count(persistence, "ada") == 3
        counter.count = 4  # and the line goes on from there
        await persistence.hibernate("ada", counter)
        assert await count(persistence, "ada") == 4


@pytest.mark.parametrize("error", [OutcomeUnknownError, StoreUnavailableError])
async def test_what_somebody_else_wrote_meanwhile_is_not_taken_for_an_earlier_try(error):
    store = FaultyStore(MemoryStore())
    async with Persistence(store) as persistence:
        await persistence.hibernate("ada", Counter(count=1))
        mine, other = [await persistence.thaw(Counter, "ada") for _ in range(2)]
        mine.count, other.count = 10, 20
        store.fail("put", error("as asked"))
        with pytest.raises(error):
            await persistence.hibernate("ada", mine)
        await persistence.hibernate("ada", other)
        for _ in range(2):
            with pytest.raises(RevisionConflictError, match="Counter 'ada' was written by somebody else"):
                await persistence.hibernate("ada", mine)
        assert await count(persistence, "ada") == 20


async def test_a_conflict_without_an_earlier_try_asks_nobody():
    store = FaultyStore(MemoryStore())
    async with Persistence(store) as persistence:
        await persistence.hibernate("ada", Counter())
        store.fail("put", StoreUnavailableError("disk full"))
        mine = Counter()
        with pytest.raises(StoreUnavailableError):
            await persistence.hibernate("ada", mine)
        with pytest.raises(RevisionConflictError):
            await persistence.hibernate("ada", mine)
        assert store.calls["head"] == 0


async def test_what_is_too_large_is_refused_and_the_bound_itself_is_not():
    async with Persistence(MemoryStore(), max_state=100) as persistence:
        small, large = Counter(notes=["x"]), Counter(notes=["x" * 200])
        await persistence.hibernate("ada", small)
        with pytest.raises(StateTooLargeError, match="max_state=100"):
            await persistence.hibernate("bob", large)
        keeper = persistence._keeper(Counter)
        keeper.max_state = len(keeper.encode(small))
        await persistence.hibernate("ada", small)


@pytest.mark.parametrize("max_state", [0, MAX_BYTES - 64 * 1024 + 1, 2**30])
def test_a_bound_that_no_record_could_hold_is_refused(max_state):
    for make in (Persistence, partial(InstanceManager, Counter)):
        with pytest.raises(ValueError, match="max_state must be 1 to 268,369,920 bytes"):
            make(store=MemoryStore(), max_state=max_state)
        make(store=MemoryStore(), max_state=MAX_BYTES - 64 * 1024)


def test_a_state_at_the_largest_bound_fits_a_record_with_the_longest_of_all_that_stands_beside_it():
    class Long(Agent, name="x" * 255):
        pass

    keeper = Keeper(agent_type(Long), None)
    receipts = ()
    for n in range(64):
        receipts = add_receipt(receipts, (f"{n:#>128}", "m" * 99, bytes(8), bytes(4096)))
        receipts = add_receipt(receipts, ("\N{OLIVE}" * 127 + chr(300 + n), "m" * 99, bytes(8), None))
    record = keeper.record("\N{OLIVE}" * 256, b"", 2**64, bytes(16), {"x": 1}, receipts)
    assert len(record) < 64 * 1024


@pytest.mark.parametrize("sequence", [2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1])
async def test_a_record_that_says_it_is_the_last_there_can_be_is_followed_all_the_same(sequence):
    store, key = MemoryStore(), default_key("Counter", "ada")
    async with store, Persistence(store) as persistence:
        await persistence.hibernate("ada", Counter())
        stored = await store.get(key)
        header, body = unpack(stored.data)
        forged = pack(msgspec.structs.replace(header, sequence=sequence), body)
        await store.delete(key, expected=stored.revision)
        await store.put(key, forged, revision=header.revision, expected=Expect.ABSENT)
        async with InstanceManager(Counter, store=store) as counters:
            assert await counters.call("ada", Counter.increment) == 1
            assert await counters.call("ada", Counter.increment) == 2
        counter = await persistence.thaw(Counter, "ada")
        counter.count = 7
        await persistence.hibernate("ada", counter)
        assert (await persistence.thaw(Counter, "ada")).count == 7


async def test_a_migration_that_keeps_the_shape_is_seen_at_once_and_stored_with_the_next_change():
    class Metres(Agent, name="length"):
        length: int = 0

        async def set(self, length: int) -> None:
            self.length = length

    class Centimetres(Agent, name="length", version=2):
        length: int = 0

        @upcast(since=1)
        @staticmethod
        def _to_centimetres(old: dict) -> dict:
            return {"length": old["length"] * 100}

        async def grow(self, by: int) -> int:
            self.length += by
            return self.length

    store = FaultyStore(MemoryStore())
    async with InstanceManager(Metres, store=store) as metres:
        await metres.call("ada", Metres.set, 3)
    async with InstanceManager(Centimetres, store=store) as centimetres:
        assert (await centimetres.state("ada")).length == 300
        assert await centimetres.call("ada", Centimetres.grow, 0) == 300
        assert store.calls["put"] == 1  # it has not changed, so it is not written
        assert await centimetres.call("ada", Centimetres.grow, 5) == 305
    async with InstanceManager(Centimetres, store=store) as centimetres:
        assert (await centimetres.state("ada")).length == 305


async def test_it_opens_and_closes_its_store_and_refuses_what_is_no_key():
    store = FaultyStore(MemoryStore())
    async with Persistence(store) as persistence:
        assert (store.calls["open"], store.calls["close"]) == (1, 0)
        for bad in ("", "x" * 1025, 7):
            with pytest.raises(InvalidKeyError):
                await persistence.hibernate(bad, Counter())
            with pytest.raises(InvalidKeyError):
                await persistence.thaw(Counter, bad)
            with pytest.raises(InvalidKeyError):
                await persistence.delete(Counter, bad)
    assert (store.calls["open"], store.calls["close"]) == (1, 1)


class Gauge(BaseModel):
    level: float = 0.5


@pytest.mark.parametrize("starts", [True, False])
async def test_a_record_of_what_can_not_be_stored_again_does_not_come_alive(starts):
    class Tank(Agent):
        gauge: Gauge = Gauge()

        if starts:

            async def on_start(self) -> None:
                self.gauge = Gauge()

    store = MemoryStore()
    async with Persistence(store) as persistence:
        await persistence.hibernate("ada", Tank())
        stored = await store.get("Tank:ada")
        header, body = unpack(stored.data)
        forged = body.replace(b"\xcb" + struct.pack(">d", 0.5), b"\xa51E999")  # read as infinity, written as null
        await store.delete("Tank:ada", expected=Expect.ANY)
        await store.put("Tank:ada", pack(header, forged), revision=stored.revision, expected=Expect.ABSENT)
        with pytest.raises(CorruptRecordError, match="could not be stored again"):
            await persistence.thaw(Tank, "ada")
        async with InstanceManager(Tank, store=store) as tanks:
            with pytest.raises(CorruptRecordError, match="could not be stored again"):
                await tanks.get("ada")
        assert (await store.get("Tank:ada")).data == pack(header, forged)


async def test_a_new_agent_over_one_that_is_stored_under_a_former_name_is_a_conflict():
    class Old(Agent, name="old"):
        n: int = 0

    class New(Agent, name="new", aliases=("old",)):
        n: int = 0

    async with Persistence(MemoryStore()) as persistence:
        await persistence.hibernate("a", Old(n=1))
        with pytest.raises(RevisionConflictError, match="former name"):
            await persistence.hibernate("a", New(n=100))
        agent = await persistence.thaw(New, "a")
        assert agent is not None
        assert agent.n == 1
        await persistence.hibernate("a", agent)
        await persistence.hibernate("b", New(n=2))


async def test_a_copy_under_another_key_keeps_what_a_newer_class_wrote_and_the_agent_its_own_line():
    class Small(Agent, name="growing"):
        a: int = 0

    class Large(Agent, name="growing"):
        a: int = 0
        b: int = 0

    async with Persistence(MemoryStore()) as persistence:
        await persistence.hibernate("a", Large(a=1, b=2))
        agent = await persistence.thaw(Small, "a")
        assert agent is not None
        await persistence.hibernate("copy", agent)
        agent.a = 5
        await persistence.hibernate("a", agent)
        copy, original = await persistence.thaw(Large, "copy"), await persistence.thaw(Large, "a")
        assert copy is not None
        assert original is not None
        assert ((copy.a, copy.b), (original.a, original.b)) == ((1, 2), (5, 2))


async def test_a_record_says_how_many_writes_there_were():
    async def sequence() -> int:
        found = await store.get("Counter:ada")
        assert found is not None
        return unpack(found.data)[0].sequence

    store = FaultyStore(MemoryStore())
    async with Persistence(store) as persistence:
        counter = Counter()
        await persistence.hibernate("ada", counter)
        await persistence.hibernate("ada", counter)
        assert await sequence() == 2
    clock = ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock) as counters:
        await counters.call("ada", Counter.increment)
        assert await sequence() == 3
        store.fail("put", OutcomeUnknownError("lost"), after=True)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, call.done)
        assert await sequence() == 5  # what had landed, and what was put on top of it


async def test_a_store_that_hangs_is_given_up_at_its_timeout_by_hand_too():
    store = FaultyStore(MemoryStore())
    store.timeout = 0.01
    async with Persistence(store) as persistence:
        one = Renamed(count=1)
        gate = store.hold("head")  # is it there under its former name?
        with pytest.raises(StoreUnavailableError, match="did not answer"):
            await persistence.hibernate("ada", one)
        gate.release()
        gate = store.hold("put")
        with pytest.raises(OutcomeUnknownError, match="did not answer"):
            await persistence.hibernate("ada", one)
        gate.release()
        await persistence.hibernate("ada", one)
        found = await persistence.thaw(Renamed, "ada")
        assert found is not None
        assert found.count == 1
