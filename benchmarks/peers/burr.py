"""Burr: each call saves the state as the next step of its application, by the persister itself; no action graph is
run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

from burr.core import State
from burr.integrations.persisters.b_aiosqlite import AsyncSQLitePersister

from .._load import change, drive, kilobyte, run, scratch
from . import version

__all__ = ["durable_calls", "settings"]


def settings() -> str:
    how = "AsyncSQLitePersister.save, as it comes: rollback journal, synchronous=FULL; callers share its transactions"
    return f"apache-burr {version('apache-burr')}: {how}"


def durable_calls(agents: int, seconds: float) -> float:
    async def main() -> float:
        async with AsyncSQLitePersister.from_values(str(scratch() / "burr.db")) as persister:
            await persister.initialize()
            return await drive([caller(persister, f"key-{number}") for number in range(agents)], seconds)

    return run(main())


def caller(persister: AsyncSQLitePersister, key: str) -> Callable[[], Awaitable[object]]:
    items, steps = kilobyte(), count()

    def step() -> Awaitable[object]:
        change(items)
        return persister.save("", key, next(steps), "change", State({"items": items}), "completed")

    return step
