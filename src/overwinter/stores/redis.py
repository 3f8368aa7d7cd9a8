"""A Redis or Valkey server: the store for many machines that want speed.

This file knows the store protocol and what to ask for. It does not know connections (``_redis_line.py``), values and
scripts (``_redis_frame.py``), what makes a server fit (``_redis_server.py``) or errors (``_redis_answers.py``).
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

from ..errors import InvalidKeyError, RevisionConflictError, StoreError, StoreUnavailableError, UsageError
from .base import Durability, Expect, Revision, Store, Stored, T

try:
    from ._redis_answers import refusal
    from ._redis_door import Door
    from ._redis_frame import (
        DELETE,
        GET,
        HEAD_END,
        LIST,
        PUT,
        REFRESH,
        TOMBSTONE_LIFE,
        Names,
        Verdict,
        head_of,
        is_tombstone,
        new_tombstone,
        read_value,
        revision_of,
        unreadable,
    )
    from ._redis_line import AgainError, Command, Exchange, Request, StaleLineError
    from ._redis_refresh import LiveKeys, Refresher
    from ._redis_server import Terms
except ImportError as error:
    if (error.name or "").partition(".")[0] != "redis":
        raise
    raise ImportError(
        "RedisStore needs redis-py: python3 -m pip install '.[redis]' in a checkout", name=error.name
    ) from error

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisStore"]

_LATEST = 3600
"""Seconds that a request is valid beyond its deadline. Tombstones live longer, so nobody writes from before a delete;
clocks may drift by that much between two connections. Where records expire it is less: that leaves no tombstone."""

_PAGE = b"512"
_SEEN = 262_144
_NEVER = b"0"

_VOID, _CONDITION = 6, 7
"""Where in a command that changes something that stands: when it is void, and what it expects."""


class RedisStore(Store):
    """Keep records on a Redis (6.2 or newer) or Valkey server, one key per agent.

    *server* is a URL (``redis://``, ``rediss://``, ``unix://``) or a ``redis.asyncio.Redis``, whose settings are used;
    the store makes connections of its own, at most *connections*.

    *ttl* lets records expire that many seconds after their last write or thaw, and then their agents start anew; those
    of agents that are live in a manager are refreshed four times in that time. *durability* says what an acknowledged
    put survives where the server doesn't tell. *expect_existing* refuses a server that holds no agents.
    *allow_eviction* accepts one that throws keys away.

    Promises:

    * Compare and write are one step on the server. Of two who put with the same condition one succeeds, whatever the
      clocks say, and a request that comes twice is done once.
    * Puts that wait share a round trip, and a flush where the server flushes.
    * A server that was flushed, came back empty or is another is refused, never taken for *absent*.
    * Every call ends within *timeout* seconds. Cancelling a caller is safe; no reply reaches the wrong one.
    * It works again by itself when the server does.

    Caveats: see docs/redis.md. What an acknowledged put survives is the server's setting, see ``durability``; a
    failover to a replica may lose acknowledged puts, since Redis replicates without waiting.
    """

    network = True

    def __init__(
        self,
        server: str | Redis,
        *,
        prefix: str = "overwinter:",
        timeout: float = 10.0,
        ttl: float | timedelta | None = None,
        durability: Durability | None = None,
        expect_existing: bool = False,
        allow_eviction: bool = False,
        connections: int = 2,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        if connections < 1:
            raise ValueError(f"connections must be 1 or more, not {connections!r}")
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        if seconds is not None and not seconds >= 60:
            raise ValueError(
                f"ttl must be at least 60 seconds, not {seconds!r}: it is refreshed four times in its life"
            )
        self.timeout = timeout
        if durability is not None:
            self.durability = durability
        self._asked = durability
        self._names = Names(prefix)
        self._ttl = seconds
        self._life = None if seconds is None else b"%d" % (seconds * 1000)
        self._connections = connections
        self._door = Door(
            server, self._names, Terms(durability, allow_eviction), timeout=timeout, expect_existing=expect_existing
        )
        self._exchange: Exchange | None = None
        self._refresher = None if seconds is None else Refresher(seconds, self._refresh)

    def __repr__(self) -> str:
        return f"RedisStore({self._door.place!r}, prefix={self._names.prefix!r})"

    async def open(self) -> None:
        """Connect, and see whether agents may be kept there.

        Raises:
            UsageError: the server is too old, throws keys away, is in a cluster, or promises less than was asked.
            StoreUnavailableError: it can't be reached, is a replica, or has lost what it held.
        """
        exchange = Exchange(self._door, self._connections)
        await super().in_time(exchange.open())
        self.durability = self._door.durability
        if self.durability is Durability.NONE and self._asked is not Durability.NONE:
            try:
                warnings.warn(
                    f"{self!r} promises nothing: {self._door.why}. Set appendonly yes and appendfsync always on "
                    "the server; or say durability=, if you know better or losing agents is fine",
                    stacklevel=2,
                )
            except Warning:  # who makes errors of warnings has no open store
                await exchange.close(self.timeout)
                raise
        self._exchange = exchange
        if self._refresher is not None:
            self._refresher.start()

    async def close(self) -> None:
        """Do what was begun, then hang up. A later ``async with`` opens it again."""
        exchange, self._exchange = self._exchange, None
        if exchange is None or self._pid != os.getpid():
            return  # in a forked child the connections are the parent's
        try:
            if self._refresher is not None:
                await self._refresher.stop()
        finally:
            await exchange.close(self.timeout)

    def __del__(self) -> None:
        if getattr(self, "_exchange", None) is not None and self._pid == os.getpid() and not sys.is_finalizing():
            warnings.warn(
                f"{self!r} was not closed: use it in `async with store:`", ResourceWarning, source=self, stacklevel=2
            )

    # ------------------------------------------------------------ the three verbs

    async def in_time(self, operation: Awaitable[T], late: type[StoreError] = StoreUnavailableError) -> T:
        return await operation  # every call here has its own deadline, and knows better what became of it

    async def get(self, key: str) -> Stored | None:
        name = self._name(key)
        command = (b"GET", name) if self._life is None else (b"EVALSHA", GET, b"1", name, self._life)
        value: bytes | None = await self._ask("get", key, command)
        return None if value is None else read_value(key, value)

    async def head(self, key: str) -> Revision | None:
        """Return the revision under *key*, as of now."""
        some: bytes = await self._ask("head", key, (b"GETRANGE", self._name(key), b"0", HEAD_END))
        if some:
            return revision_of(key, some)
        stored = await self.get(key)  # nothing is there, or something foreign and empty
        return None if stored is None else stored.revision

    async def put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> None:
        await self.submit(key, data, revision=revision, expected=expected)

    async def delete(self, key: str, *, expected: Revision | Expect) -> None:
        condition = b"*" if expected is Expect.ANY else _condition(expected)
        command = self._change(DELETE, key, condition, new_tombstone(), b"%d" % (TOMBSTONE_LIFE * 1000))
        await self._send("delete", key, command, partial(self._decide, "delete", key), writes=True)

    def submit(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> asyncio.Future[None]:
        """Begin a put and return a bare future, no task, that carries its outcome."""
        if expected is Expect.ANY:
            raise UsageError(
                f"a put of key {key!r} expects a revision or Expect.ABSENT: Expect.ANY is only for deleting"
            )
        head = head_of(revision)
        command = self._change(PUT, key, _condition(expected), head + data, b"%d" % len(head), self._life or _NEVER)

        def decide(reply: Any) -> None:
            if isinstance(reply, bytes) and is_tombstone(reply):
                raise AgainError(_CONDITION, reply)  # create, over the very tombstone that is there
            self._decide("put", key, reply)

        return self._send("put", key, command, decide, writes=True)

    def _change(self, script: bytes, key: str, *arguments: bytes) -> Command:
        name, door = self._name(key), self._door
        self._check_open()
        return (b"EVALSHA", script, b"2", name, self._names.store, door.identity, self._void(), *arguments)

    def _void(self) -> bytes:
        valid = self.timeout + _LATEST
        if self._ttl is not None:  # a create must not come after the one that was put in its place expired
            valid = min(valid, self._ttl / 2)
        return b"%d" % (self._door.server_time() + valid)

    def _decide(self, verb: str, key: str, reply: Any) -> None:
        """Return if a script did what it should, else raise what it says."""
        if reply == Verdict.DONE:
            return
        door = self._door
        if reply == Verdict.CONFLICT:
            raise RevisionConflictError(
                f"no {verb}: another revision, or nothing, is stored under key {key!r}; read it again before you write"
            )
        if reply == Verdict.UNREADABLE:
            raise unreadable(key)
        if reply == Verdict.LOST:
            raise StaleLineError(door.lost())
        if isinstance(reply, bytes) and reply.startswith(Verdict.LATE):
            # It came back in time, so it was not late: a clock was set, or this machine slept. Not done, so once more.
            door.set_clock(int(reply.removeprefix(Verdict.LATE)))
            raise AgainError(_VOID, self._void())
        assert isinstance(reply, Exception)  # anything else is no answer to our script: then nobody knows
        raise refusal(reply, door.where, f"{verb} of key {key!r}", writes=True)

    # ------------------------------------------------------------ many keys

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield the keys that begin with *prefix*, each once, in no order.

        A server that shrinks its table meanwhile names keys twice. Those that were yielded are remembered, so beyond
        some 260,000 keys the server is scanned several times, for a part of the keys each. A server that was restarted
        meanwhile, or has taken over, is scanned from the start.
        """
        pattern = self._of(prefix, self._names.pattern)
        parts = 1 + await self._ask("count", prefix, (b"DBSIZE",)) // _SEEN
        for part in range(parts):
            seen: set[bytes] = set()
            cursor, server = b"0", ""
            while True:
                scan = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _PAGE)
                page = self._begin("list", prefix, scan, partial(self._read, "list", prefix), guarded=True)
                after, names = await page.future
                if cursor != b"0" and page.server != server:
                    cursor = b"0"  # it says nothing to another process: begin again
                    continue
                cursor, server = after, page.server
                fresh = {name for name in names if parts == 1 or crc32(name) % parts == part} - seen
                seen |= fresh
                for name in await self._alive(prefix, list(fresh)):
                    key = self._names.key(name)
                    if key is not None:
                        yield key
                if cursor == b"0":
                    break

    async def _alive(self, prefix: str, names: list[bytes]) -> list[bytes]:
        """Return those that are no tombstones and still there."""
        if not names:
            return []
        kept: list[bytes] = await self._ask("list", prefix, (b"EVALSHA", LIST, b"%d" % len(names), *names))
        return kept

    # ------------------------------------------------------------ records that expire

    def live(self, name: str, keys: LiveKeys) -> None:
        if self._refresher is not None:
            self._refresher.watch(name, keys)

    async def release(self, name: str) -> None:
        if self._refresher is not None:
            self._refresher.forget(name)
        await super().release(name)

    def _refresh(self, key: str) -> asyncio.Future[Any]:
        command = (b"EVALSHA", REFRESH, b"1", self._name(key), self._life or _NEVER)
        return self._send("refresh", key, command, partial(self._read, "refresh", key))

    # ------------------------------------------------------------ requests

    def _name(self, key: str) -> bytes:
        return self._of(key, self._names.of)

    def _of(self, key: str, name: Callable[[str], bytes]) -> bytes:
        try:
            return name(key)
        except UnicodeEncodeError:
            raise InvalidKeyError("a key holds a lone surrogate: decode it as UTF-8 at its source") from None

    def _ask(self, verb: str, key: str, command: Command) -> asyncio.Future[Any]:
        """Read something, which counts only if the server holds our data."""
        return self._begin(verb, key, command, partial(self._read, verb, key), guarded=True).future

    def _read(self, verb: str, key: str, reply: Any) -> Any:
        if isinstance(reply, Exception):
            raise refusal(reply, self._door.where, f"{verb} of key {key!r}", writes=False)
        return reply

    def _send(
        self, verb: str, key: str, command: Command, understand: Callable[[Any], Any], *, writes: bool = False
    ) -> asyncio.Future[Any]:
        return self._begin(verb, key, command, understand, writes=writes).future

    def _begin(
        self,
        verb: str,
        key: str,
        command: Command,
        understand: Callable[[Any], Any],
        *,
        writes: bool = False,
        guarded: bool = False,
    ) -> Request:
        self._check_open()
        assert self._exchange is not None
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        deadline = loop.time() + self.timeout
        request = Request(verb, key, command, future, understand, deadline, writes, guarded)
        self._exchange.send(request)
        return request


def _condition(expected: Revision | Expect) -> bytes:
    return b"" if isinstance(expected, Expect) else head_of(expected)
