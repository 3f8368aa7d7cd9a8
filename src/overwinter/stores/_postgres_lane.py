"""Calls become batches, and batches travel on a few connections: who waits for an answer, and for how long.

This file knows jobs, deadlines and tasks. No caller ever touches a connection, so cancelling one can't leave an
answer behind for somebody else. It does not know SQL, nor what a connection is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ..errors import OutcomeUnknownError, StoreUnavailableError
from ._jobs import MAX_ROWS, Job, blame, take

__all__ = ["Carrier", "Lane", "end_all"]

_END = 0.5


class Carrier(Protocol):
    """A connection: made again when it is needed and gone."""

    @property
    def sent(self) -> bool:
        """Whether the present batch may have reached the server."""
        ...

    def begin(self) -> None:
        """A new batch: nothing of it was sent yet."""
        ...

    def discard(self) -> None:
        """Let go of it; the next batch makes a new one."""
        ...

    def hang_up(self) -> bool:
        """If it carries a write just now, break the connection: the batch ends with an error. Whether it did."""
        ...


C = TypeVar("C", bound=Carrier)


@dataclass(eq=False)
class _Berth(Generic[C]):
    """One batch at a time on one connection."""

    carrier: C
    batch: list[Job] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    given_up: bool = False


class Lane(Generic[C]):
    """Up to *width* batches are under way while the next one gathers."""

    def __init__(
        self,
        make: Callable[[], C],
        work: Callable[[C, list[Job]], Awaitable[None]],
        *,
        width: int,
        patience: float,
        where: str,
        rows: Callable[[], int] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._make = make
        self._work = work
        self._patience = patience
        self._where = where
        self._idle = [_Berth(make()) for _ in range(width)][::-1]
        self._busy: set[_Berth[C]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._waiting: list[Job] = []
        self._pending: dict[Job, None] = {}
        self._called = False
        self._watch: asyncio.TimerHandle | None = None
        self._rows = rows or (lambda: MAX_ROWS)

    def send(self, job: Job) -> None:
        """Queue a job. Those of one pass of the loop travel together."""
        self._waiting.append(job)
        self._pending[job] = None
        if self._idle and not self._called:
            self._called = True
            self._loop.call_soon(self._depart)
        if self._watch is None:
            self._watch = self._loop.call_later(self._patience, self._look_at_the_clock)

    @property
    def carriers(self) -> list[C]:
        """For tests: the connections there are."""
        return [berth.carrier for berth in (*self._idle, *self._busy)]

    async def close(self, limit: float) -> None:
        """Do what was begun, for *limit* seconds at most; then let go of everything."""
        deadline = self._loop.time() + limit
        try:
            while self._pending and (left := deadline - self._loop.time()) > 0:
                flying = [berth.task for berth in self._busy if berth.task is not None]
                if flying:
                    await asyncio.wait(flying, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(0)  # what was sent in this pass of the loop departs in the next
        finally:
            self.abandon()
        await end_all(self._leaving)

    def abandon(self) -> None:
        """Let go of everything at once. Harmless when that is done already."""
        self._waiting.clear()
        self._give_up(list(self._pending), "did not answer before the store was closed")
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for berth in list(self._busy):
            self._leave(berth)
        for berth in self._idle:
            berth.carrier.discard()
        self._idle = []

    # ------------------------------------------------------------ a batch

    def _depart(self) -> None:
        self._called = False
        while self._waiting and self._idle:
            batch = take(self._waiting, self._rows(), self._is_wanted)
            if not batch:
                continue  # the callers of all that were looked at had gone; there may be more behind them
            berth = self._idle.pop()  # the one used last: the others may grow old and be closed by somebody
            berth.batch = batch
            berth.task = self._loop.create_task(self._travel(berth))
            self._busy.add(berth)

    def _is_wanted(self, job: Job) -> bool:
        """Whether it is to be done; a write is, also if its caller has gone."""
        wanted = not (job.answered or (job.reads and job.future.done()))
        if not wanted:
            self._pending.pop(job, None)
        return wanted

    async def _travel(self, berth: _Berth[C]) -> None:
        carrier, batch = berth.carrier, berth.batch
        carrier.begin()
        alarm = self._loop.call_later(self._patience, self._expire, berth)
        try:
            await self._work(carrier, batch)
        except asyncio.CancelledError:
            carrier.discard()
            if not berth.given_up:
                raise
        except Exception as error:  # noqa: BLE001  # our bug: its callers get it, the lane lives on for others
            carrier.discard()
            blame(batch, error)
        finally:
            alarm.cancel()
            if berth.given_up:
                carrier.discard()
            else:
                self._arrive(berth)

    def _arrive(self, berth: _Berth[C]) -> None:
        self._give_up([job for job in berth.batch if not job.answered], "was left without an answer")
        self._settle(berth.batch)
        berth.batch, berth.task = [], None
        self._busy.discard(berth)
        self._idle.append(berth)
        self._depart()

    # ------------------------------------------------------------ answers and deadlines

    def _settle(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._pending.pop(job, None)
            if job.future.done():  # its caller was cancelled, or was told that the server does not answer
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.value)

    def _expire(self, berth: _Berth[C]) -> None:
        """The server hasn't answered in time: free the berth; the task goes, and asks it to stop if it was to read."""
        self._give_up(berth.batch, f"did not answer within {self._patience:g} s")
        self._leave(berth)
        self._idle.append(_Berth(self._make()))
        self._depart()

    def _leave(self, berth: _Berth[C]) -> None:
        berth.given_up = True
        self._busy.discard(berth)
        if berth.task is not None:
            self._leaving.add(berth.task)
            berth.task.add_done_callback(self._leaving.discard)
            berth.task.add_done_callback(lambda _: berth.carrier.discard())  # if it was cancelled before its first step
            if not berth.carrier.hang_up():
                berth.task.cancel()

    def _look_at_the_clock(self) -> None:
        """Answer for jobs whose time is over, wherever they are; their batch may still be under way."""
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
        jobs = [job for job in jobs if job in self._pending]
        maybe = {job for berth in self._busy if berth.carrier.sent for job in berth.batch}
        for job in jobs:
            if job.answered:
                continue
            if job.reads or job not in maybe:
                job.refuse(StoreUnavailableError(f"{self._where} {what}; key {job.key!r}: nothing was stored"))
            else:
                text = f"{self._where} {what}; key {job.key!r}: only another conditional put can tell what is stored"
                job.refuse(OutcomeUnknownError(text))
        self._settle(jobs)


async def end_all(tasks: Iterable[asyncio.Task[None]]) -> None:
    """See tasks to their end that were told to leave their connections.

    A first cancellation asks the server to stop, which takes the driver some seconds if the server hangs; a second one
    makes it close the connection.
    """
    for _ in range(4):
        left = [task for task in tasks if not task.done()]
        if not left:
            return
        await asyncio.wait(left, timeout=_END)
        for task in left:
            task.cancel()
