"""An agent in memory and its turns: how a call begins, ends, and is undone.

It does not know how the agent came alive, nor how its life ends.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, TypeVar

from ..agent import Agent, Method
from ..agent._base import KEY
from ..errors import AgentStateError, OverwinterError, ReentrantCallError, StoreUnavailableError
from ..stores.base import Expect, Revision
from ._home import ABORT_GRACE, Effect, Home, Retired, all_done
from ._ledger import Ledger, MakeError
from ._lifecycle import Event, State, after
from ._turn import TURN, Consumer, Turn, current_turn, waits_for_itself
from ._turnstile import Turnstile

__all__ = ["Performer"]

A = TypeVar("A", bound=Agent)
Send = Callable[[Any], Awaitable[None]]


class Performer(Generic[A]):
    """Performs the calls of one agent, one turn at a time."""

    __slots__ = (
        "__weakref__",
        "_emptied",
        "_refusal",
        "_settable",
        "agent",
        "home",
        "key",
        "last_error",
        "ledger",
        "running",
        "state",
        "turns",
    )

    agent: A

    def __init__(self, home: Home[A], key: str) -> None:
        self.home, self.key = home, key
        self.state = after(State.COLD, Event.CLAIMED)
        self.turns = Turnstile()
        self.ledger = Ledger(self, home.keeper, home.terms, key)
        self.running: set[Turn] = set()
        self.last_error: BaseException | None = None
        self._refusal: MakeError | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._settable: frozenset[str] = frozenset()

    @abstractmethod
    def lose(self, error: OverwinterError | None) -> None:
        """Drop this copy: somebody else owns the agent."""

    async def run(self, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any], send: Send | None = None) -> Any:
        """Run one call as a turn, in the caller's task; return its result when what it made or saw is durable.

        A streaming call gives each of its items to *send*, likewise.

        Raises:
            Retired: this life ended before the call began.
        """
        readonly = method.readonly
        if not self.turns.try_enter(readonly):
            caller = current_turn()
            if caller is not None and waits_for_itself(caller, self):
                raise ReentrantCallError(
                    f"{self._who}: {method.name}() was called from inside a turn that it would wait for: "
                    "call the plain method (self.…) inside an agent, or tell() it"
                )
            await self.turns.enter(readonly)
        failure: BaseException | None = None
        result: Any = None
        turn: Turn | None = None
        try:
            await self._admit(readonly)
            turn, token = self._begin(readonly)
            try:
                body = method.function(self.agent, *args, **kwargs)
                result = await (body if send is None else self._send_items(turn, body, send))
                tag = self._finish(turn, readonly)
            except BaseException as error:  # noqa: BLE001  # it goes to the caller, below
                failure = self._failed(turn, error, readonly)
                tag = self.ledger.cur
            finally:
                TURN.reset(token)
                self._ended(turn)
        finally:
            self.turns.leave(readonly)
            self.watch()
        ledger = self.ledger
        if tag > ledger.dur and ledger.gated and not (turn.aborted or (failure and not isinstance(failure, Exception))):
            try:
                await ledger.wait(tag)
            except OverwinterError as error:
                raise error from failure or error.__cause__
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # no cycle of exception, traceback and frame
        return result

    async def _admit(self, readonly: bool) -> None:
        """See to it that a turn which is ours by now may really begin."""
        if self._refusal is not None:
            raise self._refusal()
        ledger = self.ledger
        if ledger.down and ledger.putting and not readonly:
            raise StoreUnavailableError(f"{self._who}: the store is unavailable; not called. Try again later")
        if self.home.shared and ledger.clean and self.home.keeper.store is not None:
            # While a put is outstanding its condition is the check; else the store must be asked, or a
            # write of another process would go unseen until our next one.
            head = await self._head()
            if (Expect.ABSENT if head is None else head) != ledger.revision and ledger.clean:
                self.lose(None)
                raise Retired

    async def _head(self) -> Revision | None:
        store = self.home.keeper.store
        assert store is not None
        try:
            return await store.head(self.ledger.store_key)
        except Exception as error:  # a store of one's own may raise anything
            raise StoreUnavailableError(f"{self._who}: the store can't be read; not called. Try again later") from error

    def _begin(self, readonly: bool) -> tuple[Turn, Any]:
        task = asyncio.current_task()
        assert task is not None
        turn = Turn(task, readonly=readonly, commit=self._commit)
        self.running.add(turn)
        return turn, TURN.set(turn)

    async def _send_items(self, turn: Turn, items: AsyncGenerator[Any, None], send: Send) -> None:
        """Each ``yield`` is a commit point: the item leaves when the version that it saw is durable."""
        consumer = turn.caller
        if consumer is not None:
            turn.wait_for(Consumer(consumer))  # it waits while nobody takes its items
        try:
            async for item in items:
                tag = self._finish(turn, turn.readonly)
                if self.ledger.gated and tag > self.ledger.dur:
                    await self.ledger.wait(tag)
                await send(item)
        finally:
            await items.aclose()

    async def _commit(self, turn: Turn) -> None:
        self._finish(turn, turn.readonly)
        if not turn.readonly:
            await self.ledger.persist()

    def _finish(self, turn: Turn, readonly: bool) -> int:
        """Make a version of what the turn changed, if it did; return the version that the reply depends on."""
        ledger = self.ledger
        if turn.aborted is not None:
            raise turn.aborted  # the body kept the cancellation to itself; what it made does not count
        if not readonly:
            self._seal()
        if turn.effects:
            ledger.when_durable(ledger.cur, turn.effects)
            turn.effects = None
        return ledger.cur

    def _seal(self) -> None:
        agent, ledger = self.agent, self.ledger
        if not agent.__dict__.keys() <= self._settable:
            stray = min(agent.__dict__.keys() - self._settable)
            raise AgentStateError(
                f"{self._who}: attribute {stray!r} was first set in a call, and would melt with this life: "
                f"annotate it in the class body to keep it ({stray}: int = 0), "
                f"or declare it {stray}: ... = transient(), or set it in on_start"
            )
        body = self.home.keeper.encode(agent, ledger.extras)
        if body != ledger.cur_body:
            ledger.advance(body)

    def _failed(self, turn: Turn, error: BaseException, readonly: bool) -> BaseException:
        """Undo a turn that raised; return what its caller gets."""
        if turn.aborted is not None:
            ours = turn.absorb_abort()
            if not isinstance(error, asyncio.CancelledError) or ours:
                error = turn.aborted
        elif isinstance(error, Exception):
            self.last_error = error
        if not readonly and not self.ledger.lost:
            self._restore(self.ledger.cur_body)
        return error

    def _restore(self, body: bytes) -> None:
        agent, kind = self.agent, self.home.kind
        for stray in agent.__dict__.keys() - self._settable:
            del vars(agent)[stray]
        kind.schema.restore(agent, body, self.ledger.extras)
        if kind.mends:
            try:
                agent.on_rollback()
            except Exception as error:  # noqa: BLE001  # the state is right; the hook must not hide why it was needed
                self.home.report(self.key, error, "on_rollback raised")

    def _ended(self, turn: Turn) -> None:
        turn.active = False
        self.running.discard(turn)
        if not self.running and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def as_turn(self, hook: Awaitable[object]) -> list[Effect]:
        """Run a hook as what it is: a turn, which may not wait for itself. Return what it told others."""
        task = asyncio.current_task()
        assert task is not None
        turn = Turn(task)
        self.running.add(turn)
        token = TURN.set(turn)
        try:
            await hook
        finally:
            TURN.reset(token)
            self._ended(turn)
        return turn.effects or []

    def copy(self) -> A:
        """A detached copy of the agent as the last turn left it."""
        copy = self.home.kind.schema.copy(self.ledger.cur_body)
        vars(copy)[KEY] = self.key
        return copy

    # ------------------------------------------------------------ who is there

    def is_idle(self) -> bool:
        """Nobody runs, waits or holds."""
        return self.state is State.LIVE and self.turns.free and self.key not in self.home.held

    def watch(self) -> None:
        if self.home.idle is not None and self.is_idle():
            self.home.idle.touch(self)

    async def abort(self, error: MakeError) -> bool:
        """Tell all running turns to end with *error*; return whether they did in time."""
        for turn in self.running:
            turn.abort(error())
        if not self.running:
            return True
        self._emptied = asyncio.get_running_loop().create_future()
        clock = self.home.terms.clock
        return await all_done(clock, {self._emptied}, clock.monotonic() + ABORT_GRACE)

    # ------------------------------------------------------------ what the ledger asks for

    def hold(self) -> None:
        self.turns.hold()

    def unhold(self) -> None:
        self.turns.unhold()

    def refuse(self, error: MakeError | None) -> None:
        """Turn callers away at once while *error* is the truth; ``None`` ends it."""
        self._refusal = error
        if error is not None:
            self.turns.evict(error)

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        return self.home.spawn(coroutine)

    def stored(self) -> None:
        self.watch()

    async def roll_back_to(self, body: bytes, error: MakeError) -> bool:
        """End what runs and restore *body*; ``False`` if what runs does not end, which ends this life."""
        if not await self.abort(error):
            self.lose(error())
            return False
        self._restore(body)
        return True

    @property
    def _who(self) -> str:
        return f"{self.home.kind.name} {self.key!r}"
