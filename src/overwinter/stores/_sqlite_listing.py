"""Listing the keys of a SQLite store: a page of a range of the index of keys, and how many there are.

This file knows SQL. It does not know threads, or who asks for the next page. Each statement runs to its end here, so no
transaction is open between two pages: a reader that stands still would keep the log from being copied back.

Keys are compared as bytes: ``key`` has no collation of its own, and a database of ours is in UTF-8. So a key that is no
UTF-8 any more does not hide those after it.
"""

from __future__ import annotations

import apsw

from . import _sqlite_db as db

__all__ = ["PAGE", "count_of", "page_of"]

PAGE = 1000  # keys that are read at once: some 0.3 ms, for which others wait

# What is no text is no key, and can't be asked for: it sorts after all text, as the empty blob does.
_BELOW_END = "key >= CAST(? AS TEXT) AND key < x''"
_BELOW = "key >= CAST(? AS TEXT) AND key < CAST(? AS TEXT)"
_PAGE = "SELECT CAST(key AS BLOB) FROM agents WHERE {} ORDER BY key LIMIT {}"
_COUNT = "SELECT count(*) FROM agents WHERE {}"


def page_of(connection: apsw.Connection, prefix: str, after: bytes | None) -> list[bytes]:
    """Return the first keys behind *after* that begin with *prefix*; if they are fewer than ``PAGE``, the last."""
    start = prefix.encode() if after is None else after + b"\0"  # nothing lies between a key and that
    rows: list[tuple[bytes]] = _run(connection, _PAGE, prefix, start).fetchall()  # type: ignore[assignment]  # a CAST
    return [key for (key,) in rows]


def count_of(connection: apsw.Connection, prefix: str) -> int:
    """Return how many keys begin with *prefix*, all as of one moment."""
    return int(_run(connection, _COUNT, prefix, prefix.encode()).get)


def _run(connection: apsw.Connection, sql: str, prefix: str, start: bytes) -> apsw.Cursor:
    if not prefix:
        return db.run(connection, sql.format(_BELOW_END, PAGE), (start,))
    encoded = prefix.encode()  # its last byte is less than 0xFF, as all of UTF-8
    return db.run(connection, sql.format(_BELOW, PAGE), (start, encoded[:-1] + bytes([encoded[-1] + 1])))
