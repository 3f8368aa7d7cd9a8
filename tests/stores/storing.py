"""Small things that the tests of stores do all the time."""

from __future__ import annotations

import os
from pathlib import Path

from overwinter.stores import Expect

__all__ = ["create", "new", "open_files", "sqlite"]


def new() -> bytes:
    return os.urandom(16)


async def create(store, key: str, data: bytes = b"x") -> bytes:
    revision = new()
    await store.put(key, data, revision=revision, expected=Expect.ABSENT)
    return revision


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def sqlite(ask, path, script: str) -> str:
    """Look at or change the file as another program does."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
    return ask(
        code + "[print(*r) for s in sys.argv[2].split(';;') for r in c.execute(s)]; c.commit(); c.close()",
        path,
        script,
        prelude="",
    )
