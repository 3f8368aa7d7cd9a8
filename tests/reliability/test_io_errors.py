"""Each system call fails, in each way, once or for ever: callers learn the truth, agents stay, nothing is lost.

The calls fail in a child process, by a seccomp filter (``syscalls.py``); what it asks, and what is wrong about the
answers, is in ``io_errors.py``.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import os
from typing import Any

import pytest
import syscalls
from fault_bugs import BUGS
from io_errors import DURABILITIES, leftovers, make_store, passing
from worker import Counter

from overwinter import InstanceManager
from overwinter.errors import StoreUnavailableError
from overwinter.testing import ManualClock

SPANS = ["work", "crash", "list", "open", "close", "new"]
STORES = ["file", "sqlite"]
SHORT = ""  # not an error: half of it is written


@pytest.fixture
def judges(worker, in_memory):
    """Two processes that try cases: there are two cores."""
    if syscalls.missing():
        if os.environ.get("CI"):
            pytest.fail(f"CI must be able to fail system calls: {syscalls.missing()}")
        pytest.skip(syscalls.missing())
    folders = [in_memory / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    return [worker("judge", program="io_errors.py", folder=str(folder)) for folder in folders]


def judged(judges, cases):
    """What became of each case."""
    for start in range(0, len(cases), 100):
        some = cases[start : start + 100]
        for case, judge in zip(some, itertools.cycle(judges), strict=False):
            judge.say(json.dumps(case))
        for case, judge in zip(some, itertools.cycle(judges), strict=False):
            line = judge.line()
            assert line is not None, f"{case}: {judge.errors}"
            yield case, json.loads(line)


def calls_of(judges):
    """How often each call is made by each store in each span of its life, when nothing fails."""
    spans = [
        {"store": store, "durability": "interval", "span": span, "fault": None} for store in STORES for span in SPANS
    ]
    for case, result in judged(judges, spans):
        assert not result["wrong"], (case, result)
        for call, number in result["calls"].items():
            if call != "close":  # it would stay open, and that is not what a failed close does; see test_file_disk.py
                yield case["store"], case["span"], call, number


def cases_of(counts, chance, size):
    """Each call of each store and span with each error, again and again, until there are enough."""
    every: list[Any] = []
    while len(every) < size:
        some = [(*count, error) for count in counts for error in [*syscalls.ERRNOS, SHORT]]
        chance.shuffle(some)
        for store, span, call, number, error in some:
            for_ever = chance.random() < 0.5
            nth = chance.choice([chance.randint(1, number), chance.randint(1, min(number, 12))])
            if error == SHORT and call not in ("write", "pwrite64"):
                continue
            if (store, call) == ("sqlite", "fcntl"):  # SQLite tries for 10 seconds to lock its log
                for_ever = for_ever and span == "open"
                nth = 1 if for_ever else nth
            every.append(one_case(store, chance.choice(list(DURABILITIES)), span, call, error, nth, for_ever))
    return every[:size]


def test_an_error_of_any_call_is_told_truly_and_loses_nothing(judges, proof):
    counts = list(calls_of(judges))
    cases = cases_of(counts, proof.chance("cases"), proof.size(run=350, long=4000))
    told: collections.Counter[str] = collections.Counter()
    fired: set[tuple[str, str]] = set()
    wrong: list[str] = []
    for case, result in judged(judges, cases):
        if result["wrong"]:
            wrong.append(f"{case}: {'; '.join(result['wrong'])}")
        told.update(result["told"])
        if result["fired"]:
            proof.count(cases=1, calls_failed=result["fired"])
            fired.add((case["store"], case["fault"]["call"]))
    assert not wrong, "\n".join([f"{len(wrong)} cases went wrong:", *wrong[:10]])
    assert proof.counts["cases"] > 0.8 * len(cases), "too few faults fired"
    assert fired == {(store, call) for store, _, call, _ in counts}
    assert {"StoreUnavailableError", "OutcomeUnknownError", "ThawError", "CloseError"} <= set(told)
    proof.count(errors_told=sum(told.values()))


# Faults that were found so, and what was wrong then.
FOUND = [
    ("sqlite", "call", "new", "fstat", "EMFILE", range(15, 21), True),  # open() raised an error of apsw's
    ("sqlite", "call", "open", "flock", "EROFS", range(1, 5), True),  # open() raised an OSError
    ("sqlite", "call", "open", "newfstatat", "EIO", range(5, 10), False),  # it opened, and refused all writes for ever
    ("sqlite", "call", "close", "flock", "EIO", range(1, 3), True),  # the thread died, nothing was closed, 15 s passed
    ("sqlite", "call", "crash", "pread64", "EDQUOT", range(1, 4), True),  # a delete that happened was called undone
    ("file", "call", "new", "write", SHORT, range(1, 2), True),  # half of the folder's marker was written
]


def test_what_was_found_so_stays_mended(judges):
    cases = [one_case(*begin, nth, for_ever) for *begin, numbers, for_ever in FOUND for nth in numbers]
    wrong = [(case, result["wrong"]) for case, result in judged(judges, cases) if result["wrong"]]
    assert not wrong, "\n".join(map(str, wrong))


def one_case(store, durability, span, call, error, nth, for_ever, bug=""):
    fault = {"call": call, "error": error, "nth": nth, "for_ever": for_ever}
    return {"store": store, "durability": durability, "span": span, "fault": fault, "bug": bug}


# ---------------------------------------------------------------- who tests the test

# In what trouble each bug shows.
SIGNS = {
    "swallows flushes": ("file", "call", "work", "fsync", "EIO", True),
    "flushes again": ("file", "call", "work", "fsync", "EIO", True),
    "takes errors for absence": ("file", "call", "work", "openat", "EMFILE", True),
    "leaks descriptors": ("file", "call", "work", "pread64", "EIO", True),
    "takes short writes for whole": ("file", "call", "work", "write", SHORT, True),
    "leaves temporary files": ("file", "call", "work", "write", "ENOSPC", False),
    "tells the system's errors": ("file", "call", "work", "pread64", "EIO", True),
    "takes unknown for not stored": ("file", "call", "work", "fsync", "EIO", False),
    "takes SQLite's errors for absence": ("sqlite", "call", "work", "pread64", "EMFILE", True),
    "takes a failed commit for definite": ("sqlite", "call", "crash", "fdatasync", "EIO", True),
    "keeps the connection whose flush failed": ("sqlite", "call", "work", "fdatasync", "EIO", True),
    "says what could not be stored is": ("sqlite", "hibernate", "work", "pwrite64", "ENOSPC", True),
}


def test_each_bug_is_found_out(judges):
    assert set(SIGNS) == set(BUGS)
    cases = [one_case(*begin, nth, for_ever, bug) for bug, (*begin, for_ever) in SIGNS.items() for nth in range(1, 4)]
    found = {case["bug"] for case, result in judged(judges, cases) if result["wrong"]}
    assert found == set(BUGS)


# ---------------------------------------------------------------- a small disk


@pytest.mark.parametrize("disk", ["64k"], indirect=True)
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("store", STORES)
async def test_a_disk_of_64_kib_fills_up_and_nothing_acknowledged_is_lost(disk, store, durability):
    clock, counted = ManualClock(), dict.fromkeys("abcd", 0)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # of Interval's tries, which nobody waits for

    def manager():
        kept = make_store(store, str(disk.path))
        return InstanceManager(Counter, store=kept, **DURABILITIES[durability], store_patience=1, clock=clock)

    async with manager() as counters:
        full = set()
        while len(full) < len(counted):
            for key in counted.keys() - full:
                try:
                    counted[key] = await passing(clock, counters.call(key, Counter.grow, 2000))
                    await passing(clock, counters.save(key))
                except StoreUnavailableError:
                    full.add(key)
        assert sum(counted.values()) < 30  # it was full before long
        assert {key: (await counters.state(key)).count for key in counted} == counted  # they live on
        stats = counters.stats()
        assert (stats.live, stats.dirty, stats.unknown) == (4, 0 if durability in ("call", "shared") else 4, ())
        disk.grow()
        for key in counted:
            for _ in range(20):  # while its manager finds out that there is space
                with contextlib.suppress(StoreUnavailableError):
                    counted[key] = await passing(clock, counters.call(key, Counter.grow, 2000))
                    break
                await passing(clock, clock.sleep(2))
            await passing(clock, counters.save(key))
        assert counters.stats().dirty == 0
    async with manager() as counters:
        for key, count in counted.items():
            agent = await counters.state(key)
            assert (agent.count, len(agent.freight)) == (count, count)
    assert leftovers(str(disk.path)) == []
