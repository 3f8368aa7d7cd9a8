"""What the stores keep, past the stores: plain data that is planted, and that is looked at.

Names and bytes as they stand in files, rows, values and objects. Each place is empty when it is made.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import apsw
import obstore
import obstore.store
import psycopg
import redis
from moto_server import MotoServer

from overwinter.stores import FileStore, SQLiteStore, Store
from overwinter.stores.objects import ObjectStore
from overwinter.stores.postgres import PostgresStore
from overwinter.stores.redis import RedisStore

__all__ = ["PLACES", "Place"]

Held = dict[str, Any]
_numbers = itertools.count()


class Place:
    """Somewhere for one store. ``held`` is what stands there; tombstones, which are random, are in it too."""

    server: str | None = None
    """The fixture that it needs."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.folder, self.running = folder, server
        self.name = f"golden{os.getpid()}x{next(_numbers)}"

    def store(self) -> Store:
        raise NotImplementedError

    async def prepare(self) -> None:
        """Make what a store makes when it is opened first, for names are planted beside it."""
        async with self.store():
            pass

    def plant(self, held: Held) -> None:
        raise NotImplementedError

    def held(self) -> Held:
        raise NotImplementedError


class FilePlace(Place):
    def __init__(self, folder: Path, server: Any) -> None:
        super().__init__(folder, server)
        self.root = folder / self.name

    def store(self) -> Store:
        return FileStore(self.root)

    def plant(self, held: Held) -> None:
        for name, data in held.items():
            path = self.root / name
            path.write_bytes(bytes.fromhex(data))
            path.chmod(0o600)

    def held(self) -> Held:
        files = [path for path in self.root.rglob("*") if path.is_file() and "lock" not in path.name]
        return {str(path.relative_to(self.root)): path.read_bytes().hex() for path in sorted(files)}


class SQLitePlace(Place):
    """The bytes of a database depend on the library: its schema and its rows are what is held."""

    def __init__(self, folder: Path, server: Any) -> None:
        super().__init__(folder, server)
        self.path = folder / f"{self.name}.db"

    def store(self) -> Store:
        return SQLiteStore(self.path)

    async def prepare(self) -> None:
        pass  # the database is planted whole

    def plant(self, held: Held) -> None:
        shutil.copyfile(held["database"], self.path)
        self.path.chmod(0o600)

    def held(self) -> Held:
        with apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY) as connection:
            numbers = {name: connection.pragma(name) for name in ("application_id", "user_version")}
            tables = [text for (text,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]
            rows = [
                [key, revision.hex(), data.hex()]
                for key, revision, data in connection.execute("SELECT key, revision, data FROM agents ORDER BY key")
            ]
        connection.close()
        return {**numbers, "tables": tables, "rows": rows}


class RedisPlace(Place):
    server = "redis"

    def store(self) -> Store:
        return RedisStore(self.running.url, prefix=f"{self.name}:")

    def plant(self, held: Held) -> None:
        with redis.Redis.from_url(self.running.url) as client:
            for name, value in held.items():
                client.set(f"{self.name}:{name}", bytes.fromhex(value))

    def held(self) -> Held:
        with redis.Redis.from_url(self.running.url) as client:
            names = sorted(client.scan_iter(f"{self.name}:*"))
            found = {name.decode().partition(":")[2]: client.get(name).hex() for name in names}
        found.pop("store")  # the server's own number
        return found


class ValkeyPlace(RedisPlace):
    server = "valkey"


class PostgresPlace(Place):
    server = "postgres"

    def store(self) -> Store:
        return PostgresStore(self.running.url, table=self.name)

    async def prepare(self) -> None:
        pass  # the table is planted, too

    def plant(self, held: Held) -> None:
        with psycopg.connect(self.running.url, autocommit=True) as connection:
            connection.execute(held["table"].replace("TABLE_NAME", self.name))
            for row in held["rows"]:
                values = [None if value is None else bytes.fromhex(value) for value in row[:4]]
                connection.execute(
                    f"INSERT INTO {self.name} VALUES (%s, %s, %s, %s, CASE WHEN %s THEN now() END)", (*values, row[4])
                )
            identity = bytes.fromhex(held["identity"])
            connection.execute(f"INSERT INTO {self.name} (key, revision) VALUES ('', %s)", (identity,))

    def held(self) -> Held:
        with psycopg.connect(self.running.url) as connection:
            rows = connection.execute(
                f"SELECT key, long_key, revision, data, deleted_at IS NOT NULL FROM {self.name} ORDER BY key"
            ).fetchall()
        identity, *others = [[value.hex() if isinstance(value, bytes) else value for value in row] for row in rows]
        assert [*identity[:2], *identity[3:]] == ["", None, None, False]
        return {"rows": others, "identity": identity[2]}


class ObjectPlace(Place):
    server = "s3"

    def __init__(self, folder: Path, server: MotoServer) -> None:
        super().__init__(folder, server)
        self.url = f"s3://{server.bucket}/{self.name}"

    def store(self) -> Store:
        return ObjectStore(self.url, **self.running.options)

    def _bucket(self) -> Any:
        return obstore.store.from_url(self.url, **self.running.options)

    def plant(self, held: Held) -> None:
        for name, data in held.items():
            obstore.put(self._bucket(), name, bytes.fromhex(data))

    def held(self) -> Held:
        bucket = self._bucket()
        names = sorted(each["path"] for page in obstore.list(bucket) for each in page)
        return {name: bytes(obstore.get(bucket, name).bytes()).hex() for name in names}


PLACES: dict[str, type[Place]] = {
    "file": FilePlace,
    "sqlite": SQLitePlace,
    "redis": RedisPlace,
    "postgres": PostgresPlace,
    "objects": ObjectPlace,
}
