"""A store that fails, waits and counts on demand.

This file knows the store protocol and wraps any store. It knows nothing about agents.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, get_args

from ..stores.base import Durability, Expect, Revision, Store, Stored
from ._factory import needs_argument

__all__ = ["FaultyStore", "Gate", "Verb"]

Verb: TypeAlias = Literal["get", "head", "put", "delete", "keys", "count", "claim", "open", "close"]
T = TypeVar("T")


@dataclass(slots=True)
class _Fault:
    verb: Verb
    key: str | None
    after: bool
    error: BaseException | Callable[[], BaseException]
    times: float

    def make(self) -> BaseException:
        self.times -= 1
        if isinstance(self.error, BaseException):
            return self.error.with_traceback(None)
        return self.error()


class Gate:
    """Holds operations of a ``FaultyStore`` until it is released."""

    def __init__(self, verb: Verb, key: str | None, *, after: bool) -> None:
        self.verb, self.key, self.after = verb, key, after
        self.waiting = 0
        """How many operations are held now."""
        self._open = asyncio.Event()
        self._arrival = asyncio.Condition()

    def release(self) -> None:
        """Let go of the operations held, and hold no more. Idempotent."""
        self._open.set()

    async def reached(self, count: int = 1, limit: float = 5.0) -> None:
        """Wait until *count* operations are held."""
        try:
            async with asyncio.timeout(limit), self._arrival:
                await self._arrival.wait_for(lambda: self.waiting >= count)
        except TimeoutError:
            raise AssertionError(f"{self.waiting} of {count} {self.verb} operations came within {limit:g} s") from None

    async def through(self) -> None:
        """Be held. ``FaultyStore`` calls it for each operation."""
        if self._open.is_set():
            return
        self.waiting += 1
        try:
            async with self._arrival:
                self._arrival.notify_all()
            await self._open.wait()
        finally:
            self.waiting -= 1


class FaultyStore(Store):
    """Wrap *inner* and do what it does, until told otherwise.

    ::

        store = FaultyStore(MemoryStore())
        store.fail("put", StoreUnavailableError("disk full"), times=3)      # refused, then well again
        store.fail("put", OutcomeUnknownError("reset"), after=True)         # stored, but nobody knows
        gate = store.hold("put")
        ...
        await gate.reached()                                                # a put is under way
        gate.release()
        assert store.calls["put"] == 5

    Opening it opens *inner*, closing it closes *inner* unless somebody else has it open too.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.timeout = inner.timeout
        self.calls: Counter[str] = Counter()
        """How often each verb was asked for, failures included."""
        self.log: list[tuple[Verb, str]] = []
        """Verb and key (of a listing: prefix) of each operation, in the order in which they came."""
        self._faults: list[_Fault] = []
        self._gates: list[Gate] = []

    @property
    def durability(self) -> Durability:  # type: ignore[override]  # that of *inner*, which may know it once it is open
        return self.inner.durability

    @property
    def network(self) -> bool:  # type: ignore[override]
        return self.inner.network

    def fail(
        self,
        verb: Verb,
        error: BaseException | Callable[[], BaseException],
        *,
        times: float = 1,
        after: bool = False,
        key: str | None = None,
    ) -> None:
        """Raise *error* the next *times* times (``math.inf``: until ``heal``), only for *key* if one is given.

        *error* is an exception, its class, or a function that makes one. With ``after=True`` the operation is done
        first: an outcome that landed and that its caller doesn't know. Faults of one verb are used up in the order in
        which they were set.
        """
        _check_raisable(error)
        self._faults.append(_Fault(_known(verb), key, after, error, times))

    def hold(self, verb: Verb, *, after: bool = False, key: str | None = None) -> Gate:
        """Hold operations from now on until the gate is released: before they are done, or ``after``, only of *key*."""
        gate = Gate(_known(verb), key, after=after)
        self._gates.append(gate)
        return gate

    def heal(self) -> None:
        """Forget all faults and release all gates."""
        self._faults.clear()
        for gate in self._gates:
            gate.release()
        self._gates.clear()

    # ------------------------------------------------------------ the store

    async def open(self) -> None:
        await self._do("open", "", self.inner.__aenter__)

    async def close(self) -> None:
        await self._do("close", "", lambda: self.inner.__aexit__(None, None, None))

    async def get(self, key: str) -> Stored | None:
        return await self._do("get", key, lambda: self.inner.get(key))

    async def head(self, key: str) -> Revision | None:
        return await self._do("head", key, lambda: self.inner.head(key))

    async def put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> None:
        await self._do("put", key, lambda: self.inner.put(key, data, revision=revision, expected=expected))

    async def delete(self, key: str, *, expected: Revision | Expect) -> None:
        await self._do("delete", key, lambda: self.inner.delete(key, expected=expected))

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield what *inner* yields. A fault comes before the first key, or with ``after=True`` after the last."""
        before, after = self._ask("keys", prefix)
        await self._pass_gates("keys", prefix, after=False)
        if before is not None:
            raise before
        async for key in self.inner.keys(prefix):
            yield key
        await self._pass_gates("keys", prefix, after=True)
        if after is not None:
            raise after

    async def count(self, prefix: str = "") -> int:
        return await self._do("count", prefix, lambda: self.inner.count(prefix))

    async def claim(self, name: str, *, shared: bool, wait: float) -> None:
        await self._do("claim", name, lambda: self.inner.claim(name, shared=shared, wait=wait))

    def live(self, name: str, keys: Callable[[], Iterable[str]]) -> None:
        self.inner.live(name, keys)

    async def release(self, name: str) -> None:
        await self.inner.release(name)

    async def _do(self, verb: Verb, key: str, action: Callable[[], Awaitable[T]]) -> T:
        before, after = self._ask(verb, key)
        await self._pass_gates(verb, key, after=False)
        if before is not None:
            raise before
        result = await action()
        await self._pass_gates(verb, key, after=True)
        if after is not None:
            raise after
        return result

    def _ask(self, verb: Verb, key: str) -> tuple[BaseException | None, BaseException | None]:
        """Note an operation; what it is to raise before it is done, and after."""
        self.calls[verb] += 1
        self.log.append((verb, key))
        for fault in self._faults:
            if fault.verb == verb and fault.key in (None, key) and fault.times > 0:
                error = fault.make()
                return (None, error) if fault.after else (error, None)
        return None, None

    async def _pass_gates(self, verb: Verb, key: str, *, after: bool) -> None:
        for gate in list(self._gates):
            if gate.verb == verb and gate.key in (None, key) and gate.after == after:
                await gate.through()


def _check_raisable(error: object) -> None:
    if isinstance(error, BaseException):
        return
    if not callable(error) or (isinstance(error, type) and not issubclass(error, BaseException)):
        raise TypeError(f"{error!r} can't be raised: pass an exception, its class, or a function that makes one")
    if needs_argument(error):
        raise TypeError(
            f"{error!r} needs an argument: pass an exception, or a function without arguments that makes one"
        )


def _known(verb: Verb) -> Verb:
    if verb not in get_args(Verb):
        raise ValueError(f"no store operation is called {verb!r}: use one of {', '.join(get_args(Verb))}")
    return verb
