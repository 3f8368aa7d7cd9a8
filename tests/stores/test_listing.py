"""Listing and counting keys: each once, whatever they are made of, and nothing left out in silence."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from storing import create, new, sqlite

from overwinter.errors import (
    ClosedError,
    CorruptRecordError,
    InvalidKeyError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import Expect, FileStore, MemoryStore, SQLiteStore, Store, Stored
from overwinter.stores import _file_listing as file_listing
from overwinter.stores import _sqlite_listing as sqlite_listing
from overwinter.stores import sqlite as sqlite_module
from overwinter.stores._file_frame import name_of, pack
from overwinter.testing import FaultyStore

Make = Callable[[], Store]

HOSTILE = [
    "a", "a\0", "a\0b", "a\0\0", "A", "a%", "a_", "ab", "a*", "a?", "a[b]", "a/../b", "..", ".", "/", "a:b", "a%3Ab",
    "'", '"', "a\x7f", "a\x80", "a\u07ff", "a\u0800", "a\ud7ff", "a\ue000", "a\uffff", "a\U00010000", "a\U0010ffff",
    "\n", "a\U0010ffffz", "\U0010ffff", "\U0010ffff\U0010ffff", "é", "e\u0301", "ß", "ss", " a", "a ", "\ufeffa", "b",
    "x" * 1024, "é" * 500,
]  # fmt: skip


@pytest.fixture(params=["memory", "sqlite", "file", "faulty"])
def make(request: pytest.FixtureRequest, in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Another handle on the same data each time; pages are so small that a test sees several."""
    small_pages(monkeypatch)
    memory = MemoryStore()
    return {
        "memory": lambda: memory,
        "sqlite": lambda: SQLiteStore(in_memory / "agents.db"),
        "file": lambda: FileStore(in_memory / "agents"),
        "faulty": lambda: FaultyStore(SQLiteStore(in_memory / "agents.db")),
    }[request.param]


def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_listing, "PAGE", 3)
    monkeypatch.setattr(sqlite_module, "PAGE", 3)
    monkeypatch.setattr(file_listing, "_AT_ONCE", 3)


async def fill(store: Store, keys: list[str]) -> None:
    await asyncio.gather(*(create(store, key) for key in keys))


async def listed(store: Store, prefix: str = "") -> list[str]:
    return [key async for key in store.keys(prefix)]


async def listed_until(store: Store, prefix: str, match: str | None = None) -> list[str]:
    """What is listed before the error."""
    seen: list[str] = []

    async def collect() -> None:
        async for key in store.keys(prefix):
            seen.append(key)  # noqa: PERF401  # what came before the error counts

    with pytest.raises(CorruptRecordError, match=match):
        await collect()
    return seen


def keys_of_one_folder(number: int) -> list[str]:
    first = name_of("key 0")[:2]
    found = (key for key in (f"key {n}" for n in range(10**6)) if name_of(key)[:2] == first)
    return [key for _, key in zip(range(number), found, strict=False)]


# ---------------------------------------------------------------- what is listed


async def test_each_key_is_listed_once_and_no_other(make):
    async with make() as store:
        assert await listed(store) == []
        assert await store.count() == 0
        await fill(store, HOSTILE)
        await store.delete("ab", expected=Expect.ANY)
        expected = sorted(set(HOSTILE) - {"ab"})
        assert sorted(await listed(store)) == expected
        assert await store.count() == len(expected)
    async with make() as store:
        assert sorted(await listed(store)) == expected


async def test_a_prefix_is_compared_code_point_by_code_point(make):
    async with make() as store:
        await fill(store, HOSTILE)
        for prefix in [*HOSTILE, "xx", "nothing"][:: 4 if isinstance(store, FileStore) else 1]:
            expected = sorted(key for key in HOSTILE if key.startswith(prefix))
            assert sorted(await listed(store, prefix)) == expected, prefix
            assert await store.count(prefix) == len(expected), prefix


async def test_random_keys_and_prefixes(make):
    rng = random.Random(7)
    alphabet = "ab\0%_\x7f\x80é\u07ff\ud7ff\ue000\uffff\U00010000\U0010ffff"
    keys = {"".join(rng.choices(alphabet, k=rng.randint(1, 5))) for _ in range(400)}
    async with make() as store:
        await fill(store, sorted(keys))
        for prefix in sorted({key[: rng.randint(0, 3)] for key in keys})[
            : 15 if isinstance(store, FileStore) else None
        ]:
            expected = sorted(key for key in keys if key.startswith(prefix))
            assert sorted(await listed(store, prefix)) == expected, prefix
            assert await store.count(prefix) == len(expected), prefix


async def test_what_stays_is_listed_once_while_others_come_and_go(make):
    keys = keys_of_one_folder(30)
    stay, go, come = keys[:10], keys[10:20], keys[20:]
    async with make() as store:
        await fill(store, stay + go)
        seen = []
        async for key in store.keys():
            seen.append(key)
            if go:
                await store.delete(go.pop(), expected=Expect.ANY)
                await create(store, come.pop())
                touched = stay[len(go)]  # a new version of a record is the same key
                head = await store.head(touched)
                await store.put(touched, b"y", revision=new(), expected=head)
        assert len(seen) == len(set(seen))
        assert set(stay) <= set(seen) <= set(keys)


@pytest.mark.parametrize("number", [2, 3, 4, 6, 7])
async def test_the_last_page_may_be_full(make, number):
    keys = keys_of_one_folder(number)
    async with make() as store:
        await fill(store, keys)
        assert sorted(await listed(store)) == sorted(keys)


# ---------------------------------------------------------------- leaving, closing, misuse


async def test_leaving_early_and_being_cancelled_leave_the_store_usable(make):
    async with make() as store:
        await fill(store, keys_of_one_folder(20))
        async for _ in store.keys():
            break
        for steps in range(12):
            task = asyncio.ensure_future(listed(store))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert len(await listed(store)) == await store.count() == 20


async def test_a_store_that_is_not_open_lists_nothing(make):
    store = make()
    with pytest.raises(ClosedError):
        await listed(store)
    with pytest.raises(ClosedError):
        await store.count()


async def test_a_listing_ends_with_an_error_when_its_store_is_closed(in_memory, monkeypatch):
    small_pages(monkeypatch)
    for store in (SQLiteStore(in_memory / "a.db"), FileStore(in_memory / "agents")):
        async with store:
            await fill(store, keys_of_one_folder(7))
            keys = store.keys()
            await anext(keys)
        with pytest.raises(ClosedError):
            assert len([key async for key in keys]) < 6


@pytest.mark.parametrize("kind", [SQLiteStore, FileStore])
async def test_a_prefix_that_no_key_can_begin_with_is_refused(in_memory, kind):
    async with kind(in_memory / "agents") as store:
        with pytest.raises(InvalidKeyError):
            await listed(store, "\ud800")
        with pytest.raises(InvalidKeyError):
            await store.count("\ud800")


class Three(MemoryStore):
    """The defaults of the base class."""

    keys = Store.keys
    count = Store.count


class Listing(Three):
    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        for key in ("a", "b", "aa"):
            if key.startswith(prefix):
                yield key


async def test_a_store_of_ones_own_lists_when_it_can():
    async with Three() as store:
        with pytest.raises(UsageError, match="Three can't list its keys"):
            await listed(store)
        with pytest.raises(UsageError, match="Three can't list its keys"):
            await store.count()
    async with Listing() as store:
        assert (await store.count(), await store.count("a")) == (3, 2)


# ---------------------------------------------------------------- SQLite


async def test_no_transaction_is_open_between_two_keys(tmp_path, ask, monkeypatch):
    small_pages(monkeypatch)
    async with SQLiteStore(tmp_path / "a.db") as store:
        await fill(store, HOSTILE)
        keys = store.keys()
        for _ in range(4):
            await anext(keys)
        busy, _, _ = sqlite(ask, store.path, "PRAGMA wal_checkpoint(TRUNCATE)").split()
        assert busy == "0", "a reader keeps the log from being reset"


async def test_a_damaged_key_in_a_table_is_told_last(tmp_path, ask, monkeypatch):
    small_pages(monkeypatch)
    async with SQLiteStore(tmp_path / "a.db") as store:
        await fill(store, ["a", "b", "c", "d", "e", "f"])
        sqlite(ask, store.path, "UPDATE agents SET key = CAST(x'61ff' AS TEXT) WHERE key = 'c'")
        seen = await listed_until(store, "", r"1 rows in .* no UTF-8")
        assert seen == ["a", "b", "d", "e", "f"]
        assert await listed(store, "d") == ["d"]
        assert await store.count() == 6


async def test_what_is_no_text_is_no_key(tmp_path, ask):
    async with SQLiteStore(tmp_path / "a.db") as store:
        await fill(store, ["a"])
        sqlite(ask, store.path, "INSERT INTO agents(key, revision, data) VALUES (x'6161', x'00', x'00')")
        assert await store.get("aa") is None
        assert await listed(store) == await listed(store, "a") == ["a"]
        assert (await store.count(), await store.count("a")) == (1, 1)


async def test_a_table_that_is_gone_is_no_empty_store(tmp_path, ask):
    async with SQLiteStore(tmp_path / "a.db") as store:
        await fill(store, ["a"])
        sqlite(ask, store.path, "DROP TABLE agents")
        with pytest.raises(StoreUnavailableError, match="listing 'a'"):
            await listed(store, "a")


# ---------------------------------------------------------------- files


def damage_head(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def link(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.symlink_to(path.with_suffix(".old"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def newer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4] = 9
    path.write_bytes(content)


def of_another_key(path: Path) -> None:
    path.write_bytes(pack("another", bytes(16), 1) + b"x")


def misplaced(path: Path) -> None:
    other = path.parent.parent / ("00" if path.parent.name != "00" else "01")
    path.rename(other / path.name)


@pytest.mark.parametrize("harm", [damage_head, empty, link, pipe, newer, of_another_key, misplaced])
async def test_a_file_that_can_not_be_told_the_key_of_is_told_last(in_memory, harm):
    keys = [f"a {number}" for number in range(50)]
    async with FileStore(in_memory / "agents") as store:
        await fill(store, keys)
        name = name_of("a 7")
        harm(Path(store.path, name[:2], name))
        for prefix, expected in (("", 49), ("a 1", 11), ("b", 0)):  # its key may begin with anything
            seen = await listed_until(store, prefix, rf"1 files .*{name}")
            assert sorted(seen) == sorted(key for key in keys if key != "a 7" and key.startswith(prefix))
            assert len(seen) == expected
        assert await store.count() == 50, "something is stored there"


async def test_many_damaged_files_make_a_short_error(in_memory):
    keys = [f"a {number}" for number in range(50)]
    async with FileStore(in_memory / "agents") as store:
        await fill(store, keys)
        for key in keys[:40]:
            empty(Path(store.path, name_of(key)[:2], name_of(key)))
        with pytest.raises(CorruptRecordError, match="40 files") as caught:
            await listed(store)
        assert len(str(caught.value)) < 1500


async def test_data_that_is_torn_behind_a_whole_head_has_a_key(in_memory):
    async with FileStore(in_memory / "agents") as store:
        await fill(store, ["a", "b"])
        path = Path(store.path, name_of("a")[:2], name_of("a"))
        path.write_bytes(path.read_bytes()[:-1])
        assert sorted(await listed(store)) == ["a", "b"]
        with pytest.raises(CorruptRecordError):
            await store.get("a")


async def test_files_that_are_no_records_are_no_keys(in_memory):
    async with FileStore(in_memory / "agents") as store:
        await fill(store, ["a"])
        folder = Path(store.path, name_of("a")[:2])
        (folder / "notes.txt").write_text("mine")
        (folder / f"{name_of('b')}.{'0' * 16}.tmp").write_bytes(b"torn")
        assert await listed(store) == ["a"]
        assert await store.count() == 1


async def test_a_key_longer_than_the_first_read_is_read_whole(in_memory):
    key = "k" * 60_000
    async with FileStore(in_memory / "agents") as store:
        await fill(store, [key])
        assert await listed(store, "k" * 50_000) == [key]


async def test_a_listing_waits_for_a_lock_only_so_long(in_memory):
    async with FileStore(in_memory / "agents", timeout=0.1) as store:
        await fill(store, ["a"])
        descriptor = os.open(Path(store.path, name_of("a")[:2], "lock"), os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with pytest.raises(StoreUnavailableError, match=r"locked for 0\.1 s"):
                await listed(store)
        finally:
            os.close(descriptor)
        assert await listed(store) == ["a"]


# ---------------------------------------------------------------- the store that fails on demand


async def test_a_listing_fails_on_demand():
    store = FaultyStore(MemoryStore())
    async with store:
        await fill(store, ["a", "b"])
        store.fail("keys", StoreUnavailableError("down"))
        with pytest.raises(StoreUnavailableError):
            await listed(store)
        store.fail("keys", CorruptRecordError("one is damaged"), after=True)
        seen = await listed_until(store, "")
        assert seen == ["a", "b"]
        store.fail("count", StoreUnavailableError("down"), key="b")
        assert await store.count("a") == 1
        with pytest.raises(StoreUnavailableError):
            await store.count("b")
        assert (store.calls["keys"], store.calls["count"]) == (2, 2)
        assert store.log[-1] == ("count", "b")


async def test_a_listing_is_held_on_demand():
    store = FaultyStore(MemoryStore())
    async with store:
        await fill(store, ["a"])
        gate = store.hold("keys")
        task = asyncio.ensure_future(listed(store))
        await gate.reached()
        gate.release()
        assert await task == ["a"]
        assert await store.get("a") == Stored(b"x", await store.head("a") or b"")
