"""What an agent is. Pure: no asyncio, no I/O."""

from ._base import Agent, AgentType, Method, agent_type, interleave, readonly, stream, transient
from ._schema import Schema, upcast
from ._signals import Route, Signal, on

__all__ = [
    "Agent",
    "AgentType",
    "Method",
    "Route",
    "Schema",
    "Signal",
    "agent_type",
    "interleave",
    "on",
    "readonly",
    "stream",
    "transient",
    "upcast",
]
