"""Asking a store for its keys, if it can tell them. Knows the store protocol only."""

from __future__ import annotations

from ..stores.base import Store

__all__ = ["can_list", "listed"]


def can_list(store: Store) -> bool:
    """Whether the store has a ``keys`` of its own. A store that wraps another can if that one can."""
    inner = getattr(store, "inner", None)
    return type(store).keys is not Store.keys and (not isinstance(inner, Store) or can_list(inner))


async def listed(store: Store, prefix: str = "") -> list[str]:
    """All keys that begin with *prefix*, as a list; each must be there once."""
    found = [key async for key in store.keys(prefix)]
    twice = {key for key in found if found.count(key) > 1} if len(found) != len(set(found)) else set[str]()
    assert not twice, f"keys({prefix!r}) yields {sorted(twice)[:3]!r} more than once"
    return found
