"""Attaching, detaching and the idle timeout on a real store: one life at a time, and no change lost between two."""

from __future__ import annotations

import asyncio
import random

from overwinter import Agent, InstanceManager, SQLiteStore, transient
from overwinter.testing import ManualClock, until


class Lives:
    """Who is alive now."""

    def __init__(self):
        self.now = 0
        self.begun = 0


class Mortal(Agent, name="mortal"):
    n: int = 0
    lives: Lives = transient()

    async def on_start(self, lives: Lives) -> None:
        self.lives = lives
        assert lives.now == 0
        lives.now += 1
        lives.begun += 1
        await asyncio.sleep(0)

    async def on_stop(self) -> None:
        await asyncio.sleep(0)
        self.lives.now -= 1

    async def add(self) -> int:
        assert self.lives.now == 1
        self.n += 1
        return self.n


async def test_two_attach_one_detaches_the_other_still_holds(tmp_path):
    clock, lives = ManualClock(), Lives()
    async with InstanceManager(
        Mortal,
        store=SQLiteStore(tmp_path / "a.db"),
        idle_timeout=60,
        durability="hibernate",
        clock=clock,
        context=lives,
    ) as mortals:
        first, second = asyncio.Event(), asyncio.Event()

        async def hold(end):
            async with mortals.attach("ada") as ada:
                await ada.add()
                await end.wait()

        tasks = [asyncio.create_task(hold(first)), asyncio.create_task(hold(second))]
        await until(lambda: mortals.inspect("ada").attached == 2 and mortals.inspect("ada").running == 0)
        first.set()
        await tasks[0]
        clock.advance(1_000_000)
        await asyncio.sleep(0)
        assert (mortals.stats().hibernated, mortals.keys()) == (0, ["ada"])
        tasks[1].cancel()  # the other one dies, and holds nothing any more
        await asyncio.wait(tasks)
        clock.advance(60)
        await until(lambda: not mortals.keys())
        assert await mortals.call("ada", Mortal.add) == 3


async def race(path, durability):
    """Attach at random moments of a hibernation; returns how many lives began and how many rounds there were."""
    clock, lives, chance = ManualClock(), Lives(), random.Random(3)
    began = 0
    async with InstanceManager(
        Mortal, store=SQLiteStore(path), idle_timeout=60, durability=durability, clock=clock, context=lives
    ) as mortals:
        for number in range(0, 300, 2):
            assert await mortals.call("ada", Mortal.add) == number + 1
            clock.advance(60)  # nobody is here: it begins to leave
            if chance.random() < 0.5:
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
            else:
                await until(lambda: mortals.inspect("ada").state != "live")
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
            async with mortals.attach("ada") as ada:
                clock.advance(1000)
                life = lives.begun
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                assert mortals.keys() == ["ada"]
                assert await ada.add() == number + 2
                assert lives.begun == life  # while it is held, it is the same one
            began = lives.begun
    assert lives.now == 0
    return began


async def test_attach_racing_the_idle_timeout(tmp_path):
    began = await race(tmp_path / "a.db", "hibernate")
    assert 20 < began < 150  # some came in time to stay alive, some had to thaw


async def test_attach_racing_the_idle_timeout_of_a_clean_agent(tmp_path):
    assert 20 < await race(tmp_path / "a.db", "call") <= 150
