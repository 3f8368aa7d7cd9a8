"""Who owns the agents of a name on one machine: an flock per store and name, for the manager's life.

This file knows lock files and waiting. The kernel ends a claim when its process dies, so there is no lease to renew,
no clock to trust and nothing to clean up.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from concurrent.futures import Future

from ..errors import StoreInUseError, StoreUnavailableError
from ._flock import LockFile

__all__ = ["Claims"]

_NAP = 0.02


class Claims:
    """The claims of one store object.

    *prefix* is what the lock files' names begin with, *store* what errors say; a disk that doesn't answer for
    *patience* seconds is not waited for any more.
    """

    def __init__(self, prefix: str, store: str, patience: float) -> None:
        self._prefix = prefix
        self._store = store
        self._patience = patience
        self._held: dict[str, LockFile] = {}

    async def add(self, name: str, *, shared: bool, wait: float) -> None:
        """Own the agents called *name*: nobody else does, in no process, unless all are *shared*."""
        digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        lock = LockFile(f"{self._prefix}owner-{digest}.lock")
        outcome: Future[str | None] = Future()
        work = (lock, shared, wait, outcome)
        thread = threading.Thread(target=_take, args=work, name="overwinter-claim", daemon=True)
        try:
            thread.start()  # of its own: a disk may hang in any step, and that is no reason for the loop to stand still
            async with asyncio.timeout(wait + self._patience):
                holder = await asyncio.wrap_future(outcome)
            if holder is not None:
                raise StoreInUseError(
                    f"agent {name!r} on {self._store} has an owner already: {holder}. Stop that one, "
                    "or pass shared=True to the InstanceManager in every process that uses this agent"
                )
        except BaseException as error:
            if not outcome.cancel():  # else the thread closes it, once it can
                lock.close()
            if isinstance(error, TimeoutError):
                raise StoreUnavailableError(
                    f"the disk under {self._store} did not answer within {self._patience:g} s; "
                    f"claim of agent {name!r}: see whether it hangs"
                ) from None
            raise
        self._held[name] = lock

    def remove(self, name: str) -> None:
        lock = self._held.pop(name, None)
        if lock is not None:
            lock.close()

    def clear(self) -> None:
        for name in list(self._held):
            self.remove(name)


def _take(lock: LockFile, shared: bool, wait: float, outcome: Future[str | None]) -> None:
    """Tell *outcome* who has the lock, if it is not ours now; close it if nobody wants to know any more."""
    deadline = time.monotonic() + wait
    holder = None
    try:
        lock.open()
        while not (taken := lock.try_lock(shared=shared)) and time.monotonic() < deadline and not outcome.cancelled():
            time.sleep(min(_NAP, wait))
        if taken:
            lock.sign(shared=shared)
        else:
            holder = lock.holder()
    except Exception as error:  # noqa: BLE001  # whatever it is, add() raises it
        lock.close()
        if outcome.set_running_or_notify_cancel():
            outcome.set_exception(error)
    else:
        if outcome.set_running_or_notify_cancel():
            outcome.set_result(holder)
        else:
            lock.close()
