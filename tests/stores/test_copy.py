"""Copying records between any two stores: whole, once, with their revisions, and nothing left out in silence."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from storing import new

from overwinter import Agent, InstanceManager
from overwinter.errors import (
    CopyError,
    CorruptRecordError,
    OutcomeUnknownError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import Copied, Expect, FileStore, MemoryStore, SQLiteStore, Store, Stored, copy_records
from overwinter.stores._file_frame import name_of
from overwinter.testing import FaultyStore

KEYS = [
    *(f"Agent:{number}" for number in range(150)), "Agent:\0", "Agent:%_*", "Other:1", "Other:é", "Other:e\u0301",
    "Other:\U0010ffff", "/../x", "x" * 1024,
]  # fmt: skip


async def fill(store: Store, keys: list[str]) -> None:
    async with store:
        puts = [store.submit(key, new() * 20, revision=new(), expected=Expect.ABSENT) for key in keys]
        await asyncio.gather(*puts)


async def content(store: Store) -> dict[str, Stored | None]:
    async with store:
        return {key: await store.get(key) async for key in store.keys()}  # noqa: SIM118  # no dictionary


async def pair(keys: list[str] | None = None) -> tuple[FaultyStore, FaultyStore]:
    source, target = FaultyStore(MemoryStore()), FaultyStore(MemoryStore())
    await fill(source.inner, ["a", "b", "c"] if keys is None else keys)
    return source, target


STORES: dict[str, Callable[[Path, str], Store]] = {
    "memory": lambda folder, name: MemoryStore(),
    "sqlite": lambda folder, name: SQLiteStore(folder / f"{name}.db"),
    "file": lambda folder, name: FileStore(folder / name),
}


# ---------------------------------------------------------------- what is copied


@pytest.mark.parametrize("kinds", [(a, b) for a in STORES for b in STORES], ids="-".join)
async def test_everything_is_copied_with_its_revision_and_only_once(in_memory, kinds):
    source, target = (STORES[kind](in_memory, name) for kind, name in zip(kinds, "ab", strict=True))
    await fill(source, KEYS)
    before = await content(source)
    result = await copy_records(source, target)
    assert result == Copied(copied=len(KEYS), size=320 * len(KEYS))
    assert await content(target) == before == await content(source)
    assert await copy_records(source, target) == Copied(skipped=len(KEYS))
    assert await content(target) == before


async def test_a_prefix_copies_a_part():
    source, target = await pair(KEYS)
    assert (await copy_records(source, target, prefix="Other:")).copied == 4
    assert set(await content(target)) == {key for key in KEYS if key.startswith("Other:")}


async def test_what_is_there_already_is_neither_read_nor_written():
    source, target = await pair()
    await copy_records(source, target)
    source.calls.clear()
    target.calls.clear()
    await copy_records(source, target)
    assert source.calls["get"] == target.calls["put"] == 0


class Counter(Agent):
    count: int = 0

    async def increment(self) -> int:
        self.count += 1
        return self.count


async def test_agents_go_on_where_they_were(tmp_path):
    source, target = MemoryStore(), SQLiteStore(tmp_path / "a.db")
    async with InstanceManager(Counter, store=source) as counters:
        once = counters.options(call_id="first")
        assert await once.call("ada", Counter.increment) == 1
    await copy_records(source, target)
    async with InstanceManager(Counter, store=target) as counters:
        assert await counters.options(call_id="first").call("ada", Counter.increment) == 1, "receipts come along"
        assert await counters.call("ada", Counter.increment) == 2
    with pytest.raises(CopyError):
        await copy_records(source, target)


# ---------------------------------------------------------------- interrupted, and run again


async def test_a_store_that_fails_ends_it_and_a_second_run_ends_well():
    source, target = await pair(KEYS)
    target.fail("put", StoreUnavailableError("disk full"), times=math.inf, key="Agent:70")
    with pytest.raises(StoreUnavailableError, match="disk full"):
        await copy_records(source, target, in_flight=4)
    there = await content(target.inner)
    assert 0 < len(there) < len(KEYS)
    target.heal()
    result = await copy_records(source, target, in_flight=4)
    assert (result.copied, result.skipped) == (len(KEYS) - len(there), len(there))
    assert await content(target.inner) == await content(source.inner)


@pytest.mark.parametrize(("verb", "side"), [("keys", 0), ("head", 1), ("get", 0), ("put", 1)])
async def test_an_error_of_any_step_comes_as_it_is(verb, side):
    stores = await pair()
    stores[side].fail(verb, StoreUnavailableError("down"))
    with pytest.raises(StoreUnavailableError, match="down"):
        await copy_records(*stores)


async def test_it_may_be_cancelled_anywhere(in_memory):
    source, target = SQLiteStore(in_memory / "a.db"), FileStore(in_memory / "b")
    await fill(source, KEYS)
    async with source, target:
        for steps in range(0, 60, 3):
            task = asyncio.ensure_future(copy_records(source, target, in_flight=8))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        result = await copy_records(source, target)
    assert result.copied + result.skipped == len(KEYS)
    assert await content(target) == await content(source)


@pytest.mark.parametrize("on_conflict", ["raise", "overwrite"])
async def test_what_a_cancelled_copy_had_on_the_way_is_no_conflict(on_conflict):
    source, target = await pair()
    if on_conflict == "overwrite":
        await fill(target.inner, ["b"])
    gate = target.hold("put", key="b")
    task = asyncio.ensure_future(copy_records(source, target, on_conflict=on_conflict))
    await gate.reached()
    late = await source.inner.get("b")
    there = await target.inner.head("b")
    await target.inner.put("b", late.data, revision=late.revision, expected=there or Expect.ABSENT)
    gate.release()
    result = await task
    assert (result.copied + result.replaced, result.conflicts) == (3, 0)
    assert await content(target.inner) == await content(source.inner)


async def test_a_killed_copy_is_continued(in_memory, child):
    source, target = SQLiteStore(in_memory / "a.db"), SQLiteStore(in_memory / "b.db")
    await fill(source, [f"key {number}" for number in range(3000)])
    process = child(
        """
        from overwinter.stores import copy_records
        source, target = (SQLiteStore(path) for path in sys.argv[1:])
        asyncio.run(copy_records(source, target, on_progress=lambda so_far: so_far.seen % 100 or say(so_far.seen)))
        """,
        source.path,
        target.path,
    )
    assert process.stdout.readline() == "100\n"
    process.kill()
    process.wait()
    there = await content(target)
    assert len(there) >= 100
    assert (await copy_records(source, target)).skipped == len(there)
    assert await content(target) == await content(source)


# ---------------------------------------------------------------- conflicts


async def with_conflicts(number: int) -> tuple[FaultyStore, FaultyStore]:
    source, target = await pair([f"key {n}" for n in range(number + 5)])
    await fill(target.inner, [f"key {n}" for n in range(number)])
    return source, target


async def test_a_conflict_is_told_and_never_overwritten():
    source, target = await with_conflicts(2)
    before = await content(target.inner)
    with pytest.raises(
        CopyError, match=r"^5 records are at the target; 2 have another revision .*'key 0', 'key 1'\)"
    ) as e:
        await copy_records(source, target)
    assert e.value.result == Copied(copied=5, size=1600, conflicts=2, conflict_keys=("key 0", "key 1"))
    after = await content(target.inner)
    assert {key: after[key] for key in before} == before
    assert len(after) == 7


async def test_many_conflicts_are_a_number_and_the_first_keys():
    source, target = await with_conflicts(30)
    result = await copy_records(source, target, on_conflict="skip")
    assert (result.copied, result.conflicts, len(result.conflict_keys)) == (5, 30, 10)
    with pytest.raises(CopyError, match=r"30 have .* …\)"):
        await copy_records(source, target)


async def test_conflicts_are_overwritten_if_asked():
    source, target = await with_conflicts(2)
    result = await copy_records(source, target, on_conflict="overwrite")
    assert result == Copied(copied=5, replaced=2, size=320 * 7)
    assert await content(target.inner) == await content(source.inner)


@pytest.mark.parametrize("on_conflict", ["raise", "skip", "overwrite"])
async def test_who_writes_to_the_target_meanwhile_is_not_overwritten(on_conflict):
    source, target = await with_conflicts(1)
    key = "key 0" if on_conflict == "overwrite" else "key 3"
    gate = target.hold("put", key=key)
    task = asyncio.ensure_future(copy_records(source, target, on_conflict=on_conflict))
    await gate.reached()
    await target.inner.delete(key, expected=Expect.ANY)
    await target.inner.put(key, b"somebody's", revision=b"r", expected=Expect.ABSENT)
    gate.release()
    if on_conflict == "skip":
        assert (await task).conflicts == 2
    else:
        with pytest.raises(CopyError, match=key):
            await task
    assert (await content(target.inner))[key] == Stored(b"somebody's", b"r")


# ---------------------------------------------------------------- what can't be read


async def test_a_record_that_is_torn_is_told_and_the_rest_is_copied(in_memory):
    source, target = FileStore(in_memory / "a"), MemoryStore()
    await fill(source, KEYS)
    torn, unknown = (Path(source.path, name_of(key)[:2], name_of(key)) for key in KEYS[:2])
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(CopyError, match=r"1 can't be read \('Agent:0'\)") as caught:
        await copy_records(source, target, on_conflict="skip")
    assert caught.value.result.unreadable == 1
    assert set(await content(target)) == set(KEYS) - {"Agent:0"}
    unknown.write_bytes(b"")
    target = MemoryStore()
    with pytest.raises(CopyError, match=rf"can't tell all keys.*{unknown.name}") as caught:
        await copy_records(source, target)
    assert isinstance(caught.value.__cause__, CorruptRecordError)
    assert set(await content(target)) == set(KEYS[2:])


async def test_many_damaged_records_are_a_number_and_the_first_keys():
    source, target = await pair(KEYS)
    source.fail("get", CorruptRecordError("torn"), times=40)
    with pytest.raises(CopyError, match=r"40 can't be read .* …\)") as caught:
        await copy_records(source, target)
    assert len(caught.value.result.unreadable_keys) == 10
    assert len(await content(target.inner)) == len(KEYS) - 40


async def test_what_is_damaged_at_the_target_is_told_and_left(in_memory):
    source, target = MemoryStore(), FileStore(in_memory / "b")
    await fill(source, ["a", "b"])
    await copy_records(source, target)
    path = Path(target.path, name_of("a")[:2], name_of("a"))
    path.write_bytes(b"torn")
    for on_conflict in ("raise", "skip", "overwrite"):
        with pytest.raises(CopyError, match=r"1 can't be read \('a'\)"):
            await copy_records(source, target, on_conflict=on_conflict)
    assert path.read_bytes() == b"torn"


async def test_what_is_deleted_before_its_turn_is_gone():
    source, target = await pair()
    gate = source.hold("get", key="b")
    task = asyncio.ensure_future(copy_records(source, target))
    await gate.reached()
    await source.inner.delete("b", expected=Expect.ANY)
    gate.release()
    result = await task
    assert (result.copied, result.gone, result.seen) == (2, 1, 3)


async def test_a_conflict_is_left_as_it_is_even_if_the_source_lost_it_for_a_moment():
    source, target = await with_conflicts(1)
    before = await content(target.inner)
    begun, ended = source.hold("head", key="key 0"), source.hold("head", key="key 0", after=True)
    task = asyncio.ensure_future(copy_records(source, target, on_conflict="skip"))
    await begun.reached()
    await source.inner.delete("key 0", expected=Expect.ANY)
    begun.release()
    await ended.reached()
    await source.inner.put("key 0", b"anew", revision=new(), expected=Expect.ABSENT)
    ended.release()
    result = await task
    assert (result.copied, result.gone, result.replaced) == (5, 1, 0)
    assert (await content(target.inner))["key 0"] == before["key 0"]


# ---------------------------------------------------------------- unknown outcomes


@pytest.mark.parametrize("landed", [False, True])
async def test_an_unknown_outcome_is_decided_by_another_put(landed):
    source, target = await pair()
    target.fail("put", OutcomeUnknownError("reset"), after=landed, key="b")
    assert (await copy_records(source, target)).copied == 3
    assert await content(target.inner) == await content(source.inner)
    # One that landed is put on top of itself too: it may have been in memory only.
    assert [key for verb, key in target.log if verb == "put"].count("b") == (3 if landed else 2)


async def test_an_outcome_that_stays_unknown_is_told():
    source, target = await pair()
    target.fail("put", OutcomeUnknownError("reset"), times=math.inf, key="b")
    with pytest.raises(OutcomeUnknownError):
        await copy_records(source, target)


async def test_somebody_elses_record_after_an_unknown_outcome_is_a_conflict():
    source, target = await pair()
    target.fail("put", OutcomeUnknownError("reset"), key="b")
    gate = target.hold("put", key="b")
    task = asyncio.ensure_future(copy_records(source, target, on_conflict="skip"))
    await gate.reached()
    await target.inner.put("b", b"somebody's", revision=b"r", expected=Expect.ABSENT)
    gate.release()
    assert (await task).conflict_keys == ("b",)
    assert (await content(target.inner))["b"] == Stored(b"somebody's", b"r")


@pytest.mark.parametrize("verb", ["keys", "get", "head", "put"])
async def test_a_store_that_hangs_ends_it(verb):
    source, target = await pair()
    source.timeout = target.timeout = 0.02
    (source if verb in ("keys", "get") else target).hold(verb)
    with pytest.raises(OutcomeUnknownError if verb == "put" else StoreUnavailableError, match="did not answer"):
        await copy_records(source, target)


# ---------------------------------------------------------------- progress and bounds


async def test_progress_counts_each_record():
    source, target = await with_conflicts(3)
    told: list[Copied] = []
    result = await copy_records(source, target, on_conflict="skip", on_progress=told.append)
    assert [so_far.seen for so_far in told] == list(range(1, 9))
    assert told[-1] == result


async def test_a_progress_that_raises_ends_it():
    source, target = await pair(KEYS)

    def stop(so_far: Copied) -> None:
        if so_far.seen == 20:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        await copy_records(source, target, on_progress=stop, in_flight=4)
    assert 20 <= len(await content(target.inner)) <= 24


class Watched(MemoryStore):
    """Counts the keys that were taken from it."""

    taken = 0

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        async for key in super().keys(prefix):
            self.taken += 1
            yield key


async def test_only_so_many_are_on_their_way():
    source, target = Watched(), FaultyStore(MemoryStore())
    await fill(source, KEYS)
    gate = target.hold("put")
    task = asyncio.ensure_future(copy_records(source, target, in_flight=5))
    await gate.reached(5)
    for _ in range(20):
        await asyncio.sleep(0)
    assert gate.waiting == target.calls["put"] == 5
    assert source.taken <= 6, "the listing runs ahead"
    gate.release()
    assert (await task).copied == len(KEYS)


async def test_puts_share_their_flushes(tmp_path, batches):
    source, target = MemoryStore(), SQLiteStore(tmp_path / "a.db")
    await fill(source, [f"key {number}" for number in range(640)])
    await copy_records(source, target)
    assert sum(batches) == 640
    assert len(batches) < 100, batches


# ---------------------------------------------------------------- opening, and misuse


async def test_stores_are_opened_for_it_and_left_as_they_were(in_memory):
    source, target = SQLiteStore(in_memory / "a.db"), SQLiteStore(in_memory / "b.db")
    await fill(source, ["a"])
    async with target:
        await copy_records(source, target)
        assert await target.head("a")
        with pytest.raises(UsageError):
            await source.head("a")


async def test_misuse_is_an_error():
    source, target = await pair()
    with pytest.raises(UsageError, match="two stores"):
        await copy_records(source, source)
    with pytest.raises(ValueError, match="on_conflict"):
        await copy_records(source, target, on_conflict="ignore")
    for wrong, error in ((0, ValueError), (-1, ValueError), (2.5, TypeError), (math.inf, TypeError), ("4", TypeError)):
        with pytest.raises(error, match="in_flight"):
            await copy_records(source, target, in_flight=wrong)
    deaf = MemoryStore()
    deaf.keys = lambda prefix: Store.keys(deaf, prefix)
    with pytest.raises(UsageError, match="can't list its keys"):
        await copy_records(deaf, target)


async def test_a_record_whose_revision_no_store_could_keep_is_unreadable_and_keeps_nothing_else_from_being_copied():
    source, target = await pair()
    source.inner._records["b"] = Stored(b"data", bytes(256))
    with pytest.raises(CopyError) as caught:
        await copy_records(source, target)
    assert caught.value.result.unreadable_keys == ("b",)
    assert set(await content(target.inner)) == {"a", "c"}
