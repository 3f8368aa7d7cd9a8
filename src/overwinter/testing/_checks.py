"""The checks that the tests of ``StoreContract`` are made of. They know the store protocol only."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from ..errors import CorruptRecordError, RevisionConflictError
from ..stores.base import Expect, Revision, Store, Stored
from ._steps import in_seconds, within

__all__ = [
    "SOME",
    "begun",
    "contract_test",
    "decided",
    "holds",
    "limited",
    "new_revision",
    "not_absent",
    "not_replaced",
    "open_files",
    "race",
    "refused",
]

T = TypeVar("T")


class _Limited(Protocol):
    limit: float


C = TypeVar("C", bound=_Limited)

SOME = "some key"
_PASSES = 20  # of the event loop, in which a second answer would come


def contract_test(scenario: Callable[[C], Awaitable[None]]) -> Callable[[C], None]:
    """Make a plain test of a coroutine function, so that no plugin is needed."""

    @functools.wraps(scenario)
    def run(self: C) -> None:
        asyncio.run(limited(scenario(self), self.limit))

    del run.__wrapped__  # or runners would take it for the coroutine function
    return run


async def limited(operation: Awaitable[T], limit: float) -> T:
    """Await what one test does. Of many calls none needs to hang to exceed *limit*."""
    why = "if the store is right and only slow, give the contract a higher limit"
    return await in_seconds(operation, limit, f"this test was not done in {limit:g} s: {why}")


def open_files() -> int:
    """How many descriptors this process holds, where the system tells."""
    folder = "/proc/self/fd"
    return len(os.listdir(folder)) if os.path.exists(folder) else 0  # noqa: PTH110, PTH208  # shorter


def new_revision() -> Revision:
    return os.urandom(16)


async def refused(operation: Awaitable[Any], what: str) -> None:
    try:
        await operation
    except RevisionConflictError:
        return
    raise AssertionError(f"{what} must raise RevisionConflictError")


async def not_absent(change: Awaitable[Any], what: str) -> None:
    """Await a change of damaged data that must be refused, in whatever way."""
    try:
        await change
    except (RevisionConflictError, CorruptRecordError):
        return
    raise AssertionError(f"{what} must raise RevisionConflictError or CorruptRecordError")


async def not_replaced(store: Store) -> None:
    fresh = store.put(SOME, b"fresh", revision=new_revision(), expected=Expect.ABSENT)
    await not_absent(fresh, "a create over damaged data")


async def begun(begin: Callable[[Callable[..., object]], object], verb: str) -> tuple[Any, ...]:
    """Begin what tells its outcome to a callback; return what that was told, once and in a later pass of the loop."""
    told: list[tuple[Any, ...]] = []
    first = asyncio.Event()

    def done(*outcome: Any) -> None:
        told.append(outcome)
        first.set()

    begin(done)
    assert not told, f"{verb} must call done in a later pass of the event loop, not before it returns"
    await within(first.wait(), f"in a {verb}: done is not called")
    for _ in range(_PASSES):
        await asyncio.sleep(0)
    assert len(told) == 1, f"{verb} must call done once, not {len(told)} times"
    return told[0]


async def decided(store: Store, before: Stored | None, after: Stored) -> Stored:
    """Settle a cancelled put as a manager does, by another conditional put; return what is stored then."""
    while True:
        found = await store.get(SOME)
        assert found in (before, after), "a cancelled put must be whole or not at all"
        settled = Stored(b"settled", new_revision())
        expected = Expect.ABSENT if found is None else found.revision
        try:
            await store.put(SOME, settled.data, revision=settled.revision, expected=expected)
        except RevisionConflictError:
            assert found == before, "nobody else writes, but the revision moved"  # the cancelled one landed just now
            before = after
        else:
            await holds(store, SOME, settled.data, settled.revision)
            return settled


async def holds(store: Store, key: str, data: bytes, revision: Revision) -> None:
    stored = await store.get(key)
    assert stored is not None, f"{key[:40]!r} was put and is absent"
    assert stored.data == data, f"{key[:40]!r} holds other data than was put"
    assert stored.revision == revision, f"{key[:40]!r} is at another revision than was put"
    assert await store.head(key) == revision, f"head of {key[:40]!r} differs from get"


async def race(one: Store, other: Store, key: str, base: Revision | Expect) -> Revision:
    """Put from both over *base*; return the winner's revision."""
    first, second = new_revision(), new_revision()
    outcomes = await asyncio.gather(
        one.put(key, b"one", revision=first, expected=base),
        other.put(key, b"other", revision=second, expected=base),
        return_exceptions=True,
    )
    winners = [outcome is None for outcome in outcomes]
    assert winners.count(True) == 1, f"exactly one of two racers must win, not {outcomes!r}"
    loser = outcomes[winners.index(False)]
    assert isinstance(loser, RevisionConflictError), f"the loser must get RevisionConflictError, not {loser!r}"
    await holds(one, key, *((b"one", first) if winners[0] else (b"other", second)))
    return first if winners[0] else second
