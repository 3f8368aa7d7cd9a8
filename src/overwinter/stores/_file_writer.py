"""Writing the files of a FileStore: compare, write, flush, rename, flush, in one of 256 folders at a time.

This file knows the order of system calls and which errors mean what. It does not know futures or event loops.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator
from dataclasses import dataclass

from ..errors import OutcomeUnknownError, OverwinterError, StateTooLargeError, UsageError
from ._file_folder import Folder, Shard, temporary_name
from ._file_frame import MAX_DATA, name_of, pack
from ._file_layer import Files, definite
from ._file_reader import IN_LINE, refuse, refuse_late
from ._file_record import load
from ._jobs import Job, conflict
from .base import Expect

__all__ = ["FileWriter"]

_TOGETHER = 16  # files that are written before the first of them is flushed, and so are open at a time
_ONE_WRITE = 65536  # bytes of data up to which copying is cheaper than a second write


@dataclass(frozen=True, slots=True)
class Draft:
    """A file that is written and neither flushed nor in its place."""

    job: Job
    name: str
    temporary: str
    descriptor: int


class FileWriter:
    """Puts and deletes, in batches of one shard. Opens the folder and closes it, for the reader too."""

    def __init__(self, folder: Folder, files: Files, timeout: float) -> None:
        self._folder = folder
        self._files = files
        self._timeout = timeout

    def start(self) -> None:
        self._folder.open()

    def rest(self) -> None:
        """Nothing can wait."""

    def stop(self) -> None:
        self._folder.close()

    def work(self, batch: list[Job]) -> None:
        """Do *batch*, or leave unanswered what must wait for the lock of another process."""
        try:
            self._folder.check()
            with self._folder.shard(name_of(batch[0].key)) as shard:
                if shard.hold(time.monotonic() + IN_LINE, shared=False):
                    self._do(shard, batch)
                else:
                    for job in batch:
                        refuse_late(job, shard, self._timeout)
        except (OSError, UsageError) as error:  # before anything was changed
            for job in batch:
                if not job.answered:
                    refuse(job, error, self._folder.path)

    # ------------------------------------------------------------ under the lock

    def _do(self, shard: Shard, batch: list[Job]) -> None:
        landed: list[Job] = []
        for start in range(0, len(batch), _TOGETHER):
            self._do_some(shard, batch[start : start + _TOGETHER], landed)
        if landed:
            self._seal(shard, landed)
        shard.unmark()

    def _do_some(self, shard: Shard, jobs: list[Job], landed: list[Job]) -> None:
        """Do jobs up to the point where only the folder is to be flushed; those that came so far are *landed*."""
        drafts: list[Draft] = []
        for job in jobs:
            with self._refusing(job):
                if self._is_expected(shard, job):
                    shard.mark()
                    if job.verb == "put":
                        drafts.append(self._draft(shard, job))
                    elif self._delete(shard, job):
                        landed.append(job)
        if len(drafts) > 1:  # then the first flush finds the others written, and one entry in the journal does for all
            for draft in drafts:
                self._files.begin_writing(draft.descriptor)
        for draft in drafts:
            with self._refusing(draft.job):
                self._land(shard, draft)
                landed.append(draft.job)

    @contextlib.contextmanager
    def _refusing(self, job: Job) -> Generator[None]:
        try:
            yield
        except (OverwinterError, OSError) as error:
            refuse(job, error, self._folder.path)

    def _seal(self, shard: Shard, landed: list[Job]) -> None:
        """Make what was renamed or unlinked durable; only then is it told."""
        try:
            shard.seal()
        except OSError as error:
            shard.unsure = True
            for job in landed:
                job.refuse(self._unknown(error, job))
        else:
            for job in landed:
                job.answer()

    def _unknown(self, error: OSError, job: Job) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"the last step failed ({os.strerror(error.errno or 0)}) and may have happened: {self._folder.path}, "
            f"key {job.key!r}. Only another conditional put can tell; see the disk and the system's log"
        )

    def _is_expected(self, shard: Shard, job: Job) -> bool:
        """Whether what is there is what is expected, and there is something to do."""
        if job.expected is Expect.ANY:
            return True
        found = load(self._files, shard, name_of(job.key), job.key, whole=False)
        if found is None and job.verb == "delete":
            job.answer()
            return False
        if (None if found is None else found.revision) != (None if job.expected is Expect.ABSENT else job.expected):
            job.refuse(conflict(job))
            return False
        return True

    def _delete(self, shard: Shard, job: Job) -> bool:
        """Whether there was something to unlink. What was must be sealed, also where the loop gave the job up."""
        try:
            with self._decisive(shard, job):
                self._files.unlink(name_of(job.key), shard.descriptor)
        except FileNotFoundError:
            job.answer()
            return False
        return True

    def _draft(self, shard: Shard, job: Job) -> Draft:
        if len(job.data) > MAX_DATA:
            raise StateTooLargeError(
                f"the record of key {job.key!r} has {len(job.data):,} bytes; a FileStore takes {MAX_DATA:,}"
            )
        name = name_of(job.key)
        temporary = temporary_name(name)
        draft = Draft(job, name, temporary, self._files.create(temporary, shard.descriptor))
        try:
            head = pack(job.key, job.revision, len(job.data))
            for part in (head + job.data,) if len(job.data) < _ONE_WRITE else (head, job.data):
                self._files.write_all(draft.descriptor, part)
        except OSError:
            self._files.close(draft.descriptor)
            shard.discard(temporary)
            raise
        return draft

    def _land(self, shard: Shard, draft: Draft) -> None:
        """Flush a draft and put it in its place."""
        try:
            try:
                self._files.fsync(draft.descriptor)
            finally:
                self._files.close(draft.descriptor)
            with self._decisive(shard, draft.job):
                self._files.rename(draft.temporary, draft.name, shard.descriptor)
        except (OSError, OutcomeUnknownError):
            shard.discard(draft.temporary)
            raise

    @contextlib.contextmanager
    def _decisive(self, shard: Shard, job: Job) -> Generator[None]:
        """Round the step that changes what others see."""
        try:
            yield
        except OSError as error:
            if definite(error):
                raise
            shard.unsure = True
            raise self._unknown(error, job) from None
