"""What happens to a SQLiteStore between processes: kills, stops, forks, full disks, foreign rights."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from storing import new

from overwinter.errors import StoreInUseError, StoreUnavailableError
from overwinter.stores import Expect, SQLiteStore, _sqlite_db
from overwinter.stores._flock import FairLock, LockFile
from overwinter.testing import until

WRITER = """
async def main(path, seconds):
    async with SQLiteStore(path, timeout=20) as store:
        say("open"); sys.stdin.readline() if len(sys.argv) > 3 else None
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            keys = [f"{os.getpid()} {count + i}" for i in range(8)]
            await asyncio.gather(*(store.put(key, b"x" * 700, revision=new(), expected=Expect.ABSENT) for key in keys))
            count += 8
        say(count)
asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


async def rows(path) -> int:
    # With our SQLite: another one in this process would drop our locks.
    import apsw

    connection = apsw.Connection(str(path))
    count, check = (
        connection.execute("SELECT count(*) FROM agents").get,
        connection.execute("PRAGMA integrity_check").get,
    )
    connection.close()
    assert check == "ok"
    return count


async def test_two_processes_take_turns_and_lose_nothing(tmp_path, child):
    path = tmp_path / "a.db"
    writers = [child(WRITER, path, 1.0) for _ in range(2)]
    counts = [int(writer.communicate(timeout=30)[0].split()[-1]) for writer in writers]
    assert await rows(path) == sum(counts)
    assert min(counts) > max(counts) / 4, f"one of two writers starved: {counts}"


async def test_two_processes_that_create_the_file_at_once(tmp_path, child):
    for number in range(3):
        path = tmp_path / f"{number}.db"
        writers = [child(WRITER, path, 0.0) for _ in range(4)]
        assert [writer.wait(30) for writer in writers] == [0] * 4, [writer.stderr.read() for writer in writers]
        assert await rows(path) == 0


KILLED = """
async def main(path):
    async with SQLiteStore(path) as store:
        async def put(worker):
            for number in range(10**9):
                key = f"{os.getpid()} {worker} {number}"
                await store.put(key, key.encode() * 20, revision=new(), expected=Expect.ABSENT)
                os.write(1, key.encode() + b"\\n")
        await asyncio.gather(*map(put, range(8)))
asyncio.run(main(sys.argv[1]))
"""


async def test_what_was_acknowledged_survives_a_kill(tmp_path, child):
    path, acknowledged = tmp_path / "a.db", []
    for life in range(5):
        victim = child(KILLED, path)
        acknowledged += [victim.stdout.readline().strip() for _ in range(40 + 37 * life)]
        victim.kill()
        rest, _ = victim.communicate()
        acknowledged += rest.splitlines()
        async with SQLiteStore(path) as store:
            for key in acknowledged:
                stored = await store.get(key)
                assert stored is not None, "an acknowledged put is lost"
                assert stored.data == key.encode() * 20
    assert len(acknowledged) > 500


HOLDER = """
lock = FairLock(sys.argv[1]); lock.open(); assert lock.acquire(time.monotonic() + 10); say("held"); time.sleep(60)
"""


async def test_a_process_that_hangs_in_the_lock_is_waited_for_until_the_timeout(tmp_path, child):
    path = tmp_path / "a.db"
    async with SQLiteStore(path, timeout=0.3) as store:
        holder = child(HOLDER, store.path)
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        passes = 0

        async def loop_runs():
            nonlocal passes
            while True:
                await asyncio.sleep(0.01)
                passes += 1

        counting = asyncio.create_task(loop_runs())
        with pytest.raises(StoreUnavailableError, match=r"nothing was stored.*timeout="):
            await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
        counting.cancel()
        assert passes > 10, "the loop was blocked"
        assert await store.get("key") is None  # reading needs no lock
        holder.kill()
        holder.wait()
        await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)


async def test_an_open_behind_a_hanging_process_gives_up(tmp_path, child):
    path = tmp_path / "a.db"
    holder = child(HOLDER, path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreUnavailableError, match=r"locked for 0\.2 s"):
        async with SQLiteStore(path, timeout=0.2):
            pass


async def test_a_close_behind_a_hanging_process_keeps_the_log(tmp_path, child):
    path = tmp_path / "a.db"
    async with SQLiteStore(path, timeout=0.2) as store:
        await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
        holder = child(HOLDER, path)
        assert holder.stdout.readline() == "held\n"
    assert Path(f"{path}-wal").stat().st_size > 0, "a checkpoint without the lock"
    holder.kill()
    holder.wait()
    async with SQLiteStore(path) as store:
        assert await store.get("key")


async def test_the_shell_in_a_transaction_is_waited_for(tmp_path, child):
    path = tmp_path / "a.db"
    async with SQLiteStore(path, timeout=0.2) as store:
        shell = child(
            "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "c.execute('BEGIN IMMEDIATE'); print('begun', flush=True); sys.stdin.read(); time.sleep(60)\n",
            path,
            prelude="import time\n",
        )
        assert shell.stdout.readline() == "begun\n"
        with pytest.raises(StoreUnavailableError, match="another program keeps the database locked"):
            await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
        shell.kill()
        shell.wait()
        await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)


async def test_a_put_behind_the_shell_is_done_when_the_shell_is(tmp_path, child, monkeypatch):
    path, tries = tmp_path / "a.db", []
    busy = _sqlite_db.busy
    monkeypatch.setattr(_sqlite_db, "busy", lambda error: tries.append(error) or busy(error))
    async with SQLiteStore(path, timeout=30) as store:
        shell = child(
            "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "c.execute('BEGIN IMMEDIATE'); print('begun', flush=True); sys.stdin.read()\n",
            path,
        )
        assert shell.stdout.readline() == "begun\n"
        put = store.submit("key", b"x", revision=new(), expected=Expect.ABSENT)
        await until(lambda: len(tries) >= 3 or put.done())
        assert not put.done()
        shell.kill()
        shell.wait()
        await put
        assert await store.get("key")


def test_the_lock_is_fair(tmp_path, child):
    """One that takes the lock again and again can't keep it from one who waits."""
    greedy = child(
        """
        lock = FairLock(sys.argv[1]); lock.open(); say("ready"); end = time.monotonic() + 30
        while time.monotonic() < end:
            assert lock.acquire(time.monotonic() + 10)
            time.sleep(0.005)
            lock.release()
        """,
        tmp_path / "a.db",
    )
    assert greedy.stdout.readline() == "ready\n"
    lock = FairLock(str(tmp_path / "a.db"))
    lock.open()
    waits = []
    for _ in range(20):
        start = time.monotonic()
        assert lock.acquire(start + 10)
        lock.release()
        waits.append(time.monotonic() - start)
        time.sleep(0.011)  # or it would be we who take it again at once
    lock.close()
    assert sorted(waits)[-3] < 0.25, waits


# ---------------------------------------------------------------- claims

CLAIM = """
async def main(path, shared):
    async with SQLiteStore(path) as store:
        await store.claim("agent", shared=shared, wait=0); say("claimed"); await asyncio.sleep(60)
asyncio.run(main(sys.argv[1], sys.argv[2] == "shared"))
"""


async def test_a_claim_of_another_process(tmp_path, child):
    path = tmp_path / "a.db"
    owner = child(CLAIM, path, "exclusive")
    assert owner.stdout.readline() == "claimed\n"
    async with SQLiteStore(path) as store:
        for shared in (False, True):
            with pytest.raises(StoreInUseError, match=rf"'agent' .*process {owner.pid} on .* since .*pass shared=True"):
                await store.claim("agent", shared=shared, wait=0.05)
        waiting = asyncio.create_task(store.claim("agent", shared=False, wait=30))
        await asyncio.sleep(0)
        owner.kill()  # the kernel ends the claim
        await waiting


async def test_shared_claims_of_two_processes(tmp_path, child):
    path = tmp_path / "a.db"
    owner = child(CLAIM, path, "shared")
    assert owner.stdout.readline() == "claimed\n"
    async with SQLiteStore(path) as store:
        with pytest.raises(StoreInUseError):
            await store.claim("agent", shared=False, wait=0)
        await store.claim("agent", shared=True, wait=0)


# ---------------------------------------------------------------- forks and exits


def test_a_forked_child_can_not_use_the_store_and_harms_nobody(tmp_path, ask):
    code = """
    import ctypes, gc
    async def begin(store):
        await store.__aenter__()
        await store.claim("agent", shared=False, wait=0)
        await store.put("before", b"x", revision=new(), expected=Expect.ABSENT)
        futures = [store.submit(f"during {i}", b"x" * 5000, revision=new(), expected=Expect.ABSENT) for i in range(200)]
        await asyncio.sleep(0)
        return futures
    async def go_on(store, futures):
        await asyncio.gather(*futures)
        await store.put("after", b"x", revision=new(), expected=Expect.ABSENT)
        say(all([await store.get(f"during {i}") for i in range(200)]))
        await store.__aexit__()
    async def use(store):
        await store.put("child", b"x", revision=new(), expected=Expect.ABSENT)
    loop, store = asyncio.new_event_loop(), SQLiteStore(sys.argv[1])
    futures = loop.run_until_complete(begin(store))
    child = os.fork()
    if not child:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(loop))  # asyncio's epoll is the parent's too: never close it here
        try: asyncio.run(use(store))
        except UsageError as error: assert "fork" in str(error)
        asyncio.run(store.close())
        from overwinter.stores import _sqlite_db
        def handles(): return [e.name for e in os.scandir("/proc/self/fd") if os.path.realpath(e.path) == store.path]
        before = handles()
        store._desks = []
        gc.collect()
        assert before and handles() == before and not _sqlite_db._connections, "a connection of the parent was closed"
        sys.exit(7)  # with all that the interpreter does at an exit
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    loop.run_until_complete(go_on(store, futures))
    loop.close()
    """
    assert ask(code, tmp_path / "a.db").split() == ["7", "True"]


async def test_a_forked_child_does_not_keep_its_parents_locks(tmp_path, child):
    path = tmp_path / "a.db"
    parent = child(
        """
        async def main(path):
            async with SQLiteStore(path) as store:
                await store.claim("agent", shared=False, wait=0)
                if os.fork():
                    await asyncio.sleep(60)
                os.close(0); say("forked", os.getpid()); time.sleep(60); os._exit(0)
        asyncio.run(main(sys.argv[1]))
        """,
        path,
    )
    grandchild = int(parent.stdout.readline().split()[1])
    try:
        parent.kill()
        parent.wait()
        async with SQLiteStore(path) as store:
            await store.claim("agent", shared=False, wait=0)
            await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
        os.kill(grandchild, 0)  # it lived all the while
    finally:
        os.kill(grandchild, signal.SIGKILL)


# ---------------------------------------------------------------- disks and rights

FILL = """
async def main(path, make_space):
    async with SQLiteStore(path) as store:
        kept, error = {}, None
        for number in range(10000):
            revision = new()
            try: await store.put(f"key {number}", os.urandom(20000), revision=revision, expected=Expect.ABSENT)
            except StoreUnavailableError as caught: error = caught; break
            kept[f"key {number}"] = revision
        assert "disk is full" in str(error), error
        assert len(kept) > 5, len(kept)
        data = os.urandom(20000)
        more = [store.submit(f"more {number}", data, revision=new(), expected=Expect.ABSENT) for number in range(5)]
        outcomes = await asyncio.gather(*more, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}, outcomes
        assert not any([await store.get(f"more {number}") for number in range(5)])
        for key, revision in kept.items(): assert await store.head(key) == revision
        make_space()
        await store.put("after", b"x" * 20000, revision=new(), expected=Expect.ABSENT)
    async with SQLiteStore(path) as store:
        for key, revision in kept.items(): assert await store.head(key) == revision
        assert await store.get("after")
    say("well")
"""


def test_a_file_that_may_not_grow(tmp_path, ask):
    code = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    def make_space(): resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    asyncio.run(main(sys.argv[1], make_space))
    """
    assert ask(FILL + code.replace("\n    ", "\n"), tmp_path / "a.db") == "well"


@pytest.fixture
def mount(tmp_path):
    """Mount a small disk, where that is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    tool = shutil.which("mount")
    if (
        tool is None
        or subprocess.run([tool, "-t", "tmpfs", "-o", "size=600k,mode=700", "x", folder], check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield lambda options: subprocess.run([tool, "-o", f"remount,{options}", folder], check=True)
    subprocess.run([shutil.which("umount"), "-l", folder], check=True)


def test_a_full_disk(tmp_path, ask, mount):
    (tmp_path / "disk" / "ballast").write_bytes(b"x" * 100_000)
    code = """
def make_space(): os.unlink(os.path.dirname(sys.argv[1]) + "/ballast")
asyncio.run(main(sys.argv[1], make_space))
"""
    assert ask(FILL + code, tmp_path / "disk" / "a.db") == "well"


async def test_a_disk_that_becomes_read_only(tmp_path, mount):
    path = tmp_path / "disk" / "a.db"
    async with SQLiteStore(path) as store:
        await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
    mount("ro")
    with pytest.raises(StoreUnavailableError, match="this process may write to"):
        await SQLiteStore(path).__aenter__()
    with pytest.raises(StoreUnavailableError, match="this process may write to"):
        await SQLiteStore(tmp_path / "disk" / "new.db").__aenter__()
    mount("rw")
    async with SQLiteStore(path) as store:
        assert await store.get("key")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights are tried by root")
def test_a_folder_without_the_right_to_write(ask):
    folder = tempfile.mkdtemp()
    Path(folder).chmod(0o755)
    code = """
    async def main(path):
        try:
            async with SQLiteStore(path): pass
        except StoreUnavailableError as error:
            say(error)
    asyncio.run(asyncio.sleep(0))
    os.setuid(65534)
    asyncio.run(main(sys.argv[1]))
    """
    try:
        assert re.search(r"a\.db can't be created \(Permission denied\).*may write to", ask(code, f"{folder}/a.db"))
    finally:
        shutil.rmtree(folder)


def test_a_disk_that_hangs_as_a_lock_file_is_opened_holds_up_no_other(tmp_path, monkeypatch):
    hangs, goes_on, real = threading.Event(), threading.Event(), os.open

    def slow(path, *rest, **more):
        descriptor = real(path, *rest, **more)
        if path == str(tmp_path / "slow"):
            hangs.set()
            assert goes_on.wait(10)
        return descriptor

    monkeypatch.setattr(os, "open", slow)
    lock = LockFile(str(tmp_path / "slow"))
    thread = threading.Thread(target=lock.open)
    thread.start()
    assert hangs.wait(10)
    other = LockFile(str(tmp_path / "other"))
    other.open()
    told, tells = os.pipe()
    pid = os.fork()  # between the opening and the noting: the child must not have a copy of what is locked later
    if not pid:
        held = [os.path.realpath(entry.path) for entry in os.scandir("/proc/self/fd")]
        os.write(tells, str([path for path in held if path.startswith(str(tmp_path))]).encode())
        time.sleep(30)
        os._exit(0)
    try:
        goes_on.set()
        thread.join()
        assert lock.try_lock()
        lock.close()
        again = LockFile(str(tmp_path / "slow"))
        again.open()
        assert again.try_lock()
        assert os.read(told, 1000) == b"[]"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tells)
