"""Reading the files of a FileStore: what is whole, of this key and durable, or an error, never a guess.

This file knows what makes a file one of ours, and the threads' work for gets and heads. It writes nothing.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from ..errors import CorruptRecordError, OverwinterError, StoreUnavailableError, UsageError
from ._file_folder import Folder, Shard
from ._file_frame import DamagedError, head_size, name_of, unpack
from ._file_layer import Files, refusal
from ._jobs import Job
from .base import Stored

__all__ = ["IN_LINE", "FileReader", "load", "refuse", "refuse_late"]

IN_LINE = 0.02  # seconds to wait for a lock before other jobs get their turn
_FIRST_READ = 8192  # bytes; most files are read whole by the first read


class FileReader:
    """Gets and heads. Each shares the lock with other readers, so that it sees nothing that is not durable yet."""

    def __init__(self, folder: Folder, files: Files, timeout: float) -> None:
        self._folder = folder
        self._files = files
        self._timeout = timeout

    def start(self) -> None:
        """The writer opens the folder."""

    def rest(self) -> None:
        """Nothing can wait."""

    def stop(self) -> None:
        """The writer closes the folder."""

    def work(self, batch: list[Job]) -> None:
        """Do *batch*, or leave unanswered what must wait for the lock of a writer."""
        for job in batch:
            self._attempt(job, 0)
        if not any(job.answered for job in batch):
            self._attempt(batch[0], time.monotonic() + IN_LINE)

    def _attempt(self, job: Job, until: float) -> None:
        name = name_of(job.key)
        try:
            self._folder.check()
            with self._folder.shard(name) as shard:
                if shard.hold(until, shared=True):
                    stored = load(self._files, shard, name, job.key, whole=job.verb == "get")
                    job.answer(stored if stored is None or job.verb == "get" else stored.revision)
                else:
                    refuse_late(job, shard, self._timeout)
        except (OverwinterError, OSError) as error:
            refuse(job, error, self._folder.path)


def refuse(job: Job, error: OverwinterError | OSError, path: str) -> None:
    """Refuse a job that certainly had no effect. What is no error of a store's becomes one."""
    if isinstance(error, StoreUnavailableError | UsageError):
        job.refuse(StoreUnavailableError(str(error)))
    elif isinstance(error, OSError):
        job.refuse(refusal(error, f"{path}, key {job.key!r}"))
    else:
        job.refuse(error)


def refuse_late(job: Job, shard: Shard, timeout: float) -> None:
    if job.sent + timeout <= time.monotonic():
        job.refuse(
            StoreUnavailableError(
                f"other processes kept {shard.path} locked for {timeout:g} s, and nothing was read or stored; "
                f"key {job.key!r}: see whether one of them is stopped, or raise timeout="
            )
        )


def load(files: Files, shard: Shard, name: str, key: str, *, whole: bool) -> Stored | None:
    """Read and verify a file; unless *whole*, without its data."""
    try:
        try:
            descriptor = files.open(name, shard.descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise DamagedError("is no plain file") from None
            raise
        try:
            return _verified(files, descriptor, key, whole=whole)
        finally:
            files.close(descriptor)
    except DamagedError as error:
        raise CorruptRecordError(
            f"{shard.path}/{name} {error}; key {key!r}. It is left as it is: restore it from a backup"
        ) from None


def _verified(files: Files, descriptor: int, key: str, *, whole: bool) -> Stored:
    status = files.stat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError("is no plain file")
    if status.st_uid != os.geteuid():
        raise DamagedError(f"belongs to user {status.st_uid}")
    start = files.read(descriptor, _FIRST_READ, 0)
    if head_size(start) > len(start):
        start = files.read(descriptor, head_size(start), 0)
    revision, begin = unpack(start, status.st_size, key)
    parts, offset = [start[begin:]], max(begin, len(start))
    while whole and offset < status.st_size:
        part = files.read(descriptor, status.st_size - offset, offset)
        if not part:
            raise DamagedError("is torn")
        parts.append(part)
        offset += len(part)
    return Stored(b"".join(parts) if whole else b"", revision)
