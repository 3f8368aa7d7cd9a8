"""A SQLiteStore on a disk that fails: which outcomes are definite, which are unknown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import os
import shutil
import threading
from pathlib import Path

import apsw
import pytest
from storing import create, new, open_files

from overwinter.errors import (
    OutcomeUnknownError,
    RevisionConflictError,
    StoreUnavailableError,
)
from overwinter.stores import Expect, SQLiteStore, _sqlite_worker
from overwinter.stores._jobs import Job

# ---------------------------------------------------------------- a disk that fails


class Disk:
    """What the next operations on a file, the write-ahead log unless said otherwise, do."""

    error: apsw.Error | None = None
    on = "sync"
    file = "-wal"
    hits = 0
    opened = 0

    def check(self, operation: str, file: str) -> None:
        if self.error is not None and operation == self.on and file.endswith(self.file):
            self.hits += 1
            raise self.error


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()

    class File(apsw.VFSFile):
        def __init__(self, inherit, name, flags):
            super().__init__(inherit, name, flags)
            self.name = (name.filename() if isinstance(name, apsw.URIFilename) else name) or ""
            disk.opened += self.name.endswith("-wal")

        def xSync(self, flags):
            disk.check("sync", self.name)
            super().xSync(flags)

        def xWrite(self, data, offset):
            disk.check("write", self.name)
            super().xWrite(data, offset)

    class Files(apsw.VFS):
        def __init__(self):
            super().__init__("failing", "")

        def xOpen(self, name, flags):
            return File("", name, flags)

    vfs = Files()
    monkeypatch.setattr(apsw, "Connection", functools.partial(apsw.Connection, vfs="failing"))
    yield disk
    vfs.unregister()


def sqlite_error(code: int) -> apsw.Error:
    return apsw.exception_for(code)


UNKNOWN = [("sync", "SQLITE_IOERR_FSYNC"), ("write", "SQLITE_IOERR_WRITE"), ("sync", "SQLITE_IOERR")]


@pytest.mark.parametrize(("on", "code"), UNKNOWN)
async def test_a_commit_that_fails_is_unknown_and_a_new_connection_follows(tmp_path, disk, batches, on, code):
    async with SQLiteStore(tmp_path / "a.db") as store:
        revision = await create(store, "old")
        opened = disk.opened
        disk.on, disk.error = on, sqlite_error(getattr(apsw, code))
        good = [store.submit(f"key {number}", b"x", revision=new(), expected=Expect.ABSENT) for number in range(5)]
        stale = store.submit("old", b"x", revision=new(), expected=new())
        outcomes = await asyncio.gather(*good, stale, return_exceptions=True)
        assert disk.hits
        assert [type(outcome) for outcome in outcomes] == [OutcomeUnknownError] * 5 + [RevisionConflictError]
        assert code in str(outcomes[0])
        disk.error = None
        await create(store, "key 6")
        assert disk.opened > opened, "the descriptor whose fsync failed was used again"
        assert await store.head("old") == revision
        for number in range(5):  # as a manager does it: the put once more, with the same condition
            with contextlib.suppress(RevisionConflictError):
                await create(store, f"key {number}")


@pytest.mark.parametrize("code", ["SQLITE_FULL", "SQLITE_READONLY"])
async def test_a_write_that_can_not_be_done_is_definite(tmp_path, disk, code):
    async with SQLiteStore(tmp_path / "a.db") as store:
        await create(store, "old")
        disk.on, disk.error = "write", sqlite_error(getattr(apsw, code))
        outcomes = await asyncio.gather(
            *(create(store, f"key {number}") for number in range(5)), return_exceptions=True
        )
        assert disk.hits
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 5
        assert not any([await store.get(f"key {number}") for number in range(5)])
        disk.error = None
        await asyncio.gather(*(create(store, f"key {number}") for number in range(5)))


@pytest.mark.parametrize(
    ("on", "code"), [("write", "SQLITE_FULL"), ("write", "SQLITE_IOERR_WRITE"), ("sync", "SQLITE_IOERR_FSYNC")]
)
async def test_a_checkpoint_that_fails_loses_nothing(tmp_path, disk, monkeypatch, on, code):
    monkeypatch.setattr(_sqlite_worker, "_CHECKPOINT_PAGES", 10)
    async with SQLiteStore(tmp_path / "a.db") as store:
        await create(store, "old")
        disk.file, disk.on, disk.error = "a.db", on, sqlite_error(getattr(apsw, code))
        for number in range(40):
            await create(store, f"key {number}", b"x" * 5000)
        assert disk.hits
    async with SQLiteStore(tmp_path / "a.db") as store:
        assert all([await store.get(f"key {number}") for number in range(40)])
        disk.error = None
        for number in range(40, 60):
            await create(store, f"key {number}", b"x" * 5000)
    async with SQLiteStore(tmp_path / "a.db") as store:
        assert all([await store.get(f"key {number}") for number in range(60)])


async def test_a_log_that_can_not_be_flushed_is_not_read_from(tmp_path, monkeypatch):
    async with SQLiteStore(tmp_path / "a.db") as store:
        revision = await create(store, "key")
        for suffix in ("", "-wal"):  # as a killed process leaves them
            shutil.copy(f"{tmp_path}/a.db{suffix}", f"{tmp_path}/b.db{suffix}")
    descriptors, flush, failed = open_files(), os.fsync, []

    def fail(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "b.db-wal":
            failed.append(descriptor)
            raise OSError(errno.EIO, "as asked")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreUnavailableError, match="SQLITE_IOERR_FSYNC"):
        await SQLiteStore(tmp_path / "b.db").__aenter__()
    assert failed
    assert open_files() == descriptors
    monkeypatch.setattr(os, "fsync", flush)
    async with SQLiteStore(tmp_path / "b.db") as store:
        assert await store.head("key") == revision


async def test_a_disk_that_hangs_holds_no_memory_and_writes_nothing_that_was_given_up(tmp_path, disk):
    stuck, data = threading.Event(), bytes(1_000_000)
    async with SQLiteStore(tmp_path / "a.db", timeout=0.02) as store:
        disk.check = lambda operation, file: stuck.wait(20) if operation == "sync" else None
        with pytest.raises(OutcomeUnknownError):
            await create(store, "key 0", data)
        keys = [f"key {number}" for number in range(1, 30)]
        outcomes = await asyncio.gather(*(create(store, key, data) for key in keys), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}
        assert sum(len(job.data) for job in gc.get_objects() if isinstance(job, Job)) < 2 * len(data)
        stuck.set()
        for desk in store._desks:
            desk._patience = 20
        await create(store, "last")  # after all that waited
        assert [key for key in keys if await store.get(key)] == []


async def test_the_log_is_copied_into_the_database_now_and_then(tmp_path):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as store:
        for number in range(6):
            await create(store, f"key {number}", b"x" * 4_000_000)
        assert path.stat().st_size > 12_000_000
        assert Path(f"{path}-wal").stat().st_size < 12_000_000
