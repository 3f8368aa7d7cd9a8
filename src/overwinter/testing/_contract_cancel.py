"""The part of the contract that is about callers who leave: a call may be cancelled at any await.

What it began then happens or doesn't, whole, and the store stays usable. This file knows the store protocol only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import unittest
from collections.abc import AsyncGenerator

from ..errors import RevisionConflictError
from ..stores.base import Durability, Expect, Revision, Store, Stored
from ._checks import SOME, contract_test, decided, holds, new_revision
from ._hooks import Hooks
from ._listing import can_list, listed
from ._steps import cancelled_everywhere

__all__ = ["CancelTests"]

_ROUNDS = 20


class CancelTests(Hooks):
    """Cancelling is safe at every await."""

    @contract_test
    async def test_a_cancelled_put_happens_or_does_not(self) -> None:
        async with await self.make_store() as store:
            base: Revision | Expect = Expect.ABSENT
            before: Stored | None = None
            for passes in range(_ROUNDS):
                new, data = new_revision(), os.urandom(5000)
                put = asyncio.create_task(store.put(SOME, data, revision=new, expected=base))
                for _ in range(passes % 10):
                    await asyncio.sleep(0)
                put.cancel()
                await asyncio.gather(put, return_exceptions=True)
                before = await decided(store, before, Stored(data, new))
                base = before.revision

    @contract_test
    async def test_a_put_may_be_cancelled_at_every_await(self) -> None:
        async with await self.make_store() as store:
            before: Stored | None = None
            after = Stored(b"", b"")

            async def put() -> None:
                nonlocal after
                after = Stored(os.urandom(5000), new_revision())
                expected = Expect.ABSENT if before is None else before.revision
                await store.put(SOME, after.data, revision=after.revision, expected=expected)

            async def check() -> None:
                nonlocal before
                before = await decided(store, before, after)

            await cancelled_everywhere(put, check, "put")

    @contract_test
    async def test_a_delete_may_be_cancelled_at_every_await(self) -> None:
        async with await self.make_store() as store:
            here = new_revision()
            await store.put(SOME, b"here", revision=here, expected=Expect.ABSENT)

            async def delete() -> None:
                await store.delete(SOME, expected=here)

            async def check() -> None:
                nonlocal here
                new = new_revision()
                found = await store.get(SOME)
                assert found in (None, Stored(b"here", here)), "a cancelled delete must be whole or not at all"
                try:
                    await store.put(SOME, b"here", revision=new, expected=Expect.ABSENT if found is None else here)
                except RevisionConflictError:
                    assert found is not None, "nobody else writes, but what was absent is there"
                    await store.put(SOME, b"here", revision=new, expected=Expect.ABSENT)  # the delete landed just now
                await holds(store, SOME, b"here", new)
                here = new

            await cancelled_everywhere(delete, check, "delete")

    @contract_test
    async def test_a_get_may_be_cancelled_at_every_await(self) -> None:
        async with await self.make_store() as store:
            await self._reads(store, "get")

    @contract_test
    async def test_a_head_may_be_cancelled_at_every_await(self) -> None:
        async with await self.make_store() as store:
            await self._reads(store, "head")

    async def _reads(self, store: Store, verb: str) -> None:
        records = {key: Stored(key.encode(), new_revision()) for key in ("one", "two")}
        for key, stored in records.items():
            await store.put(key, stored.data, revision=stored.revision, expected=Expect.ABSENT)

        async def read() -> None:
            await (store.get("one") if verb == "get" else store.head("one"))

        async def check() -> None:
            for key, stored in reversed(records.items()):  # the other one first: whose answer is on its way?
                assert await store.head(key) == stored.revision, f"after a cancelled {verb}, head of {key!r} is wrong"
                assert await store.get(key) == stored, f"after a cancelled {verb}, get of {key!r} is wrong"

        await cancelled_everywhere(read, check, verb)

    @contract_test
    async def test_calls_beside_a_cancelled_one_get_their_own_answers(self) -> None:
        async with await self.make_store() as store:
            records = {f"key {number}": Stored(b"%d" % number, new_revision()) for number in range(8)}
            for key, stored in records.items():
                await store.put(key, stored.data, revision=stored.revision, expected=Expect.ABSENT)
            for passes in range(_ROUNDS):
                gets = {key: asyncio.create_task(store.get(key)) for key in records}
                for _ in range(passes):
                    await asyncio.sleep(0)
                for key in list(gets)[passes % 3 :: 3]:
                    gets[key].cancel()
                answers = await asyncio.gather(*gets.values(), return_exceptions=True)
                for key, answer in zip(gets, answers, strict=True):
                    if not isinstance(answer, asyncio.CancelledError):
                        assert answer == records[key], f"{key!r} was answered with {answer!r} beside cancelled gets"

    @contract_test
    async def test_a_submitted_put_survives_its_caller(self) -> None:
        async with await self.make_store() as store:
            base: Revision | Expect = Expect.ABSENT
            new = b""
            submitted: list[asyncio.Future[None]] = []

            async def submit() -> None:
                nonlocal new
                new = new_revision()
                submitted.append(store.submit(SOME, b"submitted", revision=new, expected=base))
                await asyncio.wait(submitted[-1:])

            async def check() -> None:
                nonlocal base
                if not submitted:
                    return  # cancelled before it began
                put = submitted.pop()
                await asyncio.wait([put])
                assert not put.cancelled(), "a submitted put was cancelled with its caller"
                await put
                await holds(store, SOME, b"submitted", new)
                base = new

            await cancelled_everywhere(submit, check, "caller of submit")

    @contract_test
    async def test_opening_may_be_cancelled_at_every_await(self) -> None:
        store = await self.make_store()
        here, entered = new_revision(), False

        async def enter() -> None:
            nonlocal entered
            await store.__aenter__()
            entered = True

        async def check() -> None:
            nonlocal entered
            if entered:
                await store.__aexit__(None, None, None)
            entered = False
            async with store:
                await holds(store, SOME, b"here", here)

        async with self._kept(store):
            async with store:
                await store.put(SOME, b"here", revision=here, expected=Expect.ABSENT)
            await cancelled_everywhere(enter, check, "open")

    @contract_test
    async def test_closing_may_be_cancelled_at_every_await(self) -> None:
        store = await self.make_store()
        here, left = new_revision(), False

        async def leave() -> None:
            nonlocal left
            left = True
            await store.__aexit__(None, None, None)

        async def check() -> None:
            nonlocal left
            async with store:
                await holds(store, SOME, b"here", here)
            if left:
                await store.__aenter__()
            left = False

        async with self._kept(store):
            await store.__aenter__()
            await store.put(SOME, b"here", revision=here, expected=Expect.ABSENT)
            await cancelled_everywhere(leave, check, "close")
            await store.__aexit__(None, None, None)

    @contextlib.asynccontextmanager
    async def _kept(self, store: Store) -> AsyncGenerator[None]:
        """Keep what a store that promises nothing could forget when it is closed."""
        async with store if store.durability is Durability.NONE else contextlib.nullcontext():
            yield

    @contract_test
    async def test_listing_may_be_cancelled_at_every_await(self) -> None:
        async with await self.make_store() as store:
            if not can_list(store):
                raise unittest.SkipTest("this store can't list its keys: it has no keys() of its own")
            keys = {f"key {number}" for number in range(5)}
            for key in keys:
                await store.put(key, b"", revision=new_revision(), expected=Expect.ABSENT)

            async def check() -> None:
                assert set(await listed(store)) == keys, "after a cancelled listing, keys() is wrong"

            await cancelled_everywhere(lambda: listed(store), check, "listing")
