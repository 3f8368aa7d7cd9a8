"""overwinter.run: a service that is told to end stores everybody, or says whom it could not."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from overwinter import Agent, InstanceManager, MemoryStore

PROGRAM = """
    import asyncio, sys
    import overwinter
    from overwinter import Agent, InstanceManager, SQLiteStore
    from overwinter.errors import StoreUnavailableError
    from overwinter.testing import FaultyStore

    class Counter(Agent):
        count: int = 0
        async def increment(self) -> int:
            self.count += 1
            return self.count

    async def main() -> str:
        store = FaultyStore(SQLiteStore(sys.argv[1]))
        async with InstanceManager(Counter, store=store, durability="hibernate", store_patience=0.05) as counters:
            print(await counters.call("ada", Counter.increment), flush=True)
            if "full" in sys.argv:
                store.fail("put", lambda: StoreUnavailableError("full"), times=1e9)
            try:
                if "ends" not in sys.argv:
                    await asyncio.Event().wait()
            finally:
                if "full" in sys.argv:
                    await counters.close(deadline=0.3)
        return "over"

    print(overwinter.run(main()), flush=True)
"""


def start(tmp_path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "agents.db"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(child: subprocess.Popen, number: signal.Signals | None) -> tuple[str, str, int]:
    first = child.stdout.readline()
    if number is not None:
        child.send_signal(number)
    out, err = child.communicate(timeout=30)
    return first + out, err, child.returncode


def test_sigterm_stores_everybody(tmp_path):
    assert end(start(tmp_path), signal.SIGTERM) == ("1\nNone\n", "", 0)
    assert end(start(tmp_path), signal.SIGTERM)[0] == "2\nNone\n"


def test_a_main_that_ends_returns_its_value(tmp_path):
    assert end(start(tmp_path, "ends"), None) == ("1\nover\n", "", 0)


def test_ctrl_c_stores_everybody_and_is_a_keyboard_interrupt(tmp_path):
    _, err, status = end(start(tmp_path), signal.SIGINT)
    assert "KeyboardInterrupt" in err
    assert status in (1, 130, -signal.SIGINT)
    assert end(start(tmp_path), signal.SIGTERM)[0] == "2\nNone\n"


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_whom_it_could_not_store_is_named_and_the_status_is_not_zero(tmp_path, number):
    _, err, status = end(start(tmp_path, "full"), number)
    assert status == 1
    assert "not stored: 'ada'" in err
    assert "Traceback" not in err


class Counter(Agent):
    count: int = 0

    async def increment(self) -> int:
        self.count += 1
        return self.count


async def test_a_manager_leaves_signals_alone():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        await counters.call("ada", Counter.increment)
        assert {number: signal.getsignal(number) for number in before} == before
