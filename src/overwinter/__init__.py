"""Persistent, stateful agents: typed objects, addressed by a key, that survive restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import stores
from ._run import run
from ._types import Interval
from .agent import Agent, Signal, interleave, on, readonly, stream, transient, upcast
from .errors import OverwinterError
from .manager import Inspection, InstanceManager, Stats
from .persistence import Persistence
from .runtime._turn import commit
from .stores import MemoryStore
from .stores.base import Durability, Expect, Store, Stored
from .system import AgentSystem

if TYPE_CHECKING:
    from .stores import SQLiteStore

__all__ = [
    "Agent",
    "AgentSystem",
    "Durability",
    "Expect",
    "Inspection",
    "InstanceManager",
    "Interval",
    "MemoryStore",
    "OverwinterError",
    "Persistence",
    "SQLiteStore",
    "Signal",
    "Stats",
    "Store",
    "Stored",
    "commit",
    "interleave",
    "on",
    "readonly",
    "run",
    "stream",
    "transient",
    "upcast",
]


def __getattr__(name: str) -> Any:
    if name == "SQLiteStore":  # SQLite loads on first use
        return stores.SQLiteStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
