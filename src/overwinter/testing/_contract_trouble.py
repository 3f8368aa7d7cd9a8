"""The part of the contract that is about trouble: damage, lost answers, and requests that arrive too late.

This file knows the store protocol and the hooks that make the trouble.
"""

from __future__ import annotations

import asyncio
import unittest

from ..errors import CorruptRecordError, OutcomeUnknownError, RevisionConflictError, StoreUnavailableError
from ..stores.base import Expect, Store, Stored
from ._checks import SOME, begun, contract_test, holds, new_revision, not_absent, not_replaced
from ._hooks import Hooks
from ._steps import within

__all__ = ["CorruptionTests", "OutcomeTests"]

_ROUNDS = 20
_PATIENCE = 20.0
_NAP = 0.01
_SOON = 2.0
_LOOKS = 20


class CorruptionTests(Hooks):
    """What is damaged is there, and nobody starts afresh over it."""

    async def _damage(self) -> None:
        """Put a record, with others beside it, and damage it."""
        if not self.can_corrupt:
            raise unittest.SkipTest("this test needs can_corrupt and corrupt()")
        async with await self.make_store() as store:
            await store.put(SOME, b"x" * 100, revision=new_revision(), expected=Expect.ABSENT)
            await store.put("beside", b"it", revision=b"beside it always", expected=Expect.ABSENT)
        await self.corrupt(SOME)

    @contract_test
    async def test_what_is_damaged_is_not_absent(self) -> None:
        await self._damage()
        async with await self.make_store() as store:
            for _ in range(2):
                try:
                    stored = await store.get(SOME)
                except CorruptRecordError:
                    continue
                raise AssertionError(f"damaged data must raise CorruptRecordError, not return {stored!r}")
            await not_replaced(store)
            await holds(store, "beside", b"it", b"beside it always")

    @contract_test
    async def test_what_is_damaged_is_not_absent_to_managers(self) -> None:
        await self._damage()
        async with await self.make_store() as store:
            try:
                stored = await store.fetch(SOME)
            except CorruptRecordError:
                pass
            else:
                raise AssertionError(f"fetch of damaged data must raise CorruptRecordError, not give {stored!r}")
            got = await begun(lambda done: store.begin_get(SOME, done), "begin_get")
            assert isinstance(got[1], CorruptRecordError), f"begin_get told {got!r} of damaged data"
            new = new_revision()
            (error,) = await begun(
                lambda done: store.begin_put(SOME, b"fresh", revision=new, expected=Expect.ABSENT, done=done),
                "begin_put",
            )
            assert isinstance(error, (RevisionConflictError, CorruptRecordError)), (
                f"begin_put told {error!r} of a create over damaged data"
            )

    @contract_test
    async def test_the_head_of_what_is_damaged_is_not_absent(self) -> None:
        await self._damage()
        async with await self.make_store() as store:
            try:
                head = await store.head(SOME)
            except CorruptRecordError:
                return  # a store that reads the revision alone may not see the damage
            assert head is not None, "head of damaged data must not be None, which says that nothing is stored"

    @contract_test
    async def test_what_is_damaged_is_not_changed_at_a_stale_revision(self) -> None:
        await self._damage()
        async with await self.make_store() as store:
            stale = new_revision()
            late = store.put(SOME, b"late", revision=new_revision(), expected=stale)
            await not_absent(late, "a put at a stale revision over damaged data")
            await not_absent(store.delete(SOME, expected=stale), "a delete at a stale revision of damaged data")
            await not_absent(
                store.delete(SOME, expected=Expect.ABSENT), "a delete that expects nothing of damaged data"
            )
            try:
                stored = await store.get(SOME)
            except CorruptRecordError:
                return
            raise AssertionError(f"a refused change must leave damaged data as it is, and get now returns {stored!r}")

    @contract_test
    async def test_what_is_damaged_can_be_deleted(self) -> None:
        await self._damage()
        async with await self.make_store() as store:
            try:
                await store.delete(SOME, expected=Expect.ANY)
            except CorruptRecordError:
                raise AssertionError("Expect.ANY must delete what can't be read: it is the only way out") from None
            assert await store.get(SOME) is None, "what was deleted must be absent"
            new = new_revision()
            await store.put(SOME, b"fresh", revision=new, expected=Expect.ABSENT)
            await holds(store, SOME, b"fresh", new)
            await holds(store, "beside", b"it", b"beside it always")


class OutcomeTests(Hooks):
    """What a failed put says about itself is true, and another conditional put decides what it left open."""

    @contract_test
    async def test_after_an_unknown_outcome_a_conditional_put_decides(self) -> None:
        await self._outcomes(retried=False)

    @contract_test
    async def test_a_put_that_is_retried_lands_once(self) -> None:
        await self._outcomes(retried=True)

    async def _outcomes(self, *, retried: bool) -> None:
        self._need_hook("interrupt", "which makes puts lose their answers")
        async with await self.make_store() as store, await self.make_store() as other:
            before: Stored | None = None
            unknown = 0
            for number in range(_ROUNDS):
                after = Stored(b"put %d" % number, new_revision())
                async with self.interrupt(store):
                    outcome = await _outcome(store, before, after)
                unknown += isinstance(outcome, OutcomeUnknownError)
                if outcome is None:
                    before = after
                elif not isinstance(outcome, OutcomeUnknownError):
                    await _not_stored(other, before, after, outcome)
                before = await _settled(store, before, after, retried=retried)
                await holds(other, SOME, before.data, before.revision)
            assert unknown, f"interrupt() made none of {_ROUNDS} puts raise OutcomeUnknownError: nothing was tested"

    @contract_test
    async def test_a_late_create_does_not_bring_back_what_was_deleted(self) -> None:
        """A create that was reported as unknown arrives after the key was created and deleted by others."""
        self._need_hook("delay", "which holds back what a store sends and delivers it later")
        store = await self.make_store()
        store.timeout = _SOON
        async with store, await self.make_store() as other:
            async with self.delay(store):
                late = store.submit(SOME, b"late", revision=new_revision(), expected=Expect.ABSENT)
                await asyncio.wait([late], timeout=_PATIENCE)
                assert late.done(), f"a put without an answer must end after {_SOON:g} s, which is the store's timeout"
                assert isinstance(late.exception(), (OutcomeUnknownError, StoreUnavailableError)), (
                    f"a put without an answer must raise OutcomeUnknownError, not {late.exception()!r}"
                )
                here = new_revision()
                await other.put(SOME, b"here", revision=here, expected=Expect.ABSENT)
                await other.delete(SOME, expected=here)
            for _ in range(_LOOKS):
                assert await other.get(SOME) is None, "a late create brought back what was deleted: keep a tombstone"
                await asyncio.sleep(_NAP)


async def _outcome(store: Store, before: Stored | None, after: Stored) -> Exception | None:
    expected = Expect.ABSENT if before is None else before.revision
    try:
        await within(
            store.put(SOME, after.data, revision=after.revision, expected=expected), "in an interrupted put", 60
        )
    except (OutcomeUnknownError, StoreUnavailableError, RevisionConflictError) as error:
        return error
    except Exception as error:
        raise AssertionError(f"an interrupted put must raise OutcomeUnknownError, not {error!r}") from error
    return None


async def _not_stored(store: Store, before: Stored | None, after: Stored, outcome: Exception) -> None:
    name = type(outcome).__name__
    found = await _patiently(store)
    assert found != after, f"a put raised {name}, which says that it was not stored, and it is"
    assert found == before, f"a put that raised {name} changed what is stored"
    assert not isinstance(outcome, RevisionConflictError), "nobody else writes, and a put raised RevisionConflictError"


async def _settled(store: Store, before: Stored | None, after: Stored, *, retried: bool) -> Stored:
    """Repeat a put of unknown outcome, as itself or under a new revision; return what is stored then."""
    if before == after:
        return after
    again = after if retried else Stored(after.data + b" again", new_revision())
    expected = Expect.ABSENT if before is None else before.revision
    deadline = asyncio.get_running_loop().time() + _PATIENCE
    while True:
        try:
            await store.put(SOME, again.data, revision=again.revision, expected=expected)
        except RevisionConflictError:
            found = await _patiently(store)
            assert found is not None, "a conflict where nothing is stored, after an unknown outcome"
            assert found != again or retried, "a put was stored and raised RevisionConflictError"
            assert found == after, "nobody else writes, and after an unknown outcome something else is stored"
            return found
        except (StoreUnavailableError, OutcomeUnknownError):
            assert asyncio.get_running_loop().time() < deadline, "the store does not work again after an interruption"
            await asyncio.sleep(_NAP)
        else:
            return again


async def _patiently(store: Store) -> Stored | None:
    deadline = asyncio.get_running_loop().time() + _PATIENCE
    while True:
        try:
            return await store.get(SOME)
        except StoreUnavailableError:
            assert asyncio.get_running_loop().time() < deadline, "the store does not work again after an interruption"
            await asyncio.sleep(_NAP)
