"""Persistent, stateful agents: typed objects, addressed by a key, that survive restarts."""

from .agent import Agent, Signal, on, readonly, transient, upcast
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
    "MemoryStore",
    "OverwinterError",
    "Persistence",
    "SQLiteStore",
    "Signal",
    "Stats",
    "Store",
    "Stored",
    "commit",
    "on",
    "readonly",
    "transient",
    "upcast",
]
