"""The peers, each doing the same work in its own way, at the settings closest to our promise.

A module here has ``settings()``, which says what was measured, and some of ``calls`` (turns of a counter without a
store) and ``durable_calls`` (each call stores a change of the state, with one fsync or more, before it is answered).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

__all__ = ["DURABLE", "durable_tasks", "version"]

DURABLE = {
    "casty": "casty",
    "LangGraph": "langgraph",
    "openai-agents": "openai_agents",
    "eventsourcing": "eventsourcing",
    "diskcache": "diskcache",
    "Burr": "burr",
    "DBOS": "dbos",
}
"""Those that make calls durable: what they are called, and their module here."""


def durable_tasks(**arguments: Any) -> dict[str, Any]:
    """Their tasks by name."""
    from .._measure import Task

    return {name: Task(f"benchmarks.peers.{module}:durable_calls", arguments) for name, module in DURABLE.items()}
