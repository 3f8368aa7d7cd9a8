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
    OutsideTurnError,
    OverwinterError,
    RevisionConflictError,
    ThawError,
)
from ..stores.base import Expect
from ._home import ABORT_GRACE, Effect, Home, Retired, all_done
from ._lifecycle import Event, State, after
from ._performer import Performer

__all__ = ["AgentServer"]

A = TypeVar("A", bound=Agent)


class AgentServer(Performer[A]):
    """One life of one agent."""

    __slots__ = ("asked", "gone", "started")

    def __init__(self, home: Home[A], key: str, asked: tuple[bool, str]) -> None:
        super().__init__(home, key)
        loop = asyncio.get_running_loop()
        self.asked = asked
        """On what terms it was asked for first: without an initial state, and whether it may be missing."""
        self.started: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()

    # ------------------------------------------------------------ coming alive

    async def start(self, initial: Mapping[str, Any] | A | None, missing: str) -> None:
        """Thaw, or start fresh if, and only if, the store said *absent*. The outcome is in ``started``."""
        try:
            changed = await self._load(initial, missing)
            effects = await self._on_start()
            body = self.home.keeper.encode(self.agent, self.ledger.extras)
            self.state = after(self.state, Event.STARTED)
            if changed or body != self.ledger.cur_body:
                self.ledger.advance(body)
            self.ledger.when_durable(self.ledger.cur, effects)
            self.watch()
            self.started.set_result(None)
        except BaseException as error:
            self.state = after(self.state, Event.FAILED)
            self._end()
            self.started.set_exception(error)
            self.started.exception()  # whoever waits has it; with nobody left it is no news
            if not isinstance(error, Exception):
                raise

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
            ledger.thawed(loaded.store_key, loaded.revision, loaded.sequence, loaded.extras)
            ledger.begin(loaded.body)
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
        self._put_aside_strays()
        self.turns.leave(False)
        try:
            await self.ledger.persist()
        except OverwinterError as error:
            self.last_error = error
            if self.state is State.LIVE:
                self.watch()
                self.home.report(self.key, error, "hibernation failed; the agent stays live and dirty")
            return
        if self.ledger.clean and self.is_idle() and self.turns.try_enter(False):
            await self._leave()

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
            raise
        await self._leave()

    def _put_aside_strays(self) -> None:
        """In a turn of ours: keep what was changed outside a turn, and say so; what can't be kept is undone."""
        before = self.ledger.cur
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
        effects = await self._on_stop()
        if effects is not None:
            try:
                self._seal()
                await self.ledger.persist()
                self.ledger.when_durable(self.ledger.cur, effects)
            except OverwinterError as error:
                if not self.ledger.lost and not isinstance(error, AgentStateError):
                    self.last_error = error
                    self.home.report(self.key, error, "what on_stop changed could not be stored; the agent lives on")
                    await self._revive()
                    return
                self.home.report(self.key, error, "what on_stop changed could not be kept")
        self.state = after(self.state, Event.LEFT)
        self.home.hibernated += 1
        self._end()

    async def _revive(self) -> None:
        """Back to life from the bytes that could not be stored, as a new object: the old one was stopped."""
        self.agent = self.home.kind.schema.copy(self.ledger.cur_body)
        vars(self.agent)[KEY] = self.key
        try:
            await self._on_start()
        except ThawError as error:
            self.home.report(self.key, error, "on_start raised")
        self.state = after(self.state, Event.KEPT)
        self.turns.leave(False)
        self.watch()

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
        self.turns.evict(Retired)
        if not self.gone.done():
            self.gone.set_result(None)

    def lose(self, error: OverwinterError | None) -> None:
        """Drop this copy: somebody else owns the agent. Calls that have not begun go to the next life."""
        self.ledger.lost = True
        was, self.state = self.state, after(self.state, Event.LOST)
        if error is not None:
            self.last_error = error
            self.home.superseded += 1
            if not self.ledger.gated and not self.ledger.clean:
                self.home.report(self.key, error, "acknowledged in memory and superseded before it was stored")
        if self.home.idle is not None:
            self.home.idle.forget(self)
        self.turns.evict(Retired)
        if was is State.LIVE:
            self.home.spawn(self._bury())

    async def _bury(self) -> None:
        self.turns.hold()
        if not await self.abort(self.ledger.superseded):
            self.home.report(
                self.key,
                TimeoutError(f"a call did not end within {ABORT_GRACE:g} s"),
                "a superseded call was left behind",
            )
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
        deleted = partial(AgentDeletedError, f"{self._who} was deleted before this call was done")
        try:
            await ledger.settle()
            self.turns.evict(deleted)
            if store is not None and ledger.revision is not Expect.ABSENT:
                await store.delete(ledger.store_key, expected=ledger.revision)
        except RevisionConflictError:
            self.turns.leave(False)
            error = ledger.superseded()
            self.lose(error)
            raise error from None
        except BaseException:
            self.turns.leave(False)
            raise
        self.state = after(self.state, Event.LOST)
        ledger.abandon(deleted)
        self.turns.evict(deleted)
        await self._on_stop()
        self.state = after(self.state, Event.LEFT)
        self._end()
