"""Copying records from one store to another, whatever the two are: to move to another store, or to keep a second one.

This file knows the protocol: keys, bytes and revisions. It does not know what a record holds, and whether somebody has
its agent alive: see ``copy_records`` for what follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ..errors import CopyError, CorruptRecordError, OutcomeUnknownError, RevisionConflictError, UsageError
from ._listing import keys_in_time
from .base import Expect, Revision, Store, Stored

__all__ = ["Copied", "OnConflict", "copy_records"]

OnConflict: TypeAlias = Literal["raise", "skip", "overwrite"]

_TOLD = 10  # keys that a result names; more would be memory that grows with the store


@dataclass(frozen=True, slots=True)
class Copied:
    """What ``copy_records`` did, or did so far."""

    copied: int = 0
    """Records that the target had not and has now."""
    replaced: int = 0
    """Records of which the target had another revision, and has the source's now, with ``on_conflict="overwrite"``."""
    skipped: int = 0
    """Records that the target has already, of the same revision."""
    conflicts: int = 0
    """Records of which the target has another revision, and keeps it."""
    unreadable: int = 0
    """Records that can't be read, at the source or at the target. Nothing was done to them."""
    gone: int = 0
    """Records that were deleted at the source between their listing and their turn."""
    size: int = 0
    """Bytes of the records that were copied or replaced."""
    conflict_keys: tuple[str, ...] = ()
    """The keys of the first ten conflicts."""
    unreadable_keys: tuple[str, ...] = ()
    """The keys of the first ten records that can't be read."""

    @property
    def seen(self) -> int:
        """All records that had their turn."""
        return self.copied + self.replaced + self.skipped + self.conflicts + self.unreadable + self.gone


async def copy_records(
    source: Store,
    target: Store,
    *,
    prefix: str = "",
    on_conflict: OnConflict = "raise",
    on_progress: Callable[[Copied], object] | None = None,
    in_flight: int = 64,
) -> Copied:
    """Copy the records whose store keys begin with *prefix* from one store to another, each with its revision.

    A record is created at the target, or skipped if it is there already with the same revision: so an interrupted copy,
    by an error, a cancellation or a kill, is continued by running it again. A record that is there with another
    revision is a conflict. ``on_conflict="raise"`` and ``"skip"`` leave it as it is; ``"overwrite"`` replaces it.
    Conflicts and records that can't be read keep nothing else from being copied.

    *on_progress* is called after each record. *in_flight* records are on their way at a time, which is what memory
    is needed for; several let stores share a flush or a round trip. Both stores are opened for as long as it takes.

    Nobody should own these agents meanwhile, at either store. What is created, changed or deleted at the source may
    be copied as it was, or not at all.

    Raises:
        CopyError: all else was copied, and something is a conflict (with ``"raise"``) or can't be read. Its ``result``
            has the numbers and the first keys.
        StoreError: a store failed; what was copied until then stays.
        UsageError: the source can't list its keys, or is the target.
    """
    if source is target:
        raise UsageError("the source of a copy is its target: pass two stores")
    if on_conflict not in ("raise", "skip", "overwrite"):
        raise ValueError(f'on_conflict is "raise", "skip" or "overwrite", not {on_conflict!r}')
    if not isinstance(in_flight, int):  # pyright: ignore[reportUnnecessaryIsInstance]  # 2.5 would be no bound
        raise TypeError(f"in_flight must be an int, not {in_flight!r}")
    if in_flight < 1:
        raise ValueError(f"in_flight must be 1 or more, not {in_flight}")
    async with source, target:
        copying = _Copying(source, target, on_conflict, on_progress, asyncio.Semaphore(in_flight))
        try:
            unlisted = await copying.copy_all(prefix)
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]  # the others are of the same outage, or followed from it
            raise first from first.__cause__
    _raise_if_incomplete(copying.so_far, unlisted, on_conflict)
    return copying.so_far


@dataclass(slots=True)
class _Copying:
    """A copy under way: a task for each record, as many as there are places."""

    source: Store
    target: Store
    on_conflict: OnConflict
    on_progress: Callable[[Copied], object] | None
    places: asyncio.Semaphore
    so_far: Copied = Copied()

    async def copy_all(self, prefix: str) -> CorruptRecordError | None:
        """Copy everything; what the listing of the source could not tell the keys of is returned."""
        async with asyncio.TaskGroup() as group:
            try:
                async for key in keys_in_time(self.source, prefix):
                    await self.places.acquire()
                    group.create_task(self._copy(key))
            except CorruptRecordError as error:  # it comes last, and must not end the copies under way
                return error
        return None

    async def _copy(self, key: str) -> None:
        try:
            now = await self._outcome(key)
        except CorruptRecordError:
            told = (*self.so_far.unreadable_keys, key)[:_TOLD]
            now = replace(self.so_far, unreadable=self.so_far.unreadable + 1, unreadable_keys=told)
        finally:
            self.places.release()
        self.so_far = now
        if self.on_progress is not None:
            self.on_progress(now)

    async def _outcome(self, key: str) -> Copied:
        """Copy one record; what is so far then. Nothing is awaited between reading ``so_far`` and returning."""
        there = await self.target.in_time(self.target.head(key))
        if there is not None:  # before the data is read: a copy that is continued mostly finds what is there
            here = await self.source.in_time(self.source.head(key))
            if here == there:
                return replace(self.so_far, skipped=self.so_far.skipped + 1)
            if self.on_conflict != "overwrite":
                return self._conflict(key) if here is not None else replace(self.so_far, gone=self.so_far.gone + 1)
        stored = await self.source.in_time(self.source.get(key))
        if stored is None:
            return replace(self.so_far, gone=self.so_far.gone + 1)
        if not 0 < len(stored.revision) < 256:
            raise CorruptRecordError(f"the record of {key!r} has no revision that a store could keep")
        if not await self._stored(key, stored, Expect.ABSENT if there is None else there):
            return self._conflict(key)
        size = self.so_far.size + len(stored.data)
        if there is None:
            return replace(self.so_far, copied=self.so_far.copied + 1, size=size)
        return replace(self.so_far, replaced=self.so_far.replaced + 1, size=size)

    def _conflict(self, key: str) -> Copied:
        told = (*self.so_far.conflict_keys, key)[:_TOLD]
        return replace(self.so_far, conflicts=self.so_far.conflicts + 1, conflict_keys=told)

    async def _stored(self, key: str, record: Stored, expected: Revision | Expect) -> bool:
        """Put a record; whether it is durable at the target, or somebody else's is there."""
        try:
            stored = await self._put(key, record, expected)
        except OutcomeUnknownError:  # only another put can tell
            stored = await self._put(key, record, expected)
        if stored:
            return True
        # What is there may be ours: of a put whose outcome was unknown, or of a copy that was cancelled while its put
        # was on the way. It may be in memory only so far, so it is put once more, on top of itself.
        there = await self.target.in_time(self.target.head(key))
        return there == record.revision and await self._put(key, record, record.revision)

    async def _put(self, key: str, record: Stored, expected: Revision | Expect) -> bool:
        put = self.target.put(key, record.data, revision=record.revision, expected=expected)
        try:
            await self.target.in_time(put, OutcomeUnknownError)
        except RevisionConflictError:
            return False
        return True


def _raise_if_incomplete(result: Copied, unlisted: CorruptRecordError | None, on_conflict: OnConflict) -> None:
    left: list[str] = []
    if result.conflicts and on_conflict != "skip":
        way = 'on_conflict="skip" keeps them, "overwrite" replaces them'
        if on_conflict == "overwrite":
            way = "somebody writes there, so stop that and copy again"
        keys = _some(result.conflict_keys, result.conflicts)
        left.append(f"{result.conflicts} have another revision at the target and were left ({keys}): {way}")
    if result.unreadable:
        keys = _some(result.unreadable_keys, result.unreadable)
        left.append(f"{result.unreadable} can't be read ({keys}): restore them from a backup and copy again")
    if unlisted is not None:
        left.append(f"the source can't tell all keys: {unlisted}")
    if left:
        done = result.copied + result.replaced + result.skipped
        raise CopyError(f"{done} records are at the target; {'; '.join(left)}", result=result) from unlisted


def _some(keys: tuple[str, ...], number: int) -> str:
    return ", ".join(map(repr, keys)) + (" …" if number > len(keys) else "")
