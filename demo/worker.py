"""The worker: reads flights from stdin, makes each a call, and writes the row of each reply to stdout.

``python -m demo.worker STORE call|hibernate``, STORE being a URL such as ``sqlite:////tmp/fleet.db``.
It may be killed at any moment.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Literal

import msgspec

from demo.aircraft import Aircraft, Flight
from overwinter import InstanceManager
from overwinter.stores import from_url


class Acknowledgements:
    """Writes the rows of one pass of the event loop at once: a write per row would cost more than the call."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._loop = asyncio.get_running_loop()

    def add(self, row: int) -> None:
        if not self._rows:
            self._loop.call_soon(self._write)
        self._rows.append(row)

    def _write(self) -> None:
        text = memoryview("".join(f"{row}\n" for row in self._rows).encode())
        self._rows.clear()
        while text:
            text = text[os.write(1, text) :]


async def main(url: str, durability: Literal["call", "hibernate"]) -> None:
    flights = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(flights), sys.stdin)
    decode = msgspec.json.Decoder(Flight).decode
    acknowledged = Acknowledgements()
    async with InstanceManager(Aircraft, store=from_url(url), durability=durability, idle_timeout=1) as fleet:

        async def fly(flight: Flight) -> None:
            await fleet.call(flight.tailnum, Aircraft.fly, flight)
            acknowledged.add(flight.row)

        async with asyncio.TaskGroup() as calls:
            async for line in flights:
                calls.create_task(fly(decode(line)))


if __name__ == "__main__":
    _, where, mode = sys.argv
    asyncio.run(main(where, "hibernate" if mode == "hibernate" else "call"))
