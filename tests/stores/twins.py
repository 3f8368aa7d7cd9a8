"""Small stores without a bug, which claim to keep their records. Each bug in bugs.py is put into one of them.

Each has a reason to be: a dictionary, a connection with an answer under way, a server behind a network, a file per
record, a log with one flush for many puts.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
from functools import partial
from pathlib import Path

from overwinter.errors import (
    CorruptRecordError,
    OutcomeUnknownError,
    RevisionConflictError,
    StoreInUseError,
    StoreUnavailableError,
)
from overwinter.stores import Durability, Expect, MemoryStore, Store, Stored


class Durable(MemoryStore):
    """A dictionary. What is damaged is told by its data."""

    durability = Durability.HOST
    page = 100

    async def get(self, key):
        return self.get_now(key)

    def get_now(self, key):
        stored = self._records.get(key)
        if stored is not None and stored.data == b"damaged":
            raise CorruptRecordError("damaged")
        return stored

    async def head(self, key):
        return self._revision(key)

    def put_now(self, key, data, revision, expected):
        self._compare(key, expected)
        self._records[key] = Stored(data, revision)

    async def put(self, key, data, *, revision, expected):
        key.encode()
        await asyncio.sleep(0)
        self.put_now(key, data, revision, expected)

    async def delete(self, key, *, expected):
        if key in self._records and expected is not Expect.ANY:
            self._compare(key, expected)
        self._records.pop(key, None)

    def after(self, last, prefix):
        """The next page of keys."""
        keys = sorted(key for key in self._records if key.startswith(prefix) and (last is None or key > last))
        return keys[: self.page]

    async def keys(self, prefix=""):
        last = None
        while page := self.after(last, prefix):
            await asyncio.sleep(0)
            for key in page:
                yield key
            last = page[-1]


# ---------------------------------------------------------------- a connection


class Connection:
    """Answers come in the order of the questions, some passes of the loop later, whoever reads them."""

    def __init__(self):
        self.answers = asyncio.Queue()

    def ask(self, work):
        async def serve():
            for _ in range(3):
                await asyncio.sleep(0)
            try:
                answer = work()
            except Exception as error:
                answer = error
            self.answers.put_nowait(answer)

        self.serving = asyncio.create_task(serve())

    async def answer(self):
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Connected(Durable):
    """One connection, used by one caller after the other. A connection with an answer under way is thrown away."""

    connection = None
    held = False

    async def open(self):
        self.lock = asyncio.Lock()
        await self.log_in()

    async def log_in(self):
        if self.held:
            raise StoreUnavailableError("somebody is logged in")
        self.held = True
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except BaseException:
            self.held = False
            raise

    async def close(self):
        self.held = False
        self.connection = None
        await asyncio.sleep(0)

    async def ask(self, work):
        async with self.lock:
            connection, self.connection = self.connection or Connection(), None
            connection.ask(work)
            try:
                return await connection.answer()
            except asyncio.CancelledError:
                connection = None
                raise
            finally:
                self.connection = connection

    async def get(self, key):
        self._check_open()
        return await self.ask(lambda: self.get_now(key))

    async def head(self, key):
        self._check_open()
        return await self.ask(lambda: self._revision(key))

    async def put(self, key, data, *, revision, expected):
        self._check_open()
        key.encode()
        await self.ask(lambda: self.put_now(key, data, revision, expected))

    async def delete(self, key, *, expected):
        self._check_open()
        await self.ask(lambda: self.delete_now(key, expected))

    def delete_now(self, key, expected):
        if key in self._records and expected is not Expect.ANY:
            self._compare(key, expected)
        self._records.pop(key, None)


# ---------------------------------------------------------------- a server behind a network


class Server:
    """Revisions and data; what was deleted leaves a tombstone, and a create must name the one that it saw."""

    def __init__(self):
        self.records = {}
        self.tombstones = {}
        self.trouble = None
        self.late = []

    def put(self, key, data, revision, expected, tombstone):
        found = self.records.get(key)
        if found is not None and found.revision == revision:
            return None  # it had landed: this one is a repetition
        if expected is Expect.ABSENT:
            if found is not None or self.tombstones.get(key) != tombstone:
                return self.tombstones.get(key) if found is None else RevisionConflictError("somebody else created it")
        elif found is None or found.revision != expected:
            return RevisionConflictError("somebody else wrote")
        self.records[key] = Stored(data, revision)
        return None

    def delete(self, key, expected):
        found = self.records.get(key)
        if found is None:
            return None
        if expected is not Expect.ANY and found.revision != expected:
            return RevisionConflictError("somebody else wrote")
        del self.records[key]
        self.bury(key, found)
        return None

    def bury(self, key, found):
        self.tombstones[key] = found.revision + b"+"


class Remote(Store):
    """Talks to a server. A lost answer is an unknown outcome."""

    durability = Durability.HOST
    network = True

    def __init__(self, server):
        self.server = server

    async def send(self, work):
        await asyncio.sleep(0)
        trouble, self.server.trouble = self.server.trouble, None
        if trouble == "refused":
            raise StoreUnavailableError("connection refused")
        if trouble == "request lost":
            return await self.lost(work)
        if trouble == "late":
            self.server.late.append(work)
            return await self.lost(work)
        answer = work()
        if trouble == "answer lost":
            return await self.lost(work)
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def lost(self, work):
        raise OutcomeUnknownError("the connection was reset")

    async def get(self, key):
        return await self.send(lambda: self.server.records.get(key))

    async def put(self, key, data, *, revision, expected):
        key.encode()
        tombstone = None
        while True:  # each may be another one, if it was created and deleted meanwhile
            work = partial(self.server.put, key, data, revision, expected, tombstone)
            tombstone = await self.send(work)
            if tombstone is None:
                break

    async def delete(self, key, *, expected):
        await self.send(lambda: self.server.delete(key, expected))


# ---------------------------------------------------------------- a file per record


class Folder(Store):
    """A file per record: locked, written, flushed, renamed, and its folder flushed."""

    durability = Durability.HOST

    def __init__(self, folder):
        self.folder = Path(folder)

    def name(self, key):
        return hashlib.sha256(key.encode()).hexdigest()

    async def get(self, key):
        return await asyncio.to_thread(self.read_locked, key)

    async def put(self, key, data, *, revision, expected):
        content = bytes([len(revision)]) + revision + hashlib.sha256(data).digest() + data
        await asyncio.to_thread(self.change, key, expected, content)

    async def delete(self, key, *, expected):
        await asyncio.to_thread(self.change, key, expected, None)

    @contextlib.contextmanager
    def locked(self, key, how):
        with (self.folder / (self.name(key) + ".lock")).open("ab") as lock:
            fcntl.flock(lock, how)
            yield

    def read_locked(self, key):
        with self.locked(key, fcntl.LOCK_SH):
            self.flush_folder()  # a writer that was killed may have left a rename that is not durable
            return self.read(key)

    def read(self, key):
        try:
            content = (self.folder / self.name(key)).read_bytes()
        except FileNotFoundError:
            return None
        size = content[0] if content else 0
        data = content[33 + size :]
        if len(content) < 33 + size or hashlib.sha256(data).digest() != content[1 + size : 33 + size]:
            return self.damaged()
        return Stored(data, content[1 : 1 + size])

    def damaged(self):
        raise CorruptRecordError("the file is damaged")

    def change(self, key, expected, content):
        with self.locked(key, fcntl.LOCK_EX):
            if expected is not Expect.ANY:
                stored = self.read(key)
                if stored is None and content is None:
                    return
                if (Expect.ABSENT if stored is None else stored.revision) != expected:
                    raise RevisionConflictError("somebody else wrote")
            path = self.folder / self.name(key)
            if content is None:
                self.remove(path)
            else:
                self.write(path, content)

    def remove(self, path):
        path.unlink(missing_ok=True)
        self.flush_folder()

    def write(self, path, content):
        temporary = self.temporary(path)
        with temporary.open("wb", buffering=0) as file:
            file.write(content)
            self.flush(file)
        temporary.replace(path)
        self.flush_folder()

    def temporary(self, path):
        return path.with_suffix(f".{os.urandom(8).hex()}")

    def flush(self, file):
        os.fsync(file.fileno())

    def flush_folder(self):
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------- a log


class Journal(Store):
    """A log of changes in one file, and the newest in memory. Puts that wait share one write and one flush.

    A second process is refused, since nobody would tell it what the first one wrote.
    """

    durability = Durability.HOST
    file = None

    def __init__(self, path):
        self.path = Path(path)

    async def open(self):
        new = not self.path.exists()
        self.file = self.path.open("ab+", buffering=0)
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise StoreInUseError("another process has the log, which only one may write") from None
        if new:
            descriptor = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        self.records = {}
        self.file.seek(0)
        whole = 0
        for line in self.file.readall().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # a kill in the middle of a write: nobody was told
            whole += len(line)
            key, revision, data = json.loads(line)
            self.apply(key, None if data is None else Stored(data.encode("latin-1"), revision.encode("latin-1")))
        self.file.truncate(whole)
        self.waiting = []
        self.flusher = None

    async def close(self):
        if self.flusher is not None:
            await asyncio.shield(self.flusher)
        self.file.close()

    def apply(self, key, stored):
        if stored is None:
            self.records.pop(key, None)
        else:
            self.records[key] = stored

    async def get(self, key):
        self._check_open()
        return self.records.get(key)

    async def put(self, key, data, *, revision, expected):
        await self.submit(key, data, revision=revision, expected=expected)

    def submit(self, key, data, *, revision, expected):
        key.encode()
        return self.enqueue(key, Stored(data, revision), expected)

    async def delete(self, key, *, expected):
        await self.enqueue(key, None, expected)

    def enqueue(self, key, stored, expected):
        self._check_open()
        done = asyncio.get_running_loop().create_future()
        self.waiting.append((key, stored, expected, done))
        if self.flusher is None:
            self.flusher = asyncio.ensure_future(self.flush())
        return done

    async def flush(self):
        await asyncio.sleep(0)
        while self.waiting:
            batch, self.waiting = self.waiting, []
            landed, answers = self.decide(batch)
            lines = b"".join(self.line(key, stored) for key, stored in landed)
            await self.write(lines, landed, answers)
        self.flusher = None

    def decide(self, batch):
        """What of a batch is to be written, and what to tell whom."""
        latest, landed, answers = dict(self.records), [], []
        for key, stored, expected, done in batch:
            found = latest.get(key)
            revision = Expect.ABSENT if found is None else found.revision
            if stored is None and (found is None or expected is Expect.ANY):
                expected = revision
            if revision != expected:
                answers.append((done, RevisionConflictError("somebody else wrote")))
                continue
            if stored is None:
                latest.pop(key, None)
            else:
                latest[key] = stored
            landed.append((key, stored))
            answers.append((done, None))
        return landed, answers

    def line(self, key, stored):
        revision, data = (None, None) if stored is None else (stored.revision, stored.data)
        whole = [key, *(None if part is None else part.decode("latin-1") for part in (revision, data))]
        return json.dumps(whole).encode() + b"\n"

    async def write(self, lines, landed, answers):
        await asyncio.to_thread(self.append, lines)
        for key, stored in landed:
            self.apply(key, stored)
        self.tell(answers)

    def append(self, lines):
        self.file.write(lines)
        os.fdatasync(self.file.fileno())

    def tell(self, answers):
        for done, error in answers:
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)
