"""Two processes on one local store, one of which is stopped, with the lock too and past time-outs, and goes on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter

import pytest
from storing import create, new

from overwinter.errors import RevisionConflictError, StoreUnavailableError
from overwinter.stores import FileStore, SQLiteStore

RACES = 100
TIMEOUT = 0.2

STALE = """
import threading
from overwinter.stores import _file_writer, _sqlite_worker
inside = False
def stopping(work):
    def stop_and_work(*arguments):
        if inside: signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # here, and all threads with it
        return work(*arguments)
    return stop_and_work
_sqlite_worker._apply = stopping(_sqlite_worker._apply)
_file_writer.FileWriter._land = stopping(_file_writer.FileWriter._land)
async def main(kind, path):
    global inside
    store = {"SQLiteStore": SQLiteStore, "FileStore": FileStore}[kind](path)
    async with store:
        say("open")
        while line := await asyncio.to_thread(sys.stdin.readline):
            base, theirs, where = line.split()
            base, theirs, inside = bytes.fromhex(base), bytes.fromhex(theirs), where == "inside"
            say("began")
            try:
                await store.put("key", b"stale", revision=theirs, expected=base)
            except (OutcomeUnknownError, RevisionConflictError, StoreUnavailableError) as error:
                say(type(error).__name__)
            else:
                say("stored")
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", [SQLiteStore, FileStore])
async def test_of_two_processes_one_wins_each_revision(in_memory, child, kind):
    path, dice, outcomes = in_memory / "store", random.Random(7), Counter()
    process = child(STALE, kind.__name__, path)

    async def heard() -> str:
        return (await asyncio.to_thread(process.stdout.readline)).strip()

    assert await heard() == "open"
    async with kind(path, timeout=TIMEOUT) as store:
        base = await create(store, "key")
        for race in range(RACES):
            theirs, ours = new(), new()
            where = ("before", "inside", "somewhere", "somewhere", "somewhere")[race % 5]
            if where == "before":
                process.send_signal(signal.SIGSTOP)
            process.stdin.write(f"{base.hex()} {theirs.hex()} {where}\n")
            process.stdin.flush()
            if where != "before":
                assert await heard() == "began"
            if where == "inside":  # it has the lock, and stops itself
                assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            elif where == "somewhere":
                await asyncio.sleep(dice.random() * 0.004)
                process.send_signal(signal.SIGSTOP)
            try:
                await store.put("key", b"ours", revision=ours, expected=base)
                mine = "stored"
            except (RevisionConflictError, StoreUnavailableError) as error:
                mine = type(error).__name__
            process.send_signal(signal.SIGCONT)
            if where == "before":
                assert await heard() == "began"
            verdict = await heard()
            outcomes[mine, verdict] += 1
            assert (mine, verdict).count("stored") == 1, (race, mine, verdict)
            base = await store.head("key")
            assert base == (ours if mine == "stored" else theirs)
    assert outcomes["stored", "RevisionConflictError"] >= RACES // 5
    assert outcomes["StoreUnavailableError", "stored"] >= RACES // 5
