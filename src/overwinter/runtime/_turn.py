"""One turn: a call while it runs, and the graph of who waits for whom.

A turn is found through a context variable, so that what the agent's method calls knows in whose turn it is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from ..errors import OverwinterError, UsageError

__all__ = ["TURN", "Consumer", "Host", "Turn", "commit", "current_turn", "waits_for_itself"]


class Host(Protocol):
    """Where turns run: an agent's server, or its address, whichever life it is in."""

    @property
    def running(self) -> Collection[Turn]: ...


class Turn:
    """A call while it runs. ``active`` ends with it, however long the tasks that it started go on."""

    __slots__ = ("_cancelling", "_commit", "aborted", "active", "awaits", "caller", "effects", "readonly", "task")

    def __init__(
        self,
        task: asyncio.Task[Any],
        *,
        readonly: bool = False,
        commit: Callable[[Turn], Awaitable[None]] | None = None,
    ) -> None:
        self.caller = current_turn()
        self.readonly, self._commit = readonly, commit
        self.task = task
        self.active = True
        self.aborted: OverwinterError | None = None
        self.awaits: list[Host] | None = None
        """Servers that this turn waits for, once for each call."""
        self.effects: list[Callable[[], object]] | None = None
        """What leaves only when this turn's version is durable: ``tell`` and the like."""
        self._cancelling = 0

    def abort(self, error: OverwinterError) -> None:
        """Cancel the body; whoever called then gets *error*, not a ``CancelledError`` that nobody asked for."""
        if self.aborted is None:
            self.aborted = error
            self._cancelling = self.task.cancelling()
            self.task.cancel()

    def absorb_abort(self) -> bool:
        """After the body ended: whether the cancellation was ours alone."""
        return self.aborted is not None and self.task.uncancel() <= self._cancelling

    async def commit(self) -> None:
        if self._commit is None:
            raise UsageError("commit() is for calls: what on_start and on_stop change is stored when they return")
        if asyncio.current_task() is not self.task:
            raise UsageError(
                "commit() belongs to the turn's own task: await it in the method itself, not in a task that it started"
            )
        await self._commit(self)

    def wait_for(self, host: Host) -> None:
        if self.awaits is None:
            self.awaits = []
        self.awaits.append(host)

    def waited_for(self, host: Host) -> None:
        assert self.awaits is not None
        self.awaits.remove(host)


class Consumer(NamedTuple):
    """Who takes the items of a stream, as something that the stream waits for."""

    turn: Turn

    @property
    def running(self) -> Collection[Turn]:
        return (self.turn,)


TURN: ContextVar[Turn | None] = ContextVar("overwinter_turn", default=None)


def current_turn() -> Turn | None:
    """The turn that this code runs in, if there is one and it has not ended."""
    turn = TURN.get()
    return turn if turn is not None and turn.active else None


async def commit() -> None:
    """Make what the running call changed so far durable, and go on: a later failure rolls back to here.

    Ordered with all other writes of the agent. Outside a manager, in a unit test, it does nothing.

    Raises:
        StoreError, SupersededError: it is not stored, or nobody knows; the call had better end.
    """
    turn = current_turn()
    if turn is not None:
        await turn.commit()


def waits_for_itself(turn: Turn, host: Host) -> bool:
    """Whether *host* can't become free before *turn* ends, because what runs there waits, at last, for *turn*."""
    seen: set[Host] = set()
    todo = [host]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        for other in here.running:
            if other is turn:
                return True
            todo.extend(other.awaits or ())
    return False
