"""Durable calls on an object store: moto's S3 on loopback, a Python program that answers some hundred requests a
second.

So this compares requests, not speed: one per call, and no more waiting than necessary. The limit is obstore's own put
with `If-Match`, as many at once as there are agents.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ._load import run
from ._measure import Row, Scale, Team
from ._network import Put, bare_calls, compare, server

__all__ = ["TITLE", "bare", "run_all"]

TITLE = "Object stores"


def run_all(team: Team, scale: Scale) -> list[Row]:
    with server("moto_server", "MotoServer")() as running:
        return compare(team, scale, "objects", f"s3://{running.bucket}/{os.urandom(4).hex()}", running.options)


def bare(agents: int, seconds: float, place: str, options: dict[str, Any]) -> float:
    import obstore
    from obstore.store import S3Store

    async def main() -> float:
        client = S3Store.from_url(place, **options)
        tags: dict[str, Any] = {}

        async def put(key: str, data: bytes) -> None:
            mode = {"e_tag": tags[key]} if key in tags else "create"
            tags[key] = (await obstore.put_async(client, key, data, mode=mode))["e_tag"]

        async def send(puts: list[Put]) -> None:
            await asyncio.gather(*(put(key, revision + data) for key, data, revision, _ in puts))

        return await bare_calls(agents, seconds, f"bare-{os.urandom(4).hex()}-", send)

    return run(main())
