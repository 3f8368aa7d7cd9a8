"""A store that forgets: for tests, and for agents that need a manager but no winter.

This file knows a dictionary. Nothing in it survives the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ..errors import RevisionConflictError, UsageError
from .base import Durability, Expect, Revision, Store, Stored

__all__ = ["MemoryStore"]

_AT_ONCE = 1000  # keys that are listed before the event loop gets its turn


class MemoryStore(Store):
    """Keep records in this object.

    It holds copies: nobody changes a record from outside. Records outlive ``close()`` and an event loop, so that one
    object can stand for a disk over several lives of a manager; they end with the object.
    """

    durability = Durability.NONE

    def __init__(self) -> None:
        self._records: dict[str, Stored] = {}

    async def get(self, key: str) -> Stored | None:
        self._check_open()
        return self._records.get(key)

    async def head(self, key: str) -> Revision | None:
        self._check_open()
        return self._revision(key)

    async def put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> None:
        self._check_open()
        if expected is Expect.ANY:
            raise UsageError(
                f"a put of key {key!r} expects a revision or Expect.ABSENT: Expect.ANY is only for deleting"
            )
        self._compare(key, expected)
        self._records[key] = Stored(bytes(data), bytes(revision))

    async def delete(self, key: str, *, expected: Revision | Expect) -> None:
        self._check_open()
        if key in self._records and expected is not Expect.ANY:
            self._compare(key, expected)
        self._records.pop(key, None)

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        self._check_open()
        found = [key for key in self._records if key.startswith(prefix)]  # of one moment, and no copies
        for number, key in enumerate(found, 1):
            yield key
            if not number % _AT_ONCE:
                await asyncio.sleep(0)
                self._check_open()

    async def count(self, prefix: str = "") -> int:
        self._check_open()
        return sum(key.startswith(prefix) for key in self._records) if prefix else len(self._records)

    def submit(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.put(key, data, revision=revision, expected=expected))

    def _revision(self, key: str) -> Revision | None:
        stored = self._records.get(key)
        return None if stored is None else stored.revision

    def _compare(self, key: str, expected: Revision | Expect) -> None:
        if self._revision(key) != (None if expected is Expect.ABSENT else expected):
            raise RevisionConflictError(f"not stored: key {key!r} is not at the expected revision; read it again first")
