"""A lane: a daemon thread that takes all that waits, does it at once, and answers with one call into the loop.

This file knows threads, futures and batches. It does not know SQL: a worker does the jobs and writes their answers.
Concurrent puts become one commit here, without a fixed wait: a batch gathers while the last is on its way to the disk.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..errors import OutcomeUnknownError, OverwinterError, StoreUnavailableError
from .base import Expect, Revision

__all__ = ["Job", "Lane", "Worker"]

_log = logging.getLogger("overwinter")

MAX_ROWS = 256
MAX_BYTES = 8 * 1024 * 1024
_LOOK_AHEAD = 4 * MAX_ROWS  # how many jobs of keys that are taken already are looked over for one that is not


@dataclass(slots=True, eq=False)
class Job:
    """One call and, later, its answer."""

    verb: Literal["get", "head", "put", "delete"]
    key: str
    future: asyncio.Future[Any]
    data: bytes = b""
    revision: Revision = b""
    expected: Revision | Expect = Expect.ANY
    sent: float = field(default_factory=time.monotonic)
    value: Any = None
    error: Exception | None = None
    answered: bool = False

    def answer(self, value: Any = None) -> None:
        self.value, self.answered = value, True

    def refuse(self, error: Exception) -> None:
        self.error, self.answered = error, True


class Worker(Protocol):
    """What a lane's thread drives. All of it runs in that thread."""

    def start(self) -> None:
        """Get ready; an exception is what ``Lane.open`` raises."""
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


class Lane:
    """Hands jobs to a worker's thread. Its methods are called from one event loop."""

    def __init__(self, name: str, worker: Worker, *, patience: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._queue: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._gathered: list[Job] = []
        self._pending: dict[Job, None] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(worker,), name=name, daemon=True)

    async def open(self) -> None:
        """Start the thread and its worker; on a failure or a cancellation nothing is left behind."""
        self._thread.start()
        try:
            await asyncio.shield(self._ready)
        except BaseException:
            self.abandon()
            if self._ready.done() and not self._ready.cancelled():
                await self.join(self._patience)  # the start failed: the thread is on its way out
            raise

    def send(self, job: Job) -> None:
        """Queue a job. Those of one pass of the loop travel together, so that they share a commit."""
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(job)
        self._pending[job] = None
        if self._watch is None:
            self._watch = self._loop.call_later(self._patience, self._look_at_the_clock)

    def abandon(self) -> None:
        """Tell the thread to do what is queued and end. Needs no loop and doesn't wait; idempotent."""
        self._flush()
        self._queue.put(None)

    async def join(self, limit: float) -> None:
        """Wait for the thread to end; past *limit* seconds answer for it and leave it to its daemonhood."""
        await asyncio.wait([self._ended], timeout=limit)
        if self._ended.done():
            self._thread.join()  # its last act was to say so
        self._give_up(list(self._pending), "did not end in time")
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # ------------------------------------------------------------ in the loop

    def _flush(self) -> None:
        if self._gathered:
            self._queue.put(self._gathered)
            self._gathered = []

    def _settle(self, batch: list[Job]) -> None:
        for job in batch:
            self._pending.pop(job, None)
            if job.future.done():  # its caller was cancelled, or was told that the disk does not answer
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.value)

    def _look_at_the_clock(self) -> None:
        self._watch = None
        now = time.monotonic()
        late: list[Job] = []
        for job in self._pending:  # oldest first
            if job.sent + self._patience > now:
                self._watch = self._loop.call_later(job.sent + self._patience - now, self._look_at_the_clock)
                break
            late.append(job)
        self._give_up(late, f"did not answer within {self._patience:g} s")

    def _give_up(self, jobs: Iterable[Job], what: str) -> None:
        for job in jobs:
            if not job.answered:
                kind = StoreUnavailableError if job.verb in ("get", "head") else OutcomeUnknownError
                job.refuse(kind(f"the disk under the store {what}; key {job.key!r}: see whether it hangs"))
        self._settle(list(jobs))

    def _resolve(self, future: asyncio.Future[None], error: Exception | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # seen: a cancelled open() has nobody left to look at it

    # ------------------------------------------------------------ in the thread

    def _run(self, worker: Worker) -> None:
        try:
            worker.start()
        except Exception as error:  # noqa: BLE001  # whatever it is, open() raises it
            worker.stop()
            self._tell(self._resolve, self._ready, error)
        else:
            self._tell(self._resolve, self._ready, None)
            self._serve(worker)
            worker.stop()
        self._tell(self._resolve, self._ended, None)

    def _serve(self, worker: Worker) -> None:
        waiting: list[Job] = []
        stopping = False
        while waiting or not stopping:
            stopping = self._gather(waiting) or stopping
            batch = _take(waiting)
            if not batch:
                continue
            try:
                worker.work(batch)
            except Exception as error:  # noqa: BLE001  # our bug: its callers get it, the thread lives on for others
                _blame(batch, error)
            self._tell(self._settle, batch)
            del batch  # or the idle thread would keep the last records in memory
            try:
                worker.rest()
            except Exception:  # noqa: BLE001  # our bug; a dead thread would leave every later caller waiting
                _log.exception("overwinter: a store's thread failed between two batches")

    def _gather(self, waiting: list[Job]) -> bool:
        """Add what is queued to *waiting*, wait only if that is empty; whether the lane is to end."""
        ending = False
        try:
            while True:
                jobs = self._queue.get(block=not waiting and not ending)
                if jobs is None:
                    ending = True
                else:
                    waiting.extend(jobs)
        except queue.Empty:
            return ending

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return  # the loop is closed: nobody is left who could wait for an answer


def _take(waiting: list[Job]) -> list[Job]:
    """Remove a batch from *waiting*: in order, each key once, not too much."""
    batch: list[Job] = []
    later: list[Job] = []
    keys: set[str] = set()
    size = seen = 0
    for job in waiting:
        if len(batch) == MAX_ROWS or seen == _LOOK_AHEAD or (batch and size + len(job.data) > MAX_BYTES):
            break
        seen += 1
        if job.key in keys:
            later.append(job)
            continue
        keys.add(job.key)
        batch.append(job)
        size += len(job.data)
    waiting[:seen] = later
    return batch


def _blame(batch: list[Job], error: Exception) -> None:
    for job in batch:
        if not job.answered:
            if isinstance(error, OverwinterError):
                job.refuse(type(error)(*error.args))
                continue
            what = f"the store failed in a way it does not know ({type(error).__name__})"
            unknown = OutcomeUnknownError(f"{what}; key {job.key!r}: please report this")
            unknown.__cause__ = error
            job.refuse(unknown)
