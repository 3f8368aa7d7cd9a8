"""Reading the files of a FileStore, with their folder locked: what is seen is durable.

This file knows the threads' work for gets, heads and listings. It writes nothing, and does not know what makes a
file one of ours (``_file_record.py``), or how keys are found (``_file_listing.py``).
"""

from __future__ import annotations

import time

from ..errors import OverwinterError, StoreUnavailableError, UsageError
from ._file_folder import Folder, Shard
from ._file_frame import name_of
from ._file_layer import Files, refusal
from ._file_listing import part_of
from ._file_record import load
from ._jobs import Job

__all__ = ["IN_LINE", "FileReader", "refuse", "refuse_late"]

IN_LINE = 0.02  # seconds to wait for a lock before other jobs get their turn


class FileReader:
    """Gets, heads and parts of the listing. They share the lock with other readers, and see nothing not durable yet."""

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
        name = job.key if job.lists else name_of(job.key)
        try:
            self._folder.check()
            with self._folder.shard(name) as shard:
                if shard.hold(until, shared=True):
                    self._answer(job, shard, name)
                else:
                    refuse_late(job, shard, self._timeout)
        except (OverwinterError, OSError) as error:
            refuse(job, error, self._folder.path)
        except MemoryError:  # of one large record; those beside it need not suffer
            job.refuse(StoreUnavailableError(f"there is no memory to read {job.subject} of {self._folder.path}"))

    def _answer(self, job: Job, shard: Shard, name: str) -> None:
        if job.verb == "keys":
            job.answer(part_of(self._files, shard, job.scope))
        elif job.verb == "count":
            job.answer(len(shard.records()))
        else:
            stored = load(self._files, shard, name, job.key, whole=job.verb == "get")
            job.answer(stored if stored is None or job.verb == "get" else stored.revision)


def refuse(job: Job, error: OverwinterError | OSError, path: str) -> None:
    """Refuse a job that certainly had no effect. What is no error of a store's becomes one."""
    if isinstance(error, StoreUnavailableError | UsageError):
        job.refuse(StoreUnavailableError(str(error)))
    elif isinstance(error, OSError):
        job.refuse(refusal(error, f"{path}, {job.subject}"))
    else:
        job.refuse(error)


def refuse_late(job: Job, shard: Shard, timeout: float) -> None:
    if job.sent + timeout <= time.monotonic():
        job.refuse(
            StoreUnavailableError(
                f"other processes kept {shard.path} locked for {timeout:g} s, and nothing was read or stored; "
                f"{job.subject}: see whether one of them is stopped, or raise timeout="
            )
        )
