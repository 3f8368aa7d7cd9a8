"""Turns per second without a store: a method adds to a counter.

`ours` is `manager.call(key, Counter.add)`; `reference` is `await counter.add()` on what `attach` and `get` give. The
limit is the same coroutine awaited on a bare object: no key, no turn, no rollback.
"""

from __future__ import annotations

from functools import partial

from overwinter import InstanceManager

from ._load import drive, run
from ._measure import Row, Scale, Task, Team
from ._ours import Counter

__all__ = ["TITLE", "ours", "run_all"]

TITLE = "Calls"


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    for agents in (1, 32):
        sizes = {"agents": agents, "callers": agents, "seconds": scale.seconds}
        limit = {"callers": agents, "seconds": scale.seconds}
        row = team.compare(
            f"{agents} callers, {agents} agents" if agents > 1 else "1 caller, 1 agent",
            "calls/s",
            {
                "ours": Task("benchmarks.calls:ours", sizes),
                "reference": Task("benchmarks.calls:ours", {**sizes, "reference": True}),
                "limit": Task("benchmarks._limits:counter_calls", limit),
                "Pykka": Task("benchmarks.peers.pykka:calls", sizes),
                "casty": Task("benchmarks.peers.casty:calls", sizes),
            },
            also=("reference",),
        )
        row.want(8, "Pykka").want(25, "casty")
        row.goals["reference ≥ 0.5 × call"] = row["reference"] >= row["ours"] / 2
        rows.append(row)
    return rows


def ours(agents: int, callers: int, seconds: float, reference: bool = False) -> float:
    async def main() -> float:
        async with InstanceManager(Counter) as manager:
            keys = [f"key-{number}" for number in range(agents)]
            references = [await manager.get(key) for key in keys]
            if reference:
                steps = [references[number % agents].add for number in range(callers)]
            else:
                steps = [partial(manager.call, keys[number % agents], Counter.add) for number in range(callers)]
            return await drive(steps, seconds, chunk=100)

    return run(main())
