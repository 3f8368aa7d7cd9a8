"""The file store by itself: put, get and delete of 1 KB records per second, by 1 and 32 callers, each with keys of
his own.

Every change flushes the file and its folder. The limit is the same system calls in one thread's loop; `in a thread` is
those, with a hop from an event loop to a thread and back for each, which is the least that doesn't block the loop.
"""

from __future__ import annotations

import asyncio
import os
import time

from overwinter.stores import Expect

from ._load import run
from ._measure import Row, Scale, Task, Team
from ._ours import open_store

__all__ = ["TITLE", "ours", "run_all"]

TITLE = "Files"


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    for callers in (1, 32):
        for verb in ("put", "get", "delete"):
            count = scale.pick(3_200 if verb == "get" else 320, 32)
            row = team.compare(
                f"{verb}, {callers} caller{'s' * (callers > 1)}",
                "records/s",
                {
                    "ours": Task("benchmarks.file:ours", {"verb": verb, "callers": callers, "count": count}),
                    "limit": Task("benchmarks._limits:file_calls", {"verb": verb, "count": count}),
                    "in a thread": Task("benchmarks._limits:file_calls", {"verb": verb, "count": count, "hop": True}),
                },
                also=("in a thread",),
            )
            rows.append(row.want(0.8 if callers == 1 else 1))
    return rows


def ours(verb: str, callers: int, count: int) -> float:
    async def main() -> float:
        data = bytes(900)
        revision = os.urandom(16)
        async with open_store("file") as store:
            keys = [f"key-{number}" for number in range(count)]

            async def caller(first: int, verb: str) -> None:
                for key in keys[first::callers]:
                    if verb == "put":
                        await store.put(key, data, revision=revision, expected=Expect.ABSENT)
                    elif verb == "get":
                        await store.get(key)
                    else:
                        await store.delete(key, expected=revision)

            if verb != "put":
                await asyncio.gather(*(caller(first, "put") for first in range(callers)))
            begin = time.perf_counter()
            await asyncio.gather(*(caller(first, verb) for first in range(callers)))
            return count / (time.perf_counter() - begin)

    return run(main())
