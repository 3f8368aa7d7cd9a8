"""Write the golden records of the present format: ``python tests/golden/make.py``.

Run it when a new format is made, or for a kind of value that has none yet. It writes only what is missing: a golden
file never changes once its format is released, for it stands for what is stored out there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from overwinter import InstanceManager, MemoryStore, Persistence
from overwinter.persistence import default_key
from overwinter.record import CUSTOM, EXTRAS, Header, pack, unpack
from overwinter.record._envelope import FORMAT
from overwinter.stores import Expect
from overwinter.stores._postgres_table import _CREATE, _FAMILY
from overwinter.stores._postgres_table import _FORMAT as POSTGRES

HERE = Path(__file__).parent
FOLDER = HERE / f"format-{FORMAT}"

PLAIN = Header(
    agent="Counter",
    version=1,
    fingerprint=bytes(range(8)),
    key="ada",
    sequence=1,
    revision=bytes(range(16)),
    time_us=1_790_000_000_123_456,
)

RECORDS: dict[str, tuple[Header, object]] = {
    "plain": (PLAIN, {"count": 1}),
    "extras": (
        msgspec.structs.replace(PLAIN, agent="chat.session", version=7, sequence=2**40, flags=EXTRAS),
        {
            "topic": "winter",
            "history": [{"role": "user", "text": "grüße ❄"}, ["ToolCall", {"name": "find"}]],
            "added_later": None,
        },
    ),
    "custom": (
        msgspec.structs.replace(PLAIN, flags=CUSTOM, key="k\0/../é" + "x" * 1000),
        ["v", 1.5, b"\x00\xff", -3, True],
    ),
    "empty": (msgspec.structs.replace(PLAIN, sequence=0, time_us=0), {}),
    "calls": (
        msgspec.structs.replace(
            PLAIN, calls=(["id-1", "increment", bytes(8), b"\x03"], ["id-2", "increment", bytes(range(8)), None])
        ),
        {"count": 3},
    ),
    "deep": (PLAIN, {"tree": "…"}),
}
"""Envelopes: what stands in one, and its body."""


def body_of(name: str) -> bytes:
    if name == "deep":  # exactly 100 levels: the map, and 99 arrays around a nil
        return b"\x81\xa4tree" + b"\x91" * 99 + b"\xc0"
    return msgspec.msgpack.encode(RECORDS[name][1])


async def record_of(name: str) -> bytes:
    """The record of one of ``golden_agents.py``, made as a program makes it."""
    from golden_agents import CALLS, KEY, KEYS, STATES, WRITTEN, Caller

    agent, key, store = WRITTEN[name], KEYS.get(name, KEY), MemoryStore()
    kind = type(STATES[name])
    if name == "calls":
        async with InstanceManager(Caller, store=store) as callers:
            for call_id, method, args, kwargs, reply in CALLS:
                assert await callers.options(call_id=call_id).call(key, method, *args, **kwargs) == reply
    else:
        async with Persistence(store) as persistence:
            await persistence.hibernate(key, agent)
            if name == "extras":  # written anew by code that doesn't know all of it
                older = cast("Any", await persistence.thaw(kind, key))
                older.spots[1].x = 2
                await persistence.hibernate(key, older)
    async with store:
        stored = await store.get(default_key(kind.__name__, key))
    assert stored is not None
    return stored.data


@contextlib.contextmanager
def running(name: str | None) -> Iterator[Any]:
    from moto_server import MotoServer
    from servers import Postgres, Redis

    if name is None:
        yield None
        return
    with {"redis": Redis, "postgres": Postgres, "s3": MotoServer}[name]() as server:
        yield server


async def held_by(place: Any, *, gone: bool) -> dict[str, Any]:
    """What a place holds after the store was given the records, or one that was deleted again."""
    from golden_agents import KEY

    async with place.store() as store:
        for data in records_in_stores():
            header, _ = unpack(data)
            key = default_key(header.agent, header.key)
            if not gone or header.key == KEY:
                await store.put(key, data, revision=header.revision, expected=Expect.ABSENT)
            if gone and header.key == KEY:
                await store.delete(key, expected=header.revision)
    return cast("dict[str, Any]", place.held())


def records_in_stores(folder: Path = FOLDER) -> list[bytes]:
    return [(folder / "agents" / f"{name}.bin").read_bytes() for name in ("scalars", "own")]


def write(path: Path, data: bytes) -> None:
    assert not path.exists(), "golden files are never written again"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(path.relative_to(HERE))


async def make_place(name: str) -> None:
    from golden_places import PLACES

    kind = PLACES[name]
    with tempfile.TemporaryDirectory() as folder, running(kind.server) as server:
        place = kind(Path(folder), server)
        told = {"records": await held_by(place, gone=False)}
        if name == "sqlite":
            write(FOLDER / "stores" / "sqlite.db", place.path.read_bytes())
        if kind.server:  # the others keep nothing of what was deleted
            told["gone"] = await held_by(kind(Path(folder), server), gone=True)
        if name == "postgres":
            for held in told.values():
                held["table"] = _CREATE.format(table="TABLE_NAME", comment=f"{_FAMILY}{POSTGRES}")
        write(FOLDER / "stores" / f"{name}.json", json.dumps(told, indent=1).encode() + b"\n")


async def main() -> None:
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from golden_agents import STATES
    from golden_places import PLACES

    for name, (header, _) in RECORDS.items():
        if not (path := FOLDER / f"{name}.bin").exists():
            write(path, pack(header, body_of(name)))
    for name in STATES:
        if not (path := FOLDER / "agents" / f"{name}.bin").exists():
            write(path, await record_of(name))
    for name in PLACES:
        if not (FOLDER / "stores" / f"{name}.json").exists():
            await make_place(name)


if __name__ == "__main__":
    asyncio.run(main())
