"""A FileStore on a disk that fails: which outcomes are definite, and what is left."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import os
import threading
from pathlib import Path

import pytest
from storing import create, new, open_files

from overwinter.errors import OutcomeUnknownError, RevisionConflictError, StoreUnavailableError
from overwinter.stores import Expect, FileStore, Stored
from overwinter.stores._file_frame import name_of
from overwinter.stores._file_layer import Files
from overwinter.stores._jobs import Job


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


async def change(store, verb: str, revision: bytes, expected: bytes) -> None:
    if verb == "put":
        await store.put("key", b"new", revision=revision, expected=expected)
    else:
        await store.delete("key", expected=expected)


def leftovers(store: FileStore) -> list[Path]:
    return list(Path(store.path).glob("??/*.tmp"))


def target(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


# ---------------------------------------------------------------- calls that fail


class Failing(Files):
    """Fails at one kind of step, so often, before or after it was done."""

    def __init__(self) -> None:
        self.step, self.number, self.times, self.done = "", 0, 0, False
        self.hits = 0

    def fail(self, step: str, number: int, *, times: int = 10**6, done: bool = False) -> None:
        self.step, self.number, self.times, self.done, self.hits = step, number, times, done, 0

    def heal(self) -> None:
        self.step = ""

    def _do(self, step, action, *arguments):
        if step != self.step or self.hits == self.times:
            return action(*arguments)
        self.hits += 1
        if self.done:
            action(*arguments)
        if step.startswith("fsync"):
            os.set_inheritable(arguments[0], True)  # a mark, which ends with the descriptor
        raise OSError(self.number, os.strerror(self.number))

    def create(self, name, folder):
        return self._do("create", super().create, name, folder)

    def open(self, name, folder):
        return self._do("open", super().open, name, folder)

    def write(self, descriptor, data):
        return self._do("write", super().write, descriptor, data)

    def read(self, descriptor, size, offset):
        return self._do("read", super().read, descriptor, size, offset)

    def fsync(self, descriptor):
        assert not os.get_inheritable(descriptor), "a descriptor whose fsync failed was flushed again"
        path = target(descriptor)
        self._do("fsync folder" if path.is_dir() else "fsync file", super().fsync, descriptor)

    def close(self, descriptor):
        kind = "close written" if target(descriptor).name.endswith(".tmp") else "close"
        super().close(descriptor)
        self._do(kind, lambda: None)

    def rename(self, old, new, folder):
        self._do("rename", super().rename, old, new, folder)

    def unlink(self, name, folder):
        self._do("unlink temporary" if name.endswith(".tmp") else "unlink", super().unlink, name, folder)

    def stamp(self, descriptor, nanoseconds):
        self._do("mark" if nanoseconds else "unmark", super().stamp, descriptor, nanoseconds)


@pytest.fixture
def disk(monkeypatch):
    disk = Failing()
    monkeypatch.setattr(FileStore, "_files", disk)
    return disk


ERRNOS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EACCES]
BEFORE = ["open", "read", "mark", "create", "write", "fsync file", "close written"]


@pytest.mark.parametrize("step", BEFORE)
async def test_a_put_that_fails_before_the_rename_is_not_stored(tmp_path, disk, step):
    async with FileStore(tmp_path / "s") as store:
        base, data = await create(store, "key", b"old"), b"old"
        await store.get("key")
        descriptors = open_files()
        for number, times in itertools.product(ERRNOS, (1, 10**6)):
            os.utime(Path(store.path, name_of("key")[:2], "lock"), (0, 0))  # so that there is a flag to be set
            disk.fail(step, number, times=times)
            with pytest.raises(StoreUnavailableError, match=r"key 'key'") as caught:
                await store.put("key", b"new", revision=new(), expected=base)
            assert os.strerror(number) in str(caught.value)
            assert disk.hits
            disk.heal()
            assert leftovers(store) == []
            assert await store.get("key") == Stored(data, base)
            revision, data = new(), os.urandom(9)
            await store.put("key", data, revision=revision, expected=base)
            assert await store.get("key") == Stored(data, revision)
            base = revision
        assert open_files() <= descriptors


@pytest.mark.parametrize("done", [False, True])
async def test_a_flush_of_the_folder_that_fails_is_unknown(tmp_path, disk, done):
    async with FileStore(tmp_path / "s") as store:
        for number in ERRNOS:
            first, second, third = await create(store, "key", b"old"), new(), new()
            disk.fail("fsync folder", number, done=done)
            with pytest.raises(OutcomeUnknownError, match=r"may have happened.*key 'key'"):
                await store.put("key", b"new", revision=second, expected=first)
            with pytest.raises(StoreUnavailableError):
                await store.get("key")  # not durable: it can't be told
            disk.heal()
            with pytest.raises(RevisionConflictError):  # as a manager does it: the put once more
                await store.put("key", b"new", revision=third, expected=first)
            assert await store.get("key") == Stored(b"new", second)
            await store.put("key", b"newer", revision=third, expected=second)
            disk.fail("fsync folder", number, done=done)
            with pytest.raises(OutcomeUnknownError):
                await store.delete("key", expected=third)
            disk.heal()
            assert await store.get("key") is None
            await store.delete("key", expected=third)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("verb", ["put", "delete"])
async def test_an_io_error_of_the_decisive_step_is_unknown(tmp_path, disk, verb, done):
    async with FileStore(tmp_path / "s") as store:
        first, second = await create(store, "key", b"old"), new()
        disk.fail("rename" if verb == "put" else "unlink", errno.EIO, done=done)
        with pytest.raises(OutcomeUnknownError):
            await change(store, verb, second, first)
        disk.fail("fsync folder", errno.EIO)
        with pytest.raises(StoreUnavailableError):
            await store.get("key")  # whatever is seen now must be flushed first
        disk.heal()
        happened = Stored(b"new", second) if verb == "put" else None
        assert await store.get("key") == (happened if done else Stored(b"old", first))
        assert leftovers(store) == []


@pytest.mark.parametrize("verb", ["put", "delete"])
async def test_a_decisive_step_that_is_refused_did_not_happen(tmp_path, disk, verb):
    async with FileStore(tmp_path / "s") as store:
        first = await create(store, "key", b"old")
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            disk.fail("rename" if verb == "put" else "unlink", number)
            with pytest.raises(StoreUnavailableError):
                await change(store, verb, new(), first)
            disk.heal()
            assert await store.get("key") == Stored(b"old", first)
            assert leftovers(store) == []


def full(descriptor, data):
    raise OSError(errno.ENOSPC, "full")


async def test_what_could_not_be_removed_is_removed_by_the_next(tmp_path, disk):
    async with FileStore(tmp_path / "s") as store:
        first = await create(store, "key", b"old")
        disk.fail("unlink temporary", errno.EIO)
        disk.write = full
        with pytest.raises(StoreUnavailableError, match="disk is full"):
            await store.put("key", b"new", revision=new(), expected=first)
        assert len(leftovers(store)) == 1
        disk.heal()
        assert await store.get("key") == Stored(b"old", first)
        assert leftovers(store) == []


async def test_one_of_a_batch_fails_alone(tmp_path, disk, monkeypatch):
    first = name_of("key 0")[:2]
    keys = list(itertools.islice((f"key {n}" for n in range(10**6) if name_of(f"key {n}")[:2] == first), 6))
    async with FileStore(tmp_path / "s") as store:
        disk.fail("fsync file", errno.EIO, times=1)
        futures = [store.submit(key, b"x", revision=new(), expected=Expect.ABSENT) for key in keys]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] + [type(None)] * 5
        assert [await store.get(key) is not None for key in keys] == [False] + [True] * 5


async def test_a_flag_that_stays_costs_a_flush_and_nothing_else(tmp_path, disk):
    async with FileStore(tmp_path / "s") as store:
        revision = await create(store, "key")
        disk.fail("unmark", errno.EIO)
    assert disk.hits == 1
    disk.heal()
    async with FileStore(tmp_path / "s") as store:
        assert await store.head("key") == revision


async def test_short_writes_and_reads_are_gone_on_with(tmp_path, disk):
    disk.write = lambda descriptor, data: os.write(descriptor, data[:1000])
    disk.read = lambda descriptor, size, offset: os.pread(descriptor, size if size == 8192 else min(size, 999), offset)
    async with FileStore(tmp_path / "s") as store:
        for size in (5000, 100_000):
            data = os.urandom(size)
            revision = await create(store, f"key {size}", data)
            assert await store.get(f"key {size}") == Stored(data, revision)


async def test_a_disk_that_hangs_is_unknown_to_a_put_and_unavailable_to_a_get(tmp_path, disk):
    stuck = threading.Event()
    async with FileStore(tmp_path / "s", timeout=0.05) as store:
        disk.open = lambda name, folder: (stuck.wait(20), Files.open(disk, name, folder))[1]
        put = asyncio.ensure_future(create(store, "key"))
        with pytest.raises(StoreUnavailableError, match="did not answer"):
            await store.get("another key")
        with pytest.raises(OutcomeUnknownError, match="did not answer"):
            await put
        stuck.set()


async def test_a_delete_that_was_given_up_and_happened_is_flushed_before_it_is_told(tmp_path, disk):
    stuck, flushed = threading.Event(), []
    disk.unlink = lambda name, folder: (stuck.wait(20), Files.unlink(disk, name, folder))[1]
    async with FileStore(tmp_path / "s", timeout=0.05) as store:
        revision = await create(store, "key")
        with pytest.raises(OutcomeUnknownError, match="did not answer"):
            await store.delete("key", expected=revision)
        disk.fsync = lambda descriptor: (Files.fsync(disk, descriptor), flushed.append(target(descriptor)))[0]
        stuck.set()
        await store.delete("key", expected=revision)
        assert Path(store.path, name_of("key")[:2]) in flushed


async def test_a_disk_that_hangs_holds_no_memory_and_writes_nothing_that_was_given_up(tmp_path, disk):
    stuck, data = threading.Event(), bytes(1_000_000)
    shard = name_of("key 0")[:2]
    keys = list(itertools.islice((f"key {n}" for n in range(10**6) if name_of(f"key {n}")[:2] == shard), 30))
    async with FileStore(tmp_path / "s", timeout=0.02) as store:
        disk.fsync = lambda descriptor: (stuck.wait(20), Files.fsync(disk, descriptor))[0]
        with pytest.raises(OutcomeUnknownError):
            await create(store, "key 0", data)
        outcomes = await asyncio.gather(*(create(store, key, data) for key in keys[1:]), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}
        assert sum(len(job.data) for job in gc.get_objects() if isinstance(job, Job)) < 2 * len(data)
        stuck.set()
        for desk in store._desks:
            desk._patience = 20
        assert [key for key in keys[1:] if await store.get(key)] == []
