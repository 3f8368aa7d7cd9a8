"""What a server must be like, and what a store may promise on it; addresses, passwords, and a server that is lost."""

from __future__ import annotations

import asyncio
import os
import uuid
import warnings
from collections.abc import Callable, Iterator

import pytest
import redis as driver
import redis.asyncio as async_driver
from servers import Redis, Valkey

from overwinter import Agent, InstanceManager
from overwinter.errors import StoreError, StoreUnavailableError, ThawError, UsageError
from overwinter.stores import Durability, Expect, Store
from overwinter.stores._redis_server import Facts, Terms, check, read_facts
from overwinter.stores.redis import RedisStore

SECRET = "correct-horse-battery"


def new() -> bytes:
    return os.urandom(16)


@pytest.fixture(scope="module")
def private() -> Iterator[Valkey]:
    """A server whose settings the tests change; it has a password for one user."""
    with Valkey("--user default on nopass ~* +@all", f"--user app on >{SECRET} ~* +@all -config -info") as server:
        yield server


Settings = Callable[..., None]


@pytest.fixture
def settings(private: Valkey) -> Iterator[Settings]:
    with driver.Redis.from_url(private.url) as client:
        before = {name: client.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy", "appendfsync")}
        before |= {"appendonly": "yes", "no-appendfsync-on-rewrite": "no"}

        def change(**values: str) -> None:
            for name, value in values.items():
                client.config_set(name.replace("_", "-"), value)

        yield change
        client.replicaof("NO", "ONE")
        client.flushall()
        for name, value in before.items():
            client.config_set(name, value)


async def opened(store: Store) -> Durability:
    async with store:
        return store.durability


# ---------------------------------------------------------------- what it may promise


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Durability.HOST),
        ({"appendfsync": "everysec"}, Durability.PROCESS),
        ({"appendfsync": "no"}, Durability.PROCESS),
        ({"no_appendfsync_on_rewrite": "yes"}, Durability.PROCESS),
    ],
)
async def test_it_promises_what_the_server_s_settings_give(private, settings, values, expected):
    settings(**values)
    assert await opened(RedisStore(private.url)) is expected
    assert await opened(RedisStore(private.url, durability=Durability.PROCESS)) is Durability.PROCESS
    with pytest.raises(UsageError, match=r"REPLICATED was asked for.*append"):
        await opened(RedisStore(private.url, durability=Durability.REPLICATED))


async def test_a_server_without_a_log_gets_a_warning_unless_that_is_said_to_be_fine(private, settings):
    settings(appendonly="no")
    with pytest.warns(UserWarning, match="appendonly is no"):
        assert await opened(RedisStore(private.url)) is Durability.NONE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert await opened(RedisStore(private.url, durability=Durability.NONE)) is Durability.NONE
    with pytest.raises(UsageError, match="appendonly is no"):
        await opened(RedisStore(private.url, durability=Durability.PROCESS))


@pytest.mark.parametrize("rights", ["-config", "-config -script"])
async def test_where_config_is_forbidden_the_log_alone_counts_and_the_user_s_word(private, settings, rights):
    with driver.Redis.from_url(private.url) as client:
        client.execute_command("ACL", "SETUSER", "managed", "on", f">{SECRET}", "~*", "+@all", *rights.split())
        url = f"{private.url}?username=managed&password={SECRET}"
        assert await opened(RedisStore(url)) is Durability.PROCESS
        assert await opened(RedisStore(url, durability=Durability.NONE)) is Durability.NONE
        settings(appendonly="no")
        with pytest.warns(UserWarning, match="CONFIG is forbidden"):
            assert await opened(RedisStore(url)) is Durability.NONE
        assert await opened(RedisStore(url, durability=Durability.HOST)) is Durability.HOST
        store = RedisStore(url, durability=Durability.HOST)
        async with store:
            await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
            await store.delete("key", expected=Expect.ANY)


async def test_a_server_that_promises_less_after_a_restart_is_refused(private, settings):
    async with RedisStore(private.url, connections=1) as store:
        await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
        settings(appendfsync="everysec")
        drop(store)
        with pytest.raises(StoreUnavailableError, match=r"promises less.*everysec"):
            await store.get("key")
        settings(appendfsync="always")
        assert await store.get("key")


SLOW = 10_000
"""Microseconds that a rewrite of the log takes per key."""


@pytest.fixture(params=[Valkey, Redis])
def filled(request: pytest.FixtureRequest) -> Iterator[tuple[Valkey, driver.Redis]]:
    """A server with a hundred keys, whose rewrites take a second."""
    with request.param() as server, driver.Redis.from_url(server.url) as client:
        client.mset({f"other:{number}": b"x" for number in range(100)})
        client.config_set("rdb-key-save-delay", SLOW)
        yield server, client
        server.kill()  # an orderly end would wait for the rewrite


def rewriting(client: driver.Redis) -> bool:
    return bool(client.info("persistence")["aof_rewrite_in_progress"])


async def test_a_log_that_is_only_just_switched_on_is_waited_for(filled):
    server, client = filled
    client.config_set("appendonly", "no")
    client.config_set("appendonly", "yes")
    assert rewriting(client)
    async with RedisStore(server.url) as store:
        assert store.durability is Durability.HOST
        await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
    server.kill()
    server.start()
    async with RedisStore(server.url, expect_existing=True) as store:
        assert await store.get("key")


async def test_a_log_that_is_not_there_in_time_is_refused_and_a_later_try_succeeds(filled):
    server, client = filled
    async with RedisStore(server.url, timeout=2) as store:
        client.config_set("appendonly", "no")
        client.config_set("rdb-key-save-delay", 10 * SLOW)
        client.config_set("appendonly", "yes")
        client.replicaof("127.0.0.1", "1")
        client.replicaof("NO", "ONE")  # from here on it is another, as after a failover
        drop(store)
        for attempt in (
            store.put("key", b"x", revision=new(), expected=Expect.ABSENT),
            opened(RedisStore(server.url, timeout=2)),
        ):
            with pytest.raises(StoreUnavailableError, match="writing its log anew"):
                await attempt
        client.config_set("appendonly", "no")
        client.config_set("rdb-key-save-delay", 0)
        client.config_set("appendonly", "yes")
        store.timeout = 10
        await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
    assert not rewriting(client)


@pytest.mark.parametrize("rights", ["", "-waitaof"])
async def test_an_ordinary_rewrite_of_the_log_holds_nobody_up_where_the_server_can_tell(filled, rights):
    server, client = filled
    client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "~*", "+@all", *rights.split())
    if not rights:
        client.config_set("rdb-key-save-delay", 10 * SLOW)
    client.bgrewriteaof()
    async with RedisStore(f"{server.url}?username=app&password={SECRET}") as store:
        assert store.durability is Durability.HOST
        assert rewriting(client) is not bool(rights)
        if rights:
            client.config_set("rdb-key-save-delay", 10 * SLOW)
            client.bgrewriteaof()
            drop(store)
            assert await store.get("key") is None  # its log was in force before, so this is an ordinary rewrite
            assert rewriting(client)


def drop(store: RedisStore) -> None:
    """End the store's connections, as a restart of the server or a network would."""
    for line in store._exchange._lines:
        line.hang_up()


# ---------------------------------------------------------------- what it must be like


async def test_a_server_that_throws_keys_away_is_refused_unless_that_is_fine(private, settings):
    settings(maxmemory_policy="allkeys-lru")
    assert await opened(RedisStore(private.url)) is Durability.HOST  # without maxmemory nothing is thrown away
    settings(maxmemory="100mb")
    with pytest.raises(UsageError, match=r"allkeys-lru.*noeviction"):
        await opened(RedisStore(private.url))
    store = RedisStore(private.url, allow_eviction=True)
    with pytest.warns(UserWarning, match="promises nothing"):
        assert await opened(store) is Durability.NONE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="promises nothing"):
            await opened(store)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    settings(maxmemory_policy="noeviction")
    async with RedisStore(private.url, connections=1) as store:
        settings(maxmemory_policy="volatile-ttl")
        drop(store)
        with pytest.raises(StoreUnavailableError, match="volatile-ttl"):
            await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)


async def test_a_full_server_takes_no_puts_but_deletes_and_works_again(private, settings):
    async with RedisStore(private.url) as store:
        revision, later = new(), new()
        await store.put("key", b"x" * 1000, revision=revision, expected=Expect.ABSENT)
        settings(maxmemory="1000")
        with pytest.raises(StoreUnavailableError, match="is full"):
            await store.put("key", b"y", revision=new(), expected=revision)
        assert (await store.get("key")).revision == revision
        await store.delete("key", expected=revision)
        settings(maxmemory="0")
        await store.put("key", b"z", revision=later, expected=Expect.ABSENT)
        assert (await store.get("key")).revision == later


async def test_a_replica_is_refused_at_the_start_and_later(private, settings):
    with driver.Redis.from_url(private.url) as client:
        async with RedisStore(private.url) as store:
            revision = new()
            await store.put("key", b"x", revision=revision, expected=Expect.ABSENT)
            client.replicaof("127.0.0.1", "1")
            with pytest.raises(StoreUnavailableError, match="replica"):
                await store.put("key", b"y", revision=new(), expected=revision)
            with pytest.raises(StoreUnavailableError, match="replica"):
                await opened(RedisStore(private.url))
            client.replicaof("NO", "ONE")
            await store.put("key", b"y", revision=new(), expected=revision)


@pytest.mark.parametrize("kind", [Valkey, Redis])
async def test_a_primary_that_is_demoted_under_a_live_connection_answers_no_read(kind):
    with kind() as server, driver.Redis.from_url(server.url) as client:
        async with RedisStore(server.url) as store:
            revision = new()
            await store.put("key", b"x", revision=revision, expected=Expect.ABSENT)
            client.replicaof("127.0.0.1", "1")  # it keeps its connections, and what it holds grows old
            assert client.info("clients")["connected_clients"] == 2
            for attempt in (
                lambda: store.get("key"),
                lambda: store.get("absent"),
                lambda: store.head("key"),
                lambda: store.count(),
                lambda: anext(store.keys()),
                lambda: store.delete("absent", expected=Expect.ABSENT),
            ):
                with pytest.raises(StoreUnavailableError, match="is a replica"):
                    await attempt()
                client.replicaof("NO", "ONE")
                assert await store.head("key") == revision
                client.replicaof("127.0.0.1", "1")


async def test_who_shares_agents_does_not_thaw_them_from_a_primary_that_was_demoted(private, settings):
    with driver.Redis.from_url(private.url) as client:
        async with InstanceManager(Counter, store=RedisStore(private.url), shared=True) as counters:
            assert await counters.call("live", Counter.increment) == 1
            client.replicaof("127.0.0.1", "1")
            for refused in (counters.state("live"), counters.get("new"), counters.delete("new")):
                with pytest.raises((StoreError, ThawError)):
                    await refused
            client.replicaof("NO", "ONE")
            assert await counters.call("live", Counter.increment) == 2


INFO = b"redis_version:7.2.4\r\nrole:master\r\nloading:0\r\ncluster_enabled:0\r\nmaxmemory:0\r\naof_enabled:1\r\n"


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        (b"redis_version:6.0.16", UsageError, "6.0"),
        (b"redis_version:", UsageError, "6.2 or newer"),
        (b"role:slave", StoreUnavailableError, "replica"),
        (b"loading:1", StoreUnavailableError, "loading"),
        (b"cluster_enabled:1", UsageError, "cluster"),
    ],
)
def test_what_info_says_is_heeded(line, error, words):
    terms = Terms(durability=None, allow_eviction=False)
    assert check(read_facts(INFO, None), terms, "it") is Durability.PROCESS
    facts: Facts = read_facts(INFO + line + b"\r\n", {b"appendfsync": b"always"})
    with pytest.raises(error, match=words):
        check(facts, terms, "it")


# ---------------------------------------------------------------- addresses and secrets


@pytest.mark.parametrize(
    "url", [f"http://u:{SECRET}@h", f"{SECRET}", f"redis://:{SECRET}@h:{SECRET}", f"redis://:{SECRET}@h?db={SECRET}"]
)
def test_a_url_that_can_not_be_read_is_not_quoted(url):
    with pytest.raises(UsageError) as caught:
        RedisStore(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://u:{SECRET}@host:7000/2", "host:7000 (database 2)"),
        (f"rediss://:{SECRET}@host", "host:6379"),
        (f"valkey://:{SECRET}@host", "host:6379"),
        (f"unix://u:{SECRET}@/run/redis?db=1", "unix:/run/redis (database 1)"),
    ],
)
def test_repr_shows_the_place_and_no_secret(url, shown):
    assert repr(RedisStore(url)) == f"RedisStore({shown!r}, prefix='overwinter:')"


@pytest.mark.parametrize("password", [SECRET, f"not-{SECRET}"])
async def test_errors_of_the_way_in_hold_no_secret(private, password):
    for url in (
        f"{private.url}?username=app&password={password}",  # it may not ask for INFO, or has another password
        f"redis://app:{password}@127.0.0.1:1",
        f"unix://app:{password}@/nowhere/at/all",
    ):
        with pytest.raises(StoreUnavailableError) as caught:
            await opened(RedisStore(url))
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(caught.value.__cause__)


async def test_a_client_that_is_there_already_lends_its_settings(valkey):
    prefix = f"{uuid.uuid4().hex}:"
    async with async_driver.Redis.from_url(valkey.url, db=3, decode_responses=True, protocol=2) as client:
        async with RedisStore(client, prefix=prefix) as store:
            await store.put("key", b"\xff", revision=new(), expected=Expect.ABSENT)
            assert (await store.get("key")).data == b"\xff"
            assert [key async for key in store.keys("")] == ["key"]
        assert sorted(await client.keys(f"{prefix}*")) == [f"{prefix}agent:key", f"{prefix}store"]
    assert "database 3" in repr(store)


# ---------------------------------------------------------------- a server that lost its data, or another one


class Counter(Agent):
    count: int = 0

    async def increment(self) -> int:
        self.count += 1
        return self.count


def content(client: driver.Redis) -> dict[bytes, bytes]:
    return {name: client.dump(name) for name in client.scan_iter()}


def flush(client: driver.Redis) -> None:
    client.flushall()


def take_the_key(client: driver.Redis) -> None:
    client.delete("overwinter:store")


def another_opens_it_after_a_flush(client: driver.Redis) -> None:
    client.flushall()
    client.set("overwinter:store", "f" * 32)
    client.set("overwinter:agent:Counter:live", b"\x89OW1R\x01r")


@pytest.mark.parametrize("lose", [flush, take_the_key, another_opens_it_after_a_flush])
async def test_lost_data_is_refused_never_absent(private, settings, lose):
    with driver.Redis.from_url(private.url) as client:
        async with RedisStore(private.url) as store:
            revision = new()
            await store.put("old", b"x", revision=revision, expected=Expect.ABSENT)
            lose(client)
            before = content(client)
            for attempt in (
                lambda: store.get("old"),
                lambda: store.get("new"),
                lambda: store.head("new"),
                lambda: store.count(),
                lambda: store.put("old", b"x", revision=new(), expected=revision),
                lambda: store.put("new", b"x", revision=new(), expected=Expect.ABSENT),
                lambda: store.delete("old", expected=revision),
                lambda: store.delete("old", expected=Expect.ANY),
            ):
                with pytest.raises(StoreUnavailableError, match="does not hold the agents any more"):
                    await attempt()
            assert content(client) == before


async def test_agents_keep_their_state_through_a_flush_and_go_on_when_the_data_is_back(private, settings):
    with driver.Redis.from_url(private.url) as client:
        store = RedisStore(private.url)
        async with InstanceManager(Counter, store=store, store_patience=0.2) as counters:
            assert await counters.call("live", Counter.increment) == 1
            await counters.call("asleep", Counter.increment)
            await counters.stop("asleep")
            backup = content(client)
            client.flushall()
            for key in ("live", "asleep", "new"):
                with pytest.raises((StoreError, ThawError)) as caught:
                    await counters.call(key, Counter.increment)
                assert "does not hold the agents" in f"{caught.value} {caught.value.__cause__}"
            assert content(client) == {}
            assert (await counters.state("live")).count == 1
            for name, dump in backup.items():
                client.restore(name, 0, dump)
            assert [await counters.call(key, Counter.increment) for key in ("live", "asleep", "new")] == [2, 2, 1]


async def test_a_server_that_came_back_empty_is_refused(private, settings):
    with driver.Redis.from_url(private.url) as client:
        async with RedisStore(private.url) as store:
            await store.put("key", b"x", revision=new(), expected=Expect.ABSENT)
            client.flushall()
            private.kill()
            private.start()
            for _ in range(3):
                await asyncio.sleep(0)  # the store learns that the connections ended
            with pytest.raises(StoreUnavailableError, match="does not hold the agents any more"):
                await store.get("key")
        with pytest.raises(StoreUnavailableError, match="does not hold the agents any more"):
            await opened(store)  # the same program, so it still knows
        with pytest.raises(StoreUnavailableError, match="expect_existing"):
            await opened(RedisStore(private.url, expect_existing=True))
        assert content(client) == {}
        await opened(RedisStore(private.url))  # a new program can't know, unless it is told
        await opened(RedisStore(private.url, expect_existing=True))


async def test_many_who_open_an_empty_server_agree_on_its_id(private, settings):
    stores = [RedisStore(private.url) for _ in range(8)]
    for store in stores:
        await store.__aenter__()
    assert len({store._door.identity for store in stores}) == 1
    for store in stores:
        await store.__aexit__()
