"""The part of the contract that is about many keys at once: listing, counting and batches.

This file knows the store protocol only.
"""

from __future__ import annotations

import asyncio
import contextlib
import unittest

from ..errors import RevisionConflictError
from ..stores.base import Done, Expect, Store, Stored
from ._checks import SOME, begun, contract_test, holds, new_revision, open_files, refused
from ._hooks import Hooks
from ._keys import hostile_keys, hostile_prefixes
from ._listing import can_list, listed
from ._steps import within

__all__ = ["BatchTests", "ListingTests"]

_AT_ONCE = 100


class ListingTests(Hooks):
    """``keys`` yields what is there, each key once; ``count`` counts it."""

    async def _lister(self) -> Store:
        store = await self.make_store()
        if not can_list(store):
            raise unittest.SkipTest("this store can't list its keys: it has no keys() of its own")
        return store

    @contract_test
    async def test_keys_lists_what_is_there(self) -> None:
        async with await self._lister() as store:
            await _agree(store, set())
            revisions = {f"key {number}": new_revision() for number in range(7)}
            await _fill(store, revisions)
            await _agree(store, set(revisions))
            for key in ("key 2", "key 5"):
                await store.delete(key, expected=revisions.pop(key))
            await _agree(store, set(revisions))
            await refused(
                store.put("key 9", b"", revision=b"x" * 16, expected=b"y" * 16), "a put that expects a revision"
            )
            await _agree(store, set(revisions))
            await store.put("key 2", b"", revision=new_revision(), expected=Expect.ABSENT)
            await _agree(store, {*revisions, "key 2"})
            await _agree(store, {"key 2"}, "key 2")
            await _agree(store, set(), "key 22")

    @contract_test
    async def test_a_prefix_is_only_data(self) -> None:
        keys = hostile_keys()
        async with await self._lister() as store:
            await _fill(store, {key: new_revision() for key in keys})
            for prefix in hostile_prefixes():
                await _agree(store, {key for key in keys if key.startswith(prefix)}, prefix)

    @contract_test
    async def test_keys_go_on_beyond_a_page(self) -> None:
        keys = {f"many:{number}" for number in range(self.many)}
        async with await self._lister() as store:
            await _fill(store, {key: new_revision() for key in ["before", "many", "many;", "zzz", *keys]})
            await _agree(store, keys, "many:")
            await _agree(store, {*keys, "many", "many;"}, "many")

    @contract_test
    async def test_keys_that_come_and_go_meanwhile_hide_no_others(self) -> None:
        stay = {f"{number} stays" for number in range(self.many)}
        go = [f"{number} goes" for number in range(0, self.many, 50)]
        async with await self._lister() as store:
            revisions = {key: new_revision() for key in [*stay, *go]}
            await _fill(store, revisions)
            found: list[str] = []
            async for key in store.keys():
                found.append(key)
                if len(found) % 60 == 0 and go:
                    gone = go.pop()
                    await store.delete(gone, expected=revisions.pop(gone))
                elif len(found) % 60 == 30:
                    new = new_revision()
                    await store.put(f"{len(found)} comes", b"", revision=new, expected=Expect.ABSENT)
            assert stay <= set(found), f"keys() missed {len(stay - set(found))} keys that were there all the time"
            kinds = {key.rpartition(" ")[2] for key in found}
            assert kinds <= {"stays", "goes", "comes"}, "keys() yields keys that were never put"
            assert len(found) == len(set(found)), "keys() yields a key more than once while others come and go"

    @contract_test
    async def test_a_listing_may_be_left_early(self) -> None:
        keys = {f"key {number}" for number in range(20)}
        async with await self._lister() as store:
            await _fill(store, {key: new_revision() for key in keys})
            before = open_files()
            for _ in range(20):
                listing = store.keys()
                key = await within(anext(listing), "after a listing that was left early")
                assert key in keys, f"keys() yields {key!r}, which was never put"
                close = getattr(listing, "aclose", None)
                if close is not None:
                    await within(close(), "when a listing is left early")
            await asyncio.sleep(0)
            assert open_files() - before < 10, "each listing that is left early leaks a file descriptor"
            await within(_agree(store, keys), "after listings that were left early")
            await within(
                store.put("after", b"", revision=new_revision(), expected=Expect.ABSENT),
                "after listings that were left early",
            )

    @contract_test
    async def test_listings_go_on_beside_each_other(self) -> None:
        keys = {f"key {number}" for number in range(50)}
        async with await self._lister() as store:
            await _fill(store, {key: new_revision() for key in keys})
            for found in await asyncio.gather(*(listed(store) for _ in range(4)), listed(store, "key 1")):
                assert set(found) in (keys, {key for key in keys if key.startswith("key 1")}), "two listings mixed up"


class BatchTests(Hooks):
    """What managers begin has the outcome of a plain call; puts that travel together fare each for itself."""

    @contract_test
    async def test_what_managers_read_is_what_get_reads(self) -> None:
        """They call ``begin_get``, which a store may override beside ``fetch`` and ``get``."""
        async with await self.make_store() as store:
            await _reads(store, None)
            first, second = new_revision(), new_revision()
            await store.put(SOME, b"first", revision=first, expected=Expect.ABSENT)
            await _reads(store, Stored(b"first", first))
            await store.put(SOME, b"", revision=second, expected=first)
            await _reads(store, Stored(b"", second))
            await store.delete(SOME, expected=second)
            await _reads(store, None)

    @contract_test
    async def test_what_managers_put_carries_its_outcome(self) -> None:
        """They call ``begin_put``, which a store may override beside ``submit`` and ``put``."""
        async with await self.make_store() as store:
            first, second = new_revision(), new_revision()
            await _puts(store, b"first", first, Expect.ABSENT)
            await _puts(store, b"second", second, first)
            for expected in (Expect.ABSENT, first, new_revision()):
                await _puts(store, b"stale", new_revision(), expected, refused=True)
                await holds(store, SOME, b"second", second)

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

    @contract_test
    async def test_a_conflict_in_a_batch_fails_alone(self) -> None:
        async with await self.make_store() as store:
            revisions = {f"key {number}": new_revision() for number in range(60)}
            await _fill(store, revisions)
            puts: dict[str, asyncio.Future[None]] = {}
            for number, (key, old) in enumerate(revisions.items()):
                expected = new_revision() if number % 7 == 3 else Expect.ABSENT if number % 7 == 5 else old
                puts[key] = store.submit(key, b"new", revision=old[::-1], expected=expected)
            outcomes = await asyncio.gather(*puts.values(), return_exceptions=True)
            for number, (key, outcome) in enumerate(zip(puts, outcomes, strict=True)):
                old = revisions[key]
                if number % 7 in (3, 5):
                    assert isinstance(outcome, RevisionConflictError), f"a stale put in a batch ended with {outcome!r}"
                    await holds(store, key, b"", old)
                else:
                    assert outcome is None, f"a put failed because of another one in its batch: {outcome!r}"
                    await holds(store, key, b"new", old[::-1])

    @contract_test
    async def test_a_put_that_is_impossible_fails_alone(self) -> None:
        async with await self.make_store() as store:
            revisions = {f"key {number}": new_revision() for number in range(10)}
            puts = [
                store.submit(key, b"x", revision=new, expected=Expect.ABSENT)
                for key, new in list(revisions.items())[:5]
            ]
            with contextlib.suppress(Exception):  # it may be refused at once, or its future may carry that
                puts.append(store.submit("\ud800", b"x", revision=new_revision(), expected=Expect.ABSENT))
            puts += [
                store.submit(key, b"x", revision=new, expected=Expect.ABSENT)
                for key, new in list(revisions.items())[5:]
            ]
            outcomes = await asyncio.gather(*puts, return_exceptions=True)
            failed = [outcome for outcome in outcomes if outcome is not None]
            assert len(failed) <= 1, f"puts failed beside one whose key is no UTF-8: {failed!r}"
            for key, new in revisions.items():
                await holds(store, key, b"x", new)

    @contract_test
    async def test_of_one_key_twice_in_a_batch_one_wins(self) -> None:
        async with await self.make_store() as store:
            for number in range(10):
                key, revisions = f"key {number}", [new_revision() for _ in range(3)]
                puts = [store.submit(key, new, revision=new, expected=Expect.ABSENT) for new in revisions]
                outcomes = await asyncio.gather(*puts, return_exceptions=True)
                winners = [new for new, outcome in zip(revisions, outcomes, strict=True) if outcome is None]
                assert len(winners) == 1, f"exactly one of three creates in a batch must win, not {outcomes!r}"
                await holds(store, key, winners[0], winners[0])

    @contract_test
    async def test_one_key_after_itself_in_a_batch(self) -> None:
        async with await self.make_store() as store:
            for number in range(10):
                key, first, second = f"key {number}", new_revision(), new_revision()
                create = store.submit(key, b"first", revision=first, expected=Expect.ABSENT)
                change = store.submit(key, b"second", revision=second, expected=first)
                outcomes = await asyncio.gather(create, change, return_exceptions=True)
                assert outcomes[0] is None, f"a create failed because of a change in its batch: {outcomes[0]!r}"
                assert outcomes[1] is None or isinstance(outcomes[1], RevisionConflictError), f"it got {outcomes[1]!r}"
                last = Stored(b"first", first) if outcomes[1] else Stored(b"second", second)
                await holds(store, key, last.data, last.revision)

    @contract_test
    async def test_much_data_at_once_lands(self) -> None:
        revisions = {f"key {number}": new_revision() for number in range(24)}
        async with await self.make_store() as store:
            await asyncio.gather(
                *(store.submit(key, key.encode() * 60_000, revision=new, expected=Expect.ABSENT)
                  for key, new in revisions.items())
            )  # fmt: skip
            for key, new in revisions.items():
                await holds(store, key, key.encode() * 60_000, new)


async def _reads(store: Store, wanted: Stored | None) -> None:
    """Read by each way that managers have."""
    fetched = await within(store.fetch(SOME), "in a fetch")
    assert fetched == wanted, f"fetch gave {fetched!r} where {wanted!r} is stored"
    got = await begun(lambda done: store.begin_get(SOME, done), "begin_get")
    assert got == (wanted, None), f"begin_get told {got!r} where {wanted!r} is stored"


async def _puts(store: Store, data: bytes, new: bytes, expected: bytes | Expect, *, refused: bool = False) -> None:
    def begin(done: Done) -> None:
        store.begin_put(SOME, data, revision=new, expected=expected, done=done)

    (error,) = await begun(begin, "begin_put")
    if refused:
        assert isinstance(error, RevisionConflictError), f"begin_put told {error!r} of a stale put: it is a conflict"
        return
    assert error is None, f"begin_put told {error!r} of a put that fits"
    await holds(store, SOME, data, new)


async def _fill(store: Store, revisions: dict[str, bytes]) -> None:
    keys = list(revisions)
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        await asyncio.gather(*(store.submit(key, b"", revision=revisions[key], expected=Expect.ABSENT) for key in some))


async def _agree(store: Store, keys: set[str], prefix: str = "") -> None:
    found = set(await listed(store, prefix))
    assert not found - keys, f"keys({prefix!r}) yields {sorted(found - keys)[:3]!r}, which are not there"
    assert not keys - found, f"keys({prefix!r}) misses {len(keys - found)} keys: {sorted(keys - found)[:3]!r}"
    number = await store.count(prefix)
    assert number == len(keys), f"count({prefix!r}) is {number}, and {len(keys)} keys are there"
