"""What the stores on a network have in common here: a private server, durable calls, and a bare client to beat.

It does not know any server or client in particular.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Awaitable, Callable
from typing import Any

from ._limits import encode
from ._load import change, drive, kilobyte, skip_unless
from ._measure import ROOT, Row, Scale, Task, Team

__all__ = ["Put", "bare_calls", "compare", "server"]

Put = tuple[str, bytes, bytes, bytes]
"""A key, what is written, the new revision and the expected one."""


def server(module: str, name: str) -> Any:
    """The class of a private server, which the tests have, too."""
    path = ROOT / "tests" / f"{module}.py"
    skip_unless(path.exists(), f"tests/{module}.py, which starts the server, is not there")
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


def compare(
    team: Team, scale: Scale, kind: str, place: str, options: dict[str, Any] | None = None, label: str = ""
) -> list[Row]:
    """Durable calls of ours and of the bare client on one server."""
    rows = []
    for agents in scale.pick((1, 32, 256), (4,)):
        arguments = {"agents": agents, "seconds": scale.seconds, "place": place, "options": options or {}}
        tasks = {
            "ours": Task("benchmarks._ours:durable", {**arguments, "store": kind}),
            "limit": Task(f"benchmarks.{kind}:bare", arguments),
        }
        what = f"{agents} agent{'s' * (agents > 1)}{label}"
        rows.append(team.compare(what, "calls/s", tasks).want(0.5))
    return rows


async def bare_calls(agents: int, seconds: float, prefix: str, send: Callable[[list[Put]], Awaitable[None]]) -> float:
    """Durable calls per second of a bare client: what waits travels together, one lot after the other."""
    waiting: list[tuple[Put, asyncio.Future[None]]] = []
    rings = asyncio.Event()

    async def travel() -> None:
        while True:
            await rings.wait()
            rings.clear()
            while waiting:
                batch = waiting.copy()
                waiting.clear()
                await send([put for put, _ in batch])
                for _, future in batch:
                    future.set_result(None)

    def caller(key: str) -> Callable[[], Awaitable[object]]:
        items, known = kilobyte(), b""

        async def step() -> None:
            nonlocal known
            change(items)
            expected, known = known, os.urandom(16)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting.append(((key, encode({"items": items}), known, expected), future))
            rings.set()
            await future

        return step

    traveller = asyncio.create_task(travel())
    race = asyncio.create_task(drive([caller(f"{prefix}{number}") for number in range(agents)], seconds))
    await asyncio.wait([traveller, race], return_when=asyncio.FIRST_COMPLETED)
    if not race.done():
        race.cancel()
        await traveller  # raises what it failed with
    traveller.cancel()
    return race.result()
