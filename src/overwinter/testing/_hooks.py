"""What a ``StoreContract`` is told about a store: how one is made, and how it can be made to fail.

This file knows which hooks there are, and what to say of a promise that can't be tested without one.
"""

from __future__ import annotations

import unittest
from contextlib import AbstractAsyncContextManager

from ..stores.base import Durability, Store
from ._factory import Factory, store_of

__all__ = ["Hooks"]


class Hooks:
    """Override what your store allows. A promise whose hook is missing is skipped, and the reason names the hook."""

    can_corrupt = False
    """Whether ``corrupt`` is there."""

    refuses_misuse = False
    """Whether the store must refuse calls while it isn't open, from another event loop and after a fork.

    If not, it may answer them instead, but truly: it must not report a record as absent.
    """

    many = 1050
    """How many keys are listed: more than a page, which is 1,000 keys in most services."""

    limit: float = 60.0
    """Seconds that one test may take, of some hundred calls: a store far away may need more."""

    async def make_store(self) -> Store:
        """Return a store, not opened, with nothing stored at the begin of each test.

        Each call in one test: another handle on the same data. A store whose data is in the object returns the same
        object each time. Without it, stores are made as ``store_factory`` says.
        """
        factory = self.store_factory()
        if factory is None:
            raise NotImplementedError("a StoreContract needs make_store() or store_factory()")
        return store_of(factory)

    def store_factory(self) -> Factory | None:
        """Name the store of ``make_store`` so that a child process can open it, to be killed or traced.

        A URL as ``overwinter.stores.from_url`` takes it, or ``module:callable``, with arguments if it takes some:
        ``("my.module:MyStore", self.folder)``. Arguments are strings or paths.
        """
        return None

    async def corrupt(self, key: str) -> None:
        """Damage what is stored under *key*, so that it can't be read, while no handle is open."""
        raise NotImplementedError("can_corrupt needs corrupt()")

    def interrupt(self, store: Store) -> AbstractAsyncContextManager[None]:
        """Break the open *store* while entered, so that a put raises ``OutcomeUnknownError``; leaving it mends it.

        Puts may land or not; both should occur if both can.
        """
        raise NotImplementedError

    def delay(self, store: Store) -> AbstractAsyncContextManager[None]:
        """Hold back what the open *store* sends while entered; leaving delivers it, though nobody waits for it now."""
        raise NotImplementedError

    # ------------------------------------------------------------ what can't be tested

    def _has(self, hook: str) -> bool:
        return getattr(type(self), hook) is not getattr(Hooks, hook)

    def _need_hook(self, hook: str, what_for: str) -> None:
        if not self._has(hook):
            raise unittest.SkipTest(f"give the contract {hook}(), {what_for}, and this is tested too")

    def _need_some_durability(self, store: Store) -> None:
        if store.durability is Durability.NONE:
            raise unittest.SkipTest("this store promises to keep nothing")

    async def _need_durability(self, least: Durability, *, skip_network: bool = False) -> Factory:
        """Return how to name the store, if it promises at least *least*."""
        store = await self.make_store()
        if store.durability < least:
            raise unittest.SkipTest(f"this store promises Durability.{store.durability.name} only")
        if skip_network and store.network:
            raise unittest.SkipTest("network = True: another process writes, which can't be traced from here")
        factory = self.store_factory()
        if factory is None:
            raise unittest.SkipTest(
                "give the contract store_factory(), which names the store for a child process, and this is tested too"
            )
        return factory
