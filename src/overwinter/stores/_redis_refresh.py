"""Records that expire, and agents that are alive: whose record is refreshed, and when.

This file knows a timer and who can tell which agents are live. It does not know requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from ..errors import OverwinterError

__all__ = ["LiveKeys", "Refresher"]

_log = logging.getLogger("overwinter")

LiveKeys: TypeAlias = Callable[[], Iterable[str]]

_AT_ONCE = 256


class Refresher:
    """Refreshes the records of live agents four times in each life of a record."""

    def __init__(self, ttl: float, refresh: Callable[[str], Awaitable[object]]) -> None:
        self._pause = ttl / 4
        self._refresh = refresh
        self._live: dict[str, LiveKeys] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, name: str, live: LiveKeys) -> None:
        self._live[name] = live

    def forget(self, name: str) -> None:
        self._live.pop(name, None)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="overwinter-redis-refresh")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def once(self) -> None:
        """Refresh what is live now. An error of the server is everybody's: the next time may be better."""
        for live in list(self._live.values()):
            keys = list(live())
            for start in range(0, len(keys), _AT_ONCE):
                some = (self._refresh(key) for key in keys[start : start + _AT_ONCE])
                for outcome in await asyncio.gather(*some, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            try:
                await self.once()
            except OverwinterError as error:
                _log.warning("overwinter: the records of live agents were not refreshed: %s", error)
