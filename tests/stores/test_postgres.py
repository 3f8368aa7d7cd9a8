"""PostgresStore against a real server: the contract, and what is PostgreSQL's own."""

from __future__ import annotations

import itertools

import psycopg
import pytest

from overwinter.stores.postgres import PostgresStore
from overwinter.testing import StoreContract

_numbers = itertools.count()


@pytest.fixture
def table() -> str:
    return f"agents_{next(_numbers)}"


class TestPostgresStore(StoreContract):
    can_corrupt = True

    @pytest.fixture(autouse=True)
    def _table(self, postgres, table):
        self.url, self.table = postgres.url, table

    async def make_store(self):
        return PostgresStore(self.url, table=self.table)

    async def corrupt(self, key):
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"UPDATE {self.table} SET data = NULL WHERE key = %s", (key.encode(),))
