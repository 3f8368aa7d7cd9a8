"""Two processes on one store, one of them stopped past its time-outs and then continued: the stale one is fenced."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import time
from collections import Counter

import pytest
from clients import Register, make_store
from histories import AGENT
from linearizable import Operation, refusal
from places import LOCAL

from overwinter import InstanceManager
from overwinter.errors import RevisionConflictError
from overwinter.stores import Expect, Stored

A_PUT = {"s3": 0.02, "postgres": 0.004, "redis": 0.002, "valkey": 0.002}
"""Seconds that a put takes, about, in which the stop comes; 0.001 on disk."""


class Stops:
    """Gives orders to a racer, and stops it before, while or after it follows them."""

    def __init__(self, place, dice, timeout):
        self.place, self.dice, self.timeout, self.held = place, dice, timeout, 0

    async def overtake(self, number, order, taken, ours):
        """Have *ours* done while the other is stopped; return its outcome, and what the other says then.

        Where processes meet at a lock that the other holds, ours is done only after it went on.
        """
        if number % 5 == 0:
            os.kill(self.racer.pid, signal.SIGSTOP)
        self.racer.say(order)
        told = asyncio.create_task(asyncio.to_thread(self.racer.line))
        if number % 5 == 1:
            while not told.done() and not await taken():
                await asyncio.sleep(0)
        else:
            time.sleep(self.dice.random() * A_PUT.get(self.place.kind, 0.001))  # not ours to run: a head start
        os.kill(self.racer.pid, signal.SIGSTOP)
        doing = asyncio.ensure_future(ours)
        await asyncio.wait([doing], timeout=self.timeout if self.place.kind in LOCAL else 5)
        await asyncio.sleep(1.2 * self.timeout if number % 4 else 0)  # past its time-outs, or it may still be in time
        os.kill(self.racer.pid, signal.SIGCONT)
        return await doing, await told

    async def overtake_held(self, order, ours):
        """Have *ours* done in the middle of the other's turn, which is surely too late then."""
        self.racer.say(order)
        said = await asyncio.to_thread(self.racer.line)
        if said != "began":  # a store on disk keeps its short time-out, and did not answer within it
            assert self.place.kind in LOCAL, said
            ours.close()
            return said
        self.held += 1
        os.kill(self.racer.pid, signal.SIGSTOP)
        await ours
        await asyncio.sleep(1.2 * self.timeout)
        os.kill(self.racer.pid, signal.SIGCONT)
        self.racer.say("go on")
        while (said := await asyncio.to_thread(self.racer.line)) == "began":  # again
            self.racer.say("go on")
        return said


async def put(store, key, expected):
    new = os.urandom(16)
    try:
        await store.put(key, b"parent", revision=new, expected=expected)
    except RevisionConflictError:
        return None
    return new


async def prepare(store, key, kind):
    """What a race is for: a create, a change, or a create over what a delete left."""
    if kind == 0:
        return Expect.ABSENT
    base = await put(store, key, Expect.ABSENT)
    if kind == 1:
        return base
    await store.delete(key, expected=base)
    return Expect.ABSENT


async def test_of_two_processes_one_of_them_stopped_past_its_timeouts_one_wins_each_revision(place, worker, proof):
    """Sometimes the other is stopped before it puts, sometimes after, mostly in between."""
    races, wins = proof.size(100, 500), {"ours": 0, "theirs": 0}
    common = {"url": place.url, "options": place.options}
    stops = Stops(place, proof.chance(place.kind), 0.03 if place.kind == "s3" else 0.01)
    racer = stops.racer = worker("revisions", program="racer.py", timeout=stops.timeout, **common)
    racer.expect("ready")
    async with make_store(timeout=10, **common) as store:
        for race in range(races):
            key, base = f"k{race}", await prepare(store, f"k{race}", race % 3)
            before = None if base is Expect.ABSENT else base

            async def taken(key=key, before=before):
                return await store.head(key) != before

            order = f"{key} {'absent' if before is None else before.hex()}"
            ours, said = await stops.overtake(race, order, taken, put(store, key, base))
            assert said is not None, racer.errors
            assert (said == "lost") == (ours is not None), f"race {race}: {said}, and we {ours!r}"
            revision = ours or bytes.fromhex(said.removeprefix("won "))
            assert await store.get(key) == Stored(b"parent" if ours else b"child", revision)
            wins["theirs" if ours is None else "ours"] += 1
    racer.say()
    assert racer.ended() == 0, racer.errors
    proof.count(races=races, won_by_the_one_that_was_stopped=wins["theirs"])
    assert min(wins.values()) >= races // 5, wins


@pytest.mark.parametrize("superseded", ["raise", "retry"])
async def test_an_owner_stopped_past_its_timeouts_says_nothing_that_is_not_so(place, superseded, worker, proof):
    """Two managers of one agent: what callers of both were told fits one order, and the stale one's copy is dropped."""
    races, outcomes = proof.size(25, 250), Counter()
    common = {"url": place.url, "options": place.options}
    stops = Stops(place, proof.chance(place.kind), 0.06 if place.kind in LOCAL else 0.03)
    racer = stops.racer = worker("agent", program="racer.py", timeout=stops.timeout, superseded=superseded, **common)
    racer.expect("ready")
    history = []

    async def ours(verb, *arguments):
        began = time.monotonic_ns()
        seen = await registers.call("key", getattr(Register, verb), *arguments)
        history.append(Operation(began, time.monotonic_ns(), (verb, *arguments, "done", tuple(seen))))
        return seen

    store = make_store(timeout=10, **common)
    async with InstanceManager(Register, store=store, shared=True, superseded="retry") as registers:
        for race in range(races):

            async def taken(value=f"c{race}"):
                return (await registers.call("key", Register.read))[0] == value

            began = time.monotonic_ns()
            if race % 5 == 2:
                said = await stops.overtake_held(f"swap_held key c{race}", ours("swap", f"p{race}"))
                assert superseded == "retry" or not said.startswith("reply"), "a stale owner wrote"
            else:
                _, said = await stops.overtake(race, f"swap key c{race}", taken, ours("swap", f"p{race}"))
            assert said is not None, racer.errors
            outcomes[said.split()[0]] += 1
            if said.startswith("reply"):
                seen = tuple(json.loads(said.removeprefix("reply")))
                history.append(Operation(began, time.monotonic_ns(), ("swap", f"c{race}", "done", seen)))
            elif said == "OutcomeUnknownError":
                history.append(Operation(began, math.inf, ("swap", f"c{race}", "unknown", None)))
            else:
                assert said in ("SupersededError", "StoreUnavailableError", "ThawError")
            await ours("read")
    racer.say()
    assert racer.ended() == 0, racer.errors
    assert refusal(history, *AGENT) is None
    words = {name: "replies" if name == "reply" else f"{name}s" for name in outcomes}
    proof.count(races=races, surely_stale=stops.held, **{words[name]: number for name, number in outcomes.items()})
    assert outcomes["reply"], outcomes
    assert stops.held, outcomes
