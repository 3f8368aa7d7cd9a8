"""Who owns the agents of a name on one machine: an flock per store and name, for the manager's life.

This file knows lock files and waiting. The kernel ends a claim when its process dies, so there is no lease to renew,
no clock to trust and nothing to clean up.
"""

from __future__ import annotations

import asyncio
import hashlib
import time

from ..errors import StoreInUseError
from ._flock import LockFile

__all__ = ["Claims"]

_NAP = 0.02


class Claims:
    """The claims of one store object. *prefix* is what the lock files' names begin with, *store* what errors say."""

    def __init__(self, prefix: str, store: str) -> None:
        self._prefix = prefix
        self._store = store
        self._held: dict[str, LockFile] = {}

    async def add(self, name: str, *, shared: bool, wait: float) -> None:
        """Own the agents called *name*: nobody else does, in no process, unless all are *shared*."""
        digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        lock = LockFile(f"{self._prefix}owner-{digest}.lock")
        try:
            lock.open()
            deadline = time.monotonic() + wait
            while not lock.try_lock(shared=shared):
                if time.monotonic() >= deadline:
                    raise StoreInUseError(
                        f"agent {name!r} on {self._store} has an owner already: {lock.holder()}. Stop that one, "
                        "or pass shared=True to the InstanceManager in every process that uses this agent"
                    )
                await asyncio.sleep(min(_NAP, wait))
            lock.sign(shared=shared)
        except BaseException:
            lock.close()
            raise
        self._held[name] = lock

    def remove(self, name: str) -> None:
        lock = self._held.pop(name, None)
        if lock is not None:
            lock.close()

    def clear(self) -> None:
        for name in list(self._held):
            self.remove(name)
