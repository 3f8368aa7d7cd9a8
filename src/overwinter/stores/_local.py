"""What the stores on a local disk have in common: a path, claims that other processes see, and threads for the work.

This file knows the store protocol and hands jobs on. It does not know what is at the path, nor how it is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import warnings
from abc import abstractmethod
from asyncio.events import _get_running_loop
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidKeyError, StoreError, StoreUnavailableError, UsageError
from ._claims import Claims
from ._jobs import NOBODY, Desk, Job
from .base import Done, Expect, Got, Revision, Store, Stored, T

__all__ = ["LocalStore"]

_ANY = Expect.ANY  # found by name, it costs as much as a call


class LocalStore(Store):
    """The store protocol as jobs for threads."""

    def __init__(self, path: str | os.PathLike[str], *, timeout: float) -> None:
        kind, name = type(self).__name__, os.fspath(path)
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # a PathLike of bytes, or bytes
            raise TypeError(f"the path of a {kind} must be a str or a path, not {type(name).__name__}")
        if name == ":memory:" or not name:
            raise UsageError(f"a {kind} needs a path: use MemoryStore() for a store that forgets")
        if "\0" in name:
            raise UsageError(f"the path of a {kind} holds a NUL character, which no file's name can")
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        # What is above it may be reached through symlinks, the last part may not; and two ways to it share its locks.
        last = Path(os.path.normpath(name))
        self.path = str(last.parent.resolve() / last.name)
        self.timeout = timeout
        self._desks: list[Desk] = []
        """Who reads, and who writes; while it is open."""
        self._owned: Claims | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    @property
    def _patience(self) -> float:
        """Seconds after which a disk that doesn't answer is not waited for any more."""
        return 3 * self.timeout

    def _desk(self, job: Job) -> Desk:
        """Who does this job."""
        return self._desks[0 if job.reads else 1]

    @abstractmethod
    def _prefix(self) -> str:
        """What the names of lock files begin with."""

    async def _open(self, writer: Desk, reader: Desk) -> None:
        """Open them in this order; close() ends them in the opposite one."""
        opened: list[Desk] = []
        try:
            for desk in (writer, reader):
                await desk.open()
                opened.insert(0, desk)
        except BaseException:
            await self._end(opened)
            raise
        self._desks = opened
        self._owned = Claims(self._prefix(), self.path, self._patience)

    async def close(self) -> None:
        """Do what was begun, then let go. A later ``async with`` opens it again."""
        desks, self._desks = self._desks, []
        owned, self._owned = self._owned, None
        if self._pid != os.getpid():
            return  # in a forked child there are no threads, and the locks are the parent's
        try:
            await self._end(desks)
        finally:
            if owned is not None:
                owned.clear()

    async def _end(self, desks: list[Desk]) -> None:
        async with contextlib.AsyncExitStack() as stack:  # each gets its turn, even if we are cancelled meanwhile
            for desk in reversed(desks):
                stack.push_async_callback(desk.join, self._patience)
                stack.callback(desk.abandon)

    def __del__(self) -> None:
        desks = getattr(self, "_desks", [])
        if desks and self._pid == os.getpid():
            if not sys.is_finalizing():  # then the threads are gone, perhaps with a lock that abandon() would wait for
                for desk in desks:
                    desk.abandon()
                if self._owned is not None:
                    self._owned.clear()
            message = f"{self!r} was not closed: use it in `async with store:`"
            warnings.warn(message, ResourceWarning, source=self, stacklevel=2)

    # ------------------------------------------------------------ the three verbs

    async def in_time(self, operation: Awaitable[T], late: type[StoreError] = StoreUnavailableError) -> T:
        return await operation  # every call here has its own deadline, and knows better what became of it

    async def get(self, key: str) -> Stored | None:
        return await self.fetch(key)

    async def head(self, key: str) -> Revision | None:
        """Return the revision under *key*, as of now: every put of any process that returned before is seen."""
        revision: Revision | None = await self._send(Job("head", key, self._future(key)))
        return revision

    async def put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> None:
        await self.submit(key, data, revision=revision, expected=expected)

    async def delete(self, key: str, *, expected: Revision | Expect) -> None:
        await self._send(Job("delete", key, self._future(key), expected=expected))

    async def _ask(self, verb: Literal["keys", "count"], part: str, scope: object = None) -> Any:
        """Have some of a listing done."""
        return await self._send(Job(verb, part, self._future(part), scope=scope))

    def fetch(self, key: str) -> asyncio.Future[Stored | None]:
        """Begin a get and return a bare future, no task, that carries its outcome."""
        return self._send(Job("get", key, self._future(key)))

    def submit(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> asyncio.Future[None]:
        """Begin a put and return a bare future, no task, that carries its outcome."""
        self._check_put(key, revision, expected)
        return self._send(Job("put", key, self._future(key), bytes(data), bytes(revision), expected))

    def begin_get(self, key: str, done: Got) -> asyncio.Future[Stored | None] | None:
        """Begin a get whose outcome is told in the very callback that a thread's batch ends with."""
        if type(self).fetch is not LocalStore.fetch:
            return super().begin_get(key, done)
        self._check_open()
        self._check_text(key)
        self._desks[0].send(Job("get", key, NOBODY, done=done))
        return None

    def begin_put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect, done: Done) -> None:
        """Begin a put whose outcome is told in the very callback that a thread's batch ends with."""
        if type(self).submit is not LocalStore.submit:  # somebody's own, who wants to see each put
            super().begin_put(key, data, revision=revision, expected=expected, done=done)
            return
        self._check_put(key, revision, expected)
        if not self._desks or _get_running_loop() is not self._loop or not key.isascii():
            self._check_open()
            self._check_text(key)
        self._desks[1].send(Job("put", key, NOBODY, data, revision, expected, done))

    def _check_put(self, key: str, revision: Revision, expected: Revision | Expect) -> None:
        if expected is _ANY:
            raise UsageError(
                f"a put of key {key!r} expects a revision or Expect.ABSENT: Expect.ANY is only for deleting"
            )

    def _future(self, key: str) -> asyncio.Future[Any]:
        self._check_open()
        self._check_text(key)
        return asyncio.get_running_loop().create_future()

    def _check_text(self, key: str) -> None:
        if not key.isascii():
            try:
                key.encode()
            except UnicodeEncodeError:
                raise InvalidKeyError("a key holds a lone surrogate: decode it as UTF-8 at its source") from None

    def _send(self, job: Job) -> asyncio.Future[Any]:
        self._desk(job).send(job)
        return job.future

    # ------------------------------------------------------------ one owner

    async def claim(self, name: str, *, shared: bool, wait: float) -> None:
        """Own the agents called *name* here: nobody else does, in no process, unless all are *shared*."""
        self._check_open()
        await super().claim(name, shared=shared, wait=wait)
        assert self._owned is not None
        try:
            await self._owned.add(name, shared=shared, wait=wait)
        except BaseException:
            await super().release(name)
            raise

    async def release(self, name: str) -> None:
        if self._owned is not None:
            self._owned.remove(name)
        await super().release(name)
