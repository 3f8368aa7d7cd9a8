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
from lives import FOLDERS, KEYS, call_agents, look_at_agents, read_store, use_store
from power import FOREIGN, Disk, File, State, put_on
from proofs import Proof
from recorders import Log, RecordingFiles, RecordingVFS, recorded_files, recorded_sqlite

from overwinter.errors import CorruptRecordError, OutcomeUnknownError, OverwinterError, StoreUnavailableError
from overwinter.stores import FileStore, SQLiteStore, Store, Stored, _file_folder, _sqlite_db, _sqlite_worker
from overwinter.stores import file as file_store
from overwinter.stores._file_frame import name_of, pack

AT_ONCE = 8
ROUNDS = (0, 2, 8)  # of changes in a life: the opening and the closing are to be cut off as well
TOLD = ("try", "acknowledged", "refused", "seen", "found")

Allowed = dict[str, list[Any]]
"""What may be found under a key after a power loss: what was told last, then what was tried since."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few folders for all keys, so that files share a flush, and a checkpoint after every few changes."""
    monkeypatch.setattr(_file_folder, "SHARDS", FOLDERS)
    monkeypatch.setattr(file_store, "SHARDS", FOLDERS)
    monkeypatch.setattr(_sqlite_worker, "_CHECKPOINT_PAGES", 20)


class Kind(NamedTuple):
    """A store, what is done with it, and how it is looked at."""

    recorded: Callable[[Path, State, Log], contextlib.AbstractContextManager[Store]]
    plain: Callable[[Path], Store]
    inspect: Callable[[Path], str]
    use: Callable[[Store, Log, random.Random, int], Awaitable[None]] = use_store
    look: Callable[[Store], Awaitable[dict[str, Any]]] = read_store
    nothing: Any = None
    """What an empty disk holds under each key."""
    trouble: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    """What may end a life."""


def leftovers(base: Path) -> str:
    return "leftovers" if list(base.glob("s/??/*.tmp")) else ""


def integrity(base: Path) -> str:
    with contextlib.closing(apsw.Connection(str(base / "a.db"))) as connection:
        return "" if connection.execute("PRAGMA integrity_check").get == "ok" else "damaged"


FILES = Kind(recorded_files, lambda base: FileStore(base / "s"), leftovers)
SQLITE = Kind(recorded_sqlite, lambda base: SQLiteStore(base / "a.db"), integrity)
CALLS = [kind._replace(use=call_agents, look=look_at_agents, nothing=0) for kind in (FILES, SQLITE)]


class Case(NamedTuple):
    """What a power loss may leave."""

    state: State
    allowed: Allowed
    moment: int
    lost: bool
    """Whether it is less than there was."""
    name: Any
    """Cases of one name are the same."""


def follow(disk: Disk, allowed: Allowed, log: Log) -> Iterator[int]:
    """Go through a log; at each of its moments *disk* and *allowed* are as they were then."""
    for moment, (step, key, *rest) in enumerate(log):
        if step not in TOLD:
            disk.follow(step, key, *rest)
        elif step == "try":
            allowed[key] += rest
        elif step == "acknowledged":
            allowed[key] = rest
        elif step == "refused":
            allowed[key].remove(*rest)
        elif step == "found":
            assert rest[0] in allowed[key], f"{key}: not what it was before"
            allowed[key] = rest
        elif rest[0] in allowed[key]:  # what was seen may be old by the time that it is told
            del allowed[key][: allowed[key].index(rest[0])]
        yield moment


def cases(disk: Disk, allowed: Allowed, log: Log, chance: random.Random, number: int) -> Iterator[Case]:
    """Some of the disks that a power loss may leave at some moments of *log*."""
    times = collections.Counter(chance.choices(range(len(log)), k=number))
    told = 0
    for moment in follow(disk, allowed, log):
        told += log[moment][0] in ("acknowledged", "seen", "found")
        whole = disk.whole() if times[moment] else {}
        for _ in range(times[moment]):
            state = disk.lose_power(chance)
            name, lost = (told, frozenset(state.items())), state != whole
            if "a.db" in state and chance.random() < 0.3:
                state["a.db-shm"] = File(chance.randbytes(40_000))  # it is mapped, never flushed, and of no use
            yield Case(state, copy.deepcopy(allowed), moment, lost, name)


async def sign_of(kind: Kind, base: Path, case: Case) -> str:
    """What is wrong with a disk, or nothing."""
    put_on(base, case.state)
    try:
        found = await kind.look(kind.plain(base))
    except CorruptRecordError:
        return "torn"
    except OverwinterError as error:
        return type(error.__cause__ or error).__name__
    except AssertionError as error:
        return str(error)
    for key, outcomes in case.allowed.items():
        if found[key] not in outcomes:
            return "lost" if found[key] == kind.nothing else "torn" if is_torn(found[key], outcomes) else "old"
    sign = kind.inspect(base)
    shutil.rmtree(base)
    return sign


def is_torn(found: Any, outcomes: list[Any]) -> bool:
    """Whether it is what was put, but for its data, whose checksum is the record's own and not the store's."""
    return isinstance(found, Stored) and found.revision in [put.revision for put in outcomes if put is not None]


async def live(kind: Kind, base: Path, disk: Disk, chance: random.Random, rounds: int) -> Log:
    """What happens on a disk as it is now."""
    log: Log = []
    put_on(base, disk.whole())
    with kind.recorded(base, disk.whole(), log) as store, kind.trouble:
        await kind.use(store, log, chance, rounds)
    shutil.rmtree(base)
    return log


async def lose_power(
    kind: Kind, base: Path, keep: Path, chance: random.Random, *, lives: int = 4, number: int = 220
) -> list[Case]:
    """Live, and see what a power loss may leave; live on from there, or after a kill, and so on.

    Returns all cases, if all is well with them.

    Raises:
        AssertionError: "the disk is" and the sign of the first that is wrong. It is kept in *keep*, since the same
            seed won't make it again: threads have their own order.
    """
    disk, allowed = Disk({}), {key: [kind.nothing] for key in KEYS}
    seen: list[Case] = []
    base.mkdir(exist_ok=True)
    for life in range(lives):
        log = await live(kind, base / "life", disk, chance, chance.choice(ROUNDS))
        tried = cases(copy.deepcopy(disk), copy.deepcopy(allowed), log, chance, number)
        left = list({case.name: case for case in tried}.values())
        for some in (left[start : start + AT_ONCE] for start in range(0, len(left), AT_ONCE)):
            places = (base / f"disk {number}" for number in range(AT_ONCE))
            signs = await asyncio.gather(*map(sign_of, itertools.repeat(kind), places, some))
            for sign, case in zip(signs, some, strict=True):
                if sign:
                    print("left:", *map(short, case.state.items()), sep="\n")
                    print("after:", *map(short, log[: case.moment + 1]), sep="\n")
                    put_on(keep / "disk", case.state)
                    raise AssertionError(f"the disk is {sign} in life {life}: see {keep / 'disk'}")
        seen += left
        if chance.random() < 0.5:  # a kill takes nothing from the disk, and flushes nothing
            exhaust(follow(disk, allowed, log[: chance.randrange(len(log)) + 1]))
        else:
            last = chance.choice(left)
            disk, allowed = Disk(last.state), last.allowed
    return seen


def exhaust(steps: Iterator[int]) -> None:
    collections.deque(steps, maxlen=0)


def short(entry: tuple[Any, ...]) -> str:
    return " ".join(f"{len(part)} bytes" if isinstance(part, bytes) else str(part)[:60] for part in entry)


async def prove(kind: Kind, base: Path, keep: Path, proof: Proof, turns: int) -> None:
    for turn in range(turns):
        seen = await lose_power(kind, base / str(turn), keep, proof.chance(turn))
        proof.count(disks=len(seen), that_lost_something=sum(case.lost for case in seen))
    assert proof.counts["that lost something"] > 50 * turns


@pytest.mark.parametrize("kind", [FILES, SQLITE], ids=["files", "sqlite"])
async def test_a_power_loss_at_any_moment_takes_nothing_that_was_told(in_memory, tmp_path, proof, kind):
    await prove(kind, in_memory, tmp_path, proof, proof.size(run=2, long=25))


class FailsToFlushFiles(RecordingFiles):
    chance = random.Random(0)

    def fails(self):
        return self.chance.random() < 0.1


class FailsToFlushDatabases(RecordingVFS):
    chance = random.Random(0)

    def fails(self):  # before there is a log it is made, by a journal of SQLite's own, and nothing is in it
        return Path(self.base, "a.db-wal").exists() and self.chance.random() < 0.1


def failing(kind: Kind) -> Kind:
    disk = FailsToFlushFiles if kind is FILES else FailsToFlushDatabases
    trouble = contextlib.suppress(StoreUnavailableError, OutcomeUnknownError)  # it can't be opened, or read
    return kind._replace(recorded=functools.partial(kind.recorded, kind=disk), trouble=trouble)


@pytest.mark.parametrize("kind", [FILES, SQLITE], ids=["files", "sqlite"])
async def test_a_power_loss_after_flushes_that_failed_takes_nothing_that_was_told(in_memory, tmp_path, proof, kind):
    await prove(failing(kind), in_memory, tmp_path, proof, proof.size(run=1, long=25))


@pytest.mark.parametrize("kind", [FILES, SQLITE], ids=["files", "sqlite"])
async def test_what_a_failed_flush_left_is_not_built_upon(in_memory, proof, kind):
    chance = proof.chance()
    kills = proof.size(run=10, long=100)
    while kills > 0:
        log = await live(failing(kind), in_memory / "first", Disk({}), chance, rounds=4)
        for moment in [moment for moment, (step, *_) in enumerate(log) if step == "flush failed"]:
            disk, allowed = Disk({}), {key: [kind.nothing] for key in KEYS}
            exhaust(follow(disk, allowed, log[: moment + 1]))
            again = await live(kind, in_memory / "second", disk, chance, rounds=2)
            left = {case.name: case for case in cases(disk, allowed, again, chance, 20)}
            for case in left.values():
                assert await sign_of(kind, in_memory / "disk", case) == "", f"after a kill at step {moment}"
            proof.count(kills=1, disks=len(left))
            kills -= 1


@pytest.mark.parametrize("kind", CALLS, ids=["files", "sqlite"])
async def test_a_power_loss_at_any_moment_takes_nothing_that_callers_know(in_memory, tmp_path, proof, kind):
    await prove(kind, in_memory, tmp_path, proof, proof.size(run=1, long=10))


@pytest.mark.parametrize("kind", [FILES, SQLITE], ids=["files", "sqlite"])
async def test_what_a_killed_writer_left_is_not_told_before_it_is_durable(in_memory, proof, kind):
    chance = proof.chance()
    log = await live(kind, in_memory / "first", Disk({}), chance, rounds=4)
    for flush in (moment for moment, (step, *_) in enumerate(log) if step.startswith("flush")):
        disk, allowed = Disk({}), {key: [None] for key in KEYS}
        exhaust(follow(disk, allowed, log[:flush]))
        again = await live(kind, in_memory / "second", disk, chance, rounds=0)
        told = [step == "found" for step, *_ in again]
        exhaust(follow(disk, allowed, again[: len(told) - told[::-1].index(True)]))
        for _ in range(10):
            case = Case(disk.lose_power(chance), allowed, flush, lost=True, name=None)
            assert await sign_of(kind, in_memory / "disk", case) == "", f"after a kill before step {flush}"
        proof.count(kills=1, disks=10)


# ---------------------------------------------------------------- whether it would be found out


def test_a_disk_may_be_left_in_every_way_that_fsync_allows(proof):
    one, two = b"1" * 512, b"2" * 512
    disk = Disk({"b": File(b"old")})
    for step in (("create", "a"), ("write", "a", 0, one + two), ("rename", "a", "b")):
        disk.follow(*step)
    chance = proof.chance()
    names, contents = set(), set()
    for _ in range(5000):
        state = disk.lose_power(chance)
        names.add(tuple((name, file.data != b"old") for name, file in sorted(state.items())))
        contents |= {file.data for file in state.values()} - {b"old"}
    assert names == {(("b", False),), (("b", True),), (("a", True), ("b", False)), (("a", True), ("b", True))}
    nothing = bytes(512)
    assert contents >= {b"", one, one + two, one + nothing, nothing + two, nothing * 2, one + FOREIGN, FOREIGN + two}
    assert any(data.startswith(one + two[:9]) and data.endswith(b"\0") for data in contents), "no torn sector"
    disk.follow("flush", "b")
    assert {file.data for _ in range(100) for file in disk.lose_power(chance).values()} == {b"old", one + two}
    disk.follow("flush folder", ".")
    disk.follow("unlink", "b")
    assert {tuple(disk.lose_power(chance).items()) for _ in range(100)} == {(), (("b", File(one + two)),)}


@pytest.mark.parametrize(
    ("data", "revision", "sign"),
    [(b"new", b"2", ""), (b"\0\0\0", b"2", "torn"), (b"new", b"1", "old"), (b"", b"2", "torn")],
)
async def test_what_is_wrong_with_a_disk_is_called_by_its_name(in_memory, data, revision, sign):
    key = KEYS[0]
    name = name_of(key)
    disk = {"s": None, f"s/{name[:2]}": None, f"s/{name[:2]}/{name}": File(pack(key, revision, 3) + data)}
    allowed: Allowed = {other: [None] for other in KEYS} | {key: [None, Stored(b"new", b"2")]}
    assert await sign_of(FILES, in_memory / "disk", Case(disk, allowed, 0, lost=False, name=None)) == sign


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
    (FILES, NeverFlushesFiles, "torn"),
    (FILES, NeverFlushesFolders, "lost|old|StoreUnavailableError"),
    (FILES, ForgetsTheFolderOfFolders, "lost|StoreUnavailableError"),
    (FILES, FlushesAfterTheRename, "torn"),
    (SQLITE, FlushesNothing, "lost|old|torn|damaged|UsageError"),
    (SQLITE, FlushesTheLogAlone, "lost|old|torn|damaged"),
    (SQLITE, FlushesTheDatabaseAlone, "lost|old|torn|damaged"),
    (SQLITE, ForgetsTheFolder, "lost|old|torn|UsageError"),  # torn: the journal that would mend it has no name
]


@pytest.fixture
def find_out(in_memory: Path, tmp_path: Path, proof: Proof) -> Callable[[Kind, str], Awaitable[None]]:
    """Lose power until one of *signs* is seen."""

    async def several(kind: Kind) -> None:
        for turn in range(5):
            await lose_power(kind, in_memory / str(turn), tmp_path, proof.chance(turn))

    async def find(kind: Kind, signs: str) -> None:
        with pytest.raises(AssertionError, match=f"the disk is ({signs})"):
            await several(kind)

    return find


@pytest.mark.parametrize(("kind", "disk", "signs"), FOUND_OUT, ids=[disk.__name__ for _, disk, _ in FOUND_OUT])
async def test_a_flush_that_is_left_out_is_found_out(find_out, kind, disk, signs):
    await find_out(kind._replace(recorded=functools.partial(kind.recorded, kind=disk)), signs)


@pytest.mark.parametrize("level", ["NORMAL", "OFF"])
async def test_a_database_that_flushes_less_than_it_must_is_found_out(find_out, monkeypatch, level):
    connect = _sqlite_db.connect

    def lazily(path: str) -> apsw.Connection:
        connection = connect(path)
        _sqlite_db.run(connection, f"PRAGMA synchronous = {level}")
        return connection

    monkeypatch.setattr(_sqlite_db, "connect", lazily)
    await find_out(SQLITE, "lost|old|torn|damaged")


@pytest.mark.parametrize("kind", CALLS, ids=["files", "sqlite"])
async def test_a_manager_that_tells_too_early_is_found_out(find_out, kind):
    early = kind._replace(use=functools.partial(call_agents, durability="hibernate"))
    await find_out(early, "lost|old|told others too early")
