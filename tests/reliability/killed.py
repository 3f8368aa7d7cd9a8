"""A process for test_kills.py that works until it is killed: run as ``python killed.py``, with a case in JSON per line.

Each case runs in a forked child of its own, which has all modules already. What it says goes to stdout, a line each,
by a system call that stores don't use; the parent of the children says how each of them ended.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from typing import Any

from overwinter import Agent, InstanceManager, Interval
from overwinter.stores import Store, _sqlite_worker, file, from_url
from overwinter.stores._file_layer import Files
from overwinter.stores.file import FileStore
from overwinter.stores.objects import ObjectStore
from overwinter.stores.sqlite import SQLiteStore
from overwinter.testing._child import content, tell, wait_for_a_tracer

__all__ = ["Kept", "make_store"]

HANGS = 60  # seconds
PR_SET_PDEATHSIG = 1
SLOW = 0.002  # seconds, between two stores of an agent under ``Interval``


class Kept(Agent, name="kept"):
    """What it holds follows from its key and the number of its last change, so half a change shows."""

    step: int = 0
    freight: bytes = b""

    async def become(self, step: int, freight: bytes) -> None:
        self.step, self.freight = step, freight


class InPlace(Files):
    """A bug: a record is written over the one before it."""

    def create(self, name: str, folder: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return os.open(name.partition(".")[0], flags, 0o600, dir_fd=folder)

    def rename(self, old: str, new: str, folder: int) -> None:
        """It has its name."""


def make_store(url: str, **options: Any) -> Store:
    if url.startswith("s3:"):
        return ObjectStore(url, **options)
    if url.startswith("sqlite:"):
        return SQLiteStore(url.removeprefix("sqlite://"), **options)
    if url.startswith("file:"):
        return FileStore(url.removeprefix("file://"), **options)
    return from_url(url)


async def change(kept: InstanceManager[Kept], key: str, step: int) -> None:
    freight = content(key, step)
    if freight is None:
        await kept.delete(key)
    else:
        await kept.call(key, Kept.become, step, freight)


async def work(
    url: str,
    options: dict[str, Any],
    *,
    steps: dict[str, int],
    changes: int | None,
    durability: str,
    traced: str = "",
    bug: str = "",
) -> None:
    """Change each of *steps* so often (``None``: for ever). Say "made" of a reply and "kept" of what must be stored."""
    store = make_store(url, **options)
    if bug == "writes in place":
        store._files = InPlace()
    mode: Any = Interval(SLOW) if durability == "interval" else durability
    if traced == "from the opening":
        wait_for_a_tracer()
    async with InstanceManager(Kept, store=store, durability=mode, owner_wait=0) as kept:
        if traced == "at work":
            wait_for_a_tracer()

        async def lane(key: str, step: int) -> None:
            for each in iter(int, 1) if changes is None else range(changes):
                step += 1
                if bug == "acknowledges early":
                    tell("kept", key, step)
                await change(kept, key, step)
                tell("kept" if durability == "call" or content(key, step) is None else "made", key, step)
                if each % 3 == 2:
                    await (kept.stop if step % 2 else kept.save)(key)
                    tell("kept", key, step)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as lanes:
            for key, step in steps.items():
                lanes.create_task(lane(key, step))
        if traced == "at the end":
            wait_for_a_tracer()


def main() -> None:
    _sqlite_worker._CHECKPOINT_PAGES = 8  # so that a checkpoint comes now and then
    file._WRITERS = 2  # each wait of a thread for the interpreter is a system call, and strace makes it dear
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.alarm(HANGS)
            tell("pid", os.getpid())
            asyncio.run(work(**json.loads(line)))
            os._exit(0)
        tell("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
