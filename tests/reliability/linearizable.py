"""Is a history linearizable? The search of Wing and Gong with Lowe's memory, for one object.

Each operation took effect at one moment between its call and its return, or the history is refused. One whose outcome
nobody knows returns at infinity: it took effect at any moment after its call, or never. Linearizability is local, so
each key's history is searched by itself. This file knows no store: what an operation may do is its model's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Operation", "Step", "find_order", "refusal"]

Step = Callable[[Any, Any], Iterable[Hashable]]
"""``step(state, what)``: the states that *what* may leave behind; none if it can't have happened in *state*."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What was done, with its outcome, and when."""

    call: float
    back: float
    """``math.inf``: its outcome is unknown."""
    what: Any


def find_order(history: Sequence[Operation], start: Hashable, step: Step) -> list[Operation] | Sequence[Operation]:
    """An order that explains *history*, as a list; or, as a tuple, the operations at which the best try got stuck."""
    known = sorted((each for each in history if each.back < math.inf), key=lambda each: each.call)
    unknown = sorted((each for each in history if each.back == math.inf), key=lambda each: each.call)
    operations, all_known = known + unknown, (1 << len(known)) - 1
    # A configuration: the known ones before `first` are done, and those of the others that are in `done`; and a state.
    root = (0, 0, start)
    came_from: dict[Any, Any] = {root: None}
    best, stuck, left = -1, (), [root]
    while left:
        here = left.pop()
        first, done, state = here
        if first == len(known):
            return _path(came_from, here, operations)
        may, end = [], math.inf
        for number in range(first, len(known)):
            each = known[number]
            if each.call > end:
                break
            if not done >> number & 1:
                end = min(end, each.back)
                may.append(number)
        may = [number for number in may if known[number].call <= end]
        explained = (done & all_known).bit_count()
        if explained > best:
            best, stuck = explained, tuple(known[number] for number in may)
        # Last in, first out: known ones that returned early come first, unknown ones last.
        may.sort(key=lambda number: -known[number].back)
        late: dict[Any, int] = {}  # of those that are alike, the first stands for all
        for number in range(len(known), len(operations)):
            each = operations[number]
            if each.call <= end and not done >> number & 1:
                late.setdefault(each.what, number)
        for number in [*late.values(), *may]:
            now = done | 1 << number
            ahead = first
            while ahead < len(known) and now >> ahead & 1:
                ahead += 1
            for after in step(state, operations[number].what):
                there = (ahead, now, after)
                if there not in came_from:
                    came_from[there] = (here, number)
                    left.append(there)
    return stuck


def _path(came_from: dict[Any, Any], end: Any, operations: list[Operation]) -> list[Operation]:
    order = []
    while (last := came_from[end]) is not None:
        end, number = last
        order.append(operations[number])
    return order[::-1]


def refusal(history: Sequence[Operation], start: Hashable, step: Step) -> str | None:
    """``None`` if *history* is linearizable; else what can't be explained, for people."""
    found = find_order(history, start, step)
    if isinstance(found, list):
        return None
    lines = [f"  {each.what!r}, from {each.call} to {each.back}" for each in found]
    return f"not linearizable ({len(history)} operations): none of these can come next\n" + "\n".join(lines)
