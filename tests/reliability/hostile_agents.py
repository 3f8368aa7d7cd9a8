"""Agents with each type of field that is kept, their records, and random states: what hostile.py makes worse."""

from __future__ import annotations

import copy
import enum
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import UnionType
from typing import Any, Literal, NamedTuple, TypedDict, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import attrs
import msgspec
import pydantic

from overwinter import Agent, MemoryStore, upcast
from overwinter.agent import agent_type
from overwinter.agent._receipts import digest_of
from overwinter.persistence import Keeper
from overwinter.record import CUSTOM, EXTRAS, Header, pack

__all__ = [
    "AGENTS", "CALL", "KEY", "REVISION", "Everything", "Sample", "Simple", "random_state", "samples", "wrong_value",
]  # fmt: skip

KEY, REVISION = "ada/../\0é", bytes(range(16))


class Size(enum.Enum):
    SMALL, LARGE = 1, 2


class Mood(enum.Enum):
    """Kept by names: the values are no plain data."""

    CALM, WILD = (0, 1), (1, 0)


class Rights(enum.IntFlag):
    READ, WRITE = 1, 2


class Point(NamedTuple):
    x: int
    y: float


class Hint(TypedDict, total=False):
    hint: str


class Line(msgspec.Struct):
    sku: str
    price: Decimal
    tags: list[str] = []


class Pair(msgspec.Struct, array_like=True, frozen=True):
    left: int
    right: str


@dataclass
class Note:
    text: str
    at: datetime | None = None
    inner: Note | None = None


@attrs.define
class Box:
    content: dict[str, bytes]


class Tool(pydantic.BaseModel):
    name: str
    args: dict[str, Any] = {}
    ratio: float = 0.0
    raw: bytes = b""
    day: date | None = None


class Simple(Agent):
    """With no pydantic model: its state is checked field by field, and not by reading it back."""

    number: int = 0
    ratio: float = 0.0
    flag: bool = False
    text: str = ""
    raw: bytes = b""
    buffer: bytearray = msgspec.field(default_factory=bytearray)
    moment: datetime | None = None
    day: date | None = None
    clock: time | None = None
    span: timedelta | None = None
    ident: UUID | None = None
    money: Decimal | None = None
    size: Size = Size.SMALL
    mood: Mood = Mood.CALM
    rights: Rights = Rights.READ
    choice: Literal["a", 7] | None = None
    anything: Any = None
    names: list[str] = []
    seen: set[UUID] = set()
    frozen: frozenset[int] = frozenset()
    pair: tuple[int, str] = (0, "")
    row: tuple[int, ...] = ()
    point: Point = Point(0, 0.0)
    hint: Hint = {}
    by_name: dict[str, list[int]] = {}
    by_number: dict[int, Any] = {}
    by_day: dict[date, Mood] = {}
    line: Line | None = None
    couple: Pair | None = None
    note: Note | None = None
    box: Box | None = None

    async def add(self, by: int = 1) -> int:
        self.number += by
        return self.number

    async def assign(self, name: str, value: Any) -> None:
        setattr(self, name, value)


class Everything(Simple):
    tool: Tool | None = None
    history: list[Note | Tool | Hint] = []


class Plain(Agent):
    """One that is written and read by msgspec alone."""

    count: int = 0
    names: list[str] = []
    anything: Any = None

    async def add(self, by: int = 1) -> int:
        self.count += by
        return self.count


class Migrated(Agent, version=3):
    words: list[str] = []
    total: int
    note: Note | None = None

    @upcast(since=1)
    @staticmethod
    def _split(old: dict[str, Any]) -> dict[str, Any]:
        return {"words": old["text"].split(), "total": old.get("total", 0)}

    @upcast(since=2)
    @staticmethod
    def _wrap(old: dict[str, Any]) -> dict[str, Any]:
        old["note"] = {"text": old["words"][0]} if old["words"] else None
        return old


class Custom(Agent, version=2):
    """With a format of its own."""

    count: int = 0

    def dump(self) -> Any:
        return ["count", self.count, b"\xff"]

    @classmethod
    def load(cls, data: Any, version: int) -> Custom:
        return cls(count=data[1] + version - version)


HINTS = {cls: get_type_hints(cls) for cls in (Simple, Everything)}

CALL = digest_of(Plain.add, (), {})
"""What a receipt says of the arguments of a call without any."""

AGENTS: tuple[type[Agent], ...] = (Everything, Plain, Migrated, Custom)


@dataclass(frozen=True)
class Sample:
    """A good record and who reads it."""

    keeper: Keeper[Any]
    store_key: str
    header: Header
    body: bytes

    @property
    def data(self) -> bytes:
        return pack(self.header, self.body)


def samples(chance: random.Random) -> list[Sample]:
    """Good records of all these classes: full, empty, of former versions and shapes, with extras and receipts."""
    keepers = {cls: Keeper(agent_type(cls), MemoryStore()) for cls in AGENTS}
    receipts = (["1", "add", CALL, b"\x01"], ["2", "add", bytes(8), None])
    found: list[Sample] = []

    def add(cls: type[Agent], body: bytes, **more: Any) -> None:
        keeper = keepers[cls]
        schema = keeper.kind.schema
        known = {"version": schema.version, "fingerprint": schema.fingerprint, "calls": receipts, **more}
        header = Header(agent=keeper.kind.name, key=KEY, sequence=3, revision=REVISION, time_us=1, **known)
        found.append(Sample(keeper, keeper.store_key(KEY), header, body))

    full = keepers[Everything].encode(Everything(**full_state()))
    add(Everything, full)
    add(Everything, keepers[Everything].encode(Everything()))
    add(Everything, msgspec.msgpack.encode({"later": 1, **msgspec.msgpack.decode(full)}), flags=EXTRAS)
    add(Everything, full, fingerprint=bytes(8))
    for _ in range(3):
        add(Everything, keepers[Everything].encode(Everything(**random_state(chance))))
    add(Plain, keepers[Plain].encode(Plain(count=3, names=["a", "b"], anything={"a": [1, 2.5, None]})))
    add(Migrated, keepers[Migrated].encode(Migrated(words=["a"], total=1, note=Note("a"))))
    add(Migrated, msgspec.msgpack.encode({"text": "to be split", "total": 4}), version=1, fingerprint=bytes(8))
    add(Migrated, msgspec.msgpack.encode({"words": ["a"], "total": 4}), version=2, fingerprint=bytes(8))
    add(Custom, keepers[Custom].encode(Custom(count=7)), flags=CUSTOM)
    return found


def full_state() -> dict[str, Any]:
    moment = datetime(2026, 11, 27, 12, 30, tzinfo=UTC)
    return {
        "number": -(2**63), "ratio": 1.5, "flag": True, "text": "grüße ❄\0", "raw": b"\0\xff",
        "buffer": bytearray(b"\x01"), "moment": moment, "day": moment.date(), "clock": time(12, 30, 0, 1),
        "span": timedelta(days=-1, microseconds=1), "ident": UUID(int=5), "money": Decimal("1.50"), "size": Size.LARGE,
        "mood": Mood.WILD, "rights": Rights.READ | Rights.WRITE, "choice": 7,
        "anything": {"a": [1, {"b": None}]}, "names": ["ada", ""], "seen": {UUID(int=1)}, "frozen": frozenset({1, 2}),
        "pair": (1, "x"), "row": (1, 2), "point": Point(1, 2.0), "hint": {"hint": "h"}, "by_name": {"a": [1]},
        "by_number": {-1: None, 2: [True]}, "by_day": {moment.date(): Mood.CALM},
        "line": Line("sku", Decimal("0.10"), ["t"]), "couple": Pair(1, "r"), "note": Note("n", moment, Note("inner")),
        "box": Box({"b": b"\0"}), "tool": Tool(name="find", args={"a": [1]}, raw=b"r", day=moment.date()),
        "history": [Note("n"), Tool(name="t"), {"hint": "h"}],
    }  # fmt: skip


def random_state(chance: random.Random, cls: type[Simple] = Everything) -> dict[str, Any]:
    """Some fields of an agent with random values at the borders of their types."""
    makers = {name: make for name, make in _makers(chance).items() if name in HINTS[cls]}
    return {name: makers[name]() for name in chance.sample(sorted(makers), chance.randint(1, len(makers)))}


def _makers(chance: random.Random) -> dict[str, Callable[[], Any]]:
    def number() -> int:
        return chance.choice([0, 1, -1, 2**63, 2**64 - 1, -(2**63), chance.getrandbits(chance.randint(1, 63))])

    def ratio() -> float:
        return chance.choice([0.0, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), chance.uniform(-1e9, 1e9)])

    def text() -> str:
        points = [
            chance.choice([0, 10, 0x7F, 0xE9, 0x301, 0x200B, 0x202E, 0xFFFF, 0x10FFFF, 0x1F600]) for _ in range(3)
        ]
        return "".join(map(chr, points[: chance.randint(0, 3)]))

    def raw() -> bytes:
        return chance.randbytes(chance.choice([0, 1, 31, 32, 255, 256]))

    def moment() -> datetime:
        return datetime(
            chance.randint(1, 9999), 12, 31, 23, 59, 59, chance.randrange(10**6), chance.choice([UTC, None])
        )

    def anything(levels: int = 4) -> Any:
        plain = [number, ratio, text, lambda: None, lambda: True]
        if not levels or chance.random() < 0.5:
            return chance.choice(plain)()
        items = [anything(levels - 1) for _ in range(chance.randint(0, 3))]
        return items if chance.random() < 0.5 else {f"{n}{text()}": item for n, item in enumerate(items)}

    def note(levels: int = 3) -> Note:
        return Note(text(), moment(), note(levels - 1) if levels and chance.random() < 0.5 else None)

    def ident() -> UUID:
        return UUID(int=chance.getrandbits(128))

    def day() -> date:
        return date.fromordinal(chance.choice([1, 3652059, chance.randint(1, 3652059)]))

    def money() -> Decimal:
        return Decimal(chance.choice(["0", "-0.0", "1E+99", "1.500", "0.1", "123456789012345678901234567890.1"]))

    def tool() -> Tool:
        args = {text(): [number(), text(), None]}  # JSON, which has no infinity
        return Tool(name=text(), args=args, ratio=chance.random(), raw=b"raw", day=day())

    def some(make: Callable[[], Any]) -> Callable[[], list[Any]]:
        return lambda: [make() for _ in range(chance.choice([0, 1, 15, 16, 17]))]

    return {
        "number": number, "ratio": ratio, "flag": lambda: chance.random() < 0.5, "text": text, "raw": raw,
        "buffer": lambda: bytearray(raw()), "moment": moment, "day": day, "ident": ident, "money": money,
        "clock": lambda: time(23, 59, 59, chance.randrange(10**6)),
        "span": lambda: timedelta(chance.randint(-10**6, 10**6), chance.randrange(86400), chance.randrange(10**6)),
        "size": lambda: chance.choice(list(Size)), "mood": lambda: chance.choice(list(Mood)),
        "rights": lambda: Rights(chance.randrange(4)), "choice": lambda: chance.choice(["a", 7, None]),
        "anything": anything, "names": some(text), "seen": lambda: set(some(ident)()),
        "frozen": lambda: frozenset(some(number)()), "pair": lambda: (number(), text()),
        "row": lambda: tuple(some(number)()), "point": lambda: Point(number(), ratio()),
        "hint": lambda: chance.choice([{}, {"hint": text()}]), "by_name": lambda: {text(): some(number)()},
        "by_number": lambda: {number(): anything(1)}, "by_day": lambda: {day(): chance.choice(list(Mood))},
        "line": lambda: Line(text(), money(), some(text)()), "couple": lambda: Pair(number(), text()), "note": note,
        "box": lambda: Box({text(): raw()}), "tool": tool,
        "history": lambda: [chance.choice([note, tool, lambda: {"hint": text()}])() for _ in range(3)],
    }  # fmt: skip


# ---------------------------------------------------------------- values that must be refused


class Word(str):
    """Text of a type of its own, which would come back as any other."""


class Count(int):
    pass


def wrong_value(chance: random.Random, cls: type[Simple]) -> tuple[str, Any]:
    """A field of an agent, and a value that it can't keep: of another field's type, or with a stranger in it."""
    makers = _makers(chance)
    while True:
        name, other = chance.choice(sorted(makers.keys() & HINTS[cls].keys())), chance.choice(sorted(makers))
        if chance.random() < 0.5:
            return name, _spoilt(makers[name](), _stranger(chance), chance)
        value = makers[other]()
        kinds = _kinds(HINTS[cls][name])
        if Any not in kinds and type(value) not in kinds:
            return name, value


def _kinds(hint: Any) -> set[Any]:
    """The types that a hint names, those of their items left out."""
    origin = get_origin(hint)
    if origin is Literal:
        return {type(value) for value in get_args(hint)}
    if origin is None:
        return {Hint: {dict}, float: {float, int}}.get(hint, {hint})  # a whole number is a float, too
    members = [_kinds(member) for member in get_args(hint)] if origin in (Union, UnionType) else [{origin}]
    return set().union(*members)


def _stranger(chance: random.Random) -> Any:
    """What has no place in any field."""
    other_zone, odd = datetime(2026, 11, 27, tzinfo=timezone(timedelta(hours=5))), Note("n")
    odd.undeclared = 1  # type: ignore[attr-defined]
    return chance.choice([object(), 1j, range(3), Word("w"), Count(1), "\ud800", other_zone, odd])


def _spoilt(value: Any, stranger: Any, chance: random.Random) -> Any:
    """The stranger itself, or a copy of *value* with it somewhere inside."""

    def inside(item: Any) -> Any:
        return _spoilt(item, stranger, chance)

    if chance.random() < 0.2:
        return stranger
    if isinstance(value, Point | Pair):
        return Point(inside(value.x), value.y) if isinstance(value, Point) else Pair(value.left, inside(value.right))
    if isinstance(value, dict) and value:
        name = chance.choice(list(value))
        return {**value, name: inside(value[name])}
    if isinstance(value, list | tuple) and value:
        at = chance.randrange(len(value))
        return type(value)([*value[:at], inside(value[at]), *value[at + 1 :]])
    if isinstance(value, Line | Note | Box | Tool):
        found = copy.copy(value)
        name = chance.choice(list(type(value).__annotations__))
        setattr(found, name, inside(getattr(value, name)))
        return found
    return stranger
