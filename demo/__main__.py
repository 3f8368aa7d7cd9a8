"""The parent: sends every flight to the worker, logs each acknowledgement, kills the worker, and looks what is left."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import msgspec
from tqdm import tqdm

from demo.aircraft import Aircraft, Flight, identity
from demo.flights import Expected, Year, read, recompute
from overwinter import Persistence
from overwinter.stores import from_url

KILLS = 6
WINDOW = 512  # calls in flight
CHUNK = 64  # flights per write
URLS = {"sqlite": "sqlite:///{}/fleet.db", "file": "file://{}/fleet"}


class Worker:
    """The child process and its two pipes."""

    def __init__(self, url: str, durability: str) -> None:
        command = [sys.executable, "-m", "demo.worker", url, durability]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._rest = b""

    @property
    def pipe(self) -> BinaryIO:
        assert self.process.stdin is not None
        return self.process.stdin  # type: ignore[return-value]  # typeshed: IO[bytes], which unbuffered is a raw file

    def send(self, flights: list[Flight]) -> None:
        text = memoryview(b"".join(msgspec.json.encode(flight) + b"\n" for flight in flights))
        while text:
            try:
                text = text[self.pipe.write(text) :]
            except BrokenPipeError:
                raise SystemExit(f"the worker ended by itself, with status {self.process.wait()}") from None

    def receive(self) -> list[int]:
        """Wait for acknowledgements; none: the worker is gone. A line that a kill cut off was never acknowledged."""
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            *rows, self._rest = (self._rest + data).split(b"\n")
            if rows:
                return [int(row) for row in rows]
        return []

    def kill(self) -> list[int]:
        """SIGKILL; return what it had acknowledged before it died."""
        os.kill(self.process.pid, signal.SIGKILL)
        last: list[int] = []
        while rows := self.receive():
            last += rows
        if self.process.wait() != -signal.SIGKILL:
            raise SystemExit("the worker ended before it was killed: the run proves nothing")
        self._close()
        return last

    def finish(self) -> None:
        self.pipe.close()
        if self.process.wait(timeout=60):
            raise SystemExit(f"the worker ended with status {self.process.returncode}")
        self._close()

    def _close(self) -> None:
        assert self.process.stdout is not None
        self.pipe.close()
        self.process.stdout.close()


class Run:
    """One run over the year, and its book-keeping."""

    def __init__(self, year: Year, folder: Path, durability: str, store: str) -> None:
        self.flights, self.durability = year.flights, durability
        self.url = URLS[store].format(quote(str(folder.resolve())))
        self.identities = [identity(flight) for flight in year.flights]
        self.log = (folder / "acknowledged.log").open("a")
        self.acknowledged: set[int] = set()
        self.waiting = deque(range(len(self.flights)))
        self.sent: dict[int, None] = {}  # in flight, in the order sent
        self.kills = self.in_flight = self.replies = 0
        self.lost: set[int] = set()
        self.calling = 0.0
        self.bar = tqdm(total=len(self.flights), unit=" calls", mininterval=1, smoothing=0.05)

    def note(self, rows: list[int]) -> None:
        self.log.write("".join(f"{row}\n" for row in rows))
        self.log.flush()
        self.acknowledged.update(rows)
        self.replies += len(rows)
        for row in rows:
            del self.sent[row]
        self.bar.update(len(rows))

    def fill(self, worker: Worker) -> None:
        while self.waiting and len(self.sent) <= WINDOW - CHUNK:
            rows = [self.waiting.popleft() for _ in range(min(CHUNK, len(self.waiting)))]
            worker.send([self.flights[row] for row in rows])
            self.sent.update(dict.fromkeys(rows))

    def work(self, until: int) -> Worker:
        """Start a worker, and have it run until so many calls are acknowledged."""
        worker = Worker(self.url, self.durability)
        begin = time.monotonic()
        while len(self.acknowledged) < until:
            self.fill(worker)
            rows = worker.receive()
            if not rows:
                raise SystemExit(f"the worker ended by itself, with status {worker.process.wait()}")
            self.note(rows)
        self.fill(worker)
        self.calling += time.monotonic() - begin
        return worker

    def kill(self, worker: Worker) -> None:
        """Kill the worker with calls in flight; look for what it acknowledged before anything is sent again."""
        self.note(worker.kill())
        if not self.sent:
            raise SystemExit("the kill found no call in flight: it proves nothing")
        self.kills += 1
        self.in_flight += len(self.sent)
        lost = asyncio.run(self.missing())
        self.lost.update(lost)
        self.bar.write(
            f"kill {self.kills}: {len(self.acknowledged):,} calls acknowledged, {len(self.sent)} in flight; "
            f"acknowledged and not in the store: {len(lost):,}",
            file=sys.stderr,
        )
        self.acknowledged.difference_update(lost)
        self.bar.update(-len(lost))
        self.waiting.extendleft(sorted({*self.sent, *lost}, reverse=True))
        self.sent.clear()

    async def missing(self) -> list[int]:
        """The acknowledged rows that are not in the store."""
        by_aircraft: defaultdict[str, list[int]] = defaultdict(list)
        for row in self.acknowledged:
            by_aircraft[self.flights[row].tailnum].append(row)
        lost: list[int] = []
        async with Persistence(from_url(self.url)) as persistence:
            for tailnum, rows in by_aircraft.items():
                aircraft = await persistence.thaw(Aircraft, tailnum)
                counted = set(aircraft.legs) if aircraft is not None else set[int]()
                lost += [row for row in rows if self.identities[row] not in counted]
        return lost

    async def differences(self) -> tuple[int, list[str]]:
        """How many aircraft the file has, and those whose agent differs from the recomputation."""
        fleet = recompute(self.flights)
        wrong: list[str] = []
        async with Persistence(from_url(self.url)) as persistence:
            for tailnum, want in fleet.items():
                have = await persistence.thaw(Aircraft, tailnum)
                if have is None or len(have.legs) != len(want.legs) or plain(have) != want:
                    wrong.append(tailnum)
        return len(fleet), wrong


def plain(aircraft: Aircraft) -> Expected:
    return Expected(set(aircraft.legs), aircraft.in_the_air, aircraft.unknown, aircraft.late, aircraft.last)


def run(year: Year, folder: Path, durability: str, store: str) -> int:
    it = Run(year, folder, durability, store)
    total, chance = len(year.flights), random.Random(2013)  # noqa: S311 - when to kill is no secret
    for n in range(1, KILLS + 1):
        it.kill(it.work(int(total * (n - chance.random() / 2) / (KILLS + 0.5))))
    it.work(total).finish()
    it.bar.close()
    it.log.close()
    aircraft, wrong = asyncio.run(it.differences())
    table = {
        "flights": f"{total:,} of {year.rows:,} rows",
        "skipped, without tailnum": f"{year.skipped:,}",
        "without minutes in the air": f"{year.no_air_time:,} rows, {year.no_air_time - year.skipped:,} of them counted",
        "aircraft": f"{aircraft:,}",
        "aircraft that differ from the file": f"{len(wrong):,}",
        "kills with SIGKILL": f"{it.kills}, with {it.in_flight:,} calls in flight",
        "calls per second": f"{it.replies / it.calling:,.0f}",
    }
    print(f'\nstore={store} durability="{durability}"')
    for what, value in table.items():
        print(f"  {what:<36}{value}")
    print(f"acknowledged calls lost: {len(it.lost):,}")
    if wrong:
        print(f"FAILED: these aircraft differ from the file: {', '.join(wrong[:10])}")
        return 1
    if durability == "hibernate":
        print("As expected: a reply under hibernate means memory. The lost flights were sent again." if it.lost
              else "FAILED: nothing was lost, so this check proves nothing.")  # fmt: skip
        return 0 if it.lost else 1
    if it.lost:
        print("FAILED: calls were lost after they had been acknowledged.")
    return 1 if it.lost else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=sys.modules["demo"].__doc__)
    parser.add_argument("--durability", choices=["call", "hibernate"], default="call")
    parser.add_argument("--store", choices=list(URLS), default="sqlite")
    parser.add_argument("--folder", type=Path, help="keep the store and the log here (default: a temporary folder)")
    options = parser.parse_args()
    if options.folder is not None:
        try:
            options.folder.mkdir(parents=True)
        except OSError as error:
            parser.error(f"--folder makes a new folder, and can't make {options.folder}: {error.strerror}")
        return run(read(), options.folder, options.durability, options.store)
    year = read()
    with tempfile.TemporaryDirectory(prefix="overwinter-demo-") as folder:
        return run(year, Path(folder), options.durability, options.store)


if __name__ == "__main__":
    sys.exit(main())
