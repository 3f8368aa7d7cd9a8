"""How an agent comes alive: thawed, or fresh if, and only if, the store said *absent*.

It does not know how a life ends, nor which other agents live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from ..agent import Agent, Method
from ..agent._base import give_key
from ..errors import AgentNotFoundError, ClosedError, OverwinterError, ThawError
from ..persistence import Loaded
from ..stores.base import Stored
from ._gate import Effect
from ._home import Home, Retired
from ._lifecycle import FAILED, LIVE, STARTED, THAWING, after
from ._performer import Performer
from ._turn import current_turn, waits_for_itself

__all__ = ["Arriving"]

A = TypeVar("A", bound=Agent)

PLAIN = (True, "create")  # the terms on which calls ask: no initial state, and it may be missing


class Arriving(Performer[A]):
    """One life of one agent, up to its first turn."""

    __slots__ = ("_passage", "_placed", "asked")

    def __init__(self, home: Home[A], key: str, asked: tuple[bool, str]) -> None:
        super().__init__(home, key)
        self.asked = PLAIN if asked == PLAIN else asked
        """On what terms it was asked for first: without an initial state, and whether it may be missing."""
        self._passage: list[asyncio.Future[None]] | None = None
        self._placed = False
        self.turns.hold()  # calls queue from the first moment, and so keep their order

    def passage(self) -> asyncio.Future[None]:
        """A future of the caller's own, done when it has come alive, or could not, or when it has left."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._passage is None:
            self._passage = []
        self._passage.append(future)
        return future

    def passing(self) -> asyncio.Future[None]:
        """A passage for a call: not too many may wait.

        Raises:
            MailboxFullError: there are.
        """
        if sum(not future.done() for future in self._passage or ()) >= self.home.max_mailbox:
            raise self.mailbox_full("this call")
        return self.passage()

    def passed(self, error: OverwinterError | None = None) -> None:
        """Tell those who wait that it has come or gone; or, with *error*, why it could not come."""
        waiting, self._passage = self._passage, None
        for future in waiting or ():
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # who waits has it, unless cancelled just now: then it is no news

    # ------------------------------------------------------------ the two ways

    def begin(
        self, initial: Mapping[str, Any] | A | None, missing: str, after_life: asyncio.Future[None] | None
    ) -> None:
        """Begin to come alive: here and now, or when the store has answered, or in a task where more must be awaited.

        Raises:
            OverwinterError: it could not come alive, which is known already.
        """
        home = self.home
        assert home.ground is not None
        if (
            after_life is not None
            or home.kind.starts
            or home.kind.aliases
            or not home.is_open
            or not self._find_place()
        ):
            # In a context of its own, or those that come alive beside each other would see each other's turns.
            home.spawn(self._start(initial, missing, after_life), context=home.ground.copy())
            return
        if home.keeper.store is None:
            home.ground.run(self._come, None, initial, missing)
        else:
            self._fetch(initial, missing)

    def _find_place(self) -> bool:
        """Take a place for one more agent, if there is a bound and one is free."""
        if self.home.room is not None:
            self._placed = self.home.room.try_enter()
            return self._placed
        return True

    async def _start(
        self, initial: Mapping[str, Any] | A | None, missing: str, after_life: asyncio.Future[None] | None
    ) -> None:
        """Come alive as a task of its own. The outcome is told to whoever waits."""
        home = self.home
        try:
            if after_life is not None:
                await asyncio.shield(after_life)
            if home.room is not None and not self._placed:
                await home.room.enter(self._who)
                self._placed = True
            if home.opening is not None:
                await asyncio.shield(home.opening)
            try:
                loaded = await home.keeper.load(self.key)
            except Exception as error:
                raise self._unreadable(error) from error
            await self._start_up(self._make(loaded, initial, missing))
        except BaseException as error:  # it goes to everybody who waits
            self._failed_to_start(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._started()

    def _fetch(self, initial: Mapping[str, Any] | A | None, missing: str) -> None:
        store, ground = self.home.keeper.store, self.home.ground
        assert store is not None
        assert ground is not None
        plain = initial is None and missing == "create"
        done = self._fetched if plain else partial(self._fetched, initial=initial, missing=missing)
        try:
            answer = ground.run(store.begin_get, self.ledger.store_key, done)
        except Exception as error:  # noqa: BLE001  # closed, forked, or a fetch() of somebody's own
            asyncio.get_running_loop().call_soon(done, None, error)
        else:
            if isinstance(answer, asyncio.Task):
                self.home.keep(answer)

    def _fetched(
        self,
        stored: Stored | None,
        error: BaseException | None,
        initial: Mapping[str, Any] | A | None = None,
        missing: str = "create",
    ) -> None:
        ground = self.home.ground
        assert ground is not None
        if self.home.closed:
            return  # as whoever waited was told
        if error is None:
            ground.run(self._read, stored, initial, missing)
        else:
            self._failed_to_start(self._unreadable(error) if isinstance(error, Exception) else error)

    def _read(self, stored: Stored | None, initial: Mapping[str, Any] | A | None, missing: str) -> None:
        try:
            loaded = None if stored is None else self.home.keeper.read(self.key, self.ledger.store_key, stored)
        except BaseException as error:  # noqa: BLE001  # it goes to everybody who waits
            self._failed_to_start(self._unreadable(error) if isinstance(error, Exception) else error)
            return
        with suppress(OverwinterError):  # told to whoever waits
            self._come(loaded, initial, missing)

    def _come(self, loaded: Loaded[A] | None, initial: Mapping[str, Any] | A | None, missing: str) -> None:
        """Come alive in one step, where the class has no ``on_start``."""
        ledger = self.ledger
        try:
            changed = self._make(loaded, initial, missing)
            self._note_attributes()
            if loaded is not None and len(loaded.body) > self.home.keeper.max_state:
                raise self.home.keeper.too_large(self.agent, loaded.body)
            if changed:
                ledger.advance(ledger.cur_body)
        except BaseException as error:
            found = self._failed_to_start(error)
            if isinstance(error, Exception):
                raise found from found.__cause__
            raise
        self._started()

    def _started(self) -> None:
        self.state = after(self.state, STARTED)
        self.home.failures.forget(self.key)
        self.passed()
        self.turns.unhold()
        self.watch()

    # ------------------------------------------------------------ when it can't

    def _unreadable(self, error: Exception) -> ThawError:
        if isinstance(error, ThawError):
            return error
        found = ThawError(f"{self._who}: the store can't be read, so nothing was started; try again")
        found.__cause__ = error  # a store of one's own may raise anything
        return found

    def _start_error(self, error: BaseException) -> OverwinterError:
        if isinstance(error, OverwinterError):
            return error
        if isinstance(error, asyncio.CancelledError) and self.home.closed:
            return ClosedError(f"{self._who}: the manager was closed while it came alive")
        found = ThawError(f"{self._who}: it could not come alive ({type(error).__name__}); nothing was written")
        found.__cause__ = error
        return found

    def _failed_to_start(self, why: BaseException) -> OverwinterError:
        """Tell everybody who waits; return what they are told."""
        error = self._start_error(why)
        self.state = after(self.state, FAILED)
        if (
            type(error) is ThawError
        ):  # on_start or the store; what a record or a caller gets wrong costs little to find again
            self.home.failures.note(self.key, self.home.terms.clock.monotonic(), error)
        plain = self.asked == PLAIN  # others' terms say nothing about calls
        self.turns.evict(lambda: error.again() if plain else Retired())
        self._end(error)
        return error

    async def alive(self, method: Method) -> None:
        if self.state is THAWING:
            self._check_waiting(method, (self,))
            passage = self.passing()
            try:
                await passage
            except OverwinterError as error:
                if self.asked == PLAIN:
                    raise error.again() from error.__cause__
        caller = current_turn()
        # Calls that overlap would keep it from ever coming to rest. One that this waits for may go on: it ends with it.
        while self._rolling_back and self.state is LIVE and (caller is None or not waits_for_itself(caller, self)):
            await self.passing()
        if self.state is not LIVE:
            raise Retired

    # ------------------------------------------------------------ the object

    def _make(self, loaded: Loaded[A] | None, initial: Mapping[str, Any] | A | None, missing: str) -> bool:
        """Take the agent, or make it; return whether it has something that is not stored yet."""
        home, ledger = self.home, self.ledger
        if loaded is not None:
            self.agent = loaded.agent
            ledger.thawed(loaded)
            home.thawed += 1
            ledger.owed = loaded.unsettled
            return ledger.owed
        if missing == "raise":
            raise AgentNotFoundError(
                f'{self._who}: nothing is stored under this key; missing="create" starts a fresh agent'
            )
        self.agent = home.kind.schema.fresh(initial, self.key)
        give_key(self.agent, self.key)
        ledger.begin(home.keeper.encode(self.agent))
        home.created += 1
        ledger.owed = initial is not None or not self._is_born_so()
        return ledger.owed

    def _is_born_so(self) -> bool:
        """Whether each fresh agent of the class is as this one: no default is made anew, such as an id or a time."""
        home = self.home
        if not home.kind.schema.makes_defaults:
            return True
        twin = home.kind.schema.fresh(None, self.key)
        give_key(twin, self.key)
        return home.keeper.encode(twin) == self.ledger.cur_body

    async def _start_up(self, changed: bool = False) -> None:
        """Call ``on_start``, if there is one, and make a version of what the agent is then, if it *changed* by now."""
        effects = await self._on_start()
        body = self.home.keeper.encode(self.agent, self.ledger.extras)
        if changed or body != self.ledger.cur_body:
            self.ledger.advance(body)
        if self.home.kind.starts:
            self._started_at = self.ledger.cur
        self.ledger.when_durable(self.ledger.cur, effects)

    async def _on_start(self) -> list[Effect]:
        kind, agent = self.home.kind, self.agent
        effects: list[Effect] = []
        if kind.starts:
            try:
                hook = partial(agent.on_start, self.home.context) if kind.takes_context else agent.on_start
                effects = await self.as_turn(hook, "on_start")
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                raise ThawError(
                    f"{self._who}: on_start raised {type(error).__name__}, so it was not started"
                ) from error
        self._note_attributes()
        return effects

    def _note_attributes(self) -> None:
        """What ``on_start`` set may be set later, too."""
        attributes, settable = self.agent.__dict__, self.home.kind.settable
        self._settable = settable if attributes.keys() <= settable else settable.union(attributes)

    def _end(self, error: OverwinterError | None = None) -> None:
        """Let go of the key and the place: this life is over, or did not come to be because of *error*."""
        if self.home.idle is not None:
            self.home.idle.forget(self)
        self.home.remove(self)
        if self._placed and self.home.room is not None:
            self._placed = False
            self.home.room.leave()
        self.turns.evict(Retired)
        self.passed(error)
