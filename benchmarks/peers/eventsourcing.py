"""eventsourcing: each call triggers an event on an aggregate in memory and saves it: what is stored is the change
alone.
"""

from __future__ import annotations

from uuid import uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from .._load import change, drive_blocking, kilobyte, scratch
from . import version

__all__ = ["durable_calls", "settings"]


def settings() -> str:
    how = "SQLite module, WAL, synchronous=FULL; aggregates stay in memory, blocking calls"
    return f"eventsourcing {version('eventsourcing')}: {how}"


class Cart(Aggregate):
    @event("Created")
    def __init__(self) -> None:
        self.items = kilobyte()

    @event("Changed")
    def change(self, item: int) -> None:
        change(self.items)


def durable_calls(agents: int, seconds: float) -> float:
    path = scratch() / "events.db"
    place = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}
    with Application[type(uuid4())](env=place) as application:
        carts = [Cart() for _ in range(agents)]
        application.save(*carts)

        def step(number: int) -> None:
            carts[number].change(0)
            application.save(carts[number])

        return drive_blocking(step, agents, seconds)
