"""Hibernate and thaw: the only module that knows agent, record *and* store.

It does not know when an agent lives, who calls it, or how long anything may take.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from struct import Struct as Layout
from typing import Any, Generic, Self, TypeVar

from ._store_keys import KeyFunction, agent_keys, count_agents, default_key
from ._types import check_key
from .agent import Agent, AgentType, agent_type
from .agent._base import KEY, give_key
from .agent._receipts import Receipts, receipts_from
from .errors import (
    AgentStateError,
    CorruptRecordError,
    MigrationError,
    OutcomeUnknownError,
    OverwinterError,
    RevisionConflictError,
    StateTooLargeError,
    ThawError,
    UnknownAgentError,
)
from .record import CUSTOM, EXTRAS, MAX_BYTES, Header, seal, unpack
from .stores.base import Expect, Revision, Store, Stored

__all__ = ["MAX_STATE", "Keeper", "KeyFunction", "Loaded", "Persistence", "default_key", "new_revision"]

A = TypeVar("A", bound=Agent)

MAX_STATE = 4 * 1024 * 1024
"""Default bound of an encoded state, in bytes: encoding holds the interpreter for some 3 ms per MB."""

MOST_STATE = MAX_BYTES - 64 * 1024
"""The largest bound: what stands beside a state in its record, names and receipts, is less than the rest."""

_MOST_SEQUENCE = 2**64 - 1

_NOTHING: Mapping[str, Any] = {}


_ids: list[bytes] = []
_SPLIT: Callable[[bytes], tuple[bytes, ...]] = Layout("16s" * 256).unpack
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.clear)  # or two processes would hand out the same ones


def new_revision() -> Revision:
    """A write id that nobody else makes. Safe in any thread."""
    try:
        return _ids.pop()
    except IndexError:  # a system call for many costs as much as for one
        first, *others = _SPLIT(os.urandom(16 * 256))
        _ids.extend(others)
        return first


@dataclass(slots=True)
class Loaded(Generic[A]):
    """A thawed agent and where it stands in its record's line of revisions."""

    agent: A
    body: bytes
    """What encoding the agent as it is now gives: not the stored bytes if it was migrated."""
    extras: Mapping[str, Any]
    receipts: Receipts
    store_key: str
    revision: Revision
    sequence: int
    unsettled: bool
    """Whether another thaw of the same record would give something else, such as a new id made by an upcast."""


def checked_max_state(max_state: int) -> int:
    """Return *max_state* if a record can hold a state of as many bytes; raise ``ValueError`` otherwise."""
    if not 1 <= max_state <= MOST_STATE:
        raise ValueError(f"max_state must be 1 to {MOST_STATE:,} bytes, for a record holds no more, not {max_state:,}")
    return max_state


class Keeper(Generic[A]):
    """The records of one agent class in one store."""

    def __init__(
        self,
        kind: AgentType[A],
        store: Store | None,
        *,
        key_fn: KeyFunction | None = None,
        max_state: int = MAX_STATE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.kind, self.store, self.max_state = kind, store, checked_max_state(max_state)
        self._schema = kind.schema
        self._encode = self._schema.encode
        self._names = (kind.name, *kind.aliases)
        self._key_fn, self._now = key_fn or default_key, now
        self._flags = CUSTOM if kind.custom else 0

    @cached_property
    def _who_wrote(self) -> tuple[str, int, bytes]:
        return self.kind.name, self._schema.version, self._schema.fingerprint

    def store_key(self, key: str) -> str:
        """Where the record of a new agent goes."""
        return self._key_fn(self.kind.name, key)

    def store_keys(self, key: str) -> list[str]:
        """Where a record may be, under the class's name and under its former ones."""
        return [self._key_fn(name, key) for name in self._names]

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys under which something is stored, readable or not, that begin with *prefix*; each once."""
        if self.store is not None:
            async for key in agent_keys(self.store, self._names, prefix, self._key_fn):
                yield key

    async def count(self, prefix: str) -> int:
        """Return how many keys begin with *prefix*."""
        return 0 if self.store is None else await count_agents(self.store, self._names, prefix, self._key_fn)

    async def load(self, key: str) -> Loaded[A] | None:
        """Thaw what is stored under *key*, or under it with a former name; ``None`` only if that is nothing.

        Raises:
            ThawError: there is something, and it can't come alive. The stored bytes stay as they are.
            StoreError: the store could not tell.
        """
        if self.store is None:
            return None
        for store_key in self.store_keys(key):
            stored = await self.store.in_time(self.store.get(store_key))
            if stored is not None:
                return self.read(key, store_key, stored)
        return None

    def read(self, key: str, store_key: str, stored: Stored) -> Loaded[A]:
        """Make the agent of its record.

        Raises:
            ThawError: it can't come alive.
        """
        where = f"{self.kind.name} {key!r}"
        try:
            header, body = unpack(stored.data)
        except ThawError as error:
            raise type(error)(f"{where}: {error}") from None
        self._check_whose(header, key)
        if header.revision != stored.revision:
            raise CorruptRecordError(
                f"{where}: the record and the store disagree on its revision: restore a backup of both"
            )
        if bool(header.flags & CUSTOM) != self.kind.custom:
            was = "a dump() of the class's own" if header.flags & CUSTOM else "the class's fields"
            raise ThawError(
                f"{where}: the record holds {was}, and the class now does it the other way: "
                "keep dump and load, or migrate the record"
            )
        decode = partial(
            self._schema.decode,
            body,
            version=header.version,
            fingerprint=header.fingerprint,
            has_extras=bool(header.flags & EXTRAS),
            key=key,
        )
        agent, extras = decode()
        give_key(agent, key)
        unsettled = False
        same = header.version == self._schema.version and header.fingerprint == self._schema.fingerprint
        if extras or not (same and self._schema.repeats):
            before = body
            try:
                body = self.encode(agent, extras, any_size=True)
                unsettled = body != before and self.encode(*decode(), any_size=True) != body
            except AgentStateError as error:
                kind = CorruptRecordError if same and not self.kind.custom else MigrationError
                raise kind(f"{where}: what the record holds could not be stored again, so it stays: {error}") from None
        return Loaded(
            agent,
            body,
            extras,
            receipts_from(where, header.calls),
            store_key,
            stored.revision,
            header.sequence,
            unsettled,
        )

    def _check_whose(self, header: Header, key: str) -> None:
        where = f"{self.kind.name} {key!r}"
        if header.agent not in self._names:
            raise UnknownAgentError(
                f"{where}: the record belongs to agent {header.agent!r}: "
                f"if that is a former name, declare aliases=({header.agent!r},); if not, make key_fn tell agents apart"
            )
        if header.key != key:
            raise CorruptRecordError(
                f"{where}: the record is that of key {header.key!r}: make key_fn tell keys apart, or restore a backup"
            )

    async def delete(self, store: Store, key: str, store_key: str) -> bool:
        """Delete what is under a store key, readable or not, what is written meanwhile too; whether there was anything.

        A conditional delete, even of what was just seen, can't take what comes after it, however late it arrives.

        Raises:
            ThawError: it is another agent's, with which *key_fn* mixes this one up.
            StoreError: the store could not do it.
        """
        while (found := await self._deletable(store, key, store_key)) is not None:
            with suppress(RevisionConflictError):
                await store.in_time(store.delete(store_key, expected=found), OutcomeUnknownError)
                return True
        return False

    async def _deletable(self, store: Store, key: str, store_key: str) -> Revision | Expect | None:
        try:
            if self._key_fn is default_key:  # which mixes nothing up
                return await store.in_time(store.head(store_key))
            stored = await store.in_time(store.get(store_key))
        except CorruptRecordError:
            return Expect.ANY
        if stored is None:
            return None
        try:
            header, _ = unpack(stored.data)
        except ThawError:
            return stored.revision  # whose it is can't be told
        self._check_whose(header, key)
        return stored.revision

    def encode(self, agent: A, extras: Mapping[str, Any] = _NOTHING, *, any_size: bool = False) -> bytes:
        """Check and encode an agent's state.

        Raises:
            AgentStateError: it is not what the class declares.
            StateTooLargeError: it is larger than ``max_state``.
        """
        try:
            body = self._encode(agent, extras)
        except (OverwinterError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # dump() is the user's, and what Rust code panics with is no Exception
            raise AgentStateError(f"{self._who(agent)}: dump() raised {type(error).__name__}") from error
        if len(body) > self.max_state and not any_size:
            raise self.too_large(agent, body)
        return body

    def too_large(self, agent: A, body: bytes) -> StateTooLargeError:
        return StateTooLargeError(
            f"{self._who(agent)}: its state takes {len(body):,} bytes, more than max_state={self.max_state:,}: "
            "keep large things elsewhere and their names here, or raise max_state"
        )

    def _who(self, agent: A) -> str:
        return f"{self.kind.name} {agent.__dict__.get(KEY, '')!r}"  # never its repr, which the class may override

    def record(
        self,
        key: str,
        body: bytes,
        sequence: int,
        revision: Revision,
        extras: Mapping[str, Any],
        receipts: Receipts = (),
    ) -> bytes:
        """The record that says: this is the state of *key* as of *revision*."""
        flags = self._flags | EXTRAS if extras else self._flags
        time_us = int(self._now() * 1_000_000)
        sequence = min(sequence, _MOST_SEQUENCE)  # a hostile record may have begun there, and a put must not fail of it
        return seal((*self._who_wrote, key, sequence, revision, time_us, receipts), flags, body)


@dataclass(slots=True)
class _Line:
    """What the direct API remembers of an agent between a thaw and a hibernation."""

    store_key: str
    revision: Revision | Expect
    sequence: int
    extras: Mapping[str, Any]
    receipts: Receipts
    attempted: set[Revision]
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of two hibernations at once, the one that began later must store what is newer, and on top."""


_LINES = "#lines"


class Persistence:
    """Hibernate and thaw agents by hand, without a manager.

    Each write carries the revision that was read: of two that thaw one agent and both hibernate it, the second
    gets ``RevisionConflictError``, and so does one that hibernates a new agent over a record that exists.

    Use it in ``async with Persistence(store) as persistence:``, or open the store yourself.
    """

    def __init__(self, store: Store, *, key_fn: KeyFunction | None = None, max_state: int = MAX_STATE) -> None:
        self.store, self._key_fn, self._max_state = store, key_fn, checked_max_state(max_state)
        self._keepers: dict[type[Agent], Keeper[Any]] = {}

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.store.__aexit__(*exc)

    def _keeper(self, cls: type[A]) -> Keeper[A]:
        keeper = self._keepers.get(cls)
        if keeper is None:
            kind = agent_type(cls)
            kind.check()
            keeper = self._keepers[cls] = Keeper(kind, self.store, key_fn=self._key_fn, max_state=self._max_state)
        return keeper

    def _keeper_of(self, cls: type[A], key: str) -> Keeper[A]:
        keeper = self._keeper(cls)
        check_key(key, keeper.kind.name)
        return keeper

    async def thaw(self, cls: type[A], key: str) -> A | None:
        """Return the stored agent, or ``None`` if nothing is stored. ``on_start`` is not called.

        Raises:
            ThawError: something is stored that can't come alive; it is left as it is.
            StoreError: the store could not tell.
        """
        loaded = await self._keeper_of(cls, key).load(key)
        if loaded is None:
            return None
        line = _Line(loaded.store_key, loaded.revision, loaded.sequence, loaded.extras, loaded.receipts, set())
        vars(loaded.agent)[_LINES] = {key: line}
        return loaded.agent

    async def hibernate(self, key: str, agent: Agent) -> None:
        """Store *agent* under *key*; return when it is durable. ``on_stop`` is not called.

        Repeat it after ``StoreUnavailableError`` or ``OutcomeUnknownError``: it then finds out whether the first
        try was stored.

        Raises:
            RevisionConflictError: somebody else wrote this key; not stored. Thaw, and apply the change again.
        """
        keeper = self._keeper_of(type(agent), key)
        lines: dict[str, _Line] = agent.__dict__.get(_LINES, {})
        line = lines.get(key)
        if line is None:
            extras = next(iter(lines.values())).extras if lines else _NOTHING
            line = _Line(keeper.store_key(key), Expect.ABSENT, 0, extras, (), set())
            for former in keeper.store_keys(key)[1:]:
                if await self.store.in_time(self.store.head(former)) is not None:
                    raise RevisionConflictError(
                        f"{keeper.kind.name} {key!r} is stored already, under a former name: thaw it and change that"
                    )
            line = agent.__dict__.get(_LINES, {}).get(key, line)  # another hibernation may have begun meanwhile
        async with line.turn:
            body = keeper.encode(agent, line.extras)
            vars(agent).update({KEY: key, _LINES: {**agent.__dict__.get(_LINES, {}), key: line}})
            try:
                await self._put(keeper, key, line, body)
            except RevisionConflictError:
                head = await self.store.in_time(self.store.head(line.store_key)) if line.attempted else None
                if head is None or head not in line.attempted:
                    raise RevisionConflictError(
                        f"{keeper.kind.name} {key!r} was written by somebody else since it was thawed: "
                        "thaw it again and repeat the change"
                    ) from None
                line.revision = head  # an earlier try of ours had been stored after all
                await self._put(keeper, key, line, body)

    async def _put(self, keeper: Keeper[Any], key: str, line: _Line, body: bytes) -> None:
        revision = new_revision()
        data = keeper.record(
            key, body, sequence=line.sequence + 1, revision=revision, extras=line.extras, receipts=line.receipts
        )
        line.attempted.add(revision)  # a cancelled put may be stored, so it counts as tried from here on
        try:
            put = self.store.put(line.store_key, data, revision=revision, expected=line.revision)
            await self.store.in_time(put, OutcomeUnknownError)
        except OverwinterError as error:
            if not isinstance(error, OutcomeUnknownError):
                line.attempted.discard(revision)
            raise
        line.revision, line.sequence = revision, line.sequence + 1
        line.attempted.clear()

    async def delete(self, cls: type[Agent], key: str) -> None:
        """Delete what is stored under *key*, readable or not. Idempotent.

        Raises:
            ThawError: it is another agent's, with which ``key_fn`` mixes this one up.
        """
        keeper = self._keeper_of(cls, key)
        for store_key in keeper.store_keys(key):
            await keeper.delete(self.store, key, store_key)

    async def keys(self, cls: type[Agent], prefix: str = "") -> AsyncIterator[str]:
        """Yield the keys of the stored agents that begin with *prefix*, each once, in no order; thaw none.

        What is stored from the first step to the last is yielded; what comes or goes meanwhile may be. With a
        ``key_fn`` all records of the store are read, of other classes too, since the key stands only in them.

        Raises:
            CorruptRecordError: not all keys can be told. It comes last, when all others were yielded.
            UsageError: the store can't list its keys.
        """
        async for key in self._keeper(cls).keys(prefix):
            yield key

    async def count(self, cls: type[Agent], prefix: str = "") -> int:
        """Return how many agents are stored whose keys begin with *prefix*; see ``keys`` for what it raises."""
        return await self._keeper(cls).count(prefix)
