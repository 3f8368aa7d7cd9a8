"""Two processes on one table: one stopped for longer than its time limits, then continued."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import psycopg

from overwinter.errors import OutcomeUnknownError, RevisionConflictError, StoreUnavailableError
from overwinter.stores import Expect, Stored
from overwinter.stores.postgres import PostgresStore

RACES = 100

RACER = """
import asyncio, sys
from overwinter.stores.postgres import PostgresStore
from overwinter.errors import StoreError
from overwinter.stores import Expect

def say(*words): print(*words, flush=True)

async def main(url, table, timeout):
    async with PostgresStore(url, table=table, timeout=float(timeout)) as store:
        await store.get("warm"), await store.delete("warm", expected=Expect.ANY)
        say("ready")
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            key, expected = line.split()
            expected = Expect.ABSENT if expected == "absent" else bytes.fromhex(expected)
            try:
                await store.put(key, b"stopped", revision=b"stopped " + key.encode(), expected=expected)
            except StoreError as error:
                say(type(error).__name__)
            else:
                say("won")

asyncio.run(main(*sys.argv[1:]))
"""


async def test_of_a_stopped_process_and_a_running_one_exactly_one_wins(postgres, table, child):
    """The change is an update, a create, or a create over a tombstone; the stop comes at any moment of it."""
    chance = random.Random(7)
    limit = 0.05
    async with PostgresStore(postgres.url, table=table) as store:
        racer = child(RACER, postgres.url, table, limit, prelude="")
        assert racer.stdout.readline() == "ready\n"
        outcomes = []
        for number in range(RACES):
            key, base = f"k{number}", await _prepare(store, f"k{number}", number % 3)
            racer.stdin.write(f"{key} {base.hex() if isinstance(base, bytes) else 'absent'}\n")
            racer.stdin.flush()
            await asyncio.sleep(chance.random() * 0.004)
            os.kill(racer.pid, signal.SIGSTOP)
            ours = await _outcome(store.put(key, b"ran", revision=b"ran " + key.encode(), expected=base))
            await asyncio.sleep(limit * 1.2 if number % 4 == 0 else 0)  # past its deadline, or not
            os.kill(racer.pid, signal.SIGCONT)
            theirs = racer.stdout.readline().strip()
            stored = await store.get(key)
            assert stored in (Stored(b"ran", b"ran " + key.encode()), Stored(b"stopped", b"stopped " + key.encode()))
            outcomes.append((ours, theirs))
            assert (ours == "won") == (stored.data == b"ran")
            assert ours in ("won", "RevisionConflictError")
            if theirs == "won":
                assert stored.data == b"stopped"
            elif theirs != "OutcomeUnknownError":
                assert stored.data == b"ran", f"{theirs}, and it is stored"
        winners = [ours for ours, _ in outcomes]
        assert 0 < winners.count("won") < RACES, "the stops must come early and late"


async def _prepare(store, key, kind):
    if kind == 0:
        return Expect.ABSENT
    await store.put(key, b"base", revision=b"base", expected=Expect.ABSENT)
    if kind == 1:
        return b"base"
    await store.delete(key, expected=b"base")
    return Expect.ABSENT


async def _outcome(put):
    try:
        await put
    except (RevisionConflictError, StoreUnavailableError, OutcomeUnknownError) as error:
        return type(error).__name__
    return "won"


async def test_a_request_that_is_held_up_does_not_come_after_its_time(postgres, table, child):
    """What the server comes to only when its tombstone may be gone must not create what was deleted since.

    Nobody waits for a minute here, so the request's time is cut to a tenth of a second.
    """
    code = RACER.replace("async def main", "from overwinter.stores import _postgres_link\n"
                         "_postgres_link.CLOCK_SLACK = -2.9\n\nasync def main")  # fmt: skip
    async with PostgresStore(postgres.url, table=table) as store:
        racer = child(code, postgres.url, table, 3, prelude="")
        assert racer.stdout.readline() == "ready\n"
        with psycopg.connect(postgres.url) as lock:
            lock.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")  # the request arrives, and is held up here
            racer.stdin.write("gone absent\n")
            racer.stdin.flush()
            while not (
                lock.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s", [f"%{table}%"]
                ).fetchall()
            ):
                await asyncio.sleep(0)
            os.kill(racer.pid, signal.SIGSTOP)  # so that it can't cancel it either
            await asyncio.sleep(0.15)
        assert await store.get("gone") is None
        os.kill(racer.pid, signal.SIGCONT)
        assert racer.stdout.readline().strip() in ("OutcomeUnknownError", "StoreUnavailableError")
        assert await store.get("gone") is None
