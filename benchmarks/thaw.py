"""Agents of 1 KB got again per second, all at once; and how long one `get` takes among few and many stored ones.

The limit is the bare engine, which reads and decodes one row after the other; `no gc` is ours while Python's cyclic
garbage collector is off. For one `get` at a time, it is the same
read among as many rows, without the hop to a thread and back that keeps the event loop free.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import apsw
import msgspec

from overwinter import InstanceManager, SQLiteStore

from ._load import collector, kilobyte, run, scratch
from ._measure import Row, Scale, Task, Team
from ._ours import Cart, carts, open_store

__all__ = ["TITLE", "among", "among_bare", "filled", "ours", "run_all"]

TITLE = "Thaw"
ASKED = 1_000


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    for store, many in (("sqlite", 10_000), ("file", 1_000)):
        count = scale.pick(many, 50)
        limits = {
            "sqlite": Task("benchmarks._limits:engine_get", {"count": count}),
            "file": Task("benchmarks._limits:file_calls", {"verb": "get", "count": count}),
        }
        ours_ = Task("benchmarks.thaw:ours", {"store": store, "count": count})
        no_gc = Task("benchmarks.thaw:ours", {"store": store, "count": count, "collect": False})
        contenders = {"ours": ours_, "no gc": no_gc, "limit": limits[store]}
        rows.append(team.compare(f"{count:,} agents, {store}", "agents/s", contenders, also=("no gc",)))
    rows[0].want(0.17).want_figure(25_000)
    for stored in scale.pick((1_000, 100_000, 1_000_000), (1_000, 2_000)):
        arguments = {"stored": stored, "asked": scale.pick(ASKED, 50)}
        tasks = {
            "ours": Task("benchmarks.thaw:among", arguments),
            "limit": Task("benchmarks.thaw:among_bare", arguments),
        }
        what = f"median of one get among {stored:,} stored"
        rows.append(team.compare(what, "µs", tasks, less_is_better=True))
    first, last = rows[2], rows[-1]
    last.goals[f"≤ 1.3 × that {first.what[18:]}"] = last["ours"] <= 1.3 * first["ours"]
    return rows


def ours(store: str, count: int, collect: bool = True) -> float:
    async def main() -> float:
        async with carts(open_store(store), count, durability="hibernate") as (manager, _):
            keys = manager.keys()
            await asyncio.gather(*(manager.stop(key) for key in keys))
            with collector(collect):
                begin = time.perf_counter()
                await asyncio.gather(*(manager.get(key) for key in keys))
                return count / (time.perf_counter() - begin)

    return run(main())


@cache
def filled(stored: int, real: int) -> Path:
    """A database of so many records, the *real* ones among them spread evenly; the others are of the same size."""
    path = scratch() / "agents.db"

    async def prepare() -> None:
        async with InstanceManager(Cart, store=SQLiteStore(path)) as manager:
            await asyncio.gather(*(manager.get(f"key-{n}", initial={"items": kilobyte()}) for n in range(real)))

    run(prepare())
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA synchronous = OFF; BEGIN IMMEDIATE")
    step = max(1, stored // real)
    connection.execute("UPDATE agents SET id = -id * ?", (step,))
    connection.execute("UPDATE agents SET id = -id")
    length = connection.execute("SELECT length(data) FROM agents LIMIT 1").get
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO agents(id, key, revision, data)"
        " SELECT i, 'bench.cart:key-' || hex(randomblob(6)), randomblob(16), zeroblob(?) FROM n WHERE i % ? != 0",
        (stored, length, step),
    )
    connection.execute("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    descriptor = os.open(path, os.O_RDWR)  # what the kernel has still to write would slow down what is measured
    os.fsync(descriptor)
    os.close(descriptor)
    return path


def among(stored: int, asked: int) -> float:
    """Median microseconds of one get, one after the other."""

    path = filled(stored, asked)

    async def main() -> float:
        async with InstanceManager(Cart, store=SQLiteStore(path), durability="hibernate") as manager:
            spent = []
            for number in range(asked):
                begin = time.perf_counter()
                await manager.get(f"key-{number}", missing="raise")
                spent.append(time.perf_counter() - begin)
            return statistics.median(spent) * 1e6

    return run(main())


def among_bare(stored: int, asked: int) -> float:
    connection = apsw.Connection(str(filled(stored, asked)))
    decode = msgspec.msgpack.Decoder(dict[str, list[dict[str, Any]]]).decode
    state = msgspec.msgpack.encode({"items": kilobyte()})
    spent = []
    for number in range(asked):
        begin = time.perf_counter()
        connection.execute("SELECT data FROM agents WHERE key = ?", (f"bench.cart:key-{number}",)).get  # noqa: B018
        decode(state)
        spent.append(time.perf_counter() - begin)
    connection.close()
    return statistics.median(spent) * 1e6
