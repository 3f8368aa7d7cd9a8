"""Who is idle, in O(1) per touch: one timer, and an order of last use that is the order of deadlines too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import inf
from typing import Generic, TypeVar

from .._clock import Clock, Timer

__all__ = ["IdleTracker"]

T = TypeVar("T")


class IdleTracker(Generic[T]):
    """Calls *expire* with each member that nobody touched for *timeout* seconds; a member that expired is gone."""

    def __init__(self, clock: Clock, timeout: float, expire: Callable[[T], object]) -> None:
        self._clock, self._timeout, self._expire = clock, timeout, expire
        self._deadlines: OrderedDict[T, float] = OrderedDict()
        self._timer: Timer | None = None
        self._closed = False

    def touch(self, member: T) -> None:
        """Start the member's wait anew, or begin to watch it."""
        if self._closed:
            return
        self._deadlines[member] = self._clock.monotonic() + self._timeout
        self._deadlines.move_to_end(member)
        if self._timer is None:
            self._arm()

    def forget(self, member: T) -> None:
        """Stop watching. Idempotent."""
        self._deadlines.pop(member, None)

    @property
    def endless(self) -> bool:
        """Whether nobody ever expires: it only keeps the order of use."""
        return self._timeout == inf

    def members(self) -> Iterator[T]:
        """Those that are watched, the least recently used first."""
        return iter(self._deadlines)

    def remaining(self, member: T) -> float | None:
        """Seconds until *member* expires; ``None`` if it isn't watched."""
        deadline = self._deadlines.get(member)
        return None if deadline is None else max(0.0, deadline - self._clock.monotonic())

    def close(self) -> None:
        """Forget everybody, for good."""
        self._closed = True
        self._deadlines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        first = next(iter(self._deadlines.values()), None)
        self._timer = None if first is None or first == inf else self._clock.call_at(first, self._fire)

    def _fire(self) -> None:
        # The timer is armed for the member that was first when it was set; touching only moves deadlines later,
        # so it may come early, never late.
        self._timer = None
        now = self._clock.monotonic()
        while self._deadlines:
            member, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                break
            del self._deadlines[member]
            self._expire(member)
        self._arm()
