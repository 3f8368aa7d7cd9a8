"""The states of one agent's life, as one table. Pure: it decides, others act."""

from __future__ import annotations

import enum

__all__ = [
    "CLAIMED", "COLD", "FAILED", "FREEZING", "KEPT", "LEAVING", "LEFT", "LIVE", "LOST", "STARTED", "THAWING", "Event",
    "State", "after",
]  # fmt: skip


class State(enum.Enum):
    """Where an agent is in its life. ``COLD`` is also the end of a server: the next life gets a new one."""

    COLD = "cold"
    THAWING = "thawing"
    LIVE = "live"
    FREEZING = "freezing"

    __hash__ = object.__hash__  # a member is only itself; enum's own hash is that of its name, and slow


class Event(enum.Enum):
    CLAIMED = "the key is claimed, before the store is asked"
    STARTED = "loaded, or the store said absent; on_start has run"
    FAILED = "it could not come alive"
    LEAVING = "everything is stored: on_stop may run"
    LEFT = "on_stop has run, and what it changed is stored"
    KEPT = "what on_stop changed could not be stored: back to life"
    LOST = "superseded or deleted: our copy is worth nothing"

    __hash__ = object.__hash__


# Everybody uses these names: Python 3.11 finds a member in its class as slowly as it calls a function.
COLD, THAWING, LIVE, FREEZING = State
CLAIMED, STARTED, FAILED, LEAVING, LEFT, KEPT, LOST = Event

_TABLE: dict[tuple[State, Event], State] = {
    (COLD, CLAIMED): THAWING,
    (THAWING, STARTED): LIVE,
    (THAWING, FAILED): COLD,
    (LIVE, LEAVING): FREEZING,
    (LIVE, LOST): FREEZING,
    (FREEZING, LEFT): COLD,
    (FREEZING, KEPT): LIVE,
    (FREEZING, LOST): FREEZING,
}


def after(state: State, event: Event) -> State:
    """The state that follows, or ``RuntimeError``: a step that isn't in the table is a bug of ours."""
    try:
        return _TABLE[state, event]
    except KeyError:
        raise RuntimeError(f"an agent that is {state.value} can't take: {event.value}") from None
