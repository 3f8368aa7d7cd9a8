"""Which agents are stored: keys back from what a store lists, for managers and without one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from agents import Counter

from overwinter import Agent, AgentSystem, InstanceManager, MemoryStore, Persistence, SQLiteStore
from overwinter.errors import ClosedError, CorruptRecordError, StoreUnavailableError, UsageError
from overwinter.stores import Expect, Store
from overwinter.testing import FaultyStore

HOSTILE = ["ada", "a:b", ":", "::", "%", "%3A", "Counter:x", "\0", "é", "e\u0301", "x" * 1024, "a_", "a%", "A"]


async def drain(keys: AsyncIterator[str]) -> list[str]:
    return sorted([key async for key in keys])


class Odd(Agent, name="Coun:ter%"):
    count: int = 0

    async def increment(self) -> None:
        self.count += 1


class Old(Agent, name="old"):
    count: int = 0


class Former(Agent, name="former"):
    count: int = 0


class New(Agent, name="new", aliases=("old", "former")):
    count: int = 0

    async def increment(self) -> None:
        self.count += 1


def by_path(name: str, key: str) -> str:
    return f"prod/{len(name)}/{name}/{key}"


async def junk(store: Store, key: str, data: bytes = b"no record") -> None:
    await store.put(key, data, revision=os.urandom(16), expected=Expect.ABSENT)


@pytest.mark.parametrize("key_fn", [None, by_path], ids=["default", "by path"])
async def test_keys_come_back_as_they_were_and_only_of_this_class(key_fn):
    store = MemoryStore()
    options = {"store": store, "key_fn": key_fn}
    async with InstanceManager(Counter, **options) as counters, InstanceManager(Odd, **options) as others:
        await asyncio.gather(*(counters.call(key, Counter.increment) for key in HOSTILE))
        await asyncio.gather(*(others.call(key, Odd.increment) for key in ("x", "ter:x")))
        await counters.get("never changed, so not stored")
        assert await drain(counters.stored_keys()) == sorted(HOSTILE)
        assert await drain(others.stored_keys()) == ["ter:x", "x"]
        assert (await counters.count_stored(), await others.count_stored()) == (len(HOSTILE), 2)
        for prefix in ("a", ":", "%", "e", "é", "Counter:", "nothing"):
            expected = sorted(key for key in HOSTILE if key.startswith(prefix))
            assert await drain(counters.stored_keys(prefix)) == expected
            assert await counters.count_stored(prefix) == len(expected)
        await counters.delete("ada")
        assert "ada" not in await drain(counters.stored_keys())
    async with Persistence(store, key_fn=key_fn) as persistence:
        assert await drain(persistence.keys(Odd)) == ["ter:x", "x"]
        assert await persistence.count(Counter) == len(HOSTILE) - 1
        assert await drain(persistence.keys(Counter, "a")) == ["a%", "a:b", "a_"]
        assert await persistence.count(Odd, "t") == 1


async def test_listing_thaws_nobody():
    store = MemoryStore()
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
    async with InstanceManager(Counter, store=store) as counters:
        assert await drain(counters.stored_keys()) == ["ada"]
        assert (counters.keys(), counters.stats().thawed) == ([], 0)


@pytest.mark.parametrize("key_fn", [None, by_path], ids=["default", "by path"])
async def test_records_under_former_names_are_listed_once(key_fn):
    store = MemoryStore()
    async with Persistence(store, key_fn=key_fn) as persistence:
        for cls, keys in ((New, "bd"), (Former, "bc"), (Old, "ab")):
            for key in keys:
                await persistence.hibernate(key, cls())
        await persistence.hibernate("other", Counter())
        assert await drain(persistence.keys(New)) == ["a", "b", "c", "d"]
        assert await persistence.count(New) == 4
        assert await drain(persistence.keys(Old)) == ["a", "b"]
    async with InstanceManager(New, store=store, key_fn=key_fn) as manager:
        await manager.call("a", New.increment)  # stays where it is, under its new name
        assert await drain(manager.stored_keys()) == ["a", "b", "c", "d"]
        assert await manager.count_stored("a") == 1


async def test_damage_under_one_name_hides_no_other_name():
    store = FaultyStore(MemoryStore())
    async with Persistence(store) as persistence:
        await persistence.hibernate("a", Old())
        await persistence.hibernate("b", New())
        store.fail("keys", CorruptRecordError("a file is damaged"), after=True, times=3)
        seen: list[str] = []
        with pytest.raises(CorruptRecordError, match="a file is damaged"):
            await collect(seen, persistence.keys(New))
        assert sorted(seen) == ["a", "b"]
        store.fail("head", CorruptRecordError("torn"), key="new:a")  # something is there, and was listed
        assert await drain(persistence.keys(New)) == ["b"]


async def collect(seen: list[str], keys: AsyncIterator[str]) -> None:
    async for key in keys:
        seen.append(key)  # noqa: PERF401  # what came before the error counts


async def test_with_a_key_function_what_can_not_be_read_is_told_last():
    store = MemoryStore()
    async with Persistence(store, key_fn=by_path) as persistence:
        await persistence.hibernate("a", Counter())
        for number in range(7):
            await junk(store, f"junk {number}")
        await persistence.hibernate("b", Counter())
        seen: list[str] = []
        with pytest.raises(CorruptRecordError, match=r"and 7 can't be read.*store key 'junk 0': .* …$"):
            await collect(seen, persistence.keys(Counter))
        assert seen == ["a", "b"]
        with pytest.raises(CorruptRecordError):
            await persistence.count(Counter)


async def test_what_another_key_function_stored_is_not_ours():
    store = MemoryStore()
    async with Persistence(store) as elsewhere, Persistence(store, key_fn=by_path) as persistence:
        await elsewhere.hibernate("a", Counter())
        await persistence.hibernate("b", Counter())
        assert await drain(persistence.keys(Counter)) == ["b"]
        assert await drain(elsewhere.keys(Counter)) == ["a"]


async def test_where_store_keys_hold_no_name_the_records_do():
    async with Persistence(MemoryStore(), key_fn=lambda _, key: key) as persistence:
        await persistence.hibernate("a", Counter())
        await persistence.hibernate("b", Odd())
        assert await drain(persistence.keys(Counter)) == ["a"]
        assert await drain(persistence.keys(Odd)) == ["b"]


async def test_the_default_listing_reads_no_record_and_damage_is_listed():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        await junk(store, "Counter:damaged")
        assert await drain(counters.stored_keys()) == ["damaged"]
        assert await counters.count_stored() == 1
        assert store.calls["get"] == store.calls["head"] == 0


async def test_a_manager_without_a_store_has_nothing_stored():
    async with InstanceManager(Counter) as counters:
        await counters.call("ada", Counter.increment)
        assert (await drain(counters.stored_keys()), await counters.count_stored()) == ([], 0)


async def test_a_store_that_fails_or_can_not_list_is_told():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        store.fail("keys", StoreUnavailableError("down"))
        with pytest.raises(StoreUnavailableError, match="down"):
            await drain(counters.stored_keys())
        store.timeout = 0.02
        store.hold("keys")
        with pytest.raises(StoreUnavailableError, match="did not answer"):
            await drain(counters.stored_keys())
        store.heal()

    class Mute(MemoryStore):
        keys = Store.keys

    async with InstanceManager(Counter, store=Mute()) as counters:
        with pytest.raises(UsageError, match="can't list its keys"):
            await drain(counters.stored_keys())


async def test_a_manager_that_is_not_open_lists_nothing(tmp_path):
    counters = InstanceManager(Counter, store=SQLiteStore(tmp_path / "a.db"))
    with pytest.raises(ClosedError):
        counters.stored_keys()
    async with counters:
        await counters.call("ada", Counter.increment)
        keys = counters.stored_keys()
    with pytest.raises(ClosedError):
        await drain(keys)
    with pytest.raises(ClosedError):
        await counters.count_stored()


async def test_a_manager_that_a_system_opens_in_the_background_is_waited_for():
    store = FaultyStore(MemoryStore())
    async with AgentSystem(store=store) as system:
        gate = store.hold("claim")
        counters = system.manager(Counter)
        tasks = [asyncio.ensure_future(drain(counters.stored_keys())), asyncio.ensure_future(counters.count_stored())]
        tasks.append(asyncio.ensure_future(counters.delete("ada")))
        gone = asyncio.ensure_future(counters.delete("bob"))
        await gate.reached()
        gone.cancel()  # its wait, not the opening that all wait for
        await asyncio.wait([gone])
        assert store.calls["keys"] == store.calls["count"] == store.calls["head"] == 0
        gate.release()
        assert await asyncio.gather(*tasks) == [[], 0, None]
