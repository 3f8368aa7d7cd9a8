"""The way to a Redis server: its address, what is looked at before it is used, and whether it still is the same.

This file knows connections that are new. It does not know the requests that follow.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..errors import OverwinterError, StoreUnavailableError, UsageError
from ._redis_answers import refusal
from ._redis_frame import TEXTS, TOUCH, Names
from ._redis_line import Command, StaleLineError, ask
from ._redis_server import Terms, check, read_facts
from .base import Durability

__all__ = ["Door"]

_PAUSE = 0.1
"""Seconds between two looks at a log that is written anew."""

# The driver's own business, which would make a connection listen to more than our replies.
_NOT_OURS = ("maint_", "orig_", "oss_", "event_dispatcher", "himport")


class Door:
    """Makes connections, and lets only those in that lead to our data."""

    def __init__(
        self, server: str | Redis, names: Names, terms: Terms, *, timeout: float, expect_existing: bool
    ) -> None:
        self._pool = _pool_of(server)
        self._names = names
        self._own = names.store.decode()
        self._terms = terms
        self._timeout = timeout
        self._expect_existing = expect_existing
        self._found: Durability | None = None
        self._log_of = ""  # the server, in its present life, whose log is known to be in force
        self._behind = 0.0
        self.place = _where(self._pool.connection_kwargs)
        self.where = f"Redis at {self.place}"
        self._look: Command = (b"GET", names.store)
        self.guard: tuple[Command, ...] = (self._look, (b"INFO", b"replication"))
        self.identity = b""
        """The store's id, as it was when this process saw it first."""
        self.why = ""

    @property
    def durability(self) -> Durability:
        assert self._found is not None
        return self._found

    def server_time(self) -> float:
        """Return the server's clock, as of now, by what it said last."""
        return asyncio.get_running_loop().time() + self._behind

    def set_clock(self, seconds: int) -> None:
        self._behind = seconds - asyncio.get_running_loop().time()

    def dial(self) -> AbstractConnection:
        kwargs = {name: value for name, value in self._pool.connection_kwargs.items() if not name.startswith(_NOT_OURS)}
        # Deadlines and repetitions are ours: the driver would repeat writes, and know nothing of those who wait.
        kwargs |= {"socket_timeout": None, "socket_connect_timeout": self._timeout, "retry": Retry(NoBackoff(), 0)}
        kwargs |= {
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "decode_responses": False,
        }
        return self._pool.connection_class(**kwargs)

    async def greet(self, connection: AbstractConnection) -> str:
        """See whether the server is fit for use and holds our data, and say which process it is.

        Raises:
            UsageError: it never will be; only the first time.
            StoreUnavailableError: it is not, now.
        """
        info, config, clock, identity, *_ = await ask(
            connection,
            (b"INFO",),
            (b"CONFIG", b"GET", b"*append*"),
            (b"TIME",),
            self._look,
            *((b"SCRIPT", b"LOAD", text) for text in TEXTS.values()),
        )
        for reply in (info, clock):
            if isinstance(reply, Exception):
                raise self._refusal(reply, "a first look at it")
        facts = read_facts(info, _settings(config))
        try:
            durability = check(facts, self._terms, self.where)
        except UsageError as error:
            if self._found is None:
                raise
            raise StoreUnavailableError(str(error)) from None  # a put must not fail in any other way
        if self._found is not None and durability < self._found:
            raise StoreUnavailableError(
                f"{self.where} promises less than when this store was opened ({facts.why}): replies would "
                "leave before they are safe; change its settings back, or start this program again"
            )
        if isinstance(identity, Exception):
            raise self._refusal(identity, "a look at the store's own key")
        self.set_clock(int(clock[0]))
        identity = await self._recognise(connection, identity)
        if durability is not Durability.NONE:
            if facts.rewriting and facts.life != self._log_of:
                await self._wait_for_log(connection, identity)
            self._log_of = facts.life
        self.identity = identity
        if self._found is None:
            self._found, self.why = durability, facts.why
        return facts.process

    async def _recognise(self, connection: AbstractConnection, identity: bytes | None) -> bytes:
        if self.identity:
            self._compare(identity)
            return self.identity
        if identity is not None:
            return identity
        if self._expect_existing:
            raise StoreUnavailableError(
                f"{self.where} holds no agents (there is no key {self._own!r}), and expect_existing=True says that "
                "it should: see whether it came back empty, or whether this is another server"
            )
        new = os.urandom(16).hex().encode()
        done, found = await ask(connection, (b"SET", self._names.store, new, b"NX"), self._look)
        for reply in (done, found):
            if isinstance(reply, Exception):
                raise self._refusal(reply, "the first write")
        made: bytes = found
        return made

    async def _wait_for_log(self, connection: AbstractConnection, identity: bytes) -> None:
        """Return once the log holds what was written before, which may be long before a rewrite of it is done.

        A log that was just switched on, or that of a replica after its first copy, is nothing until its first rewrite
        is done: if the server dies before, all is gone. INFO shows that as it shows any rewrite, WAITAOF tells them
        apart; where there is none (before Redis 7.2) each rewrite is waited for.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout / 2
        (touched,) = await ask(connection, (b"EVAL", TOUCH, b"1", self._names.store, identity))
        look = ((b"WAITAOF", b"1", b"0", b"%d" % (_PAUSE * 1000)), (b"INFO", b"persistence"))
        while True:
            flushed, info = await ask(connection, *look)
            if isinstance(info, Exception):
                raise self._refusal(info, "a look at its log")
            known = touched == 1 and isinstance(flushed, list)  # WAITAOF tells nothing to who wrote nothing
            if (known and flushed[0] == 1) or not read_facts(info, None).rewriting:
                return
            if loop.time() > end:
                raise StoreUnavailableError(
                    f"{self.where} is writing its log anew, and what it answers for may be lost if it dies before that "
                    "is done: try again in a moment"
                )
            if not known:
                await asyncio.sleep(_PAUSE)

    def check_guard(self, replies: list[Any]) -> None:
        identity, info = replies
        self._compare(identity)
        if isinstance(info, Exception):
            raise self._refusal(info, "a look at its role")
        if b"\nrole:master" not in info:  # it was demoted, and kept its connections
            raise StoreUnavailableError(f"{self.where} is a replica now, and may hold what is old: nothing was read")

    def _compare(self, identity: Any) -> None:
        if isinstance(identity, Exception):
            raise self._refusal(identity, "a look at the store's own key")
        if identity != self.identity:
            raise self.lost()

    def lost(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.where} does not hold the agents any more: its key {self._own!r} is gone, or another. "
            "It was flushed, it came back empty, or the address leads to another server. Nothing is read or written, "
            "and nobody starts anew. Restore its data; or, if it is meant to be empty, start this program again"
        )

    def _refusal(self, error: Exception, about: str) -> OverwinterError:
        try:
            return refusal(error, self.where, about, writes=False)
        except StaleLineError as stale:
            return stale.error


def _pool_of(server: str | Redis) -> ConnectionPool:
    if not isinstance(server, str):
        pool: ConnectionPool = server.connection_pool
        return pool
    scheme, _, rest = server.partition("://")
    scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
    if scheme not in ("redis", "rediss", "unix"):
        raise UsageError("the URL of a RedisStore begins with redis://, rediss://, valkey://, valkeys:// or unix://")
    try:
        made: ConnectionPool = ConnectionPool.from_url(f"{scheme}://{rest}")  # pyright: ignore[reportUnknownMemberType]
    except ValueError:
        raise UsageError(
            "the URL of a RedisStore can't be read: redis://user:password@host:6379/0, or unix:///path?db=0"
        ) from None
    return made


def _where(kwargs: Mapping[str, Any]) -> str:
    """The address in words, without a user or a password."""
    if kwargs.get("path"):
        place = f"unix:{kwargs['path']}"
    elif hasattr(kwargs.get("connection_pool"), "service_name"):
        place = f"the primary of {kwargs['connection_pool'].service_name!r}"
    else:
        place = f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
    return f"{place} (database {kwargs['db']})" if kwargs.get("db") else place


def _settings(reply: Any) -> Mapping[bytes, bytes] | None:
    if isinstance(reply, Exception):
        return None  # managed servers keep their settings to themselves
    flat: list[bytes] = [part for pair in reply.items() for part in pair] if hasattr(reply, "items") else reply  # RESP3
    return dict(zip(flat[::2], flat[1::2], strict=True))
