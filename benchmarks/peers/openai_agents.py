"""openai-agents' SQLiteSession: each call adds one item of the size of the state to a session."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from agents import SQLiteSession

from .._load import change, drive, kilobyte, run, scratch
from . import version

__all__ = ["durable_calls", "settings"]


def settings() -> str:
    how = "SQLiteSession.add_items, a session per agent, all in one file, WAL, synchronous=FULL"
    return f"openai-agents {version('openai-agents')}: {how}"


def durable_calls(agents: int, seconds: float) -> float:
    path = scratch() / "sessions.db"

    async def main() -> float:
        sessions = [SQLiteSession(f"key-{number}", path) for number in range(agents)]
        try:
            return await drive([caller(session) for session in sessions], seconds)
        finally:
            for session in sessions:
                session.close()

    return run(main())


def caller(session: SQLiteSession) -> Callable[[], Awaitable[object]]:
    items = kilobyte()

    def step() -> Awaitable[object]:
        change(items)
        return session.add_items([{"role": "user", "content": json.dumps(items)}])

    return step
