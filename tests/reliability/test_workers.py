"""The service of docs/workers.md as it stands there, in four uvicorn workers on one file, called over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from overwinter.testing import until

PAGE = Path(__file__).parent.parent.parent / "docs" / "workers.md"
WORKERS = 4
CONNECTIONS = 3  # to each worker
PATIENCE = 30.0
KEY = "/counters/hot"


class Service:
    """Four workers behind one socket."""

    def __init__(self, folder: Path, socket: Path) -> None:
        found = re.search(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        assert found
        (folder / "service.py").write_text(found[1])
        self._log, self.socket = folder / "log", socket
        command = [sys.executable, "-m", "uvicorn", "service:app", "--workers", str(WORKERS), "--uds", str(socket)]
        command += ["--timeout-keep-alive", "60", "--no-access-log"]
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                command, cwd=folder, env={**os.environ, "COUNTERS_DB": "counters.db"}, stdout=sink, stderr=sink
            )
        self.workers: list[int] = []

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def ready(self) -> None:
        await until(lambda: self.log.count("startup complete") == WORKERS or self._process.poll() is not None, PATIENCE)
        self.workers = [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", self.log)]
        assert len(set(self.workers)) == WORKERS, self.log

    def client(self) -> httpx.AsyncClient:
        """One connection, which stays with the worker that accepts it."""
        limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket), limits=limits)
        return httpx.AsyncClient(transport=transport, base_url="http://service", timeout=PATIENCE)

    async def connect(self, client: httpx.AsyncClient, worker: int) -> None:
        """Have one worker, and no other, accept the connection: those that are stopped can't."""
        others = [pid for pid in self.workers if pid != worker]
        try:
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
                await until(lambda pid=pid: stopped(pid), PATIENCE)
            assert (await client.get("/counters/somebody")).json()["worker"] == worker
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE)

    def destroy(self) -> None:
        for pid in self.workers if self._process.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait(PATIENCE)


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def service(tmp_path):
    with tempfile.TemporaryDirectory(prefix="ow-") as folder:  # a socket's path is short
        service = Service(tmp_path, Path(folder) / "http")
        yield service
        service.destroy()


@contextlib.asynccontextmanager
async def connected(service):
    """Clients by worker, each on a connection of its own."""
    await service.ready()
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for worker in service.workers:
            clients[worker] = [await stack.enter_async_context(service.client()) for _ in range(CONNECTIONS)]
            for client in clients[worker]:
                await service.connect(client, worker)
        yield clients
        assert "Traceback" not in service.log


async def count(call, worker):
    response = await call
    assert response.status_code == 200, response.text
    assert response.json()["worker"] == worker
    return response.json()["count"]


async def test_what_one_worker_acknowledged_every_worker_sees(service):
    async with connected(service) as clients:
        turns = itertools.cycle(clients.items())
        for expected in range(1, 41):
            writer, (client, *_) = next(turns)
            assert await count(client.post(KEY), writer) == expected
            assert (
                await asyncio.gather(*(count(each[1].get(KEY), pid) for pid, each in clients.items()))
                == [expected] * WORKERS
            )
    assert service.end() in (0, -signal.SIGTERM)


async def test_a_hot_key_counts_exactly_and_no_read_is_stale(service):
    calls, seen, acknowledged = 25, [], 0

    async with connected(service) as clients:

        async def write(worker, client):
            nonlocal acknowledged
            for _ in range(calls):
                value = await count(client.post(KEY), worker)
                seen.append(value)
                acknowledged = max(acknowledged, value)

        async def read(worker, client, writers):
            while not writers.done():
                before = acknowledged
                assert await count(client.get(KEY), worker) >= before

        async def all_write():
            async with asyncio.TaskGroup() as group:
                for worker, (*writing, _) in clients.items():
                    for client in writing:
                        group.create_task(write(worker, client))

        async with asyncio.TaskGroup() as group:
            writers = group.create_task(all_write())
            for worker, (*_, reading) in clients.items():
                group.create_task(read(worker, reading, writers))

        total = calls * WORKERS * (CONNECTIONS - 1)
        assert sorted(seen) == list(range(1, total + 1))  # each increment once, and each reply its own
        for worker, (client, *_) in clients.items():
            assert await count(client.get(KEY), worker) == total
    assert service.end() in (0, -signal.SIGTERM)
