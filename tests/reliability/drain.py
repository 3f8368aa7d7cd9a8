"""A service with many agents that are not stored yet: run as ``python drain.py serve OPTIONS``, OPTIONS being JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from worker import say

import overwinter
from overwinter import Agent, InstanceManager
from overwinter.stores import from_url

__all__ = ["Hoard"]


class Hoard(Agent, name="hoard"):
    rounds: int = 0
    freight: bytes = b""

    async def take(self, size: int) -> int:
        self.rounds += 1
        self.freight = os.urandom(size)
        return self.rounds


async def serve(url: str, agents: int, saved: int, size: int, deadline: float) -> None:
    """Make *agents* agents dirty, *saved* of them on top of a version that is stored; then wait to be told to end."""
    keys = [f"k{i}" for i in range(agents)]
    async with InstanceManager(Hoard, store=from_url(url), durability="hibernate", store_patience=0.5) as hoards:
        await asyncio.gather(*(hoards.call(key, Hoard.take, 10) for key in keys))
        await asyncio.gather(*map(hoards.save, keys[:saved]))
        say("saved", saved)
        for key in keys[:saved]:
            await hoards.call(key, Hoard.take, size)
        say("dirty", hoards.stats().dirty)
        try:
            await asyncio.Event().wait()
        finally:
            await hoards.close(deadline)


if __name__ == "__main__":
    overwinter.run({"serve": serve}[sys.argv[1]](**json.loads(sys.argv[2])))
