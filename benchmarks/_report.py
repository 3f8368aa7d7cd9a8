"""Results as text: on the terminal, and as ``docs/benchmarks.md`` with its plots. No number in there is typed by
hand.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from . import MODULES
from ._measure import ROOT

__all__ = ["page", "show", "write"]

FOLDER = ROOT / "docs" / "benchmarks"
HEAD = """# Benchmarks

<!-- Written by `python -m benchmarks --write` from benchmarks/results.json: change benchmarks/, not this page. -->

What overwinter costs, beside the bare engine below it on the same work (the *limit*), and beside its peers. All
contenders of a row are measured in one run, each in a process of its own, in turns. Shown is the median of {repeats}
repeats, with the least and the most. Absolute figures move with the machine and with what else it does; ratios are
what we hold ourselves to. What bounds us where a goal is missed, and what was tried, is in
[design.md](design.md#where-the-time-of-a-call-goes).

To repeat all of it, in some fifteen minutes, in an environment of its own made from pinned packages:

```sh
make bench                                       # all, and this page anew
.venv-bench/bin/python -m benchmarks NAME        # one of them, on the terminal; --json for programs
```

Files go to a folder beside the sources, or in `BENCH_DIR`: put that on the disk whose speed you want to know. Some
4 GB are written, and removed at the end.

"1 KB state" is a list of 20 small dictionaries, `list[dict[str, Any]]`, which encodes to 763 bytes of MessagePack.

{machine}
"""


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(row: dict[str, Any], who: str) -> str:
    if who not in row["spread"]:
        return "–"
    least, most = row["spread"][who]
    middle = row.get(who, row["peers"].get(who))
    return f"{number(middle)} ({number(least)}–{number(most)})" if least != most else number(middle)


def others(row: dict[str, Any]) -> list[str]:
    known = {"ours", "limit", *row["peers"]}
    return [who for who in row["spread"] if who not in known]


# ---------------------------------------------------------------- the terminal


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['name']}  ({result['seconds']:g} s, {result['repeats']} repeats)")
    if "why_not" in result:
        print(f"  not measured: {result['why_not']}")
    for row in result["rows"]:
        ratio = f", {row['ratio_to_limit']:.2f} of it" if row["ratio_to_limit"] else ""
        print(f"  {row['what']}: {spread(row, 'ours')} {row['unit']}; limit {spread(row, 'limit')}{ratio}")
        for who in others(row):
            print(f"      {who}: {spread(row, who)}")
        for who in row["peers"]:
            times = row["ours_to_peers"][who]
            print(f"      {who}: {spread(row, who)}" + (f"; ours is {times:.1f} times as good" if times else ""))
        for goal, met in row["goals"].items():
            print(f"      {'met' if met else 'MISSED'}: {goal}")
    for who, text in result["settings"].items():
        print(f"  {who}: {text}")
    for who, text in result["skipped"].items():
        print(f"  {who} took no part: {text}")


# ---------------------------------------------------------------- the page


def write(results: list[dict[str, Any]]) -> None:
    """Keep *results*, beside older ones of other benchmarks, and make the page and its plots anew from all."""
    from ._plot import plot

    path = ROOT / "benchmarks" / "results.json"
    known = {result["name"]: result for result in json.loads(path.read_text())} if path.exists() else {}
    known |= {result["name"]: result for result in results}
    kept = [known[name] for name in MODULES if name in known]
    path.write_text(json.dumps(kept, indent=1) + "\n")
    FOLDER.mkdir(exist_ok=True)
    for result in kept:
        if result["rows"]:
            plot(result, FOLDER / f"{result['name']}.svg")
    (ROOT / "docs" / "benchmarks.md").write_text(page(kept))


def page(results: list[dict[str, Any]]) -> str:
    repeats = " or ".join(sorted({str(result["repeats"]) for result in results}))
    machines = sorted({_machine(result["machine"]) for result in results})
    head = HEAD.format(repeats=repeats, machine="\n\n".join(machines))
    return "\n".join([head, *(_section(result) for result in results)])


def _machine(it: dict[str, Any]) -> str:
    return (
        f"The machine: {it['cpu']}, {it['cores']} cores, {it['memory_gb']} GB; {it['system']}, {it['file_system']}, "
        f"{it['fdatasync_us']:g} µs per fdatasync; Python {it['python']}, SQLite {it['sqlite']}; {it['date']}."
    )


def _section(result: dict[str, Any]) -> str:
    module = importlib.import_module(f"benchmarks.{MODULES[result['name']]}")
    lines = [
        f"## {module.TITLE}",
        "",
        f"`python -m benchmarks {result['name']}`",
        "",
        (module.__doc__ or "").strip(),
        "",
    ]
    if "why_not" in result:
        return "\n".join([*lines, f"Not measured: {result['why_not']}.", ""])
    also = list(dict.fromkeys(who for row in result["rows"] for who in others(row)))
    names = ["", "unit", "ours", *also, "limit", "ours / limit", "goals"]
    lines += [_line(names), _line(["---"] * len(names))]
    lines += [_line(_cells(row, also)) for row in result["rows"]]
    lines += ["", f"![{module.TITLE}](benchmarks/{result['name']}.svg)", ""]
    peers = list(dict.fromkeys(who for row in result["rows"] for who in row["peers"]))
    if peers:
        lines += [_line(["", *peers]), _line(["---"] * (len(peers) + 1))]
        lines += [_line([row["what"], *(_peer(row, who) for who in peers)]) for row in result["rows"] if row["peers"]]
        lines += ["", *(f"* {text}." for text in result["settings"].values())]
        lines += [f"* {who} took no part: {text}." for who, text in result["skipped"].items()] + [""]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: dict[str, Any], also: list[str]) -> list[str]:
    ratio = row["ratio_to_limit"]
    fraction = "–" if ratio is None else f"{ratio:.2f}"
    goals = "; ".join(f"{goal}{'' if met else ' **missed**'}" for goal, met in row["goals"].items()) or "–"
    figures = [spread(row, who) for who in ("ours", *also, "limit")]
    return [row["what"], row["unit"], *figures, fraction, goals]


def _peer(row: dict[str, Any], who: str) -> str:
    times = row["ours_to_peers"].get(who)
    return spread(row, who) + (f", ours {times:.1f}×" if times else "")
