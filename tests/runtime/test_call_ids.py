"""options(call_id=…): a repeated id gets the first answer, across crashes too."""

from __future__ import annotations

import asyncio

import pytest
from agents import Counter

from overwinter import Agent, InstanceManager, MemoryStore, Persistence, Signal, commit, on, readonly
from overwinter.errors import AlreadyAppliedError, CallIdReusedError, OutcomeUnknownError, StoreUnavailableError
from overwinter.testing import FaultyStore, ManualClock, until


class Shop(Agent):
    sold: int = 0

    async def sell(self, what: str, fail: bool = False) -> tuple[str, int]:
        self.sold += 1
        if fail:
            raise ValueError("as asked")
        return what, self.sold

    async def nothing(self) -> int:
        return self.sold

    async def large(self) -> str:
        self.sold += 1
        return "x" * 100_000

    async def in_steps(self) -> int:
        self.sold += 1
        await commit()
        return self.sold


@pytest.mark.parametrize("again", ["live", "thawed", "another manager"])
async def test_a_repeated_id_gets_the_first_answer(again):
    store = FaultyStore(MemoryStore())
    shops = InstanceManager(Shop, store=store)
    await shops.open()
    assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)
    puts = store.calls["put"]
    if again == "thawed":
        await shops.stop("a")
    if again == "another manager":
        await shops.close()
        shops = InstanceManager(Shop, store=store)
        await shops.open()
    shop = await shops.options(call_id="1").get("a")
    assert await shop.sell("tea") == ("tea", 1)
    assert (await shops.state("a")).sold == 1
    assert store.calls["put"] == puts
    assert await shops.options(call_id="2").call("a", Shop.sell, "tea") == ("tea", 2)
    assert await shops.call("a", Shop.sell, "tea") == ("tea", 3)
    await shops.close()


async def test_a_duplicate_in_flight_waits_at_the_same_gate():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Shop, store=store) as shops:
        gate = store.hold("put")
        calls = [asyncio.create_task(shops.options(call_id="1").call("a", Shop.sell, "tea")) for _ in range(3)]
        await gate.reached()
        assert not any(call.done() for call in calls)
        gate.release()
        assert await asyncio.gather(*calls) == [("tea", 1)] * 3
        assert store.calls["put"] == 1


async def test_another_call_under_the_same_id_is_an_error():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        shop = await shops.options(call_id="1").get("a")
        await shop.sell("tea")
        for other in (shop.sell("milk"), shop.large(), shop.sell("tea", fail=True)):
            with pytest.raises(CallIdReusedError, match="call_id '1'"):
                await other
        assert (await shops.state("a")).sold == 1
        again = await shops.options(call_id="2").get("a")
        assert await again.in_steps() == 2
        with pytest.raises(CallIdReusedError, match="call_id '2'"):
            await again.large()  # another method, the same arguments


async def test_what_failed_or_changed_nothing_is_not_kept():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        shop = await shops.options(call_id="1").get("a")
        for _ in range(2):
            with pytest.raises(ValueError, match="as asked"):
                await shop.sell("tea", fail=True)
        assert await shop.nothing() == 0
        assert await shop.sell("tea") == ("tea", 1)


async def test_a_reply_too_large_to_keep_is_told():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        shop = await shops.options(call_id="1").get("a")
        assert len(await shop.large()) == 100_000
        with pytest.raises(AlreadyAppliedError, match="read the agent"):
            await shop.large()
        assert (await shops.state("a")).sold == 1


async def test_a_reply_that_another_release_gave_and_this_one_can_not_is_told():
    class Before(Agent, name="Desk"):
        sold: int = 0

        async def sell(self) -> str:
            self.sold += 1
            return "one"

    class After(Agent, name="Desk"):
        sold: int = 0

        async def sell(self) -> int:
            self.sold += 1
            return self.sold

    store = MemoryStore()
    async with InstanceManager(Before, store=store) as desks:
        assert await desks.options(call_id="1").call("a", Before.sell) == "one"
    async with InstanceManager(After, store=store) as desks:
        with pytest.raises(AlreadyAppliedError, match=r"none that sell\(\) returns now: read the agent"):
            await desks.options(call_id="1").call("a", After.sell)
        assert (await desks.state("a")).sold == 1


async def test_a_call_that_commits_is_kept_too():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        shop = await shops.options(call_id="1").get("a")
        assert [await shop.in_steps(), await shop.in_steps()] == [1, 1]


async def test_the_last_ids_are_kept_and_no_more():
    store = MemoryStore()
    async with InstanceManager(Shop, store=store) as shops:
        for number in range(200):
            await shops.options(call_id=str(number)).call("a", Shop.sell, "tea")
        assert await shops.options(call_id="199").call("a", Shop.sell, "tea") == ("tea", 200)
        assert await shops.options(call_id="0").call("a", Shop.sell, "tea") == ("tea", 201)  # forgotten
    assert len((await _data(store)).data) < 20_000


async def _data(store):
    async with store:
        return await store.get("Shop:a")


async def test_an_id_is_part_of_rollback():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Shop, store=store, clock=clock, store_patience=1) as shops:
        await shops.get("a")
        store.fail("put", lambda: StoreUnavailableError("full"), times=1e9)
        call = asyncio.create_task(shops.options(call_id="1").call("a", Shop.sell, "tea"))
        await until(lambda: clock.advance(0.5) or call.done())
        assert isinstance(call.exception(), StoreUnavailableError)
        store.heal()
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)
        assert (await shops.state("a")).sold == 1  # it was made now: the first one never was
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)
        assert (await shops.state("a")).sold == 1


async def test_an_unknown_outcome_is_cleared_up_by_repeating_under_the_id():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Shop, store=store, clock=clock, store_patience=1) as shops:
        await shops.get("a")
        store.fail("put", lambda: OutcomeUnknownError("reset"), times=5, after=True)
        call = asyncio.create_task(shops.options(call_id="1").call("a", Shop.sell, "tea"))
        await until(lambda: clock.advance(0.5) or call.done())
        assert isinstance(call.exception(), OutcomeUnknownError)
        await until(lambda: clock.advance(0.5) or not shops.stats().dirty)
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)


async def test_the_direct_api_keeps_the_receipts():
    store = MemoryStore()
    async with InstanceManager(Shop, store=store) as shops:
        await shops.options(call_id="1").call("a", Shop.sell, "tea")
    async with Persistence(store) as persistence:
        shop = await persistence.thaw(Shop, "a")
        shop.sold = 10
        await persistence.hibernate("a", shop)
    async with InstanceManager(Shop, store=store) as shops:
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)


@pytest.mark.parametrize("call_id", ["", "x" * 129, 7, None, "a\nb"])
async def test_an_id_is_short_text(call_id):
    with pytest.raises(ValueError, match="call_id is"):
        InstanceManager(Counter).options(call_id=call_id)


async def test_ids_are_kept_up_to_64_and_their_replies_to_16_kilobytes():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        for number in range(64):
            await shops.options(call_id=str(number)).call("a", Shop.sell, "tea")
        assert await shops.options(call_id="0").call("a", Shop.sell, "tea") == ("tea", 1)
        await shops.options(call_id="64").call("a", Shop.sell, "tea")
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 2)
        assert await shops.options(call_id="0").call("a", Shop.sell, "tea") == ("tea", 66)  # the oldest is forgotten
        for number in range(8):
            await shops.options(call_id=f"large {number}").call("a", Shop.sell, "x" * 3000)
        assert (await shops.options(call_id="large 7").call("a", Shop.sell, "x" * 3000))[1] == 74
        assert (await shops.options(call_id="large 0").call("a", Shop.sell, "x" * 3000))[1] == 75  # no room


def change(by: int):
    async def step(self) -> int:
        self.count += by
        return self.count

    return step


def logged(function):
    async def wrapper(self, **kwargs):
        return await function(self, **kwargs)

    return wrapper


class Made(Agent):
    """Its methods have other names of their own than those under which the class has them."""

    count: int = 0
    up = change(1)
    down = change(-1)

    @on("paid")
    @logged
    async def paid(self, by: int = 1) -> None:
        self.count += by


async def test_a_method_is_known_by_the_name_that_its_class_has_for_it():
    async with InstanceManager(Made, store=MemoryStore()) as made:
        with_id = made.options(call_id="1")
        assert await with_id.call("a", Made.up) == 1
        with pytest.raises(CallIdReusedError, match=r"up\(\)"):
            await with_id.call("a", Made.down)
        assert await with_id.call("a", Made.up) == 1
        await made.call("a", Signal("paid", {}))
        assert (await made.state("a")).count == 2


async def test_a_call_that_only_reads_needs_no_receipt():
    class Read(Shop):
        @readonly
        async def look(self) -> int:
            return self.sold

    async with InstanceManager(Read, store=MemoryStore()) as shops:
        await shops.options(call_id="1").call("a", Read.sell, "tea")
        assert await shops.options(call_id="2").call("a", Read.look) == 1
        await shops.call("a", Read.sell, "tea")
        assert await shops.options(call_id="2").call("a", Read.look) == 2
