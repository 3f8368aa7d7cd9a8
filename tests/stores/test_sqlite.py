"""What SQLiteStore does beside the contract, in one process."""

from __future__ import annotations

import asyncio
import threading

import apsw
import pytest
from storing import create, new, open_files, sqlite

from overwinter.errors import (
    CorruptRecordError,
    InvalidKeyError,
    OutcomeUnknownError,
    RevisionConflictError,
    StoreInUseError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import Durability, Expect, MemoryStore, SQLiteStore, _sqlite_reader, _sqlite_worker
from overwinter.stores._flock import LockFile
from overwinter.stores._jobs import MAX_BYTES, MAX_ROWS, Job, take

# ---------------------------------------------------------------- batches


def jobs(*keys: str, size: int = 1) -> list[Job]:
    return [Job("put", key, None, b"x" * size) for key in keys]


def test_a_batch_has_each_key_once_and_keeps_their_order():
    waiting = jobs("a", "b", "a", "c", "a", "b")
    first, second, third, rest = (take(waiting), take(waiting), take(waiting), waiting)
    assert [[job.key for job in batch] for batch in (first, second, third, rest)] == [
        ["a", "b", "c"],
        ["a", "b"],
        ["a"],
        [],
    ]


def test_a_batch_is_bounded_in_rows_and_bytes():
    waiting = jobs(*(str(number) for number in range(MAX_ROWS + 1)))
    assert (len(take(waiting)), len(take(waiting))) == (MAX_ROWS, 1)
    large = jobs("a", "b", "c", size=MAX_BYTES // 2)
    assert [len(take(large)) for _ in range(2)] == [2, 1]
    assert len(take(jobs("too large for a batch", size=MAX_BYTES + 1))) == 1


async def test_what_waits_together_commits_together(tmp_path, batches):
    async with SQLiteStore(tmp_path / "a.db") as store:
        await asyncio.gather(*(create(store, f"key {number}") for number in range(MAX_ROWS)))
        assert batches == [MAX_ROWS]


async def test_puts_of_one_key_follow_each_other(tmp_path, batches):
    async with SQLiteStore(tmp_path / "a.db") as store:
        first, second = new(), new()
        one = store.submit("key", b"1", revision=first, expected=Expect.ABSENT)
        other = store.submit("key", b"2", revision=second, expected=first)
        gone = asyncio.ensure_future(store.delete("key", expected=second))
        await asyncio.gather(one, other, gone)
        assert batches == [1, 1, 1]
        assert await store.get("key") is None


async def test_a_conflict_is_its_rows_verdict_only(tmp_path, batches):
    async with SQLiteStore(tmp_path / "a.db") as store:
        known = {f"old {number}": await create(store, f"old {number}") for number in range(10)}
        del batches[:]
        revisions = {key: new() for key in [*known, *(f"new {number}" for number in range(10))]}
        stale = {"old 3", "old 7"}
        futures = {
            key: store.submit(
                key, b"y", revision=revision, expected=new() if key in stale else known.get(key, Expect.ABSENT)
            )
            for key, revision in revisions.items()
        }
        twice = store.submit("old 0 again", b"y", revision=new(), expected=new())
        await asyncio.gather(*futures.values(), twice, return_exceptions=True)
        assert batches == [21]
        assert {key for key, future in futures.items() if future.exception()} == stale
        assert isinstance(twice.exception(), RevisionConflictError)
        for key, revision in revisions.items():
            assert await store.head(key) == (known[key] if key in stale else revision)


@pytest.mark.parametrize("action", ["ABORT", "FAIL", "ROLLBACK"])
async def test_a_row_that_sqlite_refuses_fails_alone(tmp_path, ask, batches, action):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as store:
        sqlite(
            ask,
            path,
            "CREATE TRIGGER t BEFORE INSERT ON agents WHEN new.key = 'bad' "
            f"BEGIN SELECT RAISE({action}, 'a secret'); END",
        )
        futures = {
            key: store.submit(key, b"x", revision=new(), expected=Expect.ABSENT)
            for key in [*(str(number) for number in range(100)), "bad", *(str(number) for number in range(100, 150))]
        }
        await asyncio.gather(*futures.values(), return_exceptions=True)
        assert batches == [151]
        failed = {key: future.exception() for key, future in futures.items() if future.exception()}
        assert list(failed) == ["bad"]
        assert isinstance(failed["bad"], StoreUnavailableError)
        assert "secret" not in str(failed["bad"])
        assert "'bad'" in str(failed["bad"])
        assert all([await store.get(key) for key in futures if key != "bad"])


async def test_misused_arguments(tmp_path):
    for store in (SQLiteStore(tmp_path / "a.db"), MemoryStore()):
        async with store:
            with pytest.raises(UsageError, match="only for deleting"):
                await store.put("key", b"x", revision=new(), expected=Expect.ANY)
    async with SQLiteStore(tmp_path / "a.db") as store:
        with pytest.raises(InvalidKeyError):
            await store.get("lone \ud800")
        with pytest.raises(InvalidKeyError):
            await create(store, "lone \ud800")


def test_durability_is_declared():
    assert (SQLiteStore.durability, MemoryStore.durability) == (Durability.HOST, Durability.NONE)


# ---------------------------------------------------------------- loops, threads, the end


async def test_closing_leaves_no_thread_and_no_descriptor(tmp_path):
    threads, descriptors = threading.active_count(), open_files()
    async with SQLiteStore(tmp_path / "a.db") as store:
        await store.claim("agent", shared=False, wait=0)
        await create(store, "key")
        await store.get("key")
        assert threading.active_count() == threads + 2
    assert (threading.active_count(), open_files()) == (threads, descriptors)


async def test_a_cancelled_caller_does_not_take_its_batch_along(tmp_path, batches):
    trouble = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: trouble.append(context["message"]))
    async with SQLiteStore(tmp_path / "a.db") as store:
        refused = await create(store, "there")
        futures = [store.submit(f"key {number}", b"x", revision=new(), expected=Expect.ABSENT) for number in range(9)]
        futures.insert(4, store.submit("there", b"x", revision=new(), expected=Expect.ABSENT))
        await asyncio.sleep(0)  # they are on their way
        futures[4].cancel()
        futures[2].cancel()
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert [outcome is None for outcome in outcomes] == [number not in {2, 4} for number in range(10)]
        assert await store.get("key 2"), "what was begun is done"
        assert await store.head("there") == refused
    assert (batches, trouble) == ([1, 10], [])


async def test_a_disk_that_hangs_is_unknown_to_a_put_and_unavailable_to_a_get(tmp_path, monkeypatch):
    stuck = threading.Event()
    for worker in (_sqlite_worker.Writer, _sqlite_reader.Reader):
        work = worker.work
        monkeypatch.setattr(worker, "work", lambda self, batch, work=work: (stuck.wait(20), work(self, batch)))
    async with SQLiteStore(tmp_path / "a.db", timeout=0.05) as store:
        with pytest.raises(OutcomeUnknownError, match="did not answer"):
            await create(store, "key")
        with pytest.raises(StoreUnavailableError, match="did not answer"):
            await store.get("key")
        stuck.set()
        assert await store.get("key") is None or await store.get("key")


async def test_a_bug_of_ours_is_told_and_the_thread_lives_on(tmp_path, monkeypatch):
    async with SQLiteStore(tmp_path / "a.db") as store:
        with monkeypatch.context() as patched:
            patched.setattr(_sqlite_worker.Writer, "_transact", lambda self, batch: 1 / 0)
            patched.setattr(_sqlite_reader.Reader, "_do", lambda self, job: 1 / 0)
            with pytest.raises(OutcomeUnknownError, match="ZeroDivisionError"):
                await create(store, "key")
            with pytest.raises(StoreUnavailableError, match="ZeroDivisionError"):
                await store.get("key")
        await create(store, "key")


# ---------------------------------------------------------------- reading


async def test_gets_and_heads_at_once_each_get_their_own_and_what_is_damaged_fails_alone(tmp_path, monkeypatch):
    statements: list[int] = []
    together = _sqlite_reader.Reader._look_up_together
    monkeypatch.setattr(
        _sqlite_reader.Reader,
        "_look_up_together",
        lambda self, verb, jobs: (statements.append(len(jobs)), together(self, verb, jobs)),
    )
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as store:
        revisions = {f"key {number}": await create(store, f"key {number}") for number in range(5)}
        connection = apsw.Connection(str(path))
        connection.execute("UPDATE agents SET data = 7 WHERE key = 'key 3'")
        connection.close()
        keys = [*revisions, "nobody", *revisions]  # a key that is asked for twice is in two batches
        gets = await asyncio.gather(*map(store.get, keys), return_exceptions=True)
        heads = await asyncio.gather(*map(store.head, keys), return_exceptions=True)
        assert isinstance(gets[3], CorruptRecordError)
        assert isinstance(gets[9], CorruptRecordError)
        assert [None if isinstance(got, Exception) or got is None else got.revision for got in gets] == [
            None if key in ("nobody", "key 3") else revisions[key] for key in keys
        ]
        assert heads == [revisions.get(key) for key in keys]
        assert statements == [6, 5, 6, 5]


async def test_a_statement_for_many_that_fails_is_tried_for_each(tmp_path, monkeypatch):
    async with SQLiteStore(tmp_path / "a.db") as store:
        revisions = [await create(store, f"key {number}") for number in range(3)]
        run = _sqlite_reader.db.run

        def refuse_many(connection, sql, values=()):
            if len(values) > 1:
                raise apsw.CorruptError
            return run(connection, sql, values)

        monkeypatch.setattr(_sqlite_reader.db, "run", refuse_many)
        got = await asyncio.gather(*(store.get(f"key {number}") for number in range(3)))
        assert [stored.revision for stored in got] == revisions
        monkeypatch.undo()


# ---------------------------------------------------------------- claims


async def test_a_claim_may_be_shared(tmp_path):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as one, SQLiteStore(path) as other, SQLiteStore(path) as third:
        await one.claim("agent", shared=True, wait=0)
        await other.claim("agent", shared=True, wait=0)
        with pytest.raises(StoreInUseError, match="shared=True"):
            await third.claim("agent", shared=False, wait=0)


async def test_a_claim_waits_and_can_be_cancelled(tmp_path):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as one, SQLiteStore(path) as other:
        await one.claim("agent", shared=False, wait=0)
        waiting = asyncio.create_task(other.claim("agent", shared=False, wait=60))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        waiting = asyncio.create_task(other.claim("agent", shared=False, wait=60))
        await asyncio.sleep(0)
        await one.release("agent")
        await waiting


async def hung_claim(store, monkeypatch):
    """Begin a claim whose lock file is on a disk that hangs; return the task and what sees the hanging to its end."""
    begun, hanging, before = threading.Event(), threading.Event(), set(threading.enumerate())
    open_now = LockFile.open

    def open_later(lock):
        begun.set()
        hanging.wait(20)
        open_now(lock)

    monkeypatch.setattr(LockFile, "open", open_later)
    claim = asyncio.create_task(store.claim("agent", shared=False, wait=0))
    await asyncio.to_thread(begun.wait, 20)
    monkeypatch.undo()
    [thread] = [each for each in set(threading.enumerate()) - before if each.name == "overwinter-claim"]

    async def go_on():
        hanging.set()
        await asyncio.to_thread(thread.join, 20)

    return claim, go_on


async def test_a_claim_on_a_disk_that_hangs_is_given_up_and_leaves_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "a.db"
    async with SQLiteStore(path, timeout=0.05) as one, SQLiteStore(path) as other:
        claim, go_on = await hung_claim(one, monkeypatch)
        with pytest.raises(StoreUnavailableError, match=r"did not answer within.*claim of agent 'agent'"):
            await claim
        await go_on()
        await other.claim("agent", shared=False, wait=0)


async def test_a_claim_cancelled_on_a_disk_that_hangs_leaves_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as one, SQLiteStore(path) as other:
        claim, go_on = await hung_claim(one, monkeypatch)
        claim.cancel()
        await asyncio.gather(claim, return_exceptions=True)
        assert claim.cancelled()
        await go_on()
        await other.claim("agent", shared=False, wait=0)
        with pytest.raises(StoreInUseError):
            await one.claim("agent", shared=False, wait=0)


async def test_closing_releases_claims(tmp_path):
    path = tmp_path / "a.db"
    async with SQLiteStore(path) as one:
        await one.claim("agent", shared=False, wait=0)
    async with SQLiteStore(path) as other:
        await other.claim("agent", shared=False, wait=0)
