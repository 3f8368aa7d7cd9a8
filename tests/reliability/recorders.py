"""The disk under a store, which does what it is told and notes it: for power.py to follow."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from power import State

from overwinter.stores import FileStore, SQLiteStore
from overwinter.stores._file_layer import Files

__all__ = ["Log", "RecordingFiles", "RecordingVFS", "recorded_files", "recorded_sqlite"]

Log = list[tuple[Any, ...]]


class RecordingFiles(Files):
    """Under a FileStore that is in *base*."""

    def __init__(self, log: Log, base: Path, found: State) -> None:
        self._log, self._base = log, base
        self._folders = {".", *(path for path, file in found.items() if file is None)}

    def note(self, step: str, path: str, *rest: Any) -> None:
        self._log.append((step, path, *rest))

    def path(self, descriptor: int, name: str = "") -> str:
        path = (Path(f"/proc/self/fd/{descriptor}").readlink() / name).relative_to(self._base)
        for folder in reversed(path.parents):  # the store makes its folders by itself; what is in them comes after
            if str(folder) not in self._folders:
                self._folders.add(str(folder))
                self.note("make", str(folder))
        return str(path)

    def create(self, name, folder):
        descriptor = super().create(name, folder)
        self.note("create", self.path(descriptor))
        return descriptor

    def write(self, descriptor, data):
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        written = super().write(descriptor, data)
        self.note("write", self.path(descriptor), offset, bytes(data[:written]))
        return written

    def stamp(self, descriptor, nanoseconds):
        super().stamp(descriptor, nanoseconds)
        self.note("stamp", self.path(descriptor), nanoseconds)

    def fsync(self, descriptor):
        path = self.path(descriptor)
        folder = Path(self._base, path).is_dir()
        if not folder and self.fails():
            self.note("flush failed", path)
            raise OSError(errno.EIO, "the flush failed")
        super().fsync(descriptor)
        self.note("flush folder" if folder else "flush", path)

    def fails(self) -> bool:
        """Whether the next flush of a file fails. After one of a folder that failed a file system does nothing more."""
        return False

    def rename(self, old, new, folder):
        super().rename(old, new, folder)
        self.note("rename", self.path(folder, old), self.path(folder, new))

    def unlink(self, name, folder):
        super().unlink(name, folder)
        self.note("unlink", self.path(folder, name))


class RecordingVFS(apsw.VFS):
    """Under a SQLiteStore that is in *base*. It notes the flushes of the folder that SQLite's own VFS does."""

    numbers = itertools.count()

    def __init__(self, log: Log, base: Path) -> None:
        self.log, self.base = log, base
        self.name = f"recording-{next(self.numbers)}"
        super().__init__(self.name, "")

    def note(self, step: str, path: str, *rest: Any) -> None:
        self.log.append((step, path, *rest))

    def fails(self) -> bool:
        """Whether the next flush of a file fails."""
        return False

    def flush(self, path: str, error: Exception) -> None:
        if self.fails():
            self.note("flush failed", path)
            raise error
        self.note("flush", path)

    def xOpen(self, name, flags):
        return RecordingFile(self, name, flags) if name else apsw.VFSFile("", None, flags)  # a temporary one

    def xDelete(self, name, sync):
        super().xDelete(name, sync)
        self.note("unlink", str(Path(name).relative_to(self.base)))
        if sync:
            self.note("flush folder", ".")


class RecordingFile(apsw.VFSFile):
    def __init__(self, vfs, name, flags):
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name)
        there = path.exists()
        super().__init__("", name, flags)
        self._vfs, self.path = vfs, str(path.relative_to(vfs.base))
        if not there:
            vfs.note("create", self.path)
        # As os_unix.c has it: the first flush of a log or journal flushes its folder too.
        self.flushes_folder = bool(flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL))

    def xWrite(self, data, offset):
        super().xWrite(data, offset)
        self._vfs.note("write", self.path, offset, bytes(data))

    def xTruncate(self, size):
        super().xTruncate(size)
        self._vfs.note("truncate", self.path, size)

    def xSync(self, flags):
        super().xSync(flags)
        self._vfs.flush(self.path, apsw.exception_for(apsw.SQLITE_IOERR_FSYNC))
        if self.flushes_folder:
            self._vfs.note("flush folder", ".")
            self.flushes_folder = False


@contextlib.contextmanager
def recorded_files(
    base: Path, found: State, log: Log, kind: type[RecordingFiles] = RecordingFiles
) -> Iterator[FileStore]:
    """A FileStore in *base*, on a disk that held what was *found*."""
    store = FileStore(base / "s")
    store._files = kind(log, base, found)
    yield store


@contextlib.contextmanager
def recorded_sqlite(
    base: Path, found: State, log: Log, kind: type[RecordingVFS] = RecordingVFS
) -> Iterator[SQLiteStore]:
    """A SQLiteStore in *base*, on a disk that held what was *found*."""
    vfs = kind(log, base)
    flush, write, connect = os.fsync, os.pwrite, apsw.Connection

    def fsync(descriptor: int) -> None:
        flush(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path == base:
            vfs.note("flush folder", ".")
        elif path.parent == base:
            vfs.flush(path.name, OSError(errno.EIO, "the flush failed"))

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        written = write(descriptor, data, offset)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.parent == base:
            vfs.note("write", path.name, offset, data[:written])
        return written

    if "a.db" not in found:
        vfs.note("create", "a.db")  # which the store does by itself, and flushes the folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(apsw, "Connection", functools.partial(connect, vfs=vfs.name))
        yield SQLiteStore(base / "a.db")
    vfs.unregister()
