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


def start(path, *arguments: str, program: str = PROGRAM) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(program), str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(child: subprocess.Popen, number: signal.Signals | None) -> tuple[str, str, int]:
    first = ""
    if number is not None:
        first = child.stdout.readline()  # what is read ahead of that, communicate() does not see: it must wait now
        child.send_signal(number)
    out, err = child.communicate(timeout=30)
    return first + out, err, child.returncode


def test_sigterm_stores_everybody(tmp_path):
    assert end(start(tmp_path / "agents.db"), signal.SIGTERM) == ("1\nNone\n", "", 0)
    assert end(start(tmp_path / "agents.db"), signal.SIGTERM)[0] == "2\nNone\n"


def test_a_main_that_ends_returns_its_value(tmp_path):
    assert end(start(tmp_path / "agents.db", "ends"), None) == ("1\nover\n", "", 0)


def test_ctrl_c_stores_everybody_and_is_a_keyboard_interrupt(tmp_path):
    _, err, status = end(start(tmp_path / "agents.db"), signal.SIGINT)
    assert "KeyboardInterrupt" in err
    assert status in (1, 130, -signal.SIGINT)
    assert end(start(tmp_path / "agents.db"), signal.SIGTERM)[0] == "2\nNone\n"


CLOSING = """
    import asyncio, os, signal, sys
    import overwinter
    from overwinter import Agent, InstanceManager, SQLiteStore

    class Counter(Agent):
        count: int = 0
        async def increment(self) -> int:
            self.count += 1
            return self.count
        async def on_stop(self) -> None:  # once it has begun, the signals come
            while signals:
                os.kill(os.getpid(), signals.pop(0))
                for _ in range(100):  # long enough to be ended, if that is what the signal did
                    await asyncio.sleep(0)
            self.count += 10

    signals = [getattr(signal, name) for name in sys.argv[2:]]

    async def main() -> str:
        async with InstanceManager(Counter, store=SQLiteStore(sys.argv[1]), durability="hibernate") as counters:
            print(await counters.call("ada", Counter.increment), flush=True)
            if len(sys.argv) > 3:  # the first one ends main, the others come as it closes
                os.kill(os.getpid(), signals.pop(0))
                await asyncio.Event().wait()
        return "over"

    print(overwinter.run(main()), flush=True)
"""


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGINT"], ["SIGTERM", "SIGTERM"], ["SIGTERM"] * 5])
def test_signals_that_come_as_it_closes_lose_nothing(tmp_path, signals):
    path = tmp_path / "agents.db"
    first = end(start(path, *signals, program=CLOSING), None)
    assert first[2] == 0 or signals == ["SIGINT"], first
    assert end(start(path, program=CLOSING), None)[0] == "12\nover\n"


SWALLOWS = """
    import asyncio, contextlib, os, signal
    import overwinter

    async def main() -> None:
        print("began", flush=True)
        with contextlib.suppress(asyncio.CancelledError):  # takes it for the cancellation of what it waits for
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    print(overwinter.run(main()), flush=True)
"""


def test_a_main_that_keeps_a_signal_to_itself_is_ended_by_the_next(tmp_path):
    assert end(start(tmp_path / "unused", program=SWALLOWS), None) == ("began\nNone\n", "", 0)


FAILS = """
    import asyncio, sys
    import overwinter
    from overwinter import Agent, InstanceManager, MemoryStore
    from overwinter.errors import StoreUnavailableError
    from overwinter.testing import FaultyStore

    class Counter(Agent):
        count: int = 0
        async def increment(self) -> int:
            self.count += 1
            return self.count

    class Broken(MemoryStore):
        async def __aexit__(self, *exc):
            raise OSError("as asked")

    async def main() -> None:
        print("began", flush=True)
        store = FaultyStore(MemoryStore())
        store.fail("put", lambda: StoreUnavailableError("full"), times=1e9)
        managers = [InstanceManager(Counter, store=each, durability="hibernate", store_patience=0.05)
                    for each in (Broken(), store, Broken())]
        for manager in managers:
            await manager.open()
            await manager.call("ada", Counter.increment)
        closing = [asyncio.create_task(manager.close(0.2)) for manager in managers]
        await asyncio.sleep(0)

    overwinter.run(main())
"""


def test_a_store_that_fails_to_close_hides_nobody_who_is_not_stored(tmp_path):
    _, err, status = end(start(tmp_path / "unused", program=FAILS), None)
    assert status == 1
    assert "not stored: 'ada'" in err
    assert "OSError: as asked" in err


SEVERAL = """
    import asyncio, os, signal, sys
    import overwinter
    from overwinter import Agent, InstanceManager, MemoryStore
    from overwinter.errors import StoreUnavailableError
    from overwinter.testing import FaultyStore

    class Counter(Agent):
        count: int = 0
        async def increment(self) -> int:
            self.count += 1
            return self.count

    class Other(Counter):
        pass

    async def keep(cls, key: str) -> None:
        store = FaultyStore(MemoryStore())
        async with InstanceManager(cls, store=store, durability="hibernate", store_patience=0.05) as manager:
            await manager.call(key, cls.increment)
            store.fail("put", lambda: StoreUnavailableError("full"), times=1e9)
            try:
                if key == "ada" and sys.argv[2] == "nested":
                    await keep(Other, "bob")
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.Event().wait()
            finally:
                await manager.close(deadline=0.2)

    async def main() -> None:
        print("began", flush=True)
        if sys.argv[2] == "nested":
            await keep(Counter, "ada")
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(keep(Counter, "ada"))
                group.create_task(keep(Other, "bob"))

    overwinter.run(main())
"""


@pytest.mark.parametrize("how", ["nested", "beside each other"])
def test_whom_each_of_several_managers_could_not_store_is_named(tmp_path, how):
    _, err, status = end(start(tmp_path / "unused", how, program=SEVERAL), None)
    assert status == 1
    assert "not stored: 'ada'" in err
    assert "not stored: 'bob'" in err


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_whom_it_could_not_store_is_named_and_the_status_is_not_zero(tmp_path, number):
    _, err, status = end(start(tmp_path / "agents.db", "full"), number)
    assert status == 1
    assert "not stored: 'ada'" in err
    assert "Traceback" not in err


UNSURE = """
    import asyncio, contextlib
    import overwinter
    from overwinter import Agent, InstanceManager, MemoryStore
    from overwinter.errors import OutcomeUnknownError
    from overwinter.testing import FaultyStore

    class Counter(Agent):
        count: int = 0
        async def increment(self) -> int:
            self.count += 1
            return self.count
        async def stay(self, over: asyncio.Event) -> None:
            print("begun", flush=True)
            while not over.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await over.wait()

    async def main() -> None:
        over = asyncio.Event()
        store = FaultyStore(MemoryStore())
        counters = InstanceManager(Counter, store=store, durability="hibernate", store_patience=0.05)
        await counters.open()
        await counters.call("ada", Counter.increment)
        store.fail("put", lambda: OutcomeUnknownError("reset"), times=1e9)
        stays = asyncio.create_task(counters.call("bob", Counter.stay, over))
        try:
            await asyncio.wait([stays])
        finally:
            try:
                await counters.close(deadline=0.3)
            finally:
                over.set()
                await asyncio.gather(stays, return_exceptions=True)

    overwinter.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_whose_outcome_is_unknown_and_who_did_not_end_is_named_too(tmp_path, number):
    _, err, status = end(start(tmp_path / "unused", program=UNSURE), number)
    assert status == 1
    assert "unknown: 'ada'" in err
    assert "abandoned: 'bob'" in err
    assert "not stored: " not in err
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
