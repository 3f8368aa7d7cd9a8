"""References: addresses that can be compared, kept in sets, and sent."""

from __future__ import annotations

import pickle

import pytest
from agents import Counter

from overwinter import InstanceManager, MemoryStore, Persistence
from overwinter.errors import ClosedError, UsageError


async def test_references_to_one_agent_are_equal():
    async with InstanceManager(Counter) as counters, InstanceManager(Counter) as others:
        ada = await counters.get("ada")
        assert ada == counters.reference("ada") == counters.options(call_id="1").reference("ada")
        assert len({ada, counters.reference("ada"), counters.reference("bob")}) == 2
        assert ada != others.reference("ada")
        assert ada != counters.reference("bob")
        assert ada != "ada"


async def test_a_reference_can_be_pickled_where_its_manager_is_open():
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        sent = pickle.dumps(await counters.get("ada"))
        back = pickle.loads(sent)
        assert back == counters.reference("ada")
        assert await back.increment() == 1
        async with InstanceManager(Counter):
            with pytest.raises(UsageError, match="2 managers of Counter are open"):
                pickle.loads(sent)
    with pytest.raises(UsageError, match="0 managers of Counter are open"):
        pickle.loads(sent)


async def test_making_a_reference_starts_nothing():
    async with InstanceManager(Counter) as counters:
        ada = counters.reference("ada")
        assert counters.keys() == []
        assert ada.key == "ada"
        assert repr(ada) == "<reference to Counter 'ada'>"


async def test_a_notebook_opens_and_closes_by_hand():
    store = MemoryStore()
    counters = InstanceManager(Counter, store=store, durability="hibernate")
    await counters.open()
    ada = await counters.get("ada")
    assert await ada.increment() == 1
    await counters.close()
    await counters.close()
    with pytest.raises(ClosedError):
        ada.increment()
    async with Persistence(store) as persistence:
        assert (await persistence.thaw(Counter, "ada")).count == 1


async def test_a_counter_is_a_plain_object_in_a_unit_test():
    counter = Counter(count=1)
    assert await counter.increment() == 2
    assert counter == Counter(count=2)
