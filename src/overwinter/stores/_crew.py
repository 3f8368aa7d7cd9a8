"""A crew: several daemon threads that share the work, so that the disk has more than one thing to do at a time.

This file knows threads and groups. Jobs of one group are done one batch after another, those of different groups
beside each other. It does not know files: a worker does the jobs, and which group a key belongs to is its business.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from ._jobs import Desk, Job, Worker, take, withdraw

__all__ = ["Crew"]


class Crew(Desk):
    """Hands jobs to threads that are started when they are needed. Its methods are called from one event loop.

    Jobs that the worker leaves unanswered are given to it again, after the other groups: so it can leave a group whose
    turn has not come, and no thread is kept from the others. Within their group they come first, so that the order of
    a key's jobs is kept; or last, if nothing has to be in *order*.
    """

    def __init__(
        self,
        name: str,
        worker: Worker,
        group: Callable[[str], str],
        *,
        threads: int,
        patience: float,
        order: bool = True,
    ) -> None:
        super().__init__(worker, patience=patience)
        self._name = name
        self._group = group
        self._most = threads
        self._order = order
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # Guards what follows. A group is in `waiting` from its first job until nothing of it is left; meanwhile it is
        # either queued, once, or with one thread.
        self._guard = threading.RLock()  # garbage may be collected inside, and a store with it: see abandon()
        self._waiting: dict[str, list[Job]] = {}
        self._idle = self._alive = 0
        self._stopping = False

    def _begin(self) -> None:
        self._enlist(first=True)

    def _hand_over(self, jobs: list[Job]) -> None:
        with self._guard:
            for job in jobs:
                group = self._group(job.key)
                waiting = self._waiting.get(group)
                if waiting is not None:
                    waiting.append(job)
                    continue
                self._waiting[group] = [job]
                self._queue.put(group)
                if self._alive < self._most and self._queue.qsize() > self._idle:
                    self._enlist()

    def _withdraw(self, jobs: set[Job]) -> set[Job]:
        with self._guard:
            return {job for waiting in list(self._waiting.values()) for job in withdraw(waiting, jobs)}

    def _dismiss(self) -> None:
        with self._guard:
            if not self._stopping:
                self._stopping = True
                for _ in range(self._alive):
                    self._queue.put(None)

    def _enlist(self, *, first: bool = False) -> None:
        thread = threading.Thread(target=self._run, args=(first,), name=self._name, daemon=True)
        self._alive += 1
        try:
            thread.start()
        except RuntimeError:  # the system allows no more threads
            self._alive -= 1
            if first:
                raise
            self._most = self._alive
        else:
            self._threads.append(thread)

    # ------------------------------------------------------------ in the threads

    def _run(self, first: bool) -> None:
        if first and not self._start_worker():
            return
        while (group := self._next()) is not None:
            while self._serve(group):
                continue
        with self._guard:
            self._alive -= 1
            last = not self._alive
        if last:
            self._stop_worker()

    def _next(self) -> str | None:
        with self._guard:
            self._idle += 1
        group = self._queue.get()
        with self._guard:
            self._idle -= 1
        return group

    def _serve(self, group: str) -> bool:
        """Do a batch of the group; whether this thread has to go on with it."""
        with self._guard:
            batch = take(self._waiting[group])
        if batch:  # else all of it was withdrawn
            self._work(batch)
        with self._guard:
            left = self._waiting[group]
            place = 0 if self._order else len(left)
            left[place:place] = [job for job in batch if not job.answered]
            if not left:
                del self._waiting[group]
                return False
            if not self._stopping:
                self._queue.put(group)
        return self._stopping  # then nobody may be left to take it from the queue
