"""Child processes for the tests of stores, for what can't be tried in one process, and a look at batches."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

from overwinter.stores import _sqlite_worker
from overwinter.stores._jobs import Job

PRELUDE = """
import asyncio, fcntl, json, os, resource, signal, socket, sys, time
from overwinter.errors import *
from overwinter.stores import Expect
from overwinter.stores.file import FileStore
from overwinter.stores.sqlite import SQLiteStore
from overwinter.stores._flock import FairLock
def say(*words): print(*words, flush=True)
def new(): return os.urandom(16)
"""

Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def child() -> Iterator[Child]:
    """Start ``python -c code *arguments``; whoever is left is killed after the test."""
    children: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, prelude: str = PRELUDE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", prelude + textwrap.dedent(code), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(process)
        return process

    yield start
    for process in children:
        process.kill()
        process.communicate()


@pytest.fixture
def ask(child: Child) -> Callable[..., str]:
    """Run a child to its end and return what it printed; its failure is ours."""

    def run(code: str, *arguments: object, prelude: str = PRELUDE) -> str:
        process = child(code, *arguments, prelude=prelude)
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert not errors, errors
        return output.strip()

    return run


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that writers were given."""
    sizes: list[int] = []
    work = _sqlite_worker.Writer.work

    def counted(self: _sqlite_worker.Writer, batch: list[Job]) -> None:
        sizes.append(len(batch))
        work(self, batch)

    monkeypatch.setattr(_sqlite_worker.Writer, "work", counted)
    return sizes


_tables = itertools.count()


@pytest.fixture
def table() -> str:
    """A name for a table that no other test uses."""
    return f"agents_{next(_tables)}"
