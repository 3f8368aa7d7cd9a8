"""A process of its own for the tests beside it: run as ``python worker.py ROLE OPTIONS``, OPTIONS being JSON.

It says what happens on stdout, a line each, and takes orders from stdin. It listens to nothing else.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import signal
import sys
from typing import Any

from overwinter import Agent, InstanceManager, OverwinterError, SQLiteStore, readonly
from overwinter.errors import StoreInUseError, SupersededError
from overwinter.stores import from_url

__all__ = ["Counter"]


class Counter(Agent, name="counter"):
    count: int = 0
    freight: list[bytes] = []

    async def increment(self, by: int = 1) -> int:
        self.count += by
        return self.count

    async def grow(self, size: int) -> int:
        self.freight.append(os.urandom(size))
        self.count += 1
        return self.count

    @readonly
    async def read(self) -> int:
        return self.count

    async def crash(self, how: str) -> None:
        self.count += 1000
        if how == "raise":
            raise ValueError("as asked")
        os.kill(os.getpid(), signal.SIGKILL)


def say(*words: object) -> None:
    # One write for each line: what was said before a SIGKILL has reached the pipe, whole.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def order() -> str:
    """The next line from the parent, who may also just leave."""
    line = await asyncio.to_thread(sys.stdin.readline)
    if not line:
        os._exit(3)
    return line.strip()


def manager(path: str, **options: Any) -> InstanceManager[Counter]:
    store = from_url(path) if "://" in path else SQLiteStore(path)
    return InstanceManager(Counter, store=store, **options)


async def count(
    path: str,
    *,
    keys: int,
    calls: int | None,
    at_once: int,
    seed: int,
    wait: bool = True,
    loud: bool = True,
    **options: Any,
) -> None:
    """Make *calls* increments (``None``: for ever), *at_once* at a time, over *keys* agents."""
    seen: collections.Counter[str] = collections.Counter()
    chance = random.Random(seed)
    left = iter(range(calls) if calls is not None else iter(int, 1))
    async with manager(path, **options) as counters:
        say("ready")
        if wait:
            await order()

        async def lane() -> None:
            for _ in left:
                key = f"k{chance.randrange(keys)}"
                try:
                    value = await counters.call(key, Counter.increment)
                except SupersededError:
                    seen["superseded"] += 1
                except OverwinterError as error:
                    seen[type(error).__name__] += 1
                else:
                    seen["acknowledged"] += 1
                    if loud:
                        say("ack", key, value)
                    await asyncio.sleep(0)  # a call that waits for no store never lets the loop go on

        async with asyncio.TaskGroup() as lanes:
            for _ in range(at_once):
                lanes.create_task(lane())
        seen["dropped copies"] = counters.stats().superseded
    say("done", json.dumps(seen))


async def hold(path: str, **options: Any) -> None:
    """Own the agents, and increment one for each line on stdin."""
    try:
        async with manager(path, **options) as counters:
            say("ready")
            while await order() != "end":
                say("ack ada", await counters.call("ada", Counter.increment))
    except StoreInUseError as error:
        say("refused", error)
    else:
        say("ended")


async def die_in_a_call(path: str) -> None:
    """Thaw an agent, and die in the middle of its method."""
    async with manager(path) as counters:
        say("thawed", await counters.call("ada", Counter.read))
        await counters.call("ada", Counter.crash, "die")


async def leave(path: str, *, how: str) -> None:
    """End the interpreter without closing anything."""
    counters = manager(path)
    await counters.open()
    async with asyncio.TaskGroup() as calls:
        for i in range(20):
            calls.create_task(counters.call(f"k{i}", Counter.increment))
    say("acknowledged 20")
    background = [asyncio.create_task(counters.call(f"k{i}", Counter.increment)) for i in range(20)]
    await asyncio.sleep(0)
    say("in flight", len(background))
    if how == "raise":
        raise ValueError("as asked")
    if how == "exit":
        sys.exit(5)


ROLES = {"count": count, "hold": hold, "die_in_a_call": die_in_a_call, "leave": leave}

if __name__ == "__main__":
    asyncio.run(ROLES[sys.argv[1]](**json.loads(sys.argv[2])))
