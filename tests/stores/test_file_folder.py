"""The folder of a FileStore: what is refused, what is left alone, what is cleaned, and URLs that name it."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from storing import create, modes_when_made, open_files

from overwinter.errors import ClosedError, CorruptRecordError, StoreUnavailableError, UsageError
from overwinter.stores import Durability, FileStore, _file_folder
from overwinter.stores._file_frame import name_of
from overwinter.stores._file_layer import file_system, is_remote


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


async def refused(store, error, words) -> None:
    threads, descriptors = threading.active_count(), open_files()
    with pytest.raises(error, match=words):
        await store.__aenter__()
    assert (threading.active_count(), open_files()) == (threads, descriptors), "something is left"
    with pytest.raises(ClosedError):
        await store.get("key")


# ---------------------------------------------------------------- what is made


async def test_all_is_for_its_owner_only(tmp_path):
    umask = os.umask(0)
    try:
        async with FileStore(tmp_path / "s") as store:
            await store.claim("agent", shared=False, wait=0)
            await create(store, "key")
    finally:
        os.umask(umask)
    modes = {path.is_dir(): set() for path in tmp_path.rglob("*")}
    for path in tmp_path.rglob("*"):
        modes[path.is_dir()].add(stat.S_IMODE(path.stat().st_mode))
    assert modes == {True: {0o700}, False: {0o600}}


async def test_nothing_was_ever_for_others(tmp_path, monkeypatch):
    umask, found = os.umask(0), modes_when_made(monkeypatch)
    try:
        async with FileStore(tmp_path / "s") as store:
            await store.claim("agent", shared=False, wait=0)
            await create(store, "key")
    finally:
        os.umask(umask)
    assert found.pop("s") == 0o700
    assert {mode for name, mode in found.items() if len(name) == 2} == {0o700}
    files = {name for name in found if len(name) > 2}
    assert {"lock", "format.tmp"} <= files
    assert sum(name.startswith(name_of("key")) for name in files) == 1
    assert {found[name] for name in files} == {0o600}


async def test_names_are_hashes_and_the_tree_is_as_documented(tmp_path):
    hostile = ["../../escape", "a/b", "nul\0", "%2e", "*", "CON", "x" * 2000]
    async with FileStore(tmp_path / "s") as store:
        for key in hostile:
            await create(store, key)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    folders = {f"{number:02x}" for number in range(256)}
    assert {path.name for path in (tmp_path / "s").iterdir()} == folders | {"lock", "format"}
    files = {path.relative_to(tmp_path / "s") for path in (tmp_path / "s").glob("??/*")}
    assert files == {Path(name, "lock") for name in folders} | {Path(name_of(k)[:2], name_of(k)) for k in hostile}
    assert (tmp_path / "s" / "format").read_text() == "overwinter file store 1\n"


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b"])
def test_a_path_that_is_none(path):
    with pytest.raises(UsageError):
        FileStore(path)


def test_arguments_of_a_wrong_type():
    with pytest.raises(TypeError):
        FileStore(b"bytes")
    with pytest.raises(TypeError):
        FileStore(3)
    with pytest.raises(ValueError, match="timeout"):
        FileStore("s", timeout=0)


# ---------------------------------------------------------------- what is refused


async def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "s").write_bytes(b"theirs")
    await refused(FileStore(tmp_path / "s"), UsageError, "is no folder: pass the path of a folder")
    assert (tmp_path / "s").read_bytes() == b"theirs"


async def test_a_missing_parent(tmp_path):
    await refused(FileStore(tmp_path / "no" / "s"), UsageError, "no folder .* create it first")


@pytest.mark.parametrize("there", [True, False])
async def test_a_symlink_is_refused(tmp_path, there):
    if there:
        (tmp_path / "target").mkdir()
    (tmp_path / "s").symlink_to(tmp_path / "target")
    await refused(FileStore(tmp_path / "s"), UsageError, "symbolic link")
    assert not there or not list((tmp_path / "target").iterdir())


@pytest.mark.parametrize("name", ["lock", "3f", "3f/lock"])
async def test_a_symlink_in_it_is_refused(tmp_path, name):
    async with FileStore(tmp_path / "s"):
        pass
    place = tmp_path / "s" / name
    place.rename(tmp_path / "target")
    place.symlink_to(tmp_path / "target")
    await refused(FileStore(tmp_path / "s"), UsageError, "symbolic link")


async def test_a_folder_behind_a_symlink_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = FileStore(tmp_path / "link" / "s")
    assert store.path == FileStore(f"{tmp_path}/real/x/../s/").path == str(tmp_path / "real" / "s")
    async with store:
        await create(store, "key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "lock", "3f", "3f/lock"])
async def test_what_belongs_to_somebody_else_is_refused(tmp_path, name):
    async with FileStore(tmp_path / "s"):
        pass
    os.chown(tmp_path / "s" / name, 65534, 65534)
    await refused(FileStore(tmp_path / "s"), UsageError, "belongs to user 65534 .* run as its owner")


async def test_a_folder_that_everybody_may_write_to_is_refused(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o777)
    await refused(FileStore(tmp_path / "s"), UsageError, "every user may write .* chmod 700")


async def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "theirs").touch()
    await refused(FileStore(tmp_path / "s"), UsageError, "holds other files: use an empty folder")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["theirs"]


async def test_a_newer_format_is_left_alone(tmp_path):
    async with FileStore(tmp_path / "s"):
        pass
    (tmp_path / "s" / "format").write_text("overwinter file store 2\n")
    await refused(FileStore(tmp_path / "s"), UsageError, "format 2 .* upgrade overwinter")


@pytest.mark.parametrize("text", ["", "overwinter file store 1", "something else\n", "\xff" * 100])
async def test_a_damaged_marker_is_corrupt(tmp_path, text):
    async with FileStore(tmp_path / "s"):
        pass
    (tmp_path / "s" / "format").write_text(text)
    await refused(FileStore(tmp_path / "s"), CorruptRecordError, "format is damaged")
    assert (tmp_path / "s" / "format").read_text() == text


async def test_a_making_that_was_interrupted_is_finished(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        revision = await create(store, "key")
    (tmp_path / "s" / "format").rename(tmp_path / "s" / "format.tmp")
    (tmp_path / "s" / "3f" / "lock").unlink()
    (tmp_path / "s" / "3f").rmdir()
    async with FileStore(tmp_path / "s") as store:
        assert await store.head("key") == revision
    assert (tmp_path / "s" / "3f" / "lock").exists()
    assert not (tmp_path / "s" / "format.tmp").exists()


async def test_an_open_behind_one_that_hangs_gives_up(tmp_path):
    async with FileStore(tmp_path / "s"):
        pass
    with (tmp_path / "s" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailableError, match=r"opening .* for 0\.05 s.*timeout="):
            await FileStore(tmp_path / "s", timeout=0.05).__aenter__()


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse", "9p", "ceph"])
async def test_a_network_is_refused_unless_it_is_allowed(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(_file_folder, "file_system", lambda descriptor: kind)
    await refused(FileStore(tmp_path / "s"), UsageError, f"is on {kind}.*allow_network=True")
    async with FileStore(tmp_path / "s", allow_network=True) as store:
        await create(store, "key")
        assert store.durability is Durability.PROCESS


def test_the_type_of_a_file_system():
    kinds = {}
    for path in ("/proc", "/"):
        descriptor = os.open(path, os.O_RDONLY)
        kinds[path] = file_system(descriptor)
        os.close(descriptor)
    assert kinds["/proc"] == "proc"
    assert kinds["/"] not in ("", "proc")
    assert file_system(10**6) == ""
    assert not any(map(is_remote, ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "", "fusectl")))


# ---------------------------------------------------------------- leftovers


def leftover(store: FileStore, key: str = "key") -> Path:
    name = name_of(key)
    return Path(store.path, name[:2], f"{name}.{os.urandom(8).hex()}.tmp")


async def test_leftovers_are_removed_when_it_is_opened_and_nothing_else(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        revision = await create(store, "key")
    ours = [leftover(store), leftover(store), leftover(store, "another key")]
    theirs = [ours[0].with_name("notes.tmp"), ours[0].with_name(ours[0].name + ".tmp"), ours[0].with_name("x" * 86)]
    for path in (*ours, *theirs):
        path.write_bytes(b"half")
    os.utime(ours[0], (0, 0))
    async with FileStore(tmp_path / "s") as store:
        assert not any(path.exists() for path in ours)
        assert all(path.exists() for path in theirs)
        assert await store.head("key") == revision


async def test_what_another_is_writing_now_is_left_to_him(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        path = leftover(store)
        path.write_bytes(b"being written")
        with (path.parent / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            async with FileStore(tmp_path / "s"):
                assert path.exists()
        async with FileStore(tmp_path / "s"):
            assert not path.exists()


async def test_what_a_killed_writer_left_is_finished_before_it_is_read(tmp_path, monkeypatch):
    """The rename was seen, its flush was not: whoever comes next flushes, and only then reads."""
    steps = []

    class Noting(_file_folder.Files):
        def fsync(self, descriptor):
            steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            super().fsync(descriptor)

        def open(self, name, folder):
            steps.append("read")
            return super().open(name, folder)

    async with FileStore(tmp_path / "s") as store:
        await create(store, "key")
    path = leftover(store)
    monkeypatch.setattr(_file_folder.Folder, "_clean", lambda self: None)  # the writer is killed after we were opened
    monkeypatch.setattr(FileStore, "_files", Noting())
    async with FileStore(tmp_path / "s") as other:
        path.write_bytes(b"half")
        os.utime(path.parent / "lock", (7, 7))  # the number of him who was killed
        for expected in ([path.parent.name, "read"], ["read"]):
            steps.clear()
            assert await other.get("key")
            assert steps == expected
        assert not path.exists()


async def test_what_is_unfinished_is_finished_by_one_alone(tmp_path):
    async with FileStore(tmp_path / "s", timeout=0.05) as store:
        revision = await create(store, "key")
        lock_file = leftover(store).parent / "lock"
        os.utime(lock_file, (7, 7))
        with lock_file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # another reader
            with pytest.raises(StoreUnavailableError, match="locked"):
                await store.get("key")
        assert await store.head("key") == revision
        assert lock_file.stat().st_mtime == 0


async def test_a_close_does_not_speak_for_others(tmp_path):
    async with FileStore(tmp_path / "s") as store:
        await create(store, "key")
        lock_file = leftover(store).parent / "lock"
        os.utime(lock_file, (7, 7))  # another one changed something after us
    assert lock_file.stat().st_mtime == 7


def test_who_had_the_lock_a_moment_ago_does_not_pass_by_who_waits(tmp_path):
    folders = [_file_folder.Folder(str(tmp_path / "s"), 10, _file_folder.Files(), allow_network=False) for _ in "ab"]
    for folder in folders:
        folder.open()
    had, stranger = folders
    stranger._tenure.released.clear()  # since it opened some time ago
    with had.shard("3f") as shard:
        assert shard.acquire(0, shared=False)
    turnstile = os.open(tmp_path / "s" / "3f", os.O_RDONLY)
    fcntl.flock(turnstile, fcntl.LOCK_EX)  # as one does who waits
    with stranger.shard("3f") as shard:
        assert shard.acquire(0, shared=False)
    had._tenure.released["3f"] = time.monotonic() + 60
    with had.shard("3f") as shard:
        assert not shard.acquire(0, shared=False)
        os.close(turnstile)
        assert shard.acquire(0, shared=False)
    for folder in folders:
        folder.close()
