"""The part of the contract that is about records: put, get, delete and keys.

This file knows the store protocol only.
"""

from __future__ import annotations

import asyncio
import os

from ..stores.base import Durability, Expect, Revision, Stored
from ._checks import SOME, contract_test, holds, new_revision, refused
from ._hooks import Hooks
from ._keys import hostile_keys

__all__ = ["CoreTests"]


class CoreTests(Hooks):
    """What was put comes back, under its key and no other."""

    # ------------------------------------------------------------ get and put

    @contract_test
    async def test_nothing_is_stored_at_first(self) -> None:
        async with await self.make_store() as store:
            assert await store.get(SOME) is None, "get of what was never put must be None"
            assert await store.head(SOME) is None, "head of what was never put must be None"

    @contract_test
    async def test_what_was_put_comes_back(self) -> None:
        async with await self.make_store() as store:
            revision: Revision | Expect = Expect.ABSENT
            for data in (b"", b"\0", bytes(range(256)), b"\xff" * 7, os.urandom(1_000_000), b"short again"):
                new = new_revision()
                await store.put(SOME, data, revision=new, expected=revision)
                await holds(store, SOME, data, new)
                revision = new

    @contract_test
    async def test_empty_data_is_not_absent(self) -> None:
        async with await self.make_store() as store:
            new = new_revision()
            await store.put(SOME, b"", revision=new, expected=Expect.ABSENT)
            await holds(store, SOME, b"", new)
            await refused(
                store.put(SOME, b"x", revision=new_revision(), expected=Expect.ABSENT), "creating over empty data"
            )

    @contract_test
    async def test_another_handle_sees_what_was_put(self) -> None:
        async with await self.make_store() as one, await self.make_store() as other:
            assert await other.get(SOME) is None, "get of what was never put must be None"
            first, second = new_revision(), new_revision()
            await one.put(SOME, b"first", revision=first, expected=Expect.ABSENT)
            await holds(other, SOME, b"first", first)
            await other.put(SOME, b"second", revision=second, expected=first)
            await holds(one, SOME, b"second", second)

    @contract_test
    async def test_a_closed_store_keeps_its_records(self) -> None:
        store = await self.make_store()
        self._need_some_durability(store)
        new = new_revision()
        async with store:
            await store.put(SOME, b"kept", revision=new, expected=Expect.ABSENT)
        async with await self.make_store() as later:
            await holds(later, SOME, b"kept", new)
        async with store:
            await holds(store, SOME, b"kept", new)

    @contract_test
    async def test_many_puts_at_once_all_land(self) -> None:
        keys = {f"key {number}": new_revision() for number in range(400)}
        async with await self.make_store() as store:
            await asyncio.gather(
                *(store.put(key, key.encode(), revision=new, expected=Expect.ABSENT) for key, new in keys.items())
            )
            found = await asyncio.gather(*(store.get(key) for key in keys))
        for (key, new), stored in zip(keys.items(), found, strict=True):
            assert stored == Stored(key.encode(), new), f"{key!r} did not come back as it was put"

    @contract_test
    async def test_what_get_returned_does_not_change(self) -> None:
        async with await self.make_store() as store:
            first, second = new_revision(), new_revision()
            await store.put(SOME, b"before", revision=first, expected=Expect.ABSENT)
            old = await store.get(SOME)
            await store.put(SOME, b"newer", revision=second, expected=first)
            assert old is not None, f"{SOME!r} was put and is absent"
            assert old == Stored(b"before", first), "what get returned must not change with the store"
            assert {type(old.data), type(old.revision)} == {bytes}, "get must return bytes"

    # ------------------------------------------------------------ delete

    @contract_test
    async def test_delete(self) -> None:
        async with await self.make_store() as store:
            first, other = new_revision(), new_revision()
            await store.put(SOME, b"x", revision=first, expected=Expect.ABSENT)
            await store.put("other", b"stays", revision=other, expected=Expect.ABSENT)
            await refused(store.delete(SOME, expected=new_revision()), "a delete at a stale revision")
            await refused(store.delete(SOME, expected=Expect.ABSENT), "a delete that expects nothing")
            await holds(store, SOME, b"x", first)
            await store.delete(SOME, expected=first)
            assert await store.get(SOME) is None, "what was deleted must be absent"
            assert await store.head(SOME) is None, "what was deleted must be absent"
            await holds(store, "other", b"stays", other)

    @contract_test
    async def test_delete_is_idempotent(self) -> None:
        async with await self.make_store() as store:
            first = new_revision()
            for expected in (first, Expect.ABSENT, Expect.ANY):
                await store.delete(SOME, expected=expected)
            await store.put(SOME, b"x", revision=first, expected=Expect.ABSENT)
            await store.delete(SOME, expected=first)
            for expected in (first, Expect.ABSENT, Expect.ANY):
                await store.delete(SOME, expected=expected)
            assert await store.get(SOME) is None, "what was deleted must be absent"

    @contract_test
    async def test_delete_whatever_is_there(self) -> None:
        async with await self.make_store() as store:
            await store.put(SOME, b"x", revision=new_revision(), expected=Expect.ABSENT)
            await store.delete(SOME, expected=Expect.ANY)
            assert await store.get(SOME) is None, "Expect.ANY must delete whatever is there"

    # ------------------------------------------------------------ keys

    @contract_test
    async def test_keys_are_only_data(self) -> None:
        keys = {key: new_revision() for key in [*hostile_keys(), "name%3A:" + "k" * 1992]}
        async with await self.make_store() as store:
            for key, new in keys.items():
                assert await store.get(key) is None, f"{key[:40]!r} is taken for another key"
                await store.put(key, key.encode(), revision=new, expected=Expect.ABSENT)
        later = store if store.durability is Durability.NONE else await self.make_store()
        async with later:
            for key, new in keys.items():
                await holds(later, key, key.encode(), new)
            for key, new in keys.items():
                await later.delete(key, expected=new)
                assert await later.get(key) is None, f"{key[:40]!r} was not deleted"
