"""What every store must do, as tests: the promises that managers rely on.

This file knows the store protocol only. It uses plain asserts and ``asyncio.run``, so that it works in any test runner
that collects classes with ``test_`` methods, without a plugin.
"""

from __future__ import annotations

import asyncio
import os
import unittest
from abc import abstractmethod

from ..errors import CorruptRecordError, RevisionConflictError
from ..stores.base import Durability, Expect, Revision, Store, Stored
from ._checks import SOME, contract_test, decided, holds, new_revision, not_replaced, race, refused
from ._keys import hostile_keys

__all__ = ["StoreContract"]

_ROUNDS = 20


class StoreContract:
    """Subclass it, name it ``Test…``, give it ``make_store``, and run it with pytest.

    ::

        class TestMyStore(StoreContract):
            @pytest.fixture(autouse=True)
            def _folder(self, tmp_path):
                self.folder = tmp_path

            async def make_store(self):
                return MyStore(self.folder)
    """

    can_corrupt = False
    """Whether ``corrupt`` is there."""

    @abstractmethod
    async def make_store(self) -> Store:
        """Return a store, not opened. Each call in one test: another handle on the same data.

        A store whose data is in the object returns the same object each time.
        """
        raise NotImplementedError("a StoreContract needs make_store()")

    async def corrupt(self, key: str) -> None:
        """Damage what is stored under *key*, so that it can't be read, while no handle is open."""
        raise NotImplementedError("can_corrupt needs corrupt()")

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
            assert await other.get(SOME) is None
            first, second = new_revision(), new_revision()
            await one.put(SOME, b"first", revision=first, expected=Expect.ABSENT)
            await holds(other, SOME, b"first", first)
            await other.put(SOME, b"second", revision=second, expected=first)
            await holds(one, SOME, b"second", second)

    @contract_test
    async def test_a_closed_store_keeps_its_records(self) -> None:
        store = await self.make_store()
        if store.durability is Durability.NONE:
            raise unittest.SkipTest("this store promises to keep nothing")
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
    async def test_submitted_puts_carry_their_outcome(self) -> None:
        async with await self.make_store() as store:
            new = new_revision()
            await store.submit(SOME, b"first", revision=new, expected=Expect.ABSENT)
            await holds(store, SOME, b"first", new)
            good, bad = new_revision(), new_revision()
            other = store.submit("another key", b"x", revision=good, expected=Expect.ABSENT)
            stale = store.submit(SOME, b"stale", revision=bad, expected=new_revision())
            await refused(stale, "a submitted put with a stale revision")
            await other
            await holds(store, "another key", b"x", good)
            await holds(store, SOME, b"first", new)

    # ------------------------------------------------------------ revisions

    @contract_test
    async def test_a_create_does_not_overwrite(self) -> None:
        async with await self.make_store() as store:
            first = new_revision()
            await store.put(SOME, b"first", revision=first, expected=Expect.ABSENT)
            await refused(
                store.put(SOME, b"second", revision=new_revision(), expected=Expect.ABSENT), "a second create"
            )
            await holds(store, SOME, b"first", first)

    @contract_test
    async def test_a_stale_revision_does_not_overwrite(self) -> None:
        async with await self.make_store() as store:
            first, second = new_revision(), new_revision()
            await store.put(SOME, b"first", revision=first, expected=Expect.ABSENT)
            await store.put(SOME, b"second", revision=second, expected=first)
            for stale in (first, new_revision(), second[:-1] + bytes([second[-1] ^ 1])):
                await refused(
                    store.put(SOME, b"third", revision=new_revision(), expected=stale), "a put over a newer revision"
                )
                await holds(store, SOME, b"second", second)

    @contract_test
    async def test_a_revision_does_not_fit_what_is_absent(self) -> None:
        async with await self.make_store() as store:
            await refused(
                store.put(SOME, b"x", revision=new_revision(), expected=new_revision()), "a put that expects a revision"
            )
            assert await store.get(SOME) is None, "a refused put must leave nothing behind"

    @contract_test
    async def test_a_revision_does_not_come_back_after_a_delete(self) -> None:
        async with await self.make_store() as store:
            first, second = new_revision(), new_revision()
            await store.put(SOME, b"same", revision=first, expected=Expect.ABSENT)
            await store.delete(SOME, expected=first)
            await refused(
                store.put(SOME, b"late", revision=new_revision(), expected=first), "a put over what was deleted"
            )
            await store.put(SOME, b"same", revision=second, expected=Expect.ABSENT)
            await refused(
                store.put(SOME, b"late", revision=new_revision(), expected=first), "a put from before the delete"
            )
            await refused(store.delete(SOME, expected=first), "a delete from before the delete")
            await holds(store, SOME, b"same", second)

    @contract_test
    async def test_keys_do_not_share_revisions(self) -> None:
        async with await self.make_store() as store:
            one, other = new_revision(), new_revision()
            await store.put("one", b"1", revision=one, expected=Expect.ABSENT)
            await store.put("other", b"2", revision=other, expected=Expect.ABSENT)
            await refused(
                store.put("one", b"3", revision=new_revision(), expected=other), "a put with another key's revision"
            )
            await refused(store.delete("one", expected=other), "a delete with another key's revision")
            await holds(store, "one", b"1", one)

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
            assert await store.get(SOME) is None

    @contract_test
    async def test_delete_whatever_is_there(self) -> None:
        async with await self.make_store() as store:
            await store.put(SOME, b"x", revision=new_revision(), expected=Expect.ABSENT)
            await store.delete(SOME, expected=Expect.ANY)
            assert await store.get(SOME) is None, "Expect.ANY must delete whatever is there"

    # ------------------------------------------------------------ races

    @contract_test
    async def test_of_two_who_create_one_wins(self) -> None:
        async with await self.make_store() as one, await self.make_store() as other:
            for number in range(_ROUNDS):
                await race(one, other, f"key {number}", Expect.ABSENT)

    @contract_test
    async def test_of_two_who_change_one_wins(self) -> None:
        async with await self.make_store() as one, await self.make_store() as other:
            base: Revision | Expect = Expect.ABSENT
            for _ in range(_ROUNDS):
                base = await race(one, other, SOME, base)

    @contract_test
    async def test_a_delete_and_a_put_do_not_both_win(self) -> None:
        async with await self.make_store() as one, await self.make_store() as other:
            for number in range(_ROUNDS):
                key, base, new = f"key {number}", new_revision(), new_revision()
                await one.put(key, b"base", revision=base, expected=Expect.ABSENT)
                outcomes = await asyncio.gather(
                    one.delete(key, expected=base),
                    other.put(key, b"new", revision=new, expected=base),
                    return_exceptions=True,
                )
                deleted, put = (outcome is None for outcome in outcomes)
                assert deleted != put, f"exactly one of a racing delete and put must win, not {outcomes!r}"
                assert await one.get(key) == (Stored(b"new", new) if put else None), "the loser's change is there"

    @contract_test
    async def test_counting_from_two_handles_is_exact(self) -> None:
        async def count(store: Store) -> None:
            for _ in range(_ROUNDS):
                while True:
                    stored = await store.get(SOME)
                    value = 0 if stored is None else int(stored.data)
                    expected = Expect.ABSENT if stored is None else stored.revision
                    try:
                        await store.put(SOME, b"%d" % (value + 1), revision=new_revision(), expected=expected)
                    except RevisionConflictError:
                        continue
                    break

        async with await self.make_store() as one, await self.make_store() as other:
            await asyncio.gather(count(one), count(other), count(one))
            stored = await other.get(SOME)
        assert stored is not None
        assert int(stored.data) == 3 * _ROUNDS, f"{3 * _ROUNDS} increments that were acknowledged made {stored.data!r}"

    # ------------------------------------------------------------ keys

    @contract_test
    async def test_keys_are_only_data(self) -> None:
        keys = {key: new_revision() for key in hostile_keys()}
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

    # ------------------------------------------------------------ isolation and cancellation

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

    @contract_test
    async def test_a_cancelled_put_happens_or_does_not(self) -> None:
        async with await self.make_store() as store:
            base: Revision | Expect = Expect.ABSENT
            before: Stored | None = None
            for passes in range(_ROUNDS):
                new, data = new_revision(), os.urandom(5000)
                put = asyncio.create_task(store.put(SOME, data, revision=new, expected=base))
                for _ in range(passes % 10):
                    await asyncio.sleep(0)
                put.cancel()
                await asyncio.gather(put, return_exceptions=True)
                before = await decided(store, before, Stored(data, new))
                base = before.revision

    @contract_test
    async def test_a_cancelled_get_leaves_the_store_usable(self) -> None:
        async with await self.make_store() as store:
            new = new_revision()
            await store.put(SOME, b"x", revision=new, expected=Expect.ABSENT)
            for passes in range(_ROUNDS):
                get = asyncio.create_task(store.get(SOME))
                for _ in range(passes % 5):
                    await asyncio.sleep(0)
                get.cancel()
                await asyncio.gather(get, return_exceptions=True)
                await holds(store, SOME, b"x", new)

    # ------------------------------------------------------------ corruption

    @contract_test
    async def test_what_is_damaged_is_not_absent(self) -> None:
        if not self.can_corrupt:
            raise unittest.SkipTest("this test needs can_corrupt and corrupt()")
        async with await self.make_store() as store:
            await store.put(SOME, b"x" * 100, revision=new_revision(), expected=Expect.ABSENT)
        await self.corrupt(SOME)
        async with await self.make_store() as store:
            for verb in (store.get, store.get):
                try:
                    stored = await verb(SOME)
                except CorruptRecordError:
                    continue
                raise AssertionError(f"damaged data must raise CorruptRecordError, not return {stored!r}")
            await not_replaced(store)
