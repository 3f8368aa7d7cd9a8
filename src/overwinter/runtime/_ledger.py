"""The versions of one agent: which is current, which is being stored, which is durable, and who waits for what.

It knows the store and the rules of its failures; not what a call is: a version is bytes and a number.
``dur <= sub <= cur``; what is above ``dur`` is unacknowledged.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from .._clock import Clock, Timer
from ..agent._receipts import Receipt, Receipts, add_receipt
from ..errors import (
    OutcomeUnknownError,
    OverwinterError,
    RevisionConflictError,
    StoreUnavailableError,
    SupersededError,
)
from ..persistence import Keeper, Loaded, new_revision
from ..stores.base import Expect, Revision
from ._gate import Effect, Gate
from ._room import PutBudget

__all__ = ["Ledger", "LedgerHost", "Terms", "not_told"]

FIRST_DELAY, LONGEST_DELAY = 0.02, 2.0  # seconds between tries; doubled each time, with jitter

_NO_EXTRAS: Mapping[str, Any] = {}
"""What all agents share that have none."""

MakeError = Callable[[], OverwinterError]

Flight: TypeAlias = tuple[int, bytes, Receipts, Revision, int, Callable[[OverwinterError | None], object] | None]
"""The put that is outstanding: its version, with body and receipts; its write id; its bytes; what follows, if that is
not what follows a first try. A tuple, for there is one per put.
"""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms versions are kept, and by whom."""

    keeper: Keeper[Any]
    gated: bool
    """Whether each version is put at once and waited for (``durability="call"``)."""
    interval: float | None
    """Seconds after which a change is put at the latest (``durability=Interval(…)``)."""
    patience: float
    """Seconds that a failing store is tried before callers are told."""
    clock: Clock
    budget: PutBudget


class LedgerHost(Protocol):
    """What the ledger asks of the agent's server."""

    @property
    def key(self) -> str: ...
    def hold(self) -> None: ...
    def unhold(self) -> None: ...
    async def roll_back_to(self, body: bytes, error: MakeError) -> bool: ...
    def refuse(self, error: MakeError | None) -> None: ...
    def lose(self, error: OverwinterError) -> None: ...
    def spawn(self, coroutine: Any) -> asyncio.Task[Any]: ...
    def stored(self) -> None: ...


class _Trouble:
    """What is known of a store that failed, until it works again."""

    __slots__ = ("attempted", "down", "error", "unknown_to")

    def __init__(self) -> None:
        self.error: type[BaseException] | None = None
        self.attempted: frozenset[Revision] = frozenset()
        """The write ids of ours that may be stored, or come to be."""
        self.unknown_to = 0
        """The last version of which nobody knows whether it is stored."""
        self.down = False


class Ledger(Gate):
    """One agent's versions, and the gate that they open. All methods but the awaited ones are immediate."""

    __slots__ = (
        "_deleting",
        "_flight",
        "_held_back",
        "_host",
        "_quiet",
        "_recovery",
        "_sequence",
        "_since",
        "_terms",
        "_timer",
        "_trouble",
        "cur",
        "cur_body",
        "cur_receipts",
        "dirty_since",
        "dur",
        "dur_body",
        "dur_receipts",
        "extras",
        "gated",
        "lost",
        "owed",
        "paused",
        "revision",
        "store_key",
    )

    def __init__(self, host: LedgerHost, terms: Terms) -> None:
        super().__init__()
        self._host, self._terms, self.gated = host, terms, terms.gated
        self.cur = self.dur = 0
        self.cur_body = self.dur_body = b""
        self._flight: Flight | None = None
        self.cur_receipts: Receipts = ()
        self.dur_receipts: Receipts = ()
        self.revision: Revision | Expect = Expect.ABSENT
        self._sequence = 0
        self.store_key = "" if terms.keeper.store is None else terms.keeper.store_key(host.key)
        self.extras: Mapping[str, Any] = _NO_EXTRAS
        self._trouble: _Trouble | None = None
        self._quiet: asyncio.Future[None] | None = None  # for who waits for the put's outcome, and no more
        self._timer: Timer | None = None
        self._recovery: asyncio.Task[Any] | None = None
        self.dirty_since: float | None = None
        self._since: float | None = None  # when the first change after the version that is being put was made
        self.lost = False
        self.owed = False
        """Whether what it came alive with is stored nowhere, and can't be had again: an ``initial`` state, a new id."""
        self._held_back = False  # waits until there are fewer bytes on their way
        self.paused = False
        """While it is being deleted: nothing is put."""
        self._deleting = False  # the store was asked, and did not refuse

    def begin(self, body: bytes) -> None:
        """Set the version that the agent came alive with, the durable one if it was thawed."""
        self.cur_body = self.dur_body = body

    def thawed(self, loaded: Loaded[Any]) -> None:
        """Set where the agent stands in its record's line of revisions."""
        self.store_key, self.revision, self._sequence = loaded.store_key, loaded.revision, loaded.sequence
        self.extras, self.cur_receipts, self.dur_receipts = loaded.extras, loaded.receipts, loaded.receipts
        self.begin(loaded.body)

    @property
    def waiting(self) -> int:
        """How many wait for a version to be durable."""
        return len(self.waiters)

    @property
    def clean(self) -> bool:
        return self.cur == self.dur

    @property
    def putting(self) -> bool:
        """A put is outstanding, or being retried or resolved."""
        return self._flight is not None or self._recovery is not None

    @property
    def unknown(self) -> bool:
        """Whether some put of ours has an outcome that nobody knows yet."""
        return self._unknown_to > 0

    @property
    def _unknown_to(self) -> int:
        return 0 if self._trouble is None else self._trouble.unknown_to

    @property
    def down(self) -> bool:
        """The store refused for longer than our patience: a write is tried once and fails fast."""
        return self._trouble is not None and self._trouble.down

    @property
    def last_error(self) -> type[BaseException] | None:
        """What the store failed with last, until it works again."""
        return None if self._trouble is None else self._trouble.error

    @property
    def undecided(self) -> bool:
        """Whether something above ``dur`` may be stored or come to be, or what is stored may be deleted."""
        return self._unknown_to > 0 or self._flight is not None or self._deleting

    # ------------------------------------------------------------ versions

    def advance(self, body: bytes, receipt: Receipt | None = None) -> None:
        """Make a new current version, with the receipt of the call that made it, if its caller wants one."""
        self.cur += 1
        self.cur_body = body
        if receipt is not None:
            self.cur_receipts = add_receipt(self.cur_receipts, receipt)
        if self._terms.keeper.store is None:
            self.dur, self.dur_body, self.dur_receipts = self.cur, body, self.cur_receipts
            return
        if self.dirty_since is None:
            self.dirty_since = self._terms.clock.time()
        if self._flight is not None and self._since is None:
            self._since = self._terms.clock.time()
        if self.gated:
            self.flush()
        else:
            self._put_later()

    def _put_later(self) -> None:
        clock, interval = self._terms.clock, self._terms.interval
        if interval is not None and self._timer is None and not self.clean and not self.lost:
            since = self.dirty_since if self._flight is None else self._since
            passed = 0.0 if since is None else max(clock.time() - since, 0.0)
            if passed < interval:
                self._timer = clock.call_at(clock.monotonic() + interval - passed, self._on_timer)
            else:
                self.flush()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        self.flush()

    def flush(self) -> None:
        """Put the current version unless it is durable, or a put is outstanding already."""
        if self._flight is not None or self._recovery is not None or self.cur == self.dur:
            return
        if self.lost or self.paused or self._held_back:
            return
        budget = self._terms.budget
        if budget.left > 0:
            self._submit()
        else:
            self._held_back = True
            budget.wait(self._flush_now)

    def _flush_now(self) -> None:
        self._held_back = False
        self.flush()

    def _submit(self, then: Callable[[OverwinterError | None], object] | None = None) -> None:
        """Put the current version. When its outcome is booked, *then* is called with it, never before this returns.

        Without *then* it is a first try.
        """
        keeper, body, receipts, revision = self._terms.keeper, self.cur_body, self.cur_receipts, new_revision()
        store, size = keeper.store, 0
        assert store is not None
        self._since = None
        try:
            data = keeper.record(self._host.key, body, self._sequence + 1, revision, self.extras, receipts)
            size = len(data)
            self._terms.budget.left -= size
            store.begin_put(self.store_key, data, revision=revision, expected=self.revision, done=self._done)
        except Exception as error:  # noqa: BLE001  # closed, forked, or a submit() of somebody's own
            asyncio.get_running_loop().call_soon(self._done, error)
        self._flight = (self.cur, body, receipts, revision, size, then)

    def _done(self, raised: BaseException | None) -> None:
        """Book the outcome of a put; what follows from it is for whoever submitted it."""
        assert self._flight is not None
        version, body, receipts, revision, size, then = self._flight
        self._flight = None
        budget = self._terms.budget
        budget.left += size
        if budget.waiting:
            budget.let_go()
        error = None if raised is None else _outcome(raised)
        if error is None:
            self.revision, self.dur, self.dur_body, self.dur_receipts = revision, version, body, receipts
            self._sequence += 1
            self.owed = False
            self.dirty_since = self._since
            if self.cur == version:
                self._stop_timer()
            if self._trouble is not None:  # it is over
                self._trouble = None
                self._host.refuse(None)
        else:
            if self._trouble is None:
                self._trouble = _Trouble()
            self._trouble.error = type(error)
            if isinstance(error, OutcomeUnknownError):
                self._trouble.unknown_to = version  # versions only grow while one of them is unknown
                self._trouble.attempted |= {revision}
        if self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
        if then is not None:
            then(error)
        elif self.lost:  # it ended meanwhile, and nobody else tells who still waits
            self.release(self.dur)
            if error is not None:
                why = error
                self.fail(lambda _: why.again())
        elif error is None:
            self._after_success()
        else:
            self._first_try_failed(error)

    def _first_try_failed(self, error: OverwinterError) -> None:
        if isinstance(error, RevisionConflictError):
            self._superseded()
        else:
            if self.gated:
                self._host.hold()
            self._recovery = self._host.spawn(self._recover(error))
            self._recovery.add_done_callback(self._recovery_ended)

    def _after_success(self) -> None:
        if self.waiters:
            self.release(self.dur)
        if self.cur != self.dur:
            if self.gated or self.waiters:
                self.flush()
            else:
                self._put_later()
        self._host.stored()

    # ------------------------------------------------------------ the gate

    async def wait(self, tag: int) -> None:
        """Return when version *tag* is durable. Cancelled, it only stops waiting.

        Raises:
            StoreError, SupersededError: it will never be, or nobody knows.
        """
        admission = self.admission(tag, asyncio.get_running_loop())
        try:
            await admission
        except asyncio.CancelledError:
            self.withdraw(admission)
            raise

    def admission(self, tag: int, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """What ``wait`` waits for."""
        if self.lost:
            raise self._lost_at(tag)
        if self._flight is None and tag > self.dur:
            self.flush()  # after giving up, an initial state is put again when somebody wants to see it
        return self.enter(tag, loop)

    def when_durable(self, tag: int, effects: list[Effect]) -> None:
        """Run *effects* once version *tag* is durable; drop them if it never will be."""
        if tag <= self.dur or not self.gated:
            for effect in effects:
                effect()
        else:
            self.keep(tag, effects)

    async def persist(self, *, create: bool = False) -> None:
        """Make the present version durable, under any durability; return when it is.

        With *create*, a fresh agent that nothing changed yet is stored too.
        """
        if self._terms.keeper.store is None:
            return
        if create and self.revision is Expect.ABSENT and self.clean:
            self.cur += 1
        tag = self.cur
        if tag > self.dur:
            self.flush()
            await self.wait(tag)

    async def settle(self) -> None:
        """Wait until no put is outstanding."""
        if self.putting:
            await self.wait(self.cur)

    async def delete(self) -> str:
        """Delete what is stored; return the store key that it was under, empty if there was no record.

        Nothing is put from here on, or a ``save()`` would put it back; unless ``resume`` is called.
        """
        store = self._terms.keeper.store
        self.paused = True
        if store is None or self.revision is Expect.ABSENT:
            return ""
        self._deleting = True
        try:
            await store.in_time(store.delete(self.store_key, expected=self.revision), OutcomeUnknownError)
        except BaseException as error:
            self._deleting = False
            if self.lost and isinstance(error, asyncio.CancelledError):
                raise not_told(self._who) from None
            raise
        return self.store_key

    # ------------------------------------------------------------ when things fail

    async def _recover(self, error: OverwinterError) -> None:
        """Try until the newest version is stored, somebody else turns out to have written, or patience ends."""
        clock, delay = self._terms.clock, FIRST_DELAY
        deadline = clock.monotonic() + (0 if self.down else self._terms.patience)
        while True:
            if clock.monotonic() >= deadline:
                if self.gated and not self.unknown:
                    await self._give_up(error)
                    return
                self._tell(error)
            await clock.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
            delay = min(LONGEST_DELAY, delay * 2)
            failure = await self._try_again()
            if failure is None:
                break
            if not isinstance(failure, RevisionConflictError):
                error = failure
            elif not await self._adopt():
                self._recovery = None
                self._superseded()
                return
        self._recovery = None
        if self.gated:
            self._host.unhold()
        self._after_success()

    async def _try_again(self) -> OverwinterError | None:
        outcome: asyncio.Future[OverwinterError | None] = asyncio.get_running_loop().create_future()
        self._submit(lambda error: None if outcome.done() else outcome.set_result(error))
        return await outcome

    def _recovery_ended(self, task: asyncio.Task[Any]) -> None:
        """A bug of ours in the recovery must not leave anybody waiting for ever."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._recovery = None
            self._host.lose(self.superseded())
            self.fail(lambda _: _unknown(self._who))
            raise error

    async def _adopt(self) -> bool:
        """After a conflict: whether what is stored is an earlier try of ours, to be written on top of."""
        trouble, store = self._trouble, self._terms.keeper.store
        if trouble is None or not trouble.attempted or store is None:
            return False
        try:
            head = await store.in_time(store.head(self.store_key))
        except Exception:  # noqa: BLE001  # a store's own errors tell as little, and must not end the recovery
            return True  # can't tell yet: the next try will conflict again, and ask again
        if head is None or head not in trouble.attempted:
            return False
        self.revision = head
        self._sequence += 1
        trouble.attempted -= {head}
        return True

    async def _give_up(self, error: OverwinterError) -> None:
        """The store certainly has nothing above ``dur``: neither shall we."""

        def why() -> OverwinterError:
            return _again(
                error, f"{self._who}: the store is unavailable, and this change was not made; repeat the call later"
            )

        if not await self._host.roll_back_to(self.dur_body, why):
            self._recovery = None
            self.fail(lambda _: why())
            return
        self.cur, self.cur_body, self.cur_receipts = self.dur, self.dur_body, self.dur_receipts
        assert self._trouble is not None
        self._trouble.down = True
        if self.owed:
            self.cur += 1  # nobody may see it before it is stored, and it must not be dropped as if it were
        else:
            self.dirty_since = None
        self._recovery = None
        self.fail(lambda _: why())
        self._host.refuse(None)
        self._host.unhold()
        self._host.stored()

    def _tell(self, error: OverwinterError) -> None:
        """Patience is over and we go on trying: callers learn what is true now."""
        if self.unknown:
            self.fail(lambda _: _unknown(self._who), effects_too=False)  # what was told others may leave yet
            self._host.refuse(
                lambda: _again(
                    error, f"{self._who}: its last write has an unknown outcome; not called. Try again later"
                )
            )
        else:
            self.fail(
                lambda _: _again(
                    error,
                    f"{self._who}: the store is unavailable; the agent stays live and is stored as soon as it can be",
                )
            )

    def _superseded(self) -> None:
        self.lost = True
        self._stop_timer()
        self.fail(self._lost_at)
        self._host.lose(self.superseded())

    def _lost_at(self, tag: int) -> OverwinterError:
        return _unknown(self._who) if tag <= self._unknown_to else self.superseded()

    def lost_to(self, since: int, *, aborted: bool = False) -> OverwinterError:
        """What a turn that began at version *since* is told: if it made one that may be stored, nobody knows.

        If it made one that is stored, or was *aborted*, it must not be run again.
        """
        if self._unknown_to > since:
            return _unknown(self._who)
        return self.superseded(again=not aborted and self.dur <= since)

    def superseded(self, *, again: bool = True) -> SupersededError:
        """What a turn is told whose version was lost; *again*: it may be run once more on what is there now."""
        if not again:
            return SupersededError(
                f"{self._who}: another owner wrote this agent; what this call changed after its last commit() was not "
                "stored, and the copy here was dropped. Read the agent before repeating the call"
            )
        error = SupersededError(
            f"{self._who}: another owner wrote this agent; this change was not stored, and the copy here was dropped. "
            'Repeat the call, or let the manager do it: superseded="retry"'
        )
        error.origin = self
        return error

    def pause(self) -> asyncio.Future[None] | None:
        """Try no more; return what is done when the put that is under way is, if there is one."""
        self.paused = True
        if self._recovery is not None:
            self._recovery.cancel()
        if self._flight is None:
            return None
        if self._quiet is None:
            self._quiet = asyncio.get_running_loop().create_future()
        return self._quiet

    def resume(self) -> None:
        """Put again what was held back."""
        self.paused = False
        if self.gated or len(self.waiters):
            self.flush()
        else:
            self._put_later()

    def abandon(self, error: MakeError) -> None:
        """Fail whoever still waits, truthfully: the agent was deleted, or the manager is closing."""
        self.lost = True
        tried = max(self._unknown_to, 0 if self._flight is None else self._flight[0])
        self._stop_timer()
        self.release(self.dur)  # a last try that was stored may have nobody left to say so: its recovery was ended
        self.fail(lambda tag: _unknown(self._who) if tag <= tried else error())
        if self._recovery is not None:
            self._recovery.cancel()
            self._recovery = None

    @property
    def _who(self) -> str:
        return f"{self._terms.keeper.kind.name} {self._host.key!r}"


def _outcome(error: BaseException) -> OverwinterError:
    """What the error of a put tells. One that a store must not raise tells nothing, so it may have been stored."""
    if isinstance(error, RevisionConflictError | StoreUnavailableError | OutcomeUnknownError):
        return error
    unknown = OutcomeUnknownError(f"the store raised {type(error).__name__}")
    unknown.__cause__ = error
    return unknown


def _unknown(who: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"{who}: the store did not say whether this change was stored: read the agent before repeating the call"
    )


def not_told(who: str) -> OutcomeUnknownError:
    """What a delete is told that closing ended after the store was asked."""
    return OutcomeUnknownError(
        f"{who}: the manager was closed before the store said whether this was deleted: see whether it is there"
    )


def _again(error: OverwinterError, message: str) -> OverwinterError:
    """An error of its own for each caller: a shared one would collect everybody's traceback."""
    fresh = StoreUnavailableError(message)
    fresh.__cause__ = error
    return fresh
