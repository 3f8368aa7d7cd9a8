from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from overwinter.stores import MemoryStore, SQLiteStore, Store
from overwinter.testing import FaultyStore, StoreContract

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
    @pytest.fixture(autouse=True)
    def _one_object(self) -> None:
        self.store = MemoryStore()

    async def make_store(self) -> Store:
        return self.store


class TestSQLiteStore(StoreContract):
    can_corrupt = True

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "agents.db"

    async def make_store(self) -> Store:
        return SQLiteStore(self.path)

    async def corrupt(self, key: str) -> None:
        edit(self.path, "UPDATE agents SET data = 'text, not bytes' WHERE key = ?", key)


class TestOneSQLiteStoreForAll(TestSQLiteStore):
    async def make_store(self) -> Store:
        if not hasattr(self, "store"):
            self.store = SQLiteStore(self.path)
        return self.store


class TestFaultyStoreWithoutFaults(StoreContract):
    @pytest.fixture(autouse=True)
    def _one_object(self) -> None:
        self.store = MemoryStore()

    async def make_store(self) -> Store:
        return FaultyStore(self.store)
