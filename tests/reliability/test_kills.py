"""kill -9 of a process that writes: at every n-th system call that changes a file, and at random moments.

What was acknowledged is there, whole; nothing is there that nobody asked for; no file is left over; and the next
process goes on with the same store, until it is killed as well.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest
from killed import Kept, change, make_store

from overwinter import InstanceManager
from overwinter._store_keys import default_key
from overwinter.errors import CorruptRecordError
from overwinter.stores._file_frame import name_of
from overwinter.testing._child import content
from overwinter.testing._processes import attached
from overwinter.testing._trace import CHANGES, killing, was_killed

CALLS = (*CHANGES, "openat", "mkdir", "mkdirat")
KEYS = [f"agent {number}" for number in range(6)]
CHANGED = 3  # times each agent, while calls are counted
LIFE = 4 * CHANGED  # times until a process ends by itself
EACH = 40  # of the n-th calls of one kind, before those of other kinds have their turn
MODES = ("call", "call", "hibernate", "interval")
AT_ONCE = 2


@dataclass
class Books:
    """A store, what was said of it in one life after another, and what all lives came to."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    files: Path | None = None
    bug: str = ""
    steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    kept: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def case(self, durability: str, changes: int | None, traced: str = "") -> str:
        """A life, as its process is told it."""
        self.kept, self.made = dict(self.steps), dict(self.steps)
        return json.dumps(
            {
                "url": self.url,
                "options": self.options,
                "steps": self.steps,
                "changes": changes,
                "durability": durability,
                "traced": traced,
                "bug": self.bug,
            }
        )

    def note(self, lines: list[str]) -> None:
        for line in lines:
            word, rest = line.split(" ", 1)
            key, _, step = rest.rpartition(" ")
            self.made[key] = int(step)
            if word == "kept":
                self.kept[key] = int(step)
                self.seen["acknowledged"] += 1

    def check(self, where: str) -> None:
        if self.files is not None:
            self.seen["files left over"] += len(leftovers(self.files))
        asyncio.run(self.look(where))
        if self.files is not None and self.url.startswith("sqlite"):
            connection = apsw.Connection(str(self.files / "agents.db"))
            assert connection.pragma("integrity_check") == "ok", where
            connection.close()

    async def look(self, where: str) -> None:
        """What the next owner finds, who need not wait: the kernel has let go of the claims of the dead."""
        async with InstanceManager(Kept, store=make_store(self.url, **self.options), owner_wait=0) as agents:
            assert self.files is None or not leftovers(self.files), f"{where}: files are left for ever"
            assert {key async for key in agents.stored_keys()} <= set(KEYS), f"{where}: a key that nobody put there"
            for key in KEYS:
                found = await agents.state(key)
                least, most = self.kept[key], self.made[key] + 1  # the last one was on its way
                possible = [step for step in range(least, most + 1) if holds(found, content(key, step), step)]
                assert possible, f"{where}: {key} was kept at {least}, at most made {most}, and holds {found.step}"
                self.steps[key] = possible[-1]
            if self.files is not None:  # on a server the last request of the dead may still be under way
                key = KEYS[self.seen["kills"] % len(KEYS)]
                self.steps[key] += 1
                await change(agents, key, self.steps[key])


def holds(found: Kept, freight: bytes | None, step: int) -> bool:
    return (found.step, found.freight) == ((0, b"") if freight is None else (step, freight))


def leftovers(files: Path) -> list[Path]:
    """What only a process that was killed leaves: drafts of records and of the marker, and SQLite's old journal."""
    folders = [name_of(default_key("kept", key))[:2] for key in KEYS]
    drafts = [path for folder in (".", *folders) for path in files.glob(f"agents/{folder}/*.tmp")]
    return [*drafts, *files.glob("*-journal")]


# ---------------------------------------------------------------- one life


def begin(template: Any, case: str) -> int:
    template.say(case)
    return int(template.expect("pid "))


def until(template: Any, word: str) -> list[str]:
    """What it says until a line that begins with *word*, and that."""
    lines: list[str] = []
    while not lines or not lines[-1].startswith(word):
        line = template.line()
        assert line is not None, template.errors
        lines.append(line)
    return lines


def status(lines: list[str]) -> int:
    return int(lines.pop().removeprefix("ended "))


def kill_at(template: Any, books: Books, case: str, call: str, number: int) -> None:
    """Have *case* run until a thread begins its n-th *call*, or, where none comes to that, to its end; and look."""
    with tempfile.NamedTemporaryFile("r") as trace:
        pid = begin(template, case)
        before = until(template, "ready")
        with attached(killing("strace", Path(trace.name), pid, call, number)):
            lines = until(template, "ended ")
        came = was_killed(trace.read(), call, number)
    ended, where = status(lines), f"killed at {call} {number} in {case}"
    assert ended in (0, -signal.SIGKILL), f"{where}: it ended with {ended}: {template.errors}"
    assert came == (ended != 0), f"{where}: the trace and the end don't agree"
    books.note(before[:-1] + lines)
    books.seen["kills" if came else "ended before"] += 1
    books.check(where)


def kill_after(template: Any, books: Books, case: str, lines: int) -> None:
    """Have *case* run until it has said so many *lines*, and kill it whatever it does."""
    pid = begin(template, case)
    said = [template.line() or "" for _ in range(lines)]
    os.kill(pid, signal.SIGKILL)
    said += until(template, "ended ")
    ended, where = status(said), f"killed after {lines} lines of {case}"
    assert ended == -signal.SIGKILL, f"{where}: it ended with {ended}: {template.errors}"
    books.note(said)
    books.seen["kills"] += 1
    books.check(where)


def counted(template: Any, books: Books, traced: str, durability: str = "call") -> dict[str, int]:
    """How often the busiest thread makes each kind of call, in a short life that nobody ends."""
    calls = ",".join(f"?{call}" for call in CALLS)
    with tempfile.NamedTemporaryFile("r") as trace:
        pid = begin(template, books.case(durability, CHANGED, traced))
        before = until(template, "ready")
        with attached(killing("strace", Path(trace.name), pid, calls, 65535)):
            lines = until(template, "ended ")
        assert lines.pop() == "ended 0", template.errors
        made = Counter(tuple(line.split("(")[0].split()) for line in trace if "(" in line and "resumed>" not in line)
    books.note(before[:-1] + lines)
    books.check("at the end of a life")
    most: dict[str, int] = {}
    for (_, call), number in sorted(made.items()):
        most[call] = max(number, most.get(call, 0))
    return most


def planned(most: dict[str, int], chance: random.Random) -> Iterator[tuple[str, int]]:
    """Points for ever: each kind of call, and of each kind every n in the end."""
    while True:
        points = [
            (call, number)
            for call, last in most.items()
            for number in chance.sample(range(1, last + 1), min(last, EACH))
        ]
        yield from chance.sample(points, len(points))


# ---------------------------------------------------------------- stores in files


def many_kills(template: Any, kind: str, folder: Path, size: int, chance: random.Random) -> Counter[str]:
    """In one store, life after life: most of them at work, some at random moments, some as they close; some new."""
    books = books_of(kind, folder / "old")
    for _ in range(size // 10):
        kill_after(template, books, books.case(chance.choice(MODES), None), chance.choice([0, chance.randrange(100)]))
    at_work = planned(counted(template, books, "at work"), chance)
    while books.seen["kills"] < size * 8 // 10:
        kill_at(template, books, books.case(chance.choice(MODES), LIFE, "at work"), *next(at_work))
        check_that_faults_come(books.seen)
    closing = planned(counted(template, books, "at the end", "hibernate"), chance)
    while books.seen["kills"] < size * 9 // 10:
        kill_at(template, books, books.case("hibernate", CHANGED, "at the end"), *next(closing))
        check_that_faults_come(books.seen)
    opening = planned(counted(template, books_of(kind, folder / "new"), "from the opening"), chance)
    while books.seen["kills"] < size:
        young = books_of(kind, folder / "young")
        kill_at(template, young, young.case("call", LIFE, "from the opening"), *next(opening))
        books.seen += young.seen
        check_that_faults_come(books.seen)
        shutil.rmtree(folder / "young")
    return books.seen


def check_that_faults_come(seen: Counter[str]) -> None:
    assert seen["ended before"] <= 5 + seen["kills"] // 5, f"too often no thread came to its call: {seen}"


def books_of(kind: str, folder: Path, **options: Any) -> Books:
    folder.mkdir()
    return Books(f"{kind}://{folder}/agents{'.db' * (kind == 'sqlite')}", files=folder, **options)


@pytest.fixture
def template(worker):
    return worker("", program="killed.py")


@pytest.fixture
def strace():
    if shutil.which("strace") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "strace is not installed, so nobody is killed: install it"
        )


@pytest.mark.parametrize("kind", ["file", "sqlite"])
@pytest.mark.usefixtures("strace")
def test_a_kill_at_every_system_call_loses_nothing(kind, worker, in_memory, proof):
    size = proof.size(run=200, long=5000)

    def lane(number: int) -> Counter[str]:
        folder = in_memory / str(number)
        folder.mkdir()
        template = worker("", program="killed.py")
        return many_kills(template, kind, folder, size // AT_ONCE, proof.chance(number))

    with ThreadPoolExecutor(AT_ONCE) as lanes:
        seen = sum(lanes.map(lane, range(AT_ONCE)), Counter())
    assert seen["kills"] >= size
    assert seen["files left over"] or kind == "sqlite", "no kill came between a file and its name"
    proof.count(**{word.replace(" ", "_"): number for word, number in seen.items()})


# ---------------------------------------------------------------- stores on servers


@pytest.fixture
def place(request, tmp_path):
    """Where a server keeps agents: a URL and options."""
    server = request.getfixturevalue(request.param)
    if request.param == "s3":
        return f"s3://{server.bucket}/{tmp_path.name}", server.options
    return server.url, {}


@pytest.mark.parametrize("place", ["redis", "postgres", "s3"], indirect=True)
def test_a_kill_of_a_client_loses_nothing(place, template, proof):
    books, chance = Books(*place), proof.chance()
    for _ in range(proof.size(run=20, long=200)):
        kill_after(template, books, books.case(chance.choice(MODES), None), chance.choice([0, chance.randrange(200)]))
    proof.count(**books.seen)


# ---------------------------------------------------------------- who tests this test


@pytest.mark.usefixtures("strace")
def test_a_store_that_writes_in_place_is_found_out(template, in_memory):
    books = books_of("file", in_memory / "old", bug="writes in place")
    with pytest.raises(CorruptRecordError):
        kill_at(template, books, books.case("call", LIFE, "at work"), "write", 3)


@pytest.mark.usefixtures("strace")
def test_an_acknowledgement_before_the_put_is_found_out(template, in_memory):
    books = books_of("file", in_memory / "old", bug="acknowledges early")
    with pytest.raises(AssertionError, match="was kept at"):
        kill_at(template, books, books.case("call", LIFE, "at work"), "renameat", 2)


@pytest.mark.usefixtures("strace")
def test_a_fault_that_does_not_come_is_found_out(template, in_memory, proof, monkeypatch):
    monkeypatch.setattr("test_kills.counted", lambda *_: {"mkdir": 7})
    with pytest.raises(AssertionError, match="no thread came to its call"):
        many_kills(template, "sqlite", in_memory, 20, proof.chance())
