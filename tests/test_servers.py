"""The servers of the other tests start, keep what they answered for through a kill, and end without a trace."""

from __future__ import annotations

import psycopg
import pytest
import redis as client
from servers import Postgres, Redis, Valkey


@pytest.mark.parametrize("kind", [Valkey, Redis])
def test_what_a_redis_answered_for_survives_a_kill(kind):
    with kind() as server, client.Redis.from_url(server.url) as connection:
        connection.set("a", "1")
        server.kill()
        server.start()
        assert connection.get("a") == b"1"
    assert not server.folder.exists()


def test_what_postgres_committed_survives_a_kill():
    with Postgres() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE a AS SELECT 1 AS b")
        server.kill()
        server.start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT b FROM a").fetchone() == (1,)
    assert not server.folder.exists()
