"""What overwinter costs, beside the bare engine below it and its peers, measured in one run.

``python -m benchmarks`` runs them; ``docs/benchmarks.md`` has the results and says how to repeat them.
"""

from __future__ import annotations

__all__ = ["MODULES"]

MODULES = {
    "calls": "calls",
    "durable-calls": "durable_calls",
    "hot-agent": "hot_agent",
    "hibernate": "hibernate",
    "thaw": "thaw",
    "activate": "activate",
    "file": "file",
    "memory": "memory",
    "loop-gap": "loop_gap",
    "redis": "redis",
    "postgres": "postgres",
    "objects": "objects",
    "slow-disk": "slow_disk",
    "import": "imports",
    "growth": "growth",
}
"""Each benchmark's name and the module here that has it: ``TITLE``, ``run_all(team, scale)``, and a docstring."""
