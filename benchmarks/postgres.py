"""Durable calls on a private PostgreSQL server over a unix socket, with fsync.

The limit is psycopg: all that waits is written by one statement that compares the revisions.
"""

from __future__ import annotations

import os
from typing import Any

from ._load import run
from ._measure import Row, Scale, Team
from ._network import Put, bare_calls, compare, server

__all__ = ["TITLE", "bare", "run_all"]

TITLE = "PostgreSQL"
CREATE = "CREATE TABLE IF NOT EXISTS bare(key text PRIMARY KEY, revision bytea NOT NULL, data bytea NOT NULL)"
WRITE = """
INSERT INTO bare(key, revision, data)
SELECT key, revision, data
FROM unnest(%b::text[], %b::bytea[], %b::bytea[], %b::bytea[]) AS v(key, revision, data, expected)
WHERE expected = '' ON CONFLICT DO NOTHING
"""
REPLACE = """
UPDATE bare SET revision = v.revision, data = v.data
FROM unnest(%b::text[], %b::bytea[], %b::bytea[], %b::bytea[]) AS v(key, revision, data, expected)
WHERE bare.key = v.key AND bare.revision = v.expected
"""


def run_all(team: Team, scale: Scale) -> list[Row]:
    with server("servers", "Postgres")() as running:
        return compare(team, scale, "postgres", running.url)


def bare(agents: int, seconds: float, place: str, options: dict[str, Any]) -> float:
    import psycopg

    async def main() -> float:
        async with await psycopg.AsyncConnection.connect(place, autocommit=True, **options) as connection:
            await connection.execute(CREATE)

            async def send(puts: list[Put]) -> None:
                keys, data, revisions, expected = (list(column) for column in zip(*puts, strict=True))
                create = not expected[0]  # the first round creates all, later ones replace
                done = await connection.execute(WRITE if create else REPLACE, (keys, revisions, data, expected))
                assert done.rowcount == len(puts)

            return await bare_calls(agents, seconds, f"bare-{os.urandom(4).hex()}-", send)

    return run(main())
