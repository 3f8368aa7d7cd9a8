"""An agent without a winter: no store, so it ends when it is idle, and the next one starts fresh.

Right for what is cheap to rebuild, short-lived, or must never touch a disk. You still get one agent per key, one call
at a time, calls that raise and change nothing, and an end when nobody needs it.
"""

from __future__ import annotations

import asyncio

from overwinter import Agent, InstanceManager


class Thumbnails(Agent):
    """Remembers what it made for one user, as long as the user is around."""

    made: dict[str, str] = {}

    async def on_start(self, ended: asyncio.Event) -> None:
        self.ended = ended  # set in on_start and not annotated above: transient

    async def on_stop(self) -> None:
        self.ended.set()

    async def thumbnail(self, image: str) -> str:
        if image not in self.made:
            self.made[image] = f"small-{image}"
        return self.made[image]

    async def how_many(self) -> int:
        return len(self.made)


async def main() -> None:
    ended = asyncio.Event()
    async with InstanceManager(Thumbnails, idle_timeout=0.05, context=ended) as workers:
        async with workers.attach("ada") as worker:
            await worker.thumbnail("cat.png")
            await worker.thumbnail("dog.png")
            print("made while attached:", await worker.how_many())

        await ended.wait()  # nobody is attached and nobody calls: it ends
        print("live after idling:", len(workers.keys()))

        # The reference is an address and never goes stale: calling it starts the next life.
        print("made by the next one:", await worker.how_many())


if __name__ == "__main__":
    asyncio.run(main())
