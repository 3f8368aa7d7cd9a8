from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from overwinter.stores import FileStore, MemoryStore, SQLiteStore, Store
from overwinter.stores._file_frame import name_of
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


class TestOneSQLiteStoreForAll(TestSQLiteStore):
    def store_factory(self) -> Factory | None:
        return None  # children are the same as above

    async def make_store(self) -> Store:
        if not hasattr(self, "store"):
            self.store = SQLiteStore(self.path)
        return self.store


class TestFileStore(StoreContract):
    can_corrupt = True
    refuses_misuse = True

    @pytest.fixture(autouse=True)
    def _folder(self, in_memory: Path) -> None:
        self.folder = in_memory / "agents"

    def store_factory(self) -> Factory | None:
        return f"file://{self.folder}"

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
            self.store = FileStore(self.folder)
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
