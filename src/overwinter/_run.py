"""``overwinter.run``: ``asyncio.run`` for a service that is told to end by a signal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar, cast

from .errors import CloseError
from .manager import CLOSING

__all__ = ["run"]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T | None:
    """Run *main* as ``asyncio.run`` does, and end it in order on SIGTERM.

    On SIGTERM *main* is cancelled, so that its ``async with`` blocks close their managers and every agent is stored;
    ``None`` is returned. What closes is seen to its end, however *main* ended, and however often the signal comes. If
    some agents could not be stored, a report goes to stderr and the process exits with status 1.
    Call it in the main thread; it is the only thing in overwinter that handles signals.
    """
    told = False
    failures: list[CloseError] = []

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        task = loop.create_task(main)

        def end() -> None:
            nonlocal told
            if not told or not _closing():  # what closes is not helped by another signal
                told = True
                task.cancel()

        loop.add_signal_handler(signal.SIGTERM, end)
        try:
            return await task
        except asyncio.CancelledError:
            if not task.done():  # Ctrl-C cancels this one
                task.cancel()
                await asyncio.wait([task])
                task.result()
            raise
        finally:
            try:
                await _see_closed(failures)  # who waited for it was cancelled, perhaps
            finally:
                loop.remove_signal_handler(signal.SIGTERM)

    result = None
    try:
        result = asyncio.run(supervised())
    except BaseException as error:
        failures.extend(_close_errors(error))
        if not isinstance(error, CloseError) and not (told and isinstance(error, asyncio.CancelledError)):
            raise
    finally:
        for failure in dict.fromkeys(failures):
            _report(failure)
    if failures:
        raise SystemExit(1)
    return result


def _closing() -> list[asyncio.Task[None]]:
    here = asyncio.get_running_loop()
    return [task for task in CLOSING if task.get_loop() is here and not task.done()]


async def _see_closed(failures: list[CloseError]) -> None:
    """Wait until nothing closes any more, and add to *failures* what came of that, which nobody was told."""
    other: BaseException | None = None
    while closing := _closing():
        await asyncio.wait(closing)
        for task in closing:
            error = None if task.cancelled() else task.exception()
            told = list(_close_errors(error))
            failures.extend(told)
            if not told:
                other = other or error
    if other is not None:
        raise other


def _close_errors(error: BaseException | None) -> Iterator[CloseError]:
    """What is in an error, and behind it: of several managers that can't store, each raises its own."""
    while error is not None:
        if isinstance(error, CloseError):
            yield error
        elif isinstance(error, BaseExceptionGroup):
            for one in cast("BaseExceptionGroup[BaseException]", error).exceptions:
                yield from _close_errors(one)
        error = error.__context__


def _report(error: CloseError) -> None:
    lines = [f"overwinter: {error}"]
    for what, keys in (("not stored", error.not_stored), ("unknown", error.unknown), ("abandoned", error.abandoned)):
        lines += [f"  {what}: {key!r}" for key in keys]
    sys.stderr.write("\n".join(lines) + "\n")
