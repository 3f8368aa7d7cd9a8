"""The gate: what waits for a version to be durable, in order. It doesn't know how versions become so."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from ..errors import OverwinterError

__all__ = ["Effect", "Gate"]

Effect: TypeAlias = Callable[[], object]
"""What leaves a turn only when its version is durable: a ``tell``."""


class Gate:
    """Replies and effects, each with the version that it made or saw."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        # Versions only grow, and after a rollback nobody waits any more: the order of arrival is that of versions.
        self._waiters: deque[tuple[int, asyncio.Future[None] | list[Effect]]] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, version: int) -> None:
        """Return when *version* is durable. Cancelled, it only stops waiting."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((version, waiter))
        await waiter

    def keep(self, version: int, effects: list[Effect]) -> None:
        """Run *effects* when *version* is durable; drop them if it never will be."""
        self._waiters.append((version, effects))

    def release(self, durable: int) -> None:
        """Let go whatever waits for *durable* or less."""
        while self._waiters and self._waiters[0][0] <= durable:
            _, waiter = self._waiters.popleft()
            if isinstance(waiter, list):
                for effect in waiter:
                    effect()
            elif not waiter.done():
                waiter.set_result(None)

    def fail(self, error: Callable[[int], OverwinterError]) -> None:
        """Give everybody who waits an error of their own, made of the version they wait for."""
        waiters, self._waiters = self._waiters, deque()
        for version, waiter in waiters:
            if not isinstance(waiter, list) and not waiter.done():
                waiter.set_exception(error(version))
