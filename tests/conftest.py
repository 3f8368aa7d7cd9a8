"""Async tests run under ``asyncio.run``, one fresh loop each; nothing but servers may outlive its test."""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto_server import MotoServer
from proofs import Report, add_options, choose_seed
from servers import Postgres, Redis, Server, Valkey

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background; children would ignore it as well
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    choose_seed(config)
    config.pluginmanager.register(Report(config))
    config.addinivalue_line("markers", "alone: has a bound in seconds, so no other test runs beside it")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["seed"] = node.config.option.seed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Where tests run in several processes, let one that is to be alone wait for the others, and they for it."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    here = Path(__file__).parent
    with (here / "conftest.py").open() as turnstile, (here / "proofs.py").open() as place:  # any two files
        fcntl.flock(turnstile, fcntl.LOCK_EX)  # or those that may run together would let nobody be alone
        fcntl.flock(place, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}

    async def bounded() -> None:
        limit = 3600 if pyfuncitem.config.option.soak else 60
        async with asyncio.timeout(limit):  # a hang is a failure that says where, not a job that never ends
            await test(**arguments)

    asyncio.run(bounded())
    return True


def _shared(kind: Callable[[], Server]) -> Any:
    @pytest.fixture(scope="session")
    def server() -> Iterator[Server]:
        with kind() as running:
            yield running

    return server


# Started by the first test that asks; for tests that leave them running. Whoever kills a server makes one of his own.
valkey = _shared(Valkey)
redis = _shared(Redis)
postgres = _shared(Postgres)


@pytest.fixture
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose flushes cost nothing, where there is one: for tests that don't need a real disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("folder")
        return
    with tempfile.TemporaryDirectory(prefix="overwinter-test-", dir=memory) as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="session")
def s3() -> Iterator[MotoServer]:
    with MotoServer() as running:
        yield running
