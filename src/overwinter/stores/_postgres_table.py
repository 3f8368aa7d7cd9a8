"""The table: its definition, its statements, its names for keys, and how it is made and recognised.

This file knows SQL. It does not know jobs or what an answer means: see ``_postgres_rows.py``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CorruptRecordError, StoreUnavailableError, UsageError

if TYPE_CHECKING:
    from psycopg import AsyncConnection

__all__ = ["IDENTITY", "LONGEST_PREFIX", "Table", "column_of", "key_of", "recognised", "set_up"]

_FAMILY = "overwinter agents, format "
_FORMAT = 1
_COLUMNS = frozenset({"key", "long_key", "revision", "data", "deleted_at"})
_LOCK = int.from_bytes(hashlib.blake2b(b"overwinter set-up", digest_size=8).digest(), "big", signed=True)

# An entry of a B-tree has at most 2,704 bytes. A longer key is found by its beginning and a hash of all of it.
_SHORT = 2000
_HASH = 32
LONGEST_PREFIX = _SHORT - _HASH
"""How many bytes of a key, at most, are the beginning of its column."""

IDENTITY = b""
"""The column of the row whose revision is the table's id. No key is empty.

A row is in every dump and on every replica, and gone with the others when the table is emptied.
"""

_FIND = """
SELECT c.relpersistence::text, obj_description(c.oid, 'pg_class'),
    ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
"""
_CREATE = """
CREATE TABLE {table} (
    key bytea PRIMARY KEY,
    long_key bytea,
    revision bytea NOT NULL,
    data bytea,
    deleted_at timestamptz
) WITH (fillfactor = 80);
CREATE INDEX ON {table} (deleted_at) WHERE deleted_at IS NOT NULL;
COMMENT ON TABLE {table} IS '{comment}'
"""

# A transaction that looks at the id keeps the table from being replaced or emptied until it ends.
_STATEMENTS = {
    "identity": """
SELECT revision FROM {table} WHERE key = ''
""",
    "identify": """
INSERT INTO {table} (key, revision) VALUES ('', %b) ON CONFLICT (key) DO NOTHING
""",
    "create": """
INSERT INTO {table} (key, long_key, revision, data)
SELECT v.key, nullif(v.long_key, ''), v.revision, v.data
FROM unnest(%b::bytea[], %b::bytea[], %b::bytea[], %b::bytea[]) AS v(key, long_key, revision, data)
WHERE clock_timestamp() < to_timestamp(%b) AND (SELECT revision FROM {table} WHERE key = '') = %b
ON CONFLICT (key) DO NOTHING RETURNING key
""",
    # An empty expectation is none: whatever is there, but a tombstone stays what it is.
    "change": """
UPDATE {table} AS a SET revision = v.revision, data = CASE WHEN v.dead THEN NULL ELSE v.data END,
    deleted_at = CASE WHEN v.dead THEN clock_timestamp() END
FROM unnest(%b::bytea[], %b::bytea[], %b::bytea[], %b::bytea[], %b::bool[]) AS v(key, expected, revision, data, dead)
WHERE a.key = v.key AND clock_timestamp() < to_timestamp(%b)
    AND (SELECT revision FROM {table} WHERE key = '') = %b
    AND (a.revision = v.expected OR v.expected = '' AND (a.deleted_at IS NULL OR a.data IS NOT NULL))
RETURNING a.key
""",
    # There is a row even if nothing is found, for what a standby doesn't have the primary may.
    "get": """
SELECT s.standby, a.key, a.revision, a.data, a.deleted_at IS NOT NULL
FROM (SELECT pg_is_in_recovery() AS standby) AS s LEFT JOIN {table} AS a ON a.key = ANY(%b::bytea[])
""",
    "head": """
SELECT s.standby, a.key, a.revision, CASE WHEN a.data IS NOT NULL THEN ''::bytea END, a.deleted_at IS NOT NULL
FROM (SELECT pg_is_in_recovery() AS standby) AS s LEFT JOIN {table} AS a ON a.key = ANY(%b::bytea[])
""",
    # What can't be read is there, and listed; only a proper tombstone isn't.
    "page": """
SELECT key, long_key FROM {table}
WHERE key > %b AND key >= %b AND key < %b AND (deleted_at IS NULL OR data IS NOT NULL) ORDER BY key LIMIT %b
""",
    "count": """
SELECT count(*) FROM {table} WHERE key > '' AND key >= %b AND key < %b AND (deleted_at IS NULL OR data IS NOT NULL)
""",
    "purge": """
DELETE FROM {table} WHERE data IS NULL AND key = ANY(ARRAY(
    SELECT key FROM {table} WHERE deleted_at < clock_timestamp() - make_interval(secs => %b) AND data IS NULL
    ORDER BY deleted_at LIMIT 1000 FOR UPDATE SKIP LOCKED))
""",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Where the rows are, and the statements that read and change them."""

    schema: str
    name: str
    identity: bytes
    identify: bytes
    create: bytes
    change: bytes
    get: bytes
    head: bytes
    page: bytes
    count: bytes
    purge: bytes

    @classmethod
    def named(cls, schema: str, name: str) -> Table:
        table = f"{_quoted(schema, 'schema')}.{_quoted(name, 'table')}".replace("%", "%%")  # no placeholder
        return cls(schema, name, **{verb: text.format(table=table).encode() for verb, text in _STATEMENTS.items()})

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def _quoted(name: str, what: str) -> str:
    if not name or "\0" in name:
        raise UsageError(f"the {what} of a PostgresStore must be a name, not {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise UsageError(f"the {what} of a PostgresStore holds a lone surrogate") from None
    if size > 63:
        raise UsageError(f"the {what} of a PostgresStore has {size} bytes: PostgreSQL would cut it off after 63")
    return '"' + name.replace('"', '""') + '"'


def column_of(key: bytes) -> bytes:
    """What stands for a key in its column: itself, unless it is too long for an index."""
    return key if len(key) < _SHORT else key[:LONGEST_PREFIX] + hashlib.blake2b(key, digest_size=_HASH).digest()


def key_of(column: bytes, long_key: bytes | None) -> bytes:
    """The key of a row; it is no UTF-8 if the row isn't ours."""
    return column if long_key is None else long_key


# ---------------------------------------------------------------- set-up


async def recognised(connection: AsyncConnection[tuple[Any, ...]], table: Table, where: str) -> bool:
    """Whether the table is there and ours; anybody else's is refused and left as it is."""
    row = await (await connection.execute(_FIND, (table.schema, table.name))).fetchone()
    if row is None:
        return False
    persistence, comment, columns = row
    what = f"the table {table} in {where}"
    number = (comment or "").removeprefix(_FAMILY)
    if not (comment or "").startswith(_FAMILY) or not number.isdigit():
        raise UsageError(f"{what} is not overwinter's: choose another with table= or schema=; it is left as it is")
    if int(number) > _FORMAT:
        raise UsageError(f"{what} has format {number} and this overwinter knows {_FORMAT}: upgrade overwinter")
    if not set(columns) >= _COLUMNS:
        raise CorruptRecordError(f"{what} lacks columns of its format: restore a backup; it is left as it is")
    if persistence != "p":
        raise UsageError(f"{what} is UNLOGGED or temporary, and a crash would empty it: ALTER TABLE … SET LOGGED")
    return True


async def set_up(connection: AsyncConnection[tuple[Any, ...]], table: Table, where: str) -> None:
    """Make the table unless it is there. Many processes may do this at once."""
    name = f"{_quoted(table.schema, 'schema')}.{_quoted(table.name, 'table')}"
    # A session default of REPEATABLE READ would look at the time before the lock was got.
    await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    if not await recognised(connection, table, where):
        found = await connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", (table.schema,))
        if not found.rowcount:
            await connection.execute(f"CREATE SCHEMA {_quoted(table.schema, 'schema')}".encode())
        await connection.execute(_CREATE.format(table=name, comment=f"{_FAMILY}{_FORMAT}").encode(), prepare=False)
        await connection.execute(table.identify, (os.urandom(16),))
    await connection.execute("COMMIT")
    if not await recognised(connection, table, where):
        raise StoreUnavailableError(f"the table {table} in {where} was created and is gone again: see who drops it")
