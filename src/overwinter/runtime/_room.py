"""How many agents may be live, and how many bytes may be on their way to the store.

Knows counts, futures and who asked first; not what an agent is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .._clock import Clock
from ..errors import TooManyLiveError

__all__ = ["MAX_BYTES_IN_FLIGHT", "PutBudget", "Room"]

MAX_BYTES_IN_FLIGHT = 64 * 1024 * 1024
"""Bytes of records that may be on their way to the store at once."""

MOST_WAITING = 1_000
"""New agents that may wait, where there are fewer places than that; one more gets ``TooManyLiveError`` at once."""

PATIENCE = 5.0
"""Seconds that a new agent waits for another to hibernate, before ``TooManyLiveError``."""


class Room:
    """Places for live agents. Who finds none has the least recently used idle agent hibernate, and waits."""

    def __init__(self, clock: Clock, places: int, evict: Callable[[], bool]) -> None:
        self._clock, self._places, self._evict = clock, places, evict
        self._taken = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._leaving = 0

    async def enter(self, who: str) -> None:
        """Take a place.

        Raises:
            TooManyLiveError: none became free in time, or too many wait already.
        """
        if self.try_enter():
            return
        if len(self._waiters) >= max(self._places, MOST_WAITING):
            raise self._full(who)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        timer = self._clock.call_at(
            self._clock.monotonic() + PATIENCE, lambda: None if waiter.done() else waiter.set_exception(self._full(who))
        )
        try:
            self.make()
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
        finally:
            timer.cancel()

    def try_enter(self) -> bool:
        """Take a place if there is one and nobody waits."""
        if self._taken >= self._places or self._waiters:
            return False
        self._taken += 1
        return True

    def leave(self) -> None:
        """Give a place back."""
        self._taken -= 1
        while self._waiters and self._taken < self._places:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._taken += 1
                waiter.set_result(None)

    def make(self) -> None:
        """Have as many idle agents leave as there are waiting, if there are so many."""
        while self._leaving < len(self._waiters) and self._evict():
            self._leaving += 1

    def left(self, _: object = None) -> None:
        """One that was asked to leave did, or stayed after all."""
        self._leaving -= 1
        self.make()

    @property
    def wanted(self) -> bool:
        return bool(self._waiters)

    def _full(self, who: str) -> TooManyLiveError:
        return TooManyLiveError(
            f"{who}: {self._places:,} agents are live, and none of them can hibernate because somebody is attached "
            "or calls run: raise max_live, or hold fewer of them attached"
        )


class PutBudget:
    """Bytes on their way to the store. Over the bound, a put waits for another one's outcome."""

    def __init__(self, most: int = MAX_BYTES_IN_FLIGHT) -> None:
        self.left = most
        """Bytes that may still be taken. Each put takes its own and gives them back; the last one may take too many."""
        self.waiting: deque[Callable[[], object]] = deque()

    def wait(self, again: Callable[[], object]) -> None:
        """Have *again* called when it may be tried."""
        self.waiting.append(again)

    def let_go(self) -> None:
        """Call those who wait, as long as there is something left."""
        while self.waiting and self.left > 0:
            self.waiting.popleft()()
