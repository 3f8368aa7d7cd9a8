"""AgentSystem: several agent classes on one store, with one context, closed together."""

from __future__ import annotations

import asyncio
from typing import Any, Self, TypeVar, Unpack

from .agent import Agent
from .errors import UsageError
from .manager import CLOSING, InstanceManager, ManagerOptions, close_together
from .stores.base import Store

__all__ = ["AgentSystem"]

A = TypeVar("A", bound=Agent)


class AgentSystem:
    """Opens and closes the managers of several agent classes together.

    ``system.manager(Cart, idle_timeout=60)`` takes what ``InstanceManager`` takes, but the store and the context,
    which are the system's. Made before
    the system is opened or after; agents reach their siblings' managers through the context.
    """

    def __init__(self, *, store: Store | None = None, context: Any = None) -> None:
        self._store, self._context = store, context
        self._managers: list[InstanceManager[Any]] = []
        self._open = self._closed = False
        self._opening: asyncio.Future[None] | None = None
        self._close_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def manager(self, agent_class: type[A], **options: Unpack[ManagerOptions]) -> InstanceManager[A]:
        """Make the manager of one agent class; it opens with the system, or at once if that is open."""
        if self._closed:
            raise UsageError("this AgentSystem was closed: make a new one")
        taken = sorted({"store", "context"} & options.keys())
        if taken:
            raise TypeError(
                f"{taken[0]}= is the system's: pass it to AgentSystem, or make an InstanceManager of its own"
            )
        manager = InstanceManager(agent_class, store=self._store, context=self._context, **options)
        self._managers.append(manager)
        if self._open:
            manager._open_soon()
        return manager

    async def open(self) -> None:
        """Open the store and all managers made so far."""
        if self._open or self._closed or self._opening is not None:
            raise UsageError("this AgentSystem was opened before: make a new one")
        self._opening = asyncio.get_running_loop().create_future()
        try:
            await self._open_all()
        finally:
            self._opening.set_result(None)
            self._opening = None

    async def _open_all(self) -> None:
        if self._store is not None:
            await self._store.__aenter__()
        opened: list[InstanceManager[Any]] = []
        try:
            for manager in self._managers:
                await manager.open()
                opened.append(manager)
        except BaseException:
            await close_together(opened, 0)
            if self._store is not None:
                await self._store.__aexit__()
            raise
        self._open = True

    async def close(self, deadline: float = 30.0) -> None:
        """Close all managers together, as ``InstanceManager.close`` does; all drain before any closes. Idempotent.

        Raises:
            CloseError: with the keys of the agents that are not stored.
        """
        for manager in self._managers:
            if manager._door.loop is not None:
                manager._check_place()
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._open:
            self._open, self._closed = False, True
            self._close_task = asyncio.Task(self._close(deadline))
            CLOSING.add(self._close_task)
        if self._close_task is not None:
            await asyncio.shield(self._close_task)

    async def _close(self, deadline: float) -> None:
        try:
            await close_together(self._managers, deadline)
        finally:
            if self._store is not None:
                await self._store.__aexit__()
