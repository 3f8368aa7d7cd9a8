"""The part of the contract that is about a store's life: open, closed, opened again, and owned.

This file knows the store protocol, and what a process holds open.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import StoreInUseError, UsageError
from ..stores.base import Durability, Expect, Revision, Store, Stored
from ._checks import SOME, contract_test, holds, limited, new_revision, open_files
from ._hooks import Hooks
from ._processes import Child
from ._steps import patience, within

__all__ = ["LifetimeTests"]


class LifetimeTests(Hooks):
    """A store may be opened and closed by several, and again; misuse is an error or does no harm."""

    @contract_test
    async def test_a_store_is_opened_once_and_closed_by_the_last(self) -> None:
        async with await self.make_store() as store:
            first, second, third = new_revision(), new_revision(), new_revision()
            async with store:
                await store.put(SOME, b"first", revision=first, expected=Expect.ABSENT)
            await store.put(SOME, b"second", revision=second, expected=first)  # the other one left: it is still open
            await asyncio.gather(*(store.__aenter__() for _ in range(5)))
            await asyncio.gather(*(store.__aexit__(None, None, None) for _ in range(5)))
            await store.put(SOME, b"third", revision=third, expected=second)
            await holds(store, SOME, b"third", third)

    @contract_test
    async def test_a_store_opens_again(self) -> None:
        store = await self.make_store()
        base: Revision | Expect = Expect.ABSENT
        for number in range(3):
            async with store:
                if store.durability is Durability.NONE:
                    await store.delete(SOME, expected=Expect.ANY)
                    base = Expect.ABSENT
                new = new_revision()
                await store.put(SOME, b"%d" % number, revision=new, expected=base)
                await holds(store, SOME, b"%d" % number, new)
                base = new

    def test_a_store_opens_again_in_another_event_loop(self) -> None:
        new = new_revision()

        async def use(store: Store, *, first: bool) -> None:
            async with store:
                if first or store.durability is Durability.NONE:
                    await store.delete(SOME, expected=Expect.ANY)
                    await store.put(SOME, b"x", revision=new, expected=Expect.ABSENT)
                await holds(store, SOME, b"x", new)

        store = asyncio.run(limited(self.make_store(), self.limit))
        asyncio.run(limited(use(store, first=True), self.limit))
        asyncio.run(limited(use(store, first=False), self.limit))

    @contract_test
    async def test_opening_and_closing_leaks_nothing(self) -> None:
        store = await self.make_store()
        seen: list[tuple[int, int]] = []
        for times in (2, 5):  # what is made once, such as a pool of threads, is made in the first two
            for _ in range(times):
                async with store:
                    await store.get(SOME)
            await asyncio.sleep(0)  # what closes itself in the loop's next pass is closed
            gc.collect()
            seen.append((open_files(), threading.active_count()))
        grown = [last - first for first, last in zip(*seen, strict=True)]
        for what, more in zip(("file descriptors", "threads"), grown, strict=True):
            assert more < 4, f"opening and closing a store five times left {more} {what}"

    @contract_test
    async def test_closing_does_what_was_begun(self) -> None:
        store = await self.make_store()
        self._need_some_durability(store)
        revisions = {f"key {number}": new_revision() for number in range(20)}
        async with store:
            puts = {
                key: store.submit(key, b"x", revision=new, expected=Expect.ABSENT) for key, new in revisions.items()
            }
            await asyncio.sleep(0)
        _, pending = await asyncio.wait(puts.values(), timeout=patience())
        assert not pending, f"closing left {len(pending)} submitted puts without an outcome"
        async with await self.make_store() as later:
            for key, put in puts.items():
                if put.cancelled() or put.exception() is not None:
                    continue
                await holds(later, key, b"x", revisions[key])

    # ------------------------------------------------------------ misuse

    @contract_test
    async def test_before_open_nothing_is_reported_as_absent(self) -> None:
        here = await self._with_a_record()
        await self._misuse(await self.make_store(), here, "before open")

    @contract_test
    async def test_after_close_nothing_is_reported_as_absent(self) -> None:
        here = await self._with_a_record()
        store = await self.make_store()
        async with store:
            await holds(store, SOME, b"here", here)
        await self._misuse(store, here, "after close")

    @contract_test
    async def test_another_event_loop_is_refused_or_served(self) -> None:
        here = await self._with_a_record()
        async with await self.make_store() as store:

            async def elsewhere() -> None:
                await self._misuse(store, here, "from another event loop")

            await asyncio.to_thread(asyncio.run, elsewhere())
            await holds(store, SOME, b"here", here)

    def test_a_forked_child_is_refused_or_served(self) -> None:
        factory = asyncio.run(limited(self._need_durability(Durability.PROCESS), self.limit))
        with Child("fork", factory) as child:
            lines = child.rest()
        assert lines[-1:] == ["done"], f"using a store after a fork went wrong: {' '.join(lines[-1:])}{child.errors()}"
        if self.refuses_misuse:
            assert lines[0] == "refused", "a get after a fork must raise UsageError"

    async def _with_a_record(self) -> Revision:
        here = new_revision()
        async with await self.make_store() as store:
            self._need_some_durability(store)
            await store.put(SOME, b"here", revision=here, expected=Expect.ABSENT)
        return here

    async def _misuse(self, store: Store, here: Revision, when: str) -> None:
        """Each verb must raise ``UsageError`` or, unless the contract says ``refuses_misuse``, do what it says."""
        other = new_revision()
        verbs: dict[str, tuple[Callable[[], Awaitable[Any]], Any]] = {
            "get": (lambda: store.get(SOME), Stored(b"here", here)),
            "head": (lambda: store.head(SOME), here),
            "put": (lambda: store.put("misused", b"", revision=other, expected=Expect.ABSENT), None),
            "delete": (lambda: store.delete("misused", expected=Expect.ANY), None),
        }
        for verb, (call, truth) in verbs.items():
            try:
                answer = await within(call(), f"in a {verb} {when}")
            except UsageError:  # ClosedError is one
                continue
            except AssertionError:
                raise
            except Exception as error:
                raise AssertionError(f"{verb} {when} must raise UsageError, not {error!r}") from error
            assert not self.refuses_misuse, f"{verb} {when} must raise UsageError"
            assert answer == truth, f"{verb} {when} must raise UsageError or tell the truth, not {answer!r}"

    # ------------------------------------------------------------ owners

    @contract_test
    async def test_an_agent_name_has_one_owner(self) -> None:
        async with await self.make_store() as store:
            await store.claim("agent", shared=False, wait=0)
            await store.claim("another agent", shared=False, wait=0)
            try:
                await store.claim("agent", shared=False, wait=0)
            except StoreInUseError:
                pass
            else:
                raise AssertionError("a second claim of an agent name must raise StoreInUseError")
            await store.release("agent")
            await store.release("agent")
            await store.claim("agent", shared=False, wait=0)
            await store.release("agent")
            await store.release("another agent")
