"""The gate of an agent by itself: who is let go with which version, and what becomes of those who leave before."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from overwinter.runtime._gate import Gate


def enter(gate: Gate, *versions: int) -> list[asyncio.Future[None]]:
    return [gate.enter(version, asyncio.get_running_loop()) for version in versions]


def lines_of(function: Callable[..., object], *args: object) -> int:
    """How many lines of Python it takes."""
    lines, before = 0, sys.gettrace()

    def trace(_frame: object, event: str, _arg: object):
        nonlocal lines
        lines += event == "line"
        return trace

    sys.settrace(trace)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return lines


async def test_who_leaves_changes_nothing_for_those_who_wait():
    gate, told = Gate(), []
    waiters = enter(gate, 1, 2, 2, 3, 3)
    gate.keep(3, [lambda: told.append("first")])
    gate.keep(3, [lambda: told.append("second")])
    gate.withdraw(waiters[1])
    waiters[0].cancel()  # and nobody has said so yet
    gate.release(2)
    assert [waiter.done() for waiter in waiters] == [True, False, True, False, False]
    gate.withdraw(waiters[0])
    gate.withdraw(waiters[2])
    assert (len(gate.waiters), told) == (4, [])
    waiters[4].cancel()
    gate.fail(lambda version: LookupError(version), effects_too=False)
    assert waiters[3].exception().args == (3,)
    assert (len(gate.waiters), told) == (2, [])
    gate.release(3)
    assert told == ["first", "second"]
    gate.withdraw(waiters[3])
    enter(gate, 4)
    gate.fail(LookupError, effects_too=False)
    assert gate.waiters == ()


async def test_where_many_leave_none_looks_at_the_others_and_nothing_is_kept_of_them():
    gate = Gate()
    waiters = enter(gate, *range(1000))
    assert max(lines_of(gate.withdraw, waiter) for waiter in waiters[:0:-1]) < 100  # and not 1000
    for _ in range(10_000):
        gate.withdraw(*enter(gate, 1000))
    assert list(gate.waiters) == waiters[:1]
    assert sys.getsizeof(gate.waiters) < sys.getsizeof(dict.fromkeys(range(2000)))
    gate.withdraw(waiters[0])
    assert gate.waiters == ()
