"""Options that loosen or tighten a rule, and only that one."""

from __future__ import annotations

import asyncio

import pytest
from agents import Counter
from waiting import rest

from overwinter import Agent, AgentSystem, InstanceManager, MemoryStore, readonly, stream
from overwinter.errors import AgentStateError, ReadonlyError
from overwinter.testing import FaultyStore, strict, until


class Sloppy(Agent):
    seen: int = 0

    @readonly
    async def look(self) -> int:
        self.seen += 1
        return self.seen

    @readonly
    async def honest(self) -> int:
        return self.seen

    async def add(self) -> int:
        self.seen += 1
        return self.seen


async def test_strict_mode_holds_readonly_calls_to_their_word():
    async with strict(InstanceManager(Sloppy, store=MemoryStore())) as manager:
        with pytest.raises(ReadonlyError, match=r"Sloppy 'a': a @readonly call changed the state"):
            await manager.call("a", Sloppy.look)
        assert await manager.call("a", Sloppy.honest) == 0
        assert await manager.call("a", Sloppy.add) == 1


@pytest.mark.parametrize("store", [None, MemoryStore()], ids=["no store", "hibernate"])
async def test_on_error_keep_keeps_what_a_failed_call_changed(store):
    async with InstanceManager(Counter, store=store, durability="hibernate", on_error="keep") as counters:
        with pytest.raises(ValueError, match="as asked"):
            await counters.call("ada", Counter.fail)
        assert (await counters.state("ada")).notes == ["never kept"]
        with pytest.raises(AgentStateError):
            await counters.call("ada", Counter.spoil, "x")  # what can't be kept still isn't
        assert await counters.call("ada", Counter.increment) == 2


@pytest.mark.parametrize("options", [{"on_error": "ignore"}, {"on_error": "keep", "store": MemoryStore()}])
async def test_on_error_keep_is_not_for_durable_calls(options):
    with pytest.raises(ValueError, match="on_error"):
        InstanceManager(Counter, **options)


class Draft(Agent):
    words: list[str] = []

    @stream(provisional=True)
    async def write(self, *words: str, fail: bool = False):
        for word in words:
            self.words.append(word)
            yield word
        if fail:
            raise ValueError("as asked")


async def test_provisional_items_leave_at_once_and_are_no_commit_points():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Draft, store=store) as drafts:
        await drafts.get("a")
        gate = store.hold("put")
        words = drafts.call("a", Draft.write, "hello", "world")
        assert [await anext(words), await anext(words)] == ["hello", "world"]
        end = asyncio.ensure_future(anext(words, "end"))
        await gate.reached()
        assert not end.done()  # the end means that all of it is durable
        gate.release()
        assert await end == "end"
        with pytest.raises(ValueError, match="as asked"):
            async for _ in drafts.call("a", Draft.write, "never", "kept", fail=True):
                pass
        assert (await drafts.state("a")).words == ["hello", "world"]


class Mistaken(Agent):
    n: int = 0

    @readonly
    async def mistype(self) -> None:
        self.n = "x"

    @readonly
    async def misspell(self) -> None:
        self.totl = 3

    async def nothing(self) -> int:
        return self.n


@pytest.mark.parametrize("method", [Mistaken.mistype, Mistaken.misspell])
async def test_strict_mode_undoes_what_can_not_even_be_kept(method):
    async with strict(InstanceManager(Mistaken, store=MemoryStore())) as manager:
        with pytest.raises(ReadonlyError, match="it was undone"):
            await manager.call("a", method)
        assert await manager.call("a", Mistaken.nothing) == 0


class Keeping(Agent):
    n: int = 0

    async def on_start(self, managers) -> None:
        self.managers = managers

    async def blame(self) -> None:
        self.n += 1
        await self.managers["counters"].call("ada", Counter.spoil, "x")

    async def tell(self) -> None:
        self.n += 1
        self.managers["keeping"].tell("other", Keeping.add)
        raise ValueError("as asked")

    async def add(self) -> None:
        self.n += 1

    async def hang(self) -> None:
        self.n += 1
        await asyncio.Event().wait()


async def test_on_error_keep_keeps_what_a_failed_call_changed_and_told_but_not_what_a_cancelled_one_did():
    managers: dict[str, InstanceManager] = {}
    system = AgentSystem(context=managers)
    keeping = managers["keeping"] = system.manager(Keeping, on_error="keep", durability="hibernate")
    managers["counters"] = system.manager(Counter)
    async with system:
        with pytest.raises(AgentStateError):  # another agent's
            await keeping.call("a", Keeping.blame)
        with pytest.raises(ValueError, match="as asked"):
            await keeping.call("a", Keeping.tell)
        await rest()
        assert [(await keeping.state(key)).n for key in ("a", "other")] == [2, 1]
        hang = asyncio.create_task(keeping.call("a", Keeping.hang))
        await until(lambda: keeping.inspect("a").running)
        hang.cancel()
        await asyncio.wait([hang])
        assert (await keeping.state("a")).n == 2
