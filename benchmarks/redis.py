"""Durable calls on private servers, Valkey and Redis, over a unix socket; each flushes what it wrote before it
answers.

The limit is redis-py with a script that compares and writes, all that waits in one pipeline.
"""

from __future__ import annotations

import os
from typing import Any

from ._load import run
from ._measure import Row, Scale, Team
from ._network import Put, bare_calls, compare, server

__all__ = ["TITLE", "bare", "run_all"]

TITLE = "Redis and Valkey"
SCRIPT = """
local known = redis.call('GET', KEYS[1])
if (known and string.sub(known, 1, 16) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    for name in ("Valkey", "Redis"):
        with server("servers", name)() as running:
            rows += compare(team, scale, "redis", running.url, label=f", {name}")
    return rows


def bare(agents: int, seconds: float, place: str, options: dict[str, Any]) -> float:
    from redis.asyncio import Redis

    async def main() -> float:
        async with Redis.from_url(place, **options) as client:
            script = await client.script_load(SCRIPT)

            async def send(puts: list[Put]) -> None:
                async with client.pipeline(transaction=False) as pipe:
                    for key, data, revision, expected in puts:
                        pipe.evalsha(script, 1, key, expected, revision + data)
                    assert await pipe.execute() == [1] * len(puts)

            return await bare_calls(agents, seconds, f"bare-{os.urandom(4).hex()}-", send)

    return run(main())
