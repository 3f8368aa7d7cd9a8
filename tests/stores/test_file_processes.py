"""What happens to a FileStore between processes: kills, stops, forks, full disks, foreign rights."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from storing import create, new

from overwinter.errors import StoreInUseError, StoreUnavailableError
from overwinter.stores import Expect, FileStore
from overwinter.stores._file_frame import name_of


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


def shard_of(folder: Path, key: str) -> Path:
    return folder / name_of(key)[:2]


# ---------------------------------------------------------------- races

COUNTER = """
async def main(path, number):
    async with FileStore(path, timeout=20) as store:
        say("open"); sys.stdin.readline()
        async def count(key):
            done = lost = 0
            while done < number:
                stored = await store.get(key)
                value, expected = (0, Expect.ABSENT) if stored is None else (int(stored.data), stored.revision)
                try: await store.put(key, b"%d" % (value + 1), revision=new(), expected=expected)
                except RevisionConflictError: lost += 1
                else: done += 1
            return lost
        say(sum(await asyncio.gather(count("hot"), count("hot"), *map(count, "abcdef"))))
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_two_processes_count_exactly(tmp_path, child):
    path = tmp_path / "s"
    counters = [child(COUNTER, path, 30) for _ in range(2)]
    for counter in counters:
        assert counter.stdout.readline() == "open\n"
    for counter in counters:
        counter.stdin.write("go\n")
        counter.stdin.flush()
    conflicts = 0
    for counter in counters:
        output, errors = counter.communicate(timeout=40)
        assert counter.returncode == 0, errors
        conflicts += int(output)
    async with FileStore(path) as store:
        assert (await store.get("hot")).data == b"120"
        for key in "abcdef":
            assert (await store.get(key)).data == b"60"
    assert conflicts, "nothing raced: this proves nothing"


async def test_processes_that_make_the_folder_at_once(tmp_path, ask):
    code = """
    async def main(path, number):
        async with FileStore(path) as store:
            await store.put(f"key {number}", b"x", revision=new(), expected=Expect.ABSENT)
    children = []
    for number in range(6):
        if not (pid := os.fork()):
            asyncio.run(main(sys.argv[1], number)); os._exit(0)
        children.append(pid)
    say([os.waitpid(pid, 0)[1] for pid in children])
    """
    for number in range(3):
        assert ask(code, tmp_path / f"{number}") == "[0, 0, 0, 0, 0, 0]"
        async with FileStore(tmp_path / f"{number}") as store:
            assert all([await store.get(f"key {n}") for n in range(6)])


# ---------------------------------------------------------------- kills

# One process forks a writer for each kill, which costs less than an interpreter; then it looks what is left.
AT_EVERY_STEP = """
from overwinter.stores._file_layer import Files
class Deadly(Files):
    count = 0
def deadly(name, plain):
    def call(self, *arguments):
        Deadly.count = number = Deadly.count + 1
        if (number, "before") == when: os.kill(os.getpid(), signal.SIGKILL)
        try: return plain(self, *arguments)
        finally:
            if (number, "after") == when: os.kill(os.getpid(), signal.SIGKILL)
    return call
for name, plain in list(vars(Files).items()):
    if not name.startswith("_"): setattr(Deadly, name, deadly(name, plain))
when = None

async def write(path, base, change, pipe):
    store = FileStore(path)
    async with store:
        store._desks[1]._worker._files = store._desks[1]._worker._folder._files = Deadly()
        if change == "put": await store.put("key", b"new" * 50, revision=b"n" * 16, expected=base)
        else: await store.delete("key", expected=base)
        os.write(pipe, b"acknowledged")
    os._exit(0)

async def look(path, base, old, change, acknowledged):
    async with FileStore(path) as store:
        stored = await store.get("key")
        found = stored and (stored.data, stored.revision)
        new_ = (b"new" * 50, b"n" * 16) if change == "put" else None
        assert found == new_ if acknowledged else found in (old, new_), (found, change, when)
        assert not [n for d in os.scandir(path) if d.is_dir() for n in os.listdir(d) if n.endswith(".tmp")], when
        await store.put("key", b"after", revision=new(), expected=stored.revision if stored else Expect.ABSENT)
        return found == new_

async def prepare(path, old):
    async with FileStore(path) as store:
        await store.delete("key", expected=Expect.ANY)
        if old: await store.put("key", old[0], revision=old[1], expected=Expect.ABSENT)

def life(path, old, change):
    asyncio.run(prepare(path, old))
    base, (ours, theirs) = old[1] if old else Expect.ABSENT, os.pipe()
    pid = os.fork()
    if not pid:
        asyncio.run(write(path, base, change, theirs))
    os.close(theirs)
    acknowledged = os.read(ours, 100); os.close(ours)
    killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    return killed, asyncio.run(look(path, base, old, change, bool(acknowledged)))

kills, outcomes = 0, set()
for old, change in (((b"old", b"o" * 16), "put"), (None, "put"), ((b"old", b"o" * 16), "delete")):
    for moment in ("before", "after"):
        for step in range(1, 100):
            when = step, moment
            killed, happened = life(sys.argv[1], old, change)
            if not killed: break
            kills += 1
            outcomes.add((change, happened))
        assert step > 5
say(kills, sorted(outcomes))
"""


def test_a_kill_at_every_step_leaves_the_old_or_the_new(tmp_path, ask):
    kills, outcomes = ask(AT_EVERY_STEP, tmp_path / "s").split(" ", 1)
    assert int(kills) > 40
    assert outcomes == "[('delete', False), ('delete', True), ('put', False), ('put', True)]"


AT_RANDOM = """
import random
async def write(path, life, pipe):
    async with FileStore(path) as store:
        async def put(worker):
            key, base = f"key {worker}", Expect.ABSENT
            stored = await store.get(key)
            number = 0 if stored is None else int(stored.data[:8])
            base = Expect.ABSENT if stored is None else stored.revision
            while True:
                number, revision = number + 1, new()
                await store.put(key, b"%08d" % number * 100, revision=revision, expected=base)
                base = revision
                os.write(pipe, b"%d %d\\n" % (worker, number))
        await asyncio.gather(*map(put, range(8)))

async def look(path, acknowledged):
    lost = torn = 0
    async with FileStore(path) as store:
        for worker, number in acknowledged.items():
            stored = await store.get(f"key {worker}")
            lost += stored is None or int(stored.data[:8]) not in (number, number + 1)
            torn += stored is not None and stored.data != stored.data[:8] * 100
            if stored: acknowledged[worker] = int(stored.data[:8])
    return lost, torn

chance, acknowledged, number, lost, torn = random.Random(2), {}, 0, 0, 0
for life in range(40):
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        asyncio.run(write(sys.argv[1], life, theirs))
    os.close(theirs)
    said = b"" if life % 4 == 0 else os.read(ours, 1)  # now and then while it opens
    time.sleep(chance.random() * 0.02)
    os.kill(pid, signal.SIGKILL)
    while data := os.read(ours, 1 << 16): said += data
    os.close(ours); os.waitpid(pid, 0)
    for line in said.splitlines():
        worker, count = map(int, line.split())
        acknowledged[worker] = count; number += 1
    result = asyncio.run(look(sys.argv[1], acknowledged))
    lost += result[0]; torn += result[1]
say(lost, torn, number)
"""


def test_what_was_acknowledged_survives_kills_at_random(tmp_path, ask):
    lost, torn, number = map(int, ask(AT_RANDOM, tmp_path / "s").split())
    assert (lost, torn) == (0, 0)
    assert number > 200, number


# ---------------------------------------------------------------- locks of others

HOLDER = """
with open(sys.argv[1] + "/lock") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX); say("held"); time.sleep(60)
"""


async def test_a_process_that_hangs_in_a_lock_is_waited_for_until_the_timeout(tmp_path, child):
    async with FileStore(tmp_path / "s", timeout=0.3) as store:
        revision = await create(store, "key")
        others = [f"key {number}" for number in range(300)]
        others = [key for key in others if shard_of(tmp_path, key) != shard_of(tmp_path, "key")]
        holder = child(HOLDER, shard_of(tmp_path / "s", "key"))
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        stuck = [
            asyncio.ensure_future(store.put("key", b"y", revision=new(), expected=revision)),
            asyncio.ensure_future(store.get("key")),
            asyncio.ensure_future(store.delete("key", expected=revision)),
        ]
        await asyncio.gather(*(create(store, key) for key in others[:100]))  # nobody else has to wait
        await asyncio.gather(*(store.get(key) for key in others))
        for outcome in await asyncio.gather(*stuck, return_exceptions=True):
            assert isinstance(outcome, StoreUnavailableError)
            assert re.search(r"nothing was read or stored.*key 'key'.*timeout=", str(outcome))
        waiting = asyncio.ensure_future(store.get("key"))
        await asyncio.sleep(0)
        holder.kill()  # the kernel unlocks
        holder.wait()
        assert (await waiting).revision == revision
        await store.put("key", b"y", revision=new(), expected=revision)


STOPPING = """
import threading
from overwinter.stores._file_layer import Files
class Stops(Files):
    def rename(self, *arguments):
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # before this thread goes on
        super().rename(*arguments)
async def main(path):
    async with FileStore(path) as store:
        base = await store.head("key")
        store._desks[1]._worker._files = Stops()
        say("go")
        await store.put("key", b"stopped", revision=b"s" * 16, expected=base)
        say("stored")
asyncio.run(main(sys.argv[1]))
"""


async def test_a_writer_that_is_stopped_and_goes_on_does_no_harm(tmp_path, child):
    """It was stopped with the lock held, between compare and rename. The kernel keeps its lock for it."""
    path = tmp_path / "s"
    async with FileStore(path, timeout=0.2) as store:
        base = await create(store, "key")
        writer = child(STOPPING, path)
        assert writer.stdout.readline() == "go\n"
        while os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:
            await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError):
            await store.put("key", b"ours", revision=new(), expected=base)
        writer.send_signal(signal.SIGCONT)
        assert writer.communicate(timeout=20)[0] == "stored\n"
        assert (await store.get("key")).data == b"stopped"


async def test_a_claim_of_another_process(tmp_path, child):
    code = """
    async def main(path):
        async with FileStore(path) as store:
            await store.claim("agent", shared=False, wait=0); say("claimed"); await asyncio.sleep(60)
    asyncio.run(main(sys.argv[1]))
    """
    owner = child(code, tmp_path / "s")
    assert owner.stdout.readline() == "claimed\n"
    async with FileStore(tmp_path / "s") as store:
        with pytest.raises(StoreInUseError, match=rf"'agent' .*process {owner.pid} on .* since .*pass shared=True"):
            await store.claim("agent", shared=False, wait=0)
        waiting = asyncio.create_task(store.claim("agent", shared=False, wait=30))
        await asyncio.sleep(0)
        owner.kill()  # the kernel ends the claim
        await waiting


# ---------------------------------------------------------------- forks and exits


def test_a_forked_child_can_not_use_the_store_and_harms_nobody(tmp_path, ask):
    code = """
    import ctypes, gc
    async def begin(store):
        await store.__aenter__()
        await store.claim("agent", shared=False, wait=0)
        futures = [store.submit(f"during {i}", b"x" * 5000, revision=new(), expected=Expect.ABSENT) for i in range(200)]
        await asyncio.sleep(0)
        return futures
    async def go_on(store, futures):
        await asyncio.gather(*futures)
        say(all([await store.get(f"during {i}") for i in range(200)]))
        await store.__aexit__()
    async def use(store):
        await store.put("child", b"x", revision=new(), expected=Expect.ABSENT)
    loop, store = asyncio.new_event_loop(), FileStore(sys.argv[1])
    futures = loop.run_until_complete(begin(store))
    child = os.fork()
    if not child:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(loop))  # asyncio's epoll is the parent's too: never close it here
        try: asyncio.run(use(store))
        except UsageError as error: assert "fork" in str(error)
        asyncio.run(store.close())
        held = [os.path.realpath(e.path) for e in os.scandir("/proc/self/fd")]
        held = [path for path in held if path.startswith(store.path) and path.endswith("lock") or os.path.isdir(path)]
        assert not [path for path in held if len(path) > len(store.path) and path.startswith(store.path)], held
        del store
        gc.collect()
        sys.exit(7)  # with all that the interpreter does at an exit
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    loop.run_until_complete(go_on(store, futures))
    loop.close()
    """
    assert ask(code, tmp_path / "s").split() == ["7", "True"]


async def test_a_forked_child_does_not_keep_its_parents_locks(tmp_path, child):
    """The parent forks with a lock held, and dies in the middle of its put."""
    parent = child(
        """
        from overwinter.stores._file_layer import Files
        class Forks(Files):
            def rename(self, *arguments):
                if os.fork():
                    time.sleep(60)
                os.close(0); say("forked", os.getpid()); time.sleep(60); os._exit(0)
        async def main(path):
            async with FileStore(path) as store:
                await store.claim("agent", shared=False, wait=0)
                store._desks[1]._worker._files = Forks()
                await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
        asyncio.run(main(sys.argv[1]))
        """,
        tmp_path / "s",
    )
    grandchild = int(parent.stdout.readline().split()[1])
    try:
        parent.kill()
        parent.wait()
        async with FileStore(tmp_path / "s") as store:
            await store.claim("agent", shared=False, wait=0)
            await create(store, "key")
        os.kill(grandchild, 0)  # it lived all the while
    finally:
        os.kill(grandchild, signal.SIGKILL)


# ---------------------------------------------------------------- disks and rights


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


async def test_a_full_disk(tmp_path, mount):
    path = tmp_path / "disk"
    async with FileStore(path / "s") as store:
        (path / "ballast").write_bytes(b"x" * 100_000)
        kept: dict[str, bytes] = {}
        for number in range(15):
            kept[f"key {number}"] = await create(store, f"key {number}", os.urandom(20000))
        with pytest.raises(StoreUnavailableError, match="disk is full"):
            await create(store, "too large", os.urandom(400_000))
        (path / "filler").write_bytes(b"x" * (os.statvfs(path).f_bavail * os.statvfs(path).f_bsize))
        more = [store.submit(f"more {n}", b"x" * 20000, revision=new(), expected=Expect.ABSENT) for n in range(5)]
        outcomes = await asyncio.gather(*more, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}
        assert not list((path / "s").glob("??/*.tmp"))
        assert not any([await store.get(f"more {number}") for number in range(5)])
        async with FileStore(path / "s") as other:  # opening takes no space
            for key, revision in kept.items():
                assert (await other.get(key)).revision == revision
        gone = next(iter(kept))
        await store.delete(gone, expected=kept.pop(gone))  # nor does deleting
        (path / "ballast").unlink()
        await create(store, "after", b"x" * 20000)
    async with FileStore(path / "s") as store:
        for key, revision in kept.items():
            assert await store.head(key) == revision
        assert await store.get("after")


async def test_a_disk_that_becomes_read_only(tmp_path, mount):
    path = tmp_path / "disk"
    async with FileStore(path / "s") as store:
        revision = await create(store, "key")
    mount("ro")
    for name in ("s", "new"):
        with pytest.raises(StoreUnavailableError, match=r"Read-only.*this process may"):
            await FileStore(path / name).__aenter__()
    mount("rw")
    async with FileStore(path / "s") as store:
        assert await store.head("key") == revision


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights are tried by root")
def test_a_folder_without_the_right_to_write(ask):
    folder = tempfile.mkdtemp()
    Path(folder).chmod(0o755)
    code = """
    async def main(path):
        try:
            async with FileStore(path): pass
        except StoreUnavailableError as error:
            say(error)
    asyncio.run(asyncio.sleep(0))
    os.setuid(65534)
    asyncio.run(main(sys.argv[1]))
    """
    try:
        assert re.search(r"Permission denied.*may read and write", ask(code, f"{folder}/s"))
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights are tried by root")
def test_a_record_without_the_right_to_read_is_not_absent(ask):
    folder = tempfile.mkdtemp()
    Path(folder).chmod(0o777)
    code = """
    async def main(path):
        async with FileStore(path) as store:
            await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
            from overwinter.stores._file_frame import name_of
            os.chmod(f"{path}/{name_of('key')[:2]}/{name_of('key')}", 0)
            for call in (store.get("key"), store.put("key", b"y", revision=new(), expected=Expect.ABSENT)):
                try: await call
                except StoreUnavailableError as error: say(error)
    asyncio.run(asyncio.sleep(0))
    os.setuid(65534)
    asyncio.run(main(sys.argv[1]))
    """
    try:
        assert len(re.findall(r"key 'key': Permission denied", ask(code, f"{folder}/s"))) == 2
    finally:
        shutil.rmtree(folder)
