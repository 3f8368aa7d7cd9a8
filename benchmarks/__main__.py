"""``python -m benchmarks [NAME …] [--json] [--write]``: run the benchmarks, all or some, and show or keep the
results.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from typing import Any

from . import MODULES
from ._machine import machine
from ._measure import Scale, Skipped, Team
from ._report import show, write

__all__ = ["main", "measure"]


def measure(name: str, scale: Scale) -> dict[str, Any]:
    """Run one benchmark."""
    begin = time.monotonic()
    result: dict[str, Any] = {"name": name, "rows": []}
    with Team(scale.repeats) as team:
        try:
            module = importlib.import_module(f"benchmarks.{MODULES[name]}")
            result["rows"] = [row.as_json() for row in module.run_all(team, scale)]
        except Skipped as reason:
            result["why_not"] = str(reason)
        result |= {"settings": team.settings, "skipped": team.skipped}
    if scale.quick:
        for row in result["rows"]:
            row["goals"] = {}  # such small runs prove nothing
    return {**result, "repeats": scale.repeats, "quick": scale.quick, "seconds": round(time.monotonic() - begin, 1)}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure overwinter, its limits, its peers."
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"which; all if none is given: {', '.join(MODULES)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, and nothing else there")
    parser.add_argument("--quick", action="store_true", help="measure so little that it only shows that all of it runs")
    parser.add_argument("--repeats", type=int, help="how often each contender is asked (default: 5; quick: 1)")
    parser.add_argument("--write", action="store_true", help="keep the results, and make docs/benchmarks.md anew")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(MODULES))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(MODULES)}")
    scale = Scale(options.quick, options.repeats or (1 if options.quick else 5))
    if options.write and options.quick:
        parser.error("--quick measures nothing worth writing down")
    where, results = machine(), []
    for name in options.names or MODULES:
        print(f"{name} …", file=sys.stderr, flush=True)
        result = {**measure(name, scale), "machine": where}
        results.append(result)
        if not options.json:
            show(result)
    if options.write:
        write(results)
    if options.json:
        print(json.dumps(results[0] if len(options.names) == 1 else {"benchmarks": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
