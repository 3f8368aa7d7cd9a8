"""The part of the contract that is about conditions: what is expected decides, and of two who write one wins.

This file knows the store protocol, and what a child process says that counts.
"""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Awaitable

from ..errors import RevisionConflictError, UsageError
from ..stores.base import Durability, Expect, Revision, Store, Stored
from ._checks import SOME, contract_test, holds, limited, new_revision, race, refused
from ._hooks import Hooks
from ._processes import Child

__all__ = ["RaceTests", "RevisionTests"]

_ROUNDS = 20
_LENGTHS = (*range(1, 18), 20, 31, 32, 33, 63, 64, 65, 127, 128, 129, 254, 255)
_TWINS = (b"", b"\0", b" ", b"a", b"A", b"a ", b"1", b"01", b"1.0", b"\xc3\xa9", b"e\xcc\x81", b"\xff", b"'", b"\\")


class RevisionTests(Hooks):
    """A put or delete happens only at the revision that it expects, and no revision comes back."""

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
    async def test_the_same_data_is_another_revision(self) -> None:
        async with await self.make_store() as store:
            first, second, third = new_revision(), new_revision(), new_revision()
            await store.put(SOME, b"same", revision=first, expected=Expect.ABSENT)
            await store.put(SOME, b"other", revision=second, expected=first)
            await store.put(SOME, b"same", revision=third, expected=second)
            await holds(store, SOME, b"same", third)
            await refused(store.put(SOME, b"late", revision=new_revision(), expected=first), "a put from two puts ago")
            await refused(store.delete(SOME, expected=first), "a delete from two puts ago")
            await holds(store, SOME, b"same", third)

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

    @contract_test
    async def test_revisions_are_of_any_length(self) -> None:
        revisions = {length: bytes((length + place) % 256 for place in range(length)) for length in _LENGTHS}
        async with await self.make_store() as store:
            for length, revision in list(revisions.items()):
                try:
                    await store.put(f"{length}", b"first", revision=revision, expected=Expect.ABSENT)
                except (UsageError, ValueError):  # managers make 16 bytes: others may be refused, but not mangled
                    assert length != 16, "a store must take revisions of 16 bytes"
                    del revisions[length]
                    assert await store.get(f"{length}") is None, "a revision was refused and the record is there"
            for length, revision in revisions.items():
                await holds(store, f"{length}", b"first", revision)
                second = new_revision()
                await store.put(f"{length}", b"second", revision=second, expected=revision)
                await holds(store, f"{length}", b"second", second)

    @contract_test
    async def test_revisions_are_only_data(self) -> None:
        async with await self.make_store() as store:
            base: Revision | Expect = Expect.ABSENT
            filled = [(twin, twin.ljust(16, fill)) for twin in _TWINS for fill in (b"\0", b"x")]
            for place, (short, revision) in enumerate(filled):
                await store.put(SOME, b"x", revision=revision, expected=base)
                await holds(store, SOME, b"x", revision)
                near = [other for _, other in filled[max(0, place - 4) : place + 5] if other != revision]
                for other in (*near, *([short] if short else [])):
                    late = store.put(SOME, b"late", revision=new_revision(), expected=other)
                    await _not_taken_for(late, other, revision)
                base = revision


async def _not_taken_for(late: Awaitable[None], other: Revision, revision: Revision) -> None:
    try:
        await refused(late, f"a put that expects {other!r} over {revision!r}")
    except (UsageError, ValueError):
        assert len(other) != 16, "a store must take revisions of 16 bytes"


class RaceTests(Hooks):
    """Compare and write are one step, between handles, processes and beside each other."""

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
        assert stored is not None, f"{SOME!r} was put and is absent"
        assert int(stored.data) == 3 * _ROUNDS, f"{3 * _ROUNDS} increments that were acknowledged made {stored.data!r}"

    def test_counting_from_two_processes_is_exact(self) -> None:
        """What keeps two threads apart may know nothing of another process."""
        factory = asyncio.run(limited(self._need_durability(Durability.PROCESS), self.limit))
        with Child("count", factory, SOME) as one, Child("count", factory, SOME) as other:
            ready = [child.line() for child in (one, other)]
            for child in (one, other):
                child.say("go")
            lines = [line for child in (one, other) for line in child.rest()]
        if ready.count("refused") == 1:
            raise unittest.SkipTest("this store refuses a second process while another one has it open")
        assert ready == ["ready"] * 2, f"a child could not begin to count{one.errors()}{other.errors()}"
        assert len(lines) == 2, f"a child failed while it counted{one.errors()}{other.errors()}"
        told, unknown = (sum(map(int, each)) for each in zip(*map(str.split, lines), strict=True))
        asyncio.run(limited(self._counted(told, unknown), self.limit))

    async def _counted(self, told: int, unknown: int) -> None:
        async with await self.make_store() as store:
            stored = await store.get(SOME)
        value = 0 if stored is None else int(stored.data)
        assert told <= value <= told + unknown, f"two processes were told of {told} increments, which made {value}"

    @contract_test
    async def test_readers_see_whole_records_beside_a_writer(self) -> None:
        """Data and revision that were put together are read together, old or new."""
        put: dict[Revision, bytes] = {}
        writing = True

        async def read(store: Store) -> None:
            while writing:
                stored = await store.get(SOME)
                if stored is not None:
                    assert put.get(stored.revision) == stored.data, "get returned a mix of two records"
                await asyncio.sleep(0)

        async def write(store: Store) -> None:
            nonlocal writing
            base: Revision | Expect = Expect.ABSENT
            try:
                for number in range(_ROUNDS):
                    new = new_revision()
                    put[new] = bytes([number]) * (1 + 40_000 * (number % 3))
                    await store.put(SOME, put[new], revision=new, expected=base)
                    base = new
            finally:
                writing = False

        async with await self.make_store() as one, await self.make_store() as other:
            await asyncio.gather(write(one), read(other), read(one))
