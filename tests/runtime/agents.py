"""The agents of these tests."""

from __future__ import annotations

import asyncio
from typing import Any

from overwinter import Agent, on, readonly, transient


class Counter(Agent):
    count: int = 0
    notes: list[str] = []

    async def increment(self, by: int = 1) -> int:
        self.count += by
        return self.count

    async def fail(self, by: int = 1) -> None:
        self.count += by
        self.notes.append("never kept")
        raise ValueError("as asked")

    async def nothing(self) -> int:
        return self.count

    @readonly
    async def read(self) -> int:
        return self.count

    async def wait(self, event: asyncio.Event, by: int = 0) -> int:
        self.count += by
        await event.wait()
        return self.count

    @readonly
    async def watch(self, event: asyncio.Event) -> int:
        await event.wait()
        return self.count

    async def spoil(self, value: Any) -> None:
        self.count = value

    async def mistype(self) -> None:
        self.totl = 5


class Recorder(Agent):
    """Writes down its own life in its context."""

    n: int = 0
    log: list[str] = transient()

    async def on_start(self, log: list[str]) -> None:
        self.log = log
        log.append(f"start {self.key}")

    async def on_stop(self) -> None:
        self.log.append(f"stop {self.key}")

    async def add(self, by: int = 1) -> int:
        self.n += by
        return self.n


class Order(Agent, name="order"):
    order_id: str
    done: list[str] = []

    @on("step.complete")
    async def complete(self, step: str) -> list[str]:
        self.done.append(step)
        return self.done
