"""How long the event loop can't turn to anything else while durable calls are made: what a web server beside them
would feel.

A timer that is due each millisecond notes how late it comes; where it comes less than a thousand times, p99.9 is the
longest gap. What the benchmark itself does at once, starting all its callers, is not counted. The limit is the bare
pipeline under the same load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from overwinter import InstanceManager

from ._limits import Pipeline, encode
from ._load import change, drive, kilobyte, run, scratch
from ._measure import Row, Scale, Task, Team
from ._ours import Large, open_store

__all__ = ["TITLE", "bare", "ours", "run_all"]

TITLE = "Gaps of the event loop"
LARGE = 1_380
"""So many carts take one megabyte."""


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    seconds = scale.pick(2.0, 0.1)
    for what, agents, size, goal in (
        ("256 agents of 1 KB", 256, 1, 10),
        ("8 agents of 1 MB", scale.pick(8, 1), LARGE, 30),
    ):
        arguments = {"agents": agents, "carts": size, "seconds": seconds}
        tasks = {
            "ours": Task("benchmarks.loop_gap:ours", arguments),
            "limit": Task("benchmarks.loop_gap:bare", arguments),
        }
        rows.append(team.compare(f"{what}: p99.9", "ms", tasks, less_is_better=True).want_figure(goal))
    return rows


async def gap(steps: Sequence[Callable[[], Awaitable[object]]], seconds: float) -> float:
    """Milliseconds that a due timer waits while all *steps* are called again and again."""
    late: list[float] = []
    under_way = time.perf_counter() + seconds / 3

    async def watch() -> None:
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            if due > under_way:
                late.append(time.perf_counter() - due)

    watcher = asyncio.create_task(watch())
    await drive(steps, seconds * 4 / 3)
    watcher.cancel()
    late.sort()
    return late[int(len(late) * 0.999)] * 1000


def ours(agents: int, carts: int, seconds: float) -> float:
    async def main() -> float:
        async with InstanceManager(Large, store=open_store("sqlite")) as manager:
            references = [
                await manager.get(f"key-{number}", initial={"carts": [kilobyte() for _ in range(carts)]})
                for number in range(agents)
            ]
            return await gap([reference.change for reference in references], seconds)

    return run(main())


def bare(agents: int, carts: int, seconds: float) -> float:
    async def main() -> float:
        writer = Pipeline(scratch() / "limit.db")

        def caller(key: str) -> Callable[[], Awaitable[object]]:
            state = [kilobyte() for _ in range(carts)]

            def step() -> Awaitable[object]:
                change(state[0])
                return writer.put(key, encode({"carts": state}))

            return step

        try:
            return await gap([caller(f"key-{number}") for number in range(agents)], seconds)
        finally:
            writer.close()

    return run(main())
