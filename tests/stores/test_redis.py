"""The contract on real servers of both kinds, and what is Redis's own: tombstones, repeats, foreign values."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio as async_driver
from servers import Redis, Server, Valkey

from overwinter import Agent, InstanceManager
from overwinter.errors import CorruptRecordError, RevisionConflictError
from overwinter.stores import Expect, Store, Stored
from overwinter.stores._redis_frame import PUT, head_of, is_tombstone
from overwinter.stores._redis_line import Exchange
from overwinter.stores.redis import RedisStore
from overwinter.testing import StoreContract
from overwinter.testing._factory import Factory


class TestOnValkey(StoreContract):
    can_corrupt = True
    kind = "valkey"

    @pytest.fixture(autouse=True)
    def _prefix(self, request: pytest.FixtureRequest) -> None:
        self.server: Server = request.getfixturevalue(self.kind)
        self.prefix = f"{uuid.uuid4().hex}:"

    def store_factory(self) -> Factory | None:
        return "servers_for_children:redis", self.server.url, self.prefix

    async def corrupt(self, key: str) -> None:
        with redis.Redis.from_url(self.server.url) as client:
            assert client.set(f"{self.prefix}agent:{key}", b"something foreign", xx=True)


class TestOnRedis(TestOnValkey):
    kind = "redis"


class TestTheSmallStoreOfThePage(StoreContract):
    """The page says that it passes."""

    can_corrupt = True

    @pytest.fixture(autouse=True)
    def _database(self, valkey: Server) -> Iterator[None]:
        page = (Path(__file__).parent.parent.parent / "docs" / "redis.md").read_text()
        code = page[page.index("from redis.asyncio import ") : page.index("pool = BlockingConnectionPool")]
        self.space: dict[str, Any] = {}
        exec(code, self.space)
        self.url = f"{valkey.url}?db=9"
        yield
        with redis.Redis.from_url(self.url) as client:
            client.flushdb()

    async def make_store(self) -> Store:
        class Closing(self.space["SmallRedisStore"]):
            async def close(self) -> None:
                await self.client.aclose()

        return Closing(
            async_driver.Redis.from_pool(async_driver.BlockingConnectionPool.from_url(self.url, socket_timeout=None))
        )

    async def corrupt(self, key: str) -> None:
        async with async_driver.Redis.from_url(self.url) as client:
            await client.delete(f"small:{key}")
            await client.rpush(f"small:{key}", b"a list")


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4().hex}:"


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


def new() -> bytes:
    return os.urandom(16)


async def send(store: RedisStore, command: tuple[bytes, ...]) -> object:
    """Send a command as it is: one that was on its way for long."""
    return await store._send("put", "key", command, lambda reply: reply)


# ---------------------------------------------------------------- deletes and what is late


async def test_a_create_from_before_a_delete_does_not_come_through_after_it(server, prefix):
    async with RedisStore(server.url, prefix=prefix) as store:
        value = head_of(new()) + b"late"
        late = store._change(PUT, "key", b"", value, b"22", b"0")
        revision = new()
        await store.put("key", b"x", revision=revision, expected=Expect.ABSENT)
        await store.delete("key", expected=revision)
        tombstone = await send(store, late)
        assert is_tombstone(tombstone)
        assert await store.get("key") is None

        over = (*late[:7], tombstone, *late[8:])  # it saw the tombstone, and is late again
        await store.put("key", b"y", revision=revision, expected=Expect.ABSENT)
        await store.delete("key", expected=Expect.ANY)
        assert await send(store, over) == b"conflict"
        assert await store.get("key") is None


@pytest.mark.parametrize("expected", [Expect.ANY, Expect.ABSENT, b"r" * 16])
async def test_deleting_what_is_absent_bars_a_create_that_is_on_its_way(server, prefix, raw, expected):
    async with RedisStore(server.url, prefix=prefix) as store:
        late = store._change(PUT, "key", b"", head_of(new()), b"22", b"0")
        await store.delete("key", expected=expected)
        first = await send(store, late)
        assert is_tombstone(first)
        await store.delete("key", expected=expected)
        assert await send(store, late) not in (first, b"done")
        assert 23 * 3600 < raw.ttl(f"{prefix}agent:key") <= 24 * 3600
        assert [await store.get("key"), await store.head("key"), await store.count()] == [None, None, 0]


async def test_a_request_is_void_long_before_tombstones_die(server, prefix):
    async with RedisStore(server.url, prefix=prefix) as store:
        command = store._change(PUT, "key", b"", head_of(new()), b"22", b"0")
        assert 0 < int(command[6]) - time.time() < 2 * 3600
        store._door._behind -= 4 * 3600  # as after a machine slept for some hours: its requests look old
        assert (await send(store, store._change(PUT, "key", b"", head_of(new()), b"22", b"0"))).startswith(b"late ")
        assert await store.get("key") is None
        revision = new()
        await store.put("key", b"x", revision=revision, expected=Expect.ABSENT)  # the clock is read from the refusal
        assert abs(store._door.server_time() - time.time()) < 60
        store._door._behind -= 4 * 3600
        await store.delete("key", expected=revision)


async def test_a_create_over_a_tombstone_that_looks_late_is_done_at_once(server, prefix, raw):
    async with RedisStore(server.url, prefix=prefix, timeout=2) as store:
        await store.delete("key", expected=Expect.ANY)
        store._door._behind -= 4 * 3600
        revision = new()
        before = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
        await store.put("key", b"x", revision=revision, expected=Expect.ABSENT)
        assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] - before == 3  # late, over a tombstone, done
        assert await store.get("key") == Stored(b"x", revision)


async def test_a_put_that_comes_twice_is_done_once(server, prefix):
    async with RedisStore(server.url, prefix=prefix) as store:
        first, second = new(), new()
        for _ in range(2):
            await store.put("key", b"x", revision=first, expected=Expect.ABSENT)
        for _ in range(2):
            await store.put("key", b"y", revision=second, expected=first)
        with pytest.raises(RevisionConflictError):
            await store.put("key", b"x", revision=first, expected=Expect.ABSENT)
        assert await store.get("key") == Stored(b"y", second)


@pytest.mark.parametrize("length", [1, 15, 128, 255])
async def test_revisions_of_any_length(server, prefix, length):
    async with RedisStore(server.url, prefix=prefix) as store:
        one, two = os.urandom(length), os.urandom(length)
        await store.put("key", b"R" * 300, revision=one, expected=Expect.ABSENT)
        await store.put("key", b"T" * 300, revision=two, expected=one)
        assert (await store.head("key"), await store.get("key")) == (two, Stored(b"T" * 300, two))


# ---------------------------------------------------------------- what is foreign


@pytest.mark.parametrize("value", [b"", b"\x89OW", b"\x89OW1R", b"\x89OW1R\x10short", b"\x89OW1X\x00", b"text", "list"])
async def test_what_is_foreign_is_not_absent_and_not_replaced(server, prefix, raw, value):
    name = f"{prefix}agent:key"
    raw.rpush(name, b"x") if value == "list" else raw.set(name, value)
    before = raw.dump(name)
    async with RedisStore(server.url, prefix=prefix) as store:
        for attempt in (
            lambda: store.get("key"),
            lambda: store.head("key"),
            lambda: store.put("key", b"x", revision=new(), expected=Expect.ABSENT),
            lambda: store.put("key", b"x", revision=new(), expected=new()),
            lambda: store.delete("key", expected=new()),
            lambda: store.delete("key", expected=Expect.ABSENT),
        ):
            with pytest.raises(CorruptRecordError, match="'key'"):
                await attempt()
        assert raw.dump(name) == before
        await store.delete("key", expected=Expect.ANY)
        assert await store.get("key") is None


async def test_a_server_that_forgot_the_scripts_learns_them_again(server, prefix, raw):
    async with RedisStore(server.url, prefix=prefix, ttl=3600) as store:
        for number in range(3):
            raw.script_flush()
            puts = [store.submit(f"{number} {n}", b"x", revision=new(), expected=Expect.ABSENT) for n in range(50)]
            await asyncio.gather(*puts)
            raw.script_flush()
            assert all(await asyncio.gather(*(store.get(f"{number} {n}") for n in range(50))))
            raw.script_flush()
            await store.delete(f"{number} 0", expected=Expect.ANY)
        raw.script_flush()
        assert await store.count() == 3 * 49


# ---------------------------------------------------------------- listing


async def test_keys_come_once_by_prefix_whatever_signs_are_in_it(server, prefix, raw, monkeypatch):
    keys = {f"{sign}{number}" for sign in ("a", "a*", "a?", "[a-z]", "a\\", "^", "-", "é") for number in range(100)}
    async with RedisStore(server.url, prefix=prefix) as store:
        await asyncio.gather(*(store.put(key, b"", revision=new(), expected=Expect.ABSENT) for key in keys))
        await store.delete("a1", expected=Expect.ANY)
        keys.remove("a1")
        raw.rpush(f"{prefix}agent:foreign", b"x")
        for prefix_of_keys in ("a", "a*", "a?", "[a-z]", "a\\", "^", "-", "é", "none"):
            found = [key async for key in store.keys(prefix_of_keys)]
            assert sorted(found) == sorted(key for key in keys if key.startswith(prefix_of_keys))
        monkeypatch.setattr("overwinter.stores.redis._SEEN", 50)  # in parts
        found = [key async for key in store.keys("")]
        assert sorted(found) == sorted({*keys, "foreign"})
        async for _ in store.keys():
            break
        assert await store.count("a*") == 100


@pytest.mark.parametrize("kind", [Valkey, Redis])
async def test_a_listing_that_a_restart_of_the_server_comes_across_leaves_nothing_out(kind):
    with kind("--appendfsync", "no") as server:
        async with RedisStore(server.url) as store:
            keys = {f"key {number}" for number in range(4000)}
            await asyncio.gather(*(store.put(key, b"", revision=new(), expected=Expect.ABSENT) for key in keys))
            found: list[str] = []
            async for key in store.keys():
                found.append(key)
                if len(found) in (1500, 3000):  # the table has another order afterwards
                    server.stop()
                    server.start()
                    for _ in range(3):
                        await asyncio.sleep(0)  # the store learns that the connections ended
            assert len(found) == len(keys)
            assert set(found) == keys


async def test_a_listing_goes_on_over_lines_that_saw_other_histories_of_one_server(server, raw, prefix, monkeypatch):
    monkeypatch.setattr("overwinter.stores.redis._PAGE", b"10")
    # As under load: each request goes to the line that has been idle for longest.
    monkeypatch.setattr(Exchange, "_wake", lambda self: self._idle.pop(0).set_result(None))
    async with RedisStore(server.url, prefix=prefix, connections=3) as store:
        raw.execute_command("DEBUG", "CHANGE-REPL-ID")  # as when a first replica comes
        keys = {f"key {number}" for number in range(300)}
        await asyncio.gather(*(store.put(key, b"", revision=new(), expected=Expect.ABSENT) for key in keys))
        async with asyncio.timeout(10):
            assert {key async for key in store.keys("key")} == keys


async def test_an_agent_may_be_called_as_the_store_s_own_key(server, prefix):
    async with RedisStore(server.url, prefix=prefix) as store:
        for key in ("store", "agent:", ""):
            await store.put(key, b"x", revision=new(), expected=Expect.ABSENT)
        assert await store.count() == 3


# ---------------------------------------------------------------- records that expire


class Note(Agent):
    text: str = ""

    async def write(self, text: str) -> None:
        self.text = text


async def test_a_record_lives_on_from_each_write_and_each_thaw_and_while_its_agent_is_live(server, prefix, raw):
    store = RedisStore(server.url, prefix=prefix, ttl=timedelta(hours=1))

    def life(key: str) -> int:
        return raw.ttl(f"{prefix}agent:Note:{key}")

    def grow_old() -> None:
        for key in ("live", "asleep", "dead"):
            raw.expire(f"{prefix}agent:Note:{key}", 100)

    async with InstanceManager(Note, store=store) as notes:
        for key in ("live", "asleep", "dead"):
            await notes.call(key, Note.write, "x")
            assert 3590 < life(key) <= 3600
        await notes.stop("asleep")
        await notes.delete("dead")
        await store._refresh("Note:dead")
        assert await store.get("Note:dead") is None
        assert life("dead") > 23 * 3600  # a tombstone's life is its own
        grow_old()
        await store._refresher.once()
        assert [life("live") > 3590, life("asleep"), life("dead")] == [True, 100, 100]
        await notes.get("asleep")
        assert life("asleep") > 3590
        grow_old()
        assert await store.head("Note:live")
        assert life("live") <= 100  # a look is not a thaw
    assert store._refresher._live == {}


class Letter(Note):
    pass


async def test_what_is_foreign_under_a_live_agent_s_key_keeps_no_other_from_being_refreshed(server, prefix, raw):
    store = RedisStore(server.url, prefix=prefix, ttl=3600)
    async with InstanceManager(Note, store=store) as notes, InstanceManager(Letter, store=store) as letters:
        others = [f"{prefix}agent:Note:other", f"{prefix}agent:Letter:other"]
        for manager, key in ((notes, "taken"), (notes, "other"), (letters, "other")):
            await manager.call(key, Note.write, "x")
        taken = f"{prefix}agent:Note:taken"
        raw.delete(taken)
        raw.rpush(taken, b"a list")
        for name in others:
            raw.expire(name, 100)
        await store._refresher.once()
        assert all(raw.ttl(name) > 3590 for name in others)
        assert raw.ttl(taken) == -1
        raw.delete(taken)


async def test_a_create_that_is_held_up_does_not_come_through_after_the_record_expired(server, prefix, raw):
    async with RedisStore(server.url, prefix=prefix, ttl=60) as store:
        store._door._behind -= 60  # a minute ago
        late = store._change(PUT, "key", b"", head_of(new()), b"22", b"60000")
        store._door._behind += 60
        await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)  # as a manager repeats it
        assert raw.pexpire(f"{prefix}agent:key", 0)  # it expires, a minute before its time
        assert (await send(store, late)).startswith(b"late ")
        assert await store.get("key") is None
        revision = new()
        store.timeout = 100  # who waits for longer than a request is valid sends it anew
        store._door._behind -= 60
        await store.put("key", b"y", revision=revision, expected=Expect.ABSENT)
        assert await store.get("key") == Stored(b"y", revision)


async def test_records_without_a_ttl_stay_and_lose_one_they_had(server, prefix, raw):
    async with RedisStore(server.url, prefix=prefix, ttl=60) as store:
        first = new()
        await store.put("key", b"x", revision=first, expected=Expect.ABSENT)
        assert 0 < raw.ttl(f"{prefix}agent:key") <= 60
        assert raw.ttl(f"{prefix}store") == -1
    async with RedisStore(server.url, prefix=prefix) as store:
        await store.put("key", b"x", revision=new(), expected=first)
        assert raw.ttl(f"{prefix}agent:key") == -1


@pytest.mark.parametrize("wrong", [{"ttl": 59}, {"ttl": float("nan")}, {"timeout": 0}, {"connections": 0}])
def test_options_that_can_not_work_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RedisStore("redis://", **wrong)
