"""Every example runs for real, as its reader would run it, and does what it says."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import uvicorn
import websockets

from overwinter import Store
from overwinter.testing import StoreContract, until

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path) -> list[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations are resolved through the module
    spec.loader.exec_module(module)
    return module


def test_each_example_has_a_test_and_says_what_it_shows():
    files = {path.stem: path.read_text() for path in EXAMPLES.glob("*.py")}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*example*.py"))
    tested = set(re.findall(r"(?:run|load)\(\"(\w+)\"", tests))
    assert files.keys() == tested
    for name, text in files.items():
        assert text.startswith('"""'), name
        assert 'if __name__ == "__main__":' in text, name


def test_the_demo_refuses_a_folder_that_is_there(tmp_path):
    command = [sys.executable, "-m", "demo", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: --folder makes a new folder, and can't make {tmp_path}: File exists\n")


def test_session(tmp_path):
    assert run("session", tmp_path) == [
        "items after adding two more: 5",
        "cart: {'tea': 4, 'bread': 1}",
        "preferences: {'language': 'en'}",
    ]


def test_session_upcast(tmp_path):
    assert run("session_upcast", tmp_path) == ["cart: {'tea': 2, 'bread': 2}"]


def test_the_workflow_goes_on_after_each_restart(tmp_path):
    assert run("workflow", tmp_path) == ["done so far: []", "did validate, next is charge"]
    assert run("workflow", tmp_path) == ["done so far: ['validate']", "did charge, next is ship"]
    assert run("workflow", tmp_path) == ["done so far: ['validate', 'charge']", "did ship, next is None"]
    assert run("workflow", tmp_path) == ["done so far: ['validate', 'charge', 'ship']", "nothing left to do"]


def test_the_workflow_goes_on_after_being_killed_in_the_moment_of_the_reply(tmp_path):
    program = (
        "import asyncio, os, signal, workflow\n"
        "workflow.print = lambda *words: os.kill(os.getpid(), signal.SIGKILL) if 'did' in words[0] else None\n"
        "asyncio.run(workflow.main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    killed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert run("workflow", tmp_path)[0] == "done so far: ['validate']"


def test_direct(tmp_path):
    assert run("direct", tmp_path) == [
        "agent-123: not found, so it starts fresh",
        "agent-123: thawed, it says 'buy tea'",
        "agent-123: thawed, it says 'buy tea'",
        "agent-123: somebody else wrote it meanwhile, nothing was overwritten",
        "agent-123: failed to thaw, and left alone: CorruptRecordError",
        "agent-123: deleted",
    ]


def test_custom_key(tmp_path):
    assert run("custom_key", tmp_path) == [
        "acme: ada has 1 in the cart",
        "globex: ada has 1 in the cart",
        "acme: ada has 2 in the cart",
        "acme/cart/ada: stored",
        "globex/cart/ada: stored",
        "cart:ada: nothing",
    ]


def test_ephemeral(tmp_path):
    assert run("ephemeral", tmp_path) == [
        "made while attached: 2",
        "live after idling: 0",
        "made by the next one: 0",
    ]
    assert list(tmp_path.iterdir()) == []


def test_custom_store(tmp_path):
    assert run("custom_store", tmp_path) == ["1", "2"]


class TestFolderStore(StoreContract):
    """The example store keeps every promise that managers rely on."""

    can_corrupt = True

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.example = load("custom_store")
        self.folder = tmp_path

    async def make_store(self) -> Store:
        store: Store = self.example.FolderStore(self.folder)
        return store

    async def corrupt(self, key: str) -> None:
        self.example.FolderStore(self.folder)._path(key).write_bytes(b"torn")


# ---------------------------------------------------------------- the web


@asynccontextmanager
async def serving(web: ModuleType) -> AsyncIterator[str]:
    config = uvicorn.Config(web.app, host="127.0.0.1", port=0, log_level="warning", ws="websockets-sansio")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started or task.done())
    try:
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOMS_DB", str(tmp_path / "rooms.db"))
    return load("web")


async def test_web_over_http_and_a_restart(web):
    async with serving(web) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        assert (await client.post("/rooms/tea", json={"text": "hello"})).json() == {"messages": 1}
        assert (await client.post("/rooms/tea", json={"text": "hi"})).json() == {"messages": 2}
        assert (await client.post("/rooms/tea", json={})).status_code == 422
        assert (await client.get("/stats")).json() == {"live": 1, "attached": 0}
    async with serving(web) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        assert (await client.get("/rooms/tea?count=1")).json() == [{"text": "hi"}]
        assert (await client.get("/rooms/empty")).json() == []


@pytest.mark.parametrize("leaving", ["close", "abort"])
async def test_a_websocket_attaches_and_detaches_when_it_goes(web, leaving):
    async with serving(web) as address:
        rooms = web.app.state.rooms
        one = await websockets.connect(f"ws://{address}/rooms/tea")
        other = await websockets.connect(f"ws://{address}/rooms/tea")
        await one.send("hello")
        assert await one.recv() == '{"messages":1}'
        await other.send("hi")
        assert await other.recv() == '{"messages":2}'
        assert rooms.inspect("tea").attached == 2
        for left, socket in [(1, one), (0, other)]:
            if leaving == "close":
                await socket.close()
            else:
                socket.transport.abort()  # no closing handshake: the other side has crashed
            await until(lambda left=left: rooms.inspect("tea").attached == left)
        assert rooms.stats().attached == 0
        assert rooms.inspect("tea").why_live.startswith("idle for")


def test_the_web_program_stores_everything_when_it_is_told_to_end(tmp_path):
    environment = {**os.environ, "ROOMS_DB": "rooms.db", "PORT": "0", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(EXAMPLES / "web.py")]
    for messages in (1, 2):
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as server:
            try:
                assert server.stderr is not None
                lines = (re.search(r"http://127[.\d]+:\d+", line) for line in server.stderr)
                address = next(found[0] for found in lines if found)
                reply = httpx.post(f"{address}/rooms/tea", json={"text": "hello"}, timeout=30)
                assert reply.json() == {"messages": messages}
            finally:
                server.send_signal(signal.SIGTERM)
                _, rest = server.communicate(timeout=30)
        assert "Traceback" not in rest
        assert "Application shutdown complete" in rest
