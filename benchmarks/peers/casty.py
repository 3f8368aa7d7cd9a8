"""casty: a virtual actor per agent, its state saved to SQLite before it answers. Needs Python 3.12."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .._load import drive, kilobyte, run, scratch, skip_unless
from . import version

skip_unless(sys.version_info >= (3, 12), "casty needs Python 3.12 or newer")

from casty import ActorSystem, Askable, Context, actor  # noqa: E402
from casty.stores import SQL  # noqa: E402

__all__ = ["calls", "durable_calls", "settings"]


def settings() -> str:
    how = 'ActorSystem without a cluster, `ask`; durable="write" on casty.stores.SQL (SQLite), as it comes'
    return f"casty {version('casty')}: {how}"


@dataclass(frozen=True)
class Item:
    id: int
    name: str
    price: float
    qty: int


@dataclass(frozen=True)
class Add(Askable[int]):
    by: int


@dataclass(frozen=True)
class Change(Askable[int]):
    item: int


@actor(initial=0)
async def counter(ctx: Context[int, Add]) -> None:
    async for message in ctx.inbox:
        await ctx.state.set(ctx.state.value + message.by)
        message.reply_to.tell(ctx.state.value)


@actor(initial=tuple(Item(**item) for item in kilobyte()), durable="write")
async def cart(ctx: Context[tuple[Item, ...], Change]) -> None:
    async for message in ctx.inbox:
        items = ctx.state.value
        first = replace(items[0], qty=(items[0].qty + 1) % 100)
        await ctx.state.set((first, *items[1:]))
        message.reply_to.tell(first.qty)


def _steps(system: Any, kind: Any, message: Any, agents: int, callers: int) -> list[Callable[[], Awaitable[object]]]:
    references = [system.ref(kind, f"key-{number}") for number in range(agents)]
    return [partial(references[number % agents].ask, message) for number in range(callers)]


def calls(agents: int, callers: int, seconds: float) -> float:
    async def main() -> float:
        async with ActorSystem() as system:
            return await drive(_steps(system, counter, Add(1), agents, callers), seconds)

    return run(main())


def durable_calls(agents: int, seconds: float) -> float:
    async def main() -> float:
        async with SQL(f"sqlite://{scratch() / 'casty.db'}?mode=rwc") as store, ActorSystem(store=store) as system:
            return await drive(_steps(system, cart, Change(0), agents, agents), seconds)

    return run(main())
