"""diskcache: each call sets a key to the encoded state."""

from __future__ import annotations

import diskcache
import msgspec

from .._load import change, drive_blocking, kilobyte, scratch
from . import version

__all__ = ["durable_calls", "settings"]


def settings() -> str:
    how = "Cache.set of bytes, WAL, synchronous=FULL (its default is NORMAL), no eviction, blocking calls"
    return f"diskcache {version('diskcache')}: {how}"


def durable_calls(agents: int, seconds: float) -> float:
    states = [(f"key-{number}", kilobyte()) for number in range(agents)]
    encode = msgspec.msgpack.Encoder().encode
    with diskcache.Cache(str(scratch()), sqlite_synchronous=2, eviction_policy="none") as cache:

        def step(number: int) -> None:
            key, items = states[number]
            change(items)
            cache.set(key, encode(items))

        return drive_blocking(step, agents, seconds)
