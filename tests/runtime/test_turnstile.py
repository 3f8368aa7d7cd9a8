"""The lock of an agent by itself: who gets in beside whom, and what becomes of those who leave the queue."""

from __future__ import annotations

import asyncio

import pytest
from waiting import outcome, rest

from overwinter.runtime._turnstile import Turnstile

READ, WRITE = True, False


async def queue(turns: Turnstile, *kinds: bool) -> list[asyncio.Task[None]]:
    waiting = [asyncio.create_task(turns.enter(kind)) for kind in kinds]
    await rest()
    return waiting


def inside(waiting: list[asyncio.Task[None]]) -> list[bool]:
    return [task.done() for task in waiting]


async def test_a_writer_is_alone_and_readers_are_not():
    turns = Turnstile()
    assert turns.free
    assert turns.try_enter(READ)
    assert turns.try_enter(READ)
    assert not turns.try_enter(WRITE)
    waiting = await queue(turns, WRITE, READ, READ, WRITE)
    assert not turns.try_enter(READ)  # not past those who wait
    assert (turns.waiting, turns.queued) == (4, 4)
    turns.leave(READ)
    await rest()
    assert inside(waiting) == [False] * 4  # one still reads
    turns.leave(READ)
    await rest()
    assert inside(waiting) == [True, False, False, False]
    turns.leave(WRITE)
    await rest()
    assert inside(waiting) == [True, True, True, False]
    turns.leave(READ)
    turns.leave(READ)
    await rest()
    assert inside(waiting) == [True] * 4
    assert not turns.free
    turns.leave(WRITE)
    assert turns.free


async def test_while_held_nobody_gets_in_even_when_somebody_leaves():
    turns = Turnstile()
    assert turns.try_enter(WRITE)
    turns.hold()
    waiting = await queue(turns, READ, WRITE)
    turns.leave(WRITE)
    await rest()
    assert inside(waiting) == [False, False]
    assert not turns.try_enter(READ)
    turns.unhold()
    await rest()
    assert inside(waiting) == [True, False]


@pytest.mark.parametrize("kind", [READ, WRITE])
async def test_who_leaves_the_queue_lets_the_others_pass(kind):
    turns = Turnstile()
    assert turns.try_enter(READ)
    waiting = await queue(turns, WRITE, kind)
    waiting[0].cancel()  # it was all that a reader waited behind
    await rest()
    assert waiting[1].done() == (kind is READ)
    turns.leave(READ)
    await rest()
    assert waiting[1].done()
    turns.leave(kind)
    assert turns.free


@pytest.mark.parametrize("kind", [READ, WRITE])
async def test_who_is_cancelled_as_it_gets_in_leaves_and_who_is_as_it_is_sent_away_was_never_in(kind):
    turns = Turnstile()
    assert turns.try_enter(WRITE)
    first, second = await queue(turns, kind, WRITE)
    turns.leave(WRITE)
    first.cancel()
    await rest()
    assert first.cancelled()
    assert second.done()
    third, *_ = await queue(turns, kind)
    turns.evict(lambda: LookupError("gone"))
    third.cancel()
    await rest()
    assert (turns.writing, turns.reading) == (True, 0)  # the second is in, and nobody left


async def test_each_who_is_sent_away_gets_an_error_of_its_own():
    turns = Turnstile()
    assert turns.try_enter(WRITE)
    waiting = await queue(turns, READ, WRITE, READ)
    waiting[0].cancel()
    await rest()
    turns.evict(lambda: LookupError("gone"))
    errors = [await outcome(task) for task in waiting[1:]]
    assert all(isinstance(error, LookupError) for error in errors)
    assert errors[0] is not errors[1]
    turns.leave(WRITE)
    assert turns.free


async def test_where_many_leave_none_looks_at_the_others_and_nothing_is_kept_of_them(monkeypatch):
    looks = 0

    class Watched(asyncio.Future):
        __hash__ = asyncio.Future.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return self is other

    turns, loop = Turnstile(), asyncio.get_running_loop()
    assert turns.try_enter(WRITE)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "create_future", lambda: Watched(loop=loop))
        waiting = await queue(turns, *[READ, WRITE] * 100)
    for task in waiting[:0:-1]:
        task.cancel()
    await rest()
    assert looks < 200
    assert (turns.waiting, turns.queued, len(turns._queue)) == (1, 1, 1)
    waiting[0].cancel()
    await rest()
    turns.leave(WRITE)
    assert turns.free
    assert turns._queue == ()
