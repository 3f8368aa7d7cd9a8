"""The worker of a SQLite store that reads: one connection, in the thread of its lane.

This file knows the statements of gets and heads. It does not know futures or event loops, and writes nothing.
"""

from __future__ import annotations

import apsw

from ..errors import CorruptRecordError, StoreUnavailableError
from . import _sqlite_db as db
from ._jobs import Job
from ._sqlite_listing import count_of, page_of
from .base import Stored

__all__ = ["Reader"]

_COLUMNS = {"get": "key, revision, data", "head": "key, revision, x''"}
_ROWS = "SELECT {} FROM agents WHERE key IN ({})"


class Reader:
    """Gets, heads and pages of keys. Each sees every commit that was acknowledged before it was asked."""

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._connection: apsw.Connection | None = None
        self._file: tuple[int, int] | None = None

    def start(self) -> None:
        self._file = db.certain_identity(self._path)
        try:
            self._connection = db.connect(self._path)
        except apsw.Error as error:
            raise db.refusal(error, self._path) from None

    def work(self, batch: list[Job]) -> None:
        if db.identity(self._path) != self._file:
            for job in batch:
                job.refuse(StoreUnavailableError(db.MOVED.format(self._path)))
            return
        # Those that wait go into one statement each for gets and heads. Where that fails, each job is tried by itself,
        # so that what is damaged or refused fails alone.
        for verb in _COLUMNS:
            jobs = [job for job in batch if job.verb == verb]
            if len(jobs) > 1:
                self._look_up_together(verb, jobs)
        for job in batch:
            if not job.answered:
                self._do(job)

    def rest(self) -> None:
        """Nothing can wait."""

    def stop(self) -> None:
        self._drop()

    def _do(self, job: Job) -> None:
        try:
            db.patiently(lambda: self._answer(job), job.sent + self._timeout)
        except apsw.Error as error:
            job.refuse(db.refusal(error, self._path, job.subject))
            self._drop()
        except UnicodeDecodeError:
            self._refuse_damaged(job, "text that is no UTF-8")

    def _connected(self) -> apsw.Connection:
        if self._connection is None:
            self._connection = db.connect(self._path)
        return self._connection

    def _answer(self, job: Job) -> None:
        connection = self._connected()
        if job.verb == "keys":
            job.answer(page_of(connection, job.key, job.scope))
        elif job.verb == "count":
            job.answer(count_of(connection, job.key))
        else:
            rows = db.run(connection, _ROWS.format(_COLUMNS[job.verb], "?"), (job.key,))
            self._give(job, rows.fetchone())

    def _look_up_together(self, verb: str, jobs: list[Job]) -> None:
        room = 1 << (len(jobs) - 1).bit_length()  # few sizes, so that the prepared statements are found again
        keys: list[str | None] = [job.key for job in jobs]
        keys += [None] * (room - len(jobs))  # a NULL is equal to no key
        try:
            sql = _ROWS.format(_COLUMNS[verb], ",".join("?" * room))
            found = {row[0]: row for row in db.run(self._connected(), sql, keys)}
        except (apsw.Error, UnicodeError):  # of the database, of a key that is asked for, of one that is stored
            return
        for job in jobs:
            self._give(job, found.get(job.key))

    def _give(self, job: Job, row: tuple[object, ...] | None) -> None:
        """Answer with the row of a record, if there is one."""
        if row is None:
            job.answer(None)
            return
        _, revision, data = row
        if not isinstance(revision, bytes) or not isinstance(data, bytes):
            self._refuse_damaged(job, f"{type(revision).__name__}, {type(data).__name__}")
        else:
            job.answer(Stored(data, revision) if job.verb == "get" else revision)

    def _refuse_damaged(self, job: Job, what: str) -> None:
        job.refuse(
            CorruptRecordError(f"the row of {job.subject} in {self._path} holds {what}, not bytes; it is left as is")
        )

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            db.disconnect(connection)
