"""Two processes on one table, one of which is stopped until its request is too old."""

from __future__ import annotations

import asyncio
import os
import signal

import psycopg

from overwinter.stores.postgres import PostgresStore

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
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s",
                    [f"%INSERT INTO%{table}%"],
                ).fetchall()
            ):
                lock.execute("SELECT pg_stat_clear_snapshot()")  # or this transaction sees those alone who were there
                await asyncio.sleep(0)
            os.kill(racer.pid, signal.SIGSTOP)  # so that it can't cancel it either
            await asyncio.sleep(0.15)
        assert await store.get("gone") is None
        os.kill(racer.pid, signal.SIGCONT)
        assert racer.stdout.readline().strip() in ("OutcomeUnknownError", "StoreUnavailableError")
        assert await store.get("gone") is None
