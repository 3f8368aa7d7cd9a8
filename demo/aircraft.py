"""The agent: one aircraft, and what it did in 2013. And a flight, as it is read from the file and sent."""

from __future__ import annotations

from datetime import datetime

import msgspec

from overwinter import Agent

NA = "NA"


class Flight(msgspec.Struct, frozen=True, array_like=True):
    """One row of the file. ``minutes`` and ``late`` are ``None`` where the file says NA."""

    row: int
    tailnum: str
    hour: str
    minute: int
    carrier: str
    number: int
    origin: str
    destination: str
    minutes: int | None
    late: int | None


def identity(flight: Flight) -> int:
    """A flight in one number: exact, and nine bytes in a record instead of thirty.

    From the lowest bit: hours since 1970 (20 bits), number (16), carrier (two letters: 11), where from (three: 16).
    """
    hour = int(datetime.fromisoformat(flight.hour).timestamp()) // 3600
    if len(flight.carrier) != 2 or len(flight.origin) != 3 or not 0 <= flight.number < 1 << 16:
        raise ValueError(f"row {flight.row}: the identity of this flight does not fit: widen identity()")
    return hour | flight.number << 20 | int(flight.carrier, 36) << 36 | int(flight.origin, 36) << 47


class Aircraft(Agent, name="aircraft"):
    legs: list[int] = []
    in_the_air: int = 0
    unknown: int = 0
    late: int = 0
    last: tuple[str, int, str] = ("", 0, "")

    async def fly(self, flight: Flight) -> None:
        """Count a flight, once: the worker may be told of it again after a crash."""
        flown = identity(flight)
        if flown in self.legs:
            return
        self.legs.append(flown)
        if flight.minutes is None:
            self.unknown += 1
        else:
            self.in_the_air += flight.minutes
            self.last = max(self.last, (flight.hour, flight.minute, flight.destination))
        self.late += flight.late or 0
