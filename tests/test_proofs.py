"""The report of the proofs says what was tried, and what was not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from proofs import MANY, Proof, Report


def proof() -> Proof:
    options = SimpleNamespace(soak=False, seed=1)
    request: Any = SimpleNamespace(config=SimpleNamespace(option=options), node=SimpleNamespace(nodeid="a test"))
    return Proof(request)


def report_of(**outcomes: list[str]) -> Report:
    config: Any = SimpleNamespace(option=SimpleNamespace(seed=1))
    report = Report(config)
    for test, cases in outcomes.items():
        for number, outcome in enumerate(cases):
            ran = outcome != "skipped"
            told: Any = SimpleNamespace(
                nodeid=f"tests/reliability/test_x.py::test_{test}[{number}]",
                when="call" if ran else "setup",
                outcome=outcome,
                passed=outcome == "passed",
                user_properties=[("proof", {"kills": 2})] if ran else [],
                duration=1.0,
            )
            report.pytest_runtest_logreport(told)
    return report


def test_what_was_skipped_is_not_among_what_passed() -> None:
    report = report_of(
        none=["skipped"] * (MANY + 1),
        some=["skipped", *["passed"] * MANY],
        bad=["skipped", "failed", *["passed"] * MANY],
        good=["passed"] * (MANY + 1),
        few=["passed", "skipped"],
    )
    table = report.table()
    assert (
        f", `make soak`: {4 * MANY - MANY + 4 - 1} tests in 0 minutes, 1 violations, {MANY + 4} skipped, seed 1. "
        in table
    )
    rows = {line.split(" | ")[0]: line.split(" | ")[1:3] for line in table.splitlines() if line.startswith("| `x`")}
    assert rows == {
        f"| `x`: none[{MANY + 1} cases]": ["", f"{MANY + 1} skipped"],
        f"| `x`: some[{MANY + 1} cases]": [f"{2 * MANY} kills", "0, 1 skipped"],
        f"| `x`: bad[{MANY + 2} cases]": [
            f"{2 * MANY + 2} kills",
            "tests/reliability/test_x.py::test_bad[1], 1 skipped",
        ],
        f"| `x`: good[{MANY + 1} cases]": [f"{2 * MANY + 2} kills", "0"],
        "| `x`: few[0]": ["2 kills", "0"],
        "| `x`: few[1]": ["", "skipped"],
    }


def test_a_proof_that_tried_nothing_has_failed() -> None:
    one = proof()
    one.check()
    one.count(kills=0, of_unknown_outcome=0)
    with pytest.raises(AssertionError, match="with 0 kills: nothing was tried"):
        one.check()
    one.count(kills=1)
    one.check()
