"""``python -m overwinter.testing``: what it says of stores, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import bugs
import pytest
import twins
from test_contract_bites import InMemory

from overwinter.stores import Store
from overwinter.testing import StoreContract
from overwinter.testing._contract import promises
from overwinter.testing._matrix import ROWS, matrix
from overwinter.testing._runner import main


class EmptyIsAbsent(InMemory):
    kind = bugs.EmptyIsAbsent


class FailsOddlyWhenClosed(InMemory):
    kind = bugs.FailsOddlyWhenClosed


class ListsALiveDictionary(InMemory):
    kind = bugs.ListsALiveDictionary


class LooksForItsFolder(twins.Folder):
    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: make it first")
        (folder / "made at once").mkdir(exist_ok=True)
        super().__init__(folder)


class SetUpLikePytest(InMemory):
    """With hooks in each form that pytest calls."""

    def setup_method(self, method: Callable[[], None]) -> None:
        self.kind = bugs.EmptyIsAbsent if "empty" in method.__name__ else twins.Durable

    def teardown_method(self) -> None:
        assert self.store


class WithoutAServer(StoreContract):
    async def make_store(self) -> Store:
        pytest.skip("no server here")


class WithoutAServerInCi(StoreContract):
    async def make_store(self) -> Store:
        pytest.fail("no server in CI")


DOCS = Path(__file__).parent.parent.parent / "docs"


def test_a_good_store_keeps_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory://"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(promises(StoreContract)) + 1
    assert " 0 broken, " in lines[-1]
    assert f"[1/{len(lines) - 1}] ok      nothing is stored at first" in lines
    assert any("skipped" in line and "this store promises" in line for line in lines)


def test_a_bug_is_named_and_the_status_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{__name__}:EmptyIsAbsent", "-k", "empty data", "-k", "what_was_put"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  empty data is not absent: 'some key' was put and is absent" in out
    assert main([f"{__name__}:EmptyIsAbsent", "-k", "empty", "-k", "what_was_put", "-x"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 promises kept, 1 broken, ")


def test_an_error_of_the_store_is_told_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{__name__}:FailsOddlyWhenClosed", "-k", "before open"]) == 1
    assert "must raise UsageError, not AttributeError" in capsys.readouterr().out
    assert main([f"{__name__}:ListsALiveDictionary", "-k", "come and go"]) == 1
    assert "RuntimeError: dictionary changed size during iteration (at bugs.py:" in capsys.readouterr().out


def test_each_promise_begins_with_a_folder_of_its_own() -> None:
    assert main(["twins:Folder", "-k", "stored at first", "-k", "create", "-k", "kill in the moment"]) == 0
    assert main(["sqlite:///{folder}/a.db", "-k", "stored at first", "-k", "create"]) == 0


def test_a_store_may_look_at_its_folder_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main([f"{__name__}:LooksForItsFolder", "-k", "stored at first"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_hooks_are_called_as_pytest_calls_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{__name__}:SetUpLikePytest", "-k", "empty_data", "-k", "what was put"]) == 1
    out = capsys.readouterr().out
    assert "ok      what was put comes back\n" in out
    assert "FAILED  empty data is not absent: 'some key' was put and is absent" in out


def test_a_store_far_away_may_be_given_more_time_or_less(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test_contract_bites:InMemory", "-k", "keys_are_only_data", "--limit", "0"]) == 1
    assert "FAILED  keys are only data: this test was not done in 0 s: if the store" in capsys.readouterr().out
    assert main(["test_contract_bites:InMemory", "-k", "keys_are_only_data", "--limit", "100"]) == 0


def test_a_hook_may_skip_or_fail_as_pytest_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{__name__}:WithoutAServer", "-k", "stored at first", "-k", "event loop"]) == 0
    out = capsys.readouterr().out
    assert "skipped nothing is stored at first: no server here\n" in out
    assert "0 promises kept, 0 broken, 3 not tested" in out
    assert main([f"{__name__}:WithoutAServerInCi", "-k", "stored at first"]) == 1
    assert "FAILED  nothing is stored at first: " in capsys.readouterr().out


def test_a_contract_may_be_named_instead_of_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test_contract_bites:OnDisk", "-k", "damaged"]) == 0
    assert "0 not tested" in capsys.readouterr().out  # it can corrupt


def test_the_list_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(promises(StoreContract))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "which store"),
        (["nonsense"], "names no store"),
        (["no_such_module:Store"], "no_such_module"),
        (["bugs:NoSuchStore"], "has no NoSuchStore"),
        (["builtins:dict"], "no overwinter.Store"),
        (["ftp://x/{name}"], "scheme"),
        (["sqlite:////tmp/one-for-all.db"], "begin with nothing stored"),
        (["memory://", "-k", "no such promise"], "see --list"),
        (["test_contract_bites:OnDisk", "/srv/agents", "x"], "takes no arguments: '/srv/agents x' is too much"),
    ],
)
def test_what_can_not_be_run_is_said(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert why in capsys.readouterr().err


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-W", "error", "-m", "overwinter.testing", "memory://", "-k", "stored at first"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("[1/1] ok      nothing is stored at first\n1 promises kept, 0 broken")
    assert not done.stderr


def test_the_page_has_the_table() -> None:
    page = (DOCS / "stores.md").read_text()
    assert matrix() in page, "copy the output of python -m overwinter.testing --matrix into docs/stores.md"
    for row in ROWS:
        name, _, anchor = row.page.partition("#")
        linked = (DOCS / (name or "stores.md")).read_text().lower()
        assert not anchor or f"\n## {anchor.replace('-', ' ')}\n" in linked
