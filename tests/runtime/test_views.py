"""What is seen from outside: who is live, who holds whom, what is dirty since when, and why."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest
from agents import Counter
from waiting import outcome, pass_time, reports, rest

from overwinter import Agent, InstanceManager, MemoryStore
from overwinter.errors import OutcomeUnknownError, StoreUnavailableError, ThawError
from overwinter.testing import FaultyStore, ManualClock, until


def down() -> StoreUnavailableError:
    return StoreUnavailableError("down")


async def test_lookup_sees_only_who_is_live_and_starts_nothing():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        assert counters.lookup("ada") is None
        assert counters.inspect("ada").state == "cold"
        gate = store.hold("get")
        thaw = asyncio.create_task(counters.get("ada"))
        await rest()
        assert store.calls["get"] == 1  # the thaw that was asked for, and none of lookup's
        assert counters.lookup("ada") is None
        assert counters.keys() == []
        gate.release()
        assert counters.lookup("ada") is None
        assert await thaw == counters.lookup("ada")
        assert counters.lookup("bob") is None
        assert store.log == [("open", ""), ("claim", "Counter"), ("get", "Counter:ada")]


async def test_an_agent_that_was_got_is_not_held():
    clock = ManualClock()
    async with InstanceManager(Counter, store=MemoryStore(), idle_timeout=60, clock=clock) as counters:
        ada = await counters.get("ada")
        assert counters.keys() == ["ada"]  # thawed now
        assert counters.stats().attached == 0
        clock.advance(60)
        await until(lambda: counters.keys() == [])
        assert await ada.increment() == 1


async def test_stats_count_what_is_there():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, durability="hibernate", clock=clock) as counters:
        await counters.call("a", Counter.increment)
        assert (counters.stats().dirty_since, counters.stats().loss_window) == (clock.time(), 0)
        clock.advance(5)
        await counters.call("b", Counter.increment)
        await counters.call("c", Counter.read)
        gate = store.hold("get")
        thaw = asyncio.create_task(counters.get("d"))
        await gate.reached()
        event = asyncio.Event()
        running = asyncio.create_task(counters.call("c", Counter.wait, event))
        await until(lambda: counters.inspect("c").running)
        waiting = asyncio.create_task(counters.call("c", Counter.read))
        await until(lambda: counters.inspect("c").queued)
        async with counters.attach("a"), counters.attach("a"), counters.attach("b"):
            seen = counters.stats()
        assert (seen.live, seen.thawing, seen.attached, seen.dirty, seen.queued) == (4, 1, 2, 2, 1)
        assert (seen.dirty_since, seen.loss_window) == (clock.time() - 5, 5)
        assert (seen.created, seen.thawed, seen.hibernated, seen.superseded) == (3, 0, 0, 0)
        with pytest.raises(dataclasses.FrozenInstanceError):
            seen.live = 5  # type: ignore[misc]
        gate.release()
        event.set()
        await asyncio.gather(thaw, running, waiting)
        await counters.stop("a")
        await counters.get("a")
        assert (counters.stats().created, counters.stats().thawed, counters.stats().hibernated) == (4, 1, 1)
        await counters.stop("b")
        assert (counters.stats().dirty, counters.stats().dirty_since, counters.stats().loss_window) == (0, None, 0)


async def test_inspect_says_what_goes_on_and_why_it_does_not_hibernate():
    reports()
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    options = {"durability": "hibernate", "clock": clock, "idle_timeout": 60, "store_patience": 1}
    async with InstanceManager(Counter, store=store, **options) as counters:
        assert (counters.inspect("ada").state, counters.inspect("ada").why_live) == ("cold", None)
        await counters.call("ada", Counter.increment)
        seen = counters.inspect("ada")
        assert (seen.key, seen.state, seen.why_live) == ("ada", "live", "idle for 60 s more")
        assert (seen.running, seen.queued, seen.attached, seen.holders) == (0, 0, 0, ())
        assert (seen.dirty_since, seen.last_error) == (clock.time(), None)
        event = asyncio.Event()
        calls = [asyncio.create_task(counters.call("ada", Counter.wait, event)) for _ in range(3)]
        await until(lambda: counters.inspect("ada").queued)
        seen = counters.inspect("ada")
        assert (seen.running, seen.queued, seen.why_live) == (1, 2, "calls are running or waiting")
        event.set()
        await asyncio.gather(*calls)
        store.fail("put", down, times=1e9)
        await pass_time(clock, lambda: counters.inspect("ada").why_live == "it could not be stored")
        seen = counters.inspect("ada")
        assert (seen.state, seen.last_error) == ("live", "StoreUnavailableError")
        store.heal()
        await counters.save("ada")
        assert counters.inspect("ada").why_live.startswith("idle for")  # whatever went wrong before
        with pytest.raises(ValueError, match="as asked"):
            await counters.call("ada", Counter.fail)
        await counters.call("ada", Counter.increment)
        assert counters.inspect("ada").last_error == "ValueError"
        assert counters.inspect("ada").why_live == "idle for 60 s more"  # that was no failure of the store
        await pass_time(clock, lambda: counters.inspect("ada").state == "cold")


async def test_inspect_says_who_holds_an_agent():
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        inside, leave = asyncio.Barrier(3), asyncio.Event()

        async def hold() -> None:
            async with counters.attach("ada"):
                await inside.wait()
                await leave.wait()

        tasks = [asyncio.create_task(hold(), name=f"socket of {user}") for user in ("eve", "bob")]
        await inside.wait()
        seen = counters.inspect("ada")
        assert (sorted(seen.holders), seen.attached) == (["socket of bob", "socket of eve"], 2)
        assert seen.why_live == "2 attached"
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        await rest()
        assert counters.inspect("ada").holders == ("socket of bob",)
        await counters.stop("ada")
        assert counters.inspect("ada").holders == ("socket of bob",)  # it holds the next life too
        leave.set()
        await tasks[1]
        assert counters.inspect("ada").holders == ()


async def test_inspect_says_what_keeps_a_key_from_coming_alive():
    class Picky(Agent):
        async def on_start(self, context: set[str]) -> None:
            if self.key in context:
                raise LookupError("as asked")

        async def ping(self) -> None: ...

    bad = {"a"}
    async with InstanceManager(Picky, context=bad) as manager:
        assert isinstance(await outcome(manager.call("a", Picky.ping)), ThawError)
        assert (manager.inspect("a").state, manager.inspect("a").last_error) == ("cold", "ThawError")
        bad.clear()
        await manager.call("a", Picky.ping)
        assert (manager.inspect("a").state, manager.inspect("a").last_error) == ("live", None)


async def test_stats_name_the_keys_whose_outcome_is_unknown():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Counter, store=store, clock=clock, store_patience=1) as counters:
        await counters.call("bob", Counter.increment)
        await counters.call("ada", Counter.increment)
        assert counters.stats().unknown == ()
        store.fail("put", lambda: OutcomeUnknownError("reset"), times=1e9)
        call = asyncio.create_task(counters.call("ada", Counter.increment))
        await pass_time(clock, call.done)
        assert isinstance(call.exception(), OutcomeUnknownError)
        assert counters.stats().unknown == ("ada",)
        assert counters.inspect("ada").last_error == "OutcomeUnknownError"
        store.heal()
        await pass_time(clock, lambda: not counters.stats().dirty)
        assert counters.stats().unknown == ()


async def test_an_ordinary_life_logs_nothing_and_says_nothing(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    clock = ManualClock()
    async with InstanceManager(Counter, store=MemoryStore(), idle_timeout=60, clock=clock) as counters:
        await counters.call("ada", Counter.increment)
        assert isinstance(await outcome(counters.call("ada", Counter.fail)), ValueError)  # its caller has it
        clock.advance(60)
        await until(lambda: counters.keys() == [])
        await counters.call("ada", Counter.increment)
        await counters.delete("ada")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


async def test_without_a_store_nothing_is_dirty():
    async with InstanceManager(Counter) as counters:
        await counters.call("ada", Counter.increment)
        seen = counters.stats()
        assert (seen.dirty, seen.dirty_since, seen.loss_window, seen.unknown) == (0, None, 0, ())
        assert counters.inspect("ada").dirty_since is None
