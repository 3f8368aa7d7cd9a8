"""A store by its name, so that another process can make one too: a URL, or ``module:callable`` with arguments.

This file knows imports and ``from_url``. It does not know what is done with the store.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import UsageError
from ..stores import Store, from_url

__all__ = [
    "Factory",
    "find",
    "from_arguments",
    "is_url",
    "needs_argument",
    "store_of",
    "takes_argument",
    "to_arguments",
]

Factory: TypeAlias = str | tuple[str | Path, ...]
"""``"sqlite:////tmp/a.db"``, ``"my.module:make"``, or ``("my.module:MyStore", tmp_path)``."""


def store_of(factory: Factory) -> Store:
    """Make the store that *factory* names, not opened."""
    name, *arguments = (factory,) if isinstance(factory, str) else factory
    name = str(name)
    if is_url(name):
        if arguments:
            raise UsageError("a store that is named by a URL takes no arguments beside it")
        return from_url(name)
    store = find(name)(*arguments)
    if not isinstance(store, Store):
        raise UsageError(f"{name} made a {type(store).__name__}, which is no overwinter.Store")
    return store


def is_url(name: str) -> bool:
    return "://" in name


def find(name: str) -> Callable[..., Any]:
    """Import what ``module:callable`` names."""
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise UsageError(f"{name!r} names no store: use a URL such as sqlite:///agents.db, or module:callable")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"the module {module} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{name} can't be called: name a store class, or a function that makes a store")
    return found  # type: ignore[no-any-return]  # callable() doesn't tell mypy what it returns


def needs_argument(maker: Callable[..., Any]) -> bool:
    """Whether *maker* can't be called without an argument."""
    return any(each.default is each.empty for each in _arguments(maker))


def takes_argument(maker: Callable[..., Any]) -> bool:
    """Whether *maker* can be called with an argument."""
    return bool(_arguments(maker))


def _arguments(maker: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(maker).parameters.values()
    except ValueError:  # some that are built in don't tell
        return []
    return [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


def to_arguments(factory: Factory) -> list[str]:
    """Write *factory* as arguments of a command line."""
    parts = (factory,) if isinstance(factory, str) else factory
    return [("path:" if isinstance(part, Path) else "text:") + str(part) for part in parts]


def from_arguments(arguments: list[str]) -> Factory:
    """Read back what ``to_arguments`` wrote."""
    parts: list[str | Path] = []
    for argument in arguments:
        kind, _, value = argument.partition(":")
        parts.append(Path(value) if kind == "path" else value)
    return tuple(parts)
