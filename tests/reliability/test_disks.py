"""Full disks, folders that can't be written to, rotten records: nothing acknowledged is lost, nothing starts afresh."""

from __future__ import annotations

import asyncio
import os

import apsw
import pytest
from worker import Counter

from overwinter import InstanceManager, OverwinterError, SQLiteStore
from overwinter.errors import CloseError, CorruptRecordError, NewerRecordError, StoreUnavailableError, UsageError
from overwinter.testing import ManualClock, until

SIZE = 20_000


async def counts(path, keys):
    async with InstanceManager(Counter, store=SQLiteStore(path), owner_wait=0) as counters:
        found = {}
        for key in keys:
            agent = await counters.state(key)
            assert len(agent.freight) == agent.count  # whole, or not at all
            found[key] = agent.count
        return found


def collect_reports():
    reports = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    return reports


async def test_a_failed_hibernation_on_a_full_disk_keeps_the_agent_live_until_there_is_space(disk):
    path, clock, reports = disk.path / "agents.db", ManualClock(), collect_reports()
    options = {"idle_timeout": 60, "durability": "hibernate", "store_patience": 1, "clock": clock}
    async with InstanceManager(Counter, store=SQLiteStore(path), **options) as counters:
        for _ in range(5):
            await counters.call("ada", Counter.grow, SIZE)
        disk.fill()
        await until(lambda: clock.advance(1) or reports)  # 60 s idle, then a second of tries
        assert reports[0]["key"] == "ada"
        assert isinstance(reports[0]["exception"], StoreUnavailableError)
        assert counters.keys() == ["ada"]
        assert (counters.stats().dirty, counters.stats().hibernated) == (1, 0)
        assert counters.inspect("ada").why_live is not None
        assert await counters.call("ada", Counter.grow, 1) == 6  # it works, and is not stored yet
        with pytest.raises(StoreUnavailableError):
            await stepping(clock, counters.save("ada"))
        disk.free()
        await until(lambda: clock.advance(1) or not counters.keys())
        assert counters.stats().dirty == 0
    assert await counts(path, ["ada"]) == {"ada": 6}


async def stepping(clock, awaitable):
    """Await what needs time to pass."""
    task = asyncio.ensure_future(awaitable)
    await until(lambda: clock.advance(0.5) or task.done())
    return await task


async def test_closing_on_a_full_disk_says_whom_it_could_not_store(disk):
    path, clock, _ = disk.path / "agents.db", ManualClock(), collect_reports()
    counters = InstanceManager(Counter, store=SQLiteStore(path), durability="hibernate", store_patience=1, clock=clock)
    await counters.open()
    await counters.call("ada", Counter.grow, SIZE)
    await counters.save("ada")
    disk.fill()
    await counters.call("ada", Counter.grow, 5 * SIZE)
    await counters.call("bob", Counter.read)
    with pytest.raises(CloseError, match="'ada'") as caught:
        await stepping(clock, counters.close(deadline=5))
    assert (caught.value.not_stored, caught.value.unknown, caught.value.abandoned) == (("ada",), (), ())
    disk.free()
    assert await counts(path, ["ada", "bob"]) == {"ada": 1, "bob": 0}  # the older record is untouched


async def test_a_disk_that_turns_readonly_fails_calls_and_keeps_what_is_there(disk):
    path = disk.path / "agents.db"
    async with InstanceManager(Counter, store=SQLiteStore(path)) as counters:
        await counters.call("ada", Counter.grow, 10)
    disk.make_readonly()
    counters = InstanceManager(Counter, store=SQLiteStore(path))
    with pytest.raises(OverwinterError, match="write"):
        await counters.open()
    with pytest.raises(OverwinterError, match="write"):
        await InstanceManager(Counter, store=SQLiteStore(disk.path / "new.db")).open()


async def test_a_disk_that_is_full_at_open_is_told_so_and_harms_nothing(disk):
    path, new = disk.path / "agents.db", disk.path / "new.db"
    async with InstanceManager(Counter, store=SQLiteStore(path)) as counters:
        await counters.call("ada", Counter.grow, SIZE)
    disk.fill()

    async def use(path):
        async with InstanceManager(Counter, store=SQLiteStore(path), store_patience=0.1) as counters:
            await counters.call("ada", Counter.grow, SIZE)

    for each in (path, new):
        with pytest.raises(StoreUnavailableError, match="full"):
            await use(each)
    disk.free()
    assert await counts(path, ["ada"]) == {"ada": 1}
    assert await counts(new, ["ada"]) == {"ada": 0}


async def test_a_folder_without_write_permission_is_refused_at_open(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; see the test with a disk that is read-only")
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)
    with pytest.raises(StoreUnavailableError, match="may write to"):
        await InstanceManager(Counter, store=SQLiteStore(folder / "agents.db")).open()
    assert list(folder.iterdir()) == []


async def test_a_path_that_is_a_folder_or_lies_in_none_is_refused_at_open(tmp_path):
    for path, told in [(tmp_path, "no plain file"), (tmp_path / "missing" / "agents.db", "create it first")]:
        counters = InstanceManager(Counter, store=SQLiteStore(path))
        with pytest.raises(UsageError, match=told):
            await counters.open()
        with pytest.raises(UsageError, match="not open"):
            await counters.call("ada", Counter.increment)
    assert [file.name for file in tmp_path.iterdir()] == []


# ---------------------------------------------------------------- a record that rotted


def row(path, data=None):
    """Read the one record, or write other bytes into its place, past the store."""
    connection = apsw.Connection(os.fspath(path))
    try:
        if data is not None:
            connection.execute("UPDATE agents SET data = ?", (data,))
        return connection.execute("SELECT data FROM agents").get
    finally:
        connection.close()


async def test_a_record_with_any_bit_flipped_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "agents.db"
    async with InstanceManager(Counter, store=SQLiteStore(path)) as counters:
        await counters.call("ada", Counter.grow, 5)
    whole = row(path)
    async with InstanceManager(Counter, store=SQLiteStore(path)) as counters:
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << (position % 8)
            row(path, bytes(damaged))
            # The byte that is the format's number may say "newer"; the checksum of such a record is not ours to know.
            with pytest.raises((CorruptRecordError, NewerRecordError), match="counter 'ada'") as caught:
                await counters.call("ada", Counter.increment)
            assert position == 4 or caught.type is CorruptRecordError
            assert row(path) == bytes(damaged)
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            row(path, whole[:size])
            with pytest.raises(CorruptRecordError):
                await counters.get("ada", initial={"count": 5})
            assert row(path) == whole[:size]
        assert (counters.keys(), counters.stats().created) == ([], 0)
        row(path, whole)
        assert await counters.call("ada", Counter.read) == 1  # mended, it is thawed without a restart


async def test_hibernation_does_not_write_over_a_record_that_somebody_else_wrote(tmp_path):
    path, reports = tmp_path / "agents.db", collect_reports()
    async with InstanceManager(Counter, store=SQLiteStore(path), durability="hibernate", shared=True) as counters:
        await counters.call("ada", Counter.increment)
        await counters.save("ada")
        async with InstanceManager(Counter, store=SQLiteStore(path), shared=True) as others:
            await counters.call("ada", Counter.increment)
            await others.call("ada", Counter.increment, 10)
        with pytest.raises(OverwinterError):
            await counters.save("ada")
        assert await counters.call("ada", Counter.read) == 11
    assert any("superseded" in report["message"] for report in reports)  # what was acknowledged in memory is told
