"""Who is idle, in O(1) per touch: one timer, and an order of last use that is the order of deadlines too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from math import inf
from typing import Any, Generic, TypeVar

from .._clock import Clock, Timer

__all__ = ["IdleMember", "IdleTracker"]

T = TypeVar("T", bound="IdleMember")

AT_ONCE = 100
"""Members that expire in one pass of the event loop; those that came at once must not hold it up when they go."""


class IdleMember:
    """Who can be watched, by one tracker. It holds its own place in the order: elsewhere that takes twice as much."""

    __slots__ = ("idle_after", "idle_before", "idle_due")

    def __init__(self) -> None:
        self.idle_before: Any = None
        self.idle_after: Any = None
        self.idle_due: float | None = None
        """When it expires; ``None``: it isn't watched."""


class IdleTracker(Generic[T]):
    """Calls *expire* with each member that nobody touched for *timeout* seconds; a member that expired is gone."""

    def __init__(self, clock: Clock, timeout: float, expire: Callable[[T], object]) -> None:
        self._clock, self._timeout, self._expire = clock, timeout, expire
        self._first: T | None = None
        self._last: T | None = None
        self._timer: Timer | None = None
        self._closed = False

    def touch(self, member: T) -> None:
        """Start the member's wait anew, or begin to watch it."""
        if self._closed:
            return
        if member is not self._last:
            if member.idle_due is not None:
                self._take_out(member)
            last = member.idle_before = self._last
            if last is None:
                self._first = member
            else:
                last.idle_after = member
            self._last = member
        member.idle_due = self._clock.monotonic() + self._timeout
        if self._timer is None:
            self._arm()

    def forget(self, member: T) -> None:
        """Stop watching. Idempotent."""
        if member.idle_due is not None:
            self._take_out(member)
            member.idle_due = None

    def _take_out(self, member: T) -> None:
        before, after = member.idle_before, member.idle_after
        if before is None:
            self._first = after
        else:
            before.idle_after = after
        if after is None:
            self._last = before
        else:
            after.idle_before = before
        member.idle_before = member.idle_after = None

    @property
    def endless(self) -> bool:
        """Whether nobody ever expires: it only keeps the order of use."""
        return self._timeout == inf

    def members(self) -> Iterator[T]:
        """Those that are watched, the least recently used first; nobody may come or go meanwhile."""
        member = self._first
        while member is not None:
            yield member
            member = member.idle_after

    def remaining(self, member: T) -> float | None:
        """Seconds until *member* expires; ``None`` if it isn't watched."""
        return None if member.idle_due is None else max(0.0, member.idle_due - self._clock.monotonic())

    def close(self) -> None:
        """Forget everybody, for good."""
        self._closed = True
        while self._first is not None:
            self.forget(self._first)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        first = None if self._first is None else self._first.idle_due
        self._timer = None if first is None or first == inf else self._clock.call_at(first, self._fire)

    def _fire(self) -> None:
        # The timer is armed for the member that was first when it was set; touching only moves deadlines later,
        # so it may come early, never late.
        self._timer = None
        now = self._clock.monotonic()
        for _ in range(AT_ONCE):
            member = self._first
            if member is None or member.idle_due is None or member.idle_due > now:
                self._arm()
                return
            self.forget(member)
            try:
                self._expire(member)
            except BaseException:
                self._arm()  # the others are none the worse for it
                raise
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_soon(self._fire)
