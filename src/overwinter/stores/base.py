"""The store protocol: three verbs over a key, bytes and a revision. A store never sees an agent.

A store of one's own implements ``get``, ``put`` and ``delete``; everything else here has a default.
"""

from __future__ import annotations

import asyncio
import enum
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Self, TypeAlias, TypeVar

from ..errors import ClosedError, OutcomeUnknownError, StoreError, StoreInUseError, StoreUnavailableError, UsageError

__all__ = ["Done", "Durability", "Expect", "Got", "Revision", "Store", "Stored"]

T = TypeVar("T")

Done: TypeAlias = Callable[[BaseException | None], object]
"""What is called with the error of a put, or with ``None`` when it is durable."""

Revision: TypeAlias = bytes
"""The writer's unique write id (16 random bytes). It never comes back, not after delete and re-create either."""


class Durability(enum.IntEnum):
    """What an acknowledged put survives."""

    NONE = 0
    """Nothing: it lives in this process."""
    PROCESS = 1
    """A ``kill -9`` of the process."""
    HOST = 2
    """Power loss of the machine."""
    REPLICATED = 3
    """The loss of the machine."""


class Expect(enum.Enum):
    """What a writer expects to find, when that is no revision."""

    ABSENT = "absent"
    """Nothing is stored under the key: create only."""
    ANY = "any"
    """Whatever is there, or nothing. Only for deleting what can't be read."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store holds under a key."""

    data: bytes
    revision: Revision


Got: TypeAlias = Callable[[Stored | None, BaseException | None], object]
"""What is called with the outcome of a get: what is stored, if anything is, or the error."""


class Store(ABC):
    """Where records are kept.

    Each call either does what it says or raises one of these, and the difference matters:

    * ``RevisionConflictError``: not stored, somebody else wrote.
    * ``StoreUnavailableError``: certainly not stored; the caller may repeat it.
    * ``OutcomeUnknownError``: a time-out, a reset, a failed fsync: perhaps stored.
    * ``CorruptRecordError``: something is there and can't be read. Never report it as absent.

    A store is opened with ``async with store:`` or by the managers that use it; the last to leave closes it.
    All calls come from one event loop. A call may be cancelled at any await: what it began then happens or
    doesn't, whole, and the store stays usable.
    """

    durability: Durability = Durability.NONE
    """What an acknowledged put survives, at the settings of this store."""

    timeout: float = 30.0
    """Seconds after which a call gives up."""

    network: bool = False
    """Whether other machines may use the same data: then owners meet only at the conditions of their puts."""

    _leases: int = 0
    _opening: asyncio.Lock | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _pid: int = 0
    _claims: set[str] | None = None

    @abstractmethod
    async def get(self, key: str) -> Stored | None:
        """Return what is stored under *key*, or ``None`` if, and only if, nothing is."""

    @abstractmethod
    async def put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> None:
        """Store *data* as *revision* if what is there is *expected*; return when it is durable.

        *revision* is made by the writer and unique. *expected* is a revision or ``Expect.ABSENT``.
        """

    @abstractmethod
    async def delete(self, key: str, *, expected: Revision | Expect) -> None:
        """Delete what is under *key* if it is *expected*. Idempotent: what is absent already is deleted."""

    async def open(self) -> None:
        """Connect, create, check; called once, before the first call."""

    async def close(self) -> None:
        """Let go of everything; called once, after the last call."""

    async def head(self, key: str) -> Revision | None:
        """Return the revision under *key* without its data. Override it where that is cheaper than a ``get``."""
        stored = await self.get(key)
        return None if stored is None else stored.revision

    def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield the keys that begin with *prefix*, each once, in no order.

        What is there from the first step to the last is yielded; what comes or goes meanwhile may be. Reads in pages:
        memory doesn't grow with the number of keys. Leaving early is safe.

        Raises:
            UsageError: this store can't list its keys.
        """
        raise UsageError(f"a {type(self).__name__} can't list its keys: it has no keys() of its own")

    async def count(self, prefix: str = "") -> int:
        """Return how many keys begin with *prefix*. Override it where that is cheaper than listing them."""
        number = 0
        async for _ in self.keys(prefix):
            number += 1
        return number

    def submit(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> asyncio.Future[None]:
        """Begin a put that no caller's cancellation can touch; the future carries its outcome.

        Override it where a batch of puts is cheaper than a task each.
        """
        return asyncio.ensure_future(self._put_in_time(key, data, revision, expected))

    def fetch(self, key: str) -> asyncio.Future[Stored | None]:
        """Begin a get within ``timeout``; the future carries its outcome.

        Override it, together with ``get``, where a batch of gets is cheaper than a task each.
        """
        return asyncio.ensure_future(self._get_in_time(key))

    def begin_get(self, key: str, done: Got) -> asyncio.Future[Stored | None] | None:
        """Begin a get as ``fetch`` does; *done* is called once, in a later pass of the loop.

        Managers get in this way. What it returns, if anything, may be cancelled, and *done* is told that. Override it,
        beside ``fetch``, only where even a future for each get is too dear.
        """

        def told(got: asyncio.Future[Stored | None]) -> None:
            error = asyncio.CancelledError() if got.cancelled() else got.exception()
            done(None if error is not None else got.result(), error)

        answer = self.fetch(key)
        answer.add_done_callback(told)
        return answer

    def begin_put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect, done: Done) -> None:
        """Begin a put as ``submit`` does; *done* is called once, in a later pass of the loop.

        Managers put in this way. Override it, beside ``submit``, only where even a future for each put is too dear.
        """
        self.submit(key, data, revision=revision, expected=expected).add_done_callback(
            lambda put: done(OutcomeUnknownError("the put was cancelled") if put.cancelled() else put.exception())
        )

    async def in_time(self, operation: Awaitable[T], late: type[StoreError] = StoreUnavailableError) -> T:
        """Await *operation* for ``timeout`` seconds at most; then raise *late*, and also if it cancels itself."""
        task = asyncio.current_task()
        # How often it was asked to end before; what is not delivered yet comes in there, and is meant.
        asked = 0 if task is None else task.cancelling() - bool(getattr(task, "_must_cancel", False))
        try:
            async with asyncio.timeout(self.timeout):
                return await operation
        except TimeoutError:
            raise late(f"{type(self).__name__} did not answer within {self.timeout:g} s") from None
        except asyncio.CancelledError:
            if task is None or task.cancelling() > asked:
                raise
            # Of nobody's asking: a client cancels what is under way when its connection goes.
            raise late(f"{type(self).__name__} was cancelled before it had an answer") from None

    async def _get_in_time(self, key: str) -> Stored | None:
        return await self.in_time(self.get(key))  # begun here: one that was given up before has no coroutine to warn of

    async def _put_in_time(self, key: str, data: bytes, revision: Revision, expected: Revision | Expect) -> None:
        await self.in_time(self.put(key, data, revision=revision, expected=expected), OutcomeUnknownError)

    async def claim(self, name: str, *, shared: bool, wait: float) -> None:
        """Become an owner of the agents called *name* here, the only one unless *shared*; wait up to *wait* seconds.

        The base class keeps two owners of one store object apart. Stores that several processes can open
        on one machine keep processes apart too.

        Raises:
            StoreInUseError: somebody else is.
        """
        if self._claims is None:
            self._claims = set()
        if name in self._claims:
            raise StoreInUseError(
                f"agent {name!r} already has a manager on this {type(self).__name__} in this process: "
                "share that manager, or give one of the two classes another name= or store"
            )
        self._claims.add(name)

    async def release(self, name: str) -> None:
        """End a claim. Idempotent."""
        if self._claims is not None:
            self._claims.discard(name)

    def live(self, name: str, keys: Callable[[], Iterable[str]]) -> None:
        """Take note of who knows which agents called *name* are live: *keys* gives their store keys, as of now.

        A manager says so after its ``claim``. It is for stores whose records expire unless their agents are live.
        """

    # ------------------------------------------------------------ leases: who has it open

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if self._leases:
            self._check_open()
        if self._opening is None or self._loop is not loop or self._pid != os.getpid():
            self._opening, self._loop, self._pid = asyncio.Lock(), loop, os.getpid()
        async with self._opening:
            if not self._leases:
                await self.open()
            self._leases += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._opening is not None
        async with self._opening:
            self._leases -= 1
            if not self._leases:
                await self.close()

    def _check_open(self) -> None:
        """Raise unless a call may be made here and now. For the stores of this package."""
        if not self._leases:
            raise ClosedError(
                f"this {type(self).__name__} is not open: use it in `async with store:` or hand it to a manager"
            )
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None  # so it is in a forked child too
        if here is not self._loop:  # the common case costs no system call for the process's number
            raise UsageError(
                f"this {type(self).__name__} was opened before a fork: make a new one in the child process"
                if self._pid != os.getpid()
                else f"this {type(self).__name__} is open in another event loop: make one store per loop"
            )
