"""The few types that cross every border of the house. No logic but the check of a key."""

from __future__ import annotations

from datetime import timedelta

from .errors import InvalidKeyError

__all__ = ["MAX_KEY_BYTES", "Interval", "check_key", "seconds"]

MAX_KEY_BYTES = 1024


class Interval:
    """``durability=Interval(0.5)``: a reply means memory; each change is stored that many seconds later at most.

    A ``kill -9`` costs at most the interval, the time of one put, and the turn that runs.
    """

    __slots__ = ("seconds",)

    def __init__(self, every: float | timedelta) -> None:
        self.seconds = seconds("Interval", every)

    def __repr__(self) -> str:
        return f"Interval({self.seconds:g})"


def seconds(option: str, value: float | timedelta) -> float:
    """*value* in seconds, which must be 0 or more."""
    found = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not 0 <= found < float("inf"):
        raise ValueError(f"{option} must be 0 or more seconds, not {found:g}")
    return found


def check_key(key: object, agent: str) -> str:
    """Return *key* if it can address an agent: a ``str`` of 1 to 1024 UTF-8 bytes, compared code point by code point.

    Raises:
        InvalidKeyError: any other value.
    """
    if type(key) is not str:
        raise InvalidKeyError(
            f"a key of {agent} must be a str, not {type(key).__name__}: pass str(...) of what identifies it"
        )
    if not key:
        raise InvalidKeyError(
            f"a key of {agent} must not be empty: pass what identifies the agent, such as a user's id"
        )
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKeyError(
            f"a key of {agent} holds a lone surrogate at position {error.start}: "
            "decode the bytes it came from as UTF-8 first"
        ) from None
    if size > MAX_KEY_BYTES:
        raise InvalidKeyError(
            f"a key of {agent} has {size} bytes, more than {MAX_KEY_BYTES}: use a hash or a shorter id"
        )
    return key
