"""Small things that the tests of stores do all the time."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from overwinter.stores import Expect

__all__ = ["create", "modes_when_made", "new", "open_files", "sqlite"]


def new() -> bytes:
    return os.urandom(16)


async def create(store, key: str, data: bytes = b"x") -> bytes:
    revision = new()
    await store.put(key, data, revision=revision, expected=Expect.ABSENT)
    return revision


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def modes_when_made(monkeypatch) -> dict[str, int]:
    """The permissions that each file and folder has the moment that it is made, by its name: filled from now on."""
    found: dict[str, int] = {}
    real_open, real_mkdir = os.open, os.mkdir

    def note(path, mode: int) -> None:
        found.setdefault(Path(os.fsdecode(path)).name, stat.S_IMODE(mode))

    def opened(path, flags, *arguments, **options):
        descriptor = real_open(path, flags, *arguments, **options)
        if flags & os.O_CREAT:
            note(path, os.fstat(descriptor).st_mode)
        return descriptor

    def mkdir(path, *arguments, **options):
        real_mkdir(path, *arguments, **options)
        note(path, os.stat(path, dir_fd=options.get("dir_fd")).st_mode)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "mkdir", mkdir)
    return found


def sqlite(ask, path, script: str) -> str:
    """Look at or change the file as another program does."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
    return ask(
        code + "[print(*r) for s in sys.argv[2].split(';;') for r in c.execute(s)]; c.commit(); c.close()",
        path,
        script,
        prelude="",
    )
