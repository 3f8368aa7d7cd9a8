"""Waits that end, and what several of these tests do to a manager meanwhile. A hang is a failure that says so."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from agents import Counter

from overwinter import Persistence
from overwinter.testing import ManualClock

LIMIT = 5.0  # real seconds; nothing here takes a tenth of one


async def outcome(awaitable: Awaitable[Any], limit: float = LIMIT) -> Any:
    """What it returned or raised, as a value; ``AssertionError`` if it hangs."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.wait([task], timeout=limit)
    if not task.done():
        task.cancel()
        raise AssertionError(f"it hangs: {task!r}")
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()


async def rest(passes: int = 50) -> None:
    """Let everything happen that needs no time."""
    for _ in range(passes):
        await asyncio.sleep(0)


async def pass_time(clock: ManualClock, happened: Callable[[], object], *, step: float = 0.5) -> None:
    """Move *clock* on until something has happened."""
    for _ in range(5000):
        if happened():
            return
        await asyncio.sleep(0)
        clock.advance(step)
    raise AssertionError(f"{5000 * step:g} s passed, and it did not happen")


@contextlib.contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Fail after so many real seconds, even if the event loop spins in one place: no timeout of its own fires then."""

    def late(*_: object) -> None:
        pytest.fail(f"it took more than {seconds:g} s: it hangs, or the event loop is frozen")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def reports() -> list[dict[str, Any]]:
    """What goes to the loop's exception handler from now on."""
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    return seen


async def stored(store, cls=Counter, key: str = "ada"):
    """What is on the disk now."""
    async with Persistence(store) as persistence:
        return await persistence.thaw(cls, key)


async def write_behind(store, by: int, cls=Counter, key: str = "ada") -> None:
    """What another owner does."""
    async with Persistence(store) as persistence:
        other = await persistence.thaw(cls, key)
        other.count += by
        await persistence.hibernate(key, other)
