"""The order of last use, and that many who expire at once don't hold up the event loop."""

from __future__ import annotations

import asyncio
import math
import random
from collections import OrderedDict

from waiting import reports, rest

from overwinter.runtime._home import all_done
from overwinter.runtime._idle import AT_ONCE, IdleMember, IdleTracker
from overwinter.testing import ManualClock


async def test_the_order_is_that_of_last_use_whoever_comes_and_goes():
    clock, expired = ManualClock(), []
    tracker: IdleTracker[IdleMember] = IdleTracker(clock, 60, expired.append)
    members = [IdleMember() for _ in range(8)]
    model: OrderedDict[IdleMember, float] = OrderedDict()
    dice = random.Random(5)
    for _ in range(3000):
        member = dice.choice(members)
        if dice.random() < 0.6:
            tracker.touch(member)
            model[member] = clock.monotonic() + 60
            model.move_to_end(member)
        else:
            tracker.forget(member)
            model.pop(member, None)
        if dice.random() < 0.3:
            clock.advance(dice.choice((1, 30)))
        due = [member for member, deadline in model.items() if deadline <= clock.monotonic()]
        for member in due:
            del model[member]
        assert expired == due
        expired.clear()
        assert list(tracker.members()) == list(model)
        assert [tracker.remaining(member) is None for member in members] == [member not in model for member in members]


async def test_those_who_expire_at_once_go_in_several_passes_of_the_loop():
    clock, expired = ManualClock(), []
    tracker: IdleTracker[IdleMember] = IdleTracker(clock, 60, expired.append)
    members = [IdleMember() for _ in range(2 * AT_ONCE + 1)]
    for member in members:
        tracker.touch(member)
    clock.advance(60)
    sizes = [len(expired)]
    while len(expired) < len(members):
        await asyncio.sleep(0)
        sizes.append(len(expired))
    assert sizes == [AT_ONCE, 2 * AT_ONCE, 2 * AT_ONCE + 1]
    tracker.touch(members[0])
    clock.advance(60)
    assert expired[-1] is members[0], "the timer is set again"


async def test_a_closed_tracker_lets_nobody_expire():
    clock, expired = ManualClock(), []
    tracker: IdleTracker[IdleMember] = IdleTracker(clock, 60, expired.append)
    members = [IdleMember() for _ in range(2 * AT_ONCE)]
    for member in members:
        tracker.touch(member)
    clock.advance(60)
    tracker.close()
    tracker.touch(members[0])
    await rest()
    clock.advance(60)
    assert (len(expired), list(tracker.members())) == (AT_ONCE, [])


async def test_a_closed_tracker_leaves_no_timer_and_watches_nobody_any_more():
    clock, expired = ManualClock(), []
    tracker: IdleTracker[IdleMember] = IdleTracker(clock, 60, expired.append)
    member = IdleMember()
    tracker.touch(member)
    assert clock.timers == 1
    clock.advance(30)
    assert tracker.remaining(member) == 30
    tracker.close()
    assert clock.timers == 0
    tracker.touch(member)
    assert (tracker.remaining(member), clock.timers, list(tracker.members())) == (None, 0, [])


async def test_of_who_is_overdue_no_time_remains_and_who_never_expires_says_so():
    clock = ManualClock()
    tracker: IdleTracker[IdleMember] = IdleTracker(clock, 60, lambda _: None)
    members = [IdleMember() for _ in range(AT_ONCE + 1)]
    for member in members:
        tracker.touch(member)
    clock.advance(70)
    assert [tracker.remaining(members[0]), tracker.remaining(members[-1])] == [None, 0.0]
    assert [IdleTracker(clock, seconds, lambda _: None).endless for seconds in (60, math.inf)] == [False, True]


async def test_waiting_for_many_ends_once():
    clock, seen = ManualClock(), reports()
    assert await all_done(clock, set(), clock.monotonic()) is True
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    wait = asyncio.create_task(all_done(clock, {future}, clock.monotonic() + 5))
    await rest()
    future.set_result(None)
    clock.advance(6)  # both in one pass of the loop
    await rest()
    assert (await wait, seen) == (False, [])
