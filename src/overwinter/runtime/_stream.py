"""The consumer's end of a streaming call. It knows a task and a buffer; not what is streamed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Self, TypeVar

from ..errors import ClosedError, UsageError
from ._home import Home
from ._turn import Wait, current_turn

__all__ = ["BUFFER", "Stream"]

R_co = TypeVar("R_co", covariant=True)

BUFFER = 16
"""Items that a streaming call may be ahead of its consumer."""


class _Channel:
    """Items on their way. The producer holds this and not the stream, so that a forgotten stream is collected."""

    __slots__ = ("_room", "_waiter", "ended", "failure", "items", "waited_for")

    def __init__(self) -> None:
        self.waited_for = Wait(None)
        """The turn that takes the items, while it does something else."""
        self.items: deque[Any] = deque()
        self.ended = False
        self.failure: BaseException | None = None
        self._room = asyncio.Semaphore(BUFFER)
        self._waiter: asyncio.Future[None] | None = None

    async def send(self, item: Any) -> None:
        await self._room.acquire()
        self.items.append(item)
        self._wake()

    def end(self, failure: BaseException | None) -> None:
        self.ended, self.failure = True, failure
        self._wake()

    def stopped(self, _: asyncio.Task[Any]) -> None:
        """The producer ended; if it was cancelled before its first step, it could not say so."""
        if not self.ended:
            self.end(_cut_off())

    async def take(self) -> Any:
        while not self.items:
            if self.ended:
                if self.failure is not None:
                    failure, self.failure = self.failure, None
                    raise failure
                raise StopAsyncIteration
            if self._waiter is not None and not self._waiter.done():
                raise UsageError("another task waits for this stream's next item: call once for each consumer")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._room.release()
        return self.items.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stream(Generic[R_co]):
    """The items of one streaming call; an async iterator, and an async context manager that ends it.

    The call begins with the first item that is asked for. Leaving early, by ``break``, an error, cancellation,
    ``aclose()`` or the end of ``async with``, ends it at once and rolls back to its last ``yield`` or ``commit()``.
    """

    def __init__(self, home: Home[Any], produce: Callable[[_Channel], Awaitable[None]], wait: Wait) -> None:
        self._home, self._produce, self._wait = home, produce, wait
        self._channel = _Channel()
        self._task: asyncio.Task[Any] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R_co:
        if self._closed:
            raise StopAsyncIteration
        self._home.check_place()
        if self._task is None:
            self._task = self._home.spawn(_run(self._produce, self._channel))
            self._task.add_done_callback(self._channel.stopped)
        caller, waited_for = current_turn(), self._channel.waited_for
        if caller is not None:
            caller.wait_for(self._wait)
        waited_for.on = None
        try:
            item: R_co = await self._channel.take()
        except asyncio.CancelledError:
            self._leave()
            raise
        else:
            waited_for.on = caller
            return item
        finally:
            if caller is not None:
                caller.waited(self._wait)

    async def aclose(self) -> None:
        """End the call, if it runs; return when it has ended. Idempotent."""
        self._leave()
        if self._task is not None:
            caller = current_turn()
            if caller is not None:
                caller.wait_for(self._wait)
            try:
                await asyncio.wait([self._task])
            finally:
                if caller is not None:
                    caller.waited(self._wait)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _leave(self) -> None:
        self._closed = True
        self._channel.waited_for.on = None
        if self._task is not None:
            self._task.cancel()

    def __del__(self) -> None:
        # A `break` leaves the iterator to the garbage collector, which may run in any thread.
        self._channel.waited_for.on = None
        if self._task is not None and not self._task.done():
            loop = self._task.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._task.cancel)


def _cut_off() -> ClosedError:
    return ClosedError("this stream had not ended: it was closed, or its manager was")


async def _run(produce: Callable[[_Channel], Awaitable[None]], channel: _Channel) -> None:
    try:
        await produce(channel)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            channel.end(_cut_off())  # that is no cancellation of the consumer
        else:
            channel.end(error)  # the body's own, as from any call
        raise
    except BaseException as error:  # it is the consumer's
        channel.end(error)
        if not isinstance(error, Exception):
            raise
    else:
        channel.end(None)
