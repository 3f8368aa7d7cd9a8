"""Keys are only data: two thousand that look like paths, patterns, SQL or each other, in every store and by managers.

No two of them meet, and none leads out of a store's folder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import unicodedata
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proofs import Proof

from overwinter import Agent, InstanceManager
from overwinter.errors import (
    AgentNotFoundError,
    CorruptRecordError,
    InvalidKeyError,
    RevisionConflictError,
)
from overwinter.persistence import default_key, new_revision
from overwinter.stores import (
    Durability,
    Expect,
    FileStore,
    MemoryStore,
    ObjectStore,
    PostgresStore,
    RedisStore,
    SQLiteStore,
    Store,
    Stored,
)
from overwinter.stores._file_frame import name_of
from overwinter.stores._objects_names import name_of as object_name_of
from overwinter.testing._keys import hostile_keys
from overwinter.testing._listing import listed

SIZE = 2_000
MOST = 1024 - len("Note:")  # bytes: keys of agents have 1,024, and these serve as store keys too

PARTS = [
    "..", "../", "/", "//", "\\", "a", "A", "b", "etc/passwd", "C:", ":", "\0", "\n", "\r", "\t", " ", ".", "~", "%",
    "%00", "%2F", "%25", "=2F", "=", "*", "?", "[a]", "^", "_", "-", "'", "''", '"', ";--", "; DROP TABLE agents; --",
    "$$", "$1", "{}", "{a}", "{0}", "%s", "#", "&", "|", "`id`", "$(id)", "CON", "con", "nul", "LPT1.txt", "agent:",
    "store", "~0", "é", "e\u0301", "Å", "\u212b", "A\u030a", "ß", "ss", "ẞ", "ı", "i", "I", "İ", "ﬁ", "fi", "ǆ", "ς",
    "σ", "Ω", "\u2126", "\u200b", "\u200d", "\u202e", "\u2066", "\ufeff", "\u00ad", "\uffff", "\U0010ffff", "ключ",
    "\U0001f469\u200d\U0001f680", "\U0001f469", "\u9375", "\ud55c", "\u1112\u1161\u11ab", "\uff10", "0", "²", "2",
    "\x7f", "\x1b[31m", "null", "None", "1e3", "-rf", "<x>", "\u2028",
]  # fmt: skip

FORMS: list[Callable[[str], str]] = [
    str.lower, str.upper, str.casefold, str.swapcase, str.strip, urllib.parse.unquote, os.path.normpath, name_of,
    object_name_of, lambda key: key + " ", lambda key: key + "\0", lambda key: key + "/", lambda key: key[:-1],
    lambda key: "./" + key, lambda key: urllib.parse.quote(key, safe=""), lambda key: key.replace("\\", "/"),
    *(lambda key, form=form: unicodedata.normalize(form, key) for form in ("NFC", "NFD", "NFKC", "NFKD")),
]  # fmt: skip
"""What a store might take a key for: each of these makes a twin, which is another key."""


def families(chance: random.Random, size: int = SIZE) -> list[str]:
    """Keys of 1 to as many bytes as are allowed, all different; most have twins among the others."""
    found = dict.fromkeys(key for key in hostile_keys() if fits(key))
    while len(found) < size:
        key = "".join(chance.choices(PARTS, k=chance.randint(1, 6)))
        if chance.random() < 0.05:
            key = to_the_brim(key, chance)
        twins = [key, *(form(key) for form in chance.sample(FORMS, 3))]
        found.update(dict.fromkeys(twin for twin in twins if fits(twin)))
    return list(found)[:size]


def fits(key: str) -> bool:
    return 1 <= len(key.encode()) <= MOST


def to_the_brim(key: str, chance: random.Random) -> str:
    """As long as can be, or one byte shorter, with a sign of several bytes at the border."""
    last = chance.choice(["é", "鍵", "👩", "z"])
    room = MOST - chance.randrange(2) - len(last.encode()) - len(key.encode())
    return key + chance.choice("kK") * room + last


def test_the_keys_are_hostile() -> None:
    keys = families(random.Random(1))
    assert len(set(keys)) == SIZE
    assert {1, MOST} <= {len(key.encode()) for key in keys}
    for form in FORMS:
        assert any(form(key) != key and form(key) in keys for key in keys), f"no twins by {form}"


# ---------------------------------------------------------------- every store


@pytest.fixture
def store(request: pytest.FixtureRequest, in_memory: Path) -> Store:
    """An empty store of the kind that the parameter names."""
    kind, name = request.param, os.urandom(8).hex()
    if kind == "memory":
        return MemoryStore()
    if kind == "files":
        return FileStore(in_memory / "agents")
    if kind == "sqlite":
        return SQLiteStore(in_memory / "agents.db")
    server = request.getfixturevalue(kind)
    if kind == "postgres":
        return PostgresStore(server.url, table=f"keys_{name}")
    if kind == "s3":
        return ObjectStore(f"s3://{server.bucket}/{name}", **server.options)
    return RedisStore(server.url, prefix=f"{name}*?[:", durability=Durability.HOST)


STORES = ["memory", "files", "sqlite", "valkey", "redis", "postgres", "s3"]


async def check_store(store: Store, keys: list[str], chance: random.Random, reads: int = SIZE) -> None:
    """Put all, list all, delete half as many as are read, list and read: each key is itself, and no other."""
    records = {key: Stored(key.encode() + b"\0its own", new_revision()) for key in keys}
    async with store:
        puts = (store.put(key, data, revision=new, expected=Expect.ABSENT) for key, (data, new) in pairs(records))
        for key, outcome in zip(records, await together(puts), strict=True):
            assert outcome is None, f"{key!r} was not new: {outcome!r}"
        there = await listed(store)
        assert sorted(there) == sorted(keys), f"not the keys: {set(there) ^ set(keys)!r}"
        gone = set(chance.sample(keys, reads // 2))
        assert set(await together(store.delete(key, expected=records[key].revision) for key in gone)) == {None}
        read = chance.sample(keys, reads)
        for key, found in zip(read, await together(map(store.get, read)), strict=True):
            assert found == (None if key in gone else records[key]), f"{key!r} has the record {found!r}"
        assert set(await listed(store)) == set(keys) - gone


async def together(operations: Iterable[Awaitable[Any]]) -> list[Any]:
    """The outcomes of many operations, of which some run at once."""
    places = asyncio.Semaphore(64)

    async def one(operation: Awaitable[Any]) -> Any:
        async with places:
            return await operation

    return await asyncio.gather(*map(one, operations), return_exceptions=True)


def pairs(records: dict[str, Stored]) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
    return ((key, (stored.data, stored.revision)) for key, stored in records.items())


@pytest.mark.parametrize("store", STORES, indirect=True)
async def test_no_two_keys_meet(proof: Proof, store: Store, in_memory: Path) -> None:
    chance = proof.chance("keys")
    keys = families(chance)
    (in_memory / "etc").mkdir()
    (in_memory / "etc" / "passwd").write_text("not yours")
    before = outside(in_memory)
    # moto takes milliseconds for each request; put and list have told all keys apart before any is read
    await check_store(store, keys, chance, reads=400 if isinstance(store, ObjectStore) else SIZE)
    assert outside(in_memory) == before
    assert not misnamed(in_memory / "agents")
    proof.count(keys=len(keys))


def outside(folder: Path) -> dict[str, bytes]:
    """All files but the store's own, and two levels above it, whose names alone are told."""
    inside = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    own = re.compile(r"agents/|agents\.db")
    above = {f"../{path.name}": b"" for path in folder.parent.glob("*passwd*")}
    return above | {name: path.read_bytes() for name, path in inside.items() if not own.match(name)}


def misnamed(folder: Path) -> list[str]:
    """Names in a FileStore's folder that a case-insensitive disk mixes up, or that say anything of a key."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    lower = [name.lower() for name in names]
    odd = [name for name in names if not re.fullmatch(r"(([0-9a-f]{2}/)?[0-9a-f]{64}|[a-z0-9.\-/]{1,40})", name)]
    return odd + [name for name in names if lower.count(name.lower()) > 1]


async def test_a_link_in_the_place_of_a_file_leads_nowhere(in_memory: Path) -> None:
    store, target = FileStore(in_memory / "agents"), in_memory / "target"
    target.write_text("not yours")
    key, revision = "../../target", new_revision()
    async with store:
        await store.put(key, b"1", revision=revision, expected=Expect.ABSENT)
        path = in_memory / "agents" / name_of(key)[:2] / name_of(key)
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(CorruptRecordError):
            await store.get(key)
        for expected in (revision, Expect.ABSENT):
            with pytest.raises((CorruptRecordError, RevisionConflictError)):
                await store.put(key, b"2", revision=new_revision(), expected=expected)
        await store.delete(key, expected=Expect.ANY)
        assert await store.get(key) is None
    assert target.read_text() == "not yours"


# ---------------------------------------------------------------- stores that mix them up


class Mapped(MemoryStore):
    """Stores under what *form* makes of a key."""

    def __init__(self, form: Callable[[str], str]) -> None:
        super().__init__()
        self.form = form

    async def get(self, key: str) -> Stored | None:
        return await super().get(self.form(key))

    async def put(self, key: str, data: bytes, **more: Any) -> None:
        await super().put(self.form(key), data, **more)

    async def delete(self, key: str, **more: Any) -> None:
        await super().delete(self.form(key), **more)


CONFUSIONS: dict[str, Callable[[str], str]] = {
    "lower case": str.lower,
    "case folding": str.casefold,
    "NFC": lambda key: unicodedata.normalize("NFC", key),
    "NFKC": lambda key: unicodedata.normalize("NFKC", key),
    "255 letters": lambda key: key[:255],
    "1,023 bytes": lambda key: key.encode()[: MOST - 1].decode(errors="ignore"),
    "a C string": lambda key: key.partition("\0")[0],
    "no blanks": str.strip,
    "paths": os.path.normpath,
    "percent signs": urllib.parse.unquote,
    "one kind of slash": lambda key: key.replace("\\", "/"),
    "printable": lambda key: "".join(sign for sign in key if sign.isprintable()),
    "Latin-1": lambda key: key.encode("latin-1", "replace").decode("latin-1"),
}


@pytest.mark.parametrize("confusion", CONFUSIONS)
async def test_a_store_that_mixes_keys_up_is_found(confusion: str) -> None:
    with pytest.raises(AssertionError, match="was not new"):
        await check_store(Mapped(CONFUSIONS[confusion]), families(random.Random(1)), random.Random(1))


async def test_a_store_that_names_files_by_keys_is_found(in_memory: Path) -> None:
    folder = in_memory / "agents"
    folder.mkdir()
    before = outside(in_memory)
    for key in families(random.Random(1)):
        path = folder / key.lstrip("/")
        if "\0" not in key and len(key) < 99 and path.parent.is_dir() and path.resolve().is_relative_to(in_memory):
            path.is_dir() or path.write_text(key)
    assert outside(in_memory) != before
    assert misnamed(folder)


# ---------------------------------------------------------------- by managers


class Note(Agent):
    text: str = ""

    async def write(self, text: str) -> str:
        self.text = text
        return self.key

    async def fail(self) -> None:
        raise ValueError(self.key)


async def call_each(notes: InstanceManager[Note], keys: list[str]) -> None:
    assert await asyncio.gather(*(notes.call(key, Note.write, key) for key in keys)) == keys


@pytest.mark.parametrize("store", ["memory", "files", "sqlite", "valkey"], indirect=True)
async def test_an_agent_answers_to_its_own_key_alone(proof: Proof, store: Store) -> None:
    keys = families(proof.chance("keys"))
    async with store:  # the one in memory forgets when nobody has it open
        async with InstanceManager(Note, store=store) as notes:
            await call_each(notes, keys)
            assert sorted(notes.keys()) == sorted(keys)
            for key in keys[::20]:
                await notes.delete(key)
        async with InstanceManager(Note, store=store) as notes:
            left = [key for number, key in enumerate(keys) if number % 20]
            assert sorted([key async for key in notes.stored_keys()]) == sorted(left)
            for key, note in zip(left, await asyncio.gather(*map(notes.state, left)), strict=True):
                assert (note.text, note.key) == (key, key)
            for key in keys[::20]:
                with pytest.raises(AgentNotFoundError):
                    await notes.get(key, missing="raise")
    proof.count(keys=len(keys))


async def test_what_is_said_of_a_key_is_plain_text(proof: Proof, caplog: pytest.LogCaptureFixture) -> None:
    """No line ends, escapes or signs that turn text round get into a log by way of a key."""
    keys = families(proof.chance("keys"))
    async with InstanceManager(Note, store=MemoryStore()) as notes:
        for key in keys:
            with pytest.raises(AgentNotFoundError) as caught:
                await notes.get(key, missing="raise")
            assert str(caught.value).isprintable(), repr(key)
            assert repr(notes.reference(key)).isprintable()
        with caplog.at_level(logging.ERROR):
            for key in keys[::10]:
                notes.tell(key, Note.fail)
            while len(caplog.records) < len(keys[::10]):
                await asyncio.sleep(0)
        for record in caplog.records:
            assert record.getMessage().partition("\n")[0].isprintable()


class Text(str):
    __slots__ = ()


NO_KEYS = ["", "\ud800", "a\udfff", "k" * 1025, "é" * 512 + "x", "👩" * 257, b"a", 7, None, ("a",), Text("a")]


@pytest.mark.parametrize("key", NO_KEYS, ids=range(len(NO_KEYS)))
async def test_what_is_no_key_is_refused_and_starts_nothing(key: Any) -> None:
    store = MemoryStore()
    async with InstanceManager(Note, store=store) as notes:
        for attempt in (notes.get, notes.state, notes.delete, lambda key: notes.call(key, Note.write, "")):
            with pytest.raises(InvalidKeyError) as caught:
                await attempt(key)
            assert str(caught.value).isprintable()
        for attempt in (notes.attach, lambda key: notes.tell(key, Note.write, "")):
            with pytest.raises(InvalidKeyError):
                attempt(key)
        assert notes.keys() == []
        assert await listed(store) == []


async def test_keys_of_exactly_1024_bytes_are_keys() -> None:
    keys = ["k" * 1024, "é" * 512, "👩" * 256, "k" * 1023 + "K", "\0" * 1024]
    async with InstanceManager(Note, store=MemoryStore()) as notes:
        await call_each(notes, keys)
        assert len({default_key("Note", key) for key in keys}) == len(keys)
