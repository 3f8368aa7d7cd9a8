"""The gate: what waits for a version to be durable, in order. It doesn't know how versions become so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import TypeAlias

from ..errors import OverwinterError

__all__ = ["Effect", "Gate"]

Effect: TypeAlias = Callable[[], object]
"""What leaves a turn only when its version is durable: a ``tell``."""


class _Told:
    """The effects of one turn, as one of those who wait."""

    __slots__ = ("effects",)

    def __init__(self, effects: list[Effect]) -> None:
        self.effects = effects


class Gate:
    """Replies and effects, each with the version that it made or saw."""

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        # Versions only grow, and after a rollback nobody waits any more: the order of arrival is that of versions.
        # A dict, so that many may leave at once; and only while somebody waits: an idle agent needs none.
        self.waiters: dict[asyncio.Future[None] | _Told, int] | tuple[()] = ()

    def enter(self, version: int, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Return what is done when *version* is durable. Who stops waiting calls ``withdraw``."""
        waiter: asyncio.Future[None] = loop.create_future()
        if self.waiters:
            self.waiters[waiter] = version
        else:
            self.waiters = {waiter: version}
        return waiter

    def withdraw(self, waiter: asyncio.Future[None]) -> None:
        """Forget a waiter whose caller has left: it would count for the mailbox until the store answers."""
        if self.waiters:
            self.waiters.pop(waiter, None)  # it may have been let go just now
            self.waiters = self.waiters or ()

    def keep(self, version: int, effects: list[Effect]) -> None:
        """Run *effects* when *version* is durable; drop them if it never will be."""
        if not isinstance(self.waiters, dict):
            self.waiters = {}
        self.waiters[_Told(effects)] = version

    def release(self, durable: int) -> None:
        """Let go whatever waits for *durable* or less."""
        waiters = self.waiters
        if not waiters:
            return
        ready: Iterable[asyncio.Future[None] | _Told] = waiters
        if next(reversed(waiters.values())) <= durable:  # nearly always all of them
            self.waiters = ()
        else:
            ready = list(takewhile(lambda waiter: waiters[waiter] <= durable, waiters))
            for waiter in ready:
                del waiters[waiter]
        for waiter in ready:
            if isinstance(waiter, _Told):
                for effect in waiter.effects:
                    effect()
            elif not waiter.done():
                waiter.set_result(None)

    def fail(self, error: Callable[[int], OverwinterError], *, effects_too: bool = True) -> None:
        """Give everybody who waits an error of their own, made of the version they wait for; drop the effects."""
        waiters, self.waiters = self.waiters, ()
        if not waiters:
            return
        if not effects_too:
            self.waiters = {waiter: version for waiter, version in waiters.items() if isinstance(waiter, _Told)} or ()
        for waiter, version in waiters.items():
            if not isinstance(waiter, _Told) and not waiter.done():
                waiter.set_exception(error(version))
