"""Who owns the agents of a store: one manager, one process, or several that know of each other."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import pytest
from places import LOCAL
from worker import Counter

from overwinter import InstanceManager, SQLiteStore
from overwinter.errors import StoreInUseError

CALLS = 1000

on_disk = pytest.mark.parametrize("place", LOCAL, indirect=True)


async def counts(path, keys):
    async with InstanceManager(Counter, store=SQLiteStore(path), owner_wait=0) as counters:
        return {key: (await counters.state(key)).count for key in keys}


def race(worker, path, **options):
    """Two workers, let go at once; returns what each of them counted."""
    children = [
        worker("count", path=path, at_once=32, seed=seed, loud=False, shared=True, **options) for seed in (1, 2)
    ]
    for child in children:
        child.expect("ready")
    for child in children:
        child.say("go")
    results = [json.loads(child.expect("done")) for child in children]
    assert [child.ended() for child in children] == [0, 0]
    return results


def test_two_processes_that_retry_count_exactly(tmp_path, worker):
    path = str(tmp_path / "agents.db")
    results = race(worker, path, keys=50, calls=CALLS, superseded="retry")
    assert [{**result, "dropped copies": 0} for result in results] == [{"acknowledged": CALLS, "dropped copies": 0}] * 2
    assert sum(result["dropped copies"] for result in results) > 0  # they did get into each other's way
    assert sum(asyncio.run(counts(path, [f"k{i}" for i in range(50)])).values()) == 2 * CALLS


def test_two_processes_that_do_not_retry_are_told_of_each_conflict(tmp_path, worker):
    path = str(tmp_path / "agents.db")
    results = race(worker, path, keys=3, calls=400)
    for result in results:
        assert result.keys() <= {"acknowledged", "superseded", "dropped copies"}
        assert result["acknowledged"] + result.get("superseded", 0) == 400
    assert sum(result.get("superseded", 0) for result in results) > 0
    stored = sum(asyncio.run(counts(path, ["k0", "k1", "k2"])).values())
    assert stored == sum(result["acknowledged"] for result in results)  # nothing lost, and nothing that was refused


@on_disk
def test_a_second_process_is_told_who_has_the_store_and_how_to_share_it(place, worker):
    path = place.url
    first = worker("hold", path=path)
    first.expect("ready")
    told = worker("hold", path=path, owner_wait=0.05).expect("refused")
    assert "'counter'" in told
    assert str(first.pid) in told
    assert "shared=True" in told
    assert "shared=True" in worker("hold", path=path, owner_wait=0.05, shared=True).expect("refused")  # both must
    first.say()
    assert first.expect("ack ada") == "1"
    first.say("end")
    first.expect("ended")
    second = worker("hold", path=path, owner_wait=0)
    second.expect("ready")


@on_disk
def test_a_stopped_owner_stays_the_owner_and_a_killed_one_is_replaced_at_once(place, worker):
    path = place.url
    owner = worker("hold", path=path)
    owner.expect("ready")
    owner.say()
    owner.expect("ack ada")
    owner.process.send_signal(signal.SIGSTOP)
    assert str(owner.pid) in worker("hold", path=path, owner_wait=0.3).expect("refused")
    owner.process.send_signal(signal.SIGCONT)
    owner.say()
    assert owner.expect("ack ada") == "2"

    heir = worker("hold", path=path, owner_wait=60)  # it waits now, or will have no need to
    owner.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    owner.kill()
    heir.expect("ready")
    assert time.monotonic() - began < 10  # a bound against hanging: the kernel frees the claim, nobody waits it out
    heir.say()
    assert heir.expect("ack ada") == "3"


async def test_two_managers_with_store_objects_of_their_own(tmp_path):
    path = tmp_path / "agents.db"
    async with InstanceManager(Counter, store=SQLiteStore(path)) as first:
        await first.call("ada", Counter.increment)
        second = InstanceManager(Counter, store=SQLiteStore(path), owner_wait=0)
        with pytest.raises(StoreInUseError, match=r"shared=True"):
            await second.open()
        assert await first.call("ada", Counter.increment) == 2
    async with second:  # an open that failed may be repeated
        assert await second.call("ada", Counter.increment) == 3


async def test_two_shared_managers_in_one_process_see_each_other(tmp_path):
    path = tmp_path / "agents.db"
    options = {"shared": True, "superseded": "retry"}
    async with (
        InstanceManager(Counter, store=SQLiteStore(path), **options) as first,
        InstanceManager(Counter, store=SQLiteStore(path), **options) as second,
    ):
        async with asyncio.TaskGroup() as calls:
            for i in range(200):
                calls.create_task((first, second)[i % 2].call(f"k{i % 3}", Counter.increment))
        assert sum([(await second.state(f"k{i}")).count for i in range(3)]) == 200
        assert sum([(await first.state(f"k{i}")).count for i in range(3)]) == 200
