"""Cancel an operation at each of its awaits, one after another.

This file knows coroutines and tasks. It does not know stores.

There are three ways to be cancelled, and code that survives one may leak in another: when an await begins (what is
awaited is cancelled too), when it has just ended (what it gave is thrown away), and between two passes of the event
loop, which also reaches the awaits of tasks that the operation itself has started.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["cancelled_everywhere", "in_seconds", "patience", "within"]

T = TypeVar("T")

_MOST_AWAITS = 300
_EACH_AWAIT = 32
_MOST_PASSES = 20_000
_PATIENCE = 10.0  # seconds after which a single call hangs


def patience() -> float:
    return _PATIENCE


async def cancelled_everywhere(
    start: Callable[[], Coroutine[Any, Any, Any]],
    check: Callable[[], Awaitable[Any]],
    what: str,
    *,
    each_await: int = _EACH_AWAIT,
    each_pass: int = 0,
) -> int:
    """Run what *start* makes again and again, cancelled ever later until it isn't any more; *check* after each.

    The first *each_await* awaits and *each_pass* passes have their turn, and of what comes then some. Returns how often
    it was cancelled.
    """
    cancelled = 0
    for late in (False, True):
        at, reached = 1, True
        while reached and at < _MOST_AWAITS:
            reached = await _cancelled_at(start(), at, late, what)
            cancelled += reached
            await within(check(), f"after a {what} that was cancelled at await {at}")
            at += 1 if at < each_await else at // 8  # so many are a loop's: not each of them is something new
    passes = 0
    while passes < _MOST_PASSES:
        reached = await _cancelled_after(start(), passes, what)
        await within(check(), f"after a {what} that was cancelled after {passes} passes of the event loop")
        if not reached:
            break
        cancelled += 1
        passes += 1 if passes < each_pass else 1 + passes // 2
    return cancelled


async def within(operation: Awaitable[T], when: str, limit: float | None = None) -> T:
    """Await *operation*; one that takes longer than *limit* seconds hangs."""
    return await in_seconds(operation, patience() if limit is None else limit, f"the store hangs {when}")


async def in_seconds(operation: Awaitable[T], limit: float, otherwise: str) -> T:
    """Await *operation*; ``AssertionError(otherwise)`` if that takes more than *limit* seconds."""
    deadline = asyncio.timeout(limit)
    try:
        async with deadline:
            return await operation
    except TimeoutError:
        if not deadline.expired():
            raise
        raise AssertionError(otherwise) from None


async def _cancelled_at(operation: Coroutine[Any, Any, Any], at: int, late: bool, what: str) -> bool:
    """Cancel *operation* at its await number *at*; whether it came to that."""
    reached: list[bool] = []

    async def run() -> None:
        await _cut(operation, at, late, reached)

    task = asyncio.create_task(run())
    await _ended(task, what)
    _judge(task, bool(reached), f"{what} that was cancelled at await {at}")
    return bool(reached)


async def _cancelled_after(operation: Coroutine[Any, Any, Any], passes: int, what: str) -> bool:
    task = asyncio.create_task(operation)
    for _ in range(passes):
        await asyncio.sleep(0)
        if task.done():
            break
    cancelled = task.cancel()
    await _ended(task, what)
    _judge(task, cancelled, f"{what} that was cancelled after {passes} passes of the event loop")
    return cancelled


async def _ended(task: asyncio.Task[Any], what: str) -> None:
    await asyncio.wait([task], timeout=_PATIENCE)
    assert task.done(), f"a cancelled {what} must end: this one goes on"


def _judge(task: asyncio.Task[Any], was_cancelled: bool, what: str) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if was_cancelled:
        ended = "returned" if error is None else f"raised {error!r}"
        raise AssertionError(f"a {what} must end with CancelledError, or its caller's time-outs fail; it {ended}")
    if error is not None:
        raise error


@types.coroutine
def _cut(operation: Coroutine[Any, Any, Any], at: int, late: bool, reached: list[bool]) -> Generator[Any, None, Any]:
    """Pass on what *operation* waits for, and cancel the running task at the await number *at*."""
    task = asyncio.current_task()
    assert task is not None

    def cancel(_: asyncio.Future[Any]) -> None:
        task.cancel()

    count = 0
    thrown: BaseException | None = None
    while True:
        try:
            awaited = operation.send(None) if thrown is None else operation.throw(thrown)
        except StopIteration as stop:
            return stop.value
        count += 1
        if count == at:
            reached.append(True)
            if late and awaited is not None:
                awaited.add_done_callback(cancel)  # called before the task's own callback: it wakes up cancelled
            else:
                task.cancel()
        try:
            yield awaited
        except BaseException as error:  # noqa: BLE001  # whatever comes is the operation's
            thrown = error
        else:
            thrown = None
