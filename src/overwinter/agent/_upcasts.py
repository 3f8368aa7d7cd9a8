"""Former versions of a class's data: the ``@upcast`` mark and the chain of them.

Knows functions from dict to dict; not what is in the dicts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

from ..errors import MigrationError

__all__ = ["Upcast", "collect_upcasts", "is_fields", "is_upcast", "run_upcast", "upcast"]

Upcast: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
U = TypeVar("U", bound=Upcast)

_MARK = "__overwinter_since__"


def upcast(*, since: int) -> Callable[[U], U]:
    """Mark a static method that turns a record's fields of version *since* into those of version *since* + 1.

    It gets a dict that is its own and returns the new one; stored bytes change only with the agent's next write.
    """
    if type(cast(object, since)) is not int or since < 1:
        raise TypeError("@upcast takes the version that it converts from, a whole number from 1 on: @upcast(since=1)")

    def mark(function: U) -> U:
        inner = getattr(function, "__func__", function)
        if isinstance(cast(object, function), classmethod) or not callable(inner):
            raise TypeError("@upcast marks a static method that takes the old dict and returns the new one")
        if getattr(inner, _MARK, since) != since:
            raise TypeError(f"@upcast: {inner.__name__} is marked twice: write one function for each version")
        setattr(inner, _MARK, since)
        return function

    return mark


def is_upcast(value: object) -> bool:
    """Whether *value*, as it stands in a class body, is marked by ``@upcast``."""
    return hasattr(getattr(value, "__func__", value), _MARK)


def collect_upcasts(cls: type, version: int) -> dict[int, Upcast]:
    """The chain from version 1 to *version*; a class's own upcasts come before those it inherits.

    Raises:
        TypeError: the chain has a gap, or a step twice, or one that leads beyond *version*.
    """
    where = f"agent class {cls.__name__}"
    found: dict[int, Upcast] = {}
    for base in cls.__mro__:
        own: dict[int, str] = {}
        for name, value in vars(base).items():
            if is_upcast(value):
                function = getattr(value, "__func__", value)
                since = cast(int, getattr(function, _MARK))
                _check(where, base is cls, function, since, version, own.get(since))
                own[since] = name
                found.setdefault(since, cast(Upcast, function))
    missing = [since for since in range(1, version) if since not in found]
    if missing:
        steps = ", ".join(f"@upcast(since={since})" for since in missing)
        raise TypeError(f"{where}: version={version} needs a way from each former version, and lacks {steps}")
    return {since: step for since, step in found.items() if since < version}


def _check(where: str, is_own: bool, function: Any, since: int, version: int, twin: str | None) -> None:
    if twin is not None:
        raise TypeError(
            f"{where}: two functions are marked @upcast(since={since}), {twin} and {function.__name__}: keep one"
        )
    if is_own and since >= version:
        raise TypeError(
            f"{where}: @upcast(since={since}) leads beyond version={version}: raise version= to {since + 1}"
        )
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if len(required) != 1:
        raise TypeError(
            f"{where}: upcast {function.__name__} must take one argument, the old dict: mark a static method"
        )


def is_fields(data: Any) -> bool:
    """Whether *data* is what an upcast takes and returns."""
    return type(data) is dict and all(type(name) is str for name in cast("Any", data))


def run_upcast(step: Upcast, since: int, data: dict[str, Any], where: str) -> dict[str, Any]:
    """Take one step of the chain.

    Raises:
        MigrationError: the user's function raised, or returned something else than fields.
    """
    try:
        result = step(data)
    except Exception as error:
        raise MigrationError(
            f"{where}: @upcast(since={since}) raised {type(error).__name__}: mend it; the stored bytes are unchanged"
        ) from error
    if not is_fields(result):
        raise MigrationError(
            f"{where}: @upcast(since={since}) returned {type(result).__name__}: it must return a dict of fields by name"
        )
    return result
