"""Strict mode: promises that cost too much to check in production are checked in tests."""

from __future__ import annotations

from typing import Any, TypeVar

from ..manager import InstanceManager

__all__ = ["strict"]

M = TypeVar("M", bound=InstanceManager[Any])


def strict(manager: M) -> M:
    """Hold the ``@readonly`` calls of *manager* to their word: one that changes the state raises ``ReadonlyError``.

    Each such call then costs an encoding of the state. Return the manager.
    """
    manager._home.strict = True
    return manager
