"""What goes in comes back equal in value and type, or is refused with the way out."""

from __future__ import annotations

import collections
import enum
import math
import sys
import typing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Self,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overwinter.agent._codec import encode_plain
from overwinter.agent._fields import _ABSTRACT, codec
from overwinter.errors import AgentStateError

T = TypeVar("T")
UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"
    PAIR = (1, 2)


class Open(enum.Enum):
    """Kept by its names; what it is asked for and hasn't, it makes up."""

    PAIR = (1, 2)
    TEXT = "text"

    @classmethod
    def _missing_(cls, value: object) -> Open:
        made = object.__new__(cls)
        made._value_, made._name_ = value, f"UNKNOWN_{value}"
        return made


class Negative(enum.IntEnum):
    ONE = 1
    FAR = -(2**70)


class Huge(enum.Enum):
    """Has a value that MessagePack's readers don't take for an enum's."""

    ONE = 1
    MUCH = 2**63


class Plain(enum.Enum):
    LOW = 1
    HIGH = 2


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class Rights(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Point(msgspec.Struct, frozen=True):
    x: int
    y: float = 0.0


class Renamed(msgspec.Struct, rename="camel", tag="r", array_like=False):
    long_name: str
    other_name: set[int] = msgspec.field(default_factory=set)


class Row(msgspec.Struct, array_like=True):
    a: int
    b: frozenset[str] = frozenset()


@dataclass
class Message:
    text: str
    at: datetime | None = None
    tags: list[str] = field(default_factory=list)

    @cached_property
    def upper(self) -> str:
        return self.text.upper()


@dataclass(frozen=True, slots=True)
class Slotted:
    n: int
    _hidden: str = ""


@dataclass
class Late:
    n: int
    twice: int = field(init=False, default=0)


@attrs.define
class Part:
    name: str
    _count: int = 0


class Pair(NamedTuple):
    left: int
    right: str | None = None


@attrs.define
class FromItself:
    first: int
    all: list[int] = attrs.Factory(lambda self: [self.first], takes_self=True)


class Options(TypedDict):
    depth: int
    name: NotRequired[str]


class OtherOptions(TypedDict):
    width: int


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Kennel(msgspec.Struct, tag=True):
    inside: list[Message | Slotted]


class UserMsg(pydantic.BaseModel):
    role: Literal["user"] = "user"
    text: str


class ToolMsg(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    call: str = pydantic.Field(alias="toolCall")
    at: datetime
    cost: Decimal = Decimal("0.10")
    ids: tuple[int, ...] = ()


class Box(msgspec.Struct, Generic[T]):
    content: T


@dataclass
class Crate(Generic[T]):
    items: list[T]


@dataclass
class IntCrate(Crate[int]):
    label: str = ""


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)


@dataclass
class Leaf:
    value: int


@dataclass
class Branch:
    """Recursive, and through a union that msgspec refuses."""

    children: list[Leaf | Branch]
    note: Options | None = None


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, all the way down; written apart from the code it judges."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, Decimal):
        return str(a) == str(b)
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(k, k2) and same(v, v2) for (k, v), (k2, v2) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, set | frozenset):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    if isinstance(a, msgspec.Struct):
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__struct_fields__)
    if isinstance(a, enum.Enum):
        return a is b
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return bool(a == b)


def round_trip(annotation: Any, value: Any) -> Any:
    it = codec(annotation)
    it.check(value, "Agent.field", 1)
    return it.decode(encode_plain(it.dump(value)))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
int64 = st.integers(-(2**63), 2**64 - 1)
utc = st.just(UTC)  # `fold` is no part of a time's value: == passes over it, and so does MessagePack
json_leaf = st.none() | st.booleans() | int64 | st.floats() | text | st.binary(max_size=5)
json = st.recursive(json_leaf, lambda x: st.lists(x, max_size=3) | st.dictionaries(text, x, max_size=3), max_leaves=6)

# annotation -> values; hashable ones may be keys and items of sets
HASHABLE: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (bool, st.booleans()),
    (int, int64),
    (UserId, int64),
    (str, text),
    (bytes, st.binary(max_size=5)),
    (datetime, (st.datetimes() | st.datetimes(timezones=utc)).map(lambda at: at.replace(fold=0))),
    (date, st.dates()),
    (time, (st.times() | st.times(timezones=utc)).map(lambda at: at.replace(fold=0))),
    (timedelta, st.timedeltas()),
    (UUID, st.uuids()),
    (Color, st.sampled_from(Color)),
    (Level, st.sampled_from(Level)),
    (Rights, st.sampled_from([Rights(0), Rights.READ, Rights.READ | Rights.WRITE])),
    (Literal["a", 1, True] | None, st.sampled_from(["a", 1, True, None])),
    (tuple[int, str], st.tuples(int64, text)),
    (tuple[int, ...], st.lists(int64, max_size=3).map(tuple)),
    (Point, st.builds(Point, int64, st.floats(allow_nan=False))),
    (Pair, st.builds(Pair, int64, st.none() | text)),
]
PLAIN: list[tuple[Any, st.SearchStrategy[Any]]] = [
    *HASHABLE,
    (None, st.none()),
    (Any, json),
    (float, st.floats()),
    (Decimal, st.decimals()),
    (bytearray, st.binary(max_size=5).map(bytearray)),
    (dict, st.dictionaries(text, json, max_size=3)),
    (list, st.lists(json, max_size=3)),
    (Mixed, st.sampled_from(Mixed)),
    (tuple[()], st.just(())),
    (Renamed, st.builds(Renamed, text, st.sets(int64, max_size=3))),
    (Row, st.builds(Row, int64, st.frozensets(text, max_size=3))),
    (Message, st.builds(Message, text, st.none() | st.datetimes(timezones=utc), st.lists(text, max_size=2))),
    (Slotted, st.builds(Slotted, int64, text)),
    (Part, st.builds(Part, text, int64)),
    (Options, st.fixed_dictionaries({"depth": int64}, optional={"name": text})),
    (Cat | Dog | None, st.none() | st.builds(Cat, int64) | st.builds(Dog, text)),
    (Cat | Kennel, st.builds(Cat, int64) | st.builds(Kennel, st.lists(st.builds(Message, text), max_size=2))),
    (Message | Slotted | Part, st.builds(Message, text) | st.builds(Slotted, int64) | st.builds(Part, text, int64)),
    (Message | int | str | None, st.none() | int64 | text | st.builds(Message, text)),
    (str | bytes | date | UUID, text | st.binary(max_size=3) | st.dates() | st.uuids()),
    (float | Plain, st.floats() | st.just(1.0) | st.sampled_from(Plain)),
    (float | Level | Bits | None, st.floats() | st.just(1.0) | st.sampled_from(Level) | st.sampled_from(Bits)),
    (Huge | float, st.floats() | st.just(1.0) | st.sampled_from(Huge)),
    (Negative | str | Slotted, text | st.sampled_from(Negative) | st.builds(Slotted, int64)),
    (int | float | str | None, st.none() | int64 | st.floats() | text),
    (Literal["auto"] | int | str, st.just("auto") | int64 | text),  # noqa: PYI051  # people write it
    (Options | OtherOptions | Point, st.just({"depth": 1}) | st.just({"width": 2}) | st.builds(Point, int64)),
    (list[int] | Color | dict[str, int], st.lists(int64, max_size=2) | st.sampled_from(Color) | st.just({"a": 1})),
    (Box[int], st.builds(Box, int64)),
    (Crate[Color], st.builds(Crate, st.lists(st.sampled_from(Color), max_size=2))),
    (IntCrate, st.builds(IntCrate, st.lists(int64, max_size=2), text)),
]


def nested(inner: tuple[Any, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]]:
    annotation, values = inner
    items = st.lists(values, max_size=3)
    forms = [
        (list[annotation], items),
        (tuple[annotation, ...], items.map(tuple)),
        (tuple[annotation, int], st.tuples(values, int64)),
        (dict[str, annotation], st.dictionaries(text, values, max_size=3)),
        (dict[int, annotation], st.dictionaries(int64, values, max_size=3)),
        (Optional[annotation], st.none() | values),  # noqa: UP045  # None | None is no annotation
        (Union[annotation, Late], values | st.builds(Late, int64)),  # noqa: UP007  # as above
        (Crate[annotation], st.builds(Crate, items)),
    ]
    return st.sampled_from([form for form in forms if annotation is not Any or "Late" not in str(form[0])])


def hashed(inner: tuple[Any, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]]:
    annotation, values = inner
    return st.sampled_from(
        [
            (set[annotation], st.sets(values, max_size=4)),
            (frozenset[annotation], st.frozensets(values, max_size=4)),
            (dict[annotation, int], st.dictionaries(values, int64, max_size=3)),
        ]
    )


typed = st.recursive(st.sampled_from(PLAIN), lambda pair: pair.flatmap(nested), max_leaves=3)
cases = (typed | st.sampled_from(HASHABLE).flatmap(hashed).flatmap(nested)).flatmap(
    lambda pair: st.tuples(st.just(pair[0]), pair[1])
)


@settings(derandomize=True, max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases)
def test_what_goes_in_comes_back(case: tuple[Any, Any]) -> None:
    annotation, value = case
    assert same(value, round_trip(annotation, value))


@pytest.mark.parametrize(("annotation", "values"), PLAIN, ids=lambda x: str(x)[:40])
def test_every_type_comes_back(annotation: Any, values: st.SearchStrategy[Any]) -> None:
    @settings(derandomize=True, max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(values)
    def check(value: Any) -> None:
        it = codec(annotation)
        assert same(value, round_trip(annotation, value))
        assert it.ok(value, 99) or it.fits(value, 99)

    check()


@settings(derandomize=True, max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(PLAIN).flatmap(nested), st.sampled_from(PLAIN).flatmap(nested).flatmap(lambda pair: pair[1]))
def test_what_passes_the_check_comes_back_whatever_it_is(target: tuple[Any, Any], value: Any) -> None:
    """A value of one type offered to another: refused, or the same afterwards."""
    it = codec(target[0])
    fast = it.ok(value, 99)
    slow = it.fits(value, 99)
    assert slow or not fast, "the fast check never allows what the slow one refuses"
    if fast:
        assert same(value, it.decode(encode_plain(it.dump(value))))


class Str(str):
    __slots__ = ()


class Int(int):
    pass


class SubPoint(Point):
    pass


@dataclass
class SubMessage(Message):
    pass


BERLIN = ZoneInfo("Europe/Berlin")
LIES: list[tuple[Any, Any, str]] = [
    (int, True, "expected int, got bool|exactly int, got bool"),
    (int, 1.0, "expected int, got float"),
    (int, Level.LOW, "subclass"),
    (int, Int(1), "subclass"),
    (str, Str("secret"), "subclass"),
    (float, True, "expected float, got bool"),
    (float, 2**53 + 1, "expected float, got int"),
    (float, 2**70, "expected float, got int"),
    (bool, 1, "expected bool, got int"),
    (bytes, bytearray(b""), "expected bytes"),
    (list[int], (1,), r"expected list\[int\], got tuple"),
    (list[int], [1, "secret"], r"Agent\.field\[1\]: expected int, got str"),
    (list[str], [Str("x")], r"field\[0\].*subclass"),
    (dict[str, int], collections.defaultdict(int), "defaultdict, a subclass"),
    (dict[str, int], collections.OrderedDict(), "OrderedDict, a subclass"),
    (dict[str, int], {1: 1}, r"field\[key 0\]: expected str, got int"),
    (dict[str, int], {"secret": None}, r"field\[entry 0\]: expected int, got NoneType"),
    (dict[str, int], {Str("x"): 1}, "subclass"),
    (dict, {1: 1}, "declare the keys' type"),
    (set[int], frozenset({1}), "expected set"),
    (set[int], {"a"}, "expected int"),
    (tuple[int, str], (1,), "tuple of 1 items"),
    (tuple[int, str], [1, "a"], "got list"),
    (tuple[int, ...], (1, "x"), r"\[1\]: expected int"),
    (Point, SubPoint(1), "SubPoint, a subclass"),
    (Message, SubMessage("x"), "SubMessage, a subclass"),
    (list[Message], [Message("a"), Message(5)], r"field\[1\]\.text: expected str, got int"),  # type: ignore[arg-type]
    (Message, Message("a", datetime(2020, 1, 1, tzinfo=BERLIN)), r"\.at: .*astimezone\(timezone\.utc\)"),
    (datetime, datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=1))), "keeps no zone"),
    (datetime, date(2020, 1, 1), "got date"),
    (date, datetime(2020, 1, 1, tzinfo=UTC), "subclass"),
    (time, time(1, tzinfo=timezone(timedelta(hours=1))), "keeps no zone"),
    (Any, (1, 2), "JSON values and bytes"),
    (Any, {"a": {1}}, r"field\[entry 0\]: set under Any"),
    (Any, [Decimal(1)], r"field\[0\]: Decimal under Any"),
    (Any, {1: 2}, "dict\\[int, str\\]"),
    (Any, [Str("x")], "Str under Any"),
    (Any, collections.defaultdict(list), "defaultdict under Any"),
    (Any, Level.LOW, "Level under Any"),
    (Any, Point(1), "its real type"),
    (dict[str, Any], {"a": datetime(2020, 1, 1, tzinfo=UTC)}, "datetime under Any"),
    (int | None, "x", "expected int | None, got str"),
    *((float | kind, number, r"write float\(value\)") for kind in (Plain, Level, Rights, Bits) for number in (1, 7)),
    (Plain | float | None, 1, r"write float\(value\)"),
    (Annotated[float, msgspec.Meta(ge=0)] | Level, 2, r"write float\(value\)"),
    (tuple[float | Plain, ...], (1,), r"field\[0\]: .*write float\(value\)"),
    (dict[float | Level, float | Bits], {1.0: 1}, r"field\[entry 0\]: .*write float\(value\)"),
    (dict[float | Level, float | Bits], {1: 1.0}, r"field\[key 0\]: .*write float\(value\)"),
    (Crate[float | Plain], Crate([1]), r"items\[0\]: .*write float\(value\)"),
    (int | str, 1.5, "got float"),
    (Literal["a", 1], True, "got bool"),
    (Literal["a", 1], "b", "got another str"),
    (Color, "red", "expected Color, got str"),
    (Open, Open("secret"), "a value of Open that is none of its members"),
    (list[Open | None], [Open("secret")], r"field\[0\]: a value of Open that is none"),
    (Options, {}, r"field\.depth: missing"),
    (Options, {"depth": 1, "extra": 2}, "holds 1 more than Options declares"),
    (Options, {"depth": 1, "name": 2}, r"field\.name: expected str"),
    (Options, {Str("depth"): 1}, "no plain str"),
    (Pair, (1, None), "expected Pair, got tuple"),
    (Message | Slotted, Options(depth=1), "got dict"),
    (Message | Slotted, SubMessage("x"), "SubMessage"),
    (list[Message | Slotted], [Slotted("x")], r"field\[0\]\.n: expected int, got str"),  # type: ignore[arg-type]
    (Options | OtherOptions | Point, {"depth": "x"}, "missing|expected|more than"),
    (UserMsg, ToolMsg(toolCall="x", at=datetime(2020, 1, 1, tzinfo=UTC)), "expected UserMsg, got ToolMsg"),
    (Crate[int], Crate(["secret"]), r"items\[0\]: expected int, got str"),
    (IntCrate, IntCrate(["secret"]), r"items\[0\]: expected int, got str"),  # type: ignore[list-item]
    (Annotated[int, msgspec.Meta(ge=0)], "x", "expected int"),
]


@pytest.mark.parametrize(("annotation", "value", "told"), LIES, ids=lambda x: None)
def test_what_would_not_come_back_is_refused(annotation: Any, value: Any, told: str) -> None:
    it = codec(annotation)
    assert not it.ok(value, 99)
    with pytest.raises(AgentStateError, match=told) as caught:
        it.check(value, "Agent.field", 1)
    assert "secret" not in str(caught.value), "an error names places and types, never values"
    assert str(caught.value).startswith("Agent.field")


def test_attributes_that_a_class_does_not_declare_are_refused() -> None:
    message = Message("a")
    message.stray = 1  # type: ignore[attr-defined]
    with pytest.raises(AgentStateError, match="holds 1 more than Message declares"):
        codec(Message).check(message, "Agent.field")


class Bare:
    pass


@dataclass
class Later:
    """Its objects have ``uses`` only once it is set."""

    name: str = ""
    uses: int | None = field(default=None, init=False)


@dataclass(slots=True)
class OnBare(Bare):
    """Has slots, and the ``__dict__`` of its base."""

    name: str = ""


@dataclass
class WithDefault:
    name: str = ""


@attrs.define
class AttrsOnBare(Bare):
    name: str = ""


def without_name(value: Any) -> Any:
    del value.name
    return value


@pytest.mark.parametrize(
    "make",
    [Later, OnBare, AttrsOnBare, lambda: without_name(WithDefault())],
)
def test_attributes_that_a_class_does_not_declare_are_refused_where_a_field_is_not_among_them(make: Any) -> None:
    value = make()
    it = codec(type(value))
    value.stray = 1
    assert not it.ok(value, 99)
    with pytest.raises(AgentStateError, match=f"holds 1 more than {type(value).__name__} declares"):
        it.check(value, "Agent.field")


@pytest.mark.parametrize("value", [Later(), Later("a"), OnBare("a"), AttrsOnBare("a")], ids=lambda x: None)
def test_a_field_may_be_in_a_slot_or_in_the_class(value: Any) -> None:
    assert codec(type(value)).ok(value, 99), "by the fast check"
    assert round_trip(type(value), value) == value


def test_a_deleted_attribute_is_refused() -> None:
    message = Message("a")
    del message.text
    with pytest.raises(AgentStateError, match=r"Agent\.field\.text: missing"):
        codec(Message).check(message, "Agent.field")


def test_what_is_derived_may_be_cached() -> None:
    message = Message("a")
    assert message.upper == "A"
    assert round_trip(Message, message) == message


@attrs.frozen
class Caching:
    """Has a slot for what it caches."""

    name: str

    @cached_property
    def upper(self) -> str:
        return self.name.upper()

    @cached_property
    def unwritable(self) -> object:
        return object()


@attrs.frozen(slots=False)
class CachingInDict:
    name: str

    @cached_property
    def upper(self) -> str:
        return self.name.upper()

    @cached_property
    def unwritable(self) -> object:
        return object()


class Undecorated(Caching):
    pass


@dataclass(frozen=True)
class Watched:
    name: str
    shared: ClassVar[int] = 5

    def __getattr__(self, name: str) -> Any:
        if name in ("upper", "unwritable"):
            return self.name.upper()
        raise AttributeError(name)


@dataclass(frozen=True, slots=True)
class WatchedAll:
    name: str
    shared: ClassVar[list[object]] = [object()]

    def __getattribute__(self, name: str) -> Any:
        return "A" if name in ("upper", "unwritable") else object.__getattribute__(self, name)


@pytest.mark.parametrize("kind", [Caching, CachingInDict, Undecorated, Watched, WatchedAll])
def test_only_fields_are_written(kind: Any) -> None:
    value = kind("a")
    fresh = wire(kind, value)
    assert value.upper == "A"
    assert value.unwritable is not None
    assert wire(kind, value) == fresh == {"name": "a"}
    assert round_trip(set[kind], {value}) == {value}
    assert wire(list[kind | Leaf], [value]) == [[kind.__name__, {"name": "a"}]]


def test_what_has_nothing_but_fields_is_written_by_msgspec() -> None:
    for kind in (Slotted, Message, Late, Tree, Leaf, attrs.make_class("Made", {"n": attrs.field(type=int)})):
        assert codec(kind).plain_dump


def test_an_int_where_a_float_is_declared_comes_back_as_the_float() -> None:
    for annotation in (
        dict[str, float],
        dict[str, float | Color],
        dict[str, Huge | float],
    ):  # kept by text, not by ints
        back = round_trip(annotation, {"a": 3})
        assert back == {"a": 3.0}
        assert type(back["a"]) is float


def test_utc_by_another_name_is_utc() -> None:
    assert round_trip(datetime, datetime(2020, 1, 1, tzinfo=ZoneInfo("UTC"))) == datetime(2020, 1, 1, tzinfo=UTC)


class Anything(msgspec.Struct, frozen=True):
    """May be in a set with a list in it, for its hash is that of its name."""

    name: str
    data: Any = None

    def __hash__(self) -> int:
        return hash(self.name)


class Around(msgspec.Struct, frozen=True):
    inside: Anything


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (set[Anything], {Anything("a", [1, [2]])}),
        (frozenset[tuple[Anything, ...]], frozenset({(Anything("a", [1]), Anything("b", {"c": [1]}))})),
        (set[Around], {Around(Anything("a", [1]))}),
        (list[set[Anything] | None], [None, {Anything("a", [1])}]),
    ],
    ids=str,
)
def test_a_list_under_any_comes_back_as_one_from_a_set_too(annotation: Any, value: Any) -> None:
    back = round_trip(annotation, value)
    assert same(back, value)
    assert repr(back) == repr(value)


def test_any_may_be_the_item_or_the_key_itself() -> None:
    assert codec(set[Any]).plain_load
    assert codec(dict[tuple[Any, ...], Any]).plain_load


# ---------------------------------------------------------------- depth


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_any_is_at_most_a_hundred_levels_deep() -> None:
    it = codec(Any)
    it.check(deep(100), "Agent.field")
    it.check(deep(99), "Agent.field", 1)
    for too_many in (deep(101), deep(10_000)):
        with pytest.raises(AgentStateError, match="more than 100 levels"):
            it.check(too_many, "Agent.field")


def test_a_cycle_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    tree = Tree(1)
    tree.children.append(tree)
    branch = Branch([])
    branch.children.append(branch)
    for annotation, value in ((Any, cycle), (Tree, tree), (Branch, branch)):
        with pytest.raises(AgentStateError, match="within itself"):
            codec(annotation).check(value, "Agent.field")


def levels_of(data: Any) -> int:
    items = data.values() if isinstance(data, dict) else data if isinstance(data, list) else None
    return 0 if items is None else 1 + max(map(levels_of, items), default=0)


@pytest.mark.parametrize(
    ("annotation", "leaf", "wrap"),
    [
        (Tree, Tree(1), lambda inner: Tree(2, [inner])),
        (Branch, Leaf(1), lambda inner: Branch([inner])),
        (Leaf | Branch, Leaf(1), lambda inner: Branch([inner])),
    ],
)
def test_what_passes_is_at_most_a_hundred_levels_deep_on_the_wire(annotation: Any, leaf: Any, wrap: Any) -> None:
    it = codec(annotation)
    value = leaf if annotation is not Branch else wrap(leaf)
    passed = 0
    for _ in range(120):
        if it.fits(value, 100):
            wire = encode_plain(it.dump(value))
            assert levels_of(msgspec.msgpack.decode(wire)) <= 100
            assert it.decode(wire) == value
            passed += 1
        value = wrap(value)
    assert 20 < passed < 60, "both sides of the limit were met"


# ---------------------------------------------------------------- what stands for a builtin container


@pytest.mark.parametrize("kind", _ABSTRACT, ids=lambda kind: kind.__name__)
def test_an_abstract_container_comes_back_as_the_builtin_it_stands_for(kind: Any) -> None:
    made = _ABSTRACT[kind]
    value: Any = {"a": 1} if made is dict else made([1])
    for annotation in (kind, kind[str, int] if made is dict else kind[int]):
        assert same(round_trip(annotation, value), value)
        assert same(round_trip(dict[str, annotation | None], {"a": value}), {"a": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("List", [1]),
        ("Dict", {"a": 1}),
        ("Set", {1}),
        ("FrozenSet", frozenset({1})),
        ("Tuple", (1, "a")),
        ("Sequence", [1]),
        ("MutableSequence", [1]),
        ("Collection", [1]),
        ("Mapping", {"a": 1}),
        ("MutableMapping", {"a": 1}),
        ("AbstractSet", {1}),
        ("MutableSet", {1}),
    ],
)
def test_a_bare_container_of_typings_is_the_builtin(name: str, value: Any) -> None:
    annotation = getattr(typing, name)
    assert codec(annotation).shape(set()) == codec(type(value)).shape(set())
    for each in (annotation, list[annotation]):
        held = value if each is annotation else [value]
        assert same(round_trip(each, held), held)


# ---------------------------------------------------------------- the wire


def wire(annotation: Any, value: Any) -> Any:
    it = codec(annotation)
    it.check(value, "Agent.field")
    return msgspec.msgpack.decode(encode_plain(it.dump(value)))


def test_members_that_msgspec_can_not_tell_apart_are_tagged_with_their_names() -> None:
    values = [UserMsg(text="hi"), Message("x"), {"depth": 1}, None, 5, "s"]
    annotation = list[UserMsg | Message | Options | int | str | None]
    assert [w and w[0] for w in wire(annotation, values)] == ["UserMsg", "Message", "Options", None, "int", "str"]
    assert round_trip(annotation, values) == values


def test_an_optional_needs_no_tag() -> None:
    assert wire(Branch | None, Branch([Leaf(1)])) == {"children": [["Leaf", {"value": 1}]], "note": None}


def test_structs_keep_their_own_tags() -> None:
    assert wire(Cat | Dog, Dog("rex")) == {"type": "Dog", "name": "rex"}
    assert wire(Cat | Kennel, Kennel([Slotted(1)])) == {
        "type": "Kennel",
        "inside": [["Slotted", {"n": 1, "_hidden": ""}]],
    }


def test_what_is_written_for_a_set_does_not_depend_on_its_history() -> None:
    one, other = {8, 0}, {0, 8}
    assert list(one) != list(other), "or this test shows nothing"
    for annotation, wrap in ((set[int], lambda x: x), (list[Renamed], lambda x: [Renamed("n", x)])):
        it = codec(annotation)
        assert encode_plain(it.dump(wrap(one))) == encode_plain(it.dump(wrap(other)))
        assert it.ordered


def test_a_set_does_not_change_what_msgspec_would_write() -> None:
    assert wire(Renamed, Renamed("n", {2, 1})) == {"type": "r", "longName": "n", "otherName": [1, 2]}
    assert wire(Row, Row(1, frozenset({"b", "a"}))) == [1, ["a", "b"]]


@pytest.mark.parametrize("kind", [Open, Huge])
def test_an_enum_that_msgspec_can_not_read_is_kept_by_its_names(kind: Any) -> None:
    assert [wire(kind, member) for member in kind] == [member.name for member in kind]
    assert all(round_trip(kind, member) is member for member in kind)


def test_an_attrs_default_may_be_made_from_the_object() -> None:
    assert round_trip(FromItself, FromItself(1, [5])) == FromItself(1, [5])
    assert codec(FromItself).decode(encode_plain({"first": 1})) == FromItself(1, [1])


def test_a_hidden_attrs_field_is_not_lost() -> None:
    assert wire(Part, Part("bolt", 7)) == {"name": "bolt", "_count": 7}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"\x92\xa3Foo\x01",
        b"\x92\xa4Leaf\xc0",
        b"\x93\xa4Leaf\x01\x01",
        b"\x81\xa1a\x01",
        b"\x01",
    ],
)
@pytest.mark.parametrize(
    "annotation", [Leaf | Branch, Branch, list[Leaf | Branch], Part, Mixed, set[Mixed], Cat | Kennel]
)
def test_other_bytes_are_a_decoding_error(annotation: Any, raw: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, msgspec.ValidationError)):
        codec(annotation).decode(raw)


# ---------------------------------------------------------------- pydantic


def test_models_come_back_with_all_they_had() -> None:
    tool = ToolMsg(toolCall="x", at=datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2))), ids=(1, 2))
    back = round_trip(list[UserMsg | ToolMsg], [UserMsg(text="hi"), tool])
    assert back == [UserMsg(text="hi"), tool]
    assert type(back[1].ids) is tuple
    assert back[1].at.utcoffset() == timedelta(hours=2)
    assert round_trip(ToolMsg | None, tool) == tool


def test_models_are_never_exact() -> None:
    assert codec(list[Message]).exact
    assert not codec(list[Message | UserMsg]).exact


# ---------------------------------------------------------------- exactness, shape


class Checked(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError("negative")


@attrs.define
class Validated:
    n: int = attrs.field(validator=attrs.validators.ge(0))


@pytest.mark.parametrize("annotation", [Checked, Validated, Annotated[int, msgspec.Meta(ge=0)], UserMsg])
def test_what_runs_code_when_it_is_read_is_not_exact(annotation: Any) -> None:
    assert not codec(list[annotation]).exact


# ---------------------------------------------------------------- an __init__ or __new__ of one's own


@dataclass
class OwnSignature:
    parts: list[Message | Leaf]
    author: str

    def __init__(self, author: str, *texts: str) -> None:
        self.author, self.parts = author, [Message(text) for text in texts]


@dataclass
class OwnInit:
    n: int
    many: set[int] | list[int] = field(default_factory=list)

    def __init__(self, n: int) -> None:
        self.n, self.many = n + 1, {n}


@dataclass(slots=True)
class OwnNew:
    n: int
    many: set[int] | list[int]

    def __new__(cls, n: int, many: set[int]) -> Self:
        return object.__new__(cls)


@attrs.define
class AttrsInit:
    n: int
    many: set[int] | list[int] = attrs.field(factory=list)

    def __init__(self, n: int) -> None:
        self.__attrs_init__(n + 1, {n})  # type: ignore[attr-defined]


@attrs.define
class Converted:
    n: int = attrs.field(converter=lambda n: n + 1)
    many: set[int] | list[int] = attrs.Factory(lambda self: {self.n}, takes_self=True)


class Tuple(NamedTuple):
    n: int
    many: set[int] | tuple[int, ...] = ()


class TupleNew(Tuple):
    __slots__ = ()

    def __new__(cls, n: int) -> Self:
        return super().__new__(cls, n + 1, {n})


@pytest.mark.parametrize(
    "value",
    [
        OwnSignature("ada", "hi"),
        OwnInit(3),
        OwnNew(3, {4}),
        AttrsInit(3),
        Converted(3),
        TupleNew(3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_init_or_new_would_make_of_it_changes_nothing(value: Any) -> None:
    back = value
    for _ in range(3):
        back = round_trip(type(value), back)
        assert same(back, value)


@pytest.mark.parametrize(
    ("annotation", "raw", "value"),
    [
        (OwnInit, {"n": 4}, (4, [])),
        (AttrsInit, {"n": 4}, (4, [])),
        (Converted, {"n": 4}, (4, {4})),
        (TupleNew, [4], (4, ())),
    ],
    ids=str,
)
def test_what_a_record_lacks_is_the_default(annotation: Any, raw: Any, value: Any) -> None:
    back = codec(annotation).decode(encode_plain(raw))
    assert type(back) is annotation
    assert (back.n, back.many) == value


@dataclass
class Counted:
    n: int
    many: set[int] | list[int]
    seen: int = field(init=False)

    def __post_init__(self) -> None:
        self.n, self.seen = self.n + 1, 0


@attrs.define
class Hooked:
    n: int = attrs.field(validator=attrs.validators.lt(10))
    many: set[int] | list[int]
    told: list[str] = attrs.field(factory=list)

    def __attrs_pre_init__(self) -> None:
        self.told = ["before"]

    def __attrs_post_init__(self) -> None:
        self.told = [*self.told, f"after {self.n}"]


def test_hooks_run_and_are_no_init() -> None:
    value = Counted(1, {2})
    value.seen = 7
    assert not codec(Counted).exact
    back = round_trip(Counted, value)
    assert (back.n, back.seen) == (3, 7)
    assert not codec(Hooked).exact
    assert round_trip(Hooked, Hooked(1, {2}, [])).told == ["after 1", "after 1"]
    value = Hooked(1, {2}, [])
    value.told = []
    with attrs.validators.disabled():
        value.n = 11
    with pytest.raises(ValueError, match="must be < 10"):
        round_trip(Hooked, value)


@attrs.frozen(cache_hash=True)
class Hashed:
    n: int


def test_a_hash_that_attrs_keeps_is_made_anew() -> None:
    assert round_trip(set[Hashed], {Hashed(1), Hashed(2)}) == {Hashed(1), Hashed(2)}


# ---------------------------------------------------------------- generic classes on top of each other


U = TypeVar("U")


@dataclass
class Listed(Crate[list[U]], Generic[U]):
    extra: U | None = None


@dataclass
class IntListed(Listed[int]):
    pass


@dataclass
class Tagged(Crate[int], Generic[T]):
    """Its own variable is also the one that Crate calls its own."""

    tag: T


class DateBox(Box[date]):
    pass


class StrBoth(Box[dict[str, U]], Generic[U]):
    other: U


@dataclass
class Named(Generic[U]):
    name: U


@dataclass
class DateNamed(Named[date]):
    pass


@dataclass
class Both(IntCrate, DateNamed):
    """For msgspec the name may be anything: it takes the arguments of the first base only."""


class Keyed(TypedDict, Generic[T]):
    key: T


class ListKeyed(Keyed[list[U]], Generic[U]):
    other: U


class DateKeyed(ListKeyed[date]):
    more: int


@dataclass
class Holder(Generic[T]):
    """For msgspec it holds crates of its own variable, which a class without arguments isn't."""

    crate: Crate  # type: ignore[type-arg]
    item: T


DAY = date(2020, 1, 1)


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (Listed[date], Listed([[DAY]], DAY), Listed([DAY], DAY)),
        (Listed[date], Listed([[DAY]], DAY), Listed([[DAY]], [DAY])),
        (IntListed, IntListed([[1]], 2), IntListed([["x"]], 2)),  # type: ignore[list-item]
        (Tagged[str], Tagged([1], "a"), Tagged(["x"], "a")),  # type: ignore[list-item]
        (Tagged[date], Tagged([1], DAY), Tagged([1], 1)),
        (list[Tagged[Leaf | Message]], [Tagged([1], Leaf(1))], [Tagged([Leaf(1)], Leaf(1))]),  # type: ignore[list-item]
        (DateBox, DateBox(DAY), DateBox("x")),  # type: ignore[arg-type]
        (StrBoth[date], StrBoth({"a": DAY}, DAY), StrBoth({"a": "x"}, DAY)),
        (Both, Both(DAY, [1], "x"), Both("x", [1], "x")),  # type: ignore[arg-type]
        (ListKeyed[date], {"key": [DAY], "other": DAY}, {"key": DAY, "other": DAY}),
        (DateKeyed, {"key": [DAY], "other": DAY, "more": 1}, {"key": ["x"], "other": DAY, "more": 1}),
        (Holder[date], Holder(Crate(["x", 1]), DAY), Holder(Crate([DAY]), DAY)),
    ],
    ids=str,
)
def test_each_class_says_what_the_variables_of_its_bases_stand_for(annotation: Any, right: Any, wrong: Any) -> None:
    assert same(round_trip(annotation, right), right)
    with pytest.raises(AgentStateError):
        codec(annotation).check(wrong, "Agent.field", 1)


def test_msgspec_reads_what_it_sees_as_we_do() -> None:
    for annotation in (Listed[date], IntListed, Tagged[str], DateBox, StrBoth[date], Keyed[date]):
        assert codec(annotation).plain_load


def test_a_constraint_stays_beside_a_union() -> None:
    annotation = dict[str, Annotated[int, msgspec.Meta(ge=0)] | Message | Leaf]
    assert round_trip(annotation, {"a": 1, "b": Leaf(2)}) == {"a": 1, "b": Leaf(2)}
    with pytest.raises(msgspec.ValidationError, match="Expected `int` >= 0"):
        round_trip(annotation, {"a": -1})


def test_the_shape_names_fields_and_types_but_no_modules() -> None:
    assert codec(list[Message | Leaf]).shape(set()) == (
        "list[Message(text:str,at?:datetime|None,tags?:list[str])|Leaf(value:int)]"
    )
    assert codec(Tree).shape(set()) == "Tree(value:int,children?:list[Tree])"
    assert codec(Color).shape(set()) != codec(Level).shape(set())
    assert codec(Annotated[int, msgspec.Meta(ge=0)]).shape(set()) == "int(ge=0)"
    assert codec(UserMsg).shape(set()) == "UserMsg(role?:Literal[user],text:str)"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement is of Python 3.12")
def test_an_alias_is_what_it_stands_for() -> None:
    names: dict[str, Any] = {"Message": Message, "Leaf": Leaf}
    exec("type Said = Message | Leaf\ntype Maybe[X] = X | None\ntype Json = dict[str, Json] | int", names)
    said: Any = names["Said"]
    assert round_trip(list[said], [Message("a"), Leaf(1)]) == [Message("a"), Leaf(1)]
    assert round_trip(names["Maybe"][said], None) is None
    assert codec(names["Maybe"][int]).shape(set()) == "int|None"
    with pytest.raises(TypeError, match="recursive alias Json can't be kept: use Any, or a class"):
        codec(names["Json"])


# ---------------------------------------------------------------- what can't be kept at all


class NewTypeless:
    pass


@dataclass
class Initialised:
    n: int
    m: int | str = 0


@dataclass
class Gauge:
    value: int
    limit: int = 100


def capped() -> Any:
    """A property that keeps its value elsewhere, and not all of it."""
    return property(lambda self: self._value, lambda self, value: setattr(self, "_value", min(value, 100)))


Gauge.value = capped()


@attrs.define(slots=False)
class AttrsGauge:
    value: int


AttrsGauge.value = capped()


@dataclass(slots=True)
class SlotGauge:
    value: int
    _value: int = 0


SlotGauge.value = capped()


class StructGauge(Point):
    value: int = 0


StructGauge.value = property(lambda self: self.x)


class Hidden(pydantic.BaseModel):
    password: str = pydantic.Field(default="", exclude=True)


def twin() -> type:
    @dataclass
    class Message:
        other: int

    return Message


class Arrayed(msgspec.Struct, array_like=True):
    inside: Message | Leaf


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (collections.deque[int], "use list"),
        ([int], r"\[<class 'int'>\] can't be kept: write list\[\.\.\.\]"),
        (collections.OrderedDict[str, int], "use dict"),
        (collections.abc.Iterable, "use list"),
        (list[collections.abc.Iterable[int]], "use list"),
        (collections.defaultdict[str, int], "use dict and setdefault"),
        (Path, "use str"),
        (complex, r"use tuple\[float, float\]"),
        (NewTypeless, "use a Struct or a dataclass, or mark the field transient"),
        (collections.abc.Callable[[], int], r"transient\(\)"),
        (type(lambda: 1), "transient"),
        (memoryview, "use bytes"),
        (msgspec.Raw, "use bytes"),
        (msgspec.msgpack.Ext, "use bytes"),
        (int | msgspec.UnsetType, "use None"),
        (Literal[b"x"], "Literal of bytes"),  # type: ignore[valid-type]
        (list[int] | list[str], "two members called list"),
        (Message | twin(), "two members called Message"),
        (dict[Mixed, int], "can't be the key"),
        (dict[frozenset[str], int], "can't be the key"),
        (dict[tuple[int, Anything], int], "can't be the key .* Any, .*: give the field its real type"),
        (Gauge, "dataclass Gauge has a field value that .* hides, such as a property, .*: call one"),
        (AttrsGauge, "attrs AttrsGauge has a field value that"),
        (SlotGauge, "dataclass SlotGauge has a field value that"),
        (StructGauge, "struct StructGauge has a field value that"),
        (list[Gauge | Message], "has a field value that"),
        (Any | Message, "Any beside other types"),
        (Hidden, "password is declared exclude=True"),
        (Arrayed, "array_like"),
        (Annotated[list[Message | Leaf], msgspec.Meta(max_length=2)], "msgspec.Meta constraint"),
    ],
    ids=str,
)
def test_a_type_that_can_not_come_back_is_refused_with_the_way_out(annotation: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told) as caught:
        codec(annotation, "agent class Cart: field items")
    assert str(caught.value).startswith("agent class Cart: field items")
