"""What FileStore does beside the contract, in one process."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from storing import create, new, open_files

from overwinter.errors import (
    CorruptRecordError,
    InvalidKeyError,
    RevisionConflictError,
    StateTooLargeError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import Durability, Expect, FileStore, Stored, _file_folder, _file_writer
from overwinter.stores._file_frame import name_of, pack
from overwinter.stores._file_layer import Files


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


def file_of(store: FileStore, key: str) -> Path:
    return Path(store.path, name_of(key)[:2], name_of(key))


def keys_of_one_folder(number: int) -> list[str]:
    """Keys whose files share a folder, and so a lock."""
    first = name_of("key 0")[:2]
    found = (f"key {n}" for n in range(10**6))
    return [key for _, key in zip(range(number), (key for key in found if name_of(key)[:2] == first), strict=False)]


class Calls(Files):
    """Notes what is done, and holds flushes, of files or of folders, until they are released."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self.held = "file"
        self.flushing = self.most = 0
        self._guard = threading.Lock()

    def fsync(self, descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        kind = "folder" if path.is_dir() else "file"
        if kind == self.held:
            with self._guard:
                self.flushing += 1
                self.most = max(self.most, self.flushing)
            assert self.hold.wait(20)
            with self._guard:
                self.flushing -= 1
        self.log.append(f"fsync {kind}")
        super().fsync(descriptor)

    def create(self, name, folder):
        self.log.append("create")
        return super().create(name, folder)

    def write(self, descriptor, data):
        self.log.append("write")
        return super().write(descriptor, data)

    def rename(self, old, new, folder):
        self.log.append("rename")
        super().rename(old, new, folder)

    def unlink(self, name, folder):
        self.log.append("unlink")
        super().unlink(name, folder)


@pytest.fixture
def calls(monkeypatch):
    calls = Calls()
    monkeypatch.setattr(FileStore, "_files", calls)
    return calls


# ---------------------------------------------------------------- what is done for a call


async def test_the_order_of_the_steps(tmp_path, calls):
    async with FileStore(tmp_path / "s") as store:
        calls.log.clear()
        revision = await create(store, "key")
        assert calls.log == ["create", "write", "fsync file", "rename", "fsync folder"]
        calls.log.clear()
        with pytest.raises(RevisionConflictError):
            await create(store, "key")
        assert await store.get("key")
        assert calls.log == []
        await store.delete("key", expected=revision)
        assert calls.log == ["unlink", "fsync folder"]
        calls.log.clear()
        await store.delete("key", expected=revision)
        assert calls.log == []


async def test_what_waits_for_one_folder_shares_its_flush(tmp_path, calls):
    keys = keys_of_one_folder(40)
    async with FileStore(tmp_path / "s") as store:
        calls.log.clear()
        futures = [store.submit(key, b"x", revision=new(), expected=Expect.ABSENT) for key in keys]
        await asyncio.gather(*futures)
        assert calls.log.count("fsync file") == 40
        assert calls.log.count("fsync folder") == 1
        assert all(await asyncio.gather(*(store.get(key) for key in keys)))


async def test_flushes_of_several_callers_overlap(tmp_path, calls):
    async with FileStore(tmp_path / "s") as store:
        calls.hold.clear()
        puts = [store.submit(f"key {n}", b"x", revision=new(), expected=Expect.ABSENT) for n in range(64)]
        while calls.flushing < 8:
            await asyncio.sleep(0)  # and meanwhile the loop runs
        calls.hold.set()
        await asyncio.gather(*puts)
        assert calls.most == 8


async def test_a_get_waits_for_what_is_not_durable_yet(tmp_path, calls, monkeypatch):
    """A rename is seen at once by whoever looks; what it brought may be told only when the folder is flushed."""
    refusals = []

    def counted(*arguments, shared=False, take_turn=_file_folder.take_turn):
        got = take_turn(*arguments, shared=shared)
        refusals.extend([shared] * (not got))
        return got

    async with FileStore(tmp_path / "s") as store, FileStore(tmp_path / "s") as other:
        first, second = await create(store, "key", b"old"), new()
        monkeypatch.setattr(_file_folder, "take_turn", counted)
        calls.held = "folder"
        calls.hold.clear()
        put = store.submit("key", b"new", revision=second, expected=first)
        while not calls.flushing:
            await asyncio.sleep(0)
        assert file_of(store, "key").read_bytes().endswith(b"new")
        tasks = [asyncio.create_task(verb("key")) for each in (store, other) for verb in (each.get, each.head)]
        assert await other.get("key 1") is None  # of another folder
        while len(refusals) < 20:
            await asyncio.sleep(0)
        assert not any(task.done() for task in (*tasks, put))
        calls.hold.set()
        assert await asyncio.gather(*tasks) == [Stored(b"new", second), second] * 2
        await put


async def test_large_and_odd_records(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        for key, size in (("a" * 60000, 10), ("large", 5_000_000), ("edge", 8192), ("edges", 65536), ("empty", 0)):
            data = os.urandom(size)
            revision = await create(store, key, data)
            assert await store.get(key) == Stored(data, revision)
            assert await store.head(key) == revision


async def test_misused_arguments(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        with pytest.raises(UsageError, match="only for deleting"):
            await store.put("key", b"x", revision=new(), expected=Expect.ANY)
        with pytest.raises(InvalidKeyError):
            await store.get("lone \ud800")
        with pytest.raises(InvalidKeyError, match="65535"):
            await create(store, "k" * 65536)
        assert await store.get("k" * 65536) is None
        with pytest.raises(UsageError, match="255"):
            await store.put("key", b"x", revision=b"r" * 256, expected=Expect.ABSENT)


def test_durability_is_declared(tmp_path):
    assert FileStore(tmp_path).durability is Durability.HOST
    assert FileStore(tmp_path, allow_network=True).durability is Durability.PROCESS


# ---------------------------------------------------------------- files that are not what they should be


async def spoiled(store: FileStore, words: str) -> None:
    """What is under "key" is corrupt for every verb, and left as it is."""
    before = file_of(store, "key").lstat()
    for attempt in (store.get("key"), store.head("key"), create(store, "key"), store.delete("key", expected=new())):
        with pytest.raises(CorruptRecordError, match=words) as caught:
            await attempt
        assert "'key'" in str(caught.value)
    assert file_of(store, "key").lstat() == before
    assert await store.get("another key") is None


async def test_a_file_of_another_key_is_corrupt(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        await create(store, "key")
        file_of(store, "key").write_bytes(pack("other", new(), 1) + b"x")
        await spoiled(store, "holds another key")
        await store.delete("key", expected=Expect.ANY)
        assert await store.get("key") is None


async def test_a_symlink_is_corrupt(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        await create(store, "key")
        target = file_of(store, "key").rename(tmp_path / "target")
        file_of(store, "key").symlink_to(target)
        before = target.read_bytes()
        await spoiled(store, "no plain file")
        await store.delete("key", expected=Expect.ANY)
        assert (target.read_bytes(), await store.get("key")) == (before, None)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_what_is_no_file_is_corrupt_and_does_not_block(tmp_path, make):
    async with FileStore(tmp_path / "s") as store:
        make(file_of(store, "key"))
        await spoiled(store, "no plain file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_file_of_somebody_else_is_corrupt(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        await create(store, "key")
        os.chown(file_of(store, "key"), 65534, 65534)
        await spoiled(store, "belongs to user 65534")


async def test_a_file_that_is_larger_than_a_record_is_corrupt_and_is_not_read(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        for key in "abc":
            await create(store, key)
        head = pack("b", b"r" * 16, 1 << 40)
        with file_of(store, "b").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + (1 << 40))
        found = await asyncio.gather(*map(store.get, "abc"), return_exceptions=True)
        assert [isinstance(one, CorruptRecordError) for one in found] == [False, True, False]


async def test_a_record_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_file_writer, "MAX_DATA", 100)
    async with FileStore(tmp_path / "s") as store:
        with pytest.raises(StateTooLargeError, match="101 bytes"):
            await create(store, "key", bytes(101))
        await create(store, "key", bytes(100))


async def test_a_record_that_memory_does_not_suffice_for_fails_alone(tmp_path, calls):
    def read(descriptor: int, size: int, offset: int) -> bytes:
        if offset:
            raise MemoryError
        return os.pread(descriptor, size, offset)

    async with FileStore(tmp_path / "s") as store:
        for key in "abc":
            await create(store, key, bytes(20000 if key == "b" else 1))
        calls.read = read
        found = await asyncio.gather(*map(store.get, "abc"), return_exceptions=True)
        assert [isinstance(one, StoreUnavailableError) for one in found] == [False, True, False]


async def test_a_file_that_ends_too_soon_while_it_is_read(tmp_path, calls):
    async with FileStore(tmp_path / "s") as store:
        await create(store, "key", b"x" * 20000)
        calls.read = lambda descriptor, size, offset: os.pread(descriptor, size, offset) if not offset else b""
        with pytest.raises(CorruptRecordError, match="torn"):
            await store.get("key")


async def test_a_folder_that_is_gone_is_not_empty(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        await create(store, "key")
        folder = file_of(store, "key").parent
        folder.rename(tmp_path / "moved")
        for attempt in (store.get("key"), create(store, "key")):
            with pytest.raises(StoreUnavailableError, match="No such file"):
                await attempt
        folder.symlink_to(tmp_path / "moved")
        for attempt in (store.get("key"), create(store, "key")):
            with pytest.raises(StoreUnavailableError, match="symbolic link"):
                await attempt
        folder.unlink()
        (tmp_path / "moved").rename(folder)
        assert await store.get("key")


async def test_a_store_that_was_replaced_is_not_used(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        await create(store, "before")
        (tmp_path / "s").rename(tmp_path / "moved")
        for attempt in (create(store, "lost"), store.get("before")):
            with pytest.raises(StoreUnavailableError, match="moved or replaced"):
                await attempt
        (tmp_path / "moved").rename(tmp_path / "s")
        await create(store, "after")


# ---------------------------------------------------------------- loops, threads, the end


async def test_closing_leaves_no_thread_and_no_descriptor(tmp_path):
    threads, descriptors = threading.active_count(), open_files()
    async with FileStore(tmp_path / "s") as store:
        await store.claim("agent", shared=False, wait=0)
        await asyncio.gather(*(create(store, f"key {n}") for n in range(100)))
        await asyncio.gather(*(store.get(f"key {n}") for n in range(100)))
        assert threading.active_count() <= threads + 10
        assert open_files() - descriptors <= 2 + 2 * 10, "descriptors are held between two jobs"
    assert (threading.active_count(), open_files()) == (threads, descriptors)


async def test_a_cancelled_caller_does_not_take_its_batch_along(tmp_path, calls):
    trouble = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: trouble.append(context["message"]))
    keys = keys_of_one_folder(9)
    async with FileStore(tmp_path / "s") as store:
        there = await create(store, keys[0])
        futures = [store.submit(key, b"y", revision=new(), expected=Expect.ABSENT) for key in keys]
        await asyncio.sleep(0)  # they are on their way
        futures[0].cancel()
        futures[2].cancel()
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert [outcome is None for outcome in outcomes] == [number not in {0, 2} for number in range(9)]
        while await store.get(keys[2]) is None:  # what was begun is done
            await asyncio.sleep(0)
        assert await store.head(keys[0]) == there
    assert trouble == []
