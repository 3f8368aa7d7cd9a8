"""What `import overwinter` costs at the start of a program, beside `import msgspec, asyncio`, which it can't do
without.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from ._load import scratch
from ._measure import Row, Scale, Task, Team

__all__ = ["TITLE", "loaded", "run_all", "start"]

TITLE = "Import"
DRIVERS = ("redis", "psycopg", "obstore", "moto", "pydantic", "attrs")


def run_all(team: Team, _scale: Scale) -> list[Row]:
    tasks = {
        "ours": Task("benchmarks.imports:start", {"modules": "overwinter"}),
        "limit": Task("benchmarks.imports:start", {"modules": "msgspec, asyncio"}),
    }
    row = team.compare("python -c 'import …'", "ms", tasks, less_is_better=True)
    row.goals["≤ 60 ms more"] = row["ours"] - row["limit"] <= 60
    row.goals["no driver is loaded"] = team.ask("ours", Task("benchmarks.imports:loaded")) == ""
    return [row]


def start(modules: str) -> float:
    """Milliseconds of a whole process that imports them; the best of three, the first of which fills caches."""
    spent = []
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(scratch())}  # as installed packages, compiled beforehand
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True, env=environment)
        spent.append(time.perf_counter() - begin)
    return min(spent) * 1000


def loaded() -> str:
    code = f"import sys, overwinter; print(*sys.modules.keys() & {set(DRIVERS)!r})"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
