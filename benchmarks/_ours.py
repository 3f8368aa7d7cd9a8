"""Ours: the agents that are measured, and what is done with them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from overwinter import Agent, InstanceManager, SQLiteStore
from overwinter.stores import FileStore, Store

from ._load import change, drive, kilobyte, run, scratch, skip_unless

__all__ = ["Cart", "Counter", "Large", "carts", "durable", "open_store"]

NETWORK = {"redis": "RedisStore", "postgres": "PostgresStore", "objects": "ObjectStore"}


class Counter(Agent, name="bench.counter"):
    count: int = 0

    async def add(self, by: int = 1) -> int:
        self.count += by
        return self.count


class Cart(Agent, name="bench.cart"):
    items: list[dict[str, Any]] = []

    async def change(self) -> None:
        change(self.items)


class Large(Agent, name="bench.large"):
    """A megabyte in as many small parts as in a cart."""

    carts: list[list[dict[str, Any]]] = []

    async def change(self) -> None:
        change(self.carts[0])


def open_store(kind: str, place: str = "", options: Mapping[str, Any] | None = None) -> Store:
    """A store on a new folder, or at *place*: a path, or the URL of a server."""
    if kind in ("sqlite", "file"):
        path = place or scratch() / "agents"
        return SQLiteStore(path) if kind == "sqlite" else FileStore(path)
    skip_unless(find_spec(f"overwinter.stores.{kind}") is not None, f"overwinter has no {NETWORK[kind]} yet")
    store: Store = getattr(import_module(f"overwinter.stores.{kind}"), NETWORK[kind])(place, **options or {})
    return store


@contextlib.asynccontextmanager
async def carts(
    store: Store | None, count: int, **options: Any
) -> AsyncGenerator[tuple[InstanceManager[Cart], list[Cart]]]:
    """A manager with so many carts live and stored, and references to them."""
    async with InstanceManager(Cart, store=store, **options) as manager:
        references = [await manager.get(f"key-{number}", initial={"items": kilobyte()}) for number in range(count)]
        yield manager, references


def durable(
    agents: int,
    seconds: float,
    callers: int = 1,
    loop: str = "asyncio",
    store: str = "sqlite",
    place: str = "",
    options: Mapping[str, Any] | None = None,
) -> float:
    """Acknowledged durable calls per second: each agent with so many callers."""

    async def main() -> float:
        async with carts(open_store(store, place, options), agents) as (_, references):
            return await drive([reference.change for reference in references * callers], seconds)

    return run(main(), loop)
