"""``durability=Interval(seconds)``: a reply means memory, and what a crash costs is a number that can be seen."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta

import pytest
from agents import Counter
from waiting import outcome, pass_time, reports, rest, stored, write_behind

from overwinter import Agent, InstanceManager, Interval, MemoryStore, Persistence, commit
from overwinter.errors import OutcomeUnknownError, StoreUnavailableError, SupersededError
from overwinter.testing import FaultyStore, ManualClock, until

EPOCH = ManualClock().time()


def managed(cls=Counter, every=10, **options) -> tuple[InstanceManager, FaultyStore, ManualClock]:
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    return InstanceManager(cls, store=store, clock=clock, durability=Interval(every), **options), store, clock


async def test_a_reply_does_not_wait_and_the_change_is_stored_when_the_interval_is_over():
    manager, store, clock = managed()
    async with manager as counters:
        assert await outcome(counters.call("ada", Counter.increment)) == 1
        clock.advance(9.9)
        await rest()
        assert store.calls["put"] == 0
        clock.advance(0.1)
        await until(lambda: not counters.stats().dirty)
        assert (await stored(store.inner)).count == 1


async def test_the_interval_begins_with_the_first_change_and_one_put_takes_all_since():
    manager, store, clock = managed(every=timedelta(seconds=10))
    async with manager as counters:
        for _ in range(9):
            await counters.call("ada", Counter.increment)
            clock.advance(1)
        await rest()
        assert store.calls["put"] == 0
        clock.advance(1)
        await until(lambda: not counters.stats().dirty)
        assert store.calls["put"] == 1
        assert (await stored(store.inner)).count == 9


async def test_a_call_that_changes_nothing_or_is_undone_puts_nothing():
    manager, store, clock = managed()
    async with manager as counters:
        assert await counters.call("ada", Counter.nothing) == 0
        assert isinstance(await outcome(counters.call("ada", Counter.fail)), ValueError)
        assert clock.timers == 0
        clock.advance(1000)
        await rest()
        assert store.calls["put"] == 0


async def test_stats_say_since_when_a_crash_would_lose_something():
    manager, _, clock = managed()
    async with manager as counters:
        assert (counters.stats().dirty_since, counters.stats().loss_window) == (None, 0)
        clock.advance(5)
        await counters.call("ada", Counter.increment)
        clock.advance(3)
        await counters.call("ada", Counter.increment)
        await counters.call("bob", Counter.increment)
        clock.advance(4)
        stats = counters.stats()
        assert (stats.dirty, stats.dirty_since, stats.loss_window) == (2, EPOCH + 5, 7)
        assert counters.inspect("bob").dirty_since == EPOCH + 8
        clock.advance(3)
        await until(lambda: counters.stats().dirty == 1)
        assert counters.stats().loss_window == 7  # bob's
        clock.advance(3)
        await until(lambda: counters.stats().dirty == 0)
        assert (counters.stats().dirty_since, counters.stats().loss_window) == (None, 0)


async def test_a_change_made_during_a_put_is_stored_an_interval_later_and_counts_from_when_it_was_made():
    manager, store, clock = managed()
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("put")
        clock.advance(10)
        await gate.reached()
        clock.advance(1)
        await counters.call("ada", Counter.increment)  # at 11
        clock.advance(4)
        gate.release()
        await until(lambda: counters.inspect("ada").dirty_since != EPOCH)  # the put has ended, at 15
        assert counters.stats().dirty_since == EPOCH + 11
        assert counters.stats().loss_window == 4
        clock.advance(6)  # to 21
        await until(lambda: not counters.stats().dirty)
        assert (await stored(store.inner)).count == 2


async def test_each_interval_is_followed_by_another():
    manager, store, clock = managed()
    async with manager as counters:
        for number in range(1, 5):
            await counters.call("ada", Counter.increment)
            clock.advance(10)
            await until(lambda: not counters.stats().dirty)
            assert store.calls["put"] == number


async def test_a_failing_store_is_tried_for_ever_and_what_was_acknowledged_is_kept():
    reports()
    manager, store, clock = managed(store_patience=5, idle_timeout=60)
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", lambda: StoreUnavailableError("down"), times=math.inf)
        day = clock.monotonic() + 86_400
        await pass_time(clock, lambda: clock.monotonic() > day, step=60)
        assert await outcome(counters.call("ada", Counter.increment)) == 2  # live, and calls go on
        assert counters.stats().dirty == 1
        assert counters.stats().dirty_since == EPOCH
        assert counters.stats().loss_window > 86_000
        assert counters.inspect("ada").last_error == "StoreUnavailableError"
        store.heal()
        await pass_time(clock, lambda: not counters.stats().dirty)
        assert (await stored(store.inner)).count == 2
        assert counters.stats().loss_window == 0
        await pass_time(clock, lambda: counters.lookup("ada") is None)


async def test_an_unknown_outcome_is_resolved_and_nothing_is_lost():
    manager, store, clock = managed(store_patience=5)
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        store.fail("put", OutcomeUnknownError("reset"), after=True)
        store.fail("put", lambda: OutcomeUnknownError("reset"), times=20)
        clock.advance(10)
        await pass_time(clock, lambda: not counters.stats().dirty)
        assert await outcome(counters.call("ada", Counter.increment)) == 2
        assert (await stored(store.inner)).count == 1


@pytest.mark.parametrize("end", ["save", "stop", "close"])
async def test_save_stop_and_close_do_not_wait_for_the_interval(end):
    manager, store, _ = managed()
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        assert await outcome(counters.close() if end == "close" else getattr(counters, end)("ada")) is None
        assert (await stored(store.inner)).count == 1


async def test_an_idle_agent_is_stored_before_it_goes():
    manager, store, clock = managed(every=1000, idle_timeout=60)
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        clock.advance(60)
        await until(lambda: counters.lookup("ada") is None)
        assert (await stored(store.inner)).count == 1
        clock.advance(1000)  # what is left of the interval finds nobody
        await rest()
        assert store.calls["put"] == 1


async def test_commit_is_durable_at_once():
    class Careful(Agent):
        count: int = 0

        async def pay(self) -> None:
            self.count += 1
            await commit()
            self.count += 1

    manager, store, _ = managed(Careful)
    async with manager as careful:
        await outcome(careful.call("ada", Careful.pay))
        assert (await stored(store.inner, Careful)).count == 1


async def test_what_was_acknowledged_and_then_lost_to_another_owner_is_reported():
    seen = reports()
    manager, store, clock = managed()
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        await counters.save("ada")
        await counters.call("ada", Counter.increment)
        await write_behind(store.inner, 10)
        clock.advance(10)
        await until(lambda: seen)
        assert isinstance(seen[0]["exception"], SupersededError)
        assert "acknowledged in memory" in seen[0]["message"]
        assert await outcome(counters.call("ada", Counter.read)) == 11


@pytest.mark.parametrize("value", [-1, math.inf, math.nan, timedelta(seconds=-1)])
def test_an_interval_that_is_no_length_of_time_is_refused(value):
    with pytest.raises(ValueError, match="Interval must be 0 or more seconds"):
        Interval(value)


@pytest.mark.parametrize("durability", ["sometimes", 1.0, None])
def test_any_other_durability_is_refused(durability):
    with pytest.raises(ValueError, match="durability must be"):
        InstanceManager(Counter, store=MemoryStore(), durability=durability)


async def test_without_a_store_an_interval_has_nothing_to_do():
    clock = ManualClock()
    async with InstanceManager(Counter, clock=clock, durability=Interval(1)) as counters:
        assert await counters.call("ada", Counter.increment) == 1
        assert (clock.timers, counters.stats().dirty, asyncio.current_task().cancelling()) == (0, 0, 0)


@pytest.mark.parametrize("how", ["time", "save"])
async def test_a_change_whose_time_came_while_a_delete_was_tried_is_stored_when_that_failed(how):
    manager, store, clock = managed()
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        await counters.save("ada")
        await counters.call("ada", Counter.increment)
        store.fail("delete", StoreUnavailableError("down"))
        gate = store.hold("delete")
        delete = asyncio.create_task(counters.delete("ada"))
        await gate.reached()
        if how == "time":
            clock.advance(11)
        else:
            save = asyncio.create_task(counters.save("ada"))
        await rest()
        gate.release()
        assert isinstance(await outcome(delete), StoreUnavailableError)
        await rest()
        assert (counters.stats().dirty, (await stored(store.inner)).count) == (0, 2)
        assert how == "time" or await outcome(save) is None


async def test_a_change_whose_interval_ends_during_a_put_is_stored_right_after_it():
    manager, store, clock = managed()
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("put")
        clock.advance(10)
        await gate.reached()
        await counters.call("ada", Counter.increment)
        clock.advance(20)
        assert store.calls["put"] == 1
        gate.release()
        await rest()
        assert (store.calls["put"], counters.stats().dirty) == (2, 0)


@pytest.mark.parametrize("end", ["stop", "superseded"])
async def test_no_timer_outlives_its_agent(end):
    manager, store, clock = managed(every=3600)
    async with manager as counters:
        before = clock.timers
        await counters.call("ada", Counter.increment)
        if end == "superseded":
            async with Persistence(store.inner) as other:
                await other.hibernate("ada", Counter())
            assert isinstance(await outcome(counters.save("ada")), SupersededError)
            await rest()
        else:
            await counters.stop("ada")
        assert (counters.keys(), clock.timers) == ([], before)


async def test_a_save_behind_a_put_does_not_wait_for_the_interval():
    manager, store, _ = managed()
    async with manager as counters:
        await counters.call("ada", Counter.increment)
        gate = store.hold("put")
        first = asyncio.create_task(counters.save("ada"))
        await gate.reached()
        await counters.call("ada", Counter.increment)
        second = asyncio.create_task(counters.save("ada"))
        await rest()
        gate.release()
        assert [await outcome(first), await outcome(second)] == [None, None]
        assert (await stored(store.inner)).count == 2


class Teller(Counter, name="teller"):
    async def on_start(self, context) -> None:
        self.context = context

    async def pass_on(self) -> int:
        self.count += 1
        self.context["tellers"].tell("other", Teller.increment)
        return self.count

    async def count_on(self):
        for _ in range(3):
            self.count += 1
            yield self.count


async def test_nothing_that_leaves_a_call_waits_for_the_interval():
    context: dict[str, InstanceManager] = {}
    manager, store, _ = managed(Teller, context=context)
    async with manager as tellers:
        context["tellers"] = tellers
        assert await outcome(tellers.call("ada", Teller.pass_on)) == 1
        await rest()
        assert await outcome(tellers.call("other", Teller.nothing)) == 1

        async def items() -> list[int]:
            return [item async for item in tellers.call("ada", Teller.count_on)]

        assert await outcome(items()) == [2, 3, 4]
        assert store.calls["put"] == 0
