"""A file of a FileStore as it is on the disk: whole and of this key, or an error, never a guess.

This file knows what makes a file one of ours. It does not know jobs or locks, and writes nothing.
"""

from __future__ import annotations

import errno
import os
import stat

from ..errors import CorruptRecordError
from ._file_folder import Shard
from ._file_frame import DamagedError, head_size, unpack
from ._file_layer import Files
from .base import Stored

__all__ = ["checked_size", "load", "open_record"]

_FIRST_READ = 8192  # bytes; most files are read whole by the first read


def load(files: Files, shard: Shard, name: str, key: str, *, whole: bool) -> Stored | None:
    """Read and verify a file; unless *whole*, without its data."""
    try:
        descriptor = open_record(files, shard, name)
        try:
            return _verified(files, descriptor, key, whole=whole)
        finally:
            files.close(descriptor)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise CorruptRecordError(
            f"{shard.path}/{name} {error}; key {key!r}. It is left as it is: restore it from a backup"
        ) from None


def open_record(files: Files, shard: Shard, name: str) -> int:
    """Open a file to be read.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is something else.
    """
    try:
        return files.open(name, shard.descriptor)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise DamagedError("is no plain file") from None
        raise


def checked_size(files: Files, descriptor: int) -> int:
    """Return the size of a file, if it is a plain one and ours."""
    status = files.stat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError("is no plain file")
    if status.st_uid != os.geteuid():
        raise DamagedError(f"belongs to user {status.st_uid}")
    return status.st_size


def _verified(files: Files, descriptor: int, key: str, *, whole: bool) -> Stored:
    total = checked_size(files, descriptor)
    start = files.read(descriptor, _FIRST_READ, 0)
    if head_size(start) > len(start):
        start = files.read(descriptor, head_size(start), 0)
    revision, begin = unpack(start, total, key)
    parts, offset = [start[begin:]], max(begin, len(start))
    while whole and offset < total:
        part = files.read(descriptor, total - offset, offset)
        if not part:
            raise DamagedError("is torn")
        parts.append(part)
        offset += len(part)
    return Stored(b"".join(parts) if whole else b"", revision)
