"""Store keys: from an agent's name and key to where its record is, and from what a store lists back to keys.

This file knows the store protocol and the headers of records. It does not know agents: names and keys are strings here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeAlias

from .errors import CorruptRecordError, NewerRecordError
from .record import Header, unpack
from .stores._listing import keys_in_time
from .stores.base import Store

__all__ = ["KeyFunction", "agent_keys", "count_agents", "default_key"]

KeyFunction: TypeAlias = Callable[[str, str], str]

_TOLD = 5  # records that an error names


def default_key(name: str, key: str) -> str:
    """The store key of an agent. Injective: the first colon ends the name, whatever stands in either."""
    return f"{name.replace('%', '%25').replace(':', '%3A')}:{key}"


def agent_keys(store: Store, names: Sequence[str], prefix: str, key_fn: KeyFunction) -> AsyncIterator[str]:
    """Yield the keys of all agents that are stored under one of *names*, and begin with *prefix*; each once."""
    if key_fn is default_key:
        return _by_name(store, names, prefix)
    return _by_header(store, names, prefix, key_fn)


async def count_agents(store: Store, names: Sequence[str], prefix: str, key_fn: KeyFunction) -> int:
    """Return how many keys ``agent_keys`` would yield; by the store's count as far as that goes."""
    number = 0
    if key_fn is default_key and len(names) == 1:
        return await store.count(default_key(names[0], prefix))
    async for _ in agent_keys(store, names, prefix, key_fn):
        number += 1
    return number


async def _by_name(store: Store, names: Sequence[str], prefix: str) -> AsyncIterator[str]:
    """The default store keys tell name and key themselves."""
    failure: CorruptRecordError | None = None
    for position, name in enumerate(names):
        start = default_key(name, "")
        try:
            async for store_key in keys_in_time(store, start + prefix):
                key = store_key[len(start) :]
                if not await _is_stored(store, [default_key(other, key) for other in names[:position]]):
                    yield key
        except CorruptRecordError as error:  # it comes when all others were listed, and so it shall here
            failure = failure or error
    if failure is not None:
        raise failure


async def _by_header(store: Store, names: Sequence[str], prefix: str, key_fn: KeyFunction) -> AsyncIterator[str]:
    """What a key function made can't be taken apart again. So each record of the store is read, for its header."""
    told: list[str] = []
    number = 0
    async for store_key in keys_in_time(store, ""):
        try:
            header = await _header(store, store_key)
        except (CorruptRecordError, NewerRecordError) as error:
            number += 1
            if len(told) < _TOLD:
                told.append(f"store key {store_key!r}: {error}")
            continue
        if header is None or header.agent not in names or not header.key.startswith(prefix):
            continue
        places = [key_fn(name, header.key) for name in names]
        # A record that is elsewhere is of another key function, and nobody would look for it there.
        if store_key in places and not await _is_stored(store, places[: places.index(store_key)]):
            yield header.key
    if number:
        raise CorruptRecordError(
            f"with a key_fn, keys stand only in the records, and {number} can't be read; all others were listed. "
            f"{'; '.join(told)}{' …' if number > len(told) else ''}"
        )


async def _header(store: Store, store_key: str) -> Header | None:
    stored = await store.in_time(store.get(store_key))
    return None if stored is None else unpack(stored.data)[0]


async def _is_stored(store: Store, places: list[str]) -> bool:
    """Whether something stands under the same key in a place that is looked at before."""
    for place in places:
        try:
            if await store.in_time(store.head(place)) is not None:
                return True
        except CorruptRecordError:
            return True
    return False
