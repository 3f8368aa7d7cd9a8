"""One SQLite file on a local disk: the store for one machine.

This file knows that one thread writes and one reads. It does not know the store protocol (``_local.py``), SQL
(``_sqlite_worker.py``, ``_sqlite_reader.py``), files (``_sqlite_db.py``) or batches (``_lane.py``).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from ..errors import CorruptRecordError
from ._lane import Lane
from ._local import LocalStore
from ._sqlite_listing import PAGE
from ._sqlite_reader import Reader
from ._sqlite_worker import Writer
from .base import Durability

__all__ = ["SQLiteStore"]


class SQLiteStore(LocalStore):
    """Keep records in a SQLite database, in WAL mode with ``synchronous=FULL``.

    *timeout* is how many seconds a write waits for other processes (then ``StoreUnavailableError``: not stored).
    A disk that hasn't answered after three times as long is an ``OutcomeUnknownError`` to a write, or
    ``StoreUnavailableError`` if that had not been begun.

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
        super().__init__(path, timeout=timeout)

    async def open(self) -> None:
        # The writer is closed last, for the last connection to be closed is the one that may checkpoint.
        await self._open(
            Lane("overwinter-sqlite-writer", Writer(self.path, self.timeout), patience=self._patience),
            Lane("overwinter-sqlite-reader", Reader(self.path, self.timeout), patience=self._patience),
        )

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield the keys that begin with *prefix*, in the order of their UTF-8 bytes; see ``Store.keys``.

        Pages are read from the index of keys, no data. Nothing is locked between two of them.
        """
        damaged, after, more = 0, None, True
        while more:
            page: list[bytes] = await self._ask("keys", prefix, after)
            more = len(page) == PAGE
            after = page[-1] if more else None
            for encoded in page:
                try:
                    key = encoded.decode()
                except UnicodeDecodeError:
                    damaged += 1
                else:
                    yield key
        if damaged:  # told last, so that it hides nothing
            raise CorruptRecordError(
                f"{damaged} rows in {self.path} have keys that are no UTF-8, all others were listed: restore a backup"
            )

    async def count(self, prefix: str = "") -> int:
        """Return how many keys begin with *prefix*, all as of one moment."""
        number: int = await self._ask("count", prefix)
        return number

    def _prefix(self) -> str:
        return f"{self.path}-"
