"""Bytes of memory that a live idle agent takes, and what watching over idle agents costs.

Measured as the growth of the process, a new one each time, with agents of one number and an idle timeout. The limit
is the user's own objects in a dictionary; what is above it is ours. It hardly varies, so it is measured once.
"""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

from overwinter import InstanceManager

from ._load import run
from ._measure import Row, Scale, Task, Team
from ._ours import Counter

__all__ = ["TITLE", "bare", "idle", "ours", "run_all"]

TITLE = "Memory"


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    sizes = scale.pick((10_000, 100_000, 1_000_000), (2_000,))
    for count in sizes:
        tasks = {
            "ours": Task("benchmarks.memory:ours", {"count": count}),
            "limit": Task("benchmarks.memory:bare", {"count": count}),
        }
        row = team.compare(
            f"{count:,} live agents",
            "bytes/agent",
            tasks,
            less_is_better=True,
            fresh=True,
            repeats=1,
            x=count,
            series="memory",
        )
        row.goals["≤ 600 bytes more than the object"] = row["ours"] - row["limit"] <= 600
        rows.append(row)
    count = scale.pick(100_000, 2_000)
    task = Task("benchmarks.memory:idle", {"count": count, "seconds": scale.pick(2.0, 0.05)})
    what = f"watching {count:,} idle agents"
    rows.append(team.compare(what, "% of a core", {"ours": task}, less_is_better=True, fresh=True).want_figure(2))
    return rows


def resident() -> int:
    """Bytes of memory this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def ours(count: int) -> float:
    async def main() -> float:
        async with InstanceManager(Counter, idle_timeout=3600) as manager:
            await manager.call("first", Counter.add)
            before = resident()
            for number in range(count):
                await manager.call(f"key-{number}", Counter.add)
            return (resident() - before) / count

    return run(main())


def bare(count: int) -> float:
    before = resident()
    agents: dict[str, Any] = {f"key-{number}": Counter(count=1) for number in range(count)}
    grown = resident() - before
    return grown / len(agents)


def idle(count: int, seconds: float) -> float:
    """Percent of a core that the process takes when all its agents are idle and none is due."""

    async def main() -> float:
        async with InstanceManager(Counter, idle_timeout=3600) as manager:
            for number in range(count):
                await manager.get(f"key-{number}")
            begin = time.process_time()
            await asyncio.sleep(seconds)
            return (time.process_time() - begin) / seconds * 100

    return run(main())
