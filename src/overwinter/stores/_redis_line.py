"""Connections to a Redis server: requests in, answers out, in batches, however the callers come and go.

Each connection has a task of its own, which alone writes to it and reads from it. A caller that is cancelled only
stops listening: the reply is read and dropped by that task, so nobody gets a reply to another's request. A connection
on which anything went wrong is thrown away.

This file knows redis-py's connections, and deadlines. It does not know what a request means, nor which servers are fit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, BusyLoadingError, NoScriptError, RedisError, ResponseError

from ..errors import OutcomeUnknownError, OverwinterError, StoreUnavailableError
from ._redis_frame import TEXTS

__all__ = ["AgainError", "Command", "Exchange", "Request", "StaleLineError", "ask"]

MAX_REQUESTS = 256
MAX_BYTES = 8 * 1024 * 1024

Command = tuple[bytes, ...]


class AgainError(Exception):
    """Raised by ``understand``: send the command once more, with *argument* at *place*."""

    def __init__(self, place: int, argument: bytes) -> None:
        super().__init__()
        self.place = place
        self.argument = argument


class StaleLineError(Exception):
    """Raised by ``understand``: *error* is the outcome, and the server may not be the right one any more."""

    def __init__(self, error: OverwinterError) -> None:
        super().__init__()
        self.error = error


@dataclass(slots=True, eq=False)
class Request:
    """One command and, later, its outcome."""

    verb: str
    key: str
    command: Command
    future: asyncio.Future[Any]
    understand: Callable[[Any], Any]
    """Makes the outcome of a reply, which may be an exception; it may raise it."""
    deadline: float
    writes: bool = False
    guarded: bool = False
    """Whether the outcome counts only if the server still was the right one afterwards."""
    server: str = ""
    """Who answered: differs after a restart of the server, and where another has taken over."""

    @property
    def about(self) -> str:
        return f"{self.verb} of key {self.key!r}"


class Ways(Protocol):
    """What an exchange needs to know."""

    where: str
    guard: tuple[Command, ...]

    def dial(self) -> AbstractConnection:
        """Make a connection, without connecting it."""
        ...

    async def greet(self, connection: AbstractConnection) -> str:
        """See whether what a new connection leads to is fit for use, and say who it is.

        Raises:
            OverwinterError: it is not fit for use.
        """
        ...

    def check_guard(self, replies: list[Any]) -> None:
        """Raise an OverwinterError unless the replies to the guard say that the server holds our data, as of now."""
        ...


class Exchange:
    """Takes requests, and has a few lines work on them. Those of one pass of the loop travel together."""

    def __init__(self, ways: Ways, lines: int) -> None:
        self.ways = ways
        self.waiting: deque[Request] = deque()
        self.closing = False
        self._lines = [Line(self) for _ in range(lines)]
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect the first line, so that what is wrong is known at once; the others connect when they are needed."""
        await self._lines[0].connect()
        self._tasks = [asyncio.create_task(line.work(), name="overwinter-redis") for line in self._lines]

    def send(self, request: Request) -> None:
        self.waiting.append(request)
        if self._idle:
            self._wake()

    def send_first(self, requests: list[Request]) -> None:
        """Send these before the others: they had their turn."""
        self.waiting.extendleft(reversed(requests))

    def take(self) -> list[Request]:
        """Remove a batch; those whose callers are gone are dropped, for nothing was sent of them."""
        batch: list[Request] = []
        size = 0
        while self.waiting and len(batch) < MAX_REQUESTS:
            request = self.waiting[0]
            if request.future.done():
                self.waiting.popleft()
                continue
            length = sum(map(len, request.command))
            if batch and size + length > MAX_BYTES:
                break
            batch.append(self.waiting.popleft())
            size += length
        if self.waiting and self._idle:
            self._wake()
        return batch

    async def something(self) -> None:
        """Return when there may be something to do."""
        waker = asyncio.get_running_loop().create_future()
        self._idle.append(waker)
        try:
            await waker
        finally:
            if waker in self._idle:
                self._idle.remove(waker)

    def _wake(self) -> None:
        waker = self._idle.pop()
        if not waker.done():
            waker.set_result(None)

    async def close(self, limit: float) -> None:
        """Do what was asked, within *limit* seconds, then hang up."""
        self.closing = True
        while self._idle:
            self._wake()
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=limit)
        finally:
            for task in self._tasks:
                task.cancel()
            for line in self._lines:
                line.hang_up()
            for request in self.waiting:
                refuse(request, StoreUnavailableError(f"{self.ways.where} was closed first: {request.about}"))
            self.waiting.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Line:
    """One connection and the task that works it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._ways = exchange.ways
        self._connection: AbstractConnection | None = None
        self._server = ""

    async def connect(self) -> AbstractConnection:
        """Return a connection to a server that is fit for use.

        Raises:
            OverwinterError: there is none; certainly nothing of ours was sent.
        """
        connection = self._connection
        if connection is not None and not _is_dead(connection):
            return connection
        self.hang_up()
        self._connection = connection = self._ways.dial()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # it is the driver's
            self._server = await self._ways.greet(connection)
        except BaseException as error:
            self.hang_up()
            if isinstance(error, RedisError | OSError) and not isinstance(error, OverwinterError):
                raise StoreUnavailableError(f"{self._ways.where} can't be used: {_reason(error)}") from None
            raise
        return connection

    def hang_up(self) -> None:
        """Throw the connection away, with whatever is still to be read from it. Needs no loop."""
        connection, self._connection = self._connection, None
        writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)  # its own close waits
        if connection is not None and writer is not None:
            connection._reader = connection._writer = None
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the socket with it
                writer.transport.abort()

    async def work(self) -> None:
        """Serve batch after batch, until the exchange closes."""
        try:
            while True:
                batch = self._exchange.take()
                if batch:
                    await self._serve(batch)
                elif self._exchange.closing:
                    return
                else:
                    await self._exchange.something()
        finally:
            self.hang_up()

    async def _serve(self, batch: list[Request]) -> None:
        replies: list[Any] = []
        begun = False
        guarded = any(request.guarded for request in batch)
        commands = [request.command for request in batch]
        if guarded:
            commands.extend(self._ways.guard)  # last: what was absent before it was absent from our data
        try:
            async with asyncio.timeout_at(batch[0].deadline):
                connection = await self.connect()
                begun = True
                await _send(connection, commands)
                for _ in commands:
                    replies.append(await _reply(connection))  # noqa: PERF401  # what came before a failure counts
        except TimeoutError:
            self._fail(batch, replies, "did not answer in time", begun=begun)
        except OverwinterError as error:
            for request in batch:
                refuse(request, StoreUnavailableError(f"{error}; nothing was done: {request.about}"))
        except (RedisError, OSError) as error:
            self._fail(batch, replies, _reason(error), begun=begun)
        except Exception as error:  # noqa: BLE001  # our bug: its callers get it, the line lives on for others
            self._fail(batch, replies, _bug(error), begun=begun)
        except BaseException:
            self._fail(batch, replies, "was left, since the event loop ends", begun=begun)
            raise
        else:
            self._answer(batch, replies, guarded=guarded)

    def _answer(self, batch: list[Request], replies: list[Any], *, guarded: bool) -> None:
        doubt: OverwinterError | None = None
        if guarded:
            try:
                self._ways.check_guard(replies[len(batch) :])
            except OverwinterError as error:
                doubt = error
                self.hang_up()
        again: list[Request] = []
        for request, reply in zip(batch, replies, strict=False):
            request.server = self._server
            if doubt is not None and request.guarded:
                refuse(request, doubt.again())
            elif isinstance(reply, NoScriptError):
                request.command = _in_full(request.command)
                again.append(request)
            elif not self._settle(request, reply):
                again.append(request)
        self._exchange.send_first(again)

    def _settle(self, request: Request, reply: Any) -> bool:
        """Tell the outcome; say whether there is one."""
        if request.future.done():
            return True
        try:
            request.future.set_result(request.understand(reply))
        except AgainError as instead:
            place = instead.place  # of the command as it is now: it may not be the first that is changed
            request.command = (*request.command[:place], instead.argument, *request.command[place + 1 :])
            return False
        except StaleLineError as stale:
            self.hang_up()
            refuse(request, stale.error)
        except OverwinterError as error:
            refuse(request, error)
        except Exception as error:  # noqa: BLE001  # as in _serve
            kind = OutcomeUnknownError if request.writes else StoreUnavailableError
            refuse(request, kind(f"{self._ways.where} {_bug(error)}: {request.about}"))
        return True

    def _fail(self, batch: list[Request], replies: list[Any], what: str, *, begun: bool) -> None:
        """Settle a batch whose connection failed. What was answered before that counts, unless it has to be guarded."""
        self.hang_up()
        for number, request in enumerate(batch):
            if number < len(replies) and not request.guarded and not isinstance(replies[number], NoScriptError):
                if self._settle(request, replies[number]):
                    continue
                refuse(request, StoreUnavailableError(f"{self._ways.where} {what}; not done: {request.about}"))
            elif begun and request.writes:
                refuse(request, OutcomeUnknownError(f"{self._ways.where} {what}; perhaps done: {request.about}"))
            else:
                refuse(request, StoreUnavailableError(f"{self._ways.where} {what}; not done: {request.about}"))


async def ask(connection: AbstractConnection, *commands: Command) -> list[Any]:
    """Send commands together; return the replies, the server's errors among them."""
    await _send(connection, commands)
    return [await _reply(connection) for _ in commands]


def _is_dead(connection: AbstractConnection) -> bool:
    """Whether the server hung up while nobody listened: then nothing needs to be lost by finding out."""
    reader: asyncio.StreamReader | None = connection._reader
    return reader is None or reader.at_eof() or reader.exception() is not None


def _send(connection: AbstractConnection, commands: Any) -> Awaitable[None]:
    return connection.send_packed_command(connection.pack_commands(commands), check_health=False)


async def _reply(connection: AbstractConnection) -> Any:
    read: Any = connection.read_response  # its own type says less
    try:
        return await read(disable_decoding=True, disconnect_on_error=False)
    except (ResponseError, BusyLoadingError, AuthenticationError) as error:
        return error  # a reply like any other: what follows it is still in order


def _in_full(command: Command) -> Command:
    """The server forgot its scripts: send the text instead of the name, from which it learns it again."""
    return (b"EVAL", TEXTS[command[1]], *command[2:])


def refuse(request: Request, error: OverwinterError) -> None:
    if not request.future.done():
        request.future.set_exception(error)


def _bug(error: Exception) -> str:
    return f"was used in a way that fails ({type(error).__name__}), please report this"


def _reason(error: Exception) -> str:
    """What failed, without the driver's words: they may hold what a user put into a URL."""
    cause = error.__cause__ or error.__context__
    system = cause if isinstance(cause, OSError) else error
    words = system.strerror if isinstance(system, OSError) else None
    return f"failed ({words or type(error).__name__})"
