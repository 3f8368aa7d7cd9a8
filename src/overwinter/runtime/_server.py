"""One life: how an agent comes alive, and how it leaves.

What it does in between is the performer's business; which other agents live, the registry's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from ..agent import Agent
from ..agent._base import KEY
from ..errors import (
    AgentDeletedError,
    AgentNotFoundError,
    AgentStateError,
    ClosedError,
    OutcomeUnknownError,
    OutsideTurnError,
    OverwinterError,
    RevisionConflictError,
    ThawError,
    TurnCancelledError,
)
from ..stores.base import Expect
from ._gate import Effect
from ._home import ABORT_GRACE, Home, Retired, all_done
from ._lifecycle import Event, State, after
from ._performer import Performer

__all__ = ["AgentServer"]

A = TypeVar("A", bound=Agent)

PLAIN = (True, "create")  # the terms on which calls ask: no initial state, and it may be missing


class AgentServer(Performer[A]):
    """One life of one agent."""

    __slots__ = ("_placed", "asked", "gone", "started")

    def __init__(self, home: Home[A], key: str, asked: tuple[bool, str]) -> None:
        super().__init__(home, key)
        loop = asyncio.get_running_loop()
        self.asked = asked
        """On what terms it was asked for first: without an initial state, and whether it may be missing."""
        self.started: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._placed = False
        self.turns.hold()  # calls queue from the first moment, and so keep their order

    # ------------------------------------------------------------ coming alive

    async def start(
        self, initial: Mapping[str, Any] | A | None, missing: str, after_life: asyncio.Future[None] | None
    ) -> None:
        """Thaw, or start fresh if, and only if, the store said *absent*. The outcome is in ``started``."""
        try:
            if after_life is not None:
                await asyncio.shield(after_life)
            if self.home.room is not None:
                await self.home.room.enter(self._who)
                self._placed = True
            changed = await self._load(initial, missing)
            effects = await self._on_start()
            body = self.home.keeper.encode(self.agent, self.ledger.extras)
            if changed or body != self.ledger.cur_body:
                self.ledger.advance(body)
            self.ledger.when_durable(self.ledger.cur, effects)
        except BaseException as error:  # it goes to everybody who waits
            self._failed_to_start(self._start_error(error))
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self.state = after(self.state, Event.STARTED)
            self.home.failures.forget(self.key)
            self.started.set_result(None)
            self.turns.unhold()
            self.watch()

    def _start_error(self, error: BaseException) -> OverwinterError:
        if isinstance(error, OverwinterError):
            return error
        if isinstance(error, asyncio.CancelledError) and self.home.closed:
            return ClosedError(f"{self._who}: the manager was closed while it came alive")
        found = ThawError(f"{self._who}: it could not come alive ({type(error).__name__}); nothing was written")
        found.__cause__ = error
        return found

    def _failed_to_start(self, error: OverwinterError) -> None:
        self.state = after(self.state, Event.FAILED)
        if (
            type(error) is ThawError
        ):  # on_start or the store; what a record or a caller gets wrong costs little to find again
            self.home.failures.note(self.key, self.home.terms.clock.monotonic(), error)
        plain = self.asked == PLAIN  # others' terms say nothing about calls
        self.turns.evict(lambda: error.again() if plain else Retired())
        self._end()
        self.started.set_exception(error)
        self.started.exception()  # whoever waits has it; with nobody left it is no news

    async def alive(self) -> None:
        if self.state is State.THAWING:
            try:
                await asyncio.shield(self.started)
            except OverwinterError as error:
                if self.asked == PLAIN:
                    raise error.again() from error.__cause__
        if self.state is not State.LIVE:
            raise Retired

    async def _load(self, initial: Mapping[str, Any] | A | None, missing: str) -> bool:
        """Make the agent; return whether it has something that is not stored yet."""
        home, ledger = self.home, self.ledger
        if home.opening is not None:
            await asyncio.shield(home.opening)
        try:
            loaded = await home.keeper.load(self.key)
        except ThawError:
            raise
        except Exception as error:  # a store of one's own may raise anything
            raise ThawError(f"{self._who}: the store can't be read, so nothing was started; try again") from error
        if loaded is not None:
            self.agent = loaded.agent
            ledger.thawed(loaded)
            home.thawed += 1
            return False
        if missing == "raise":
            raise AgentNotFoundError(
                f'{self._who}: nothing is stored under this key; missing="create" starts a fresh agent'
            )
        self.agent = home.kind.schema.fresh(initial, self.key)
        vars(self.agent)[KEY] = self.key
        ledger.begin(home.keeper.encode(self.agent))
        home.created += 1
        return initial is not None

    async def _on_start(self) -> list[Effect]:
        kind, agent = self.home.kind, self.agent
        effects: list[Effect] = []
        if kind.starts:
            try:
                effects = await self.as_turn(
                    agent.on_start(self.home.context) if kind.takes_context else agent.on_start()
                )
            except Exception as error:
                raise ThawError(
                    f"{self._who}: on_start raised {type(error).__name__}, so it was not started"
                ) from error
        self._settable = kind.settable.union(agent.__dict__)
        return effects

    # ------------------------------------------------------------ leaving

    async def hibernate(self) -> None:
        """Store and end, unless somebody comes meanwhile: the way of an idle agent."""
        if not self.is_idle() or not self.turns.try_enter(False):
            return
        try:
            self._put_aside_strays()
        finally:
            self.turns.leave(False)
        try:
            await self.ledger.persist()
            if self.ledger.clean and self.is_idle() and self.turns.try_enter(False):
                await self._leave()
        except OverwinterError as error:
            self.last_error = type(error)
            if self.state is State.LIVE:
                self.watch()
                self.home.report(self.key, error, "hibernation failed; the agent stays live and dirty")

    async def stop(self) -> None:
        """Store and end, whoever holds it.

        Raises:
            StoreError: it could not be stored, and stays live.
        """
        if not self.turns.try_enter(False):
            await self.turns.enter(False)
        try:
            self._put_aside_strays()
            await self.ledger.persist()
        except BaseException:
            self.turns.leave(False)
            self.watch()
            raise
        await self._leave()

    def _put_aside_strays(self) -> None:
        """In a turn of ours: keep what was changed outside a turn, and say so; what can't be kept is undone."""
        before = self.ledger.cur
        if self._broken or self.state is not State.LIVE:
            return
        try:
            self._seal()
        except OverwinterError as error:
            self._restore(self.ledger.cur_body)
            self.home.report(self.key, error, "state was changed outside a turn, and could not be kept")
        if self.ledger.cur != before:
            why = f"{self._who}: state was changed outside a turn: change it only inside the agent's own calls"
            self.home.report(self.key, OutsideTurnError(why), "state was changed outside a turn; it is kept")

    async def _leave(self) -> None:
        """End a life that is stored, and whose turn is ours."""
        self.state = after(self.state, Event.LEAVING)
        self.turns.evict(Retired)
        if not await self.emptied():  # interleaved calls, which hold no turn
            for turn in self.running:
                turn.abort(TurnCancelledError(f"{self._who}: it was ended, for the agent leaves"), doomed=False)
            await self.emptied()
        effects = await self._on_stop()
        if effects is not None:
            try:
                self._seal()
                await self.ledger.persist()
                self.ledger.when_durable(self.ledger.cur, effects)
            except OverwinterError as error:
                if not self.ledger.lost and not isinstance(error, AgentStateError):
                    self.last_error = type(error)
                    await self._revive()
                    raise
                self.home.report(self.key, error, "what on_stop changed could not be kept")
        self.state = after(self.state, Event.LEFT)
        self.home.hibernated += 1
        self._end()

    async def _revive(self) -> None:
        """Back to life from the bytes that could not be stored: the object that was stopped is done with."""
        try:
            await self._rebuild()
        except OverwinterError as error:
            self._broken = True
            self.home.report(self.key, error, "it could not come back to life; the next call tries again")
        self.state = after(self.state, Event.KEPT)
        left, self.gone = self.gone, asyncio.get_running_loop().create_future()
        left.set_result(None)  # who waits for the end looks again
        self.turns.leave(False)
        self.watch()

    async def _rebuild(self) -> None:
        self.agent = self.home.kind.schema.copy(self.ledger.cur_body, self.ledger.extras)
        vars(self.agent)[KEY] = self.key
        effects = await self._on_start()
        self._broken = False
        self._seal()
        self.ledger.when_durable(self.ledger.cur, effects)

    async def _on_stop(self) -> list[Effect] | None:
        """Run ``on_stop``, if the class has one, within its time; return what it told others if it ended well."""
        if not self.home.kind.stops:
            return None
        clock = self.home.terms.clock
        task: asyncio.Task[list[Effect]] = self.home.spawn(self.as_turn(self.agent.on_stop()))
        done = await all_done(clock, {task}, clock.monotonic() + ABORT_GRACE)
        if not done:
            task.cancel()
            done = await all_done(clock, {task}, clock.monotonic() + ABORT_GRACE)
        error = (
            task.exception()
            if done and not task.cancelled()
            else TimeoutError(f"on_stop took more than {ABORT_GRACE:g} s")
        )
        if error is None:
            return task.result()
        self.home.report(self.key, error, "on_stop failed")
        return None

    def _end(self) -> None:
        if self.home.idle is not None:
            self.home.idle.forget(self)
        self.home.remove(self)
        if self._placed and self.home.room is not None:
            self._placed = False
            self.home.room.leave()
        self.turns.evict(Retired)
        if not self.gone.done():
            self.gone.set_result(None)

    def lose(self, error: OverwinterError | None) -> None:
        """Drop this copy: somebody else owns the agent. Calls that have not begun go to the next life."""
        self.ledger.lost = True
        if self.state not in (State.LIVE, State.FREEZING):
            return
        was, self.state = self.state, after(self.state, Event.LOST)
        if error is not None:
            self.last_error = type(error)
            self.home.superseded += 1
            if not self.ledger.gated and not self.ledger.clean:
                self.home.report(self.key, error, "acknowledged in memory and superseded before it was stored")
        if self.home.idle is not None:
            self.home.idle.forget(self)
        self.turns.hold()
        self.turns.evict(Retired)
        for turn in self.running:
            turn.abort(self.ledger.superseded())
        if was is State.LIVE:
            self.home.spawn(self._bury())

    async def _bury(self) -> None:
        if not await self.emptied():
            late = TimeoutError(f"a call did not end within {ABORT_GRACE:g} s")
            self.home.report(self.key, late, "a superseded call was left behind")
        await self._on_stop()
        self.state = after(self.state, Event.LEFT)
        self._end()

    async def delete(self) -> None:
        """End without saving, and delete what is stored.

        Raises:
            StoreError: it could not be deleted, and stays live.
        """
        if not self.turns.try_enter(False):
            await self.turns.enter(False)
        ledger, store = self.ledger, self.home.keeper.store
        try:
            await ledger.settle()
            ledger.paused = True  # a save() now would put it back
            if store is not None and ledger.revision is not Expect.ABSENT:
                await store.in_time(store.delete(ledger.store_key, expected=ledger.revision), OutcomeUnknownError)
        except RevisionConflictError:
            error = ledger.superseded()
            self.lose(error)
            ledger.abandon(ledger.superseded)
            self.turns.leave(False)
            raise error from None
        except BaseException:
            ledger.resume()
            self.turns.leave(False)
            self.watch()
            raise
        if self.state is not State.LIVE:  # somebody else's write came first, and its burial is under way
            self.turns.leave(False)
            raise Retired
        self.state = after(self.state, Event.LOST)
        deleted = partial(AgentDeletedError, f"{self._who} was deleted before this call was done")
        ledger.abandon(deleted)
        self.turns.evict(deleted)
        await self._on_stop()
        self.state = after(self.state, Event.LEFT)
        self._end()
