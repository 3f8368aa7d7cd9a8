"""Acknowledged durable calls per second: `durability="call"` on SQLite, each agent with a 1 KB state and one caller.

The limit is a bare pipeline: encode, one asyncio future per call, one thread that upserts all that waits in one
transaction (WAL, `synchronous=FULL`); no agents, no manager, no type check, no revisions. `engine` is that thread's
work alone, in transactions of as many rows. uvloop makes the limit quicker than asyncio does, so both are shown.
"""

from __future__ import annotations

from typing import Any

from ._load import LOOPS
from ._measure import Row, Scale, Task, Team
from .peers import durable_tasks

__all__ = ["TITLE", "run_all"]

TITLE = "Durable calls"
SIZES = (1, 32, 256, 1024)
UP_TO = {"DBOS": 32, "openai-agents": 256, "eventsourcing": 256, "Burr": 256}
"""Where a peer takes so long to make ready more agents that they are left out."""


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    for agents in scale.pick(SIZES, (1, 32)):
        arguments = {"agents": agents, "seconds": scale.seconds}
        peers = {name: task for name, task in durable_tasks(**arguments).items() if agents <= UP_TO.get(name, agents)}
        row = compare(team, agents, {**arguments, "loop": "asyncio"}, peers)
        for peer in ("casty", "LangGraph"):
            row.want(1.5 if agents == 1 else 10, peer)
        rows.append(row)
        if "uvloop" in LOOPS:
            rows.append(compare(team, agents, {**arguments, "loop": "uvloop"}, {}))
    return rows


def compare(team: Team, agents: int, arguments: dict[str, Any], peers: dict[str, Task]) -> Row:
    contenders = {
        "ours": Task("benchmarks._ours:durable", arguments),
        "limit": Task("benchmarks._limits:pipeline", arguments),
    }
    if arguments["loop"] == "asyncio":
        engine = {"batch": agents, "seconds": arguments["seconds"]}
        contenders["engine"] = Task("benchmarks._limits:engine", engine)
    what = f"{agents} agents, {arguments['loop']}" if agents > 1 else f"1 agent, {arguments['loop']}"
    return team.compare(what, "calls/s", {**contenders, **peers}, also=("engine",)).want(0.5)
