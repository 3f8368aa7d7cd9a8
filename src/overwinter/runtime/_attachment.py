"""Attachments: who holds an agent live, and for how long at most."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from ..agent import Agent
from ..errors import UsageError
from ._registry import Registry

__all__ = ["Attachment"]

A = TypeVar("A", bound=Agent)


class Attachment(Generic[A]):
    """Holds an agent live from ``__aenter__`` to ``__aexit__``, or to the end of the task that entered.

    A task that dies in between, or was never written to leave, must not keep an agent in memory for ever.
    """

    def __init__(
        self, registry: Registry[A], reference: A, key: str, initial: Mapping[str, Any] | A | None, missing: str
    ) -> None:
        self._registry, self._reference, self._key = registry, reference, key
        self._initial, self._missing = initial, missing
        self._task: asyncio.Task[Any] | None = None
        self._who = ""  # the task may be given another name meanwhile

    async def __aenter__(self) -> A:
        if self._task is not None:
            raise UsageError(f"{self._reference!r}: this attachment is in use; call attach() for each block")
        self._registry.home.check_place()
        task = asyncio.current_task()
        assert task is not None
        self._task, self._who = task, task.get_name()
        self._registry.hold(self._key, self._who)  # before the thaw, so that it can't hibernate in between
        task.add_done_callback(self._release)
        try:
            await self._registry.live(self._key, self._initial, self._missing)
        except BaseException:
            self._release()
            raise
        return self._reference

    async def __aexit__(self, *exc: object) -> None:
        self._release()

    def _release(self, _: object = None) -> None:
        if self._task is not None:
            self._task.remove_done_callback(self._release)
            self._task = None
            self._registry.let_go(self._key, self._who)
