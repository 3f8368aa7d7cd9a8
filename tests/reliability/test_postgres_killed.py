"""kill -9 of PostgreSQL under load: the postmaster or a single backend, which takes all sessions with it.

Nothing acknowledged is lost, nothing is stored twice, and live agents keep their state and go on by themselves.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psycopg
import pytest
from servers import Postgres

from overwinter import Agent, InstanceManager, readonly
from overwinter.errors import OutcomeUnknownError, OverwinterError, RevisionConflictError, StoreUnavailableError
from overwinter.stores import Expect
from overwinter.stores.postgres import PostgresStore

WRITERS = 32


class Tally(Agent, name="tally"):
    count: int = 0

    async def add(self, number: int) -> int:
        self.count += number
        return self.count

    @readonly
    async def total(self) -> int:
        return self.count


@pytest.fixture
def server():
    with Postgres() as running:
        yield running


def kill_postmaster(server):
    server.kill()
    server.start()


def kill_backend(server):
    """One session of ours; the postmaster ends all the others, recovers, and goes on."""
    ours = "SELECT pid FROM pg_stat_activity WHERE application_name = 'overwinter' ORDER BY query_start DESC LIMIT 1"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with psycopg.connect(server.url, autocommit=True) as connection:
                for (pid,) in connection.execute(ours).fetchall():
                    os.kill(pid, signal.SIGKILL)
                    return
        except (psycopg.OperationalError, ProcessLookupError):
            time.sleep(0.02)  # it recovers from the last kill, of which the answers before it have just been read
    raise AssertionError("no session of ours could be killed")


both_ways = pytest.mark.parametrize("kill", [kill_postmaster, kill_backend])


async def assail(server, kill, progress, proof):
    """Kill it again and again, each time after some more writes; returns when the last ones got through."""
    chance = proof.chance("assail")
    for _ in range(proof.size(10, 200)):
        before = progress()
        while progress() < before + WRITERS:
            await asyncio.sleep(0.005)
        await asyncio.sleep(chance.random() * 0.02)
        await asyncio.to_thread(kill, server)
        proof.count(kills=1)
    before = progress()
    while progress() < before + 4 * WRITERS:
        await asyncio.sleep(0.005)


@both_ways
async def test_no_acknowledged_put_is_lost_and_none_is_doubled(server, kill, proof):
    """Each writer counts in a row of its own, and settles a doubt as managers do: by another conditional put."""
    acknowledged = dict.fromkeys(range(WRITERS), 0)
    failures = {"StoreUnavailableError": 0, "OutcomeUnknownError": 0}
    async with PostgresStore(server.url, timeout=5) as store:

        async def writer(number):
            key, base, value = f"k{number}", Expect.ABSENT, 0
            while True:
                base = await settle(key, base, value + 1)
                value += 1
                acknowledged[number] = value

        async def settle(key, base, value):
            """Put *value* until it is stored for certain; returns the revision that it got."""
            tried = set()
            while True:
                revision = os.urandom(16)
                try:
                    await store.put(key, b"%d" % value, revision=revision, expected=base)
                except StoreUnavailableError:
                    failures["StoreUnavailableError"] += 1
                    await asyncio.sleep(0.01)
                except OutcomeUnknownError:
                    failures["OutcomeUnknownError"] += 1
                    tried.add(revision)
                except RevisionConflictError:
                    while True:
                        try:
                            head = await store.head(key)
                        except StoreUnavailableError:
                            await asyncio.sleep(0.01)
                        else:
                            break
                    assert head in tried, "somebody else wrote: a put that was refused was done all the same"
                    return head
                else:
                    return revision

        writers = [asyncio.create_task(writer(number)) for number in range(WRITERS)]
        killer = asyncio.create_task(assail(server, kill, lambda: sum(acknowledged.values()), proof))
        await asyncio.wait([killer, *writers], return_when=asyncio.FIRST_COMPLETED)
        for task in writers:
            if task.done():
                task.result()
        await killer
        for task in writers:
            task.cancel()
        await asyncio.wait(writers)
        final = {number: int((await store.get(f"k{number}")).data) for number in range(WRITERS)}
    for number, value in final.items():
        assert acknowledged[number] <= value <= acknowledged[number] + 1
    proof.count(acknowledged=sum(acknowledged.values()), of_unknown_outcome=failures["OutcomeUnknownError"])
    assert failures["OutcomeUnknownError"] > 0, "no kill hit a write that was under way"


@both_ways
async def test_live_agents_keep_their_state_and_go_on(server, kill, proof):
    """A call that failed for certain has no effect; one of unknown outcome may have; a reply is for ever."""
    sure, maybe = [0] * WRITERS, [0] * WRITERS
    options = {"store_patience": 30.0, "idle_timeout": None}
    async with InstanceManager(Tally, store=PostgresStore(server.url, timeout=5), **options) as tallies:

        async def caller(number):
            key = f"k{number}"
            while True:
                try:
                    reply = await tallies.call(key, Tally.add, 1)
                except StoreUnavailableError:
                    await asyncio.sleep(0.01)
                except OutcomeUnknownError:
                    maybe[number] += 1
                    await asyncio.sleep(0.01)
                else:
                    sure[number] += 1
                    assert sure[number] <= reply <= sure[number] + maybe[number]

        callers = [asyncio.create_task(caller(number)) for number in range(WRITERS)]
        while min(sure) == 0:
            await asyncio.sleep(0.005)
        await asyncio.wait([killer := asyncio.create_task(assail(server, kill, lambda: sum(sure), proof)), *callers],
                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        for task in callers:
            if task.done():
                task.result()
        await killer
        for task in callers:
            task.cancel()
        await asyncio.wait(callers)
        assert tallies.stats().live == WRITERS
        assert tallies.stats().superseded == 0, "nobody else wrote"
        live = [await again(tallies.call, f"k{number}", Tally.total) for number in range(WRITERS)]
    async with InstanceManager(Tally, store=PostgresStore(server.url)) as tallies:
        stored = [await tallies.call(f"k{number}", Tally.total) for number in range(WRITERS)]
    assert stored == live
    proof.count(acknowledged=sum(sure), of_unknown_outcome=sum(maybe))
    for number in range(WRITERS):
        assert sure[number] <= stored[number] <= sure[number] + maybe[number] + 1  # one was cancelled at the end


async def again(call, *arguments):
    """Repeat a call that is turned away while the outcome of the last write is not known yet."""
    while True:
        try:
            return await call(*arguments)
        except StoreUnavailableError:
            await asyncio.sleep(0.01)


async def test_a_manager_whose_patience_is_short_says_no_and_works_again(server):
    async with InstanceManager(Tally, store=PostgresStore(server.url, timeout=2), store_patience=0.1) as tallies:
        assert await tallies.call("ada", Tally.add, 1) == 1
        server.kill()
        made = 1
        while True:  # the server's own children may outlive it for a moment
            try:
                made = await tallies.call("ada", Tally.add, 1)
            except OverwinterError as error:
                unavailable = isinstance(error, StoreUnavailableError)  # or the connection seemed to be alive
                break
        if unavailable:
            assert await tallies.call("ada", Tally.total) == made
        await asyncio.to_thread(server.start)
        while True:
            try:
                reply = await tallies.call("ada", Tally.add, 1)
            except StoreUnavailableError:  # what has an unknown outcome is settled first
                await asyncio.sleep(0.01)
            else:
                break
        assert reply in ([made + 1] if unavailable else [made + 1, made + 2])
