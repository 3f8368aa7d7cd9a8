"""What goes on in a store before the power is lost, and what is read of it later; all that is told goes into a log.

("try", key, what) stands before a change was asked for, ("acknowledged", …) where it was told that it is done,
("refused", …) that it is not, ("seen", …) what is there, and ("found", …) what was there at first.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

from recorders import Log

from overwinter import Agent, InstanceManager, readonly
from overwinter.errors import OutcomeUnknownError, StoreUnavailableError
from overwinter.stores import Expect, Store, Stored
from overwinter.stores._file_frame import name_of

__all__ = ["FOLDERS", "KEYS", "call_agents", "look_at_agents", "read_store", "use_store"]

FOLDERS = ["00", "01", "02"]  # of 256, so that several files share a flush
KEYS = list(itertools.islice((key for key in map(str, range(10_000)) if name_of(key)[:2] in FOLDERS), 6))
SIZES = (10, 700, 5000, 70_000)


async def use_store(store: Store, log: Log, chance: random.Random, rounds: int) -> None:
    """Create, change, read and delete, several at a time; note what is tried and what is told."""
    async with store:
        base = await _read(store)
        log += [("found", key, what) for key, what in base.items()]

        async def change(key: str) -> None:
            old, new = base[key], None
            if old is None or chance.random() < 0.8:
                new = Stored(chance.randbytes(chance.choice(SIZES)), chance.randbytes(16))
            expected = Expect.ABSENT if old is None else old.revision
            log.append(("try", key, new))
            try:
                if new is None:
                    await store.delete(key, expected=expected)
                else:
                    await store.put(key, new.data, revision=new.revision, expected=expected)
            except StoreUnavailableError:
                log.append(("refused", key, new))
            except OutcomeUnknownError:
                base[key] = await store.get(key)
                log.append(("seen", key, base[key]))
            else:
                log.append(("acknowledged", key, new))
                base[key] = new

        async def look(key: str) -> None:
            log.append(("seen", key, await store.get(key)))

        for _ in range(rounds):
            keys = chance.sample(KEYS, chance.randint(1, len(KEYS)))
            await asyncio.gather(*map(change, keys), look(chance.choice(KEYS)))


async def read_store(store: Store) -> dict[str, Any]:
    """Open a store for a look."""
    async with store:
        return await _read(store)


async def _read(store: Store) -> dict[str, Stored | None]:
    found = dict(zip(KEYS, await asyncio.gather(*map(store.get, KEYS)), strict=True))
    listed = {key async for key in store.keys()}  # noqa: SIM118  # a store is no dictionary
    assert listed == {key for key in KEYS if found[key] is not None}, "listed wrongly"
    return found


class Complaint(Exception):
    """Says how far an agent has counted."""


class Tally(Agent, name="tally"):
    pages: list[bytes] = []
    count: int = 0
    heard: dict[str, int] = {}

    async def on_start(self, context: dict[str, Any]) -> None:
        self.tallies: InstanceManager[Tally] = context["tallies"]

    def _grow(self, size: int) -> int:
        self.pages.append(bytes(size))
        self.count += 1
        self.tallies.tell(KEYS[KEYS.index(self.key) - 1], Tally.hear, self.key, self.count)
        return self.count

    async def grow(self, size: int) -> int:
        return self._grow(size)

    async def grow_twice(self, size: int) -> AsyncIterator[int]:
        yield self._grow(size)
        yield self._grow(size)

    async def hear(self, key: str, count: int) -> None:
        self.heard[key] = max(count, self.heard.get(key, 0))

    @readonly
    async def read(self) -> int:
        return self.count

    async def complain(self) -> None:
        raise Complaint(self.count)


async def call_agents(store: Store, log: Log, chance: random.Random, rounds: int, durability: str = "call") -> None:
    """Count in several calls at a time; what replies, items of streams and exceptions say is told."""
    context: dict[str, Any] = {}
    options = {"durability": durability, "context": context, "key_fn": same}
    async with InstanceManager(Tally, store=store, **options) as tallies:
        context["tallies"] = tallies
        tried = {}
        for key, count in (await _states(tallies)).items():
            log.append(("found", key, count))
            tried[key] = itertools.count(count + 1)

        async def grow(key: str) -> None:
            log.append(("try", key, next(tried[key])))
            log.append(("seen", key, await tallies.call(key, Tally.grow, chance.choice((10, 700)))))

        async def grow_twice(key: str) -> None:
            log.extend(("try", key, next(tried[key])) for _ in range(2))
            async for count in tallies.call(key, Tally.grow_twice, 10):
                log.append(("seen", key, count))

        async def look(key: str) -> None:
            log.append(("seen", key, await tallies.call(key, Tally.read)))

        async def complain(key: str) -> None:
            try:
                await tallies.call(key, Tally.complain)
            except Complaint as complaint:
                log.append(("seen", key, complaint.args[0]))

        for _ in range(rounds):
            ways = chance.choices((grow, grow, grow_twice, look, complain), k=9)
            await asyncio.gather(*(way(chance.choice(KEYS)) for way in ways))


async def look_at_agents(store: Store) -> dict[str, Any]:
    """Open a store, and thaw its agents for a look."""
    async with InstanceManager(Tally, store=store, context={"tallies": None}, key_fn=same) as tallies:
        return await _states(tallies)


async def _states(tallies: InstanceManager[Tally]) -> dict[str, int]:
    agents = dict(zip(KEYS, await asyncio.gather(*map(tallies.state, KEYS)), strict=True))
    for agent in agents.values():
        assert len(agent.pages) == agent.count, "half a change"
        assert all(agents[key].count >= count for key, count in agent.heard.items()), "told others too early"
    return {key: agent.count for key, agent in agents.items()}


def same(_: str, key: str) -> str:
    return key
