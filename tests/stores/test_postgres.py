"""PostgresStore against a real server: the contract, conditions, tombstones, keys and batches."""

from __future__ import annotations

import asyncio
import os

import psycopg
import pytest
from servers import Postgres

from overwinter.errors import (
    ClosedError,
    CorruptRecordError,
    InvalidKeyError,
    OutcomeUnknownError,
    RevisionConflictError,
    StateTooLargeError,
    StoreUnavailableError,
    UsageError,
)
from overwinter.stores import Expect, Stored
from overwinter.stores._postgres_link import Link
from overwinter.stores.postgres import PostgresStore
from overwinter.testing import StoreContract


def new() -> bytes:
    return os.urandom(16)


def sql(url, text, *values):
    """What another program does, or sees."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text, values or None)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def url(postgres):
    return postgres.url


class TestPostgresStore(StoreContract):
    can_corrupt = True

    @pytest.fixture(autouse=True)
    def _table(self, url, table):
        self.url, self.table = url, table

    def store_factory(self):
        return "servers_for_children:postgres", self.url, self.table

    async def corrupt(self, key):
        sql(self.url, f"UPDATE {self.table} SET data = NULL WHERE key = %s", key.encode())


class TestOnePostgresStoreForAll(TestPostgresStore):
    def store_factory(self):
        return None  # children are the same as above

    async def make_store(self):
        if not hasattr(self, "store"):
            self.store = PostgresStore(self.url, table=self.table, writers=1)
        return self.store


class TestPostgresStoreWithoutPreparedStatements(TestPostgresStore):
    def store_factory(self):
        return None

    async def make_store(self):
        return PostgresStore(self.url, table=self.table, writers=3, readers=2, prepare_threshold=None)


def opened(url, table, **options):
    return PostgresStore(url, table=table, **options)


# ---------------------------------------------------------------- conditions


async def test_a_put_that_is_repeated_has_landed_and_is_no_conflict(url, table):
    async with opened(url, table) as store:
        first, second, third = new(), new(), new()
        for _ in range(2):
            await store.put("a", b"1", revision=first, expected=Expect.ABSENT)
        for _ in range(2):
            await store.put("a", b"2", revision=second, expected=first)
        await store.put("a", b"3", revision=third, expected=second)
        with pytest.raises(RevisionConflictError):  # it landed once, and somebody wrote on top
            await store.put("a", b"2", revision=second, expected=first)
        assert await store.get("a") == Stored(b"3", third)


async def test_revisions_of_any_length(url, table):
    async with opened(url, table) as store:
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        await store.put("a", b"y", revision=b"s" * 255, expected=b"r")
        assert await store.head("a") == b"s" * 255
        for bad in (b"", b"t" * 256):
            with pytest.raises(UsageError, match="1 to 255"):
                await store.put("a", b"z", revision=bad, expected=b"s" * 255)
            with pytest.raises(UsageError, match="1 to 255"):
                await store.delete("a", expected=bad)
        assert await store.get("a") == Stored(b"y", b"s" * 255)


async def test_a_put_over_anything_is_refused(url, table):
    async with opened(url, table) as store:
        with pytest.raises(UsageError, match=r"Expect\.ANY is only for deleting"):
            await store.put("a", b"", revision=new(), expected=Expect.ANY)


# ---------------------------------------------------------------- tombstones


async def test_a_tombstone_is_never_shown(url, table):
    async with opened(url, table) as store:
        for key in ("a", "b"):
            await store.put(key, b"x", revision=key.encode(), expected=Expect.ABSENT)
        await store.delete("a", expected=b"a")
        assert sql(url, f"SELECT data, deleted_at IS NULL FROM {table} WHERE key = 'a'") == [(None, False)]
        assert (await store.get("a"), await store.head("a")) == (None, None)
        assert [key async for key in store.keys("")] == ["b"]
        assert await store.count() == 1
        ((tomb,),) = sql(url, f"SELECT revision FROM {table} WHERE key = 'a'")
        with pytest.raises(RevisionConflictError):  # a tombstone's revision is nobody's
            await store.put("a", b"", revision=new(), expected=b"a")
        await store.delete("a", expected=Expect.ANY)
        assert sql(url, f"SELECT revision FROM {table} WHERE key = 'a'") == [(tomb,)]  # and it stays as it is


async def test_a_create_that_comes_after_its_time_does_nothing(url, table, monkeypatch):
    async with opened(url, table) as store:
        await store.put("a", b"x", revision=b"a", expected=Expect.ABSENT)
        last_call = Link.last_call.fget
        monkeypatch.setattr(Link, "last_call", property(lambda self: last_call(self) - 2 * 60 - store.timeout))
        for key, expected in (("a", b"a"), ("b", Expect.ABSENT)):
            with pytest.raises(StoreUnavailableError, match="nothing was stored"):
                await store.put(key, b"late", revision=new(), expected=expected)
        with pytest.raises(StoreUnavailableError, match="nothing was stored"):
            await store.delete("a", expected=b"a")
        monkeypatch.undo()
        assert await store.get("a") == Stored(b"x", b"a")
        assert await store.get("b") is None


async def test_a_create_stands_on_the_tombstone_that_it_saw(url, table, monkeypatch):
    """A delete between the look and the write is seen, and so is a tombstone that goes."""
    async with opened(url, table) as store, opened(url, table) as other:
        await store.put("a", b"x", revision=b"a", expected=Expect.ABSENT)
        await store.delete("a", expected=b"a")
        looks = []
        fetch = Link.fetch

        async def meddle(self, *arguments):
            rows = await fetch(self, *arguments)
            looks.append(next((row[1] for row in rows if row[0] == b"a"), None))
            if len(looks) == 1:
                monkeypatch.undo()
                await other.put("a", b"between", revision=b"b", expected=Expect.ABSENT)
                await other.delete("a", expected=b"b")
                monkeypatch.setattr(Link, "fetch", meddle)
            elif len(looks) == 2:
                sql(url, f"DELETE FROM {table} WHERE key = 'a'")
            return rows

        monkeypatch.setattr(Link, "fetch", meddle)
        await store.put("a", b"y", revision=b"c", expected=Expect.ABSENT)
        assert len(set(looks)) == 3  # two tombstones, and nothing
        monkeypatch.undo()
        assert await store.get("a") == Stored(b"y", b"c")


async def test_who_creates_over_a_tombstone_first_wins(url, table):
    async with opened(url, table) as store, opened(url, table) as other:
        for number in range(20):
            key = f"k{number}"
            await store.put(key, b"x", revision=b"a", expected=Expect.ABSENT)
            await store.delete(key, expected=b"a")
            outcomes = await asyncio.gather(
                *(each.put(key, b"", revision=new(), expected=Expect.ABSENT) for each in (store, other)),
                return_exceptions=True,
            )
            assert sorted(str(type(outcome)) for outcome in outcomes) == sorted(
                map(str, (type(None), RevisionConflictError))
            )


async def test_old_tombstones_are_purged_and_young_ones_stay(url, table):
    async with opened(url, table) as store:
        for key in ("old", "young", "alive", "last"):
            await store.put(key, b"x", revision=b"r", expected=Expect.ABSENT)
        store._next_purge = float("inf")
        for key in ("old", "young"):
            await store.delete(key, expected=b"r")
        sql(url, f"UPDATE {table} SET deleted_at = now() - interval '61 minutes' WHERE key = 'old'")
        store._next_purge = 0
        await store.delete("last", expected=b"r")
    assert sql(url, f"SELECT key FROM {table} WHERE key <> '' ORDER BY key") == [(b"alive",), (b"last",), (b"young",)]


# ---------------------------------------------------------------- keys


async def test_long_keys_are_told_apart(url, table):
    keys = [os.urandom(1500).hex()[: size - 1] + last for size in (1999, 2000, 2001, 3000) for last in "ab"]
    keys += [keys[-1] + "c", "é" * 1000, "é" * 1000 + "x"]
    async with opened(url, table) as store:
        for key in keys:
            assert await store.get(key) is None
            await store.put(key, key.encode(), revision=key[-3:].encode(), expected=Expect.ABSENT)
        for key in keys:
            assert await store.get(key) == Stored(key.encode(), key[-3:].encode())
        assert sorted([key async for key in store.keys("")]) == sorted(keys)
        for prefix in (keys[-4], keys[-3], keys[-3][:2500]):
            assert len(prefix.encode()) > 2000
            wanted = sorted(key for key in keys if key.startswith(prefix))
            assert sorted([key async for key in store.keys(prefix)]) == wanted
            assert await store.count(prefix) == len(wanted)
        for key in keys:
            await store.delete(key, expected=Expect.ANY)
        assert await store.count() == 0


async def test_keys_with_a_prefix(url, table, monkeypatch):
    monkeypatch.setattr("overwinter.stores.postgres._PAGE", 7)
    names = [f"a%{i}" for i in range(25)] + ["a", "b", "A%", "a\0", "a\U0010ffff", "\x7f"]
    async with opened(url, table) as store:
        await asyncio.gather(*(store.put(key, b"", revision=b"r", expected=Expect.ABSENT) for key in names))
        for prefix in ("", "a", "a%", "a%1", "a\0", "A", "a\U0010ffff", "\x7f", "zz"):
            wanted = sorted(key for key in names if key.startswith(prefix))
            assert [key async for key in store.keys(prefix)] == wanted
            assert await store.count(prefix) == len(wanted)
        listing = store.keys("a")
        await anext(listing)
        await listing.aclose()
        assert await store.get("a") == Stored(b"", b"r")


async def test_a_key_that_is_no_text(url, table):
    async with opened(url, table) as store:
        for verb in (store.get, store.head):
            with pytest.raises(InvalidKeyError, match="surrogate"):
                await verb("a\ud800")
        with pytest.raises(InvalidKeyError):
            await store.put("", b"", revision=new(), expected=Expect.ABSENT)
        sql(url, f"INSERT INTO {table} (key, revision, data) VALUES ('\\xff', 'r', 'd')")
        with pytest.raises(CorruptRecordError, match="no UTF-8"):
            [key async for key in store.keys("")]


async def test_a_damaged_key_in_a_table_is_told_last(url, table, monkeypatch):
    monkeypatch.setattr("overwinter.stores.postgres._PAGE", 3)
    long = "b" * 1990
    async with opened(url, table) as store:
        for key in ("a", "b", long + "1" * 99, "c", "d", "e"):
            await store.put(key, b"x", revision=b"r", expected=Expect.ABSENT)
        for key in (b"b\xff", long.encode() + b"\xff"):
            sql(url, f"INSERT INTO {table} (key, revision, data) VALUES (%s, 'r', 'd')", key)
        seen = []

        async def look():
            async for key in store.keys():
                seen.append(key)  # noqa: PERF401  # what was seen before the error counts

        with pytest.raises(CorruptRecordError, match=r"2 rows in .* no UTF-8, all others were listed: .*; 62ff\."):
            await look()
        assert seen == ["a", "b", long + "1" * 99, "c", "d", "e"]
        assert [key async for key in store.keys("c")] == ["c"]
        assert [key async for key in store.keys(long + "1")] == [long + "1" * 99]  # nor can the damaged one begin so
        assert await store.count() == 8


async def test_a_prefix_that_no_key_can_begin_with_is_refused(url, table):
    async with opened(url, table) as store:
        with pytest.raises(InvalidKeyError, match="surrogate"):
            [key async for key in store.keys("\ud800")]
        with pytest.raises(InvalidKeyError, match="surrogate"):
            await store.count("\ud800")


# ---------------------------------------------------------------- damage


async def test_rows_that_are_neither_record_nor_tombstone(url, table):
    async with opened(url, table) as store:
        for key in ("no data", "both", "fine"):
            await store.put(key, b"x", revision=b"r", expected=Expect.ABSENT)
        sql(url, f"UPDATE {table} SET data = NULL WHERE key = 'no data'")
        sql(url, f"UPDATE {table} SET deleted_at = now() WHERE key = 'both'")
        found = await asyncio.gather(*map(store.get, ("no data", "both", "fine")), return_exceptions=True)
        assert [type(each) for each in found] == [CorruptRecordError, CorruptRecordError, Stored]
        assert await store.count() == 3
        for key in ("no data", "both"):
            for attempt in (
                store.head(key),
                store.put(key, b"", revision=new(), expected=Expect.ABSENT),
                store.delete(key, expected=Expect.ABSENT),
            ):
                with pytest.raises(CorruptRecordError, match=key):
                    await attempt
            await store.delete(key, expected=Expect.ANY)
            assert await store.get(key) is None
            await store.put(key, b"new", revision=new(), expected=Expect.ABSENT)


async def test_a_damaged_page_is_not_absent():
    with Postgres("autovacuum=off") as server:
        async with opened(server.url, "agents") as store:
            await store.put("bad", os.urandom(100_000), revision=b"r", expected=Expect.ABSENT)
            await store.put("good", b"small", revision=b"r", expected=Expect.ABSENT)
            ((path,),) = sql(
                server.url,
                "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE relname = 'agents'",
            )
        server.stop()
        file = server.data / path
        content = bytearray(file.read_bytes())
        for page in range(0, len(content), 8192):
            content[page + 4000 : page + 4010] = b"overwinter"
        file.write_bytes(content)
        server.start()
        async with opened(server.url, "agents") as store:
            bad, good = await asyncio.gather(store.get("bad"), store.get("good"), return_exceptions=True)
            assert isinstance(bad, CorruptRecordError)
            assert "'bad'" in str(bad)
            assert good == Stored(b"small", b"r")  # it was asked for together with the other
            with pytest.raises((RevisionConflictError, CorruptRecordError)):
                await store.put("bad", b"", revision=new(), expected=Expect.ABSENT)


# ---------------------------------------------------------------- batches


@pytest.fixture
def requests(monkeypatch):
    """How many rows each request that writes was about."""
    sizes = []
    write = Link.write

    async def counted(self, *queries):
        sizes.append(sum(len(values[0]) for _, values in queries))
        return await write(self, *queries)

    monkeypatch.setattr(Link, "write", counted)
    return sizes


async def test_what_waits_travels_together(url, table, requests):
    async with opened(url, table, writers=1) as store:
        keys = [f"k{number}" for number in range(600)]
        await asyncio.gather(*(store.put(key, b"x", revision=b"r", expected=Expect.ABSENT) for key in keys))
        assert requests == [256, 256, 88]
        requests.clear()
        large = os.urandom(3_000_000)
        await asyncio.gather(*(store.put(key, large, revision=b"s", expected=b"r") for key in keys[:5]))
        assert requests == [2, 2, 1]


async def test_one_key_is_in_a_batch_once(url, table, requests):
    async with opened(url, table, writers=1) as store:
        puts = [store.submit("a", b"%d" % n, revision=b"r%d" % n, expected=b"r%d" % (n - 1) if n else Expect.ABSENT)
                for n in range(5)]  # fmt: skip
        await asyncio.gather(*puts)
        assert requests == [1] * 5
        assert await store.head("a") == b"r4"


async def test_a_row_that_fails_fails_alone(url, table):
    async with opened(url, table) as store:
        sql(url, f"ALTER TABLE {table} ADD CHECK (data <> 'forbidden')")
        await store.put("stale", b"x", revision=b"r", expected=Expect.ABSENT)
        keys = [f"k{number}" for number in range(50)]
        jobs = [store.put(key, b"fine", revision=b"r", expected=Expect.ABSENT) for key in keys]
        jobs.append(store.put("bad", b"forbidden", revision=b"r", expected=Expect.ABSENT))
        jobs.append(store.put("stale", b"y", revision=b"s", expected=b"q"))
        *fine, bad, stale = await asyncio.gather(*jobs, return_exceptions=True)
        assert fine == [None] * 50
        assert isinstance(bad, StoreUnavailableError)
        assert "CheckViolation" in str(bad)
        assert "forbidden" not in str(bad)
        assert isinstance(stale, RevisionConflictError)
        assert await store.count("k") == 50
        assert await store.get("bad") is None


@pytest.mark.parametrize(
    ("error", "times", "told", "more"),
    [
        (psycopg.errors.SerializationFailure, 1, RevisionConflictError, 1),
        (psycopg.errors.SerializationFailure, 100, StoreUnavailableError, 7),
        (psycopg.errors.DataCorrupted, 1, RevisionConflictError, 1),
        (psycopg.errors.DataCorrupted, 100, CorruptRecordError, 1),
    ],
)
async def test_what_landed_is_not_sent_again_when_the_look_at_others_fails(
    url, table, requests, monkeypatch, error, times, told, more
):
    """Somebody may have written on top of it by then, which would be called a conflict."""
    async with opened(url, table) as store, opened(url, table) as other:
        await store.put("stale", b"x", revision=b"r", expected=Expect.ABSENT)
        requests.clear()
        looks = 0
        fetch = Link.fetch

        async def fail(self, *arguments):
            nonlocal looks
            looks += 1
            if looks == 1:
                await other.put("a", b"on top", revision=b"s", expected=b"r")
            if looks <= times:
                raise error
            return await fetch(self, *arguments)

        monkeypatch.setattr(Link, "fetch", fail)
        landed, stale = await asyncio.gather(
            store.put("a", b"x", revision=b"r", expected=Expect.ABSENT),
            store.put("stale", b"y", revision=b"s", expected=b"q"),
            return_exceptions=True,
        )
        monkeypatch.setattr(Link, "fetch", fetch)
        assert (landed, type(stale)) == (None, told)
        assert requests == [2, 1] + [1] * more  # the second one is the other's
        assert await store.get("a") == Stored(b"on top", b"s")


async def test_what_fails_at_the_commit_is_not_acknowledged(url, table):
    """The rows of a request come before its commit: they are no promise yet."""
    async with opened(url, table) as store:
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        sql(
            url,
            f"""CREATE FUNCTION no_{table}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
                RAISE EXCEPTION 'no' USING ERRCODE = '53100'; END$$;
            CREATE CONSTRAINT TRIGGER no AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION no_{table}()""",
        )
        for key, expected in (("a", b"r"), ("b", Expect.ABSENT)):
            with pytest.raises(OutcomeUnknownError):  # the driver doesn't say what became of the commit
                await store.put(key, b"y", revision=b"s", expected=expected)
        assert (await store.get("a"), await store.get("b")) == (Stored(b"x", b"r"), None)


async def test_two_stores_that_change_the_same_rows_do_not_wait_for_each_other(postgres, table):
    before = postgres.log.count("deadlock detected")
    keys = [f"k{number}" for number in range(256)]
    async with opened(postgres.url, table, writers=1) as one, opened(postgres.url, table, writers=1) as other:
        for number in range(20):
            base = b"r%d" % number if number else Expect.ABSENT
            outcomes = await asyncio.gather(
                *(one.put(key, b"1", revision=b"r%d" % (number + 1), expected=base) for key in keys),
                *(other.put(key, b"2", revision=b"r%d" % (number + 1), expected=base) for key in reversed(keys)),
            )
            assert outcomes == [None] * 512  # they write the same revision, so the second has landed already
    assert postgres.log.count("deadlock detected") == before


async def test_plans_made_for_an_empty_table_stay_good(url, table):
    async with opened(url, table, writers=1, prepare_threshold=0) as store:
        sql(url, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        sql(url, f"VACUUM {table}")
        for _ in range(12):
            await store.get("none")
            with pytest.raises(RevisionConflictError):
                await store.put("none", b"", revision=new(), expected=new())
        await asyncio.gather(
            *(store.put(f"k{n}", b"x" * 500, revision=b"r", expected=Expect.ABSENT) for n in range(2000))
        )
        before = sql(url, "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = %s", table)
        for number in range(20):
            await store.put(f"k{number}", b"", revision=b"s", expected=b"r")
            await store.get(f"k{number}")
    # The store's sessions have ended, so their counters have arrived.
    ((rows,),) = sql(url, "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = %s", table)
    assert rows <= before[0][0] + 4 * 2000, "each request read the whole table"


async def test_large_records_are_read_a_few_at_a_time(url, table, monkeypatch):
    async with opened(url, table) as store:
        large = os.urandom(2_000_000)
        await asyncio.gather(*(store.put(f"k{n}", large, revision=b"r", expected=Expect.ABSENT) for n in range(12)))
        sizes = []
        fetch = Link.fetch

        async def counted(self, statement, columns):
            sizes.append(len(columns))
            return await fetch(self, statement, columns)

        monkeypatch.setattr(Link, "fetch", counted)
        await store.get("k0")
        found = await asyncio.gather(*(store.get(f"k{n}") for n in range(12)))
        assert found == [Stored(large, b"r")] * 12
        assert [size - 1 for size in sizes] == [1, 4, 4, 4]  # the row that says which table it is comes each time


async def test_a_record_that_no_value_can_hold(url, table, monkeypatch):
    monkeypatch.setattr("overwinter.stores.postgres._LARGEST", 10)
    async with opened(url, table) as store:
        with pytest.raises(StateTooLargeError, match="'a'"):
            await store.put("a", b"x" * 11, revision=b"r", expected=Expect.ABSENT)


async def test_gets_and_heads_together(url, table):
    async with opened(url, table) as store:
        await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
        found = await asyncio.gather(store.get("a"), store.head("a"), store.get("b"), store.head("b"), store.get("a"))
        assert found == [Stored(b"x", b"r"), b"r", None, None, Stored(b"x", b"r")]


# ---------------------------------------------------------------- lifetime


async def test_closing_waits_for_what_was_begun(url, table):
    store = opened(url, table)
    async with store:
        puts = [store.submit(f"k{n}", b"x", revision=b"r", expected=Expect.ABSENT) for n in range(1000)]
    assert all(put.done() and put.exception() is None for put in puts)
    with pytest.raises(ClosedError):
        await store.get("a")
    async with store:
        assert await store.count() == 1000


def test_another_loop_is_told(url, table):
    store = opened(url, table)

    async def leave_open():
        await store.__aenter__()

    async def use():
        await store.get("a")

    with asyncio.Runner() as one, asyncio.Runner() as other:
        one.run(leave_open())
        with pytest.raises(UsageError, match="another event loop"):
            other.run(use())
        one.run(store.__aexit__())


def test_a_fork_leaves_the_parents_connections_alone(url, table):
    async def main():
        async with opened(url, table) as store:
            await store.put("a", b"x", revision=b"r", expected=Expect.ABSENT)
            child = os.fork()
            if not child:
                code = 1
                try:
                    try:
                        await store.get("a")
                    except UsageError:
                        await store.close()
                        code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
            assert await store.get("a") == Stored(b"x", b"r")
            await store.put("a", b"y", revision=b"s", expected=b"r")

    asyncio.run(main())
