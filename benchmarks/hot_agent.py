"""One agent with a hundred callers: each call is durable before it is answered, and one write covers all that wait.

`commit each` is the engine with a transaction per call, the limit is the bare pipeline, which writes each call's row.
"""

from __future__ import annotations

from ._load import LOOPS
from ._measure import Row, Scale, Task, Team

__all__ = ["TITLE", "run_all"]

TITLE = "A hot agent"


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    for loop in LOOPS:
        arguments = {"agents": 1, "callers": 100, "seconds": scale.seconds, "loop": loop}
        row = team.compare(
            f"100 callers, {loop}",
            "calls/s",
            {
                "ours": Task("benchmarks._ours:durable", arguments),
                "limit": Task("benchmarks._limits:pipeline", arguments),
                "commit each": Task("benchmarks._limits:engine", {"batch": 1, "seconds": scale.seconds}),
            },
            also=("commit each",),
        )
        rows.append(row.want(8, "commit each"))
    return rows
