from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import apsw
import pytest

from overwinter.errors import OutcomeUnknownError, StoreUnavailableError
from overwinter.stores import FileStore, MemoryStore, SQLiteStore, Store
from overwinter.stores import _sqlite_db as db
from overwinter.stores._file_frame import name_of
from overwinter.stores._file_layer import Files
from overwinter.testing import FaultyStore, StoreContract
from overwinter.testing._contract_trouble import CorruptionTests
from overwinter.testing._factory import Factory

DAMAGE = """
import sys, sqlite3
c = sqlite3.connect(sys.argv[1])
c.execute(sys.argv[2], (sys.argv[3],))
c.commit()
c.close()
"""


def edit(path: Path, sql: str, key: str) -> None:
    """Change the database as another program would: in another process, with another SQLite."""
    subprocess.run([sys.executable, "-c", DAMAGE, str(path), sql, key], check=True)


class TestMemoryStore(StoreContract):
    refuses_misuse = True

    @pytest.fixture(autouse=True)
    def _one_object(self) -> None:
        self.store = MemoryStore()

    async def make_store(self) -> Store:
        return self.store


class TestSQLiteStore(StoreContract):
    can_corrupt = True
    refuses_misuse = True

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "agents.db"

    def store_factory(self) -> Factory | None:
        return f"sqlite:///{self.path}"

    async def corrupt(self, key: str) -> None:
        edit(self.path, "UPDATE agents SET data = 'text, not bytes' WHERE key = ?", key)

    @contextlib.asynccontextmanager
    async def interrupt(self, store: Store) -> AsyncGenerator[None]:
        """Fail the next COMMIT, before or after it was done."""
        self.number = getattr(self, "number", 0) + 1
        run, landed, failed = db.run, self.number % 2, False

        def failing(connection, sql, *values):
            nonlocal failed
            if sql != "COMMIT" or failed:
                return run(connection, sql, *values)
            failed = True
            if landed:
                run(connection, sql)
            raise apsw.exception_for(apsw.SQLITE_IOERR_FSYNC)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(db, "run", failing)
            yield


class TestOneSQLiteStoreForAll(TestSQLiteStore):
    def store_factory(self) -> Factory | None:
        return None  # children are the same as above

    async def make_store(self) -> Store:
        if not hasattr(self, "store"):
            self.store = SQLiteStore(self.path)
        return self.store


class Failing(Files):
    """Fails once at the step that is named, which may be done nevertheless."""

    step = ""

    def attempt(self, step, action):
        if step != self.step.removesuffix(", done"):
            return action()
        done, self.step = self.step.endswith(", done"), ""
        if done:
            action()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fsync(self, descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        self.attempt("flush of the folder" if folder else "flush", lambda: os.fsync(descriptor))

    def rename(self, old, new, folder):
        self.attempt("rename", lambda: Files.rename(self, old, new, folder))


class TestFileStore(StoreContract):
    can_corrupt = True
    refuses_misuse = True

    @pytest.fixture(autouse=True)
    def _folder(self, in_memory: Path) -> None:
        self.folder = in_memory / "agents"

    def store_factory(self) -> Factory | None:
        return f"file://{self.folder}"

    async def make_store(self) -> Store:
        store = FileStore(self.folder)
        store._files = Failing()
        return store

    steps = ("flush of the folder", "flush", "rename", "flush of the folder, done", "rename, done")

    @contextlib.asynccontextmanager
    async def interrupt(self, store: Store) -> AsyncGenerator[None]:
        self.number = getattr(self, "number", -1) + 1
        assert isinstance(store, FileStore)
        store._files.step = self.steps[self.number % len(self.steps)]
        yield
        assert not store._files.step, "the step was not taken"

    def path(self, key: str) -> Path:
        return self.folder / name_of(key)[:2] / name_of(key)

    async def corrupt(self, key: str) -> None:
        content = bytearray(self.path(key).read_bytes())
        content[20] ^= 1
        self.path(key).write_bytes(content)


class TestOneFileStoreForAll(TestFileStore):
    def store_factory(self) -> Factory | None:
        return None

    async def make_store(self) -> Store:
        if not hasattr(self, "store"):
            self.store = await super().make_store()
        return self.store

    async def corrupt(self, key: str) -> None:
        self.path(key).write_bytes(self.path(key).read_bytes()[:-1])


class TestFileStoreOfTornFiles(CorruptionTests):
    can_corrupt = True

    @pytest.fixture(autouse=True)
    def _folder(self, in_memory: Path) -> None:
        self.folder = in_memory / "agents"

    async def make_store(self) -> Store:
        return FileStore(self.folder)

    async def corrupt(self, key: str) -> None:
        (self.folder / name_of(key)[:2] / name_of(key)).write_bytes(b"")


class TestFaultyStoreWithoutFaults(StoreContract):
    @pytest.fixture(autouse=True)
    def _one_object(self) -> None:
        self.store = MemoryStore()

    async def make_store(self) -> Store:
        return FaultyStore(self.store)

    @contextlib.asynccontextmanager
    async def interrupt(self, store: Store) -> AsyncGenerator[None]:
        assert isinstance(store, FaultyStore)
        self.number = getattr(self, "number", 0) + 1
        error = OutcomeUnknownError("reset") if self.number % 3 else StoreUnavailableError("refused")
        store.fail("put", error, after=self.number % 3 == 1)
        yield
