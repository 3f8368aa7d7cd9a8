"""One connection to PostgreSQL: made when it is needed, checked before it is trusted, thrown away when in doubt.

This file knows the driver, and what must hold for every request. It does not know the table, jobs or batches.

Nothing is kept in a session, since a pooler such as PgBouncer may give each transaction another one: what a request
needs is set inside its transaction, in the same trip. A request is one transaction, which commits when the server has
read to its end; the driver calls that a pipeline.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import StoreUnavailableError, UsageError
from ._postgres_errors import Unsure, connection_failed
from .base import Durability

if TYPE_CHECKING:
    from psycopg import AsyncConnection, AsyncCursor
    from psycopg.errors import Diagnostic

__all__ = ["CLOCK_SLACK", "Link", "Query", "Row", "Terms", "parse"]

CLOCK_SLACK = 60.0
"""Seconds that the server's clock may jump before requests are refused for it."""

# The server gives up before its client does: then it says so, and nobody has to guess what is stored.
_SERVERS_SHARE = 0.8

Query = tuple[bytes, Sequence[Any]]
Row = tuple[Any, ...]

# Scanning the whole table is a good plan for an empty one, and a prepared statement may keep its plan while the table
# grows. Without hash and merge joins rows are locked in the order in which they are asked for, which is sorted.
_READ = b"""
SELECT extract(epoch FROM clock_timestamp())::float8, pg_is_in_recovery(),
    set_config('statement_timeout', %t, true), set_config('enable_seqscan', 'off', true)
"""
_WRITE = (
    _READ.rstrip()
    + b""",
    set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
    set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)
"""
)
_INSPECT = """
SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', current_setting('fsync') = 'on'
    AND current_setting('full_page_writes') = 'on', current_setting('synchronous_standby_names') <> ''
    AND current_setting('synchronous_commit') IN ('off', 'on', 'remote_apply'),
    extract(epoch FROM clock_timestamp())::float8
"""

# A process that is stopped in the middle of its request would keep its rows locked for as long as it is stopped.
_BOUNDED = b", set_config('transaction_timeout', %t, true)"
_BOUNDED_SINCE = 170000


@dataclass(slots=True)
class Terms:
    """What the connections of one store have in common."""

    parameters: dict[str, Any]
    where: str
    timeout: float
    prepare_threshold: int | None
    durability: Durability | None = None
    """What was found when the store was opened; a server that promises less is refused from then on."""

    def begin(self) -> None:
        """The store is being opened: what the next server promises is what counts."""
        self.durability = None


def parse(conninfo: str, *, timeout: float, prepare_threshold: int | None) -> Terms:
    """Read a connection string or URL. It is never quoted, since it may hold a password."""
    try:
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415  # the driver loads on first use
    except ImportError:
        raise UsageError("PostgresStore needs psycopg: python3 -m pip install '.[postgres]' in a checkout") from None
    try:
        given = conninfo_to_dict(conninfo)
    except Exception:  # noqa: BLE001  # whatever it is, its text quotes a part of the string
        raise UsageError(
            "the connection string of a PostgresStore can't be read: use postgresql://user@host/database or "
            "'host=… dbname=…', with %-escapes for special characters of a password in a URL"
        ) from None
    hosts = str(given.get("host") or given.get("hostaddr") or "").split(",")
    defaults: dict[str, Any] = {
        "application_name": "overwinter",
        "client_encoding": "utf8",
        "connect_timeout": max(2, int(timeout / len(hosts))),  # for each host: the last one needs time, too
        # A peer that vanished without a word, as after a failover, is found by the kernel instead of by a caller.
        "keepalives_idle": 20,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(timeout * 1000),
    }
    if len(hosts) > 1:
        defaults["target_session_attrs"] = "read-write"  # of several servers the one that is the primary
    parameters: dict[str, Any] = {**defaults, **given}
    host = parameters.get("host") or parameters.get("hostaddr") or "the default host"
    port = f":{parameters['port']}" if parameters.get("port") else ""
    where = f"{host}{port}/{parameters.get('dbname') or ''}"
    return Terms(parameters, where, timeout, prepare_threshold)


class Link:
    """A connection, or the promise of one."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.sent = False
        self._connection: AsyncConnection[Row] | None = None
        self._ahead = 0.0  # the server's clock minus our monotonic one
        self._warned = False
        self._dismissed = False
        self._parted = False
        self._began = 0.0

    def begin(self) -> None:
        self.sent = False
        self._began = time.monotonic()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.pgconn.finish()

    def hang_up(self) -> bool:
        """Part from a server that has a write of ours, without a word; whether it has. Then the request fails.

        A server that is asked to stop ends its wait for a standby, too, and shows everybody what no standby has.
        """
        connection = self._connection
        if not self.sent or connection is None or connection.closed:
            return False
        self._parted = True
        # Not closed here: the number of the socket could be another one's before the driver takes it out of the loop.
        with contextlib.suppress(OSError):  # then it is broken already
            line = socket.socket(fileno=connection.pgconn.socket)
            try:
                line.shutdown(socket.SHUT_RDWR)
            finally:
                line.detach()
        return True

    @property
    def last_call(self) -> float:
        """The time by the server's clock after which a request of this batch must not be carried out any more.

        So a request that was held up for long, by the network, a stopped process or a stopped server, can't
        come after the tombstone that would have stopped it is gone.
        """
        return self._began + self._ahead + self.terms.timeout + CLOCK_SLACK

    # ------------------------------------------------------------ requests

    async def fetch(self, sql: bytes, columns: list[bytes]) -> list[Row]:
        """Return the rows of a statement whose first column tells whether this is a standby. The quickest way.

        It is not prepared: without a prelude, a plan that was made while the table was empty would read all of it.
        """
        connection = await self.connect()
        try:
            rows = await (await connection.execute(sql, (columns,), prepare=False, binary=True)).fetchall()
            if rows[0][0]:  # a pooler took us elsewhere: what is absent here need not be absent
                raise _no_primary(self.terms.where)
        except BaseException as error:
            self._forget_unless_usable(connection, error)
            raise
        return [row[1:] for row in rows if row[1] is not None]

    async def read(self, *queries: Query) -> list[list[Row]]:
        """Return the rows of statements that may take long."""
        return await self._request(_READ, queries, writes=False)

    async def write(self, *queries: Query) -> list[list[Row]]:
        """Carry out the queries, all or none, and return their rows when that is durable."""
        return await self._request(_WRITE, queries, writes=True)

    async def _request(self, prelude: bytes, queries: Sequence[Query], *, writes: bool) -> list[list[Row]]:
        # First: a connection that died just now is made anew, and whose time ends meanwhile is sent all the same.
        self.sent = self.sent or writes
        connection = await self.connect()
        self._warned = False
        try:
            async with connection.pipeline():
                cursors: list[AsyncCursor[Row]] = [
                    await connection.execute(sql, values, binary=True)
                    for sql, values in (self._limited(connection, prelude), *queries)
                ]
            self._check_committed(connection, writes=writes)
            clock, standby, *_ = (await cursors[0].fetchall())[0]
            self._ahead = clock - time.monotonic()
            if standby:
                raise _no_primary(self.terms.where)
            return [await cursor.fetchall() if cursor.description else [] for cursor in cursors[1:]]
        except BaseException as error:
            self._forget_unless_usable(connection, error)
            raise

    def _forget_unless_usable(self, connection: AsyncConnection[Row], error: BaseException) -> None:
        """Keep the connection only if it is surely between two requests after *error*."""
        idle = not connection.closed and connection.info.transaction_status.name == "IDLE"
        if not idle or getattr(error, "sqlstate", None) is None:
            self.discard()

    def _limited(self, connection: AsyncConnection[Row], prelude: bytes) -> Query:
        limit = str(int(self.terms.timeout * _SERVERS_SHARE * 1000))
        if connection.info.server_version < _BOUNDED_SINCE:
            return prelude, (limit,)
        # Longer than the statement's limit, which is milder: it says no to the request, this one ends the session.
        return prelude.rstrip() + _BOUNDED, (limit, str(int(self.terms.timeout * 1000)))

    def _check_committed(self, connection: AsyncConnection[Any], *, writes: bool) -> None:
        """The rows of a query come before its commit; only an idle session has ended its transaction."""
        if connection.closed or connection.info.transaction_status.name != "IDLE":
            raise Unsure("the connection was lost before the commit was confirmed")
        if writes and self._warned:
            # A wait for a synchronous standby that somebody cancelled is a success with a warning.
            raise Unsure("the server answered with a warning")

    # ------------------------------------------------------------ the connection

    async def connect(self) -> AsyncConnection[Row]:
        """Return the connection, or a new one if there is none or it died while it was idle."""
        if self._connection is not None and self._alive(self._connection):
            return self._connection
        self.discard()
        if self._parted:
            raise StoreUnavailableError(f"the connection to {self.terms.where} was given up")
        from psycopg import AsyncConnection, Error  # noqa: PLC0415  # the driver loads on first use

        try:
            connection = await AsyncConnection.connect(
                autocommit=True, prepare_threshold=self.terms.prepare_threshold, **self.terms.parameters
            )
        except (Error, OSError) as error:
            raise connection_failed(error, self.terms.where, self.terms.parameters.get("password")) from None
        self._dismissed = False
        try:
            connection.add_notice_handler(self._hear)
            await self._inspect(connection)
        except Error as error:
            connection.pgconn.finish()
            raise connection_failed(error, self.terms.where, self.terms.parameters.get("password")) from None
        except BaseException:
            connection.pgconn.finish()
            raise
        self._connection = connection
        return connection

    def _alive(self, connection: AsyncConnection[Row]) -> bool:
        """Look, without waiting, whether the server has said goodbye: what is sent to it then would be in doubt."""
        from psycopg import Error  # noqa: PLC0415  # the driver loads on first use

        if connection.closed:
            return False
        if not _readable(connection):
            return True
        try:
            connection.pgconn.consume_input()  # a goodbye, or something of the protocol that means nothing
            connection.pgconn.is_busy()
            return not self._dismissed and not _readable(connection)
        except Error:
            return False

    async def _inspect(self, connection: AsyncConnection[Row]) -> None:
        cursor = await connection.execute(_INSPECT, prepare=False)
        row = await cursor.fetchone()
        assert row is not None
        standby, read_only, flushes, replicated, clock = row
        if standby or read_only:
            raise _no_primary(self.terms.where)
        found = Durability.PROCESS if not flushes else Durability.REPLICATED if replicated else Durability.HOST
        if self.terms.durability is None:
            self.terms.durability = found
        elif found < self.terms.durability:
            raise StoreUnavailableError(
                f"{self.terms.where} promises {found.name} now and promised {self.terms.durability.name} when the "
                "store was opened: see fsync, full_page_writes and synchronous_standby_names, or open the store anew"
            )
        self._ahead = clock - time.monotonic()

    def _hear(self, diagnostic: Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            # Any other says nothing about the commit: that of a trigger, or that the database must be vacuumed soon.
            self._warned = self._warned or diagnostic.source_file in ("syncrep.c", None)
        elif diagnostic.severity_nonlocalized in ("FATAL", "PANIC"):
            self._dismissed = True


def _no_primary(where: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{where} takes no writes: it is a standby, or default_transaction_read_only is on. Connect to the primary; "
        "with several hosts in the connection string the primary is looked for"
    )


def _readable(connection: AsyncConnection[Any]) -> bool:
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))
