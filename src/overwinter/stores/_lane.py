"""A lane: a daemon thread that takes all that waits, does it at once, and answers with one call into the loop.

This file knows one thread and its queue. It does not know SQL: a worker does the jobs and writes their answers.
Concurrent puts become one commit here, without a fixed wait: a batch gathers while the last is on its way to the disk.
"""

from __future__ import annotations

import queue
import threading

from ._jobs import Desk, Job, Worker, take, withdraw

__all__ = ["Lane"]


class Lane(Desk):
    """Hands jobs to a worker's thread. Its methods are called from one event loop."""

    def __init__(self, name: str, worker: Worker, *, patience: float) -> None:
        super().__init__(worker, patience=patience)
        self._guard = threading.RLock()  # garbage may be collected inside, and a store with it: see abandon()
        self._waiting: list[Job] = []
        self._idle = True
        self._bell: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """Rung to wake the thread if it is idle, and to end it."""
        self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))

    def _begin(self) -> None:
        self._threads[0].start()

    def _hand_over(self, jobs: list[Job]) -> None:
        with self._guard:
            self._waiting.extend(jobs)
            if self._idle:
                self._idle = False
                self._bell.put(True)

    def _withdraw(self, jobs: set[Job]) -> set[Job]:
        with self._guard:
            return set(withdraw(self._waiting, jobs))

    def _dismiss(self) -> None:
        self._bell.put(False)

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        if self._start_worker():
            while self._bell.get():
                self._serve()
            self._serve()  # what came since the bell was rung last
            self._stop_worker()

    def _serve(self) -> None:
        """Do all that waits, and what comes meanwhile."""
        while True:
            with self._guard:
                batch = take(self._waiting)
                self._idle = not batch
            if not batch:
                return
            self._work(batch)
            del batch  # or the idle thread would keep the last records in memory
            self._rest()
