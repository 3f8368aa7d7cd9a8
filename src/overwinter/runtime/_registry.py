"""Key -> server: at most one life per key, one thaw however many callers.

The key is claimed before the store is asked, and given back only when the old life is over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from .._types import check_key
from ..agent import Agent, Method
from ..errors import CorruptRecordError, OverwinterError, ReentrantCallError, SupersededError
from ..stores.base import Expect
from ._home import Home, Retired
from ._lifecycle import State
from ._performer import Send
from ._server import AgentServer
from ._stream import Stream
from ._turn import Turn, current_turn, waits_for_itself

__all__ = ["Registry"]

A = TypeVar("A", bound=Agent)


class Address(NamedTuple):
    """A key of a registry, whichever life it is in."""

    registry: Registry[Any]
    key: str

    @property
    def running(self) -> Collection[Turn]:
        server = self.registry.servers.get(self.key)
        return server.running if server is not None else ()


class Registry(Generic[A]):
    """The lives of one agent class in this process."""

    def __init__(self, home: Home[A], *, retry: bool) -> None:
        self.home = home
        self.servers: dict[str, AgentServer[A]] = {}
        self._retry = retry
        self._deleting: dict[str, asyncio.Future[None]] = {}

    # ------------------------------------------------------------ calls

    async def call(self, key: str, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call, in the caller's task, in whichever life of *key* has its turn next."""
        caller = current_turn()
        if caller is None:
            return await self._call(key, method, args, kwargs)
        address = Address(self, key)
        caller.wait_for(address)
        try:
            return await self._call(key, method, args, kwargs)
        finally:
            caller.waited_for(address)

    async def _call(self, key: str, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        deadline: float | None = None
        pause = 0.001
        while True:
            server = self.servers.get(key)
            if server is None or server.state is not State.LIVE:
                server = await self.live(key)
            try:
                return await server.run(method, args, kwargs)
            except Retired:
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

    def stream(self, key: str, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        """Run one streaming call, in a task of its own, when its first item is asked for."""

        async def produce(send: Send) -> None:
            while True:
                server = await self.live(key)
                try:
                    await server.run(method, args, kwargs, send)
                except Retired:
                    continue
                return

        return Stream(produce, self.home.spawn, Address(self, key))

    async def snapshot(self, key: str) -> A:
        """A detached copy of the agent as it is between turns."""
        copy: A = await self.call(key, SNAPSHOT, (), {"registry": self})
        return copy

    # ------------------------------------------------------------ lives

    async def live(
        self, key: str, initial: Mapping[str, Any] | A | None = None, missing: str = "create"
    ) -> AgentServer[A]:
        """The life of *key*, begun now if there is none. Cancel-safe: what was begun goes on."""
        if type(key) is not str or key not in self.servers:
            check_key(key, self.home.kind.name)
        asked = (initial is None, missing)
        while True:
            if key in self._deleting:
                await asyncio.shield(self._deleting[key])
                continue
            server = self.servers.get(key)
            if server is None:
                server = self.servers[key] = AgentServer(self.home, key, asked)
                self.home.spawn(server.start(initial, missing))
            if server.state is State.LIVE:
                return server
            self._check_waiting(server)
            if server.state is State.THAWING:
                try:
                    await asyncio.shield(server.started)
                except OverwinterError as error:
                    if server.asked == asked:
                        raise _anew(error) from error.__cause__
                    # It was asked for on other terms than ours, so its failure says nothing about us.
            else:
                await asyncio.shield(server.gone)

    def _check_waiting(self, server: AgentServer[A]) -> None:
        caller = current_turn()
        if caller is not None and waits_for_itself(caller, server):
            raise ReentrantCallError(
                f"{self.home.kind.name} {server.key!r} was called by something that it waits for "
                "while it comes or goes: "
                "on_start and on_stop can't call their own agent"
            )

    def hold(self, key: str) -> None:
        """Attach once more to *key*, live or not."""
        held = self.home.held
        held[key] = held.get(key, 0) + 1
        if self.home.idle is not None and key in self.servers:
            self.home.idle.forget(self.servers[key])

    def let_go(self, key: str) -> None:
        """Detach once."""
        held = self.home.held
        held[key] -= 1
        if not held[key]:
            del held[key]
            if key in self.servers:
                self.servers[key].watch()

    async def stop(self, key: str) -> None:
        """Store and end the life of *key*, if there is one."""
        while (server := self.servers.get(key)) is not None:
            if server.state is State.LIVE:
                try:
                    await server.stop()
                except Retired:
                    continue
                return
            await asyncio.wait([server.started, server.gone], return_when=asyncio.FIRST_COMPLETED)
            if server.state is State.FREEZING:
                await server.gone

    async def save(self, key: str) -> None:
        """Store what *key* is now, if it lives."""
        server = self.servers.get(key)
        if server is not None and server.state is State.LIVE:
            await server.ledger.persist(create=True)

    async def delete(self, key: str) -> None:
        """End the life of *key* without saving, and delete whatever is stored under it."""
        while key in self.servers or key in self._deleting:
            server = self.servers.get(key)
            if server is None:
                await self._deleting[key]
            elif server.state is State.LIVE:
                try:
                    await server.delete()
                except Retired:
                    continue
            else:
                await asyncio.wait([server.started, server.gone], return_when=asyncio.FIRST_COMPLETED)
                if server.state is State.FREEZING:
                    await server.gone
        await self._delete_stored(key)

    async def _delete_stored(self, key: str) -> None:
        """Delete a record that nobody has alive, readable or not; who asks for the key meanwhile waits."""
        store = self.home.keeper.store
        if store is None:
            return
        if self.home.opening is not None:
            await asyncio.shield(self.home.opening)
        done = self._deleting[key] = asyncio.get_running_loop().create_future()
        try:
            for store_key in self.home.keeper.store_keys(key):
                try:
                    head = await store.head(store_key)
                except CorruptRecordError:
                    await store.delete(store_key, expected=Expect.ANY)
                else:
                    if head is not None:
                        await store.delete(store_key, expected=head)
        finally:
            del self._deleting[key]
            done.set_result(None)


def _anew(error: OverwinterError) -> OverwinterError:
    """An error of its own for each who waits: a shared one would collect everybody's traceback."""
    return type(error)(*error.args)


async def _snapshot(agent: A, *, registry: Registry[A]) -> A:
    return registry.servers[agent.key].copy()


SNAPSHOT = Method("state", _snapshot, readonly=True)
