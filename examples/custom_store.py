"""A complete store of your own: a folder with one file per key.

A store has three verbs over a key, bytes and a revision. The revision is what makes it safe: a put says which one it
expects to find, so of two writers who read the same record only one succeeds. `overwinter.testing.StoreContract`
checks the promises; tests/test_examples.py runs it on this file.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from overwinter import Agent, Durability, Expect, InstanceManager, Store, Stored
from overwinter.errors import CorruptRecordError, RevisionConflictError, StoreUnavailableError

P = ParamSpec("P")
R = TypeVar("R")


class FolderStore(Store):
    """Keeps each record in a file: the revision and its length, then the data. One lock for all: simple, not fast."""

    durability = Durability.PROCESS  # survives `kill -9`; a power loss it may not, since nothing here calls fsync

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def open(self) -> None:
        await in_thread((self.folder / "lock").touch)  # a folder that is missing must not pass for an empty one

    async def get(self, key: str) -> Stored | None:
        return await in_thread(self._read, key)

    async def put(self, key: str, data: bytes, *, revision: bytes, expected: bytes | Expect) -> None:
        await in_thread(self._change, key, expected, bytes([len(revision)]) + revision + data)

    async def delete(self, key: str, *, expected: bytes | Expect) -> None:
        await in_thread(self._change, key, expected, None)

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()  # any key makes a good file name now

    def _read(self, key: str) -> Stored | None:
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None  # only now may we say that nothing is there
        size = content[0] if content else 255
        if len(content) <= size:
            raise CorruptRecordError(f"the file of key {key!r} is too short: restore it from a backup")
        return Stored(content[1 + size :], content[1 : 1 + size])

    def _change(self, key: str, expected: bytes | Expect, content: bytes | None) -> None:
        with (self.folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # compare and replace are one step; closing the file lets go
            if expected is not Expect.ANY:  # which also deletes what can't be read
                stored = self._read(key)
                found = Expect.ABSENT if stored is None else stored.revision
                if found != expected and not (content is None and stored is None):
                    raise RevisionConflictError(f"key {key!r} is at another revision: nothing was changed")
            if content is None:
                self._path(key).unlink(missing_ok=True)
            else:
                (self.folder / "new").write_bytes(content)
                (self.folder / "new").replace(self._path(key))  # readers see the old file or the new one, whole


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Files block, so they are not the event loop's business."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:  # a full disk, no such folder: all before the replace, so certainly nothing was stored
        raise StoreUnavailableError(f"{error.strerror}: nothing was changed") from error


class Counter(Agent):
    count: int = 0

    async def increment(self) -> int:
        self.count += 1
        return self.count


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            async with InstanceManager(Counter, store=FolderStore(Path(folder))) as counters:
                print(await counters.call("ada", Counter.increment))


if __name__ == "__main__":
    asyncio.run(main())
