"""Both type checkers accept what they must, and reject each marked line and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _mypy(path: Path) -> set[int]:
    flags = ["--strict", "--no-incremental", "--enable-error-code=unused-awaitable"]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *flags, str(path)],
        capture_output=True, text=True, cwd=HERE.parent.parent,
    )  # fmt: skip
    lines = re.findall(rf"{path.name}:(\d+): error", run.stdout)
    assert lines or run.returncode == 0, run.stdout + run.stderr
    return set(map(int, lines))


def _pyright(path: Path) -> set[int]:
    run = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", str(path)],
        capture_output=True,
        text=True,
        cwd=HERE.parent.parent,
    )
    report = json.loads(run.stdout)
    return {
        found["range"]["start"]["line"] + 1 for found in report["generalDiagnostics"] if found["severity"] == "error"
    }


@pytest.mark.parametrize("checker", [_mypy, _pyright])
def test_accepts_the_api(checker) -> None:
    assert checker(HERE / "accepted.py") == set()


@pytest.mark.parametrize("checker", [_mypy, _pyright])
def test_rejects_each_mistake(checker) -> None:
    path = HERE / "rejected.py"
    marks = ("# WRONG", f"# WRONG for {checker.__name__.strip('_')}")
    wrong = {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith(marks)}
    assert len(wrong) > 10
    assert checker(path) == wrong
