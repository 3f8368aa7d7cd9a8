"""How much each proof tries, from which seed, and the report of what was tried.

A test asks its ``proof`` fixture for a size and for chance, and counts what it did. Under ``--soak`` the sizes are the
long ones and the seed is a new one; ``--report`` writes what was counted into docs/reliability.md.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import random
import re
import secrets
from pathlib import Path

import apsw
import pytest

__all__ = ["Proof", "Report", "add_options", "choose_seed"]

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- report -->", "<!-- end of report -->"
MANY = 12
"""Cases of one test, above which the report has one row for all."""
TRIED = frozenset({
    "agents", "cancellations", "cases", "disks", "flips", "keys", "kills", "operations", "races",
    "records", "runs", "states", "troubles", "truncations",
})  # fmt: skip
"""What a test does to see whether anything breaks: one that did none of it has shown nothing."""


def add_options(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="long sizes and a new seed")
    parser.addoption("--report", action="store_true", help="write docs/reliability.md")
    parser.addoption("--seed", type=int, help="where the chance of the proofs begins (a failure prints it)")


def choose_seed(config: pytest.Config) -> None:
    """Decide the seed once; every process of this run has the same."""
    if hasattr(config, "workerinput"):
        config.option.seed = config.workerinput["seed"]
    elif config.option.seed is None:
        config.option.seed = secrets.randbelow(1 << 32) if config.option.soak else 2026


class Proof:
    """One test's share of the report."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.soak: bool = request.config.option.soak
        self.seed: int = request.config.option.seed
        self._name = request.node.nodeid
        self.counts: dict[str, int] = {}
        print(f"repeat with --seed {self.seed}{' --soak' * self.soak}")  # pytest shows it if the test fails

    def size(self, run: int, long: int) -> int:
        """How many to try: as part of the test command, or before a release."""
        return long if self.soak else run

    def chance(self, *names: object) -> random.Random:
        """Random numbers that follow from the seed, the test and *names*."""
        return random.Random(f"{self.seed} {self._name} {names}")

    def count(self, **done: int) -> None:
        """Add to what was tried or seen: ``proof.count(kills=1, acknowledged=20)``."""
        for name, number in done.items():
            word = name.replace("_", " ")
            self.counts[word] = self.counts.get(word, 0) + number

    def check(self) -> None:
        """Fail a test that tried nothing of what it says that it tries."""
        none = [word for word, number in self.counts.items() if word in TRIED and not number]
        assert not none, f"it passed with 0 {', 0 '.join(none)}: nothing was tried"


class Report:
    """What all proofs of a run tried; it gathers from every process that runs tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.began = dt.datetime.now(dt.UTC)
        self.rows: dict[str, tuple[dict[str, int], str, float]] = {}
        self.silent = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        counts = dict(report.user_properties).get("proof", {})
        outcome = "0" if report.passed else report.outcome
        if counts or not report.passed:
            self.rows[report.nodeid] = (counts, outcome, report.duration)
        else:
            self.silent += 1

    def pytest_sessionfinish(self) -> None:
        if self.config.option.report and not hasattr(self.config, "workerinput"):
            text = PAGE.read_text()
            head, rest = text.split(BEGIN)
            tail = rest.split(END)[1]
            PAGE.write_text(f"{head}{BEGIN}\n{self.table()}\n{END}{tail}")

    def table(self) -> str:
        took = dt.datetime.now(dt.UTC) - self.began
        skipped = sum(outcome == "skipped" for _, outcome, _ in self.rows.values())
        tests = f"{len(self.rows) + self.silent - skipped} tests in {took.total_seconds() / 60:.0f} minutes"
        what = f"{tests}, {self.violations()} violations, {skipped} skipped, seed {self.config.option.seed}"
        lines = [f"{self.began:%Y-%m-%d}, `make soak`: {what}. {machine()}.", ""]
        lines += ["| proof | tried and seen | violations | seconds |", "| --- | --- | ---: | ---: |"]
        for name, (counts, outcome, seconds) in sorted(self.merged().items()):
            seen = ", ".join(f"{number:,} {what}" for what, number in counts.items())
            lines.append(f"| {words(name)} | {seen} | {outcome} | {seconds:,.0f} |")
        lines += ["", f"{self.silent} further tests of `tests/reliability` count nothing, and passed."]
        return "\n".join(lines)

    def merged(self) -> dict[str, tuple[dict[str, int], str, float]]:
        """The rows; of a test with many cases, one for all."""
        tests: dict[str, list[str]] = {}
        for name in self.rows:
            tests.setdefault(name.partition("[")[0], []).append(name)
        found: dict[str, tuple[dict[str, int], str, float]] = {}
        for test, names in tests.items():
            if len(names) <= MANY:
                found |= {name: self.rows[name] for name in names}
                continue
            total: dict[str, int] = {}
            for name in names:
                for what, number in self.rows[name][0].items():
                    total[what] = total.get(what, 0) + number
            outcomes = [self.rows[name][1] for name in names]
            said = [name for name, outcome in zip(names, outcomes, strict=True) if outcome == "failed"]
            if skipped := outcomes.count("skipped"):
                said = (said or ["0"] * (skipped < len(names))) + [f"{skipped} skipped"]
            seconds = sum(self.rows[name][2] for name in names)
            found[f"{test}[{len(names)} cases]"] = (total, ", ".join(said) or "0", seconds)
        return found

    def violations(self) -> int:
        return sum(outcome == "failed" for _, outcome, _ in self.rows.values())


def words(nodeid: str) -> str:
    """A test's name as a reader says it."""
    module, _, test = nodeid.partition("::")
    name = re.sub(r"^(\w+::)?test_", "", test).replace("_", " ")
    return f"`{Path(module).stem.removeprefix('test_')}`: {name}".replace("|", "/")


def machine() -> str:
    versions = {name: importlib.metadata.version(name) for name in ("redis", "psycopg", "obstore", "msgspec")}
    return (
        f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, "
        f"SQLite {apsw.sqlite_lib_version()}, " + ", ".join(f"{name} {version}" for name, version in versions.items())
    )
