"""A bad agent hurts only its key: whatever hook of it fails, and how, the others work on, and so does it later."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from overwinter import Agent, InstanceManager, MemoryStore, OverwinterError, upcast
from overwinter.testing import ManualClock, until


class Odd(BaseException):
    """Not an Exception."""


def recurse():
    recurse()


def fail(how):
    match how:
        case "raises":
            raise ValueError("as planned")
        case "stops iterating":
            raise StopIteration
        case "ends a generator":
            raise GeneratorExit
        case "is cancelled by nobody":
            raise asyncio.CancelledError
        case "has no memory":
            raise MemoryError
        case "raises a group":
            raise ExceptionGroup("as planned", [ValueError()])
        case "raises no Exception":
            raise Odd
        case "recurses":
            recurse()


WAYS = ["raises", "stops iterating", "ends a generator", "is cancelled by nobody", "has no memory", "raises a group",
        "raises no Exception", "recurses"]  # fmt: skip
PLAN: dict[str, str] = {}


def maybe(hook: str, key: str) -> None:
    if key == "bad" and hook in PLAN:
        fail(PLAN[hook])


async def maybe_async(hook: str, key: str) -> None:
    if key == "bad" and PLAN.get(hook) == "hangs":
        await asyncio.Event().wait()
    maybe(hook, key)


class Tally(Agent, name="tally"):
    count: int = 0
    mark: str = ""

    async def on_start(self) -> None:
        await maybe_async("on_start", self.key)

    async def on_stop(self) -> None:
        await maybe_async("on_stop", self.key)

    def on_rollback(self) -> None:
        maybe("on_rollback", self.key)

    async def add(self) -> int:
        self.count += 1
        await maybe_async("method", self.key)
        return self.count

    async def refuse(self) -> None:
        self.count += 100
        raise KeyError("refused")


class Packed(Agent, name="packed"):
    """Has a format of its own."""

    count: int = 0
    mark: str = ""

    def dump(self):
        maybe("dump", self.mark)
        return [self.count, self.mark]

    @classmethod
    def load(cls, data, version):
        maybe("load", data[1])
        return cls(count=data[0], mark=data[1])

    async def add(self) -> int:
        self.count += 1
        return self.count


class Old(Agent, name="grown"):
    count: int = 0
    mark: str = ""

    async def add(self) -> int:
        self.count += 1
        return self.count


class Grown(Agent, name="grown", version=2):
    count: int = 0
    mark: str = ""

    @upcast(since=1)
    @staticmethod
    def _from_1(old: dict) -> dict:
        maybe("upcast", old["mark"])
        return old

    async def add(self) -> int:
        self.count += 1
        return self.count


CASES = [
    *itertools.product([Tally], ["on_start", "on_stop", "on_rollback", "method"], WAYS),
    *itertools.product([Tally], ["on_start", "on_stop", "method"], ["hangs"]),
    *itertools.product([Packed], ["dump", "load"], WAYS),
    *itertools.product([Grown], ["upcast"], WAYS),
]


@pytest.mark.parametrize("durability", ["call", "hibernate"])
@pytest.mark.parametrize(("kind", "hook", "how"), CASES, ids=[f"{hook} {how}" for _, hook, how in CASES])
async def test_only_its_own_callers_notice(kind, hook, how, durability, proof):
    clock, store, reports = ManualClock(), MemoryStore(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    PLAN.clear()
    first = Old if kind is Grown else kind
    async with InstanceManager(first, store=store) as agents:
        for key in ("bad", "good"):
            await agents.get(key, initial={"mark": key})
            assert await agents.call(key, first.add) == 1

    options = {"durability": durability, "idle_timeout": 60, "turn_timeout": 30, "clock": clock}
    agents = InstanceManager(kind, store=store, **options)
    await agents.open()
    PLAN[hook] = how
    bad = asyncio.create_task(suffer(agents, kind))
    good = 1
    while not bad.done():
        good += 1
        assert await agents.call("good", kind.add) == good
        clock.advance(1)
        await asyncio.sleep(0)
        assert good < 1000, "the caller of the bad agent hangs"
    acknowledged = await bad

    PLAN.clear()
    clock.advance(100)
    assert await settled(agents, clock, agents.call("bad", kind.add)) == acknowledged + 1
    clock.advance(61)
    await until(lambda: clock.advance(1) or not agents.keys())  # neither stays for ever
    closing = asyncio.create_task(agents.close(deadline=60))
    await until(lambda: clock.advance(1) or closing.done())
    await closing
    async with InstanceManager(kind, store=store) as agents:
        assert (await agents.state("bad")).count == acknowledged + 1
        assert (await agents.state("good")).count == good
    proof.count(cases=1, reported=len(reports))


async def suffer(agents, kind):
    """Do what meets the bad hook; return what was acknowledged."""
    acknowledged = 1
    for step in ("add", "refuse", "stop", "add"):
        try:
            if step == "stop":
                await agents.stop("bad")
            elif step == "add":
                assert await agents.call("bad", kind.add) == acknowledged + 1
                acknowledged += 1
            elif hasattr(kind, "refuse"):
                await agents.call("bad", kind.refuse)
        except AssertionError:
            raise
        except BaseException as error:
            if asyncio.current_task().cancelling():
                raise  # the test is over
            theirs = "method" in PLAN or not isinstance(error, Exception)  # what a method raises is its caller's
            if not (isinstance(error, OverwinterError | KeyError) or theirs):
                raise
    return acknowledged


async def settled(agents, clock, call):
    task = asyncio.ensure_future(call)
    await until(lambda: clock.advance(1) or task.done())
    return await task
