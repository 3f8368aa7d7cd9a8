"""Agents brought to life per second, without a store; and `get` of one that is alive.

The limit of the first is making the object, of the others a look into a dictionary.
"""

from __future__ import annotations

import time

from overwinter import InstanceManager

from ._load import run
from ._measure import Row, Scale, Task, Team
from ._ours import Counter

__all__ = ["TITLE", "bare", "ours", "run_all"]

TITLE = "Activate"
GOALS = {"fresh": 100_000, "get": 1_000_000, "lookup": 1_000_000}


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    names = {"fresh": "get of a fresh agent", "get": "get of a live agent", "lookup": "lookup of a live agent"}
    for what, goal in GOALS.items():
        arguments = {"what": what, "count": scale.pick(10_000, 200)}
        tasks = {
            "ours": Task("benchmarks.activate:ours", arguments),
            "limit": Task("benchmarks.activate:bare", arguments),
        }
        rows.append(team.compare(names[what], "agents/s", tasks).want_figure(goal))
    return rows


def ours(what: str, count: int) -> float:
    keys = [f"key-{number}" for number in range(count)]

    async def main() -> float:
        async with InstanceManager(Counter) as manager:
            if what != "fresh":
                for key in keys:
                    await manager.get(key)
            begin = time.perf_counter()
            if what == "lookup":
                for key in keys:
                    manager.lookup(key)
            else:
                for key in keys:
                    await manager.get(key)
            return count / (time.perf_counter() - begin)

    return run(main())


def bare(what: str, count: int) -> float:
    keys = [f"key-{number}" for number in range(count)]
    agents = {key: Counter() for key in keys}
    begin = time.perf_counter()
    if what == "fresh":
        agents = {}
        for key in keys:
            agents[key] = Counter()
    else:
        for key in keys:
            agents.get(key)
    return count / (time.perf_counter() - begin)
