"""Whose turn it is: first come first served, one writer alone or any number of readers together.

Knows futures and order; not what a turn does.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["Turnstile"]


class Turnstile:
    """A fair lock for one agent. A free one costs no future and no task switch."""

    __slots__ = ("_queue", "held", "reading", "writing")

    def __init__(self) -> None:
        self.writing = False
        self.reading = 0
        self.held = False
        """While held, no turn starts; those that run go on."""
        # By their futures, so that many may leave at once; it is one only while somebody waits.
        self._queue: OrderedDict[asyncio.Future[None], bool] | tuple[()] = ()

    @property
    def free(self) -> bool:
        """Nobody is in, and nobody waits."""
        return not (self.writing or self.reading or self._queue)

    @property
    def waiting(self) -> int:
        """How many wait, or nearly: some may be leaving."""
        return len(self._queue)

    @property
    def queued(self) -> int:
        return sum(not waiter.done() for waiter in self._queue)

    def try_enter(self, shared: bool) -> bool:
        """Take the turn if it is free now; *shared* turns run beside each other."""
        if self.writing or self.held or self._queue or (self.reading and not shared):
            return False
        if shared:
            self.reading += 1
        else:
            self.writing = True
        return True

    async def enter(self, shared: bool) -> None:
        """Wait for the turn. Cancel-safe: a turn that was granted to a caller who left goes to the next."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not isinstance(self._queue, OrderedDict):
            self._queue = OrderedDict()
        self._queue[waiter] = shared
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave(shared)
            else:
                if self._queue:
                    self._queue.pop(waiter, None)  # or it would count for the mailbox; it may be sent away by now
                self._grant()  # this one may have been all that the others waited behind
            raise

    def leave(self, shared: bool) -> None:
        """Give the turn back."""
        if shared:
            self.reading -= 1
        else:
            self.writing = False
        if self._queue:
            self._grant()

    def hold(self) -> None:
        self.held = True

    def unhold(self) -> None:
        self.held = False
        self._grant()

    def evict(self, error: Callable[[], BaseException]) -> None:
        """Send everybody who waits away with an error of their own."""
        queue, self._queue = self._queue, ()
        for waiter in queue:
            if not waiter.done():
                waiter.set_exception(error())

    def _grant(self) -> None:
        queue = self._queue
        while queue and not self.held and not self.writing:
            waiter, shared = next(iter(queue.items()))
            if not waiter.done():
                if self.reading and not shared:
                    return
                if shared:
                    self.reading += 1
                else:
                    self.writing = True
                waiter.set_result(None)
            queue.popitem(last=False)
        if not queue:
            self._queue = ()
