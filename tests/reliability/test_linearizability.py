"""Eight clients in two processes, and trouble: what they were told fits into one order of all operations.

Of stores, and of agents under ``durability="call"``, whose callers may conclude what semantics say: a reply, it
happened; ``StoreUnavailableError``, ``SupersededError`` or the agent's own exception, it did not;
``OutcomeUnknownError``, perhaps.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter

from histories import AGENT, STORE, check, count, read
from places import behind_a_proxy, restart

CLIENTS = 4
"""In each of two processes."""
KEYS = 4
"""Of a round: few enough to meet there; and a new round has new ones, so that no history is long."""
SLOWER = 10
"""What stands for S3, moto in this process, takes so much longer that it gets so much less to do."""
BYTES = 120
"""That an operation takes in a history, about."""


def troubles(place):
    """What may befall a round: one of the two processes is killed, or the server, or the network fails."""
    if place.proxy is None:
        return ["clients killed"]
    return ["clients killed", "networks cut", "replies lost", "restarts" if place.server else "refusals"]


async def trouble(what, place, pid):
    if what == "clients killed":
        os.kill(pid, signal.SIGKILL)
    elif what == "networks cut":
        assert place.proxy.links
        await place.proxy.cut()
    elif what == "replies lost":
        before = place.proxy.lost
        place.proxy.lose_replies(2)
        while place.proxy.lost < before + 2:
            await asyncio.sleep(0.001)
    elif what == "restarts":
        await restart(place.server)
    else:
        await place.proxy.refuse()
        await asyncio.sleep(0.02)
        await place.proxy.accept()


class Rounds:
    """Rounds of two processes with clients; in each of them something goes wrong in the middle."""

    def __init__(self, worker, role, place, folder, proof, each):
        self.place, self.folder, self.proof, self.dice = place, folder, proof, proof.chance(role, place.kind)
        self.each = each // 4 if place.kind == "s3" else each
        common = {"url": place.url, "options": place.options, "timeout": 5.0, "clients": CLIENTS}
        self.templates = [worker(role, program="clients.py", **common) for _ in range(2)]
        self.outcomes = Counter()
        self.number = 0

    async def run(self, model, *, stale_reads=False, **options):
        keys = [f"r{self.number}:{key}" for key in range(KEYS)]
        paths = [self.folder / f"{self.number}-{process}" for process in range(2)]
        over = self.folder / f"{self.number}-over"
        for process, (template, path) in enumerate(zip(self.templates, paths, strict=True)):
            seed = f"{self.proof.seed} {self.number} {process}"
            order = {
                "path": str(path),
                "keys": keys,
                "operations": self.each,
                "until": str(over),
                "seed": seed,
                **options,
            }
            template.say(json.dumps(order))
        pids = [int(await self.hear(template, "began")) for template in self.templates]
        what = troubles(self.place)[self.number % len(troubles(self.place))]
        ended = [asyncio.create_task(self.hear(template, "ended")) for template in self.templates]
        victim = self.dice.randrange(2)
        size = self.dice.uniform(0.05, 0.6) * CLIENTS * self.each * BYTES
        while not all(path.exists() for path in paths) or paths[victim].stat().st_size < size:
            assert not any(task.done() for task in ended), [template.errors for template in self.templates]
            await asyncio.sleep(0.001)
        await trouble(what, self.place, pids[victim])
        over.touch()
        status = [int(await task) for task in ended]
        wanted = [0, 0]
        if what == "clients killed":
            wanted[victim] = -signal.SIGKILL
        assert status == wanted, (what, [template.errors for template in self.templates])
        histories = read(paths, stale_reads=stale_reads, tombstones=self.place.proxy is not None)
        try:
            check(histories, model)
        except AssertionError as error:
            raise AssertionError(f"round {self.number}, {what}, {options}: {error}") from None
        for history in histories.values():
            self.outcomes += count(history)
        for path in (*paths, over):
            path.unlink()
        self.proof.count(**{what.replace(" ", "_"): 1})
        self.number += 1

    async def hear(self, template, word):
        return await asyncio.to_thread(template.expect, word)


def size(proof, place, run, long):
    return proof.size(run, long) // (SLOWER if place.kind == "s3" else 1)


async def test_eight_clients_of_a_store_in_two_processes(place, worker, tmp_path, proof):
    async with behind_a_proxy(place) as place:
        rounds = Rounds(worker, "store", place, tmp_path, proof, each=125)
        while rounds.outcomes.total() < size(proof, place, 10_000, 100_000):
            await rounds.run(STORE)
    seen = rounds.outcomes
    proof.count(operations=seen.total(), conflicts=seen["conflict"], of_unknown_outcome=seen["unknown"])
    assert seen["conflict"] > seen.total() / 50, "they did not meet"
    assert seen["unknown"] > rounds.number / 2, "nothing was disturbed"


async def test_eight_callers_of_agents_that_two_processes_share(place, worker, tmp_path, proof):
    """Managers of stores on the network may do without ``shared=True``: then their reads may be stale."""
    async with behind_a_proxy(place) as place:
        rounds = Rounds(worker, "agents", place, tmp_path, proof, each=50)
        while rounds.outcomes.total() < size(proof, place, 2_000, 20_000):
            shared = place.proxy is None or rounds.dice.random() < 0.7
            superseded = rounds.dice.choice(("retry", "raise"))
            await rounds.run(AGENT, stale_reads=not shared, shared=shared, superseded=superseded)
    proof.count(operations=rounds.outcomes.total(), of_unknown_outcome=rounds.outcomes["unknown"])
    assert rounds.outcomes["unknown"] > rounds.number / 2, "nothing was disturbed"
