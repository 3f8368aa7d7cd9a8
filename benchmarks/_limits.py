"""What bounds us: the bare engine on the same work, without a manager, an agent, a check or an owner."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import msgspec

from ._load import change, drive, kilobyte, run, scratch

__all__ = ["Pipeline", "connect", "engine", "file_calls", "pipeline"]

encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
_UPSERT = "INSERT INTO t(key, data) VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET data = excluded.data"


def connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = wal; PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, data BLOB)")
    return connection


def write(connection: apsw.Connection, rows: list[tuple[str, bytes]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_UPSERT, rows)
    connection.execute("COMMIT")


class Pipeline:
    """One asyncio future per put, and one thread that writes all that waits in one transaction."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._waiting: list[tuple[str, bytes, asyncio.Future[None]]] = []
        self._queue: queue.SimpleQueue[list[tuple[str, bytes, asyncio.Future[None]]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def put(self, key: str, data: bytes) -> asyncio.Future[None]:
        future = self._loop.create_future()
        if not self._waiting:
            self._loop.call_soon(self._hand_over)
        self._waiting.append((key, data, future))
        return future

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _hand_over(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._queue.put(waiting)

    def _write(self) -> None:
        connection = connect(self._path)
        while (batch := self._queue.get()) is not None:
            write(connection, [(key, data) for key, data, _ in batch])
            self._loop.call_soon_threadsafe(self._answer, batch)
        connection.close()

    def _answer(self, batch: list[tuple[str, bytes, asyncio.Future[None]]]) -> None:
        for _, _, future in batch:
            future.set_result(None)


def pipeline(agents: int, seconds: float, callers: int = 1, loop: str = "asyncio") -> float:
    """Durable calls per second of the bare pipeline."""

    async def main() -> float:
        writer = Pipeline(scratch() / "limit.db")

        def caller(number: int) -> Callable[[], asyncio.Future[None]]:
            key, items = f"key-{number % agents}", states[number % agents]

            def step() -> asyncio.Future[None]:
                change(items)
                return writer.put(key, encode({"items": items}))

            return step

        states = [kilobyte() for _ in range(agents)]
        try:
            return await drive([caller(number) for number in range(agents * callers)], seconds)
        finally:
            writer.close()

    return run(main(), loop)


def engine(batch: int, seconds: float) -> float:
    """Upserts per second of the engine alone, one thread, in transactions of *batch* rows."""
    connection = connect(scratch() / "engine.db")
    states = [(f"key-{number}", kilobyte()) for number in range(batch)]
    done, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        for _, items in states:
            change(items)
        write(connection, [(key, encode({"items": items})) for key, items in states])
        done += batch
    connection.close()
    return done / (now - begin)


def engine_fill(count: int, batch: int = 256) -> float:
    """New rows per second."""
    connection = connect(scratch() / "engine.db")
    data = encode({"items": kilobyte()})
    begin = time.perf_counter()
    for first in range(0, count, batch):
        write(connection, [(f"key-{number}", data) for number in range(first, min(count, first + batch))])
    spent = time.perf_counter() - begin
    connection.close()
    return count / spent


def counter_calls(callers: int, seconds: float) -> float:
    """Coroutines awaited per second, on bare objects."""

    class Counter:
        count = 0

        async def add(self, by: int = 1) -> int:
            self.count += by
            return self.count

    return run(drive([Counter().add for _ in range(callers)], seconds, chunk=100))


def engine_get(count: int) -> float:
    """Rows read and decoded per second."""
    connection = connect(scratch() / "engine.db")
    data = encode({"items": kilobyte()})
    write(connection, [(f"key-{number}", data) for number in range(count)])
    decode = msgspec.msgpack.Decoder(dict[str, list[dict[str, Any]]]).decode
    begin = time.perf_counter()
    found = [decode(connection.execute("SELECT data FROM t WHERE key = ?", (f"key-{n}",)).get) for n in range(count)]
    spent = time.perf_counter() - begin
    connection.close()
    return len(found) / spent


def file_calls(verb: str, count: int, hop: bool = False) -> float:
    """The system calls of a durable file, in a loop: temporary file, fsync, rename, fsync of the folder.

    With *hop*, an event loop has a thread do each of them, one after the other.
    """
    folder = scratch()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    data = encode({"items": kilobyte()})
    names = [f"{number:064x}" for number in range(count)]

    def put(name: str) -> None:
        temporary = os.open(f"{name}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=descriptor)
        os.write(temporary, data)
        os.fsync(temporary)
        os.close(temporary)
        os.rename(f"{name}.tmp", name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        os.fsync(descriptor)

    def get(name: str) -> None:
        file = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.read(file, 1 << 16)
        os.close(file)

    def delete(name: str) -> None:
        os.unlink(name, dir_fd=descriptor)
        os.fsync(descriptor)

    if verb != "put":
        for name in names:
            put(name)
    step = {"put": put, "get": get, "delete": delete}[verb]
    begin = time.perf_counter()
    if hop:
        run(_in_thread(step, names))
    else:
        for name in names:
            step(name)
    spent = time.perf_counter() - begin
    os.close(descriptor)
    return count / spent


async def _in_thread(step: Callable[[str], None], names: list[str]) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        for name in names:
            await loop.run_in_executor(thread, step, name)
