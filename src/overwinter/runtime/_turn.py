"""One turn: a call while it runs, and the graph of who waits for whom.

A turn is found through a context variable, so that what the agent's method calls knows in whose turn it is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol

from ..agent._receipts import Receipt
from ..errors import OverwinterError, UsageError

__all__ = ["TURN", "Host", "Turn", "Wait", "commit", "current_turn", "outside_turns", "waits_for_itself"]


class Host(Protocol):
    """Where turns run: an agent's server, or its address, whichever life it is in."""

    @property
    def holding(self) -> Collection[Turn]: ...


class Performs(Protocol):
    """Who performs turns, as far as a turn needs to know."""

    async def commit(self, turn: Turn) -> None: ...
    def copy(self) -> Any: ...


class Wait:
    """One thing that a turn waits for: a host while it queues, then the very turn that it became, then nothing."""

    __slots__ = ("on",)

    def __init__(self, on: Host | Turn | None) -> None:
        self.on = on


class Turn:
    """A call while it runs. ``active`` ends with it, however long the tasks that it started go on."""

    # What few turns need has its default in the class: a turn costs as much as what is set in each one.
    interleaved = False
    streams = False
    receipt: Receipt | None = None
    active = True
    aborted: OverwinterError | None = None
    doomed = False
    awaits: list[Wait] | None = None
    effects: list[Callable[[], object]] | None = None
    """What leaves only when this turn's version is durable: ``tell`` and the like."""
    _cancelled = False

    def __init__(
        self,
        task: asyncio.Task[Any],
        caller: Turn | None = None,
        readonly: bool = False,
        performer: Performs | None = None,
        since: int = 0,
    ) -> None:
        self.task, self.caller = task, caller
        self.performer, self.readonly = performer, readonly
        self.since = since
        """The version that it began with."""
        self._cancelling = task.cancelling()  # a caller that is cancelled later, by others too, must hear of it

    def abort(self, error: OverwinterError, *, doomed: bool = True) -> None:
        """Cancel the body; whoever called then gets *error*, not a ``CancelledError`` that nobody asked for.

        A *doomed* turn's versions will never be durable, so its caller must not wait for them.
        """
        if self.aborted is None:
            self.aborted, self.doomed = error, doomed
            if self.task is asyncio.current_task():
                # Cancelled here and now, a body that awaits nothing more would leave it to whatever its task does next.
                self.task.get_loop().call_soon(self._cancel)
            else:
                self._cancel()

    def _cancel(self) -> None:
        if self.active:
            self._cancelled = True
            self.task.cancel()

    def check(self) -> None:
        """Raise if it was to end: a body that keeps a cancellation to itself makes nothing that counts."""
        if self.aborted is not None:
            raise self.aborted
        if self.streams and self.task.cancelling():
            raise asyncio.CancelledError  # it was the consumer who left

    def outcome_of_abort(self, error: BaseException) -> BaseException:
        """After the body of an aborted turn ended with *error*: what its caller gets."""
        assert self.aborted is not None
        ours = not self._cancelled or self.task.uncancel() <= self._cancelling
        outer = self.caller
        while outer is not None and outer.task is self.task:
            if outer.aborted is not None:
                return asyncio.CancelledError()  # a turn round this one, in the same task, is to end too
            outer = outer.caller
        return self.aborted if ours or not isinstance(error, asyncio.CancelledError) else error

    async def commit(self) -> None:
        if self.performer is None:
            raise UsageError("commit() is for calls: what on_start and on_stop change is stored when they return")
        if asyncio.current_task() is not self.task:
            raise UsageError(
                "commit() belongs to the turn's own task: await it in the method itself, not in a task that it started"
            )
        await self.performer.commit(self)

    def wait_for(self, wait: Wait) -> Wait:
        """Note that this turn waits; ``waited`` takes it back."""
        if self.awaits is None:
            self.awaits = []
        self.awaits.append(wait)
        return wait

    def waited(self, wait: Wait) -> None:
        assert self.awaits is not None
        self.awaits.remove(wait)


TURN: ContextVar[Turn | None] = ContextVar("overwinter_turn", default=None)


def current_turn() -> Turn | None:
    """The turn that this code runs in, if there is one and it has not ended."""
    turn = TURN.get()
    return turn if turn is not None and turn.active else None


def outside_turns() -> Context:
    """A copy of this context in which no turn runs: for what goes on without the turn that it was begun in."""
    context = copy_context()
    context.run(TURN.set, None)
    return context


async def commit() -> None:
    """Make what the running call changed so far durable, and go on: a later failure rolls back to here.

    Ordered with all other writes of the agent. Outside a manager, in a unit test, it does nothing.

    Raises:
        StoreError, SupersededError: it is not stored, or nobody knows; the call had better end.
    """
    turn = current_turn()
    if turn is not None:
        await turn.commit()


def waits_for_itself(turn: Turn, host: Host | Turn) -> bool:
    """Whether *host* can't become free, or end, before *turn* does, because it waits, at last, for *turn*."""
    seen: set[Host | Turn] = set()
    todo: list[Host | Turn] = [host]
    while todo:
        here = todo.pop()
        if here is turn:
            return True
        if here in seen:
            continue
        seen.add(here)
        if isinstance(here, Turn):
            todo.extend(wait.on for wait in here.awaits or () if wait.on is not None)
        else:
            todo.extend(here.holding)
    return False
