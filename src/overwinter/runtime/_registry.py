"""Key -> server: at most one life per key, one thaw however many callers.

The key is claimed before the store is asked, and given back only when the old life is over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from .._types import check_key
from ..agent import Agent, Method
from ..errors import (
    AgentDeletedError,
    ClosedError,
    OutcomeUnknownError,
    OverwinterError,
    ReentrantCallError,
    StoreUnavailableError,
    SupersededError,
)
from ._home import Evicted, Home, Retired
from ._ledger import not_told
from ._lifecycle import FREEZING, LIVE, THAWING
from ._performer import Consumer
from ._server import AgentServer
from ._stream import Stream
from ._turn import Turn, Wait, current_turn, outside_turns, waits_for_itself

__all__ = ["Registry"]

A = TypeVar("A", bound=Agent)


_NO_TURN = nullcontext()


class Registry(Generic[A]):
    """The lives of one agent class in this process."""

    def __init__(self, home: Home[A], *, retry: bool) -> None:
        self.home = home
        self.servers: dict[str, AgentServer[A]] = {}
        self._retry = retry
        self.deleting: dict[str, asyncio.Future[None]] = {}
        """The keys of which the store is asked to delete what nobody has alive, with what their next life waits for."""
        self._stopping: set[AgentServer[A]] = set()
        """The lives that are being stopped though nobody waits for that any more."""

    # ------------------------------------------------------------ calls

    def call(
        self, key: str, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any], call_id: str | None = None
    ) -> Coroutine[Any, Any, Any]:
        """Run one call, in the caller's task, in whichever life of *key* has its turn next."""
        server = self.servers.get(key)
        if server is None or self._retry:
            return self._call(key, method, args, kwargs, call_id)
        return server.run(method, args, kwargs, None, None, call_id, self._call)  # nearly always all that it takes

    async def _call(
        self, key: str, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any], call_id: str | None = None
    ) -> Any:
        caller = current_turn()
        wait = None if caller is None else caller.wait_for(Wait(None))
        deadline: float | None = None
        pause = 0.001
        try:
            while True:
                server = self.servers.get(key)
                if server is None:
                    server = self._begin(key, None, "create")
                elif server.state is FREEZING:
                    await self._over(server)
                    continue
                if wait is not None:
                    wait.on = server
                try:
                    return await server.run(method, args, kwargs, wait, None, call_id)
                except Evicted:
                    continue
                except Retired:
                    await asyncio.sleep(0)  # those who waited for their turn come first
                    continue
                except SupersededError as error:
                    if not self._retry or error.origin is not server.ledger:
                        raise
                    now = self.home.terms.clock.monotonic()
                    deadline = deadline or now + self.home.terms.patience
                    if now >= deadline:
                        raise
                # Owners that lost a race come back at different times, or they would race again.
                await self.home.terms.clock.sleep(random.uniform(0, pause))  # noqa: S311
                pause = min(0.1, pause * 2)
        finally:
            if caller is not None and wait is not None:
                caller.waited(wait)

    def stream(self, key: str, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream[Any]:
        """Run one streaming call, in a task of its own, when its first item is asked for."""
        wait = Wait(None)

        async def produce(to: Consumer) -> None:
            while True:
                server = wait.on = await self.live(key)
                try:
                    await server.run(method, args, kwargs, wait, to)
                except Retired:
                    continue
                return

        return Stream(self.home, produce, wait)

    async def snapshot(self, key: str) -> A:
        """A detached copy of the agent as it is between turns."""
        copy: A = await self.call(key, SNAPSHOT, (), {})
        return copy

    # ------------------------------------------------------------ what is stored

    async def stored_keys(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys of the stored agents, live or not; when the store is open."""
        if self.home.opening is not None:
            await asyncio.shield(self.home.opening)
        async for key in self.home.keeper.keys(prefix):
            yield key

    async def count_stored(self, prefix: str) -> int:
        """Return how many agents are stored, live or not; when the store is open."""
        if self.home.opening is not None:
            await asyncio.shield(self.home.opening)
        return await self.home.keeper.count(prefix)

    # ------------------------------------------------------------ lives

    def _begin(self, key: str, initial: Mapping[str, Any] | A | None, missing: str) -> AgentServer[A]:
        """Claim *key*, which nobody has, and begin its next life, which starts when what was stored is deleted."""
        home = self.home
        check_key(key, home.kind.name)
        if home.closed or home.winding_up:
            raise ClosedError(f"the manager of {home.kind.name} is closed")
        if home.failures:
            home.failures.check(key, home.terms.clock.monotonic())
        server = self.servers[key] = AgentServer(home, key, (initial is None, missing))
        server.begin(initial, missing, self.deleting.get(key))
        return server

    async def _over(self, server: AgentServer[A]) -> None:
        """Wait until a life that ends has ended, or stays after all."""
        with self._waiting_for(server):
            await server.passing()

    async def live(
        self, key: str, initial: Mapping[str, Any] | A | None = None, missing: str = "create"
    ) -> AgentServer[A]:
        """The life of *key*, begun now if there is none. Cancel-safe: what was begun goes on."""
        asked = (initial is None, missing)
        if type(key) is not str:
            check_key(key, self.home.kind.name)  # all else about it is checked when its life begins
        while True:
            server = self.servers.get(key)
            if server is not None and server.state is FREEZING:
                await self._over(server)
                continue
            mine = server is None
            if server is None:
                server = self._begin(key, initial, missing)
            if server.state is not LIVE:
                with self._waiting_for(server):
                    try:
                        await server.passage()
                    except OverwinterError as error:
                        if mine or (server.asked == asked and initial is None):
                            raise error.again() from error.__cause__
                        continue  # it was asked for on other terms than ours: its failure says nothing about us
            return server  # it was alive just now; where places are few it may have had to leave again

    def _waiting_for(self, server: AgentServer[A]) -> AbstractContextManager[None]:
        """Wait for a life to come or go, or raise because that waits for the turn that this is called in."""
        caller = current_turn()
        return _NO_TURN if caller is None else self._waiting_in(caller, server)

    @contextmanager
    def _waiting_in(self, caller: Turn, server: AgentServer[A]) -> Generator[None, None, None]:
        self._check_waiting(caller, server)
        wait = caller.wait_for(Wait(server))
        try:
            yield
        finally:
            caller.waited(wait)

    def _check_waiting(self, caller: Turn, server: AgentServer[A]) -> None:
        if any(waits_for_itself(caller, turn) for turn in server.running):  # also for interleaved ones, as it ends
            raise ReentrantCallError(
                f"{self.home.kind.name} {server.key!r}: this would wait for the very turn that it is called in: "
                "inside a turn an agent can't stop, delete or thaw itself, nor what waits for it"
            )

    def evict_one(self) -> bool:
        """Have the least recently used idle agent hibernate, a clean one if it can be; return whether there is any."""
        home = self.home
        room = home.room
        assert home.idle is not None
        assert room is not None
        idle = (server for server in home.idle.members() if server.is_idle() and not server.is_stuck)
        first = list(islice(idle, 32))
        if not first:
            return False
        victim: AgentServer[A] = next((server for server in first if server.ledger.clean), first[0])
        home.idle.forget(victim)
        home.spawn(victim.hibernate()).add_done_callback(room.left)
        return True

    def live_store_keys(self) -> list[str]:
        """Return what the live agents are stored under, for a store that lets the others expire."""
        return [server.ledger.store_key for server in self.servers.values()]

    def hold(self, key: str, who: str) -> None:
        """Attach once more to *key*, live or not."""
        self.home.held.setdefault(key, []).append(who)
        if self.home.idle is not None and key in self.servers:
            self.home.idle.forget(self.servers[key])

    def let_go(self, key: str, who: str) -> None:
        """Detach once."""
        held = self.home.held
        held[key].remove(who)
        if not held[key]:
            del held[key]
            if key in self.servers:
                self.servers[key].watch()

    async def stop(self, key: str, life: AgentServer[A] | None = None) -> None:
        """Store and end the life of *key*, if there is one; only *life*, if that is given."""
        while (server := self.servers.get(key)) is not None and life in (None, server):
            with self._waiting_for(server):
                if server.state is LIVE:
                    try:
                        await server.stop()
                    except (Retired, AgentDeletedError):
                        continue
                    return
                await _settled(server)

    def go_on_stopping(self, key: str) -> None:
        """Stop the life of *key* in the background: whoever asked is gone. For all of them it is done once."""
        server = self.servers.get(key)
        if server is not None and server not in self._stopping:
            self._stopping.add(server)
            task = self.home.spawn(self.stop(key, server), context=outside_turns())
            task.add_done_callback(lambda _: self._stopping.discard(server))
            self.home.answer_for(key, "stop", task)

    async def save(self, key: str) -> None:
        """Store what *key* is now, if it lives."""
        server = self.servers.get(key)
        if server is not None and server.state is LIVE:
            await server.ledger.persist(create=True)

    async def delete(self, key: str) -> None:
        """End the life of *key* without saving, and delete whatever is stored under it. Cancelled, it goes on."""
        caller, wait = current_turn(), Wait(None)
        if caller is not None:
            caller.wait_for(wait)
        try:
            await self.home.see_through(key, "delete", self._delete(key, caller, wait), context=outside_turns())
        finally:
            if caller is not None:
                caller.waited(wait)

    async def _delete(self, key: str, caller: Turn | None, wait: Wait) -> None:
        """Delete, and keep *wait* up to date, which is *caller*'s for as long as that is there."""
        try:
            while key in self.servers or key in self.deleting:
                server = wait.on = self.servers.get(key)
                if server is None:
                    await asyncio.shield(self.deleting[key])
                    continue
                if caller is not None and wait in (caller.awaits or ()):
                    self._check_waiting(caller, server)
                if server.state is not LIVE:
                    await _settled(server)
                    continue
                try:
                    await server.delete(partial(self._delete_stored, key))
                except (Retired, AgentDeletedError):
                    continue
                return
            await self._delete_stored(key)
        finally:
            wait.on = None

    async def _delete_stored(self, key: str, done: str | None = None) -> None:
        """Delete what nobody has alive, readable or not; the next life of the key waits for that.

        *done*: the store key of the life that was deleted just now, empty if it had no record. What is under it by now
        is somebody else's, and a failure from here on no longer means that nothing happened.
        """
        store, begun = self.home.keeper.store, done is not None
        asked = begun
        if store is None:
            return
        over = self.deleting[key] = asyncio.get_running_loop().create_future()
        try:
            if self.home.opening is not None:
                await asyncio.shield(self.home.opening)
            for store_key in self.home.keeper.store_keys(key):
                if store_key != done:
                    asked = True
                    begun = await self.home.keeper.delete(store, key, store_key) or begun
        except asyncio.CancelledError:
            if asked and self.home.closed:
                raise not_told(f"{self.home.kind.name} {key!r}") from None
            raise
        except StoreUnavailableError as error:
            if not begun:
                raise
            raise OutcomeUnknownError(
                f"{self.home.kind.name} {key!r}: it was deleted, and then the store could not say whether "
                "anything is left of it; delete it again"
            ) from error
        finally:
            del self.deleting[key]
            over.set_result(None)


async def _settled(server: AgentServer[Any]) -> None:
    """Wait until a life that comes or goes has come or gone."""
    if server.state in (THAWING, FREEZING):
        await asyncio.wait([server.passage()])


async def _snapshot(_: Agent) -> Agent:
    turn = current_turn()
    assert turn is not None
    assert turn.performer is not None
    copy: Agent = turn.performer.copy()
    return copy


SNAPSHOT = Method("state", _snapshot, readonly=True)
