"""The contract on real servers of both kinds, and what is Redis's own: tombstones, repeats, foreign values."""

from __future__ import annotations

import uuid

import pytest
from servers import Server

from overwinter.stores import Durability, Store
from overwinter.stores.redis import RedisStore
from overwinter.testing import StoreContract


class TestOnValkey(StoreContract):
    can_corrupt = True
    kind = "valkey"

    @pytest.fixture(autouse=True)
    def _prefix(self, request: pytest.FixtureRequest) -> None:
        self.server: Server = request.getfixturevalue(self.kind)
        self.prefix = f"{uuid.uuid4().hex}:"

    async def make_store(self) -> Store:
        return RedisStore(self.server.url, prefix=self.prefix, durability=Durability.HOST)

    async def corrupt(self, key: str) -> None:
        import redis

        with redis.Redis.from_url(self.server.url) as client:
            assert client.set(f"{self.prefix}agent:{key}", b"something foreign", xx=True)


class TestOnRedis(TestOnValkey):
    kind = "redis"
