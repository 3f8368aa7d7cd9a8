"""One life of an agent, and how it ends.

How it began is told in ``_arriving.py``, what it does in between in ``_performer.py``; which other agents live is the
registry's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from ..agent import Agent
from ..agent._base import KEY
from ..errors import (
    AgentDeletedError,
    AgentStateError,
    OutsideTurnError,
    OverwinterError,
    RevisionConflictError,
    SupersededError,
    TurnCancelledError,
)
from ._arriving import Arriving
from ._gate import Effect
from ._home import ABORT_GRACE, Retired, all_done
from ._ledger import not_told
from ._lifecycle import FREEZING, KEPT, LEAVING, LEFT, LIVE, LOST, after
from ._performer import BROKEN, UNSTARTED, WHOLE

__all__ = ["AgentServer"]

A = TypeVar("A", bound=Agent)


class AgentServer(Arriving[A]):
    """One life of one agent."""

    __slots__ = ()

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
            if self.ledger.clean and self.is_idle() and self.turns.try_enter(False) and not self._leave_now():
                await self._leave()
        except OverwinterError as error:
            self.last_error = type(error)
            if self.state is LIVE:
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
        if not self._leave_now():
            await self.home.see_through(self.key, "stop", self._leave())  # half a leave would be none

    @property
    def is_stuck(self) -> bool:
        """Whether it would have to be stored to leave, and that has just failed."""
        return self.ledger.down and (self.home.kind.stops or not self.ledger.clean)

    def leave_if_clean(self) -> bool:
        """Leave here and now, in no task, if nothing has to be waited for, stored or called; return whether it did."""
        if self.state is not LIVE or self.busy or self.home.kind.stops or self.ledger.cur > self.ledger.dur:
            return False
        if not self.turns.try_enter(False):
            return False
        try:
            self._put_aside_strays()
            left = self.ledger.cur == self.ledger.dur and self._leave_now()
        except BaseException:
            self.turns.leave(False)
            raise
        if not left:
            self.turns.leave(False)
        return left

    def _leave_now(self) -> bool:
        """``_leave``, where that needs no waiting; return whether it did."""
        if self.busy or self.home.kind.stops:
            return False
        self.state = after(self.state, LEAVING)
        self._left()
        return True

    def _left(self) -> None:
        self.state = after(self.state, LEFT)
        self.ledger.lost = True  # whatever of it was left behind
        self.home.hibernated += 1
        self._end()

    def _put_aside_strays(self) -> None:
        """In a turn of ours: keep what was changed outside a turn, and say so; what can't be kept is undone."""
        before = self.ledger.cur
        if self._broken or self.state is not LIVE:
            return
        agent, ledger = self.agent, self.ledger
        if agent.__dict__.keys() <= self._settable and self.home.kind.schema.unchanged(
            agent, ledger.cur_body, ledger.extras
        ):
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
        self.state = after(self.state, LEAVING)
        self.turns.evict(Retired)
        if not await self.emptied():  # interleaved calls, which hold no turn
            for turn in self.running:
                turn.abort(TurnCancelledError(f"{self._who}: it was ended, for the agent leaves"), doomed=False)
            await self.emptied()
        effects = await self._on_stop()
        try:
            if effects is not None:
                self._seal()
            await self.ledger.persist()  # what a save() began as this did, too
            self.ledger.when_durable(self.ledger.cur, effects or [])
        except OverwinterError as error:
            if not self.ledger.lost and not isinstance(error, AgentStateError):
                self.last_error = type(error)
                await self._revive()
                raise
            self.home.report(self.key, error, "what on_stop changed could not be kept")
        self._left()

    async def _revive(self) -> None:
        """Back to life from the bytes that could not be stored: the object that was stopped is done with."""
        try:
            await self._rebuild()
        except OverwinterError as error:
            self._broken = BROKEN
            if not self.ledger.lost:
                self.home.report(self.key, error, "it could not come back to life; the next call tries again")
        if self.ledger.lost:  # somebody else wrote it meanwhile
            self._left()
            return
        self.state = after(self.state, KEPT)
        self.passed()  # who waits for the end looks again
        self.turns.leave(False)
        self.watch()

    async def _rebuild(self) -> None:
        if self._mending is None:
            assert self.home.ground is not None
            self._mending = self.home.spawn(self._make_anew(), context=self.home.ground.copy())
            self._mending.add_done_callback(self._made_anew)
        mending = self._mending
        await asyncio.wait([mending])
        error = asyncio.CancelledError() if mending.cancelled() else mending.exception()
        if error is not None:
            found = self._start_error(error)
            raise found.again() from found.__cause__

    async def _make_anew(self) -> None:
        state = self.state
        if self._broken is UNSTARTED:
            await self._on_stop()  # for what its on_start opened
        if self.ledger.lost or self.state is not state:
            raise Retired
        self.agent = self.home.kind.schema.copy(self.ledger.cur_body, self.ledger.extras)
        vars(self.agent)[KEY] = self.key
        await self._start_up()
        self._broken = WHOLE

    def _made_anew(self, task: asyncio.Task[None]) -> None:
        self._mending = None
        if not task.cancelled():
            task.exception()  # it is for those who wait; if nobody does, the next call tries again
        self._note_emptied()
        self.watch()

    async def _on_stop(self) -> list[Effect] | None:
        """Run ``on_stop``, if the class has one, within its time; return what it told others if what it did counts."""
        unstarted = self._broken is UNSTARTED
        if unstarted:
            self._broken = BROKEN  # it is done with, however it ends
        elif self._broken:
            return None
        if not self.home.kind.stops:
            return None
        clock = self.home.terms.clock
        task: asyncio.Task[list[Effect]] = self.home.spawn(self.as_turn(self.agent.on_stop))
        task.add_done_callback(self._stopped)
        done = await all_done(clock, {task}, clock.monotonic() + ABORT_GRACE)
        if not done:
            task.cancel()
            done = await all_done(clock, {task}, clock.monotonic() + ABORT_GRACE)
        if not done or task.cancelled():
            self.home.report(self.key, TimeoutError(f"on_stop took more than {ABORT_GRACE:g} s"), "on_stop failed")
            return None
        return task.result() if task.exception() is None and not unstarted else None

    def _stopped(self, task: asyncio.Task[list[Effect]]) -> None:
        """Report what ``on_stop`` raised, also where nobody waits for it any more."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.home.report(self.key, error, "on_stop failed")

    def lose(self, error: OverwinterError | None) -> None:
        """Drop this copy: somebody else owns the agent. Calls that have not begun go to the next life."""
        self.ledger.lost = True
        if self.state not in (LIVE, FREEZING):
            return
        was, self.state = self.state, after(self.state, LOST)
        if error is not None:
            self.last_error = type(error)
            self.home.superseded += isinstance(error, SupersededError)  # or a body outlived its rollback
            if not self.ledger.gated and not self.ledger.clean:
                self.home.report(self.key, error, "acknowledged in memory and superseded before it was stored")
        if self.home.idle is not None:
            self.home.idle.forget(self)
        self.turns.hold()
        self.turns.evict(Retired)
        for turn in self.running:
            if error is not None and not isinstance(error, SupersededError):
                turn.abort(error.again())
            else:
                turn.abort(self.ledger.superseded() if turn.readonly else self.ledger.lost_to(turn.since))
        if was is LIVE:
            self.home.spawn(self._bury())

    async def _bury(self) -> None:
        if not await self.emptied():
            late = TimeoutError(f"a call did not end within {ABORT_GRACE:g} s")
            self.home.report(self.key, late, "a superseded call was left behind")
        await self._on_stop()
        self.state = after(self.state, LEFT)
        self._end()

    async def delete(self, delete_rest: Callable[[str], Awaitable[None]]) -> None:
        """End without saving, and delete what is stored; the next life begins when *delete_rest* is done, too.

        It gets the store key that was deleted, empty if there was no record.

        Raises:
            StoreError: it could not be deleted, and stays live.
        """
        if not self.turns.try_enter(False):
            await self.turns.enter(False)
        ledger = self.ledger
        try:
            await ledger.settle()
            deleted = await ledger.delete()
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
        if self.state is not LIVE:  # somebody else's write came first, and its burial is under way
            self.turns.leave(False)
            raise Retired
        self.state = after(self.state, LOST)
        why = partial(AgentDeletedError, f"{self._who} was deleted before this call was done")
        ledger.abandon(why)
        self.turns.evict(why)
        try:
            await self.abort(why)  # interleaved calls, which hold no turn
            await self._on_stop()
            await delete_rest(deleted)
        except asyncio.CancelledError:
            if deleted and self.home.closed:
                raise not_told(self._who) from None
            raise
        finally:
            self.state = after(self.state, LEFT)
            self._end()
