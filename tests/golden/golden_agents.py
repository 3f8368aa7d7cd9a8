"""The agents of the golden records, one for each kind of value that a record holds. They stay as they are.

A new kind of value gets a new agent. Changing one here would change what the record of a released format is read as.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic

from overwinter import Agent, readonly, upcast

T = TypeVar("T")

KEY = "ada"
LONG_KEY = "grüße/❄/" + "x" * 1000
"""Longer than what each store takes as a name."""
AT = datetime(2026, 11, 29, 23, 59, 58, 123456, tzinfo=UTC)


class Scalars(Agent):
    nothing: None = None
    yes: bool = True
    ints: list[int] = []
    floats: list[float] = []
    text: str = ""
    raw: bytes = b""
    array: bytearray = bytearray()
    at: list[datetime] = []
    day: date = date(1, 1, 1)
    clock: list[time] = []
    span: list[timedelta] = []
    id: UUID = UUID(int=0)
    price: list[Decimal] = []
    mode: list[Literal["auto", 7, False] | None] = []


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Mixed(enum.Enum):
    ONE = 1
    PAIR = (1, 2)


class Huge(enum.IntEnum):
    LITTLE = 1
    MUCH = 2**70


class Enums(Agent):
    by_value: list[Color] = []
    by_number: list[Level] = []
    flags: list[Rights] = []
    by_name: list[Mixed] = []
    beyond: list[Huge] = []
    keys: dict[Color, Level] = {}


class Items(Agent):
    numbers: set[int] = set()
    texts: frozenset[str] = frozenset()
    pair: tuple[int, str] = (0, "")
    row: tuple[float, ...] = ()
    deep: dict[str, list[tuple[int, set[int]]]] = {}
    by_number: dict[int, str] = {}
    by_pair: dict[tuple[int, str], bool] = {}
    by_day: dict[date, None] = {}
    any: Any = None
    limited: Annotated[int, msgspec.Meta(ge=0)] = 0


@dataclass
class Note:
    text: str
    at: datetime | None = None
    inner: Note | None = None


@dataclass(slots=True)
class Slotted:
    n: int
    later: int = field(default=0, init=False)


@attrs.define
class Part:
    name: str
    _count: int = 0


@attrs.frozen
class Box:
    content: dict[str, bytes]


class Line(msgspec.Struct, rename="camel"):
    unit_price: Decimal
    tags: set[int] = set()


class Point(msgspec.Struct, array_like=True, frozen=True):
    x: int
    y: float = 0.0


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Kennel(msgspec.Struct, tag=True):
    inside: list[Note | Slotted]


class Pair(NamedTuple):
    left: int
    right: str | None = None


class Options(TypedDict):
    depth: int
    name: NotRequired[str]


class Model(pydantic.BaseModel):
    name: str
    numbers: list[int] = []
    day: date = date(2026, 11, 29)
    parts: dict[str, list[str]] = {}


@dataclass
class Crate(Generic[T]):
    items: list[T]


class Records(Agent):
    note: Note = Note("")
    slotted: Slotted = Slotted(0)
    part: Part = Part("")
    box: Box = Box({})
    line: Line = Line(Decimal(0))
    point: Point = Point(0)
    pair: Pair = Pair(0)
    options: list[Options] = []
    model: Model = Model(name="")
    crate: Crate[Color] = Crate([])
    renamed: int = msgspec.field(default=0, name="other name")


class Unions(Agent):
    optional: list[Note | None] = []
    direct: list[int | str | dict[str, int] | None] = []
    texts: list[str | bytes | date | UUID] = []
    number: list[float | Level] = []
    structs: list[Cat | Dog] = []
    kennels: list[Cat | Kennel] = []
    tagged: list[Note | Slotted | Part | Line | Options | Model | Mixed | int | str | None] = []
    huge: list[Huge | float] = []


class Own(Agent, version=3):
    """With a format of its own."""

    marks: list[str] = []

    def dump(self) -> Any:
        return {"marks": ",".join(self.marks), 1: b"\xff"}

    @classmethod
    def load(cls, data: Any, version: int) -> Own:
        assert (version, data[1]) == (3, b"\xff")
        return cls(marks=data["marks"].split(","))


@dataclass
class Spot:
    x: int


@dataclass
class NewSpot:
    """What ``Spot`` is in a newer release."""

    x: int
    y: list[int] = field(default_factory=list)


class Map(Agent):
    spots: list[Spot] = []


class NewMap(Agent, name="Map"):
    """Writes what ``Map`` doesn't know, and has to keep."""

    spots: list[NewSpot] = []
    title: str = ""


class Former(Agent, name="Moved"):
    first: str = ""
    last: str = ""


class Moved(Agent, version=2):
    """Reads what ``Former`` wrote."""

    name: str = ""

    @upcast(since=1)
    def _join(data: dict[str, Any]) -> dict[str, Any]:  # type: ignore[misc]
        return {"name": f"{data.pop('first')} {data.pop('last')}", **data}


class Caller(Agent):
    """Has receipts of calls."""

    count: int = 0

    async def add(self, by: int, to: str = "count") -> int:
        self.count += by
        return self.count

    async def note(self, note: Note, tags: set[str], day: date) -> None:
        self.count += 1

    async def move(self, by: tuple[int, ...], *, level: Level, model: Model) -> Note | Spot:
        self.count += 1
        return Spot(sum(by))

    async def tell(self) -> str:
        self.count += 1
        return "x" * 10_000  # more than a receipt keeps

    @readonly
    async def read(self) -> int:
        return self.count


CALLS: list[tuple[str, Any, tuple[Any, ...], dict[str, Any], Any]] = [
    ("id-1", Caller.add, (5,), {}, 5),
    ("id-2", Caller.add, (2,), {"to": "other"}, 7),
    ("id-3", Caller.note, (Note("a", AT), {"b", "c"}, date(2026, 11, 29)), {}, None),
    ("grüße ❄", Caller.move, ((1, 2),), {"level": Level.HIGH, "model": Model(name="m", numbers=[1])}, Spot(3)),
    ("id-5", Caller.tell, (), {}, "x" * 10_000),
]
"""Call id, method, arguments, and the reply."""

KEYS = {"own": LONG_KEY}
"""Those that aren't under ``KEY``."""

STATES: dict[str, Agent] = {
    "scalars": Scalars(
        ints=[0, -1, 127, 128, -33, 2**32, -(2**63), 2**64 - 1],
        floats=[0.0, -0.0, 1.5, 1e300, float("inf"), 5e-324],
        text="grüße ❄\0",
        raw=b"\x00\xff",
        array=bytearray(b"\xfe"),
        at=[AT, datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999), AT.replace(microsecond=0)],  # noqa: DTZ001
        day=date(2026, 11, 29),
        clock=[time(1, 2, 3, 4), time(23, 59, tzinfo=UTC)],
        span=[timedelta(0), timedelta(days=-1, microseconds=1), timedelta(days=400, hours=5, milliseconds=250)],
        id=UUID("12345678-1234-5678-1234-567812345678"),
        price=[Decimal("1.50"), Decimal("-0"), Decimal("1E+3"), Decimal("Infinity")],
        mode=["auto", 7, False, None],
    ),
    "enums": Enums(
        by_value=[Color.RED, Color.BLUE],
        by_number=[Level.LOW, Level.HIGH],
        flags=[Rights(0), Rights.READ, Rights.READ | Rights.WRITE],
        by_name=[Mixed.ONE, Mixed.PAIR],
        beyond=[Huge.LITTLE, Huge.MUCH],
        keys={Color.BLUE: Level.LOW},
    ),
    "items": Items(
        numbers={1, 2, 300},
        texts=frozenset({"a"}),
        pair=(1, "a"),
        row=(1.0, 2.5),
        deep={"b": [(1, {2, 1})], "a": []},
        by_number={2: "b", 1: "a"},
        by_pair={(1, "a"): True},
        by_day={date(2026, 11, 29): None},
        any={"a": [1, 1.0, True, None, "x", b"y", {"z": []}]},
        limited=5,
    ),
    "records": Records(
        note=Note("a", AT, Note("b")),
        slotted=Slotted(1),
        part=Part("bolt", 7),
        box=Box({"a": b"b"}),
        line=Line(Decimal("1.50"), {2, 1}),
        point=Point(1, 2.5),
        pair=Pair(1, "a"),
        options=[{"depth": 1}, {"depth": 2, "name": "b"}],
        model=Model(name="m", numbers=[1, 2], parts={"a": ["b"]}),
        crate=Crate([Color.RED]),
        renamed=9,
    ),
    "unions": Unions(
        optional=[Note("a"), None],
        direct=[1, "1", {"a": 1}, None],
        texts=["2026-11-29", b"1", date(2026, 11, 29), UUID(int=1)],
        number=[1.0, Level.LOW],
        structs=[Cat(9), Dog("rex")],
        kennels=[Cat(8), Kennel([Note("in"), Slotted(2)])],
        tagged=[
            Note("a"),
            Slotted(1),
            Part("b", 2),
            Line(Decimal("0.1"), {3}),
            {"depth": 1},
            Model(name="m"),
            Mixed.PAIR,
            5,
            "s",
            None,
        ],
        huge=[Huge.MUCH, 1.0],
    ),
    "own": Own(marks=["a", "b"]),
    "extras": Map(spots=[Spot(1), Spot(2)]),
    "upcast": Moved(name="Ada Lovelace"),
    "calls": Caller(count=10),
}
"""What each golden record is read as."""

WRITTEN: dict[str, Agent] = {
    **STATES,
    "extras": NewMap(spots=[NewSpot(1, [7]), NewSpot(3)], title="winter"),
    "upcast": Former(first="Ada", last="Lovelace"),
}
"""What each was first written as."""
