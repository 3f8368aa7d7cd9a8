"""Batches of jobs as requests, and rows as answers: what was stored, what lost, what stands in the way.

This file knows what a row means. It does not know connections (``_postgres_link.py``) or waiting
(``_postgres_lane.py``).

A batch of writes is at most two statements in one transaction: one creates, one changes and deletes. Both take their
locks in the order of the keys, so two batches can't wait for each other. A row whose condition failed is that row's
verdict; the rest of the batch is stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import CorruptRecordError, OverwinterError, StoreUnavailableError
from ._jobs import MAX_BYTES, MAX_ROWS, Job, conflict
from ._postgres_errors import definite, judge, worth_repeating, worth_splitting
from ._postgres_link import Link, Query, Row
from ._postgres_table import IDENTITY, Table, column_of
from .base import Expect, Revision, Stored

__all__ = ["Rows"]

_ROUNDS = 8  # a create, the tombstone in its way, that tombstone purged meanwhile, …: more is somebody at war with us


@dataclass(slots=True, eq=False)
class _Write:
    """A put or delete, and what it takes to be there."""

    job: Job
    column: bytes
    expected: Revision | Expect


@dataclass(frozen=True, slots=True)
class _Found:
    """What a row holds. A tombstone has no data and a time; anything between the two is damage."""

    revision: Revision
    data: bytes | None
    dead: bool

    @property
    def tombstone(self) -> bool:
        return self.dead and self.data is None

    @property
    def damaged(self) -> bool:
        return self.dead == (self.data is not None)


class Rows:
    """The work of a store's lanes on one table."""

    def __init__(self, table: Table, where: str) -> None:
        self._table = table
        self._where = where
        self.identity = b""
        """The table's id, as it was when the store was opened."""
        self.rows_of_a_read = MAX_ROWS

    async def identify(self, link: Link) -> None:
        """Learn the table's id. One that was made by hand, or was emptied while nobody looked, is given one."""
        (own,) = await link.read((self._table.identity, ()))
        if not own:
            await link.write((self._table.identify, (os.urandom(16),)))
            (own,) = await link.read((self._table.identity, ()))
        self.identity = bytes(own[0][0])

    # ------------------------------------------------------------ reads

    async def read(self, link: Link, batch: list[Job]) -> None:
        """Answer gets and heads. A connection that broke is replaced once, since reading again harms nobody."""
        try:
            await self._read(link, batch)
        except Exception as error:  # noqa: BLE001  # every job gets its verdict, whatever the driver raised
            if isinstance(error, OverwinterError):
                self._refuse(batch, error)
            elif not definite(error) or worth_repeating(error):
                await self._read_again(link, batch)
            elif worth_splitting(error) and len(batch) > 1:
                middle = len(batch) // 2
                await self.read(link, batch[:middle])
                await self.read(link, batch[middle:])
            else:
                self._refuse(batch, error)

    async def _read_again(self, link: Link, batch: list[Job]) -> None:
        link.discard()
        try:
            await self._read(link, batch)
        except Exception as error:  # noqa: BLE001  # as above
            self._refuse(batch, error)

    async def _read(self, link: Link, batch: list[Job]) -> None:
        found: dict[bytes, _Found] = {}
        for verb, sql in (("get", self._table.get), ("head", self._table.head)):
            columns = [column_of(job.key.encode()) for job in batch if job.verb == verb]
            if columns:
                found |= await self._look(link, sql, columns)
        self._learn_size(found)
        for job in batch:
            self._answer_read(job, found.get(column_of(job.key.encode())))

    async def scan(self, link: Link, query: Query) -> list[Row]:
        """Return the rows of a query about many keys."""
        identity, rows = await link.read((self._table.identity, ()), query)
        self._check(link, identity[0][0] if identity else None)
        return rows

    async def _look(self, link: Link, sql: bytes, columns: list[bytes]) -> dict[bytes, _Found]:
        found = {
            column: _Found(revision, data, dead)
            for column, revision, data, dead in await link.fetch(sql, [IDENTITY, *columns])
        }
        own = found.pop(IDENTITY, None)
        self._check(link, own.revision if own else None)
        return found

    def _check(self, link: Link, identity: bytes | None) -> None:
        """A table that was emptied, or made anew by whoever came first, must not pass for one without agents."""
        if identity != self.identity:
            link.discard()  # the next one may lead to the right server again
            raise StoreUnavailableError(
                f"{self._where} does not hold the agents any more: its table was emptied or made anew, or the address "
                "leads to another server. Nothing is read or written, and nobody starts anew. Restore its data; or, "
                "if it is meant to be empty, start this program again"
            )

    def _answer_read(self, job: Job, found: _Found | None) -> None:
        if found is None or found.tombstone:
            job.answer(None)
        elif found.damaged or found.data is None:
            job.refuse(self._damage(job))
        else:
            job.answer(Stored(found.data, found.revision) if job.verb == "get" else found.revision)

    def _learn_size(self, found: dict[bytes, _Found]) -> None:
        """Ask for fewer rows at a time where they are large: nobody knows a row's size before it comes."""
        sizes = [len(row.data) for row in found.values() if row.data]
        if sizes:
            self.rows_of_a_read = max(1, min(MAX_ROWS, MAX_BYTES * len(sizes) // sum(sizes)))

    # ------------------------------------------------------------ writes

    async def write(self, link: Link, batch: list[Job]) -> None:
        """Carry out puts and deletes, each by its own condition."""
        await self._write(link, [_Write(job, column_of(job.key.encode()), job.expected) for job in batch])

    async def _write(self, link: Link, writes: list[_Write]) -> None:
        left = sorted(writes, key=lambda write: write.column)
        for _ in range(_ROUNDS):
            try:
                left = await self._round(link, left)
            except Exception as error:  # noqa: BLE001  # every job gets its verdict, whatever the driver raised
                several = len(left) > 1  # the error may be that of a row which is answered by now
                left = _unanswered(left)  # what landed before a look that failed must not be sent again
                if worth_repeating(error):
                    link.discard()  # and with it the plans that its session keeps
                    continue
                if worth_splitting(error) and several:
                    middle = len(left) // 2
                    await self._write(link, left[:middle])
                    await self._write(link, left[middle:])
                else:
                    self._refuse([write.job for write in left], error, sent=link.sent)
                return
            if not left:
                return
        for write in left:
            text = f"{self._where}, key {write.job.key!r}: others kept changing it, or the server's clock jumped"
            write.job.refuse(StoreUnavailableError(f"{text}; nothing was stored, try again"))

    async def _round(self, link: Link, writes: list[_Write]) -> list[_Write]:
        """One request, and for those it did not do, a look at what is there; return those worth another one."""
        await link.connect()  # before the first byte leaves, so that a refused connection stores nothing for sure
        writes = _unanswered(writes)  # who waited too long for the connection was told that nothing is stored
        landed = await self._send(link, writes)
        losers = [write for write in writes if write.column not in landed]
        for write in writes:
            if write.column in landed:
                write.job.answer()
        if not losers:
            return []
        found = await self._look(link, self._table.head, [write.column for write in losers])
        return [write for write in losers if self._goes_on(write, found.get(write.column))]

    async def _send(self, link: Link, writes: list[_Write]) -> set[bytes]:
        creates = [write for write in writes if write.expected is Expect.ABSENT and write.job.verb == "put"]
        changes = [write for write in writes if write.expected is not Expect.ABSENT]
        queries: list[Query] = []
        if creates:
            queries.append((self._table.create, (*_columns(creates, _CREATE), link.last_call, self.identity)))
        if changes:
            queries.append((self._table.change, (*_columns(changes, _CHANGE), link.last_call, self.identity)))
        if not queries:
            return set()
        return {row[0] for rows in await link.write(*queries) for row in rows}

    def _goes_on(self, write: _Write, found: _Found | None) -> bool:
        """Give the verdict of a write that was not carried out, unless another try may well be."""
        job = write.job
        if job.verb == "delete":
            return self._delete_goes_on(job, found)
        if found is not None and found.damaged:
            job.refuse(self._damage(job))
        elif found is not None and found.revision == job.revision:
            # This very put was sent before, and landed; perhaps on this server alone, so it is put on top of itself.
            write.expected = job.revision
            return True
        elif job.expected is Expect.ABSENT and (found is None or found.tombstone):
            # Over a tombstone it is conditional on just that one: a delete that comes after it still counts.
            write.expected = Expect.ABSENT if found is None else found.revision
            return True
        elif found is not None and found.revision == job.expected and not found.tombstone:
            return True  # its condition holds and it was not done: too late by the server's clock
        else:
            job.refuse(conflict(job))
        return False

    def _delete_goes_on(self, job: Job, found: _Found | None) -> bool:
        if found is None or found.tombstone:
            job.answer()
        elif job.expected is Expect.ANY:
            return True  # it was created just now
        elif found.damaged:
            job.refuse(self._damage(job))
        elif found.revision == job.expected:
            return True
        else:
            job.refuse(conflict(job))
        return False

    # ------------------------------------------------------------ refusals

    def _refuse(self, jobs: list[Job], error: Exception, *, sent: bool = False) -> None:
        for job in jobs:
            if job.answered:
                continue
            if isinstance(error, OverwinterError):
                job.refuse(error.again())  # one each: a raised exception keeps its caller's frames
            else:
                job.refuse(judge(error, f"{self._where}, key {job.key!r}", unsure=sent))

    def _damage(self, job: Job) -> CorruptRecordError:
        return CorruptRecordError(
            f"the row of key {job.key!r} in {self._where} is neither a record nor a tombstone: restore a backup; "
            "it is left as it is"
        )


def _unanswered(writes: list[_Write]) -> list[_Write]:
    return [write for write in writes if not write.job.answered]


_Column = Callable[[_Write], object]
_CREATE: tuple[_Column, ...] = (
    lambda write: write.column,
    lambda write: b"" if write.column == write.job.key.encode() else write.job.key.encode(),
    lambda write: write.job.revision,
    lambda write: write.job.data,
)
_CHANGE: tuple[_Column, ...] = (
    lambda write: write.column,
    lambda write: write.expected if isinstance(write.expected, bytes) else b"",
    lambda write: write.job.revision,
    lambda write: write.job.data,
    lambda write: write.job.verb == "delete",
)


def _columns(writes: list[_Write], columns: tuple[_Column, ...]) -> list[list[object]]:
    """The rows as arrays, one for each column, as ``unnest`` takes them."""
    return [[column(write) for write in writes] for column in columns]
