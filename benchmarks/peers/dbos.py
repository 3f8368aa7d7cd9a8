"""DBOS: each call is a durable workflow that returns the new state; its result is stored before it is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dbos import DBOS

from .._load import change, drive, kilobyte, run, scratch
from . import version

__all__ = ["durable_calls", "settings"]


def settings() -> str:
    return f"dbos {version('dbos')}: a workflow without steps per call, SQLite as it comes: rollback journal, FULL"


def durable_calls(agents: int, seconds: float) -> float:
    url = f"sqlite:///{scratch() / 'dbos.db'}"
    DBOS(config={"name": "bench", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})

    @DBOS.workflow()
    async def changed(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        change(items)
        return items

    async def main() -> float:
        DBOS.launch()
        try:
            return await drive([caller(changed) for _ in range(agents)], seconds)
        finally:
            DBOS.destroy()

    return run(main())


def caller(workflow: Callable[..., Any]) -> Callable[[], Awaitable[object]]:
    items = kilobyte()

    async def step() -> None:
        items[:] = await workflow(items)

    return step
