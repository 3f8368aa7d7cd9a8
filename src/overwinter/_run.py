"""``overwinter.run``: ``asyncio.run`` for a service that is told to end by a signal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from .errors import CloseError

__all__ = ["run"]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T | None:
    """Run *main* as ``asyncio.run`` does, and end it in order on SIGTERM.

    On SIGTERM *main* is cancelled, so that its ``async with`` blocks close their managers and every agent is stored;
    ``None`` is returned. If some could not be stored, a report goes to stderr and the process exits with status 1.
    Call it in the main thread; it is the only thing in overwinter that handles signals.
    """
    told = False

    async def supervised() -> T:
        task = asyncio.get_running_loop().create_task(main)

        def end() -> None:
            nonlocal told
            told = True
            task.cancel()

        loop = asyncio.get_running_loop()
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
            loop.remove_signal_handler(signal.SIGTERM)

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        if not told:
            raise
        return None
    except CloseError as error:
        _report(error)
        raise SystemExit(1) from None


def _report(error: CloseError) -> None:
    lines = [f"overwinter: {error}"]
    for what, keys in (("not stored", error.not_stored), ("unknown", error.unknown), ("abandoned", error.abandoned)):
        lines += [f"  {what}: {key!r}" for key in keys]
    sys.stderr.write("\n".join(lines) + "\n")
