"""More keys than may be live: run as ``python crowd.py visit OPTIONS``, OPTIONS being JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from worker import say

from overwinter import Agent, InstanceManager
from overwinter.stores import from_url

CALLERS = 256


class Guest(Agent, name="guest"):
    visits: int = 0

    async def visit(self) -> int:
        self.visits += 1
        return self.visits


def resident() -> int:
    """The megabytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


async def visit_all(url: str, keys: Iterable[int], max_live: int, expected: int, every: int) -> int:
    """Visit all *keys* from many callers; say the memory, and what was live, after each *every* of them."""
    left, wrong = iter(keys), 0
    async with InstanceManager(Guest, store=from_url(url), max_live=max_live) as guests:

        async def caller() -> None:
            nonlocal wrong
            for key in left:
                wrong += await guests.call(str(key), Guest.visit) != expected
                if key % every == every - 1:
                    stats = guests.stats()
                    say("now", json.dumps([key + 1, stats.live - stats.thawing, resident()]))

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return wrong


async def visit(url: str, keys: int, max_live: int, again: int) -> None:
    """Visit each of *keys* keys once, then each *again*-th once more, as a new process of the manager would."""
    wrong = await visit_all(url, range(keys), max_live, 1, keys // 100)
    say("first", wrong)
    wrong = await visit_all(url, range(0, keys, again), max_live, 2, keys + 1)
    say("second", wrong)


if __name__ == "__main__":
    asyncio.run({"visit": visit}[sys.argv[1]](**json.loads(sys.argv[2])))
