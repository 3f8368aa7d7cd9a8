"""ObjectStore on a bad network: servers that are away, silent or cut off, and callers that leave."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter

import pytest
from moto_server import MotoServer
from proxy import Proxy

from overwinter import Agent, InstanceManager, readonly
from overwinter.errors import OutcomeUnknownError, RevisionConflictError, StoreError, StoreUnavailableError
from overwinter.stores import Expect, Stored
from overwinter.stores._objects_bucket import Bucket
from overwinter.stores._objects_frame import Tag
from overwinter.stores.objects import ObjectStore
from overwinter.testing import FaultyStore, until

KEY = "a:key"
CANCELS, CUTS, WRITERS = 2000, 10, 32


def new() -> bytes:
    return os.urandom(16)


def through(s3: MotoServer, proxy: Proxy, timeout: float = 5.0) -> ObjectStore:
    return ObjectStore(f"s3://{s3.bucket}/{new().hex()}", timeout=timeout, **s3.options_at(proxy.port))


async def test_a_server_that_is_away_certainly_stored_nothing(s3: MotoServer) -> None:
    async with Proxy(("127.0.0.1", s3.port)) as proxy, through(s3, proxy) as store:
        first, second = new(), new()
        await store.put(KEY, b"first", revision=first, expected=Expect.ABSENT)
        await proxy.refuse()
        for attempt in (
            store.get(KEY),
            store.put(KEY, b"second", revision=second, expected=first),
            store.put("b:key", b"second", revision=second, expected=Expect.ABSENT),
            store.delete(KEY, expected=first),
        ):
            with pytest.raises(StoreUnavailableError, match="no connection to the server"):
                await attempt
        await proxy.accept()
        assert await store.get(KEY) == Stored(b"first", first)
        await store.put(KEY, b"second", revision=second, expected=first)


async def test_a_reply_that_is_lost_is_unknown_and_a_put_decides(s3: MotoServer) -> None:
    async with Proxy(("127.0.0.1", s3.port)) as proxy, through(s3, proxy) as store:
        first, second = new(), new()
        proxy.lose_replies()
        with pytest.raises(OutcomeUnknownError, match="perhaps stored"):
            await store.put(KEY, b"first", revision=first, expected=Expect.ABSENT)
        assert proxy.lost == 1
        with pytest.raises(RevisionConflictError):
            await store.put(KEY, b"second", revision=second, expected=Expect.ABSENT)
        assert await store.head(KEY) == first  # it had landed
        proxy.lose_replies()
        with pytest.raises(OutcomeUnknownError):
            await store.delete(KEY, expected=first)
        await store.delete(KEY, expected=first)
        assert await store.get(KEY) is None


async def test_a_read_whose_reply_is_lost_is_repeated(s3: MotoServer) -> None:
    async with Proxy(("127.0.0.1", s3.port)) as proxy, through(s3, proxy) as store:
        first = new()
        await store.put(KEY, b"first", revision=first, expected=Expect.ABSENT)
        proxy.lose_replies(2)
        assert await store.get(KEY) == Stored(b"first", first)
        assert proxy.lost == 2


async def test_a_silent_server_is_waited_for_no_longer_than_said(s3: MotoServer) -> None:
    async with Proxy(("127.0.0.1", s3.port)) as proxy, through(s3, proxy) as store:
        first, second, third = new(), new(), new()
        await store.put(KEY, b"first", revision=first, expected=Expect.ABSENT)
        store.timeout = 0.2
        proxy.hang()
        with pytest.raises(OutcomeUnknownError, match=r"did not answer within 0.2 s"):
            await store.put(KEY, b"second", revision=second, expected=first)
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0.2 s"):
            await store.get(KEY)
        with pytest.raises(StoreUnavailableError):  # it had to read first: nothing was written
            await store.put(KEY, b"third", revision=third, expected=second)
        with pytest.raises(StoreUnavailableError):
            await anext(store.keys())
        store.timeout = 5
        proxy.flow()
        try:
            await store.put(KEY, b"third", revision=third, expected=await store.head(KEY) or Expect.ABSENT)
        except RevisionConflictError:  # the second one, whose outcome was unknown, has landed just now
            await store.put(KEY, b"third", revision=third, expected=second)
        assert await store.get(KEY) == Stored(b"third", third)
        assert store._slots._value == 32


async def test_who_waits_for_a_turn_too_long_has_stored_nothing(s3: MotoServer) -> None:
    async with Proxy(("127.0.0.1", s3.port)) as proxy, through(s3, proxy, timeout=30) as store:
        proxy.hang()
        puts = [store.submit(f"a:{n}", b"", revision=new(), expected=Expect.ABSENT) for n in range(32)]
        await until(lambda: store._slots.locked())
        store.timeout = 0.1
        late = store.put("a:late", b"", revision=new(), expected=Expect.ABSENT)
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0.1 s"):
            await late
        store.timeout = 30
        proxy.flow()
        await asyncio.gather(*puts)
        assert await store.get("a:late") is None


async def test_a_store_is_not_opened_when_the_server_is_silent(s3: MotoServer) -> None:
    async with Proxy(("127.0.0.1", s3.port)) as proxy:
        proxy.hang()
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0.2 s"):
            await through(s3, proxy, timeout=0.2).open()


async def test_an_open_ends_in_time_when_the_server_falls_silent_after_the_first_write(
    s3: MotoServer, monkeypatch
) -> None:
    async with Proxy(("127.0.0.1", s3.port)) as proxy:
        store, write = through(s3, proxy), Bucket.write
        store.timeout = 0.5  # the client itself waits for longer

        async def last(self: Bucket, name: str, content: bytes, over: Tag | None) -> Tag:
            tag = await write(self, name, content, over)
            proxy.hang()
            return tag

        monkeypatch.setattr(Bucket, "write", last)
        begin = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0.5 s"):
            await store.open()
        assert time.monotonic() - begin < 3


_FORKS = """
import asyncio, json, os, sys
from overwinter.errors import UsageError
from overwinter.stores.objects import ObjectStore

url, how, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

async def visit(store):
    async with store:
        await store.get("a:key")

def in_child():
    store = new if how == "made" else ObjectStore(url, timeout=5, **options)
    try:
        asyncio.run(visit(store))
    except UsageError as error:
        print("refused" if "spawn" in str(error) else error, flush=True)
    else:
        print("worked", flush=True)

new = ObjectStore(url, timeout=5, **options)
if how == "used":
    asyncio.run(visit(new))
for _ in range(2):
    if not os.fork():
        try:
            in_child()
        finally:
            os._exit(0)
    os.wait()
asyncio.run(visit(ObjectStore(url, timeout=5, **options)))
print("parent worked", flush=True)
"""


@pytest.mark.parametrize(("how", "outcome"), [("used", "refused"), ("made", "worked"), ("nothing", "worked")])
def test_a_child_forked_by_a_process_that_used_a_store_is_told_so(s3: MotoServer, ask, how: str, outcome: str) -> None:
    url = f"s3://{s3.bucket}/{new().hex()}"
    assert ask(_FORKS, url, how, json.dumps(s3.options), prelude="").splitlines() == [outcome] * 2 + ["parent worked"]


_ENDS_AT_ONCE = """
import asyncio, json, sys, threading, time
from overwinter.stores.objects import ObjectStore

class Slow(asyncio.SelectorEventLoop):
    def _write_to_self(self):
        super()._write_to_self()
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)  # the loop is awake by now, and goes on

async def visit():
    async with ObjectStore(sys.argv[1], **json.loads(sys.argv[2])) as store:
        await store.get("a:key")

with asyncio.Runner(loop_factory=Slow) as runner:
    runner.run(visit())
print("done", flush=True)
"""


def test_a_program_may_end_as_soon_as_it_has_its_answer(s3: MotoServer, ask) -> None:
    assert ask(_ENDS_AT_ONCE, f"s3://{s3.bucket}/{new().hex()}", json.dumps(s3.options), prelude="") == "done"


async def test_random_cancels_harm_nobody_else(s3: MotoServer) -> None:
    dice = random.Random(4)
    keys = [f"a:{n}" for n in range(8)]

    async def some(store: ObjectStore, key: str) -> None:
        stored = await store.get(key)
        assert stored is None or stored.data == key.encode() + stored.revision  # nobody else's reply
        base = Expect.ABSENT if stored is None else stored.revision
        revision = new()
        if dice.random() < 0.2:
            await store.delete(key, expected=base)
        else:
            await store.put(key, key.encode() + revision, revision=revision, expected=base)

    async with ObjectStore(f"s3://{s3.bucket}/{new().hex()}", **s3.options) as store:
        outcomes: Counter[str] = Counter()
        waiting: set[asyncio.Task[None]] = set()
        while outcomes["cancelled"] < CANCELS:
            task = asyncio.ensure_future(some(store, dice.choice(keys)))
            waiting.add(task)
            if dice.random() < 0.9:
                asyncio.get_running_loop().call_later(dice.random() * 0.02, task.cancel)
            if len(waiting) == 16:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                outcomes.update(map(verdict, done))
        done, _ = await asyncio.wait(waiting)
        outcomes.update(map(verdict, done))
        assert set(outcomes) <= {"cancelled", "done", "RevisionConflictError"}
        assert outcomes["done"] > CANCELS / 100
        assert store._slots._value == 32
        for key in keys:
            await some(store, key)


def verdict(task: asyncio.Task[None]) -> str:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return "done" if error is None else type(error).__name__


# ---------------------------------------------------------------- agents


class Tally(Agent):
    seen: list[int] = []

    async def add(self, number: int) -> int:
        self.seen.append(number)
        return len(self.seen)

    @readonly
    async def all(self) -> list[int]:
        return self.seen


async def test_connections_cut_under_writers_lose_and_double_nothing(s3: MotoServer) -> None:
    place = f"s3://{s3.bucket}/{new().hex()}"
    acknowledged: dict[str, list[int]] = {f"t{n}": [] for n in range(WRITERS)}
    stop = False

    async def write(manager: InstanceManager[Tally], key: str) -> None:
        number = 0
        while not stop:
            number += 1
            try:
                await manager.call(key, Tally.add, number)
            except StoreError:
                continue
            acknowledged[key].append(number)

    async with Proxy(("127.0.0.1", s3.port)) as proxy:
        store = ObjectStore(place, **s3.options_at(proxy.port))
        async with InstanceManager(Tally, store=store) as manager:
            writers = [asyncio.ensure_future(write(manager, key)) for key in acknowledged]
            for cut in range(CUTS):
                before = sum(map(len, acknowledged.values()))
                await (proxy.refuse() if cut % 2 else proxy.cut())
                if cut % 2:
                    await proxy.accept()
                while sum(map(len, acknowledged.values())) < before + WRITERS // 2:  # it goes on by itself
                    await asyncio.sleep(0.005)
            stop = True
            await asyncio.gather(*writers)

    async with InstanceManager(Tally, store=ObjectStore(place, **s3.options)) as manager:
        for key, numbers in acknowledged.items():
            seen = await manager.call(key, Tally.all)
            assert len(set(seen)) == len(seen), "a write was doubled"
            assert set(numbers) <= set(seen), "an acknowledged write was lost"


async def test_an_agent_lives_on_over_an_outage(s3: MotoServer) -> None:
    async with Proxy(("127.0.0.1", s3.port)) as proxy:
        store = FaultyStore(through(s3, proxy))  # for its count
        async with InstanceManager(Tally, store=store) as manager:
            assert await manager.call("t", Tally.add, 1) == 1
            await proxy.refuse()
            call = asyncio.ensure_future(manager.call("t", Tally.add, 2))
            await until(lambda: store.calls["put"] >= 3)  # one was stored, one refused, and it tries again
            assert not call.done()
            await proxy.accept()
            assert await call == 2
