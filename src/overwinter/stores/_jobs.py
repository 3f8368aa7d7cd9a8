"""Jobs for a store's threads, and the loop's side of them: who waits for an answer, and for how long.

This file knows futures and deadlines. It does not know how the threads share the work: see ``_lane.py`` for one
thread that takes all that waits, ``_crew.py`` for several that keep out of each other's way.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Literal, Protocol, cast

from ..errors import OutcomeUnknownError, OverwinterError, RevisionConflictError, StoreUnavailableError
from .base import Expect, Revision

__all__ = ["MAX_BYTES", "MAX_ROWS", "NOBODY", "Desk", "Job", "Worker", "blame", "conflict", "take", "withdraw"]

_log = logging.getLogger("overwinter")

MAX_ROWS = 256
MAX_BYTES = 8 * 1024 * 1024
_SLICE, _SLICE_BYTES = 32, 64 * 1024  # whose callers take some 1 ms when they are told; large states take longer
_LOOK_AHEAD = 4 * MAX_ROWS  # how many jobs of keys that are taken already are looked over for one that is not


NOBODY = cast("asyncio.Future[Any]", None)
"""No future: that of a job whose maker never asks for one."""


class Job:
    """One call and, later, its answer. Written by hand: there is one per put, and a dataclass takes twice as long."""

    __slots__ = (
        "answered", "data", "done", "error", "expected", "future", "key", "revision", "scope", "sent", "value", "verb",
    )  # fmt: skip

    def __init__(
        self,
        verb: Literal["get", "head", "put", "delete", "keys", "count"],
        key: str,
        future: asyncio.Future[Any],
        data: bytes = b"",
        revision: Revision = b"",
        expected: Revision | Expect = Expect.ANY,
        done: Callable[..., object] | None = None,
        scope: Any = None,
    ) -> None:
        self.verb, self.key = verb, key
        """*key*: whose record it is about; of a listing, what its keys begin with, or another name for its part of the
        store."""
        self.future, self.done = future, done
        """Who is told of the answer: a future, or, if that is ``NOBODY``, a ``Done`` of a put or a ``Got`` of a get."""
        self.data, self.revision, self.expected = data, revision, expected
        self.scope = scope
        """Of a listing: where it goes on. A worker's own business."""
        self.sent = monotonic()
        self.answered = False
        self.value: Any = None
        self.error: Exception | None = None

    @property
    def reads(self) -> bool:
        return self.verb not in ("put", "delete")

    @property
    def lists(self) -> bool:
        return self.verb in ("keys", "count")

    @property
    def subject(self) -> str:
        """What it is about, for an error."""
        return f"listing {self.key!r}" if self.lists else f"key {self.key!r}"

    @property
    def size(self) -> int:
        """Bytes of a record that came or went: a measure of what its caller does next."""
        return len(self.data) if self.value is None else len(getattr(self.value, "data", b""))

    def answer(self, value: Any = None) -> None:
        self.value, self.answered = value, True

    def refuse(self, error: Exception) -> None:
        self.error, self.answered = error, True

    def tell(self) -> None:
        """Tell the answer, in the loop."""
        done = self.done
        if done is not None:
            done(self.error) if self.verb == "put" else done(self.value, self.error)
        elif self.future.done():  # its caller was cancelled
            return
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)


def conflict(job: Job) -> RevisionConflictError:
    found = "something is stored" if job.expected is Expect.ABSENT else "another revision, or nothing, is stored"
    return RevisionConflictError(f"not stored: {found} under key {job.key!r}; read it again before you write")


class Worker(Protocol):
    """What a desk's threads drive. All of it runs in them."""

    def start(self) -> None:
        """Get ready; an exception is what ``Desk.open`` raises."""
        ...

    def work(self, batch: list[Job]) -> None:
        """Answer or refuse every job."""
        ...

    def rest(self) -> None:
        """Do what can wait until the answers are out."""
        ...

    def stop(self) -> None:
        """Let go of everything. Called once, after a start that failed too."""
        ...


class Desk(ABC):
    """Takes jobs in one event loop, hands them to daemon threads and tells their outcomes."""

    def __init__(self, worker: Worker, *, patience: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker = worker
        self._patience = patience
        self._gathered: list[Job] = []
        self._untold: deque[Job] = deque()
        self._telling = False
        """From the first of a batch's callers who is told until the last one has gone on."""
        self._pending: dict[Job, None] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._threads: list[threading.Thread] = []

    @abstractmethod
    def _begin(self) -> None:
        """Start a thread that calls ``_start_worker`` first."""

    @abstractmethod
    def _hand_over(self, jobs: list[Job]) -> None:
        """Give the threads what was gathered in one pass of the loop."""

    @abstractmethod
    def _withdraw(self, jobs: set[Job]) -> set[Job]:
        """Take back those of *jobs* that no thread has begun, and return them: a thread that hangs would keep them."""

    @abstractmethod
    def _dismiss(self) -> None:
        """Tell the threads to do what they have and end; the last one calls ``_stop_worker``. Idempotent."""

    async def open(self) -> None:
        """Start the worker; on a failure or a cancellation nothing is left behind."""
        self._begin()
        try:
            await asyncio.shield(self._ready)
        except BaseException:
            self.abandon()
            if self._ready.done() and not self._ready.cancelled():
                await self.join(self._patience)  # the start failed: the thread is on its way out
            raise

    def send(self, job: Job) -> None:
        """Queue a job. Those of one pass of the loop, or of a batch's callers, travel together to share a commit."""
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(job)
        self._pending[job] = None
        if self._watch is None:
            self._watch = self._loop.call_later(self._patience, self._look_at_the_clock)

    def abandon(self) -> None:
        """Have what is queued done, and the threads end. Needs no loop and doesn't wait; idempotent.

        A store that nobody closed does so as it is collected, in whatever thread.
        """
        self._flush(at_once=True)
        self._dismiss()

    async def join(self, limit: float) -> None:
        """Wait for the threads to end; past *limit* seconds answer for them and leave them to their daemonhood."""
        await asyncio.wait([self._ended], timeout=limit)
        if self._ended.done():
            for thread in self._threads:
                thread.join()  # to say so was the last act of the last of them
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._give_up(list(self._pending), "did not end in time")

    # ------------------------------------------------------------ in the loop

    def _flush(self, at_once: bool = False) -> None:
        """Hand over what was gathered; unless more is about to come, from the callers who are being told."""
        if self._gathered and (at_once or not self._telling or len(self._gathered) >= MAX_ROWS):
            gathered, self._gathered = self._gathered, []
            self._hand_over(gathered)

    def _settle(self, batch: list[Job]) -> None:
        """Tell a batch's answers, some in each pass of the loop: all at once, their callers would keep it for long."""
        self._untold.extend(batch)
        if not self._telling:
            self._telling = True
            self._tell_some()

    def _tell_some(self) -> None:
        untold, room = self._untold, _SLICE_BYTES
        try:
            for _ in range(min(_SLICE, len(untold))):
                job = untold.popleft()
                if self._pending.pop(job, job) is None:  # else it was told that the disk does not answer
                    job.tell()
                room -= job.size
                if room < 0:
                    break
        finally:  # what one of them raised is the loop's business, and no reason to forget the others
            self._loop.call_soon(self._tell_others)  # after those who were told just now have gone on

    def _tell_others(self) -> None:
        self._telling = bool(self._untold)
        self._flush()
        if self._untold:
            self._tell_some()

    def _look_at_the_clock(self) -> None:
        self._watch = None
        now = monotonic()
        late: list[Job] = []
        for job in self._pending:  # oldest first
            if job.sent + self._patience > now:
                self._watch = self._loop.call_later(job.sent + self._patience - now, self._look_at_the_clock)
                break
            late.append(job)
        self._give_up(late, f"did not answer within {self._patience:g} s")

    def _give_up(self, jobs: list[Job], what: str) -> None:
        late = set(jobs)
        never_begun = {*withdraw(self._gathered, late), *self._withdraw(late)}
        for job in jobs:
            if not job.answered:
                kind = StoreUnavailableError if job.reads or job in never_begun else OutcomeUnknownError
                job.refuse(kind(f"the disk under the store {what}; {job.subject}: see whether it hangs"))
        self._tell_all(iter(jobs))

    def _tell_all(self, jobs: Iterator[Job]) -> None:
        try:
            for job in jobs:
                if self._pending.pop(job, job) is None:
                    job.tell()
        finally:  # as in _tell_some
            rest = list(jobs)
            if rest:
                self._loop.call_soon(self._tell_all, iter(rest))

    def _resolve(self, future: asyncio.Future[None], error: Exception | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # seen: a cancelled open() has nobody left to look at it

    # ------------------------------------------------------------ in the threads

    def _start_worker(self) -> bool:
        try:
            self._worker.start()
        except Exception as error:  # noqa: BLE001  # whatever it is, open() raises it
            try:
                self._worker.stop()
            finally:
                self._tell(self._resolve, self._ready, error)
                self._tell(self._resolve, self._ended, None)
            return False
        self._tell(self._resolve, self._ready, None)
        return True

    def _stop_worker(self) -> None:
        try:
            self._worker.stop()
        finally:  # whoever closes the store must not wait for a thread that failed in its last act
            self._tell(self._resolve, self._ended, None)

    def _work(self, batch: list[Job]) -> None:
        try:
            self._worker.work(batch)
        except Exception as error:  # noqa: BLE001  # our bug: its callers get it, the thread lives on for others
            blame(batch, error)
        answered = [job for job in batch if job.answered]
        if answered:
            self._tell(self._settle, answered)

    def _rest(self) -> None:
        try:
            self._worker.rest()
        except Exception:  # noqa: BLE001  # our bug; a dead thread would leave every later caller waiting
            _log.exception("overwinter: a store's thread failed between two batches")

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return  # the loop is closed: nobody is left who could wait for an answer


def take(waiting: list[Job], most: int = MAX_ROWS, wanted: Callable[[Job], bool] | None = None) -> list[Job]:
    """Remove a batch from *waiting*: in order, each key once, not too much. Those that aren't *wanted* are dropped."""
    count = len(waiting)
    if count <= most and len({job.key for job in waiting}) == count and _bytes_of(waiting) <= MAX_BYTES:
        everything = list(filter(wanted, waiting))  # nearly always
        waiting.clear()
        return everything
    batch: list[Job] = []
    later: list[Job] = []
    keys: set[str] = set()
    size = seen = 0
    for job in waiting:
        if len(batch) >= most or seen == _LOOK_AHEAD or (batch and size + len(job.data) > MAX_BYTES):
            break
        seen += 1
        if job.key in keys:
            later.append(job)
        elif wanted is None or wanted(job):
            keys.add(job.key)
            batch.append(job)
            size += len(job.data)
    waiting[:seen] = later
    return batch


def withdraw(waiting: list[Job], jobs: set[Job]) -> list[Job]:
    """Remove from *waiting* those of *jobs* that are there, and return them."""
    found = [job for job in waiting if job in jobs]
    if found:
        waiting[:] = [job for job in waiting if job not in jobs]
    return found


def _bytes_of(jobs: list[Job]) -> int:
    return sum([len(job.data) for job in jobs])


def blame(batch: list[Job], error: Exception) -> None:
    """Refuse what a worker left unanswered when it failed with *error*, which is most likely a bug of ours."""
    for job in batch:
        if not job.answered:
            if isinstance(error, OverwinterError):
                job.refuse(type(error)(*error.args))
                continue
            what = f"the store failed in a way it does not know ({type(error).__name__})"
            kind = StoreUnavailableError if job.reads else OutcomeUnknownError
            refusal = kind(f"{what}; {job.subject}: please report this")
            refusal.__cause__ = error
            job.refuse(refusal)
