"""A lane: a daemon thread that takes all that waits, does it at once, and answers with one call into the loop.

This file knows one thread and its queue. It does not know SQL: a worker does the jobs and writes their answers.
Concurrent puts become one commit here, without a fixed wait: a batch gathers while the last is on its way to the disk.
"""

from __future__ import annotations

import queue
import threading

from ._jobs import Desk, Job, Worker, take

__all__ = ["Lane"]


class Lane(Desk):
    """Hands jobs to a worker's thread. Its methods are called from one event loop."""

    def __init__(self, name: str, worker: Worker, *, patience: float) -> None:
        super().__init__(worker, patience=patience)
        self._queue: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))

    def _begin(self) -> None:
        self._threads[0].start()

    def _hand_over(self, jobs: list[Job]) -> None:
        self._queue.put(jobs)

    def _dismiss(self) -> None:
        self._queue.put(None)

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        if self._start_worker():
            self._serve()
            self._stop_worker()

    def _serve(self) -> None:
        waiting: list[Job] = []
        stopping = False
        while waiting or not stopping:
            stopping = self._gather(waiting) or stopping
            batch = take(waiting)
            if not batch:
                continue
            self._work(batch)
            del batch  # or the idle thread would keep the last records in memory
            self._rest()

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
