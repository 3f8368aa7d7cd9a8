"""Whether a call costs more the more agents there are: microseconds per call beside live agents, and per put beside
stored ones.

Calls go to live agents at random; the limit is the same coroutine on bare objects, which grow apart in memory just
so. Puts are durable calls of 32 agents at once; the limit is the bare pipeline in an empty file.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import cache
from typing import Any

from overwinter import InstanceManager, SQLiteStore

from ._limits import pipeline
from ._load import drive, run
from ._measure import Row, Scale, Task, Team
from ._ours import Cart, Counter
from .thaw import filled

__all__ = ["TITLE", "bare_calls", "calls", "puts", "puts_limit", "run_all"]

TITLE = "Growth"
ASKED = 20_000


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    for series, kind, limit, sizes in (
        ("live", "calls", "bare_calls", (1_000, 10_000, 100_000, 1_000_000)),
        ("stored", "puts", "puts_limit", (1_000, 10_000, 100_000, 1_000_000)),
    ):
        line = []
        for count in scale.pick(sizes, (100, 1_000)):
            arguments = {"count": count} if series == "live" else {"count": count, "seconds": scale.seconds}
            tasks = {
                "ours": Task(f"benchmarks.growth:{kind}", arguments),
                "limit": Task(f"benchmarks.growth:{limit}", arguments),
            }
            what = f"a call among {count:,} live" if series == "live" else f"a put among {count:,} stored"
            line.append(team.compare(what, "µs", tasks, less_is_better=True, x=count, series=series))
        line[-1].goals[f"≤ 1.3 × {line[0].what}"] = line[-1]["ours"] <= 1.3 * line[0]["ours"]
        rows += line
    return rows


@cache
def crowd(count: int) -> tuple[asyncio.Runner, InstanceManager[Counter], list[str]]:
    """So many live agents, kept for the next repeat."""
    runner = asyncio.Runner()
    manager = InstanceManager(Counter)
    keys = [f"key-{number}" for number in range(count)]

    async def prepare() -> None:
        await manager.open()
        for key in keys:
            await manager.get(key)

    runner.run(prepare())
    return runner, manager, keys


def calls(count: int) -> float:
    runner, manager, keys = crowd(count)
    chosen = random.Random(1).choices(keys, k=ASKED)

    async def main() -> float:
        begin = time.perf_counter()
        for key in chosen:
            await manager.call(key, Counter.add)
        return (time.perf_counter() - begin) / ASKED * 1e6

    return runner.run(main())


@cache
def objects(count: int) -> dict[str, Any]:
    return {f"key-{number}": Counter() for number in range(count)}


def bare_calls(count: int) -> float:
    agents = objects(count)
    chosen = random.Random(1).choices(list(agents), k=ASKED)

    async def main() -> float:
        begin = time.perf_counter()
        for key in chosen:
            await agents[key].add()
        return (time.perf_counter() - begin) / ASKED * 1e6

    return run(main())


def puts(count: int, seconds: float) -> float:
    path = filled(count, 32)

    async def main() -> float:
        async with InstanceManager(Cart, store=SQLiteStore(path)) as manager:
            references = [await manager.get(f"key-{number}", missing="raise") for number in range(32)]
            return 1e6 / await drive([reference.change for reference in references], seconds)

    return run(main())


def puts_limit(count: int, seconds: float) -> float:  # noqa: ARG001  # called like ours
    return 1e6 / pipeline(32, seconds)
