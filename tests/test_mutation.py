"""Mutation testing finds what a test finds, and tells what none does. Its findings in the source: ``make mutants``."""

from __future__ import annotations

import ast
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mutation.__main__ import Fault, Judges, find_faults, main  # noqa: E402
from mutation._changes import changes  # noqa: E402
from mutation._report import page  # noqa: E402
from mutation._trials import Outcome, run_trials  # noqa: E402


@pytest.fixture(scope="module")
def faults() -> list[Fault]:
    return find_faults()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = a < b", {"x = a <= b", "x = a >= b"}),
        ("x = a and b", {"x = a or b", "x = a", "x = b"}),
        ("if a: f()", {"if True:\n    f()", "if False:\n    f()", "if a:\n    pass"}),
        ("while a: f()", {"while False:\n    f()", "while a:\n    pass"}),
        ("x = 2", {"x = 3", "x = 1"}),
        ("x = not a", {"x = a"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("a.b = c", {"pass"}),
        ("def f():\n    return a", {"def f():\n    return None"}),
        ("try:\n    f()\nexcept E:\n    g()", {
            "try:\n    pass\nexcept E:\n    g()", "try:\n    f()\nexcept E:\n    raise",
            "try:\n    f()\nexcept E:\n    pass",
        }),
        ("x = a in (b, c)", {"x = a not in (b, c)", "x = a in (c,)", "x = a in (b,)"}),
        ('"""Words."""\nassert a == 1\nx: int | None\ny = f"{a + 1}"', set()),
    ],
)  # fmt: skip
def test_the_changes_of_a_module(before: str, after: set[str]) -> None:
    made = set()
    for number in range(len(changes(ast.parse(before)))):
        tree = ast.parse(before)
        changes(tree)[number].make()
        made.add(ast.unparse(tree))
    assert made == after


def test_every_fault_has_a_name_of_its_own_and_what_is_called_at_import_is_changed_there(faults: list[Fault]) -> None:
    assert len({fault.name for fault in faults}) == len(faults) > 2000
    early = {fault.change.place for fault in faults if fault.change.function is None}
    assert {"_fixed_sizes", "Failures", ""} <= early
    assert not {"check_depth", "Gate.release", "Gate.__init__"} & early


def test_a_fault_that_no_test_finds_survives_and_one_that_hangs_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mutation._trials.PATIENCE", 0.3)

    def work(what: str, say) -> int:
        if what == "raises early":
            raise MemoryError
        say(0)
        if what == "out of memory":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "terminates":
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "hung":
            time.sleep(60)
        if what == "raises":
            raise KeyboardInterrupt
        return {"survived": 0, "killed": 1, "impossible": 2, "uncollected": 4}[what]

    asked = {
        "survived": "survived", "killed": "killed", "hung": "hung", "raises": "killed", "impossible": "impossible",
        "terminates": "killed", "uncollected": "killed", "out of memory": "broken", "raises early": "broken",
    }  # fmt: skip
    found: dict[int, Outcome] = {}
    todo = [partial(lambda n, what: (n, ["test"], partial(work, what)), n, what) for n, what in enumerate(asked)]
    run_trials(todo, {"test": 0.01}, 2, found.__setitem__)
    assert {what: found[number].what for number, what in enumerate(asked)} == asked
    assert (found[1].by, found[6].by) == ("test", "collecting the tests")


def test_those_judge_that_execute_the_line_and_whoever_found_its_neighbour_comes_first(faults: list[Fault]) -> None:
    fault = next(fault for fault in faults if fault.change.place == "Gate.release")
    other = next(fault for fault in faults if fault.change.place == "Turnstile.leave")
    here, elsewhere = {str(fault.path): {fault.change.lines[0]}}, {str(other.path): {other.change.lines[0]}}
    judges = Judges({
        "slow": {"seconds": 2, "lines": here}, "quick": {"seconds": 1, "lines": here},
        "other": {"seconds": 0, "lines": elsewhere},
    })  # fmt: skip
    assert judges.of(fault) == ["quick", "slow"]
    judges.note(fault, "slow")
    assert judges.of(fault) == ["slow", "quick"]
    assert judges.of(other) == ["other"]


def test_the_report_counts_and_gives_survivors_their_word() -> None:
    found = {
        "a.py | f | 1 -> 2": {"what": "killed"}, "a.py | f | 1 -> 0": {"what": "survived"},
        "b.py | g | x removed": {"what": "not reached"}, "b.py | g | y removed": {"what": "hung"},
        "b.py |  | z": {"what": "impossible"},
    }  # fmt: skip
    found["b.py | g | w"] = {"what": "broken"}
    text, percent = page(found, {"a.py | f | 1 -> 0": "equivalent: nobody looks"})
    assert percent == 50
    assert "| a.py | 2 | 1 | 1 | 1 | 50.0 % |" in text
    assert "**equivalent: nobody looks** (1)" in text
    assert "**no test executes it** (1)" in text
    assert "| all | 4 | 2 | 2 | 1 | 50.0 % |" in text
    assert "**broken, and not counted: it ended before a test judged it** (1)" in text
    assert page({"b.py | g | w": {"what": "broken"}}, {})[1] == 0


@pytest.mark.parametrize("arguments", [["no/such/module*"], ["--sample", "0"], ["--sample", "-1"]])
def test_what_tries_no_fault_is_no_success(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
