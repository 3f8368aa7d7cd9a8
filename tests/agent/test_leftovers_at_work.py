"""A rolling deploy for each sort of class with fields: old and new code have one store and call in turns."""

from __future__ import annotations

import types
from typing import Any

import msgspec
import pytest
from kinds import KINDS, MUTABLE, get, put

from overwinter import Agent, InstanceManager, MemoryStore, Persistence
from overwinter.errors import AgentStateError, NewerRecordError, StoreUnavailableError
from overwinter.testing import FaultyStore


class Coin(msgspec.Struct, frozen=True):
    a: int


class NewCoin(msgspec.Struct, frozen=True):
    a: int
    b: int = 0


class Shelf(Agent, name="shelf"):
    """What both releases do; each has its own items."""

    count: int = 0

    async def add(self, *items: Any) -> None:
        self.items.extend(items)

    async def visit(self) -> int:
        self.count += 1
        return self.count

    async def change(self, number: int, a: int) -> None:
        put(self.items[number], "a", a)
        self.items.append(self.items.pop(number))

    async def fail(self) -> None:
        self.items.clear()
        raise RuntimeError("after the items were gone")

    async def replace(self, number: int, item: Any) -> None:
        self.items[number] = item


def release(item: Any) -> Any:
    body = {"__annotations__": {"items": list[item]}, "items": []}
    return types.new_class("Shelf", (Shelf,), {"name": "shelf"}, lambda ns: ns.update(body))


def told(shelf: Any) -> list[tuple[int, list[int]]]:
    return [(get(item, "a"), item.get("b", []) if isinstance(item, dict) else item.b) for item in shelf.items]


@pytest.mark.parametrize("kind", KINDS)
async def test_old_and_new_code_write_one_agent_in_turns(kind: str) -> None:
    older, newer = KINDS[kind]
    old, new, store = release(older), release(newer), MemoryStore()
    expected: list[tuple[int, list[int]]] = []
    for n in range(0, 6, 2):
        async with InstanceManager(new, store=store) as shelves:
            await shelves.call("ada", new.add, newer(a=n, b=[n]))
            expected.append((n, [n]))
            assert told(await shelves.state("ada")) == expected
        async with InstanceManager(old, store=store, max_live=1) as shelves:
            shelf = await shelves.get("ada")
            await shelf.visit()
            with pytest.raises(RuntimeError, match="gone"):
                await shelf.fail()
            await shelf.add(older(a=n + 1))
            expected.append((n + 1, []))
            state = await shelves.state("ada")  # a copy that nobody stores
            state.items.clear()
            if kind in MUTABLE:
                await shelf.change(0, 10)
                expected.append((10, expected.pop(0)[1]))
            await shelves.get("bob")  # for which ada hibernates
            await shelf.visit()
    async with InstanceManager(new, store=store) as shelves:
        state = await shelves.state("ada")
    assert (told(state), state.count) == (expected, 6)


async def test_by_hand_too() -> None:
    older, newer = KINDS["dataclass"]
    old, new = release(older), release(newer)
    async with Persistence(MemoryStore()) as persistence:
        await persistence.hibernate("ada", new(items=[newer(1, [2])]))
        for _ in range(2):
            shelf = await persistence.thaw(old, "ada")
            shelf.items[0].a += 1
            await persistence.hibernate("ada", shelf)
            await persistence.hibernate("ada", shelf)
        assert (await persistence.thaw(new, "ada")).items == [newer(3, [2])]


async def test_a_change_that_could_not_be_stored_goes_back_to_them() -> None:
    older, newer = KINDS["dataclass"]
    old, new, store = release(older), release(newer), FaultyStore(MemoryStore())
    async with InstanceManager(new, store=store) as shelves:
        await shelves.call("ada", new.add, newer(1, [2]))
    async with InstanceManager(old, store=store, store_patience=0) as shelves:
        await shelves.call("ada", old.visit)
        store.fail("put", StoreUnavailableError("no"))
        with pytest.raises(StoreUnavailableError):
            await shelves.call("ada", old.change, 0, 5)
        store.heal()
        await shelves.call("ada", old.visit)
    async with InstanceManager(new, store=store) as shelves:
        assert told(await shelves.state("ada")) == [(1, [2])]


async def test_an_agent_that_could_not_be_stored_as_it_stopped_lives_on_with_them() -> None:
    older, newer = KINDS["dataclass"]
    new, store = release(newer), FaultyStore(MemoryStore())

    class Old(release(older), name="shelf"):  # type: ignore[misc]  # a class made at run time
        async def on_stop(self) -> None:
            self.count += 100

    async with InstanceManager(new, store=store) as shelves:
        await shelves.call("ada", new.add, newer(1, [2]))
    async with InstanceManager(Old, store=store, store_patience=0) as shelves:
        await shelves.get("ada")
        store.fail("put", StoreUnavailableError("no"))
        with pytest.raises(StoreUnavailableError):
            await shelves.stop("ada")
        store.heal()
        await shelves.call("ada", Old.change, 0, 5)
    async with InstanceManager(new, store=store) as shelves:
        assert told(await shelves.state("ada")) == [(5, [2])]


@pytest.mark.parametrize("kind", ["frozen dataclass", "frozen model"])
async def test_a_call_that_replaces_a_frozen_item_fails_and_changes_nothing(kind: str) -> None:
    older, newer = KINDS[kind]
    old, new, store = release(older), release(newer), MemoryStore()
    async with InstanceManager(new, store=store) as shelves:
        await shelves.call("ada", new.add, newer(a=1, b=[1]))
    async with InstanceManager(old, store=store) as shelves:
        with pytest.raises(AgentStateError, match=r"shelf\.items\[0\]: a frozen Item"):
            await shelves.call("ada", old.replace, 0, older(a=7))
        await shelves.call("ada", old.add, older(a=2))
        await shelves.call("ada", old.replace, 1, older(a=3))
    async with InstanceManager(new, store=store) as shelves:
        assert told(await shelves.state("ada")) == [(1, [1]), (3, [])]


async def test_what_can_not_be_kept_waits_for_new_code() -> None:
    class OldBag(Agent, name="bag"):
        some: set[Coin] = set()

    class NewBag(Agent, name="bag"):
        some: set[NewCoin] = set()

    store = MemoryStore()
    async with InstanceManager(NewBag, store=store) as bags:
        await bags.get("ada", initial={"some": {NewCoin(1, 2)}})
    async with InstanceManager(OldBag, store=store) as bags:
        with pytest.raises(NewerRecordError, match=r"^bag 'ada': .*bag\.some\[\.\.\.\]\.b: deploy the code"):
            await bags.state("ada")
        await bags.get("bob", initial={"some": {Coin(1)}})
    async with InstanceManager(NewBag, store=store) as bags:
        assert (await bags.state("ada")).some == {NewCoin(1, 2)}
