"""Managers on Redis, PostgreSQL and S3 behind a network that is slow, silent or cut, under eight callers.

Nothing acknowledged is lost and nothing doubled, each call ends in time, and afterwards the store works by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time

import pytest
from clients import Register, agent_client, content, make_store, store_client
from histories import AGENT, STORE, Recorder, check, read
from places import NETWORK, behind_a_proxy

from overwinter import InstanceManager
from overwinter.errors import OverwinterError
from overwinter.stores import Expect

CALLERS = 8
SILENCE = 0.15
"""Seconds after which the store gives up a server that says nothing."""
CONNECTIONS = {"redis": 4, "valkey": 4, "postgres": 8, "s3": 40}
"""That a store has at most, with those on their way out."""

behind = pytest.mark.parametrize("place", NETWORK, indirect=True)


async def latency(proxy, dice, answered):
    proxy.delay = 0.002
    await answered(CALLERS)
    proxy.delay = 0


async def cuts(proxy, dice, answered):
    for _ in range(5):
        await answered(dice.randrange(1, CALLERS))
        while not proxy.links:
            await asyncio.sleep(0.001)
        await proxy.cut()


async def lost_replies(proxy, dice, answered):
    for _ in range(5):
        await answered(dice.randrange(1, CALLERS))
        before = proxy.lost
        proxy.lose_replies(2)
        while proxy.lost < before + 2:
            await asyncio.sleep(0.001)


async def half_open(proxy, dice, answered):
    """Silent for longer than the store's time-out; then what was held arrives, late."""
    await answered(dice.randrange(1, CALLERS))
    proxy.hang()
    await asyncio.sleep(2 * SILENCE)
    proxy.flow()


async def silent_then_cut(proxy, dice, answered):
    await answered(dice.randrange(1, CALLERS))
    proxy.hang()
    await asyncio.sleep(2 * SILENCE)
    await proxy.cut()
    proxy.flow()


async def refusal_for_a_while(proxy, dice, answered):
    for _ in range(2):
        await answered(dice.randrange(1, CALLERS))
        await proxy.refuse()
        await asyncio.sleep(0.02)
        await proxy.accept()


TROUBLES = [latency, cuts, lost_replies, half_open, silent_then_cut, refusal_for_a_while]


class Progress:
    """How many calls were answered, and the longest that one took."""

    def __init__(self):
        self.replies, self.longest, self.over = 0, 0.0, False

    async def answered(self, more):
        wanted = self.replies + more
        while self.replies < wanted:
            await asyncio.sleep(0.001)

    def enough(self, done):
        return self.over and done >= 5


class Timed(Recorder):
    """Also knows how long each operation took."""

    def __init__(self, path, progress):
        super().__init__(path)
        self.progress, self.began = progress, {}

    def call(self, key, *what):
        number = super().call(key, *what)
        self.began[number] = time.monotonic()
        return number

    def back(self, number, outcome, seen=None):
        super().back(number, outcome, seen)
        self.progress.replies += outcome == "done"
        self.progress.longest = max(self.progress.longest, time.monotonic() - self.began[number])


@behind
@pytest.mark.parametrize("level", ["store", "agents"])
async def test_whatever_the_network_does_what_callers_were_told_is_so(place, level, tmp_path, proof):
    rounds = proof.size(1, 20)
    async with behind_a_proxy(place) as place:
        store = make_store(place.url, 10, place.options)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(store)
            options = {"store": store, "shared": True, "superseded": "retry", "store_patience": 5}
            if level == "agents":
                registers = await stack.enter_async_context(InstanceManager(Register, **options))
            for number in range(rounds):
                for trouble in TROUBLES:
                    name = f"{trouble.__name__}-{number}"
                    progress, dice = Progress(), proof.chance(place.kind, level, name)
                    recorder, keys, known = Timed(tmp_path / name, progress), [f"{name}:a", f"{name}:b"], {}
                    store.timeout = SILENCE if trouble in (half_open, silent_then_cut) else 10

                    async def client(mine, recorder=recorder, keys=keys, known=known, progress=progress):
                        if level == "agents":
                            await agent_client(registers, recorder, keys, progress.enough, mine)
                        else:
                            await store_client(store, recorder, keys, known, progress.enough, mine)

                    async with asyncio.TaskGroup() as callers:
                        for _ in range(CALLERS):
                            callers.create_task(client(random.Random(dice.random())))
                        await trouble(place.proxy, dice, progress.answered)
                        store.timeout = 10
                        progress.over = True
                    recorder.close()
                    check(read([tmp_path / name], tombstones=True), AGENT if level == "agents" else STORE)
                    assert progress.longest < 30, "a call was not ended by its deadline"
                    assert place.proxy.links <= CONNECTIONS[place.kind], "connections leak"
                    proof.count(troubles=1, operations=progress.replies)
        while place.proxy.links:
            await asyncio.sleep(0.001)


@behind
async def test_a_reply_reaches_only_its_caller_on_a_network_that_fails_at_random(place, proof):
    """Each key's data names it; half of the readers leave, and connections are cut under all of them."""
    dice = proof.chance(place.kind)
    async with behind_a_proxy(place) as place, make_store(place.url, 5, place.options) as store:
        keys = [f"k{number}" for number in range(20)]
        for key in keys:
            revision = os.urandom(16)
            await store.put(key, content(key, revision.hex()), revision=revision, expected=Expect.ABSENT)

        async def look(key):
            with contextlib.suppress(OverwinterError):
                stored = await store.get(key)
                assert stored is not None, "what was acknowledged is gone"
                assert stored.data == content(key, stored.revision.hex()), "another's reply"
                return True

        seen = 0
        for number in range(proof.size(40, 1000)):
            readers = [asyncio.create_task(look(dice.choice(keys))) for _ in range(CALLERS)]
            for reader in readers[::2]:
                for _ in range(dice.randrange(6)):
                    await asyncio.sleep(0)
                reader.cancel()
            if number % 4 == 0:
                await place.proxy.cut()
            for outcome in await asyncio.gather(*readers, return_exceptions=True):
                assert outcome in (None, True) or isinstance(outcome, asyncio.CancelledError), outcome
                seen += outcome is True
        for key in keys:
            while not await look(key):
                await asyncio.sleep(0.001)
        proof.count(read=seen)
        assert seen
