"""The worker of a SQLite store that writes: one connection, in the thread of its lane.

This file knows transactions and their outcomes. It does not know futures or event loops.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

import apsw

from ..errors import OutcomeUnknownError, StoreUnavailableError
from . import _sqlite_db as db
from ._flock import FairLock
from ._jobs import Job, conflict
from .base import Expect

__all__ = ["Writer"]

_CHECKPOINT_PAGES = 1000  # of 4 KiB; SQLite's own default
_CLOSING_PATIENCE = 2.0


class Writer:
    """Puts and deletes, a batch per transaction.

    The lock between processes is held round every transaction and every checkpoint, also that of the last close:
    SQLite's own locks vanish when somebody in this process opens the file with another SQLite library, and then
    only ours keeps two writers apart.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._lock = FairLock(path)
        self._connection: apsw.Connection | None = None
        self._anchor: apsw.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._log_pages = 0
        self._checkpoint_at = _CHECKPOINT_PAGES

    def start(self) -> None:
        try:
            db.prepare(self._path)
        except OSError as error:
            if isinstance(error, StoreUnavailableError):
                raise
            why = os.strerror(error.errno or 0)
            raise StoreUnavailableError(
                f"{self._path} can't be opened ({why}): see the disk and the system's log"
            ) from None
        self._lock.open()
        deadline = time.monotonic() + self._timeout
        self._hold(deadline)
        try:
            self._connection = db.connect(self._path)
            db.initialise(self._connection, self._path, deadline)
            db.write_log_anew(self._connection, self._path, deadline)
            # While somebody has it open, the index of the log stays, nobody recovers what a failed commit left there,
            # and the next one overwrites it.
            anchor = self._anchor = db.connect(self._path)
            db.patiently(lambda: db.run(anchor, "SELECT count(*) FROM sqlite_schema"), deadline)
            self._watch_log(self._connection)
            self._file = db.certain_identity(self._path)
        except Exception as error:
            # What is in the log may not be durable, or not ours, and so must not be copied back by closing.
            self._drop()
            if isinstance(error, apsw.Error):
                raise db.refusal(error, self._path) from None
            raise
        finally:
            self._lock.release()

    def work(self, batch: list[Job]) -> None:
        try:
            self._hold(max(time.monotonic(), min(job.sent for job in batch) + self._timeout))
        except StoreUnavailableError as error:
            self._refuse_all(batch, str(error))
            return
        try:
            if self._file == db.identity(self._path):
                self._transact(batch)
            else:
                self._refuse_all(batch, db.MOVED.format(self._path))
        finally:
            self._lock.release()

    def rest(self) -> None:
        """Copy the log into the database now and then, when no caller waits for it."""
        if self._connection is None or self._log_pages < self._checkpoint_at:
            return
        if not self._lock.acquire(time.monotonic()):
            return  # somebody writes; after the next batch, then
        try:
            _, copied = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error as error:
            if not db.busy(error):
                self._drop()  # never fsync a descriptor again whose fsync may have failed
            copied = 0
        finally:
            self._lock.release()
        # What was not copied (a full disk, a reader in the way) is tried again later, not after every batch.
        self._checkpoint_at = _CHECKPOINT_PAGES if copied >= self._log_pages else self._log_pages + _CHECKPOINT_PAGES
        self._log_pages = 0

    def stop(self) -> None:
        if self._anchor is not None:
            db.disconnect(self._anchor)
            self._anchor = None
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(StoreUnavailableError):  # without the lock the log stays, for the next who opens
                if self._lock.acquire(time.monotonic() + min(self._timeout, _CLOSING_PATIENCE)):
                    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            db.disconnect(connection)
        self._lock.close()  # which unlocks it

    # ------------------------------------------------------------ a transaction

    def _transact(self, jobs: list[Job]) -> None:
        """Run *jobs* in one transaction; if one of them can't be, find it by halves, so that it fails alone."""
        try:
            connection = self._connected()
            _begin(connection, jobs[0].sent + self._timeout)
            verdicts = _apply(connection, jobs)
        except Exception as error:  # noqa: BLE001  # not apsw's only: a key that can't be bound, memory
            self._rollback()
            if len(jobs) > 1 and db.worth_splitting(error):
                self._halve(jobs)
            else:
                self._refuse(jobs, error)
            return
        try:
            db.run(connection, "COMMIT")
        except apsw.Error as error:
            self._commit_failed(connection, jobs, verdicts, error)
            return
        _report(jobs, verdicts)

    def _halve(self, jobs: list[Job]) -> None:
        middle = len(jobs) // 2
        self._transact(jobs[:middle])
        self._transact(jobs[middle:])

    def _commit_failed(
        self, connection: apsw.Connection, jobs: list[Job], verdicts: Sequence[Exception | None], error: apsw.Error
    ) -> None:
        if db.definite_commit(error, connection) and self._rollback():
            if isinstance(error, apsw.FullError) and len(jobs) > 1:
                self._halve(jobs)  # one large record must not keep the small ones out of what space there is
            else:
                self._refuse(jobs, error)
            return
        self._drop()
        name = db.code_name(error)
        for job, verdict in zip(jobs, verdicts, strict=True):
            job.refuse(
                verdict
                or OutcomeUnknownError(
                    f"the commit failed ({name}) and may have happened: {self._path}, key {job.key!r}. "
                    "Only another conditional put can tell; see the disk and the system's log"
                )
            )

    def _refuse(self, jobs: list[Job], error: Exception) -> None:
        if not isinstance(error, apsw.FullError | apsw.BusyError | apsw.ConstraintError):
            self._drop()  # a new connection finds out whether the file can be used again
        for job in jobs:
            job.refuse(db.refusal(error, self._path, job.subject))

    def _refuse_all(self, jobs: list[Job], why: str) -> None:
        for job in jobs:
            job.refuse(StoreUnavailableError(why))  # one each: a raised exception keeps its caller's frames

    # ------------------------------------------------------------ the connection

    def _hold(self, deadline: float) -> None:
        if not self._lock.acquire(deadline):
            raise StoreUnavailableError(
                f"other processes kept {self._path} locked for {self._timeout:g} s and nothing was stored: "
                "see whether one of them is stopped, or raise timeout="
            )

    def _connected(self) -> apsw.Connection:
        if self._connection is None:
            self._connection = db.connect(self._path)
            self._watch_log(self._connection)
        return self._connection

    def _watch_log(self, connection: apsw.Connection) -> None:
        connection.set_wal_hook(self._note_pages)

    def _note_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _rollback(self) -> bool:
        """End the transaction, if it isn't over already; whether that is certain."""
        if self._connection is None:
            return True
        try:
            if self._connection.in_transaction:
                db.run(self._connection, "ROLLBACK")
        except apsw.Error:
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            db.disconnect(connection)


def _begin(connection: apsw.Connection, deadline: float) -> None:
    db.patiently(lambda: db.run(connection, "BEGIN IMMEDIATE"), deadline)


# ---------------------------------------------------------------- rows
#
# Several rows go into one statement. Each statement gives the interpreter's lock away and must get it back from a
# busy event loop: with a statement per row, 32 rows took 4 to 176 ms beside a busy loop, with one statement 1 to 2.

_CREATE = (
    "INSERT INTO agents(key, revision, data) SELECT column1, column2, column3 FROM (VALUES {})"
    " WHERE column1 IS NOT NULL ON CONFLICT DO NOTHING"
)
_REPLACE = (
    "UPDATE agents SET revision = v.column2, data = v.column3 FROM (VALUES {}) AS v"
    " WHERE agents.key = v.column1 AND agents.revision = v.column4"
)
_ROW = "(?,?,?,?)"
_statements: dict[tuple[str, int], str] = {}


def _apply(connection: apsw.Connection, jobs: list[Job]) -> list[Exception | None]:
    """Apply each job whose condition holds; for each job ``None`` or the conflict."""
    absent = Expect.ABSENT
    creations = [job for job in jobs if job.expected is absent and job.verb == "put"]
    changes = [job for job in jobs if job.expected is not absent and job.verb == "put"]
    losers: set[Job] = set()
    for sql, puts in ((_CREATE, creations), (_REPLACE, changes)):
        if puts and _put_all(connection, sql, puts) != len(puts):
            losers.update(job for job in puts if _revision(connection, job.key) != job.revision)
    if len(creations) + len(changes) < len(jobs):
        losers.update(job for job in jobs if job.verb == "delete" and not _delete(connection, job))
    return [conflict(job) if job in losers else None for job in jobs] if losers else [None] * len(jobs)


def _put_all(connection: apsw.Connection, sql: str, puts: list[Job]) -> int:
    room = 1 << (len(puts) - 1).bit_length()  # few sizes, so that the prepared statements are found again
    statement = _statements.get((sql, room))
    if statement is None:
        statement = _statements[sql, room] = sql.format(",".join([_ROW] * room))
    values: list[str | bytes | None] = []
    for job in puts:
        values += (job.key, job.revision, job.data, job.expected if isinstance(job.expected, bytes) else None)
    values += (None,) * (4 * (room - len(puts)))  # a NULL key matches nothing
    db.run(connection, statement, values)
    return connection.changes()


def _revision(connection: apsw.Connection, key: str) -> object:
    sql = "SELECT revision FROM agents WHERE key = ? AND typeof(revision) = 'blob'"  # text need not even be UTF-8
    return db.run(connection, sql, (key,)).get


def _delete(connection: apsw.Connection, job: Job) -> bool:
    if job.expected is Expect.ANY:
        db.run(connection, "DELETE FROM agents WHERE key = ?", (job.key,))
        return True
    if isinstance(job.expected, bytes):
        db.run(connection, "DELETE FROM agents WHERE key = ? AND revision = ?", (job.key, job.expected))
        if connection.changes():
            return True
    return db.run(connection, "SELECT 1 FROM agents WHERE key = ?", (job.key,)).get is None


def _report(jobs: list[Job], verdicts: Sequence[Exception | None]) -> None:
    for job, verdict in zip(jobs, verdicts, strict=True):
        job.error, job.answered = verdict, True
