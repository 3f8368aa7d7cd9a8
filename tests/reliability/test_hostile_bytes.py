"""Whatever bytes a store holds: a value or a typed error. Nothing is imported, opened or run, no flipped bit is missed.

Records with good checksums and hostile content go all the way to live agents (hostile.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeAlias

import apsw
import hostile
import msgspec
import pytest
import redis
from hostile_agents import KEY, REVISION, Everything, Simple, random_state, samples, wrong_value
from proofs import Proof
from servers import Valkey

from overwinter import InstanceManager, Persistence
from overwinter.errors import AgentStateError, CorruptRecordError, NewerRecordError, ThawError
from overwinter.record import unpack
from overwinter.stores import Durability, Expect, FileStore, MemoryStore, SQLiteStore, Store
from overwinter.stores import _file_frame as file_frame
from overwinter.stores import _redis_frame as redis_frame
from overwinter.stores._file_frame import name_of
from overwinter.stores.redis import RedisStore

GOLDENS = sorted((Path(__file__).parents[1] / "golden").glob("format-*/*.bin"))
PROGRAM = Path(__file__).with_name("hostile.py")
PROCESSES = 2
PLACE = f"Everything:{KEY}"
"""The store key of the agent whose records are planted."""

Plant: TypeAlias = Callable[[bytes, object, random.Random], None]
"""Write a record's bytes and revision past the store."""


def run(seed: str, first: int, cases: int, breakage: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(PROGRAM), seed, str(first), str(cases), breakage]
    return subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)


def test_hostile_bytes_end_in_a_value_or_a_typed_error(proof: Proof) -> None:
    size = proof.size(run=100_000, long=1_000_000)
    seed, share = str(proof.chance("records").getrandbits(32)), size // PROCESSES
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(PROCESSES) as pool:
        for done in pool.map(run, [seed] * PROCESSES, range(0, size, share), [share] * PROCESSES):
            assert (done.returncode, done.stderr) == (0, ""), f"repeat: {PROGRAM.name} {seed} CASE 1 ''\n{done.stderr}"
            counts.update(json.loads(done.stdout))
    assert counts["records"] == size
    assert counts["refused"] > size / 2  # or they are not hostile
    assert counts["read"] > size / 20  # or they don't get far
    assert counts["revived"] > size / 1000
    proof.count(records=size, read=counts["read"], came_alive=counts["revived"])


@pytest.mark.parametrize(("seed", "case"), [("307623269", 79801), ("3812292217", 123747), ("1439622115", 956912)])
def test_what_was_found_once_is_not_found_again(seed, case):
    """An infinity in a model that would write it as null: an error of calls came out of a thaw."""
    done = run(seed, case, 1)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("breakage", "told"),
    [
        ("import", "decoding caused import"),
        ("open", "decoding caused open"),
        ("exec", "decoding caused compile"),
        ("errors", "ValueError: whatever the decoder says"),
        ("memory", "MemoryError"),
        ("time", "AssertionError: it took"),
        ("checksum", "AssertionError: the record was <class 'overwinter.errors.CorruptRecordError'>"),
    ],
)
def test_a_part_that_is_broken_is_found_by_hostile_bytes(breakage: str, told: str) -> None:
    done = run("7", 0, 3_000, breakage)
    assert done.returncode in (1, 3)
    assert told in done.stderr


# ---------------------------------------------------------------- flips and truncations


def read_plain(data: bytes) -> tuple[bytes, Any] | None:
    return REVISION, unpack(data)


def read_framed(store: str) -> Callable[[bytes], tuple[bytes, Any] | None]:
    def read(data: bytes) -> tuple[bytes, Any] | None:
        stored = hostile.unframe(store, data)
        if stored is None:
            return None
        header, body = unpack(stored.data)
        if header.revision != stored.revision:  # as Keeper.read does: Redis has no checksum of its own
            raise CorruptRecordError("the record and the store disagree")
        return stored.revision, (header, body)

    return read


READERS = {"record": read_plain, **{store: read_framed(store) for store in hostile.FRAMES}}


def missed(read: Callable[[bytes], Any], good: bytes) -> list[str]:
    """The flips and truncations after which a record is still read, or taken for absent."""
    cases = {f"bit {bit}": _flipped(good, bit) for bit in range(len(good) * 8)}
    cases |= {f"cut to {end}": good[:end] for end in range(len(good))}
    found = []
    for name, bad in cases.items():
        try:
            read(bad)
        except (CorruptRecordError, NewerRecordError):
            continue
        found.append(name)
    return found


def _flipped(good: bytes, bit: int) -> bytes:
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    return bytes(bad)


@pytest.mark.parametrize("where", READERS)
def test_every_flipped_bit_and_every_truncation_is_found(proof: Proof, where: str) -> None:
    assert GOLDENS
    for path in GOLDENS:
        good = path.read_bytes()
        framed = hostile.FRAMES[where](good) if where in hostile.FRAMES else good
        read = READERS[where]
        if where == "record" or unpack(good)[0].revision == REVISION:
            assert read(framed) is not None
        assert missed(read, framed) == []
        proof.count(flips=len(framed) * 8, truncations=len(framed))


def test_a_reader_without_a_checksum_misses_flips() -> None:
    def trusting(data: bytes) -> Any:
        try:
            return unpack(data[:-16] + hostile.blake2b(data[:-16], digest_size=16).digest())
        except ValueError:
            raise CorruptRecordError("no record") from None

    assert len(missed(trusting, GOLDENS[0].read_bytes())) > 100


def test_a_reader_that_takes_what_is_torn_for_absent_misses_truncations() -> None:
    framed = hostile.FRAMES["redis"](GOLDENS[0].read_bytes())
    read = READERS["redis"]
    assert missed(lambda data: read(data) if len(data) > 5 else None, framed) == [f"cut to {end}" for end in range(6)]


# ---------------------------------------------------------------- there and back


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types, all the way down; 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return len(one) == len(other) and all(same(a, b) and same(c, d) for (a, c), (b, d) in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, msgspec.Struct):
        return all(same(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__)
    names = getattr(one, "__dataclass_fields__", None) or getattr(type(one), "model_fields", None)
    if names is not None:
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return one == other and repr(one) == repr(other) if isinstance(one, float) else bool(one == other)


async def test_what_is_put_comes_back_equal_in_value_and_type(proof: Proof) -> None:
    chance = proof.chance("states")
    async with Persistence(MemoryStore()) as persistence:
        for number in range(proof.size(run=1_000, long=50_000)):
            seed = chance.getrandbits(64)
            state = random_state(random.Random(seed))
            await persistence.hibernate(str(number), Everything(**state))
            back = await persistence.thaw(Everything, str(number))
            for name, value in state.items():
                assert same(value, getattr(back, name)), f"{name} of state {seed}: {value!r} came back otherwise"
            await persistence.delete(Everything, str(number))
            proof.count(states=1)


@pytest.mark.parametrize("cls", [Simple, Everything])
async def test_what_could_not_come_back_is_refused_and_what_is_stored_stays(proof: Proof, cls: type[Simple]) -> None:
    chance, store = proof.chance("wrong states"), MemoryStore()
    async with store, InstanceManager(cls, store=store) as manager:
        for number in range(proof.size(run=1_000, long=50_000)):
            seed, key = chance.getrandbits(64), str(number)
            state, (name, wrong) = random_state(random.Random(seed), cls), wrong_value(random.Random(seed), cls)
            await manager.get(key, initial=state)
            await manager.save(key)
            before = await store.get(f"{cls.__name__}:{key}")
            (told,) = await asyncio.gather(manager.call(key, cls.assign, name, wrong), return_exceptions=True)
            assert isinstance(told, AgentStateError), f"state {seed}, {name} = {wrong!r}: {told!r}"
            await manager.stop(key)
            assert before is not None
            assert await store.get(f"{cls.__name__}:{key}") == before, f"state {seed} changed"
            await manager.delete(key)
            proof.count(refused=1)


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (0.0, -0.0), ([1], (1,)), ({"a": 1}, {"a": 1.0}), (b"", bytearray())]
)
def test_values_that_python_calls_equal_are_not_the_same(one: Any, other: Any) -> None:
    assert same(one, one)
    assert not same(one, other)


# ---------------------------------------------------------------- in real stores


@contextlib.asynccontextmanager
async def in_files(folder: Path, _: object) -> AsyncGenerator[tuple[Store, Plant]]:
    path = folder / "agents" / name_of(PLACE)[:2] / name_of(PLACE)

    def plant(data: bytes, revision: object, chance: random.Random) -> None:
        content = file_frame.pack(PLACE, revision if type(revision) is bytes else b"", len(data)) + data
        path.write_bytes(content if chance.random() < 0.7 else hostile.mutate(content, chance))

    async with FileStore(folder / "agents") as store:
        yield store, plant


@contextlib.asynccontextmanager
async def in_sqlite(folder: Path, _: object) -> AsyncGenerator[tuple[Store, Plant]]:
    async with SQLiteStore(folder / "agents.db") as store:
        connection = apsw.Connection(str(folder / "agents.db"))
        connection.set_busy_timeout(5000)

        def plant(data: bytes, revision: object, chance: random.Random) -> None:
            odd = chance.choice([data, data, data, "text", 7, 1.5, b"", data.decode("latin-1")])
            connection.execute("UPDATE agents SET data = ?, revision = ?", (odd, revision))

        yield store, plant
        connection.close()


@contextlib.asynccontextmanager
async def in_valkey(_: object, server: Valkey) -> AsyncGenerator[tuple[Store, Plant]]:
    prefix = f"{os.urandom(8).hex()}:"
    name = f"{prefix}agent:{PLACE}"
    with redis.Redis.from_url(server.url) as client:

        def plant(data: bytes, revision: object, chance: random.Random) -> None:
            client.delete(name)
            if chance.random() < 0.1:
                client.rpush(name, data)
            else:
                value = redis_frame.head_of(revision if type(revision) is bytes else b"") + data
                client.set(name, value if chance.random() < 0.7 else hostile.mutate(value, chance))

        async with RedisStore(server.url, prefix=prefix, durability=Durability.HOST) as store:
            yield store, plant


@pytest.mark.parametrize("where", [in_files, in_sqlite, in_valkey], ids=lambda where: where.__name__)
async def test_what_others_wrote_into_a_real_store_is_never_absent(
    proof: Proof,
    in_memory: Path,
    valkey: Valkey,
    where: Callable[..., AbstractAsyncContextManager[tuple[Store, Plant]]],
) -> None:
    chance = proof.chance(where.__name__)
    goods = [good for good in samples(chance) if good.store_key == PLACE]
    async with where(in_memory, valkey) as (store, plant), Persistence(store) as persistence:
        await store.put(PLACE, goods[0].data, revision=REVISION, expected=Expect.ABSENT)
        for number in range(proof.size(run=500, long=5_000)):
            way, _, data = hostile.make(goods, chance)
            plant(data, chance.choice([REVISION, REVISION, REVISION, b"", b"x" * 255, "text", 3]), chance)
            try:
                agent = await persistence.thaw(Everything, KEY)
                assert type(agent) is Everything, f"{way} of case {number} was taken for absent"
                proof.count(read=1)
            except ThawError:
                assert await is_there(store), f"{way} of case {number} is absent after it was refused"
                proof.count(refused=1)
        await persistence.delete(Everything, KEY)
        assert await persistence.thaw(Everything, KEY) is None


async def is_there(store: Store) -> bool:
    try:
        return await store.head(PLACE) is not None
    except CorruptRecordError:
        return True
