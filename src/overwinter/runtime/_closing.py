"""Closing: finish what runs, store everybody, and name whom that did not work for.

Several registries close together when their agents may call each other: all drain before any closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .._clock import Clock
from ..errors import ClosedError, CloseError
from ._home import all_done
from ._lifecycle import THAWING
from ._registry import Registry
from ._server import AgentServer

__all__ = ["close_lives"]

LAST_LOOK = 0.5  # seconds that the last puts may take beyond the deadline
RETRY_DELAY = 0.05  # seconds before an agent that could not be stored is tried again


async def close_lives(registries: Sequence[Registry[Any]], clock: Clock, deadline: float) -> CloseError | None:
    """End all lives within *deadline* seconds; at half time what runs is rolled back, and what waits never begins."""
    start = clock.monotonic()
    await _drain_all(registries, start + deadline / 2)
    for registry in registries:
        registry.home.winding_up = True
        for server in list(registry.servers.values()):
            for turn in server.running:
                turn.abort(
                    ClosedError(
                        f"{registry.home.kind.name} {server.key!r}: the manager closes and this call took too long; "
                        "it was rolled back"
                    )
                )
    await _drain_all(registries, start + deadline)
    # What is under way may still be told truly: stored, or not. The disk keeps the machine's time, not the clock's.
    puts = {server.ledger.pause() for registry in registries for server in registry.servers.values()} - {None}
    if puts:
        await asyncio.wait([put for put in puts if put is not None], timeout=LAST_LOOK)
    return _give_up(registries)


async def _drain_all(registries: Sequence[Registry[Any]], until: float) -> None:
    in_time = [True]
    while all(in_time) and any(registry.servers or _others(registry) for registry in registries):
        in_time = await asyncio.gather(*(_drain(registry, until) for registry in registries))


async def _drain(registry: Registry[Any], until: float) -> bool:
    """End every life, those that running calls begin meanwhile too; return whether that was done in time."""
    ending: set[str] = set()
    while True:
        for server in list(registry.servers.values()):
            if server.key not in ending and not server.leave_if_clean():
                ending.add(server.key)
                registry.home.spawn(_end(registry, server, partial(ending.discard, server.key)))
        tasks = _others(registry)
        if not tasks:
            return True
        if not await all_done(registry.home.terms.clock, tasks, until):
            return False


def _others(registry: Registry[Any]) -> set[asyncio.Future[Any]]:
    # A task that is done stays in the set until the loop's next pass.
    return {task for task in registry.home.tasks if not task.done() and task is not asyncio.current_task()}


async def _end(registry: Registry[Any], server: AgentServer[Any], done: Callable[[], object]) -> None:
    try:
        await registry.stop(server.key)
    except Exception as error:  # noqa: BLE001  # it is tried again, and named if that does not help
        server.last_error = type(error)
        await registry.home.terms.clock.sleep(RETRY_DELAY)
    finally:
        done()


def _give_up(registries: Sequence[Registry[Any]]) -> CloseError | None:
    """Let go of whatever is left, and say what that is."""
    deleting = [(registry.home.kind.name, key) for registry in registries for key in registry.deleting]
    left = [
        server for registry in registries for server in registry.servers.values() if server.key not in registry.deleting
    ]
    unknown = tuple(server.key for server in left if server.ledger.undecided) + tuple(key for _, key in deleting)
    not_stored = tuple(server.key for server in left if not server.ledger.clean and not server.ledger.undecided)
    abandoned = tuple(server.key for server in left if server.ledger.clean and not server.ledger.undecided)
    for registry in registries:
        why = partial(ClosedError, f"the manager of {registry.home.kind.name} was closed")
        registry.home.closed = True
        for server in registry.servers.values():
            server.ledger.abandon(why)
            server.turns.hold()
            server.turns.evict(why)
            server.passed(why() if server.state is THAWING else None)
        registry.servers.clear()
        if registry.home.idle is not None:
            registry.home.idle.close()
        for task in _others(registry):
            task.cancel()
    named = [(server.home.kind.name, server.key) for server in left] + deleting
    if not named:
        return None
    some = ", ".join(f"{name} {key!r}" for name, key in named[:5])
    return CloseError(
        f"closed, but {len(not_stored)} agents were not stored, {len(unknown)} have an unknown outcome, and "
        f"{len(abandoned)} did not end in time; among them {some}. All their keys are in this error's attributes",
        not_stored=not_stored,
        unknown=unknown,
        abandoned=abandoned,
    )
