"""A Redis that is killed under load, again and again."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

import pytest
from servers import Redis, Valkey

from overwinter import Agent, InstanceManager
from overwinter.errors import OutcomeUnknownError, RevisionConflictError, StoreUnavailableError
from overwinter.stores import Durability, Expect
from overwinter.stores.redis import RedisStore

WRITERS = 32
BETWEEN = 400
"""Acknowledged writes between two kills."""


@dataclass
class Load:
    """What the writers did, and when the next kill is due."""

    kills: int
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    resolved: int = 0
    over: bool = False
    due: asyncio.Event = field(default_factory=asyncio.Event)

    def one_more(self) -> None:
        self.acknowledged += 1
        if self.acknowledged % BETWEEN == 0:
            self.due.set()


async def kill_and_start(server: Valkey, load: Load) -> None:
    """Kill the server whenever so much was acknowledged, while writes are on their way."""
    for _ in range(load.kills):
        load.due.clear()
        await load.due.wait()
        server.kill()
        await asyncio.to_thread(server.start)
    load.due.clear()
    await load.due.wait()
    load.over = True


async def count_up(store: RedisStore, key: str, load: Load) -> int:
    """Count in one record until it is over; return what is acknowledged."""
    value, revision = 0, None
    attempted: dict[bytes, bytes] = {}
    while not load.over:
        new, data = os.urandom(16), b"%d" % (value + 1)
        try:
            await store.put(key, data, revision=new, expected=revision or Expect.ABSENT)
        except StoreUnavailableError:
            load.refused += 1
            await asyncio.sleep(0.005)  # the server is away
            continue
        except OutcomeUnknownError:
            load.unknown += 1
            attempted[new] = data
            continue
        except RevisionConflictError:
            try:
                found = await store.get(key)
            except StoreUnavailableError:
                continue
            assert found is not None, "what was acknowledged is gone"
            assert found.data == attempted[found.revision], "nobody else writes here"
            load.resolved += 1
            new = found.revision
        value, revision = value + 1, new
        attempted.clear()
        load.one_more()
    return value


@pytest.mark.parametrize("kind", [Valkey, Redis])
async def test_a_server_killed_under_32_writers_loses_nothing_and_doubles_nothing(kind, proof):
    load = Load(proof.size(10, 200))
    with kind() as server:
        async with RedisStore(server.url) as store:
            assert store.durability is Durability.HOST
            killer = asyncio.create_task(kill_and_start(server, load))
            values = await asyncio.gather(*(count_up(store, f"key {number}", load) for number in range(WRITERS)))
            await killer
            for number, value in enumerate(values):
                stored = await store.get(f"key {number}")
                assert stored is not None
                assert int(stored.data) == value, "each acknowledged step is there, once"
    assert sum(values) == load.acknowledged
    proof.count(kills=load.kills, acknowledged=load.acknowledged, of_unknown_outcome=load.unknown)
    assert load.unknown > load.kills, "the kills did not hit writes on their way"


class Counter(Agent):
    count: int = 0

    async def on_start(self) -> None:
        LIVES.append(self.key)

    async def increment(self) -> int:
        self.count += 1
        return self.count


LIVES: list[str] = []


@pytest.mark.parametrize("kind", [Valkey, Redis])
async def test_live_agents_keep_their_state_through_kills_and_go_on_by_themselves(kind, proof):
    load = Load(proof.size(10, 200))
    LIVES.clear()

    async def call(counters: InstanceManager[Counter], key: str) -> int:
        value = 0
        while not load.over:
            assert await counters.call(key, Counter.increment) == value + 1, "a reply without its change, or twice"
            value += 1
            load.one_more()
        return value

    with kind() as server:
        async with InstanceManager(Counter, store=RedisStore(server.url), store_patience=30) as counters:
            killer = asyncio.create_task(kill_and_start(server, load))
            keys = [f"agent {number}" for number in range(WRITERS)]
            values = await asyncio.gather(*(call(counters, key) for key in keys))
            await killer
            assert sorted(LIVES) == sorted(keys), "an agent started anew"
            assert [(await counters.state(key)).count for key in keys] == values
        async with InstanceManager(Counter, store=RedisStore(server.url, expect_existing=True)) as counters:
            assert [(await counters.state(key)).count for key in keys] == values
    proof.count(kills=load.kills, acknowledged=load.acknowledged)
