"""A power loss at any moment, and again after that, takes nothing that was told and tears nothing: files and SQLite."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import functools
import itertools
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from power import Disk, File, State, put_on
from recorders import Log, RecordingFiles, RecordingVFS, recorded_files, recorded_sqlite
from proofs import Proof
from worker import Counter

from overwinter import InstanceManager
from overwinter.errors import CorruptRecordError, OverwinterError
from overwinter.stores import Expect, FileStore, SQLiteStore, Store, Stored, _file_folder, _sqlite_db, _sqlite_worker
from overwinter.stores import file as file_store
from overwinter.stores._file_frame import name_of

FOLDERS = ["00", "01", "02"]  # instead of 256
KEYS = list(itertools.islice((key for key in map(str, range(10_000)) if name_of(key)[:2] in FOLDERS), 6))
SIZES = (10, 700, 5000, 70_000)
TOLD = ("try", "acknowledged", "seen", "found")
AT_ONCE = 8

Allowed = dict[str, list[Any]]
"""What a key may hold after a power loss: what was told last, then what was tried since."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few folders with all the keys, so that files share a flush, and a checkpoint after every few changes."""
    monkeypatch.setattr(_file_folder, "SHARDS", FOLDERS)
    monkeypatch.setattr(file_store, "SHARDS", FOLDERS)
    monkeypatch.setattr(_sqlite_worker, "_CHECKPOINT_PAGES", 20)


# ---------------------------------------------------------------- what goes on before the power is lost


async def use_store(store: Store, log: Log, chance: random.Random) -> None:
    """Create, change, read and delete, several at a time; note what is tried and what is told."""
    async with store:
        base = await read_store(store)
        log += [("found", key, what) for key, what in base.items()]

        async def change(key: str) -> None:
            old, new = base[key], None
            if old is None or chance.random() < 0.8:
                new = Stored(chance.randbytes(chance.choice(SIZES)), chance.randbytes(16))
            expected = Expect.ABSENT if old is None else old.revision
            log.append(("try", key, new))
            if new is None:
                await store.delete(key, expected=expected)
            else:
                await store.put(key, new.data, revision=new.revision, expected=expected)
            log.append(("acknowledged", key, new))
            base[key] = new

        async def look(key: str) -> None:
            log.append(("seen", key, await store.get(key)))

        for _ in range(8):
            keys = chance.sample(KEYS, chance.randint(1, len(KEYS)))
            await asyncio.gather(*map(change, keys), look(chance.choice(KEYS)))


async def read_store(store: Store) -> dict[str, Stored | None]:
    found = dict(zip(KEYS, await asyncio.gather(*map(store.get, KEYS)), strict=True))
    listed = {key async for key in store.keys()}
    assert listed == {key for key in KEYS if found[key] is not None}
    return found


async def call_agents(store: Store, log: Log, chance: random.Random, durability: str = "call") -> None:
    """Count in several calls at a time; what a reply says, of a change or only of a look, is told."""
    async with InstanceManager(Counter, store=store, durability=durability, key_fn=same) as counters:
        tried = {}
        for key, count in (await read_agents(counters)).items():
            log.append(("found", key, count))
            tried[key] = itertools.count(count + 1)

        async def count(key: str) -> None:
            log.append(("try", key, next(tried[key])))
            log.append(("seen", key, await counters.call(key, Counter.grow, chance.choice((10, 700)))))

        async def look(key: str) -> None:
            log.append(("seen", key, await counters.call(key, Counter.read)))

        for _ in range(6):
            keys = chance.choices(KEYS, k=chance.randint(1, 9))
            await asyncio.gather(*map(count, keys), *map(look, KEYS[:3]))


async def read_agents(counters: InstanceManager[Counter]) -> dict[str, int]:
    agents = [await counters.state(key) for key in KEYS]
    assert all(len(agent.freight) == agent.count for agent in agents), "half a change"
    return {key: agent.count for key, agent in zip(KEYS, agents, strict=True)}


def same(_: str, key: str) -> str:
    return key


def tell(allowed: Allowed, step: str, key: str, what: Any) -> None:
    outcomes = allowed[key]
    if step == "try":
        outcomes.append(what)
    elif step == "acknowledged":
        outcomes[:] = [what]
    elif step == "found" or what in outcomes:  # what was seen may be old by the time that it is told
        del outcomes[: outcomes.index(what)]


# ---------------------------------------------------------------- what is left


class Kind(NamedTuple):
    """A store, and what is done with it."""

    recorded: Callable[[Path, State, Log], contextlib.AbstractContextManager[Store]]
    plain: Callable[[Path], Store]
    inspect: Callable[[Path], str]
    use: Callable[[Store, Log, random.Random], Awaitable[None]] = use_store
    nothing: Any = None
    """What an empty disk holds under each key."""


class Case(NamedTuple):
    state: State
    allowed: Allowed
    moment: int
    lost: bool


def leftovers(base: Path) -> str:
    return "leftovers" if list(base.glob("s/??/*.tmp")) else ""


def integrity(base: Path) -> str:
    with contextlib.closing(apsw.Connection(str(base / "a.db"))) as connection:
        return "" if connection.execute("PRAGMA integrity_check").get == "ok" else "damaged"


FILES = Kind(recorded_files, lambda base: FileStore(base / "s"), leftovers)
SQLITE = Kind(recorded_sqlite, lambda base: SQLiteStore(base / "a.db"), integrity)
CALLS = [kind._replace(use=call_agents, nothing=0) for kind in (FILES, SQLITE)]


def cases(found: State, allowed: Allowed, log: Log, chance: random.Random, number: int) -> Iterator[Case]:
    """Some of the disks that a power loss may leave, at any of the moments of *log*."""
    disk = Disk(found)
    times = collections.Counter(chance.choices(range(len(log)), k=number))
    for moment, entry in enumerate(log):
        if entry[0] in TOLD:
            tell(allowed, *entry)
        else:
            disk.follow(*entry)
        whole = disk.whole() if times[moment] else {}
        for _ in range(times[moment]):
            state = disk.lose_power(chance)
            yield Case(state, copy.deepcopy(allowed), moment, state != whole)


async def sign_of(kind: Kind, base: Path, case: Case) -> str:
    """What is wrong with a disk, or nothing."""
    put_on(base, case.state)
    try:
        if kind.nothing is None:
            async with kind.plain(base) as store:
                found = await read_store(store)
        else:
            async with InstanceManager(Counter, store=kind.plain(base), key_fn=same) as counters:
                found = await read_agents(counters)
    except CorruptRecordError:
        return "torn"
    except OverwinterError as error:
        return type(error).__name__
    for key, outcomes in case.allowed.items():
        if found[key] not in outcomes:
            return "lost" if found[key] == kind.nothing else "old"
    sign = kind.inspect(base)
    shutil.rmtree(base)
    return sign


async def lose_power(kind: Kind, base: Path, chance: random.Random, *, lives: int, number: int) -> list[tuple[str, bool]]:
    """Live, lose power, live on from one of the disks that may be left, and so on. Each disk's sign, and if it lost anything."""
    found: State = {}
    allowed: Allowed = {key: [kind.nothing] for key in KEYS}
    signs: list[tuple[str, bool]] = []
    base.mkdir(exist_ok=True)
    for life in range(lives):
        log: Log = []
        put_on(base / "life", found)
        with kind.recorded(base / "life", found, log) as store:
            await kind.use(store, log, chance)
        shutil.rmtree(base / "life")
        distinct = {frozenset(case.state.items()): case for case in cases(found, allowed, log, chance, number)}
        left = list(distinct.values())
        for start in range(0, len(left), AT_ONCE):
            some = left[start : start + AT_ONCE]
            folders = [base / f"disk {place}" for place in range(AT_ONCE)]
            new = await asyncio.gather(*map(sign_of, itertools.repeat(kind), folders, some))
            signs += zip(new, (case.lost for case in some), strict=True)
            for sign, case in zip(new, some, strict=True):
                if sign:
                    steps = map(short, log[: case.moment + 1])
                    print(f"life {life}, a disk that is {sign}:", *map(short, case.state.items()), "after", *steps, sep="\n")
                    return signs
        found, allowed = chance.choice(left)[:2]
    return signs


def short(entry: tuple) -> str:
    return " ".join(f"{len(part)} bytes" if isinstance(part, bytes) else str(part)[:60] for part in entry)


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("kind", [FILES, SQLITE, *CALLS], ids=["files", "sqlite", "calls on files", "calls on sqlite"])
async def test_a_power_loss_at_any_moment_loses_nothing_that_was_told(in_memory, proof, kind):
    for turn in range(proof.size(run=3, long=30)):
        signs = await lose_power(kind, in_memory, proof.chance(turn), lives=3, number=200)
        assert {sign for sign, _ in signs} == {""}, f"turn {turn}"
        proof.count(disks=len(signs), that_lost_something=sum(lost for _, lost in signs))
    assert proof.counts["that lost something"] > proof.size(run=300, long=3000)


class NeverFlushesFiles(RecordingFiles):
    def note(self, step, path, *rest):
        if step != "flush":
            super().note(step, path, *rest)


class NeverFlushesFolders(RecordingFiles):
    def note(self, step, path, *rest):
        if step != "flush folder":
            super().note(step, path, *rest)


class ForgetsTheFolderOfFolders(RecordingFiles):
    def note(self, step, path, *rest):
        if (step, path) != ("flush folder", "s"):
            super().note(step, path, *rest)


class FlushesAfterTheRename(RecordingFiles):
    def note(self, step, path, *rest):
        if step != "flush" or not path.endswith(".tmp"):
            super().note(step, path, *rest)
        if step == "rename":
            super().note("flush", rest[0])


class FlushesNothing(RecordingVFS):
    def note(self, step, path, *rest):
        if not step.startswith("flush"):
            super().note(step, path, *rest)


class FlushesTheLogAlone(RecordingVFS):
    def note(self, step, path, *rest):
        if (step, path) != ("flush", "a.db"):
            super().note(step, path, *rest)


class FlushesTheDatabaseAlone(RecordingVFS):
    def note(self, step, path, *rest):
        if (step, path) != ("flush", "a.db-wal"):
            super().note(step, path, *rest)


class ForgetsTheFolder(RecordingVFS):
    def note(self, step, path, *rest):
        if step != "flush folder":
            super().note(step, path, *rest)


FOUND_OUT = [
    (FILES, NeverFlushesFiles, {"torn"}),
    (FILES, NeverFlushesFolders, {"lost", "old"}),
    (FILES, ForgetsTheFolderOfFolders, {"lost"}),
    (FILES, FlushesAfterTheRename, {"torn"}),
    (SQLITE, FlushesNothing, {"lost", "old"}),
    (SQLITE, FlushesTheLogAlone, {"lost", "old", "torn", "damaged"}),
    (SQLITE, FlushesTheDatabaseAlone, {"lost", "old", "torn"}),
    (SQLITE, ForgetsTheFolder, {"lost"}),
]


async def first_sign(kind: Kind, base: Path, proof: Proof) -> str:
    """What is wrong first with a store that should be found out."""
    for turn in range(5):
        signs = await lose_power(kind, base / str(turn), proof.chance(turn), lives=2, number=200)
        if signs[-1][0]:
            return signs[-1][0]
    return ""


@pytest.mark.parametrize(("kind", "disk", "signs"), FOUND_OUT)
async def test_a_flush_that_is_left_out_is_found_out(in_memory, proof, kind, disk, signs):
    bad = kind._replace(recorded=functools.partial(kind.recorded, kind=disk))
    assert await first_sign(bad, in_memory, proof) in signs


@pytest.mark.parametrize("level", ["NORMAL", "OFF"])
async def test_a_database_that_is_less_than_full_in_its_flushes_is_found_out(in_memory, proof, monkeypatch, level):
    connect = _sqlite_db.connect

    def lazily(path: str) -> apsw.Connection:
        connection = connect(path)
        _sqlite_db.run(connection, f"PRAGMA synchronous = {level}")
        return connection

    monkeypatch.setattr(_sqlite_db, "connect", lazily)
    assert await first_sign(SQLITE, in_memory, proof) in ("lost", "old")


@pytest.mark.parametrize("kind", CALLS, ids=["files", "sqlite"])
async def test_a_manager_that_tells_too_early_is_found_out(in_memory, proof, kind):
    early = kind._replace(use=functools.partial(call_agents, durability="hibernate"))
    assert await first_sign(early, in_memory, proof) in ("lost", "old")
