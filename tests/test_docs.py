"""Every Python block in README.md and docs/ runs, and every link to a file leads somewhere.

The blocks of one page run in order, in one namespace and one event loop (``await`` is allowed at the top), in a fresh
folder. A comment on the line before a block says what else is meant:

``<!-- run: file, prints 1 then 2 -->``   a program of its own; run once per output, in one fresh folder
``<!-- run: raises StoreInUseError -->``  it must raise that
``<!-- run: part of examples/web.py -->`` it stands in that file, word for word, which has a test of its own
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"(?:^<!-- run: (?P<how>.*?) -->\n)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
WAYS = re.compile(r"file, prints (?P<prints>.+)|raises (?P<raises>\w+)|part of (?P<part>\S+)")


@dataclass
class Block:
    line: int
    code: str
    prints: list[str]
    raises: str | None
    part: str | None


def blocks(text: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        way = WAYS.fullmatch(match["how"] or "part of nothing")
        assert way, f"line {line}: unknown <!-- run: {match['how']} -->"
        prints = (way["prints"] or "").split(" then ") if way["prints"] else []
        found.append(Block(line, match["code"], prints, way["raises"], way["part"] if match["how"] else None))
    return found


def run_page(page: Path, found: list[Block]) -> None:
    module = ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module  # annotations are resolved through the module
    failures: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        for block in found:
            code = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own lines
            compiled = compile(code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            try:
                outcome = eval(compiled, module.__dict__)
                if inspect.isawaitable(outcome):
                    await outcome
            except Exception as error:
                if type(error).__name__ != block.raises:
                    raise
            else:
                assert block.raises is None, f"{page}:{block.line}: {block.raises} was not raised"

    asyncio.run(run())
    assert not failures


SERVERS = {  # pages whose code needs a server: the fixture that starts it, and the variable that says where it is
    "postgres.md": ("postgres", "POSTGRES_URL"),
    "objects.md": ("s3", "AWS_ENDPOINT_URL"),
    "redis.md": ("valkey", "REDIS_URL"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_runs(page, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if page.name in SERVERS:
        fixture, variable = SERVERS[page.name]
        monkeypatch.setenv(variable, request.getfixturevalue(fixture).url)
    found = blocks(page.read_text())
    assert len(found) == page.read_text().count("```python"), "each block begins at the margin, and ends"
    run_page(page, [block for block in found if not block.prints and not block.part])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_run_as_written(page, tmp_path):
    for number, block in enumerate(blocks(page.read_text())):
        folder = tmp_path / str(number)
        folder.mkdir()
        for expected in block.prints:
            (folder / "program.py").write_text(block.code)
            command = [sys.executable, "-W", "error", "program.py"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quoted_files_are_quoted_word_for_word(page):
    for block in blocks(page.read_text()):
        if block.part:
            assert block.code in (ROOT / block.part).read_text(), f"line {block.line}: not as in {block.part}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_nothing_says_to_install_what_nobody_published():
    """Whoever registered the name first would be installed."""
    for path in [*PAGES, *ROOT.glob("examples/**/*.py"), *ROOT.glob("src/**/*.py")]:
        assert not re.search(r"pip install (-\S+ )*['\"]?overwinter", path.read_text()), path


def test_the_first_program_is_there():
    first = blocks((ROOT / "README.md").read_text())[0]
    assert first.prints == ["1", "2"]
    assert "SQLiteStore(" in first.code


# ---------------------------------------------------------------- who tests the tests


def page_of(tmp_path: Path, text: str) -> tuple[Path, list[Block]]:
    page = tmp_path / "page.md"
    page.write_text(textwrap.dedent(text))
    return page, blocks(page.read_text())


def test_a_wrong_block_is_found(tmp_path):
    page, found = page_of(tmp_path, "```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page, found)


def test_a_block_that_must_raise_and_does_not_is_found(tmp_path):
    page, found = page_of(tmp_path, "<!-- run: raises KeyError -->\n```python\n{}.get(1)\n```\n")
    with pytest.raises(AssertionError, match="KeyError was not raised"):
        run_page(page, found)
    run_page(*page_of(tmp_path, "<!-- run: raises KeyError -->\n```python\n{}[1]\n```\n"))


def test_an_unknown_way_to_run_is_found(tmp_path):
    with pytest.raises(AssertionError, match="unknown"):
        page_of(tmp_path, "<!-- run: never -->\n```python\n```\n")


def test_await_works_at_the_top(tmp_path):
    first = "```python\nimport asyncio\nx = await asyncio.sleep(0, 3)\n```\n"
    page, found = page_of(tmp_path, first + "```python\nassert x == 3\n```\n")
    assert len(found) == 2
    run_page(page, found)


def test_the_tests_that_hold_the_rules_are_there():
    named = re.findall(r"`([\w/]+\.py)::(\w+)(?:\[[^`]*)?`", (ROOT / "docs/rules.md").read_text())
    assert len(named) > 250
    for file, name in set(named):
        assert re.search(rf"def {name}\(", (ROOT / "tests" / file).read_text()), f"{file} has no {name}"


@pytest.mark.parametrize(("page", "root"), [("docs/guarantees.md", "tests"), ("SECURITY.md", "")])
def test_the_proofs_of_the_promises_are_there(page, root):
    named = set(re.findall(r"`([\w/]+/test_\w+\.py)`", (ROOT / page).read_text()))
    assert named
    assert [name for name in sorted(named) if not (ROOT / root / name).exists()] == []
