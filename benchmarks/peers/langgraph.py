"""LangGraph's AsyncSqliteSaver: one checkpoint per call, written by the saver itself; no graph is run, which would
cost more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from .._load import change, drive, kilobyte, run, scratch
from . import version

__all__ = ["durable_calls", "settings"]


def settings() -> str:
    package = "langgraph-checkpoint-sqlite"
    return f"{package} {version(package)}: AsyncSqliteSaver.aput, WAL, synchronous=FULL"


def durable_calls(agents: int, seconds: float) -> float:
    async def main() -> float:
        async with AsyncSqliteSaver.from_conn_string(str(scratch() / "saver.db")) as saver:
            await saver.setup()
            await saver.conn.execute("PRAGMA synchronous = FULL")
            return await drive([caller(saver, f"key-{number}") for number in range(agents)], seconds)

    return run(main())


def caller(saver: AsyncSqliteSaver, key: str) -> Callable[[], Awaitable[object]]:
    items = kilobyte()
    config: Any = {"configurable": {"thread_id": key, "checkpoint_ns": ""}}

    async def step() -> None:
        nonlocal config
        change(items)
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"items": items}
        config = await saver.aput(config, checkpoint, {"source": "loop", "step": 1, "parents": {}}, {})

    return step
