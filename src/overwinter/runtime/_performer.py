"""An agent in memory and its turns: how a call begins, ends, and is undone.

It does not know how the agent came alive, nor how its life ends.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from asyncio.events import _get_running_loop
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from .._clock import Timer
from ..agent import Agent, Method
from ..agent._base import KEY
from ..agent._receipts import Receipt, digest_of, make_receipt, reply_of
from ..errors import (
    AgentStateError,
    ClosedError,
    MailboxFullError,
    OutcomeUnknownError,
    OverwinterError,
    ReadonlyError,
    ReentrantCallError,
    StoreUnavailableError,
    SupersededError,
    TurnCancelledError,
    TurnTimeoutError,
)
from ..stores.base import Expect, Revision
from ._gate import Effect
from ._home import ABORT_GRACE, Evicted, Home, Retired, all_done
from ._idle import IdleMember
from ._ledger import Ledger, MakeError
from ._lifecycle import CLAIMED, COLD, LIVE, after
from ._turn import TURN, Host, Turn, Wait, current_turn, waits_for_itself
from ._turnstile import Turnstile

__all__ = ["BROKEN", "UNSTARTED", "WHOLE", "Consumer", "Performer"]

A = TypeVar("A", bound=Agent)

WHOLE, UNSTARTED, BROKEN = 0, 1, 2
"""What an agent's object is worth. From one that is not whole the next turn makes a new one, or gets an error.

UNSTARTED: what its ``on_start`` changed was undone. BROKEN: its state could not be restored after a failed call.
"""

Elsewhere = Callable[[str, Method, tuple[Any, ...], dict[str, Any], str | None], Awaitable[Any]]
"""Runs a call in whichever life of the agent has its turn next."""


class Consumer(Protocol):
    """Who takes the items of a streaming call."""

    waited_for: Wait
    """What the call waits for while nobody takes them."""

    async def send(self, item: Any) -> None: ...


class Performer(IdleMember, Generic[A]):
    """Performs the calls of one agent, one turn at a time."""

    __slots__ = (
        "_beside",
        "_broken",
        "_emptied",
        "_mending",
        "_refusal",
        "_rolling_back",
        "_settable",
        "_started_at",
        "_writer",
        "agent",
        "home",
        "key",
        "last_error",
        "ledger",
        "state",
        "turns",
    )

    agent: A

    def __init__(self, home: Home[A], key: str) -> None:
        super().__init__()
        self.home, self.key = home, key
        self.state = after(COLD, CLAIMED)
        self.turns = Turnstile()
        self.ledger = Ledger(self, home.terms)
        self._writer: Turn | None = None
        self._beside: set[Turn] | None = None  # readonly turns and hooks; most agents never have any
        self.last_error: type[BaseException] | None = None
        """Its type: the exception itself would keep its frames, and their locals, in memory."""
        self._broken = WHOLE
        self._started_at = 0  # the version that on_start made
        self._mending: asyncio.Task[None] | None = None
        self._refusal: MakeError | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._rolling_back = False
        self._settable: frozenset[str] = frozenset()

    @abstractmethod
    async def alive(self, method: Method) -> None:
        """Return when the agent is alive, and nothing that runs is being rolled back."""

    @abstractmethod
    def passed(self) -> None:
        """Tell those who wait for that to look again."""

    @abstractmethod
    async def _rebuild(self) -> None:
        """Make the agent anew from its last version. Of several callers one does; cancelled, it goes on."""

    @abstractmethod
    def lose(self, error: OverwinterError | None) -> None:
        """Drop this copy: somebody else owns the agent."""

    @property
    def running(self) -> Collection[Turn]:
        """The turns that run now."""
        writer = () if self._writer is None else (self._writer,)
        return (*writer, *self._beside) if self._beside else writer

    @property
    def holding(self) -> Collection[Turn]:
        """Those of them that a call to this agent waits for."""
        running = self.running
        if self._rolling_back or self.state is not LIVE:
            return running
        return [turn for turn in running if not turn.interleaved]

    @property
    def busy(self) -> bool:
        """Whether a turn runs, or one may begin that needs nobody's leave: what is made anew is started."""
        return self._writer is not None or bool(self._beside) or self._mending is not None

    async def run(
        self,
        method: Method,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wait: Wait | None = None,
        to: Consumer | None = None,
        call_id: str | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> Any:
        """Run one call as a turn, in the caller's task; return its result when what it made or saw is durable.

        A streaming call gives each of its items to *to*, likewise. *wait* is kept up to date for whoever waits.
        With *elsewhere*, calls that are more than one turn of this life are handed on to it.

        Raises:
            Retired: this life ended before the call began, and there is no *elsewhere*.
        """
        # The coroutine may be awaited long after it was made, and inside a turn although it was made outside.
        if elsewhere is not None and (self.state is not LIVE or method.interleave or current_turn() is not None):
            return await elsewhere(self.key, method, args, kwargs, call_id)
        if method.interleave:
            return await self._run_interleaved(method, args, kwargs, to, wait)
        readonly, home, turns, ledger = method.readonly, self.home, self.turns, self.ledger
        if self._refusal is not None or ledger.waiters or turns.waiting:
            self._check_bounds(method)
        turn: Turn | None = None
        version = 0
        failure: BaseException | None = None
        result: Any = None
        try:
            if not turns.try_enter(readonly):
                await self._queue(method)
            try:
                if ledger.lost or self.state is not LIVE:
                    raise Retired
                if self._broken or ledger.down or home.shared:
                    await self._admit(method)
                turn = self._begin(readonly, None if wait is None else current_turn())
                if readonly:
                    self._enlist(turn)
                else:
                    self._writer = turn
                token = TURN.set(turn)
                timer = None if home.turn_timeout is None else self._time(turn, f"{method.name}()")
                if wait is not None:
                    wait.on = turn
                try:
                    if to is None and call_id is None:  # nearly always: no coroutine of ours in between
                        result = await method.function(self.agent, *args, **kwargs)
                    else:
                        result = await self._body(turn, method, args, kwargs, to, call_id)
                    version = self._finish(turn)
                except BaseException as error:  # noqa: BLE001  # it goes to the caller, below
                    failure = self._failed(turn, error)
                    version = ledger.cur
                finally:
                    TURN.reset(token)
                    self._ended(turn)
                    if timer is not None:
                        timer.cancel()
                    if wait is not None:
                        wait.on = None  # what is left is the disk's business
            finally:
                turns.leave(readonly)
                if home.idle is not None:
                    self.watch()
        except Retired as retired:
            if elsewhere is None:
                raise
            if not isinstance(retired, Evicted):
                await asyncio.sleep(0)  # those who waited for their turn come first
        if turn is None:
            assert elsewhere is not None
            return await elsewhere(self.key, method, args, kwargs, call_id)
        if version > ledger.dur and ledger.gated and (failure is None or _waits(turn, failure)):
            since, aborted = turn.since, turn.aborted is not None
            try:
                admission = ledger.admission(version, turn.task.get_loop())
                turn = timer = None  # the fewer objects wait, the less the garbage collector has to look at
                try:
                    await admission
                except asyncio.CancelledError:
                    ledger.withdraw(admission)
                    raise
            except OverwinterError as error:
                raise self._final(error, since, aborted=aborted) from failure or error.__cause__
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # no cycle of exception, traceback and frame
        return result

    async def _queue(self, method: Method) -> None:
        """Wait for the turn."""
        if self.state is COLD:
            raise Retired  # a stream finds its agent first and comes a little later: nobody gives turns here any more
        self._check_waiting(method, (self,))
        try:
            await self.turns.enter(method.readonly)
        except Retired:
            raise Evicted from None
        except BaseException:
            self.watch()  # a caller that leaves just as it gets its turn may be the last one
            raise

    def _check_bounds(self, method: Method) -> None:
        if self._refusal is not None:
            raise self._refusal()
        if self.turns.waiting + self.ledger.waiting >= self.home.max_mailbox:
            raise self.mailbox_full(f"{method.name}()")

    def mailbox_full(self, what: str) -> MailboxFullError:
        return MailboxFullError(
            f"{self._who}: {self.home.max_mailbox:,} calls wait already, so {what} was not started: "
            "call it less often, or raise max_mailbox"
        )

    def _check_waiting(self, method: Method, hosts: Iterable[Host | Turn]) -> None:
        """Raise if one of *hosts*, which a call would wait for, waits for the turn that this is called in."""
        caller = current_turn()
        if caller is not None and any(waits_for_itself(caller, host) for host in hosts):
            raise ReentrantCallError(
                f"{self._who}: {method.name}() was called from inside a turn that it would wait for: "
                "call the plain method (self.…) inside an agent, or tell() it"
            )

    async def _body(
        self,
        turn: Turn,
        method: Method,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        to: Consumer | None,
        call_id: str | None,
    ) -> Any:
        """A call with a call id, or one that streams."""
        if call_id is not None and not method.readonly:
            return await self._run_once(turn, method, args, kwargs, call_id)
        body = method.function(self.agent, *args, **kwargs)
        if to is None:
            return await body
        turn.streams = True
        turn.wait_for(to.waited_for)
        return await (self._pass_on(turn, body, to) if method.provisional else self._send_items(turn, body, to))

    async def _run_once(
        self, turn: Turn, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any], call_id: str
    ) -> Any:
        """Give the reply of an earlier call with this id, or call, and keep a receipt with what it changed."""
        function = method.function
        digest = digest_of(function, args, kwargs)
        known = reply_of(self.ledger.cur_receipts, call_id, method.name, function, digest)
        if known is not None:
            return known[0]
        turn.receipt = (call_id, method.name, digest, None)  # goes with what it commits on the way
        result = await function(self.agent, *args, **kwargs)
        turn.receipt = make_receipt(call_id, method.name, function, digest, result)
        return result

    async def _run_interleaved(
        self, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any], to: Consumer | None, wait: Wait | None
    ) -> Any:
        """Run beside whatever runs. It sees unfinished state, so its reply is provisional and waits for nothing."""
        await self.alive(method)
        while self._broken:
            await self._mended(method)
            await self.alive(method)  # it may be rolled back by now
        turn = self._begin(True, current_turn())
        self._enlist(turn)
        token = TURN.set(turn)
        turn.interleaved, turn.streams = True, to is not None
        if to is not None:
            turn.wait_for(to.waited_for)
        if wait is not None:
            wait.on = turn
        timer = self._time(turn, f"{method.name}()")
        try:
            body = method.function(self.agent, *args, **kwargs)
            result = await (body if to is None else self._pass_on(turn, body, to))
            turn.check()
            if self._runs_alone(turn) and not self._settable.issuperset(self.agent.__dict__):
                raise self._stray()
        except BaseException as error:
            if self._runs_alone(turn):
                self._drop_strays()
            if turn.aborted is None:
                raise
            raise turn.outcome_of_abort(error) from None
        finally:
            TURN.reset(token)
            self._ended(turn)
            if timer is not None:
                timer.cancel()
            self.watch()
        for effect in turn.effects or ():
            effect()
        return result

    async def _pass_on(self, turn: Turn, items: AsyncGenerator[Any, None], to: Consumer) -> None:
        async with aclosing(items):
            async for item in items:
                turn.check()
                await to.send(item)

    def _time(self, turn: Turn, what: str) -> Timer | None:
        seconds = self.home.turn_timeout
        if seconds is None:
            return None
        clock = self.home.terms.clock
        late = partial(
            TurnTimeoutError,
            f"{self._who}: {what} took longer than turn_timeout={seconds:g} s; it was ended and rolled back",
        )
        return clock.call_at(clock.monotonic() + seconds, lambda: turn.abort(late(), doomed=False))

    def cancel(self) -> bool:
        """End the call that changes state, or else the readonly ones; interleaved ones only look on."""
        # Hooks have no performer.
        calls = [turn for turn in self.running if turn.performer is not None and not turn.interleaved]
        calls = [turn for turn in calls if not turn.readonly] or calls
        for turn in calls:
            turn.abort(TurnCancelledError(f"{self._who}: the call was cancelled and rolled back"), doomed=False)
        return bool(calls)

    async def _admit(self, method: Method) -> None:
        """See to it that a turn which is ours by now may really begin, where that takes more than a look."""
        ledger = self.ledger
        if ledger.down and ledger.putting and not method.readonly:
            raise StoreUnavailableError(f"{self._who}: the store is unavailable; not called. Try again later")
        while True:
            if self._broken:
                await self._mended(method)
            if not self.home.shared or self.home.keeper.store is None:
                return
            # The store must be asked, or a write of another process would go unseen until our next one.
            if not ledger.clean:
                if not ledger.gated:
                    return  # what is only in memory by now is no news to the store
                await self._when_stored()
                continue
            known = ledger.revision
            head = await self._head()
            if self.state is not LIVE:
                raise Retired
            if ledger.revision is not known:
                continue  # a put of ours went through meanwhile: the answer may be older than that
            if (Expect.ABSENT if head is None else head) != known and ledger.clean:
                self.lose(None)
                raise Retired
            if not self._broken:  # it may have become so in all that time
                return

    async def _when_stored(self) -> None:
        """Wait for the put that is outstanding: it says what was current when it was made, not what has come since.

        Raises:
            Retired: somebody else had written.
            StoreUnavailableError: it is not stored; it is tried again, or undone.
        """
        try:
            await self.ledger.wait(self.ledger.cur)
        except OverwinterError as error:
            if self.state is not LIVE:
                raise Retired from None
            if self._broken or not self.ledger.clean:
                raise StoreUnavailableError(
                    f"{self._who}: the store is unavailable; not called. Try again later"
                ) from error

    async def _mended(self, method: Method) -> None:
        """Return when there is a whole object.

        Raises:
            Retired: this life ended meanwhile.
            ReentrantCallError: the hook that makes it waits for this very call.
        """
        while self._broken:
            self._check_waiting(method, [turn for turn in self.running if turn.performer is None])  # hooks have none
            try:
                await self._rebuild()
            except OverwinterError:
                if self.state is LIVE and not self.ledger.lost:
                    raise
            if self.state is not LIVE or self.ledger.lost:
                raise Retired

    async def _head(self) -> Revision | None:
        store = self.home.keeper.store
        assert store is not None
        try:
            return await store.in_time(store.head(self.ledger.store_key))
        except Exception as error:  # a store of one's own may raise anything
            raise StoreUnavailableError(f"{self._who}: the store can't be read; not called. Try again later") from error

    def _begin(self, readonly: bool, caller: Turn | None) -> Turn:
        if self.home.winding_up:
            raise ClosedError(f"{self._who}: the manager closes and this call had not begun; it never will")
        loop = self.home.loop
        if _get_running_loop() is not loop:
            self.home.check_place()  # the coroutine was carried off to another loop
        task = asyncio.current_task(loop)
        assert task is not None
        return Turn(task, caller, readonly, self, self.ledger.cur)

    def _enlist(self, turn: Turn) -> None:
        if self._beside is None:
            self._beside = set()
        self._beside.add(turn)

    async def _send_items(self, turn: Turn, items: AsyncGenerator[Any, None], to: Consumer) -> None:
        """Each ``yield`` is a commit point: the item leaves when the version that it saw is durable."""
        async with aclosing(items):
            async for item in items:
                version = self._finish(turn)
                if self.ledger.gated and version > self.ledger.dur:
                    await self.ledger.wait(version)
                await to.send(item)

    async def commit(self, turn: Turn) -> None:
        self._finish(turn)
        if turn.readonly:
            return
        try:
            await self.ledger.persist()
        except StoreUnavailableError as error:
            if self.ledger.gated:
                raise
            raise OutcomeUnknownError(
                f"{self._who}: commit(): the store is unavailable; what the call changed so far stays, and is stored "
                "as soon as it can be: read the agent before repeating the call"
            ) from error

    def _finish(self, turn: Turn) -> int:
        """Make a version of what the turn changed, if it did; return the version that the reply depends on."""
        ledger = self.ledger
        if turn.aborted is not None or turn.streams:
            turn.check()
        if ledger.lost:
            raise ledger.lost_to(turn.since)
        if not turn.readonly:
            self._seal(turn.receipt, ledger.cur != turn.since)
        elif not self.turns.writing:
            if self.home.strict:
                self._check_unchanged()
            elif not self._settable.issuperset(self.agent.__dict__):
                raise self._stray()
        if turn.effects:
            ledger.when_durable(ledger.cur, turn.effects)
            turn.effects = None
        return ledger.cur

    def _check_unchanged(self) -> None:
        try:
            same = self._settable.issuperset(self.agent.__dict__)
            same = same and self.home.keeper.encode(self.agent, self.ledger.extras) == self.ledger.cur_body
        except OverwinterError:  # it made something that can't even be kept
            same = False
        if not same:
            self._restore(self.ledger.cur_body)
            raise ReadonlyError(f"{self._who}: a @readonly call changed the state; it was undone: take @readonly away")

    def _stray(self) -> AgentStateError:
        """The error of attributes that nobody declared; they are taken back."""
        stray = self._drop_strays()[0]
        return AgentStateError(
            f"{self._who}: attribute {stray!r} was first set in a call, and would melt with this life: "
            f"annotate it in the class body to keep it ({stray}: int = 0), "
            f"or declare it {stray}: ... = transient(), or set it in on_start"
        )

    def _runs_alone(self, turn: Turn) -> bool:
        """Whether what is there now and was not before is surely this turn's."""
        return not self.turns.writing and self._beside == {turn}

    def _drop_strays(self) -> list[str]:
        strays = sorted(self.agent.__dict__.keys() - self._settable)
        for stray in strays:
            del vars(self.agent)[stray]
        return strays

    def _seal(self, receipt: Receipt | None = None, changed: bool = False) -> None:
        agent, ledger = self.agent, self.ledger
        if not self._settable.issuperset(agent.__dict__):
            raise self._stray()
        body = self.home.keeper.encode(agent, ledger.extras)
        if body != ledger.cur_body or (receipt is not None and changed):
            ledger.advance(body, receipt)

    def _failed(self, turn: Turn, error: BaseException) -> BaseException:
        """Undo a turn that raised; return what its caller gets."""
        if turn.aborted is not None:
            error = turn.outcome_of_abort(error)
        elif isinstance(error, Exception):
            self.last_error = type(error)
        if turn.readonly:
            if self._runs_alone(turn):
                self._drop_strays()
        elif not self.ledger.lost:
            self._undo(turn, error)
        return self._final(error, turn.since)

    def _final(self, error: BaseException, since: int, *, aborted: bool = False) -> BaseException:
        """What a caller gets whose turn began at version *since*: what it committed or yielded counts as well.

        An error that another owner wrote may know of the last version alone.
        """
        if isinstance(error, SupersededError) and error.origin is self.ledger:
            return self.ledger.lost_to(since, aborted=aborted)
        return error

    def _undo(self, turn: Turn, error: BaseException) -> None:
        if self.home.keep_on_error and turn.aborted is None and isinstance(error, Exception):
            try:
                self._seal(turn.receipt, self.ledger.cur != turn.since)
            except OverwinterError as refused:  # what can't be kept can't be kept on an error either
                if type(refused) is not type(error):  # else that is what the caller is told
                    self.home.report(self.key, refused, "the state after a call that failed could not be kept")
            else:
                self.ledger.when_durable(self.ledger.cur, turn.effects or [])
                return
        self._restore(self.ledger.cur_body)

    def _restore(self, body: bytes) -> None:
        agent, kind = self.agent, self.home.kind
        self._drop_strays()
        try:
            kind.schema.restore(agent, body, self.ledger.extras)
        except BaseException as error:  # a load() of the class's own may raise anything
            self._broken = BROKEN
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self.home.report(self.key, error, "its state could not be restored after a call that failed")
            return
        if kind.mends:
            try:
                agent.on_rollback()
            except Exception as error:  # noqa: BLE001  # the state is right; the hook must not hide why it was needed
                self.home.report(self.key, error, "on_rollback raised")

    def _ended(self, turn: Turn) -> None:
        turn.active = False
        if turn is self._writer:
            self._writer = None
        elif self._beside is not None:
            self._beside.discard(turn)
        if self._emptied is not None:
            self._note_emptied()

    def _note_emptied(self) -> None:
        if self._emptied is not None and not self._emptied.done() and not self.busy:
            self._emptied.set_result(None)

    async def as_turn(self, hook: Callable[[], Awaitable[object]], timed: str = "") -> list[Effect]:
        """Run a hook as what it is: a turn, which may not wait for itself. Return what it told others.

        *timed* is its name, if ``turn_timeout`` holds for it too.
        """
        task = asyncio.current_task()
        assert task is not None
        turn = Turn(task, current_turn())
        self._enlist(turn)
        token = TURN.set(turn)
        timer = self._time(turn, timed) if timed else None
        try:
            await hook()
            turn.check()
        except BaseException as error:
            if turn.aborted is None:
                raise
            raise turn.outcome_of_abort(error) from None
        finally:
            TURN.reset(token)
            self._ended(turn)
            if timer is not None:
                timer.cancel()
        return turn.effects or []

    def copy(self) -> A:
        """A detached copy of the agent as the last turn left it."""
        copy = self.home.kind.schema.copy(self.ledger.cur_body)
        vars(copy)[KEY] = self.key
        return copy

    # ------------------------------------------------------------ who is there

    def is_idle(self) -> bool:
        """Nobody runs, waits or holds."""
        if self.state is not LIVE or self._writer is not None or self._beside or self._mending is not None:
            return False  # as busy says: this is asked after each call
        return self.turns.free and self.key not in self.home.held

    def watch(self) -> None:
        """Begin to wait for its idle timeout, if it is idle."""
        home = self.home
        if home.idle is not None and self.is_idle():
            home.idle.touch(self)
            if home.room is not None and home.room.wanted:
                home.room.make()

    async def abort(self, error: MakeError) -> bool:
        """Tell all running turns to end with *error*; return whether they did in time."""
        for turn in self.running:
            turn.abort(error())
        return await self.emptied()

    async def emptied(self) -> bool:
        """Wait until nothing runs; return whether that was so in time."""
        if not self.busy:
            return True
        if self._emptied is None or self._emptied.done():
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
        if self.home.idle is not None:
            self.watch()

    async def roll_back_to(self, body: bytes, error: MakeError) -> bool:
        """End what runs and restore *body*; ``False`` if what runs does not end, which ends this life."""
        self._rolling_back = True
        try:
            if not await self.abort(error):
                self.lose(error())
                return False
            self._restore(body)
            if self.ledger.dur < self._started_at and self._broken is WHOLE:
                self._broken = UNSTARTED
            return True
        finally:
            self._rolling_back = False
            self.passed()

    @property
    def _who(self) -> str:
        return f"{self.home.kind.name} {self.key!r}"


def _waits(turn: Turn, failure: BaseException) -> bool:
    """Whether a failure is held back at the gate; else it says so itself, or the caller is gone."""
    return not turn.doomed and isinstance(failure, Exception)
