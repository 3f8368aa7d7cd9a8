"""The file of a SQLiteStore: what is refused, what is left alone, and URLs that name it."""

from __future__ import annotations

import asyncio
import os
import stat
import threading

import pytest
from storing import create, modes_when_made, open_files, sqlite

from overwinter.errors import (
    ClosedError,
    CorruptRecordError,
    RevisionConflictError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import SQLiteStore

# ---------------------------------------------------------------- the file


async def test_all_files_are_for_their_owner_only(tmp_path):
    umask = os.umask(0)
    try:
        async with SQLiteStore(tmp_path / "a.db") as store:
            await store.claim("agent", shared=False, wait=0)
            await create(store, "key")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(umask)
    assert set(modes.values()) == {0o600}
    assert {name.partition("-")[2][:5] for name in modes} == {"", "wal", "shm", "lock", "turns", "owner"}


async def test_no_file_was_ever_for_others(tmp_path, monkeypatch):
    umask, found = os.umask(0), modes_when_made(monkeypatch)
    try:
        async with SQLiteStore(tmp_path / "a.db") as store:
            await store.claim("agent", shared=False, wait=0)
            await create(store, "key")
    finally:
        os.umask(umask)
    assert {name.partition("-")[2][:5] for name in found} >= {"", "lock", "turns", "owner"}  # SQLite makes the rest
    assert set(found.values()) == {0o600}


async def test_another_program_can_read_it(tmp_path, ask):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as store:
        revision = await create(store, "ключ", b"\x00data")
        look = "SELECT key, hex(revision), hex(data) FROM agents;;PRAGMA integrity_check;;PRAGMA journal_mode"
        lines = sqlite(ask, path, look).splitlines()
    assert lines == [f"ключ {revision.hex().upper()} 0064617461", "ok", "wal"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.db", "a.db-lock", "a.db-turnstile"]
    assert sqlite(ask, path, look).splitlines() == lines


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b"])
def test_a_path_that_is_none(path):
    with pytest.raises(UsageError):
        SQLiteStore(path)


def test_a_path_of_a_wrong_type():
    with pytest.raises(TypeError):
        SQLiteStore(b"bytes.db")
    with pytest.raises(TypeError):
        SQLiteStore(3)
    with pytest.raises(ValueError, match="timeout"):
        SQLiteStore("a.db", timeout=0)


async def refused(store, error, words) -> None:
    threads, descriptors = threading.active_count(), open_files()
    with pytest.raises(error, match=words):
        await store.__aenter__()
    assert (threading.active_count(), open_files()) == (threads, descriptors), "something is left"
    with pytest.raises(ClosedError):
        await store.get("key")


async def test_a_folder_is_no_file(tmp_path):
    await refused(SQLiteStore(tmp_path), UsageError, "no plain file: pass the path of a file, such as .*agents.db")


async def test_a_missing_folder(tmp_path):
    await refused(SQLiteStore(tmp_path / "no" / "a.db"), UsageError, "no folder .* create it first")


async def test_a_folder_that_everybody_may_write_to_is_refused_unless_it_is_sticky(tmp_path):
    tmp_path.chmod(0o777)
    await refused(SQLiteStore(tmp_path / "a.db"), UsageError, "every user may write to")
    tmp_path.chmod(0o1777)
    async with SQLiteStore(tmp_path / "a.db") as store:
        await create(store, "key")


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", "-lock", "-turnstile"])
async def test_a_symlink_is_refused(tmp_path, suffix):
    (tmp_path / "target").touch()
    (tmp_path / f"a.db{suffix}").symlink_to(tmp_path / "target")
    await refused(SQLiteStore(tmp_path / "a.db"), UsageError, "symbolic link")
    assert (tmp_path / "target").read_bytes() == b""


async def test_a_folder_behind_a_symlink_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = SQLiteStore(tmp_path / "link" / "a.db")
    assert store.path == str(tmp_path / "real" / "a.db")
    async with store:
        await create(store, "key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", "-lock", "-turnstile"])
async def test_a_file_of_somebody_else_is_refused(tmp_path, suffix):
    file = tmp_path / f"a.db{suffix}"
    file.touch()
    os.chown(file, 65534, 65534)
    await refused(SQLiteStore(tmp_path / "a.db"), UsageError, "belongs to user 65534 .* run as its owner")


async def test_a_database_of_another_program_is_left_alone(tmp_path, ask):
    path = tmp_path / "a.db"
    sqlite(ask, path, "CREATE TABLE theirs(x)")
    before = path.read_bytes()
    await refused(SQLiteStore(path), UsageError, "another program")
    assert path.read_bytes() == before


async def test_a_newer_format_is_left_alone(tmp_path, ask):
    path = tmp_path / "a.db"
    async with SQLiteStore(path):
        pass
    sqlite(ask, path, "PRAGMA user_version = 2")
    before = path.read_bytes()
    await refused(SQLiteStore(path), UsageError, "format 2 .* upgrade overwinter")
    assert path.read_bytes() == before


_LEFT_BY_ANOTHER = """
import apsw, os, sys
connection = apsw.Connection(sys.argv[1])
connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
for sql in ("PRAGMA journal_mode = wal", *sys.argv[2:]):
    connection.execute(sql).fetchall()
os._exit(0)
"""


@pytest.mark.parametrize(
    ("sql", "kind", "words"),
    [
        (["PRAGMA user_version = 7"], UsageError, "another program"),
        (["PRAGMA application_id = 0x4F565754", "PRAGMA user_version = 2"], UsageError, "format 2 .* upgrade"),
        (["PRAGMA application_id = 0x4F565754", "PRAGMA user_version = 1"], CorruptRecordError, "no table of agents"),
    ],
)
async def test_what_is_refused_keeps_every_byte_of_itself_and_of_its_log(tmp_path, ask, sql, kind, words):
    path, log = tmp_path / "a.db", tmp_path / "a.db-wal"
    ask(_LEFT_BY_ANOTHER, path, *sql, prelude="")
    before = path.read_bytes(), log.read_bytes()
    assert before[1]
    await refused(SQLiteStore(path), kind, words)
    assert (path.read_bytes(), log.read_bytes()) == before


async def test_what_is_no_database_is_corrupt(tmp_path):
    path = tmp_path / "a.db"
    path.write_bytes(b"not a database " * 1000)
    await refused(SQLiteStore(path), CorruptRecordError, "damaged .*NOTADB")
    assert path.read_bytes() == b"not a database " * 1000


async def test_our_database_without_its_table_is_corrupt(tmp_path, ask):
    path = tmp_path / "a.db"
    async with SQLiteStore(path):
        pass
    sqlite(ask, path, "DROP TABLE agents;;PRAGMA journal_mode = delete")
    before = path.read_bytes()
    await refused(SQLiteStore(path), CorruptRecordError, "no table of agents")
    assert path.read_bytes() == before


async def test_a_log_without_its_database_is_kept(tmp_path):
    (tmp_path / "a.db-wal").write_bytes(b"acknowledged changes")
    await refused(SQLiteStore(tmp_path / "a.db"), UsageError, "a.db is gone and .*a.db-wal.* is not")
    assert (tmp_path / "a.db-wal").read_bytes() == b"acknowledged changes"


async def test_a_file_that_was_replaced_takes_no_more_puts_and_is_not_read(tmp_path):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as store:
        await create(store, "before")
        path.rename(tmp_path / "moved.db")
        for attempt in (create(store, "lost"), store.get("before"), store.head("before"), store.count()):
            with pytest.raises(StoreUnavailableError, match="moved or replaced"):
                await attempt
        (tmp_path / "moved.db").rename(path)
        await create(store, "after")


async def test_damaged_pages_are_not_absent(tmp_path):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as store:
        for number in range(200):
            await create(store, f"key {number}", b"x" * 300)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    async with SQLiteStore(path) as store:
        for number in range(0, 200, 17):
            with pytest.raises(CorruptRecordError, match="damaged"):
                await store.get(f"key {number}")
            with pytest.raises(CorruptRecordError):
                await create(store, f"key {number}")


@pytest.mark.parametrize(("column", "verb"), [("data", "get"), ("revision", "get"), ("revision", "head")])
async def test_text_that_is_no_utf8_is_corrupt_and_hides_nothing_beside_it(tmp_path, ask, column, verb):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as store:
        for key in "abc":
            await create(store, key)
    sqlite(ask, path, f"UPDATE agents SET {column} = CAST(x'ff' AS TEXT) WHERE key = 'b'")
    async with SQLiteStore(path) as store:
        found = await asyncio.gather(*(getattr(store, verb)(key) for key in "abc"), return_exceptions=True)
        assert [isinstance(one, CorruptRecordError) for one in found] == [False, True, False]
        with pytest.raises(RevisionConflictError):
            await create(store, "b")
