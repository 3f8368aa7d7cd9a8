"""Persistent, stateful agents: typed objects, addressed by a key, that survive restarts."""

from ._run import run
from ._types import Interval
from .agent import Agent, Signal, interleave, on, readonly, stream, transient, upcast
from .errors import OverwinterError
from .manager import Inspection, InstanceManager, Stats
from .persistence import Persistence
from .runtime._turn import commit
from .stores import MemoryStore, SQLiteStore
from .stores.base import Durability, Expect, Store, Stored
from .system import AgentSystem

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
