"""A table in PostgreSQL: the store for programs that have a database server already.

This file knows the store protocol and hands jobs on. It does not know SQL (``_postgres_table.py``), what a row means
(``_postgres_rows.py``), connections (``_postgres_link.py``) or batches (``_postgres_lane.py``).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from ..errors import (
    ClosedError,
    CorruptRecordError,
    InvalidKeyError,
    StateTooLargeError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from ._jobs import Job
from ._postgres_errors import definite, judge
from ._postgres_lane import Lane, end_all
from ._postgres_link import CLOCK_SLACK, Link, Row, parse
from ._postgres_rows import Rows
from ._postgres_table import LONGEST_PREFIX, Table, key_of, recognised, set_up
from .base import Durability, Expect, Revision, Store, Stored, T

__all__ = ["PostgresStore"]

_PAGE = 1000
_TOLD = 5  # rows that an error names
_LARGEST = 256 * 1024 * 1024  # a message of the protocol has at most 1 GB, and so has a value
_TOMBSTONE_LIFE = 3600.0
_PURGE_EVERY = 60.0
_END = 1000 * b"\xff"  # sorts after every key, since no UTF-8 begins with it


class PostgresStore(Store):
    """Keep records in a table of a PostgreSQL database (12 or newer), with psycopg 3.

    *conninfo* is a URL (``postgresql://user@host/database``) or a libpq string; what it leaves out comes from the
    usual ``PG…`` variables. *timeout* is how many seconds a call waits for its answer. *writers* and *readers* are
    how many connections there are at most of each kind; one more lists and counts.

    Promises:

    * A put that returned survives a power loss of the server if ``fsync`` and ``full_page_writes`` are on, and the
      loss of the machine if there are synchronous standbys. ``durability`` says what was found at open.
      ``synchronous_commit = off`` is switched on for each write.
    * Compare and write are one step. Puts that wait share one statement and one commit; a put whose condition failed
      fails alone. A put that is repeated with its own revision succeeds.
    * Cancelling a caller is safe: no caller touches a connection, and what it began happens or doesn't, whole.
    * A connection that died while it was idle is replaced; one that didn't answer in time is thrown away.
    * Nothing is kept in a session, so PgBouncer may pool transactions: pass ``prepare_threshold=None`` unless it knows
      prepared statements (1.21, ``max_prepared_statements``).

    Opening it makes the table if it is missing; with ``auto_setup=False`` it doesn't, and ``await store.setup()`` does.
    """

    network = True
    durability = Durability.HOST

    def __init__(
        self,
        conninfo: str = "",
        *,
        schema: str = "public",
        table: str = "overwinter_agents",
        timeout: float = 10.0,
        writers: int = 2,
        readers: int = 1,
        prepare_threshold: int | None = 5,
        auto_setup: bool = True,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        if writers < 1 or readers < 1:
            raise ValueError("a PostgresStore needs at least one writer and one reader")
        self.timeout = timeout
        self._table = Table.named(schema, table)
        self._terms = parse(conninfo, timeout=timeout, prepare_threshold=prepare_threshold)
        self._widths = writers, readers
        self._auto_setup = auto_setup
        self._lanes: list[Lane[Link]] = []
        self._first: Link | None = None
        self._next_purge = 0.0
        self._rows = Rows(self._table, repr(self))

    def __repr__(self) -> str:
        return f"PostgresStore({self._terms.where!r}, table={str(self._table)!r})"

    # ------------------------------------------------------------ lifetime

    async def setup(self) -> None:
        """Make the schema and the table if they are missing. Idempotent; many processes may do it at once.

        Needs the right to create them, which the role that the store is used with need not have.
        """
        await self._once(self._set_up, keep=False)

    async def open(self) -> None:
        """Connect once, see what the server promises, and find the table, or make it.

        Raises:
            StoreUnavailableError: the server is out of reach, or takes no writes.
            UsageError: the table belongs to somebody else, is newer than this overwinter, or isn't there and
                ``auto_setup`` is off.
        """
        self._terms.begin()
        self._first = await self._once(self._find_table, keep=True)
        assert self._terms.durability is not None
        self.durability = self._terms.durability
        rows = self._rows
        writers, readers = self._widths
        self._lanes = [
            self._lane(rows.write, writers),
            self._lane(rows.read, readers, rows=lambda: rows.rows_of_a_read),
            self._lane(self._run_errands, 1),
        ]

    async def close(self) -> None:
        """Wait for what was begun, then let go. A later ``async with`` opens it again."""
        lanes, self._lanes = self._lanes, []
        if self._pid == os.getpid():  # in a forked child the connections are the parent's
            try:
                await asyncio.gather(*(lane.close(self.timeout) for lane in lanes))
            finally:
                for lane in lanes:  # whoever closes may be cancelled before a lane has begun to
                    lane.abandon()

    def _lane(
        self, work: Callable[[Link, list[Job]], Awaitable[None]], width: int, rows: Callable[[], int] | None = None
    ) -> Lane[Link]:
        return Lane(self._link, work, width=width, patience=self.timeout, where=repr(self), rows=rows)

    def _link(self) -> Link:
        first, self._first = self._first, None
        return first or Link(self._terms)

    async def _once(self, work: Callable[[Link], Coroutine[Any, Any, None]], *, keep: bool) -> Link:
        """Do something on a connection of its own, and return it."""
        link, done = Link(self._terms), False
        task = asyncio.get_running_loop().create_task(work(link))

        def gone(task: asyncio.Task[None]) -> None:
            link.discard()  # not before: the driver waits for its socket
            if not task.cancelled():
                task.exception()  # seen

        try:
            await asyncio.wait([task], timeout=self.timeout)
            if not task.done():
                raise StoreUnavailableError(f"{self!r} did not answer within {self.timeout:g} s")
            task.result()
            done = True
        finally:
            if not (done and keep):
                task.add_done_callback(gone)
                task.cancel()
                await end_all([task])
        return link

    async def _find_table(self, link: Link) -> None:
        if not await recognised(await link.connect(), self._table, self._terms.where):
            if not self._auto_setup:
                raise UsageError(
                    f"{self!r}: there is no such table: `await store.setup()` makes it, or auto_setup=True"
                )
            await self._set_up(link)
        try:
            await self._rows.identify(link)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever the driver raised
            raise judge(error, f"{self!r}, while it was opened", unsure=False) from None

    async def _set_up(self, link: Link) -> None:
        from psycopg import Error  # noqa: PLC0415  # the driver loads on first use

        try:
            await set_up(await link.connect(), self._table, self._terms.where)
        except Error as error:
            raise judge(error, f"{self!r}, while the table was made", unsure=False) from None

    # ------------------------------------------------------------ the three verbs

    async def in_time(self, operation: Awaitable[T], late: type[StoreError] = StoreUnavailableError) -> T:
        return await operation  # every call here has its own deadline, and knows better what became of it

    async def get(self, key: str) -> Stored | None:
        stored: Stored | None = await self._send(1, Job("get", key, self._future(key)))
        return stored

    async def head(self, key: str) -> Revision | None:
        revision: Revision | None = await self._send(1, Job("head", key, self._future(key)))
        return revision

    async def put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> None:
        await self.submit(key, data, revision=revision, expected=expected)

    def submit(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> asyncio.Future[None]:
        """Begin a put and return a bare future, no task, that carries its outcome."""
        if expected is Expect.ANY:
            raise UsageError(
                f"a put of key {key!r} expects a revision or Expect.ABSENT: Expect.ANY is only for deleting"
            )
        if len(data) > _LARGEST:
            raise StateTooLargeError(f"the record of key {key!r} has {len(data):,} bytes; a PostgresStore takes 256 MB")
        _check_revision(key, revision)
        _check_revision(key, expected)
        return self._send(0, Job("put", key, self._future(key), bytes(data), bytes(revision), expected))

    async def delete(self, key: str, *, expected: Revision | Expect) -> None:
        _check_revision(key, expected)
        # A tombstone has a revision of its own, for a create may be conditional on it.
        await self._send(0, Job("delete", key, self._future(key), b"", os.urandom(16), expected))
        self._purge_now_and_then()

    def _future(self, key: str) -> asyncio.Future[Any]:
        self._check_open()
        if not key.isascii():
            _encoded(key)
        if not key:
            raise InvalidKeyError("a key must not be empty")
        return asyncio.get_running_loop().create_future()

    def _send(self, lane: int, job: Job) -> asyncio.Future[Any]:
        if not self._lanes:
            raise ClosedError(f"{self!r} is being closed")
        self._lanes[lane].send(job)
        return job.future

    # ------------------------------------------------------------ listing

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield the keys that begin with *prefix*, in the order of their bytes, a thousand at a time.

        Raises:
            CorruptRecordError: some rows have keys that are no UTF-8. It comes last, when all other keys were yielded.
        """
        start = _encoded(prefix)
        low, high = _range(start)
        told: list[str] = []
        number, after, more = 0, b"", True
        while more:
            page = await self._errand(self._table.page, (after, low, high, _PAGE))
            more = len(page) == _PAGE
            after = page[-1][0] if more else b""
            for column, long_key in page:
                encoded = key_of(column, long_key)
                if not encoded.startswith(start):
                    continue
                try:
                    key = encoded.decode()
                except UnicodeDecodeError:
                    number += 1
                    if len(told) < _TOLD:
                        told.append(column[:40].hex())
                else:
                    yield key
        if number:
            raise CorruptRecordError(
                f"{number} rows in {self!r} have keys that are no UTF-8, all others were listed: in hex they begin "
                f"with {'; '.join(told)}{' …' if number > len(told) else ''}. They are left as they are"
            )

    async def count(self, prefix: str = "") -> int:
        start = _encoded(prefix)
        if len(start) > LONGEST_PREFIX:
            return await super().count(prefix)
        ((number,),) = await self._errand(self._table.count, _range(start))
        return int(number)

    async def _errand(self, sql: bytes, values: tuple[object, ...]) -> list[Row]:
        async def run(link: Link) -> list[Row]:
            return await self._rows.scan(link, (sql, values))

        rows: list[Row] = await self._send(2, self._new_errand(run))
        return rows

    def _new_errand(self, run: Callable[[Link], Awaitable[Any]]) -> Job:
        """A request that is not about one key: a page of a listing, a count, a purge."""
        return Job("get", "(listing)", self._future("(listing)"), scope=run)

    async def _run_errands(self, link: Link, batch: list[Job]) -> None:
        for job in batch:
            try:
                job.answer(await self._twice(link, job.scope))
            except StoreError as error:
                job.refuse(error)
            except Exception as error:  # noqa: BLE001  # whatever the driver raised, its caller gets a verdict
                job.refuse(judge(error, repr(self), unsure=False))

    async def _twice(self, link: Link, run: Callable[[Link], Awaitable[Any]]) -> Any:
        """A connection that broke is replaced once: no errand does harm when it is run again."""
        try:
            return await run(link)
        except StoreError:
            raise
        except Exception as error:
            if definite(error):
                raise
        link.discard()
        return await run(link)

    # ------------------------------------------------------------ tombstones

    def _purge_now_and_then(self) -> None:
        """Remove tombstones that have outlived every request that they must stop. Nobody waits for it."""
        now = time.monotonic()
        if now < self._next_purge or not self._lanes:
            return
        self._next_purge = now + _PURGE_EVERY
        life = max(_TOMBSTONE_LIFE, 10 * (self.timeout + CLOCK_SLACK))

        async def purge(link: Link) -> None:
            await link.write((self._table.purge, (life,)))

        errand = self._new_errand(purge)
        errand.future.add_done_callback(lambda done: done.cancelled() or done.exception())  # later, then
        self._send(2, errand)


def _check_revision(key: str, revision: Revision | Expect) -> None:
    if not isinstance(revision, Expect) and not 1 <= len(revision) <= 255:
        raise UsageError(f"a revision for key {key!r} has {len(revision)} bytes: it must have 1 to 255")


def _encoded(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError:
        raise InvalidKeyError("a key holds a lone surrogate: decode it as UTF-8 at its source") from None


def _range(prefix: bytes) -> tuple[bytes, bytes]:
    """From where to where, exclusive, the column of keys with this prefix goes."""
    low = prefix[:LONGEST_PREFIX]
    return low, low[:-1] + bytes([low[-1] + 1]) if low else _END
