"""What the lives of one manager share, and the few words that all of them use."""

from __future__ import annotations

import asyncio
import contextvars
from asyncio.events import _get_running_loop
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .._clock import Clock
from ..agent import Agent, AgentType
from ..errors import ClosedError, OverwinterError, UsageError
from ..persistence import Keeper
from ._idle import IdleTracker
from ._ledger import Terms
from ._room import Room

__all__ = ["ABORT_GRACE", "Evicted", "Failures", "Home", "Retired", "all_done"]

A = TypeVar("A", bound=Agent)

ABORT_GRACE = 10.0
"""Seconds that a body which was told to end, or an ``on_stop``, may take before it is left behind."""


class Retired(Exception):  # noqa: N818  # it is no error
    """Not an error: this life ended before the call began, and the next one takes it."""


class Evicted(Retired):
    """The same, while the call waited for its turn: it comes before those who come now."""


class Failures:
    """Keys that could not come alive, and how long to wait before they are tried again; each key has its own.

    The first three tries are free, so that whoever mended the cause need not wait.
    """

    FREE, FIRST, LONGEST, MOST = 3, 0.1, 30.0, 10_000

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[int, float, OverwinterError]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._keys)

    def note(self, key: str, now: float, error: OverwinterError) -> None:
        last = self._keys.pop(key, None)
        count = 1 if last is None else last[0] + 1
        wait = min(self.LONGEST, self.FIRST * 2 ** min(count - self.FREE, 20)) if count > self.FREE else 0.0
        brief = error.again().with_traceback(None)
        brief.__cause__ = None  # it would keep its frames in memory
        self._keys[key] = (count, now + wait, brief)
        if len(self._keys) > self.MOST:
            self._keys.popitem(last=False)

    def forget(self, key: str) -> None:
        self._keys.pop(key, None)

    def last(self, key: str) -> type[OverwinterError] | None:
        """What kept *key* from coming alive when that was tried last, if it did not come alive since."""
        return type(self._keys[key][2]) if key in self._keys else None

    def check(self, key: str, now: float) -> None:
        """Raise the last failure of *key* again if it is too soon to try once more."""
        count, until, error = self._keys.get(key, (0, now, None))
        if error is not None and until > now:
            raise type(error)(f"{error} (failed {count} times in a row; it is tried again in {until - now:.3g} s)")


@dataclass(slots=True)
class Home(Generic[A]):
    """What the servers of one manager share."""

    kind: AgentType[A]
    keeper: Keeper[A]
    terms: Terms
    context: Any
    shared: bool
    report: Callable[[str, BaseException, str], None]
    """Where a failure goes that no caller waits for: (key, error, what was being done)."""
    remove: Callable[[Any], None]
    """Take a server whose life is over out of the registry."""
    idle: IdleTracker[Any] | None = None
    held: dict[str, list[str]] = field(default_factory=dict)
    """Who is attached to each key, by the names of their tasks; attachments outlast a life."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    winding_up: bool = False
    """Whether closing has come so far that no more calls begin."""
    closed: bool = False
    loop: asyncio.AbstractEventLoop | None = None
    """Where everything of this manager runs."""
    ground: contextvars.Context | None = None
    """The context variables in which agents come alive: those of ``open()``, not of whoever calls first."""
    keep_on_error: bool = False
    strict: bool = False
    """Whether ``@readonly`` calls are held to their word: ``overwinter.testing.strict`` sets it."""
    max_mailbox: int = 10_000
    room: Room | None = None
    failures: Failures = field(default_factory=Failures)
    turn_timeout: float | None = None
    opening: asyncio.Task[Any] | None = None
    """While the store is being opened in the background."""
    created: int = 0
    thawed: int = 0
    hibernated: int = 0
    superseded: int = 0

    def spawn(self, coroutine: Any, *, context: contextvars.Context | None = None) -> asyncio.Task[Any]:
        """Start a task that nobody's cancellation touches, and keep it from the garbage collector."""
        assert self.loop is not None
        # Not by the loop's task factory: one may start it here and now, in the midst of what we are doing.
        return self.keep(asyncio.Task(coroutine, loop=self.loop, context=context))

    def check_place(self) -> None:
        """Raise unless this is the event loop, and so the thread, of the manager."""
        if _get_running_loop() is not self.loop:
            raise UsageError(
                f"the manager of {self.kind.name} belongs to another event loop or thread: "
                "call it there, for instance with asyncio.run_coroutine_threadsafe"
            )

    async def see_through(
        self, key: str, doing: str, coroutine: Any, *, context: contextvars.Context | None = None
    ) -> None:
        """Await *coroutine* in a task of its own, which goes on if the caller is cancelled.

        What it fails with then is reported.

        Raises:
            ClosedError: closing gave it up. The task is cancelled then, and its caller is not.
        """
        task = self.spawn(coroutine, context=context)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            here = asyncio.current_task()
            if self.closed and task.cancelled() and here is not None and not here.cancelling():
                raise ClosedError(f"the manager of {self.kind.name} was closed before this was done") from None
            self.answer_for(key, doing, task)
            raise

    def answer_for(self, key: str, doing: str, task: asyncio.Task[Any]) -> None:
        """Report what *task* fails with: nobody waits for it any more."""

        def ended(task: asyncio.Task[Any]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                self.report(key, error, f"{doing} failed, and its caller had been cancelled")

        task.add_done_callback(ended)

    def keep(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    @property
    def is_open(self) -> bool:
        """Whether the store is open, if there is one."""
        opening = self.opening
        return opening is None or (opening.done() and not opening.cancelled() and opening.exception() is None)


async def all_done(clock: Clock, futures: set[asyncio.Future[Any]], until: float) -> bool:
    """Wait until all *futures* are done; return whether that was before *until*."""
    over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    left = {future for future in futures if not future.done()}

    def end(value: bool) -> None:
        if not over.done():
            over.set_result(value)

    def one_less(future: asyncio.Future[Any]) -> None:
        left.discard(future)
        if not left:
            end(True)

    if not left:
        return True
    timer = clock.call_at(until, lambda: end(False))
    for future in list(left):
        future.add_done_callback(one_less)
    try:
        return await over
    finally:
        timer.cancel()
        for future in left:
            future.remove_done_callback(one_less)
