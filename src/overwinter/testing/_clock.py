"""A clock that moves when a test says so.

This file knows ``overwinter._clock.Clock``. It never asks the machine for the time, except in ``until``, as a limit.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["ManualClock", "until"]


@dataclass(order=True, slots=True)
class _Timer:
    when: float
    number: int
    callback: Callable[[], object] | None = field(compare=False)

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """Time for ``InstanceManager(clock=…)`` that stands still until ``advance``.

    *now* is where ``monotonic()`` starts, *epoch* what ``time()`` is then.
    """

    def __init__(self, *, now: float = 1000.0, epoch: float = 1_700_000_000.0) -> None:
        self._now = now
        self._offset = epoch - now
        self._timers: list[_Timer] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now + self._offset

    def call_at(self, when: float, callback: Callable[[], object]) -> _Timer:
        """Call back during the ``advance`` that reaches *when*; at the earliest during the next one."""
        timer = _Timer(when, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    async def sleep(self, seconds: float) -> None:
        """Wait for an ``advance`` that goes so far. Cancel-safe."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_at(self._now + seconds, lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()

    def advance(self, seconds: float) -> None:
        """Move on, firing what comes due in the order of its time; each callback sees its own time.

        Callbacks run here and now, one that raises ends the advance at its time. Sleepers wake in the loop's next
        pass: ``await until(…)`` for what they do then.
        """
        if seconds < 0:
            raise ValueError(f"time doesn't go back: advance by {seconds!r} s")
        end = self._now + seconds
        while self._timers and self._timers[0].when <= end:
            timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._now = max(self._now, timer.when)
                callback()
        self._now = end

    @property
    def timers(self) -> int:
        """How many timers and sleepers wait."""
        return sum(timer.callback is not None for timer in self._timers)


async def until(predicate: Callable[[], object], limit: float = 5.0) -> None:
    """Let the loop run until *predicate* is true; ``AssertionError`` if it is not within *limit* real seconds."""
    end = time.monotonic() + limit
    passes = 0
    while not (answer := predicate()):
        if time.monotonic() >= end:
            raise AssertionError(f"not true within {limit:g} s: {getattr(predicate, '__qualname__', predicate)!s}")
        # What happens in the loop alone is over within some passes; a thread or a disk needs real time.
        await asyncio.sleep(0 if passes < 100 else 0.001)
        passes += 1
    if inspect.isawaitable(answer):
        raise TypeError("until() takes a plain function: what an async one returns is true before it has run")
