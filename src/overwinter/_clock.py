"""Time as it is handed in: the manager never asks the machine what time it is.

``LoopClock`` is the running event loop's; ``overwinter.testing.ManualClock`` moves when a test says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "LoopClock", "Timer"]


class Timer(Protocol):
    """A pending callback."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the manager asks of time. Seconds, as floats."""

    def monotonic(self) -> float:
        """Seconds that only grow; for timeouts."""
        ...

    def time(self) -> float:
        """Seconds since 1970; for records and people."""
        ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call back when ``monotonic()`` has reached *when*."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; cancel-safe."""
        ...


class LoopClock:
    """The clock of the running event loop."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
