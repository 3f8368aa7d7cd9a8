"""The gate: what waits for a version to be durable, in order. It doesn't know how versions become so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import takewhile
from typing import TypeAlias

from ..errors import OverwinterError

__all__ = ["Effect", "Gate"]

Effect: TypeAlias = Callable[[], object]
"""What leaves a turn only when its version is durable: a ``tell``."""


class Gate:
    """Replies and effects, each with the version that it made or saw."""

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        # Versions only grow, and after a rollback nobody waits any more: the order of arrival is that of versions.
        # A list, and only while somebody waits: an idle agent needs none.
        self.waiters: list[tuple[int, asyncio.Future[None] | list[Effect]]] | tuple[()] = ()

    def enter(self, version: int, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Return what is done when *version* is durable. Who stops waiting calls ``withdraw``."""
        waiter: asyncio.Future[None] = loop.create_future()
        if self.waiters:
            self.waiters.append((version, waiter))
        else:
            self.waiters = [(version, waiter)]
        return waiter

    def withdraw(self, waiter: asyncio.Future[None]) -> None:
        """Forget a waiter whose caller has left: it would count for the mailbox until the store answers."""
        for place, (_, other) in enumerate(self.waiters):
            if other is waiter:
                assert isinstance(self.waiters, list)
                del self.waiters[place]
                return

    def keep(self, version: int, effects: list[Effect]) -> None:
        """Run *effects* when *version* is durable; drop them if it never will be."""
        if not isinstance(self.waiters, list):
            self.waiters = []
        self.waiters.append((version, effects))

    def release(self, durable: int) -> None:
        """Let go whatever waits for *durable* or less."""
        ready = self.waiters
        if not ready:
            return
        if ready[-1][0] <= durable:  # nearly always all of them
            self.waiters = ()
        else:
            waiters, ready = ready, list(takewhile(lambda waiter: waiter[0] <= durable, ready))
            del waiters[: len(ready)]
        for _, waiter in ready:
            if isinstance(waiter, list):
                for effect in waiter:
                    effect()
            elif not waiter.done():
                waiter.set_result(None)

    def fail(self, error: Callable[[int], OverwinterError], *, effects_too: bool = True) -> None:
        """Give everybody who waits an error of their own, made of the version they wait for; drop the effects."""
        waiters, self.waiters = self.waiters, ()
        if not effects_too:
            self.waiters = [waiter for waiter in waiters if isinstance(waiter[1], list)] or ()
        for version, waiter in waiters:
            if not isinstance(waiter, list) and not waiter.done():
                waiter.set_exception(error(version))
