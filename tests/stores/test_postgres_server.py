"""PostgresStore and its server: set-up, what it promises, standbys, lost and silent connections, cancelled callers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import psycopg
import pytest
from proxy import Proxy
from servers import Postgres

from overwinter.errors import (
    CorruptRecordError,
    OutcomeUnknownError,
    RevisionConflictError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import Durability, Expect, Stored
from overwinter.stores._postgres_errors import connection_failed
from overwinter.stores._postgres_link import Link
from overwinter.stores.postgres import PostgresStore


def new() -> bytes:
    return os.urandom(16)


def sql(url, text, *values):
    """What another program does, or sees."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text, values or None)
        return cursor.fetchall() if cursor.description else []


def as_role(url, role):
    return url.replace("postgres@", f"{role}@")


@pytest.fixture
def url(postgres):
    return postgres.url


@pytest.fixture
def role(url, table):
    """A role that owns nothing."""
    sql(url, f"CREATE ROLE {table} LOGIN")
    yield table
    sql(url, f"DROP OWNED BY {table} CASCADE")
    sql(url, f"DROP ROLE {table}")


@pytest.fixture(scope="module")
def private():
    """A server whose settings may be changed, and which may be stopped."""
    with Postgres() as server:
        yield server


# ---------------------------------------------------------------- set-up


async def test_many_set_it_up_at_once(url, table):
    async def one():
        async with PostgresStore(url, schema=f"s_{table}", table="t") as store:
            return await store.get("a")

    assert await asyncio.gather(*(one() for _ in range(12))) == [None] * 12
    found = sql(url, "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace ORDER BY 1", f"s_{table}")
    assert found == [("t",), ("t_deleted_at_idx",), ("t_pkey",)]


async def test_set_up_is_somebody_elses_business(url, table, role):
    store = PostgresStore(as_role(url, role), table=table, auto_setup=False)
    with pytest.raises(UsageError, match=r"await store\.setup\(\)"):
        await store.open()
    with pytest.raises(StoreUnavailableError, match="InsufficientPrivilege"):
        await store.setup()
    owner = PostgresStore(url, table=table)
    await owner.setup()
    await owner.setup()
    with pytest.raises(StoreUnavailableError, match="GRANT"):
        await store.open()
    sql(url, f"GRANT SELECT ON {table} TO {role}")
    async with store:
        assert await store.get("a") is None
        with pytest.raises(StoreUnavailableError, match="GRANT"):
            await store.put("a", b"x", revision=new(), expected=Expect.ABSENT)
        sql(url, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        await store.delete("a", expected=b"r")
        await store.put("a", b"x", revision=b"s", expected=Expect.ABSENT)
        assert await store.count() == 1


@pytest.mark.parametrize("name", ['a"; DROP TABLE x; --', "per%cent %s", "Ümläut", "a.b", "{x}", "select", "x" * 63])
async def test_names_are_only_names(url, name):
    async with PostgresStore(url, schema=name, table=name) as store:
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        assert await store.get("a") == Stored(b"x", b"r")
        assert [key async for key in store.keys("")] == ["a"]
        await store.delete("a", expected=b"r")
    assert sql(url, "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = %s", name, name)


def test_names_that_can_not_be(url):
    for name in ("", "a\0b", "x" * 64, "ü" * 32, "\ud800"):
        with pytest.raises(UsageError, match="schema"):
            PostgresStore(url, schema=name)
        with pytest.raises(UsageError, match="table"):
            PostgresStore(url, table=name)
    with pytest.raises(ValueError, match="timeout"):
        PostgresStore(url, timeout=0)
    with pytest.raises(ValueError, match="writer"):
        PostgresStore(url, writers=0)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ("COMMENT ON TABLE {} IS NULL", UsageError, "not overwinter's"),
        ("COMMENT ON TABLE {} IS 'overwinter agents, format 2'", UsageError, "upgrade"),
        ("ALTER TABLE {} DROP COLUMN deleted_at", CorruptRecordError, "lacks columns"),
        ("ALTER TABLE {} SET UNLOGGED", UsageError, "a crash would empty it"),
    ],
)
async def test_a_table_that_is_not_what_we_made_is_left_alone(url, table, change, kind, says):
    await PostgresStore(url, table=table).setup()
    sql(url, change.format(table))
    for attempt in (PostgresStore(url, table=table).open, PostgresStore(url, table=table).setup):
        with pytest.raises(kind, match=says):
            await attempt()


async def test_a_table_that_goes_is_not_an_empty_one(url, table):
    async with PostgresStore(url, table=table) as store:
        sql(url, f"DROP TABLE {table}")
        for attempt in (
            store.get("a"),
            store.head("a"),
            store.count(),
            store.put("a", b"", revision=new(), expected=Expect.ABSENT),
            store.delete("a", expected=Expect.ANY),
        ):
            with pytest.raises(StoreUnavailableError, match="the table is not there"):
                await attempt


@pytest.mark.parametrize("loss", ["DROP TABLE", "TRUNCATE"])
async def test_a_table_that_somebody_made_anew_is_not_an_empty_one(url, table, loss):
    async with PostgresStore(url, table=table) as store:
        await store.put("a", b"x", revision=b"a", expected=Expect.ABSENT)
        sql(url, f"CREATE TABLE backup_{table} AS TABLE {table}")
        sql(url, f"{loss} {table}")
        async with PostgresStore(url, table=table) as other:  # began after the loss
            assert await other.get("a") is None
            await other.put("b", b"y", revision=b"b", expected=Expect.ABSENT)
            for attempt in (
                store.get("a"),
                store.head("a"),
                store.count(),
                anext(store.keys()),
                store.put("a", b"", revision=new(), expected=Expect.ABSENT),
                store.put("b", b"", revision=new(), expected=b"b"),
                store.delete("b", expected=b"b"),
                store.delete("b", expected=Expect.ANY),
            ):
                with pytest.raises(StoreUnavailableError, match="does not hold the agents any more"):
                    await attempt
            assert [key async for key in other.keys("")] == ["b"]
            assert await other.get("b") == Stored(b"y", b"b")
        sql(url, f"TRUNCATE {table}")
        with pytest.raises(StoreUnavailableError, match="does not hold the agents any more"):
            await store.get("a")
        sql(url, f"INSERT INTO {table} TABLE backup_{table}")
        assert await store.get("a") == Stored(b"x", b"a")
        await store.put("a", b"y", revision=b"b", expected=b"a")
        assert await store.count() == 1


async def test_programs_that_open_an_emptied_table_at_once_agree_on_it(url, table):
    await PostgresStore(url, table=table).setup()
    sql(url, f"TRUNCATE {table}")
    async with contextlib.AsyncExitStack() as stack:
        stores = [PostgresStore(url, table=table) for _ in range(12)]
        await asyncio.gather(*map(stack.enter_async_context, stores))
        await asyncio.gather(*(store.put("a", b"x", revision=b"r", expected=Expect.ABSENT) for store in stores))


async def test_nothing_is_left_in_a_session(url, table):
    """What a pooler would hand on to the next program: settings, prepared statements, locks, a transaction."""
    async with PostgresStore(url, table=table, prepare_threshold=None, writers=1) as store:
        for number in range(10):
            await store.put(f"k{number}", b"x", revision=b"r", expected=Expect.ABSENT)
            await store.put(f"k{number}", b"y", revision=b"s", expected=b"r")
            await store.get(f"k{number}")
        connections = [link._connection for lane in store._lanes for link in lane.carriers if link.connected]
        assert len(connections) == 2
        for connection in connections:
            left = await connection.execute(
                "SELECT (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors),"
                " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),"
                " array(SELECT name FROM pg_settings WHERE source = 'session')"
            )
            assert await left.fetchall() == [(0, 0, 0, [])]


# ---------------------------------------------------------------- what the server promises


async def test_durability_is_what_the_server_says(private):
    url = private.url
    async with PostgresStore(url) as store:
        assert store.durability is Durability.HOST
    for setting in ("fsync", "full_page_writes"):
        alter(url, f"ALTER SYSTEM SET {setting} = off")
        async with PostgresStore(url) as store:
            assert store.durability is Durability.PROCESS
        alter(url, f"ALTER SYSTEM RESET {setting}")


async def test_a_server_that_promises_less_than_before_is_refused(private):
    url = private.url
    async with PostgresStore(url) as store:
        await store.put("a", b"x", revision=b"a", expected=Expect.ABSENT)
        alter(url, "ALTER SYSTEM SET fsync = off")
        cut_off(url)
        with pytest.raises(StoreUnavailableError, match="promises PROCESS now and promised HOST"):
            await store.put("a", b"y", revision=b"b", expected=b"a")
        alter(url, "ALTER SYSTEM RESET fsync")
        await store.put("a", b"y", revision=b"b", expected=b"a")
        await store.delete("a", expected=b"b")


async def test_writes_wait_for_the_disk_whatever_the_role_says(url, table, role):
    await PostgresStore(url, table=table).setup()
    sql(url, f"GRANT ALL ON {table} TO {role}; CREATE TABLE seen_{table}(setting text);")
    sql(
        url,
        f"""GRANT ALL ON seen_{table} TO {role}; ALTER ROLE {role} SET synchronous_commit = off;
        CREATE FUNCTION see_{table}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            INSERT INTO seen_{table} VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$;
        CREATE TRIGGER see AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION see_{table}()""",
    )
    async with PostgresStore(as_role(url, role), table=table) as store:
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        await store.delete("a", expected=b"r")
        sql(url, f"ALTER ROLE {role} SET synchronous_commit = remote_apply")
    async with PostgresStore(as_role(url, role), table=table) as store:
        await store.put("b", b"x", revision=b"r", expected=Expect.ABSENT)
    assert sql(url, f"SELECT * FROM seen_{table}") == [("on",), ("on",), ("remote_apply",)]


async def test_a_commit_that_waits_for_its_standby_is_not_acknowledged(private):
    url = private.url
    await PostgresStore(url, table="replicated").setup()
    alter(url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    try:
        async with PostgresStore(url, table="replicated", timeout=0.5) as store:
            assert store.durability is Durability.REPLICATED
            with pytest.raises(OutcomeUnknownError):
                await store.put("a", b"x", revision=b"a", expected=Expect.ABSENT)
        async with PostgresStore(url, table="replicated") as store:
            waiting = asyncio.ensure_future(store.put("b", b"x", revision=b"b", expected=Expect.ABSENT))
            while len(pids := sql(url, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")) < 2:
                await asyncio.sleep(0.01)  # the other one is that of the store before
            for (pid,) in pids:  # the server calls this a success, with a warning
                sql(url, "SELECT pg_cancel_backend(%s)", pid)
            with pytest.raises(OutcomeUnknownError, match="answered with a warning"):
                await waiting
    finally:
        alter(url, "ALTER SYSTEM RESET synchronous_standby_names")


async def test_a_commit_that_no_standby_has_is_shown_to_nobody_and_seeing_it_acknowledges_nothing(private):
    url, same = private.url, {"revision": b"r", "expected": Expect.ABSENT}
    await PostgresStore(url, table="hidden").setup()
    alter(url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    try:
        async with PostgresStore(url, table="hidden") as other:
            async with PostgresStore(url, table="hidden", timeout=0.5) as store:
                with pytest.raises(OutcomeUnknownError):
                    await store.put("a", b"x", **same)
            waiting = sql(url, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            assert (len(waiting), await other.get("a")) == (1, None)  # closed, so nothing more comes from that store
            sql(url, "SELECT pg_cancel_backend(%s)", waiting[0][0])  # as an administrator may, or a restart does
            while await other.get("a") is None:
                await asyncio.sleep(0.01)
            async with PostgresStore(url, table="hidden", timeout=0.5) as store:
                with pytest.raises(OutcomeUnknownError):
                    await store.put("a", b"x", **same)
            assert await other.get("a") == Stored(b"x", b"r")
            alter(url, "ALTER SYSTEM RESET synchronous_standby_names")
            await other.put("a", b"x", **same)
    finally:
        alter(url, "ALTER SYSTEM RESET synchronous_standby_names")


async def test_a_warning_about_something_else_is_no_doubt_about_the_commit(url, table):
    async with PostgresStore(url, table=table) as store:
        sql(
            url,
            f"""CREATE FUNCTION warn_{table}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
                RAISE WARNING 'it is late'; RETURN NULL; END$$;
            CREATE CONSTRAINT TRIGGER warn AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION warn_{table}()""",
        )
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        await store.put("a", b"y", revision=b"s", expected=b"r")
        await store.delete("a", expected=b"s")
        assert await store.get("a") is None


async def test_a_server_that_takes_no_writes_is_refused(url, table, role):
    await PostgresStore(url, table=table).setup()
    sql(url, f"GRANT ALL ON {table} TO {role}; ALTER ROLE {role} SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailableError, match=r"takes no writes.*primary"):
        await PostgresStore(as_role(url, role), table=table).open()


class Standby(Postgres):
    """A copy of another server that follows it."""

    def __init__(self, primary):
        self.primary = primary
        super().__init__()

    def prepare(self):
        super().prepare()
        for each in self.data.iterdir():  # the folder stays, with its owner
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        subprocess.run(
            [self.programs / "pg_basebackup", "-D", self.data, "-d", self.primary.url, "-R", "-c", "fast", "-N"],
            check=True, capture_output=True, **self.begin,
        )  # fmt: skip


# ---------------------------------------------------------------- connections that end, and that say nothing


def alter(url, statement):
    sql(url, statement)
    sql(url, "SELECT pg_reload_conf()")
    name = statement.split()[3]
    wanted = sql(url, "SELECT setting FROM pg_file_settings WHERE name = %s AND applied ORDER BY seqno DESC", name)
    for _ in range(1000):  # sessions look at it between two statements, so a new one has it as soon as one has
        if not wanted or sql(url, "SELECT setting FROM pg_settings WHERE name = %s", name)[0] == wanted[0]:
            return
    raise AssertionError(f"{statement} has no effect")


def cut_off(url):
    """End all sessions but this one, and wait until they are gone."""
    others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid, 5000) {others} AND application_name = 'overwinter'")


async def test_connections_that_died_while_idle_are_replaced(private):
    async with PostgresStore(private.url, writers=2) as store:
        base: bytes | Expect = Expect.ABSENT
        for number in range(5):
            data = b"%d" % number
            await asyncio.gather(store.count(), store.put("idle", data, revision=b"r" + data, expected=base))
            base = b"r" + data
            cut_off(private.url)
            assert await store.get("idle") == Stored(data, base)
        cut_off(private.url)
        await store.delete("idle", expected=base)


async def test_a_server_that_restarts_is_found_again(private):
    async with PostgresStore(private.url, timeout=5) as store:
        await store.put("restart", b"x", revision=b"a", expected=Expect.ABSENT)
        private.stop()
        for attempt in (
            store.get("restart"),
            store.put("restart", b"y", revision=b"b", expected=b"a"),
            store.delete("restart", expected=b"a"),
            store.count(),
        ):
            with pytest.raises(StoreUnavailableError, match="no connection"):
                await attempt
        with pytest.raises(StoreUnavailableError, match="no connection"):
            await PostgresStore(private.url).open()
        private.start()
        assert await store.get("restart") == Stored(b"x", b"a")
        await store.put("restart", b"y", revision=b"b", expected=b"a")
        await store.delete("restart", expected=b"b")


async def test_a_silent_server_is_not_waited_for(private):
    async with PostgresStore(private.url, table="silent", timeout=0.4) as store:
        await store.put("a", b"x", revision=b"a", expected=Expect.ABSENT)
        await store.get("a")
        pids = [pid for (pid,) in sql(private.url, "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")]
        private.send(signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            outcomes = await asyncio.gather(
                store.put("a", b"y", revision=b"b", expected=b"a"),
                *(store.put(f"k{n}", b"y", revision=b"k", expected=Expect.ABSENT) for n in range(600)),
                store.get("a"),
                store.head("a"),
                return_exceptions=True,
            )
            late = await asyncio.gather(
                store.put("b", b"", revision=b"b", expected=Expect.ABSENT), return_exceptions=True
            )
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            private.send(signal.SIGCONT)
        changes, reads = outcomes[:-2], outcomes[-2:]
        assert type(changes[0]) is OutcomeUnknownError
        assert {type(outcome) for outcome in changes} == {OutcomeUnknownError, StoreUnavailableError}
        assert [type(outcome) for outcome in (*reads, *late)] == [StoreUnavailableError] * 3  # the last was not sent
        while True:
            try:
                found = await store.get("a")
            except StoreUnavailableError:
                continue
            break
        assert found in (Stored(b"x", b"a"), Stored(b"y", b"b"))
        for number, outcome in enumerate(changes[1:]):
            stored = await store.head(f"k{number}")
            assert stored is None or type(outcome) is OutcomeUnknownError, "what was certainly not stored is there"
        assert [len(lane.carriers) for lane in store._lanes] == [2, 1, 1]


class Gate:
    """Connections that are made wait here."""

    def __init__(self, monkeypatch):
        self.open = asyncio.Event()
        connect = Link.connect

        async def wait(link):
            if self.holds(link):
                await self.open.wait()
            return await connect(link)

        monkeypatch.setattr(Link, "connect", wait)

    def holds(self, link):
        return not link.connected


async def test_what_was_refused_while_its_connection_was_made_is_not_sent(url, table, monkeypatch):
    async with PostgresStore(url, table=table, timeout=0.6, writers=1) as store:
        await store.put("old", b"x", revision=b"o", expected=Expect.ABSENT)
        for lane in store._lanes:
            for link in lane.carriers:
                link.discard()
        gate = Gate(monkeypatch)
        first = store.submit("first", b"x", revision=b"f", expected=Expect.ABSENT)
        await asyncio.sleep(0.2)  # so the time of the next ones is over while their connection still has some
        late = store.submit("late", b"x", revision=b"l", expected=Expect.ABSENT)
        delete = asyncio.ensure_future(store.delete("old", expected=b"o"))
        for write in (first, late, delete):
            with pytest.raises(StoreUnavailableError, match="nothing was stored"):
                await write
        gate.open.set()
        await store.put("next", b"x", revision=b"n", expected=Expect.ABSENT)  # behind them, on the same connection
    assert sql(url, f"SELECT key FROM {table} WHERE data IS NOT NULL ORDER BY key") == [(b"next",), (b"old",)]


async def test_what_is_late_when_its_connection_is_lost_just_before_it_is_sent_is_unknown(url, table, monkeypatch):
    class Late(Gate):
        looks = 0

        def holds(self, link):
            if not link.connected:
                return False
            self.looks += 1
            if self.looks == 1:  # that of the round; the next one is that of the request
                return False
            link.discard()
            return True

    async with PostgresStore(url, table=table, timeout=0.6, writers=1) as store:
        await store.put("old", b"x", revision=b"o", expected=Expect.ABSENT)
        gate = Late(monkeypatch)
        late = store.submit("late", b"x", revision=b"l", expected=Expect.ABSENT)
        with pytest.raises(OutcomeUnknownError):
            await late
        gate.open.set()


async def test_a_host_that_says_nothing_does_not_use_up_the_time_of_the_next(postgres, table):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        both = f"user=postgres host=127.0.0.1,{postgres.socket} port={silent.getsockname()[1]},5432"
        async with PostgresStore(both, table=table, timeout=5) as store:
            await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
    assert sql(postgres.url, f"SELECT data FROM {table} WHERE key = 'a'") == [(b"x",)]


async def test_a_row_that_somebody_keeps_locked_holds_up_only_its_own_batch(url, table):
    async with PostgresStore(url, table=table, timeout=1) as store:
        await store.put("locked", b"x", revision=b"a", expected=Expect.ABSENT)
        with psycopg.connect(url) as somebody:
            somebody.execute(f"SELECT 1 FROM {table} FOR UPDATE")
            stuck = asyncio.ensure_future(store.put("locked", b"y", revision=b"b", expected=b"a"))
            while not sql(url, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                await asyncio.sleep(0)
            await store.put("free", b"x", revision=b"a", expected=Expect.ABSENT)
            with pytest.raises(StoreUnavailableError, match=r"QueryCanceled.*nothing was stored"):
                await stuck  # the server gives up before we do, so it is certain
        await store.put("locked", b"y", revision=b"b", expected=b"a")


async def test_a_read_that_is_given_up_is_stopped_on_the_server_too(url, table):
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    async with PostgresStore(url, table=table, timeout=0.5) as store:
        with psycopg.connect(url) as somebody:
            somebody.execute(f"LOCK TABLE {table}")
            with pytest.raises(StoreUnavailableError):
                await store.get("a")
            async with asyncio.timeout(10):
                while sql(url, waiting, f"%{table}%"):
                    await asyncio.sleep(0.01)
        assert await store.get("a") is None


async def test_a_connection_that_was_broken_in_a_write_is_not_made_again(url, table):
    """Nobody waits for what it carried, and nobody would end what it carries then."""
    async with PostgresStore(url, table=table, writers=1) as store:
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        (link,) = store._lanes[0].carriers
        assert link.hang_up()
        with pytest.raises(StoreUnavailableError, match="given up"):
            await link.connect()


async def test_no_connection_left(url, table, role):
    await PostgresStore(url, table=table).setup()
    sql(url, f"GRANT ALL ON {table} TO {role}; ALTER ROLE {role} CONNECTION LIMIT 1")
    async with PostgresStore(as_role(url, role), table=table) as store:
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        with pytest.raises(StoreUnavailableError, match="too many connections"):
            await store.get("a")
        sql(url, f"ALTER ROLE {role} CONNECTION LIMIT 9")
        assert await store.get("a") == Stored(b"x", b"r")


async def test_two_thousand_cancelled_callers(url, table):
    """No answer reaches the wrong caller, and the connections stay."""
    chance = random.Random(5)
    async with PostgresStore(url, table=table) as store:
        keys = [f"k{number}" for number in range(40)]
        await asyncio.gather(*(store.put(key, key.encode(), revision=b"r", expected=Expect.ABSENT) for key in keys))
        wrong = []

        async def read(key):
            stored = await (store.get if chance.random() < 0.5 else store.head)(key)
            if stored not in (Stored(key.encode(), b"r"), b"r"):
                wrong.append((key, stored))

        async def write(number):
            await store.put(f"w{number}", b"%d" % number, revision=b"w%d" % number, expected=Expect.ABSENT)

        cancelled = 0
        for number in range(2000):
            call = asyncio.create_task(read(chance.choice(keys)) if chance.random() < 0.5 else write(number))
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            cancelled += call.cancel()
            if number % 50 == 0:
                await asyncio.gather(*map(read, keys))
        assert cancelled > 1000
        await asyncio.gather(*map(read, keys))
        assert not wrong
        assert [len(lane.carriers) for lane in store._lanes] == [2, 1, 1]
        assert len({id(link) for lane in store._lanes for link in lane.carriers}) == 4
    for key, data, revision in sql(url, f"SELECT key, data, revision FROM {table} WHERE key LIKE 'w%'"):
        assert key == revision == b"w" + data
    while sql(
        url, "SELECT 1 FROM pg_stat_activity WHERE application_name = 'overwinter' AND query LIKE %s", f"%{table}%"
    ):
        await asyncio.sleep(0.01)


async def test_who_stands_behind_many_whose_callers_left_is_served(url, table, monkeypatch):
    monkeypatch.setattr("overwinter.stores._jobs._LOOK_AHEAD", 16)
    async with PostgresStore(url, table=table, timeout=5) as store:
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        calls = [asyncio.create_task(store.get(key)) for key in ("first", "first", *(f"k{n}" for n in range(40)), "a")]
        await asyncio.sleep(0)  # now they stand in line
        for call in calls[:-1]:
            call.cancel()
        assert await calls[-1] == Stored(b"x", b"r")


# ---------------------------------------------------------------- a standby, and a failover


async def test_a_standby_is_refused_and_found_once_it_is_the_primary():
    with Postgres() as primary:
        await PostgresStore(primary.url).setup()
        with Standby(primary) as standby:
            with pytest.raises(StoreUnavailableError, match="standby"):
                await PostgresStore(standby.url).open()
            both = f"postgresql://postgres@/postgres?host={standby.socket},{primary.socket}"
            async with PostgresStore(both, timeout=5) as store:
                await store.put("a", b"x", revision=b"a", expected=Expect.ABSENT)
                position = sql(primary.url, "SELECT pg_current_wal_lsn()::text")[0][0]
                while not sql(standby.url, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", position)[0][0]:
                    await asyncio.sleep(0.01)
                primary.kill()
                with pytest.raises((StoreUnavailableError, OutcomeUnknownError)):  # its session may outlive it a little
                    await store.put("b", b"y", revision=b"b", expected=Expect.ABSENT)
                sql(standby.url, "SELECT pg_promote()")
                assert await store.get("a") == Stored(b"x", b"a")
                await store.put("a", b"y", revision=b"b", expected=b"a")
                with pytest.raises(RevisionConflictError):
                    await store.put("a", b"z", revision=b"c", expected=b"a")


async def test_a_pooler_that_leads_to_a_standby_is_noticed(url, table, monkeypatch):
    """What a standby doesn't have yet must not be taken for absent."""
    async with PostgresStore(url, table=table) as store:
        await store.get("a")
        for verb in ("get", "head"):
            text = getattr(store._table, verb).replace(b"pg_is_in_recovery()", b"true")
            object.__setattr__(store._table, verb, text)
        for read in (store.get, store.head):
            with pytest.raises(StoreUnavailableError, match="standby"):
                await read("a")


# ---------------------------------------------------------------- nothing leaks


async def test_no_password_is_shown(url, tmp_path):
    secret = "hunter2secret"
    silent = f"postgresql://ada:{secret}@/app?host={tmp_path}&port=1"
    store = PostgresStore(silent)
    assert secret not in repr(store)
    assert repr(store) == f"PostgresStore('{tmp_path}:1/app', table='public.overwinter_agents')"
    with pytest.raises(StoreUnavailableError) as refused:
        await store.open()
    assert secret not in repr(refused.value) + str(refused.value)
    assert refused.value.__cause__ is None
    assert secret not in str(connection_failed(OSError(f"no: {secret}"), "here", secret))
    for broken in (f"postgresql://ada:{secret}%zz@host/app", f"password={secret} nonsense", f"host='{secret}"):
        with pytest.raises(UsageError, match="can't be read") as misread:
            PostgresStore(broken)
        assert secret not in str(misread.value)


def test_the_driver_loads_on_first_use_and_is_asked_for_by_its_extra(child, monkeypatch):
    code = "import sys, overwinter.stores.postgres; sys.exit('psycopg' in sys.modules)"
    assert child(code, prelude="").wait(30) == 0
    monkeypatch.setitem(sys.modules, "psycopg.conninfo", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[postgres\]'"):
        PostgresStore("")


@pytest.mark.parametrize("timeout", [1, 20])
async def test_an_open_ends_in_time_when_the_server_falls_silent_after_the_connection_stands(
    postgres, table, monkeypatch, timeout
):
    connect, links = Link.connect, []
    async with Proxy(str(postgres.socket / ".s.PGSQL.5432")) as proxy:

        async def then_silence(self):
            connection = await connect(self)
            links.append(self)
            proxy.hang()
            return connection

        monkeypatch.setattr(Link, "connect", then_silence)
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        opening = asyncio.ensure_future(PostgresStore(url, table=table, timeout=timeout).open())
        begin = time.monotonic()
        if timeout == 1:
            with pytest.raises(StoreUnavailableError, match="did not answer within 1 s"):
                await opening
        else:  # the caller leaves before
            await asyncio.wait([opening], timeout=1)
            opening.cancel()
            await asyncio.wait([opening])
            assert opening.cancelled()
        assert time.monotonic() - begin < 4
        await asyncio.sleep(0)
        assert [link.connected for link in links] == [False]
        assert len(asyncio.all_tasks()) == 1 + proxy.links * 3  # the proxy's own
