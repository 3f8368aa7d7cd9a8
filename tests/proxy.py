"""A TCP proxy on loopback between a client and a server, whose connections fail as those of a network do.

It runs in the test's own event loop. In front of it stands what the test talks to, ``proxy.port``; behind it a port or
a unix socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Self

__all__ = ["Proxy"]


class Proxy:
    """``async with Proxy(("127.0.0.1", port)) as proxy:``, or ``Proxy("/path/of/a.sock")``."""

    def __init__(self, behind: tuple[str, int] | str) -> None:
        self.behind = behind
        self.port = 0
        self.delay = 0.0
        """Seconds that each piece waits, in both directions."""
        self.accepted = 0
        """How many connections came in so far."""
        self.lost = 0
        """How many replies ``lose_replies`` has lost so far."""
        self._to_lose = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: socket.socket | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.refuse()

    async def accept(self) -> None:
        """Listen, again on the same port."""
        # No asyncio server: when one is closed, a connection that is just being accepted is never closed.
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._listener, self._begin, self._listener)

    async def refuse(self) -> None:
        """Cut all connections, and refuse new ones: a server that is down."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await self.cut()

    async def cut(self) -> None:
        """Reset all connections. New ones are welcome."""
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def hang(self) -> None:
        """Pass nothing on from now, in either direction, and keep all connections open: a host that went silent."""
        self._flowing.clear()

    def flow(self) -> None:
        """End ``hang``: what was held is passed on."""
        self._flowing.set()

    def lose_replies(self, number: int = 1) -> None:
        """Reset the next *number* connections when the server begins to reply: it did what it was asked to."""
        self._to_lose += number

    @property
    def links(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def _begin(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # it has gone already
            return
        self.accepted += 1
        connection.setblocking(False)
        link = asyncio.ensure_future(self._link(connection))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        link.add_done_callback(lambda _: connection.close())  # if it was cancelled before its first step

    async def _link(self, connection: socket.socket) -> None:
        writers: list[asyncio.StreamWriter] = []
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
            writers.append(writer)
            if isinstance(self.behind, str):
                back, out = await asyncio.open_unix_connection(self.behind)
            else:
                back, out = await asyncio.open_connection(*self.behind)
            writers.append(out)
            pumps = [
                asyncio.ensure_future(self._pump(reader, out)),
                asyncio.ensure_future(self._pump(back, writer, True)),
            ]
            try:
                await asyncio.gather(*pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            for each in writers:
                _reset(each)
        finally:
            for each in writers:
                each.close()
            await asyncio.gather(*(each.wait_closed() for each in writers), return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool = False) -> None:
        while piece := await reader.read(65536):
            if replies and self._to_lose:
                self._to_lose -= 1
                self.lost += 1
                raise ConnectionResetError
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flowing.wait()
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST instead of FIN, as one that is cut."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
