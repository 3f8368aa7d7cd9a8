"""Stores on the test servers, by names that a child process can import: it knows no fixtures."""

from __future__ import annotations

import json

from overwinter.stores import Durability
from overwinter.stores.objects import ObjectStore
from overwinter.stores.postgres import PostgresStore
from overwinter.stores.redis import RedisStore

__all__ = ["postgres", "redis", "s3"]


def postgres(url: str, table: str) -> PostgresStore:
    return PostgresStore(url, table=table)


def redis(url: str, prefix: str) -> RedisStore:
    return RedisStore(url, prefix=prefix, durability=Durability.HOST)


def s3(url: str, options: str) -> ObjectStore:
    return ObjectStore(url, **json.loads(options))
