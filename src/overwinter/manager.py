"""InstanceManager, the door: the agents of one class, each alive at most once, on one store.

It checks what callers hand in, and opens and closes. Lives are the registry's business.
"""

from __future__ import annotations

import asyncio
import copy
import os
from asyncio.events import _get_running_loop  # one that returns None instead of raising
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from math import inf
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypedDict, TypeVar, overload
from weakref import WeakSet

from ._clock import Clock, LoopClock
from ._types import Interval, check_key, seconds
from .agent import Agent, Method, Signal, agent_type
from .errors import ClosedError, UnknownSignalError, UsageError
from .persistence import MAX_STATE, Keeper, KeyFunction
from .runtime._attachment import Attachment
from .runtime._closing import close_lives
from .runtime._home import Home
from .runtime._idle import IdleTracker
from .runtime._ledger import Terms
from .runtime._lifecycle import LIVE
from .runtime._ref import OPEN, reference_class
from .runtime._registry import Registry
from .runtime._room import PutBudget, Room
from .runtime._server import AgentServer
from .runtime._stream import Stream
from .runtime._turn import current_turn, outside_turns
from .runtime._view import Inspection, Stats, inspect, stats
from .stores.base import Store

__all__ = ["CLOSING", "Inspection", "InstanceManager", "ManagerOptions", "Stats"]

CLOSING: WeakSet[asyncio.Task[None]] = WeakSet()
"""What closes managers, in all loops: it goes on when whoever asked for it is cancelled."""

A = TypeVar("A", bound=Agent)
P = ParamSpec("P")
R = TypeVar("R")

_MISSING = ("create", "raise")

Durability = Literal["call", "hibernate"] | Interval


class ManagerOptions(TypedDict, total=False):
    """What ``AgentSystem.manager`` takes and hands on: the options of a manager that are not the system's."""

    idle_timeout: float | timedelta | None
    durability: Durability
    key_fn: KeyFunction | None
    max_state: int
    store_patience: float
    shared: bool
    superseded: Literal["raise", "retry"]
    owner_wait: float
    turn_timeout: float | timedelta | None
    max_live: int | None
    max_mailbox: int
    on_error: Literal["rollback", "keep"]
    clock: Clock | None


@dataclass(slots=True)
class _Door:
    """Whether a manager is open, and where. Shared by all that ``options`` returned."""

    loop: asyncio.AbstractEventLoop | None = None
    pid: int = 0
    closing: bool = False
    close_task: asyncio.Task[None] | None = None
    claimed: list[str] = field(default_factory=list)
    leased: bool = False


class InstanceManager(Generic[A]):
    """Keeps at most one of each agent alive.

    Args:
        agent_class: the class of all agents here.
        store: where they are kept; ``None``: nowhere, an agent ends when it is idle.
        idle_timeout: seconds without a call or attachment after which an agent hibernates; ``None``: never.
        durability: ``"call"``: a reply means that what the call changed is stored. ``Interval(seconds)``: it is
            stored that much later at most. ``"hibernate"``: it is stored when the agent hibernates or is saved. Under
            the last two a crash loses what was not stored yet.
        context: handed to each agent's ``on_start``.
        key_fn: makes the store key from the agent's name and the key; it must tell all pairs apart.
        max_state: bytes that an encoded state may have; at most 256 MiB less 64 KiB, which a record can hold.
        store_patience: seconds that a failing store is tried again before callers are told.
        shared: let several processes of one machine own these agents at once. Each turn then first asks the
            store whether its copy is current. Under ``"hibernate"`` two owners may both acknowledge changes, and
            only those of the first to store survive: use ``"call"``.
        superseded: what happens to a call whose change was lost to another owner: ``"raise"`` SupersededError,
            or ``"retry"``, which runs its method again on the agent as it is now.
        owner_wait: seconds to wait for another owner of these agents to leave, before ``StoreInUseError``.
        turn_timeout: seconds that a call may run before it is ended with ``TurnTimeoutError`` and rolled back; waiting
            for its turn, and for the store afterwards, does not count. An ``on_start`` that takes longer fails.
        max_live: agents that may be live at once. Over it the least recently used idle one hibernates; when all are
            attached or busy, a call waits some seconds and gets ``TooManyLiveError``.
        max_mailbox: calls that may wait for one agent, for their turn or for the store; one more gets
            ``MailboxFullError`` at once.
        on_error: what a call that raises leaves behind: the state as it was (``"rollback"``), or what it changed so
            far (``"keep"``, only where nothing is stored per call). One that is cancelled or ended is always undone.
        clock: where time comes from.
    """

    def __init__(
        self,
        agent_class: type[A],
        *,
        store: Store | None = None,
        idle_timeout: float | timedelta | None = None,
        durability: Durability = "call",
        context: Any = None,
        key_fn: KeyFunction | None = None,
        max_state: int = MAX_STATE,
        store_patience: float = 10.0,
        shared: bool = False,
        superseded: Literal["raise", "retry"] = "raise",
        owner_wait: float = 5.0,
        turn_timeout: float | timedelta | None = None,
        max_live: int | None = None,
        max_mailbox: int = 10_000,
        on_error: Literal["rollback", "keep"] = "rollback",
        clock: Clock | None = None,
    ) -> None:
        self._kind = agent_type(agent_class)
        self._kind.check()
        if not isinstance(durability, Interval) and durability not in ("call", "hibernate"):
            raise ValueError(f'durability must be "call", Interval(seconds) or "hibernate", not {durability!r}')
        if superseded not in ("raise", "retry"):
            raise ValueError(f'superseded must be "raise" or "retry", not {superseded!r}')
        self._store, self._shared, self._owner_wait = store, shared, owner_wait
        clock = clock or LoopClock()
        keeper = Keeper(self._kind, store, key_fn=key_fn, max_state=max_state, now=clock.time)
        gated = store is not None and durability == "call"
        interval = durability.seconds if isinstance(durability, Interval) else None
        terms = Terms(keeper, gated, interval, store_patience, clock, PutBudget())
        self._home: Home[A] = Home(self._kind, keeper, terms, context, shared, self._report, self._remove)
        if idle_timeout is not None:
            self._home.idle = IdleTracker(clock, seconds("idle_timeout", idle_timeout), self._expire)
        if turn_timeout is not None:
            self._home.turn_timeout = seconds("turn_timeout", turn_timeout)
        self._registry: Registry[A] = Registry(self._home, retry=superseded == "retry")
        if max_mailbox < 1 or (max_live is not None and max_live < 1):
            raise ValueError("max_mailbox and max_live must be 1 or more")
        if on_error not in ("rollback", "keep") or (on_error == "keep" and gated):
            raise ValueError('on_error is "rollback", or "keep" where durability is not "call"')
        self._home.max_mailbox, self._home.keep_on_error = max_mailbox, on_error == "keep"
        if max_live is not None:
            self._home.room = Room(clock, max_live, self._registry.evict_one)
            if self._home.idle is None:
                self._home.idle = IdleTracker(clock, inf, self._expire)
        self._reference = reference_class(self._kind)
        self._door = _Door()
        self._call_id: str | None = None

    def __repr__(self) -> str:
        return f"<InstanceManager of {self._kind.name}: {len(self._registry.servers)} live>"

    # ------------------------------------------------------------ opening and closing

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the store, and become the owner of these agents there.

        Raises:
            StoreInUseError: somebody else is.
        """
        if self._door.loop is not None:
            raise UsageError(
                f"{self!r} is open already" if not self._door.closing else f"{self!r} was closed: make a new one"
            )
        self._settle_in()
        try:
            await self._take_store()
        except BaseException:
            self._door.loop = None
            OPEN[self._kind.name].discard(self)
            raise

    def _open_soon(self) -> None:
        """Open in the background; calls wait for it. For the system, whose ``manager()`` can't wait."""
        self._settle_in()
        self._home.opening = self._home.spawn(self._take_store())
        self._home.opening.add_done_callback(lambda task: task.cancelled() or task.exception())  # callers get it

    def _settle_in(self) -> None:
        self._door.loop, self._door.pid = asyncio.get_running_loop(), os.getpid()
        self._home.loop = self._door.loop
        self._home.ground = outside_turns()
        OPEN.setdefault(self._kind.name, WeakSet()).add(self)

    async def _take_store(self) -> None:
        if self._store is None:
            return
        await self._store.__aenter__()
        try:
            for name in (self._kind.name, *self._kind.aliases):
                await self._store.claim(name, shared=self._shared, wait=self._owner_wait)
                self._door.claimed.append(name)
            if self._door.closing:
                raise ClosedError(f"the manager of {self._kind.name} was closed while it was being opened")
            self._store.live(self._kind.name, self._registry.live_store_keys)
            self._door.leased = True
        except BaseException:
            while self._door.claimed:
                await self._store.release(self._door.claimed.pop())
            await self._store.__aexit__()
            raise

    async def close(self, deadline: float = 30.0) -> None:
        """Stop taking calls, let those that run finish, store every agent; within *deadline* seconds. Idempotent.

        Calls that still run at half time are ended and rolled back; those that still wait never begin.

        Raises:
            CloseError: with the keys of the agents that are not stored.
        """
        if self._door.loop is None:
            return
        self._check_place()
        await close_together([self], deadline)

    async def _let_go_of_store(self) -> None:
        OPEN[self._kind.name].discard(self)
        if self._store is not None and self._door.leased:
            self._door.leased = False
            while self._door.claimed:
                await self._store.in_time(self._store.release(self._door.claimed.pop()))
            await self._store.in_time(self._store.__aexit__())

    def _check(self) -> None:
        """Raise unless a call may begin here and now."""
        here, door = _get_running_loop(), self._door
        if here is not door.loop or here is None or door.closing or self._home.closed:  # rarely
            self._check_each()

    def _check_each(self) -> None:
        """Say what is in the way of a call, if anything is. While it closes, running turns may still call."""
        door = self._door
        if door.loop is None or self._home.closed or (door.closing and current_turn() is None):
            state = "is closed" if door.closing else "is not open: use `async with manager:`, or `await manager.open()`"
            raise ClosedError(f"the manager of {self._kind.name} {state}")
        self._check_place()

    def _check_place(self) -> None:
        if _get_running_loop() is not self._door.loop:  # there is none in a forked child either
            if self._door.pid != os.getpid():
                raise UsageError(
                    f"the manager of {self._kind.name} was opened before a fork: make a new one in the child process"
                )
            self._home.check_place()

    # ------------------------------------------------------------ reaching agents

    def attach(
        self, key: str, *, initial: Mapping[str, Any] | A | None = None, missing: Literal["create", "raise"] = "create"
    ) -> Attachment[A]:
        """Get the agent and hold it live, until the block or the task that it was entered in ends.

        Use it as ``async with manager.attach(key) as reference:``. *initial* is the first state of a fresh agent,
        its fields or an instance; of an agent that exists it is ignored.

        Raises:
            ThawError: it can't come alive, and nothing was started.
            AgentNotFoundError: nothing is stored, and *missing* is ``"raise"``.
        """
        self._check()
        if missing not in _MISSING:
            raise _unknown_way(missing)
        return Attachment(self._registry, self.reference(check_key(key, self._kind.name)), key, initial, missing)

    async def get(
        self, key: str, *, initial: Mapping[str, Any] | A | None = None, missing: Literal["create", "raise"] = "create"
    ) -> A:
        """Return a reference to the agent, which is thawed now; it is not held. See ``attach``. Cancel-safe."""
        self._check()
        if missing not in _MISSING:
            raise _unknown_way(missing)
        server = self._registry.servers.get(key) if type(key) is str else None
        if server is None or server.state is not LIVE:
            await self._registry.live(key, initial, missing)
        return self.reference(key)

    def lookup(self, key: str) -> A | None:
        """Return a reference if the agent is live, else ``None``; starts nothing."""
        self._check()
        return self.reference(key) if self._is_live(key) else None

    def _is_live(self, key: str) -> bool:
        server = self._registry.servers.get(key)
        return server is not None and server.state is LIVE

    @property
    def identity(self) -> object:
        """The same for this manager and all that its ``options`` returned."""
        return self._registry

    def reference(self, key: str) -> A:
        """Return a reference to an agent, live or not; starts nothing."""
        reference: Any = self._reference(self, key)
        return reference  # type: ignore[no-any-return]  # it looks like an A; a cast() would be called

    # ------------------------------------------------------------ calls

    def options(self, *, call_id: str) -> Self:
        """Return this manager with options for its calls, and for those of the references that it gives.

        *call_id* (1 to 128 characters) names a call, so that it can be repeated: an agent keeps the ids and replies
        of its last calls that changed something (up to 64 and 16 KB) in the same write as the change, and answers a
        repeated id with the first reply. After ``OutcomeUnknownError``, or a crash of the caller, repeat the call
        under its id. Nothing tells which ids are forgotten: repeat soon.

        Raises, when the call is made:
            CallIdReusedError: the id was used for another method or other arguments.
            AlreadyAppliedError: the call was made, and its reply was too large to keep, or is none of this method now.
        """
        if type(call_id) is not str or not 1 <= len(call_id) <= 128 or not call_id.isprintable():
            raise ValueError("a call_id is a printable str of 1 to 128 characters")
        manager = copy.copy(self)
        manager._call_id = call_id
        return manager

    @overload
    def call(
        self,
        key: str,
        method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def call(
        self, key: str, method: Callable[Concatenate[A, P], AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Stream[R]: ...
    @overload
    def call(self, key: str, signal: Signal, /) -> Coroutine[Any, Any, Any]: ...
    def call(self, key: str, method: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call as a turn of the agent, thawing it if it is not live; return its result.

        A streaming method gives an async iterator, and is one turn from the first item to the end, or to the
        consumer's leaving; each of its ``yield``s is a commit point.

        Cancelled while it waits for its turn, the call is withdrawn; in its turn, it is rolled back; after it, the
        change stays.

        Raises:
            ThawError: the agent can't come alive.
            StoreUnavailableError, SupersededError: what the call changed was not stored, and does not exist.
            OutcomeUnknownError: it may have been stored.
            Exception: whatever the method raised; the state is as it was before.
        """
        found, args, kwargs = self._resolve(key, method, args, kwargs)
        return self.dispatch(key, found, args, kwargs)

    def dispatch(self, key: str, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Bring a call to its agent. References use it; ``call`` is the checked way."""
        self._check()
        if method.streaming:
            if self._call_id is not None:
                raise TypeError(f"{method.name}() streams: a call_id is for calls with one reply")
            return self._registry.stream(key, method, args, kwargs)
        return self._registry.call(key, method, args, kwargs, self._call_id)

    @overload
    def tell(
        self,
        key: str,
        method: Callable[Concatenate[A, P], Coroutine[Any, Any, Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None: ...
    @overload
    def tell(self, key: str, signal: Signal, /) -> None: ...
    def tell(self, key: str, method: Any, /, *args: Any, **kwargs: Any) -> None:
        """Start a call and return at once; those to one key keep their order.

        Told inside a turn, it leaves when what the turn changed is durable, and not at all if the turn is rolled
        back. A failure goes to the event loop's exception handler.
        """
        found, args, kwargs = self._resolve(key, method, args, kwargs)
        if found.streaming:
            raise TypeError(f"{found.name}() streams its items to whoever takes them: call it, don't tell it")
        self._check()
        context = outside_turns()
        call_id = self._call_id

        def launch() -> None:
            call = self._registry.call(key, found, args, kwargs, call_id)
            self._home.spawn(call, context=context).add_done_callback(partial(self._told, key, found.name))

        turn = current_turn()
        if turn is None:
            launch()
        elif turn.effects is None:
            turn.effects = [launch]
        else:
            turn.effects.append(launch)

    def _told(self, key: str, name: str, call: asyncio.Task[Any]) -> None:
        """Report what it failed with, or that it never began: nobody else is there to get it."""
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if error is not None:
            if self._home.closed and call.cancelled():
                error = ClosedError("the manager was closed before this had ended")
            self._report(key, error, f"told {name}()")

    def _resolve(
        self, key: str, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Method, Any, dict[str, Any]]:
        if type(key) is not str or key not in self._registry.servers:
            check_key(key, self._kind.name)
        if not isinstance(method, Signal):
            return self._kind.method(method), args, kwargs
        route = self._kind.routes.get(method.type)
        if route is None:
            known = ", ".join(sorted(self._kind.routes)) or "none"
            raise UnknownSignalError(
                f"{self._kind.name} {key!r}: no method is routed to signal {method.type!r}; routed are: {known}"
            )
        if args or kwargs:
            raise TypeError("a signal carries its data itself: Signal(type, {...})")
        return self._kind.methods[route.method], (), route.arguments(method, key)

    # ------------------------------------------------------------ tending agents

    async def state(self, key: str) -> A:
        """Return a detached copy of the agent, as it is between turns and durable; thaws it if it is not live."""
        self._check()
        return await self._registry.snapshot(key)

    def touch(self, key: str) -> None:
        """Start the idle clock of a live agent anew."""
        self._check()
        server = self._registry.servers.get(key)
        if server is not None:
            server.watch()

    def cancel(self, key: str) -> bool:
        """End the calls of an agent that run now: the "stop generating" button. Return whether any did.

        The agent sees ``CancelledError``, its caller ``TurnCancelledError``, and the state rolls back to the last
        commit point. Calls that wait for their turn then have it.
        """
        self._check()
        server = self._registry.servers.get(key)
        return server is not None and server.cancel()

    async def save(self, key: str) -> None:
        """Store a live agent now, and keep it live. Idempotent and cancel-safe.

        Raises:
            StoreError: it is not stored, or nobody knows; under ``"hibernate"`` it stays live and dirty.
        """
        self._check()
        await self._registry.save(key)

    async def stop(self, key: str) -> None:
        """Store a live agent and end its life, attached or not; the next call thaws it. Idempotent and cancel-safe.

        Raises:
            StoreError: it could not be stored, and stays live.
        """
        self._check()
        server = self._registry.servers.get(key)
        if server is None or server.leave_if_clean():
            return
        try:
            await self._registry.stop(key)
        except asyncio.CancelledError:  # whoever asked is gone; what was begun goes on
            self._registry.go_on_stopping(key)
            raise

    async def delete(self, key: str) -> None:
        """End the agent without saving, and delete what is stored, readable or not. Idempotent and cancel-safe.

        Calls that wait for their turn get ``AgentDeletedError``.

        Raises:
            ThawError: what is stored is another agent's, with which ``key_fn`` mixes this one up. It stays.
        """
        self._check()
        check_key(key, self._kind.name)
        await self._registry.delete(key)

    def keys(self) -> list[str]:
        """The keys of the live agents. For those that are stored, see ``stored_keys``."""
        return [key for key, server in self._registry.servers.items() if server.state is LIVE]

    def stored_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield the keys of the stored agents, live or not, that begin with *prefix*; each once, in no order.

        Thaws none. What is stored from the first step to the last is yielded; what comes or goes meanwhile may be. An
        agent that is live and was not stored yet is in ``keys()`` only. With a ``key_fn`` all records of the
        store are read, of other classes too, since the key stands only in them.

        Raises:
            CorruptRecordError: not all keys can be told. It comes last, when all others were yielded.
            UsageError: the store can't list its keys.
        """
        self._check()
        return self._registry.stored_keys(prefix)

    async def count_stored(self, prefix: str = "") -> int:
        """Return how many agents are stored, live or not, whose keys begin with *prefix*. See ``stored_keys``."""
        self._check()
        return await self._registry.count_stored(prefix)

    def stats(self) -> Stats:
        """What the manager does now; costs a look at each live agent."""
        return stats(self._registry)

    def inspect(self, key: str) -> Inspection:
        """What the manager knows of one key, live or not."""
        return inspect(self._registry, key)

    # ------------------------------------------------------------ what the lives ask for

    def _expire(self, server: AgentServer[A]) -> None:
        if server.is_idle() and not server.leave_if_clean():
            self._home.spawn(server.hibernate())
        # else: whoever is there touches it on leaving

    def _remove(self, server: AgentServer[A]) -> None:
        if self._registry.servers.get(server.key) is server:
            del self._registry.servers[server.key]

    def _report(self, key: str, error: BaseException, doing: str) -> None:
        """A failure that no caller waits for goes where asyncio's own do: never to nobody."""
        message = f"overwinter: agent {self._kind.name} {key!r}: {doing}"
        assert self._door.loop is not None
        self._door.loop.call_exception_handler(
            {"message": message, "exception": error, "agent": self._kind.name, "key": key}
        )


def _unknown_way(missing: object) -> ValueError:
    return ValueError(f'missing must be "create" or "raise", not {missing!r}')


async def close_together(managers: list[InstanceManager[Any]], deadline: float) -> None:
    """Close managers whose agents may call each other. Cancelled, it goes on closing; called again, it waits for it."""
    todo = [manager for manager in managers if manager._door.close_task is None]
    tasks = [manager._door.close_task for manager in managers if manager._door.close_task is not None]
    if todo:
        task = asyncio.Task(_close(todo, deadline))  # not by the loop's factory: see Home.spawn
        CLOSING.add(task)
        for manager in todo:
            manager._door.closing, manager._door.close_task = True, task  # intake ends now, not when the task starts
        tasks.insert(0, task)  # what it fails with nobody was told yet
    if tasks:
        await asyncio.wait(tasks)
    for closing in tasks:
        closing.result()


async def _close(managers: list[InstanceManager[Any]], deadline: float) -> None:
    error: Exception | None = await close_lives(
        [manager._registry for manager in managers], managers[0]._home.terms.clock, deadline
    )
    for manager in managers:
        try:
            await manager._let_go_of_store()
        except Exception as failure:  # noqa: BLE001  # the others are let go of all the same
            if error is None:
                error = failure
            else:
                error.add_note(f"and its store failed to close: {type(failure).__name__}")
    if error is not None:
        raise error
