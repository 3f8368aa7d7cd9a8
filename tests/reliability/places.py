"""Where the stores of several processes are, and what can befall them there: one ``Place`` for each shared store."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moto_server import MotoServer
from proxy import Proxy
from servers import Postgres, Redis, Server, Valkey

__all__ = ["LOCAL", "NETWORK", "Place", "behind_a_proxy", "place_of"]

LOCAL = ("file", "sqlite")
NETWORK = ("redis", "valkey", "postgres", "s3")


@dataclass
class Place:
    """What another process needs to make the store, and the means to disturb it."""

    kind: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    """Of an object store."""
    server: Server | None = None
    """That may be killed and started."""
    behind: tuple[str, int] | str = ""
    """Where a proxy has to lead to."""
    at: Callable[[int], tuple[str, dict[str, Any]]] | None = None
    """URL and options by another port."""
    proxy: Proxy | None = None


@contextlib.contextmanager
def place_of(kind: str, folder: Path, s3: Callable[[], MotoServer]) -> Any:
    """A place of its own, with a server of its own but for S3, whose data is that of this process."""
    if kind == "file":
        yield Place(kind, f"file://{folder}/agents")
    elif kind == "sqlite":
        yield Place(kind, f"sqlite:///{folder}/agents.db")
    elif kind == "s3":
        moto = s3()
        url = f"s3://{moto.bucket}/{os.urandom(8).hex()}"
        yield Place(kind, url, moto.options, None, ("127.0.0.1", moto.port), lambda port: (url, moto.options_at(port)))
    elif kind == "postgres":
        with Postgres() as postgres:
            socket = str(postgres.socket / ".s.PGSQL.5432")
            by_port = "postgresql://postgres@127.0.0.1:{}/postgres"
            yield Place(kind, postgres.url, {}, postgres, socket, lambda port: (by_port.format(port), {}))
    else:
        with {"redis": Redis, "valkey": Valkey}[kind]() as server:
            yield Place(
                kind, server.url, {}, server, str(server.socket), lambda port: (f"redis://127.0.0.1:{port}", {})
            )


@contextlib.asynccontextmanager
async def behind_a_proxy(place: Place) -> AsyncGenerator[Place]:
    """The same place, by way of a network; what is on disk has none."""
    if place.at is None:
        yield place
        return
    async with Proxy(place.behind) as proxy:
        url, options = place.at(proxy.port)
        yield Place(place.kind, url, options, place.server, place.behind, place.at, proxy)


async def restart(server: Server) -> None:
    """Kill it, and start it again."""
    server.kill()
    await asyncio.to_thread(server.start)
