"""The contract's part about lost answers, on real servers behind a network that loses them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from moto_server import MotoServer
from proxy import Proxy
from servers import Postgres, Valkey

from overwinter.stores import Durability, Store
from overwinter.stores.objects import ObjectStore
from overwinter.stores.postgres import PostgresStore
from overwinter.stores.redis import RedisStore
from overwinter.testing._contract_trouble import OutcomeTests


class Behind(OutcomeTests):
    """Each handle has a proxy of its own, which ends when the handle is closed."""

    async def make_store(self) -> Store:
        proxy = Proxy(self.server())
        await proxy.accept()
        store: Any = self.store_at(proxy.port)
        close = store.close

        async def close_both() -> None:
            await close()
            await proxy.refuse()

        store.proxy, store.close, store.turn = proxy, close_both, 0
        return store  # type: ignore[no-any-return]

    def server(self) -> tuple[str, int] | str:
        raise NotImplementedError

    def store_at(self, port: int) -> Store:
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def interrupt(self, store: Any) -> AsyncGenerator[None]:
        """In turn: the answer is lost; the request is lost; the connection was cut before."""
        proxy: Proxy = store.proxy
        store.turn += 1
        cutting = None
        if store.turn % 3 == 0:
            await proxy.cut()
        elif store.turn % 3 == 1:
            proxy.lose_replies()
        else:
            proxy.hang()
            cutting = asyncio.create_task(self._cut_soon(proxy))
        yield
        if cutting is not None:
            await cutting

    async def _cut_soon(self, proxy: Proxy) -> None:
        await asyncio.sleep(0.05)  # the request is on its way, and goes no further
        await proxy.cut()
        proxy.flow()

    @contextlib.asynccontextmanager
    async def delay(self, store: Any) -> AsyncGenerator[None]:
        store.proxy.hang()
        yield
        store.proxy.flow()


class TestPostgresStore(Behind):
    @pytest.fixture(autouse=True)
    def _table(self, postgres: Postgres, table: str) -> None:
        self.postgres, self.table = postgres, table

    def server(self) -> str:
        return str(self.postgres.socket / ".s.PGSQL.5432")

    def store_at(self, port: int) -> Store:
        return PostgresStore(f"postgresql://postgres@127.0.0.1:{port}/postgres", table=self.table)


class TestRedisStore(Behind):
    @pytest.fixture(autouse=True)
    def _prefix(self, valkey: Valkey) -> None:
        self.valkey, self.prefix = valkey, f"{os.urandom(8).hex()}:"

    def server(self) -> str:
        return str(self.valkey.socket)

    def store_at(self, port: int) -> Store:
        return RedisStore(f"redis://127.0.0.1:{port}", prefix=self.prefix, durability=Durability.HOST)


class TestObjectStore(Behind):
    @pytest.fixture(autouse=True)
    def _prefix(self, s3: MotoServer) -> None:
        self.s3, self.prefix = s3, os.urandom(8).hex()

    def server(self) -> tuple[str, int]:
        return "127.0.0.1", self.s3.port

    def store_at(self, port: int) -> Store:
        return ObjectStore(f"s3://{self.s3.bucket}/{self.prefix}", **self.s3.options_at(port))
