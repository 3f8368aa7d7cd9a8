"""Agents of 1 KB put to sleep per second: each is new and not stored yet, and all are stopped at once.

The limit is the bare engine: for SQLite new rows in transactions of 256, for files the system calls of a durable file
in a loop. `no gc` is ours while Python's cyclic garbage collector is off: it looks at all live agents, their state
included, whenever thousands of calls wait at once.
"""

from __future__ import annotations

import asyncio
import time

from ._load import collector, run
from ._measure import Row, Scale, Task, Team
from ._ours import carts, open_store

__all__ = ["TITLE", "ours", "run_all"]

TITLE = "Hibernate"


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    for store, many in (("sqlite", 10_000), ("file", 1_000)):
        count = scale.pick(many, 50)
        limits = {
            "sqlite": Task("benchmarks._limits:engine_fill", {"count": count}),
            "file": Task("benchmarks._limits:file_calls", {"verb": "put", "count": min(count, 300)}),
        }
        ours_ = Task("benchmarks.hibernate:ours", {"store": store, "count": count})
        no_gc = Task("benchmarks.hibernate:ours", {"store": store, "count": count, "collect": False})
        contenders = {"ours": ours_, "no gc": no_gc, "limit": limits[store]}
        row = team.compare(f"{count:,} agents, {store}", "agents/s", contenders, also=("no gc",))
        rows.append(row.want(0.33) if store == "sqlite" else row.want(1))
    rows[0].want_figure(30_000)
    return rows


def ours(store: str, count: int, collect: bool = True) -> float:
    async def main() -> float:
        async with carts(open_store(store), count, durability="hibernate") as (manager, _):
            keys = manager.keys()
            with collector(collect):
                begin = time.perf_counter()
                await asyncio.gather(*(manager.stop(key) for key in keys))
                return count / (time.perf_counter() - begin)

    return run(main())
