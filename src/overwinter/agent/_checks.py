"""Checks of a class that need no more than what stands in it: its keywords, its hooks' parameters, its ``__init__``.

Pure. Does not know the base class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

__all__ = ["check_fields", "check_hook", "check_init", "check_keywords"]


def check_keywords(where: str, name: object, version: object, aliases: object) -> None:
    """Raise ``TypeError`` unless the class keywords are what they must be."""
    names: tuple[object, ...] = (name, *cast("tuple[object, ...]", aliases)) if type(aliases) is tuple else ()
    if len(set(names)) != len(names) or not names:
        raise TypeError(f"{where}: aliases= is a tuple of former names, each once, without the present one")
    for each in names:
        if not isinstance(each, str) or not each.isprintable() or not 1 <= len(each.encode()) <= 255:
            raise TypeError(f"{where}: a name must be a printable str of 1 to 255 bytes")
    if type(version) is not int or not 1 <= version < 2**31:
        raise TypeError(f"{where}: version= is a whole number from 1 on")


def check_init(where: str, body: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` if a class body defines ``__init__``; msgspec would too, without a way out."""
    if inspect.isfunction(body.get("__init__")):
        raise TypeError(
            f"{where}: __init__ is not called when an agent thaws: "
            "give the fields defaults, and set what is transient in on_start"
        )


def check_fields(where: str, fields: tuple[str, ...], found: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` if something hides a field: it would be kept with one value and read with another."""
    for name in fields:
        if not inspect.ismemberdescriptor(found[name]):
            kind = type(found[name]).__name__
            raise TypeError(
                f"{where}: {name} is a field of a base and is hidden by a {kind} here: annotate it again to give it "
                f"another default ({name}: … = …), or call the {kind} something else"
            )


def check_hook(where: str, name: str, function: Callable[..., Any]) -> None:
    """Raise ``TypeError`` if a hook can't be called as we shall. ``on_start`` is checked with the manager's context."""
    given = {"load": ("data", "version"), "dump": (), "on_stop": (), "on_rollback": ()}.get(name)
    if given is None:
        return
    try:
        inspect.signature(function).bind(None, *given)
    except TypeError:
        raise TypeError(f"{where}: it must take {' and '.join(given) or 'nothing but self'}") from None
