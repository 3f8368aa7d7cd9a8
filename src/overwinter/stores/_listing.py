"""Listing with a deadline, for those who list the keys of any store. It knows the protocol and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator

from .base import Store

__all__ = ["keys_in_time"]


async def keys_in_time(store: Store, prefix: str) -> AsyncIterator[str]:
    """Yield what ``store.keys(prefix)`` does; a step that takes longer than the store's time is an error."""
    keys = store.keys(prefix)
    while (key := await store.in_time(anext(keys, None))) is not None:
        yield key
