"""The work that all contenders do, and callers who make them do it. Knows no contender."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from ._measure import ROOT, Skipped

__all__ = ["LOOPS", "change", "collector", "drive", "drive_blocking", "kilobyte", "run", "scratch", "skip_unless"]

T = TypeVar("T")


def kilobyte() -> list[dict[str, Any]]:
    """The "1 KB state" of all tables."""
    return [{"id": i, "name": f"item-{i:02}", "price": 9.99 + i, "qty": 1} for i in range(20)]


def change(items: list[dict[str, Any]]) -> None:
    """What a durable call does to it."""
    item = items[0]
    item["qty"] = (item["qty"] + 1) % 100  # stays one byte


LOOPS = ("asyncio", "uvloop") if find_spec("uvloop") else ("asyncio",)
"""The event loops that are measured."""


def run(main: Coroutine[Any, Any, T], loop: str = "asyncio") -> T:
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        return runner.run(main)


def loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if loop == "asyncio":
        return None
    import uvloop

    return uvloop.new_event_loop


async def drive(steps: Sequence[Callable[[], Awaitable[object]]], seconds: float, *, chunk: int = 1) -> float:
    """Have one caller per step, who calls again as soon as he is answered. Return calls per second.

    A first round is not counted. For calls that take far less than a look at the clock, *chunk* of them are
    made between two looks, and others come in there.
    """
    await asyncio.gather(*(step() for step in steps))
    done, begin = 0, time.perf_counter()

    async def caller(step: Callable[[], Awaitable[object]]) -> None:
        nonlocal done
        while time.perf_counter() < begin + seconds:
            for _ in range(chunk):
                await step()
            done += chunk
            if chunk > 1:
                await asyncio.sleep(0)

    await asyncio.gather(*(caller(step) for step in steps))
    return done / (time.perf_counter() - begin)  # the last answers may come late, and count


def drive_blocking(step: Callable[[int], object], agents: int, seconds: float) -> float:
    """Call *step* with one agent's number after the other. For what answers before it returns."""
    for number in range(min(agents, 32)):
        step(number)
    done, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        step(done % agents)
        done += 1
    return done / (now - begin)


@contextmanager
def collector(on: bool) -> Iterator[None]:
    """Whether Python collects cyclic garbage meanwhile."""
    if not on:
        gc.disable()
    try:
        yield
    finally:
        gc.enable()


def scratch(name: str = "") -> Path:
    """A new folder that goes with this process, on a real disk: in ``BENCH_DIR`` or beside the sources."""
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}", dir=os.environ.get("BENCH_DIR") or ROOT))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def skip_unless(condition: bool, why: str) -> None:
    if not condition:
        raise Skipped(why)
