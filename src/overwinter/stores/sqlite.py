"""One SQLite file on a local disk: the store for one machine.

This file knows the store protocol and hands the work to two threads. It does not know SQL (``_sqlite_worker.py``),
files (``_sqlite_db.py``) or batches (``_lane.py``).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import warnings
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from ..errors import InvalidKeyError, StoreError, StoreInUseError, StoreUnavailableError, UsageError
from ._flock import LockFile
from ._lane import Job, Lane
from ._sqlite_worker import Reader, Writer
from .base import Durability, Expect, Revision, Store, Stored, T

__all__ = ["SQLiteStore"]

_CLAIM_NAP = 0.02


class SQLiteStore(Store):
    """Keep records in a SQLite database, in WAL mode with ``synchronous=FULL``.

    *timeout* is how many seconds a write waits for other processes (then ``StoreUnavailableError``: not stored).
    A disk that hasn't answered after three times as long is an ``OutcomeUnknownError`` to a write.

    Promises:

    * A put that returned survives a power loss, if the disk keeps its word about fsync.
    * Nothing blocks the event loop: one thread writes, one reads. Puts that wait share one transaction and one fsync.
      A put whose condition failed, or that SQLite refuses, fails alone; the rest of its transaction is stored.
    * Several processes on one machine may use one file. Each agent name has one owner unless the managers are
      ``shared=True``; the kernel ends the claim of a process that dies. Writers take turns.
    * The file, and those beside it (``-wal``, ``-shm``, ``-lock``, ``-turnstile``, ``-owner-….lock``), are created
      for their owner only; symlinks and files of other users are refused. Never delete the lock files in use.
    * Cancelling a caller is safe: what it began happens or doesn't, whole.

    Caveats:

    * Local disks only. SQLite's WAL needs shared memory, so no NFS, SMB or a folder shared with a virtual machine.
    * **Don't open the file with Python's** ``sqlite3`` **module in a process that has this store open.** That is
      another copy of SQLite, and when it closes the file, the kernel drops the POSIX locks of ours. Overwinter's
      writers still keep each other out, by locks on files of their own, but a checkpoint of the foreign copy can
      lose a committed row. Look with the ``sqlite3`` shell, or in a subprocess; those are other processes and safe.
    * Copy it with ``sqlite3 agents.db ".backup copy.db"``, not with ``cp``: the newest changes are in ``-wal``.
    * After a fork the child must make a store of its own.
    """

    durability = Durability.HOST

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        name = os.fspath(path)
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # a PathLike of bytes, or bytes
            raise TypeError(f"the path of a SQLiteStore must be a str or a path, not {type(name).__name__}")
        if name == ":memory:" or not name:
            raise UsageError("a SQLiteStore needs the path of a file: use MemoryStore() for a store that forgets")
        if "\0" in name:
            raise UsageError("the path of a SQLiteStore holds a NUL character, which no file's name can")
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        # The folder may be reached through symlinks, the file may not; and two ways to a file share its locks.
        self.path = str(Path(name).parent.resolve() / Path(name).name)
        self.timeout = timeout
        self._writer: Lane | None = None
        self._reader: Lane | None = None
        self._owned: dict[str, LockFile] = {}

    def __repr__(self) -> str:
        return f"SQLiteStore({self.path!r})"

    async def in_time(self, operation: Awaitable[T], late: type[StoreError] = StoreUnavailableError) -> T:
        return await operation  # every call here has its own deadline, and knows better what became of it

    async def open(self) -> None:
        patience = 3 * self.timeout
        writer = Lane("overwinter-sqlite-writer", Writer(self.path, self.timeout), patience=patience)
        await writer.open()
        reader = Lane("overwinter-sqlite-reader", Reader(self.path, self.timeout), patience=patience)
        try:
            await reader.open()
        except BaseException:
            writer.abandon()
            await writer.join(patience)
            raise
        self._writer, self._reader = writer, reader

    async def close(self) -> None:
        """Do what was begun, then let go. A later ``async with`` opens it again."""
        writer, reader = self._writer, self._reader
        self._writer = self._reader = None
        owned, self._owned = self._owned, {}
        if self._pid != os.getpid() or writer is None or reader is None:
            return  # in a forked child there are no threads, and the locks are the parent's
        reader.abandon()
        try:
            await reader.join(3 * self.timeout)
        finally:
            writer.abandon()  # second, for the last connection to be closed is the one that may checkpoint
            try:
                await writer.join(3 * self.timeout)
            finally:
                for lock in owned.values():
                    lock.close()

    def __del__(self) -> None:
        lanes = [lane for lane in (getattr(self, "_reader", None), getattr(self, "_writer", None)) if lane is not None]
        if lanes and self._pid == os.getpid():
            for lane in lanes:
                lane.abandon()
            message = f"{self!r} was not closed: use it in `async with store:`"
            warnings.warn(message, ResourceWarning, source=self, stacklevel=2)

    # ------------------------------------------------------------ the three verbs

    async def get(self, key: str) -> Stored | None:
        stored: Stored | None = await self._read(Job("get", key, self._future(key)))
        return stored

    async def head(self, key: str) -> Revision | None:
        """Return the revision under *key*, as of now: every commit of any process that returned before is seen."""
        revision: Revision | None = await self._read(Job("head", key, self._future(key)))
        return revision

    async def put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> None:
        await self.submit(key, data, revision=revision, expected=expected)

    async def delete(self, key: str, *, expected: Revision | Expect) -> None:
        await self._write(Job("delete", key, self._future(key), expected=expected))

    def submit(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> asyncio.Future[None]:
        """Begin a put and return a bare future, no task, that carries its outcome."""
        if expected is Expect.ANY:
            raise UsageError(
                f"a put of key {key!r} expects a revision or Expect.ABSENT: Expect.ANY is only for deleting"
            )
        return self._write(Job("put", key, self._future(key), bytes(data), bytes(revision), expected))

    def _future(self, key: str) -> asyncio.Future[Any]:
        self._check_open()
        if not key.isascii():
            try:
                key.encode()
            except UnicodeEncodeError:
                raise InvalidKeyError("a key holds a lone surrogate: decode it as UTF-8 at its source") from None
        return asyncio.get_running_loop().create_future()

    def _read(self, job: Job) -> asyncio.Future[Any]:
        assert self._reader is not None
        self._reader.send(job)
        return job.future

    def _write(self, job: Job) -> asyncio.Future[None]:
        assert self._writer is not None
        self._writer.send(job)
        return job.future

    # ------------------------------------------------------------ one owner

    async def claim(self, name: str, *, shared: bool, wait: float) -> None:
        """Own the agents called *name* in this file: nobody else does, in no process, unless all are *shared*."""
        self._check_open()
        await super().claim(name, shared=shared, wait=wait)
        digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        lock = LockFile(f"{self.path}-owner-{digest}.lock")
        try:
            lock.open()
            deadline = time.monotonic() + wait
            while not lock.try_lock(shared=shared):
                if time.monotonic() >= deadline:
                    raise StoreInUseError(
                        f"agent {name!r} on {self.path} has an owner already: {lock.holder()}. Stop that one, "
                        "or pass shared=True to the InstanceManager in every process that uses this agent"
                    )
                await asyncio.sleep(min(_CLAIM_NAP, wait))
            lock.sign(shared=shared)
        except BaseException:
            lock.close()
            await super().release(name)
            raise
        self._owned[name] = lock

    async def release(self, name: str) -> None:
        lock = self._owned.pop(name, None)
        if lock is not None:
            lock.close()
        await super().release(name)
