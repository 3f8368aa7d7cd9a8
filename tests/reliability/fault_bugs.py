"""Bugs, one at a time, that ``test_io_errors.py`` must find: each makes an error of the disk do some harm."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import apsw

from overwinter.errors import StoreError, StoreUnavailableError
from overwinter.runtime._ledger import Ledger
from overwinter.stores import FileStore, _file_reader, _sqlite_worker
from overwinter.stores._file_folder import Shard
from overwinter.stores._file_layer import Files
from overwinter.stores._file_writer import FileWriter
from overwinter.stores._sqlite_reader import Reader
from overwinter.stores._sqlite_worker import Writer

__all__ = ["BUGS", "plant"]


class SwallowsFlushes(Files):
    def fsync(self, descriptor):
        with contextlib.suppress(OSError):
            super().fsync(descriptor)


class FlushesAgain(Files):
    def fsync(self, descriptor):
        try:
            super().fsync(descriptor)
        except OSError:
            super().fsync(descriptor)


class TakesErrorsForAbsence(Files):
    def open(self, name, folder):
        try:
            return super().open(name, folder)
        except OSError:
            raise FileNotFoundError from None


class LeaksDescriptors(Files):
    def read(self, descriptor, size, offset):
        try:
            return super().read(descriptor, size, offset)
        except OSError:
            os.dup(descriptor)
            raise


class TakesShortWritesForWhole(Files):
    def write(self, descriptor, data):
        super().write(descriptor, data)
        return len(data)


def _refuse_with_the_systems_error(job: Any, error: Exception, path: str) -> None:
    job.refuse(error)


def _unknown_as_unavailable(self: FileWriter, error: OSError, job: Any) -> Exception:
    return StoreUnavailableError("not stored")


def _absent_if_sqlite_fails(self: Reader, job: Any) -> None:
    try:
        self._answer(job)
    except apsw.Error:
        job.answer(None)
        self._drop()


async def _persist_what_it_can(self: Ledger, *, create: bool = False) -> None:
    with contextlib.suppress(StoreError):
        await _persist(self, create=create)


_persist = Ledger.persist

BUGS: dict[str, tuple[Any, str, Any]] = {
    "swallows flushes": (FileStore, "_files", SwallowsFlushes()),
    "flushes again": (FileStore, "_files", FlushesAgain()),
    "takes errors for absence": (FileStore, "_files", TakesErrorsForAbsence()),
    "leaks descriptors": (FileStore, "_files", LeaksDescriptors()),
    "takes short writes for whole": (FileStore, "_files", TakesShortWritesForWhole()),
    "leaves temporary files": (Shard, "discard", lambda self, name: None),
    "tells the system's errors": (_file_reader, "refuse", _refuse_with_the_systems_error),
    "takes unknown for not stored": (FileWriter, "_unknown", _unknown_as_unavailable),
    "takes SQLite's errors for absence": (Reader, "_do", _absent_if_sqlite_fails),
    "takes a failed commit for definite": (_sqlite_worker.db, "definite_commit", lambda error, connection: True),
    "keeps the connection whose flush failed": (Writer, "_drop", lambda self: None),
    "says what could not be stored is": (Ledger, "persist", _persist_what_it_can),
}


def plant(name: str) -> None:
    """Have it in this process from now on."""
    owner, attribute, broken = BUGS[name]
    setattr(owner, attribute, broken)
