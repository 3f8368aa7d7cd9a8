"""Who is compared, in which order, and what comes out: medians with minimum and maximum.

It does not know what is measured. Each contender lives in a process of its own (``_worker.py``), so that no peer's
threads, garbage or imports weigh on another, and is asked in turn: what the machine does meanwhile hits all of them.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

__all__ = ["ROOT", "Figure", "Row", "Scale", "Skipped", "Task", "Team"]

ROOT = Path(__file__).parent.parent
_PATIENCE = 400.0  # seconds for one repeat of one contender, its preparation included


class Skipped(Exception):  # noqa: N818  # nothing is wrong: it is not installed, or not made for this Python
    """This contender can't take part here; the text says why."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: for the record, or so little that it only shows that everything runs."""

    quick: bool
    repeats: int

    @property
    def seconds(self) -> float:
        """How long each repeat measures."""
        return 0.05 if self.quick else 0.4

    def pick(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Task:
    """A function that returns one number, by its address, and what it is called with."""

    address: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """What one contender reached."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(slots=True)
class Row:
    """One line of a table."""

    what: str
    unit: str
    figures: dict[str, Figure]
    """``ours``, ``limit``, peers by their names, and whatever else helps to judge."""
    also: tuple[str, ...] = ()
    """Which of them are neither ours, limit nor peer."""
    less_is_better: bool = False
    x: float | None = None
    """Where it stands on the axis of a plot, if the rows form a line, and on which line."""
    series: str = ""
    goals: dict[str, bool] = field(default_factory=dict)

    def __getitem__(self, who: str) -> float:
        return self.figures[who].median

    def times(self, who: str) -> float | None:
        """How many times better ours is; of the limit it is a fraction."""
        if who not in self.figures or "ours" not in self.figures or not self[who] or not self["ours"]:
            return None
        return self[who] / self["ours"] if self.less_is_better else self["ours"] / self[who]

    def want(self, factor: float, who: str = "limit") -> Self:
        """Note the goal to be so many times as good as *who*, if that one took part."""
        reached = self.times(who)
        if reached is not None:
            self.goals[f"≥ {factor:g} × {who}"] = reached >= factor
        return self

    def want_figure(self, figure: float) -> Self:
        sign = "≤" if self.less_is_better else "≥"
        met = self["ours"] <= figure if self.less_is_better else self["ours"] >= figure
        self.goals[f"{sign} {figure:,.10g} {self.unit}"] = met
        return self

    def as_json(self) -> dict[str, Any]:
        known = {"ours", "limit", *self.also}
        line: dict[str, Any] = {"what": self.what, "unit": self.unit}
        line |= {"ours": None, "limit": None}
        line |= {who: _round(figure.median) for who, figure in self.figures.items() if who in known}
        line["peers"] = {who: _round(figure.median) for who, figure in self.figures.items() if who not in known}
        line["ratio_to_limit"] = _round(self.times("limit"))
        line["ours_to_peers"] = {who: _round(self.times(who)) for who in line["peers"]}
        line["spread"] = {who: [_round(f.least), _round(f.most)] for who, f in self.figures.items()}
        line["goals"] = self.goals
        extra = {"less_is_better": self.less_is_better or None, "x": self.x, "series": self.series or None}
        return line | {name: value for name, value in extra.items() if value is not None}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


class Worker:
    """A process that runs tasks, one at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, env={**os.environ, **environment}, cwd=ROOT,
        )  # fmt: skip

    def ask(self, task: Task) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([task.address, dict(task.arguments)]).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        answer = self._process.stdout.readline() if ready else b""
        if not answer:
            why = "died" if ready else f"said nothing for {_PATIENCE:g} s"
            raise RuntimeError(f"the process of {task} {why}: {self._said()}")
        kind, value = json.loads(answer)
        if kind == "skipped":
            raise Skipped(value)
        if kind == "failed":
            raise RuntimeError(f"{task} failed:\n{value}\n{self._said()}")
        return value

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it then ends by itself, and removes its files
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


class Team:
    """The processes of one benchmark. Use it as a context manager."""

    def __init__(self, repeats: int, environment: Mapping[str, str] | None = None) -> None:
        self.repeats = repeats
        self.environment = environment or {}
        self.skipped: dict[str, str] = {}
        self.settings: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._workers:
            self._workers.popitem()[1].close()

    def with_environment(self, environment: Mapping[str, str]) -> Team:
        """Another team with the same books. Enter it, too."""
        other = Team(self.repeats, environment)
        other.skipped, other.settings = self.skipped, self.settings
        return other

    def compare(
        self,
        what: str,
        unit: str,
        contenders: Mapping[str, Task],
        *,
        also: tuple[str, ...] = (),
        less_is_better: bool = False,
        fresh: bool = False,
        repeats: int | None = None,
        x: float | None = None,
        series: str = "",
    ) -> Row:
        """Ask each contender in turn, as often as there are repeats; with *fresh*, each time in a new process.

        *repeats* is for what takes long and hardly varies.
        """
        values: dict[str, list[float]] = {who: [] for who in contenders}
        order = list(contenders)
        for _ in range(repeats or self.repeats):
            for who in order:
                try:
                    values[who].append(self.ask(who, contenders[who], fresh=fresh))
                except Skipped as reason:
                    self.skipped[who] = str(reason)
            order.reverse()
        figures = {who: Figure.of(values[who]) for who in contenders if values[who]}
        return Row(what, unit, figures, also, less_is_better, x, series)

    def ask(self, who: str, task: Task, *, fresh: bool = False) -> Any:
        """Run one task in the process of *who*."""
        if fresh and who in self._workers:
            self._workers.pop(who).close()
        if who not in self._workers:
            worker = self._workers[who] = Worker(self.environment)
            if task.address.startswith("benchmarks.peers."):  # each says what was measured
                self.settings[who] = worker.ask(Task(f"{task.address.partition(':')[0]}:settings"))
        return self._workers[who].ask(task)
