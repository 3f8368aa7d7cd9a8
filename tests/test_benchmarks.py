"""Each benchmark runs, at a size that proves nothing else, and prints the JSON that it promises.

What is measured is for ``make bench`` on a quiet machine. Peers and servers that aren't installed here take no part.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import MODULES  # noqa: E402
from benchmarks._measure import Figure, Row, Scale, Skipped, Task, Team  # noqa: E402
from benchmarks._report import page  # noqa: E402

NETWORK = ("redis", "postgres", "objects")  # they say why where a server or store is missing


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def results() -> dict[str, Any]:
    (line,) = bench().splitlines()
    return {result["name"]: result for result in json.loads(line)["benchmarks"]}


@pytest.mark.parametrize("name", MODULES)
def test_each_benchmark_runs_and_says_what_it_measured(name: str) -> None:
    result = results()[name]
    assert result["rows"] or result["why_not"]
    for row in result["rows"]:
        assert row["what"]
        assert row["unit"]
        assert {"ours", "limit", "peers", "ratio_to_limit", "spread", "goals"} <= row.keys()
        assert row["ours"] is not None or (name in NETWORK and result["skipped"]["ours"])
        for who, (least, most) in row["spread"].items():
            middle = row.get(who, row["peers"].get(who))
            assert least <= middle <= most, (row["what"], who)
    assert name in NETWORK or result["rows"]
    assert result["machine"]["cores"] > 0
    assert not result["skipped"].keys() & {"limit"}


def test_one_name_gives_one_object() -> None:
    assert json.loads(bench("activate").splitlines()[-1])["name"] == "activate"


def test_an_unknown_name_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "no-such"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no benchmark is called no-such; there are calls" in done.stderr


def test_nothing_is_left_behind() -> None:
    results()
    assert not list(ROOT.glob("bench-*"))


def test_the_page_shows_every_benchmark() -> None:
    text = page(list(results().values()))
    for name in MODULES:
        assert f"`python -m benchmarks {name}`" in text
    assert "| 32 agents, asyncio |" in text


def test_contenders_are_asked_in_turns_and_failures_are_not_hidden() -> None:
    with Team(repeats=2) as team:
        row = team.compare("x", "s", {"ours": Task("time:monotonic"), "peer": Task("time:monotonic")})
        ours, peer = row.figures["ours"], row.figures["peer"]
        assert ours.least < peer.least <= peer.most < ours.most  # there and back, and there again
        with pytest.raises(RuntimeError, match="sqrt"):
            team.ask("ours", Task("math:sqrt", {"x": 4}))  # sqrt takes no keywords
        with pytest.raises(Skipped, match="no_such_peer is not installed"):
            team.ask("peer", Task("no_such_peer:calls"))


def test_goals_are_judged_by_the_medians() -> None:
    row = Row(
        "x", "calls/s", {"ours": Figure.of([9, 10, 90]), "limit": Figure.of([19, 20, 21]), "Pykka": Figure.of([2.0])}
    )
    row.want(0.5).want(0.6).want(5, "Pykka").want(10, "casty").want_figure(11)
    assert row.goals == {"≥ 0.5 × limit": True, "≥ 0.6 × limit": False, "≥ 5 × Pykka": True, "≥ 11 calls/s": False}
    slow = Row("x", "ms", {"ours": Figure.of([10.0]), "limit": Figure.of([5.0])}, less_is_better=True)
    assert slow.want(0.5).want_figure(10).goals == {"≥ 0.5 × limit": True, "≤ 10 ms": True}


def test_a_quick_run_is_no_record() -> None:
    assert Scale(quick=True, repeats=1).seconds < Scale(quick=False, repeats=5).seconds
    command = [sys.executable, "-m", "benchmarks", "--quick", "--write"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60).returncode == 2
