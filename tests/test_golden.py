"""Records of each format as they were once written, by agents and in every store.

Today's code reads them, and writes the same. What is read is compared by its text, which tells 1 from True and 1.0, and
by ``==``. ``golden/make.py`` makes those of a new format.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from overwinter import Agent, InstanceManager, MemoryStore, Persistence
from overwinter.agent import _containers, _leaves, _records, agent_type
from overwinter.agent._codec import Bodied, Codec, reach
from overwinter.agent._leaves import SCALARS
from overwinter.errors import AlreadyAppliedError
from overwinter.persistence import Keeper, default_key
from overwinter.record import EXTRAS, pack, unpack
from overwinter.stores import Expect, Store, Stored

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from golden_agents import CALLS, KEY, KEYS, STATES, WRITTEN, Caller, Former  # noqa: E402 - the folder of the goldens is no package
from golden_places import PLACES, Place, ValkeyPlace  # noqa: E402 - as above
from make import FOLDER, held_by, records_in_stores  # noqa: E402 - as above

sys.path.remove(str(GOLDEN))

FORMATS = sorted(GOLDEN.glob("format-*"))
FILES = sorted(GOLDEN.glob("format-*/agents/*.bin"))
ALL_PLACES = [*PLACES.items(), ("redis", ValkeyPlace)]


def told(agent: Agent) -> dict[str, str]:
    return {name: repr(getattr(agent, name)) for name in agent.__struct_fields__}


def assert_same(agent: Any, wanted: Any) -> None:
    assert type(agent) is type(wanted)
    assert told(agent) == told(wanted)
    for name in wanted.__struct_fields__:
        assert getattr(agent, name) == getattr(wanted, name)


async def holding(data: bytes) -> tuple[Store, str]:
    """A store that holds a record, and the agent's key."""
    header, _ = unpack(data)
    store = MemoryStore()
    async with store:
        place = default_key(header.agent, header.key)
        await store.put(place, data, revision=header.revision, expected=Expect.ABSENT)
    return store, header.key


# ---------------------------------------------------------------- agents


@pytest.mark.parametrize("folder", FORMATS, ids=lambda path: path.name)
def test_every_agent_has_a_record(folder: Path) -> None:
    assert {path.stem for path in folder.glob("agents/*.bin")} == set(STATES) == set(WRITTEN)
    assert FOLDER in FORMATS, "the present format has no goldens yet"


def test_every_kind_of_value_is_in_one() -> None:
    def kinds(kind: type[Codec]) -> Iterator[type[Codec]]:
        for each in kind.__subclasses__():
            yield from (each, *kinds(each))

    schemas = [agent_type(type(agent)).schema for agent in STATES.values()]
    parts = [part for schema in schemas if not schema.custom for part in reach(schema._codec)]
    known = {kind for kind in kinds(Codec) if kind.__module__ in (m.__name__ for m in (_containers, _leaves, _records))}
    assert len(known) > 9
    assert {type(part) for part in parts} == known - {Bodied}
    assert {gate for part in parts if type(part) is _leaves.Scalar for gate in part.gates} == set(SCALARS)
    records = {part.kind for part in parts if isinstance(part, _records.RecordCodec)}
    assert records == {"struct", "dataclass", "attrs", "namedtuple", "typeddict"}
    unions = [part for part in parts if isinstance(part, _containers.UnionCodec)]
    ways = {(part._direct, part._structs is not None) for part in unions}  # tagged by us, by msgspec, or not at all
    assert ways == {(True, True), (True, False), (False, True), (False, False)}
    assert {part.own_load for part in parts if isinstance(part, _leaves.EnumCodec)} == {True, False}
    assert any(schema.custom for schema in schemas)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
async def test_a_record_is_read_as_what_it_was(path: Path) -> None:
    wanted = STATES[path.stem]
    store, key = await holding(path.read_bytes())
    async with Persistence(store) as persistence:
        agent = await persistence.thaw(type(wanted), key)
        assert agent is not None
        assert_same(agent, wanted)
        assert [each async for each in persistence.keys(type(wanted))] == [key] == [KEYS.get(path.stem, KEY)]


@pytest.mark.parametrize("name", STATES)
def test_the_same_state_is_written_as_the_same_bytes(name: str) -> None:
    data = (FOLDER / "agents" / f"{name}.bin").read_bytes()
    header, body = unpack(data)
    assert pack(header, body) == data
    keeper: Keeper[Any] = Keeper(agent_type(Former if name == "upcast" else type(STATES[name])), None)
    loaded = keeper.read(header.key, "", Stored(data, header.revision))
    assert loaded.body == body
    assert keeper.encode(loaded.agent, loaded.extras) == body
    again = keeper.record(header.key, body, header.sequence, header.revision, loaded.extras, loaded.receipts)
    now, _ = unpack(again)
    assert msgspec.structs.replace(now, time_us=header.time_us) == header
    if name == "extras":
        assert header.flags == EXTRAS
        assert set(loaded.extras) == {"title"}
        assert [set(spot) for spot in msgspec.msgpack.decode(body)["spots"]] == [{"x", "y"}] * 2
    else:
        assert Keeper(agent_type(type(WRITTEN[name])), None).encode(WRITTEN[name]) == body


async def test_a_repeated_call_id_is_known_by_the_receipt_of_its_record() -> None:
    for folder in FORMATS:
        store, key = await holding((folder / "agents" / "calls.bin").read_bytes())
        async with InstanceManager(Caller, store=store) as callers:
            for call_id, method, args, kwargs, reply in CALLS:
                call = callers.options(call_id=call_id).call(key, method, *args, **kwargs)
                if method is Caller.tell:
                    with pytest.raises(AlreadyAppliedError, match="its reply was not kept"):
                        await call
                else:
                    assert await call == reply
            assert await callers.call(key, Caller.read) == STATES["calls"].count  # type: ignore[attr-defined]  # none ran again


# ---------------------------------------------------------------- stores


def _name_of(place: tuple[str, type[Place]]) -> str:
    return place[1].__name__


@pytest.fixture(params=ALL_PLACES, ids=_name_of)
def spot(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    """The name of a store, and what makes a new place for it."""
    name, kind = request.param
    server = request.getfixturevalue(kind.server) if kind.server else None
    return name, lambda: kind(tmp_path, server)


def golden(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stores" / f"{name}.json").read_text())
    if name == "sqlite":
        found["records"]["database"] = folder / "stores" / "sqlite.db"
    return found


async def planted(place: Place, held: dict[str, Any]) -> None:
    await place.prepare()
    place.plant(held)


@pytest.mark.parametrize("folder", FORMATS, ids=lambda path: path.name)
async def test_a_store_reads_what_it_held(folder: Path, spot: tuple[str, Any]) -> None:
    name, make = spot
    place = make()
    await planted(place, golden(folder, name)["records"])
    async with Persistence(place.store()) as persistence:
        for data in records_in_stores(folder):
            header, _ = unpack(data)
            wanted = next(state for state in STATES.values() if type(state).__name__ == header.agent)
            stored = await persistence.store.get(default_key(header.agent, header.key))
            assert stored == Stored(data, header.revision)
            agent = await persistence.thaw(type(wanted), header.key)
            assert agent is not None
            assert_same(agent, wanted)
            assert [key async for key in persistence.keys(type(wanted))] == [header.key]


@pytest.mark.parametrize("folder", FORMATS, ids=lambda path: path.name)
@pytest.mark.parametrize("spot", [each for each in ALL_PLACES if each[1].server], ids=_name_of, indirect=True)
async def test_a_store_knows_what_was_deleted(folder: Path, spot: tuple[str, Any]) -> None:
    """Those on the network, which keep something of it."""
    name, make = spot
    place = make()
    await planted(place, golden(folder, name)["gone"])
    assert place.held(), "something was planted"
    data = records_in_stores(folder)[0]
    header, _ = unpack(data)
    key = default_key(header.agent, header.key)
    async with place.store() as store:
        assert await store.get(key) is None
        assert await store.count() == 0
        await store.put(key, data, revision=header.revision, expected=Expect.ABSENT)
        assert await store.get(key) == Stored(data, header.revision)


async def test_a_store_holds_the_same_as_ever(spot: tuple[str, Any]) -> None:
    name, make = spot
    wanted = golden(FOLDER, name)["records"]
    held = await held_by(make(), gone=False)
    held.pop("identity", None)  # each table has one of its own
    assert held == {part: wanted[part] for part in wanted if part not in ("table", "database", "identity")}
