"""What was acknowledged is there, whatever ended the process. Kills while it writes are in test_kills.py."""

from __future__ import annotations

import asyncio
import signal

import pytest
from worker import Counter

from overwinter import InstanceManager, SQLiteStore

AT_ONCE = 32
KEYS = 20


async def counts(path, keys):
    """What a new owner finds. No wait for the former one: the kernel has let go of its claims with it."""
    async with InstanceManager(Counter, store=SQLiteStore(path), owner_wait=0) as counters:
        return {key: (await counters.state(key)).count for key in keys}


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_hundred_acknowledged_calls_survive(tmp_path, worker, sign):
    path = str(tmp_path / "agents.db")
    child = worker("count", path=path, keys=1, calls=100, at_once=1, seed=1)
    child.expect("ready")
    child.say("go")
    for number in range(1, 101):
        assert child.expect("ack k0") == str(number)
    child.kill(sign)
    assert asyncio.run(counts(path, ["k0"])) == {"k0": 100}


class Acknowledged:
    """The highest count that was acknowledged, for each key, over all lives of the worker."""

    def __init__(self):
        self.highest = dict.fromkeys((f"k{i}" for i in range(KEYS)), 0)
        self.number = 0

    def take(self, line):
        word, key, value = line.split()
        assert word == "ack"
        self.highest[key] = max(self.highest[key], int(value))
        self.number += 1

    def run_and_kill(self, worker, path, moment, seed, **options):
        """Start a worker, kill it after *moment* acknowledgements, and book all that it got to say."""
        child = worker("count", path=path, keys=KEYS, calls=None, at_once=AT_ONCE, seed=seed, wait=False, **options)
        child.expect("ready")
        for _ in range(moment):
            self.take(child.line())
        for line in child.kill():
            self.take(line)

    def lost(self, found):
        return sum(max(0, self.highest[key] - found[key]) for key in found)


def test_the_same_check_sees_what_the_other_mode_loses(tmp_path, worker):
    path, books = str(tmp_path / "agents.db"), Acknowledged()
    books.run_and_kill(worker, path, 200, seed=1, durability="hibernate")
    assert books.lost(asyncio.run(counts(path, books.highest))) >= 200


def test_ctrl_c_closes_the_manager_and_stores_everybody(tmp_path, worker):
    path, books = str(tmp_path / "agents.db"), Acknowledged()
    child = worker(
        "count", path=path, keys=KEYS, calls=None, at_once=AT_ONCE, seed=1, wait=False, durability="hibernate"
    )
    child.expect("ready")
    for _ in range(500):
        books.take(child.line())
    child.process.send_signal(signal.SIGINT)
    for line in child.rest():
        books.take(line)
    assert child.ended() in (-signal.SIGINT, 1, 130)  # KeyboardInterrupt, after the block was left
    assert "KeyboardInterrupt" in child.errors
    assert books.lost(asyncio.run(counts(path, books.highest))) == 0


def test_a_process_that_dies_inside_a_call_leaves_what_was_thawed(tmp_path, worker):
    path = str(tmp_path / "agents.db")
    first = worker("count", path=path, keys=1, calls=7, at_once=1, seed=1, wait=False)
    first.expect("ready")
    assert first.ended() == 0

    async def rename():  # "k0" is what the first worker counts, "ada" what the second one thaws
        async with InstanceManager(Counter, store=SQLiteStore(path)) as counters:
            await counters.call("ada", Counter.increment, (await counters.state("k0")).count)

    asyncio.run(rename())
    for _ in range(2):
        child = worker("die_in_a_call", path=path)
        assert child.expect("thawed") == "7"
        assert child.line() is None
        assert child.ended() == -signal.SIGKILL
    assert asyncio.run(counts(path, ["ada"])) == {"ada": 7}


async def test_a_handler_that_raises_after_an_earlier_thaw_goes_on_from_what_is_stored(tmp_path):
    path = tmp_path / "agents.db"
    async with InstanceManager(Counter, store=SQLiteStore(path)) as counters:
        await counters.call("ada", Counter.increment, 100)
    async with InstanceManager(Counter, store=SQLiteStore(path)) as counters:
        async with counters.attach("ada") as ada:
            assert await ada.read() == 100
            for _ in range(3):
                with pytest.raises(ValueError, match="as asked"):
                    await ada.crash("raise")
            assert await ada.increment() == 101
        assert counters.stats().thawed == 1
    assert await counts(path, ["ada"]) == {"ada": 101}


@pytest.mark.parametrize(("how", "code"), [("return", 0), ("raise", 1), ("exit", 5)])
def test_an_interpreter_that_ends_without_closing_neither_hangs_nor_loses(tmp_path, worker, how, code):
    path = str(tmp_path / "agents.db")
    child = worker("leave", path=path, how=how)
    child.expect("acknowledged 20")
    child.expect("in flight 20")
    assert child.ended() == code, child.errors
    found = asyncio.run(counts(path, [f"k{i}" for i in range(20)]))
    assert set(found.values()) <= {1, 2}  # the first calls were acknowledged; those in flight may have happened
