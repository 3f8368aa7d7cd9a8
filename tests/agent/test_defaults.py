"""The defaults of fields: each agent has its own, whatever kind of object it is, and what can't change is shared."""

import abc
import enum
from collections import OrderedDict, UserList, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from overwinter import Agent, InstanceManager, MemoryStore
from overwinter.agent._codec import encode_plain
from overwinter.agent._fields import codec


@dataclass
class Note:
    texts: list[str] = field(default_factory=list)


@attrs.define
class AttrsNote:
    texts: list[str] = attrs.field(factory=list)


class StructNote(msgspec.Struct):
    texts: list[str] = []


class FrozenNote(msgspec.Struct, frozen=True):
    texts: list[str] = []


class Model(pydantic.BaseModel):
    texts: list[str] = []


class FrozenModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)

    texts: list[str] = []


class Pair(NamedTuple):
    texts: list[str]
    number: int = 0


@dataclass(frozen=True)
class Spot:
    x: int
    tags: tuple[str, ...] = ()


@attrs.frozen
class AttrsSpot:
    x: int


class StructSpot(msgspec.Struct, frozen=True):
    x: int


class ModelSpot(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)

    x: int


class Color(enum.Enum):
    RED = 1


def agent_class(kind: Any, default: Any) -> Any:
    """An agent whose field ``held`` has a default that holds a list called ``texts``, or is one within a tuple."""

    class Held(Agent, name="held"):
        count: int = 0
        held: kind = default  # type: ignore[valid-type]

        async def write(self, text: str, fail: bool = False) -> None:
            getattr(self.held, "texts", self.held[0] if isinstance(self.held, tuple) else None).append(text)
            if fail:
                raise ValueError(text)

    return Held


class Before(Agent, name="held"):
    count: int = 0

    async def touch(self) -> None:
        self.count += 1


CHANGE = [
    (Note, Note()),
    (AttrsNote, AttrsNote()),
    (StructNote, StructNote()),
    (FrozenNote, FrozenNote()),
    (Model, Model()),
    (FrozenModel, FrozenModel()),
    (Pair, Pair([])),
    (tuple[list[str], ...], ([],)),
    (Note, msgspec.field(default=Note(), name="other")),
    (Note | None, Note()),
]


def texts(agent: Any) -> list[str]:
    found: list[str] = agent.held[0] if isinstance(agent.held, tuple) else agent.held.texts
    return found


@pytest.mark.parametrize(("kind", "default"), CHANGE, ids=lambda x: None)
async def test_a_default_that_can_change_is_each_agents_own(kind: Any, default: Any) -> None:
    cls, store = agent_class(kind, default), MemoryStore()
    async with InstanceManager(cls, store=store) as agents:
        await agents.get("eve")
        await agents.call("ada", cls.write, "ada's")
        with pytest.raises(ValueError, match="undone"):
            await agents.call("cyd", cls.write, "undone", fail=True)
        assert [texts(await agents.state(key)) for key in ("ada", "eve", "bob", "cyd")] == [["ada's"], [], [], []]
    async with InstanceManager(cls, store=store) as agents:
        assert [texts(await agents.state(key)) for key in ("ada", "eve", "bob", "cyd")] == [["ada's"], [], [], []]
    assert texts(cls()) == []


@pytest.mark.parametrize(("kind", "default"), CHANGE, ids=lambda x: None)
async def test_a_default_is_each_agents_own_where_the_record_lacks_the_field(kind: Any, default: Any) -> None:
    cls, store = agent_class(kind, default), MemoryStore()
    async with InstanceManager(Before, store=store) as agents:
        await agents.call("ada", Before.touch)
        await agents.call("eve", Before.touch)
    async with InstanceManager(cls, store=store) as agents:
        await agents.call("ada", cls.write, "ada's")
        assert [texts(await agents.state(key)) for key in ("ada", "eve")] == [["ada's"], []]


def test_a_default_that_is_changed_where_it_was_made_is_still_what_it_was() -> None:
    note = Note()
    cls = agent_class(Note, note)
    note.texts.append("later")
    assert cls().held == Note()


def test_a_name_of_the_field_in_the_store_stays_beside_the_copies() -> None:
    assert agent_class(Note, msgspec.field(default=Note(), name="other")).__struct_encode_fields__ == ("count", "other")


@pytest.mark.parametrize(
    ("kind", "default"),
    [
        (Spot, Spot(1, ("a",))),
        (AttrsSpot, AttrsSpot(1)),
        (StructSpot, StructSpot(1)),
        (ModelSpot, ModelSpot(x=1)),
        (Color, Color.RED),
        (str, "text"),
        (datetime, datetime(2020, 1, 1, tzinfo=UTC)),
        (UUID, UUID(int=1)),
        (Decimal, Decimal(1)),
        (tuple[Spot, ...], (Spot(1),)),
        (frozenset[int], frozenset({1})),
        (bytes | None, None),
    ],
    ids=lambda x: None,
)
def test_a_default_that_can_not_change_is_not_copied(kind: Any, default: Any) -> None:
    assert agent_class(kind, default)().held is default


def test_what_is_no_field_is_left_as_it_is() -> None:
    note = Note()

    class Holder(Agent):
        shared: ClassVar[Note] = note

    assert Holder.shared is note


def custom_class(default: Any) -> Any:
    """An agent with a format of its own, which keeps the texts in its default."""

    class Custom(Agent):
        held: Any = default

        def dump(self) -> Any:
            return list(self.held)

        @classmethod
        def load(cls, data: Any, version: int) -> Any:
            agent = cls()
            for text in data:
                agent._add(text)
            return agent

        def _add(self, text: str) -> None:
            if isinstance(self.held, dict):
                self.held[text] = None
            else:
                self.held.append(text)

        async def write(self, text: str, fail: bool = False) -> list[str]:
            self._add(text)
            if fail:
                raise ValueError(text)
            return list(self.held)

    return Custom


class Bag(dict[str, None]):
    pass


class Texts:
    """A class that nobody knows."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __iter__(self) -> Any:
        return iter(self.texts)

    def append(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize(
    "default",
    [deque(), deque(maxlen=9), Bag(), OrderedDict(), UserList(), Texts(), msgspec.field(default=deque())],
    ids=lambda default: type(default).__name__,
)
async def test_a_default_of_a_class_with_a_format_of_its_own_is_each_agents_own_too(default: Any) -> None:
    cls, store = custom_class(default), MemoryStore()
    keys = ("ada", "bob", "cyd")
    async with InstanceManager(cls, store=store) as agents:
        assert [await agents.call(key, cls.write, key) for key in keys] == [[key] for key in keys]
        with pytest.raises(ValueError, match="undone"):
            await agents.call("cyd", cls.write, "undone", fail=True)
    async with InstanceManager(cls, store=store) as agents:
        assert [list((await agents.state(key)).held) for key in (*keys, "dan")] == [*([key] for key in keys), []]


def test_a_class_with_a_format_of_its_own_may_have_defaults_of_any_kind() -> None:
    one_only = object()

    class Custom(Agent):
        mark: object = one_only
        made: Any = len
        needed: Any
        note: Note = Note()
        texts: list[str] = []
        numbers: deque[int] = msgspec.field(default_factory=deque)

        def dump(self) -> Any:
            return None

        @classmethod
        def load(cls, data: Any, version: int) -> Any:
            return cls(needed=1)

    one, other = Custom(needed=1), Custom(needed=1)
    assert (one.mark, one.made) == (one_only, len)
    assert one.note is not other.note
    assert one.texts is not other.texts
    assert one.numbers is not other.numbers


# ---------------------------------------------------------------- the defaults of what is within a field


class SharesAList(NamedTuple):
    n: int
    held: list[str] = []


@attrs.define
class AttrsSharesAList:
    n: int
    held: list[str] = []  # noqa: RUF008  # the fault


@dataclass(eq=False)
class Plain:
    """May be the default of a dataclass, which takes what has a hash."""

    texts: list[str] = field(default_factory=list)


@dataclass
class SharesAnObject:
    n: int
    held: Plain = Plain()  # noqa: RUF009  # the fault


class StructSharesAnObject(msgspec.Struct, omit_defaults=True):
    """Would leave out a default that was changed, as if it were as before."""

    n: int
    held: Note = Note()


class SharesWithin(msgspec.Struct):
    held: tuple[FrozenNote, ...] = (FrozenNote(),)
    n: int = 0


@pytest.mark.parametrize(
    "kind",
    [SharesAList, AttrsSharesAList, SharesAnObject, StructSharesAnObject, SharesWithin],
    ids=lambda x: x.__name__,
)
def test_a_default_within_a_value_that_all_agents_would_share_is_an_error_of_the_class(kind: Any) -> None:
    told = rf"agent class Shares: field found: \w+ {kind.__name__}: the default of its field held, .* a default_factory"
    with pytest.raises(TypeError, match=told):

        class Shares(Agent):
            found: dict[str, list[kind]] = {}  # type: ignore[valid-type]


class KeepsItsOwn(msgspec.Struct):
    spot: Spot = Spot(1)
    texts: list[str] = []
    by: dict[str, int] = {}
    note: Note = msgspec.field(default_factory=Note)


@attrs.define
class AttrsKeepsItsOwn:
    spot: AttrsSpot = AttrsSpot(1)
    texts: list[str] = attrs.field(factory=list)
    first: list[str] = attrs.Factory(lambda self: list(self.texts), takes_self=True)


@dataclass
class DataKeepsItsOwn:
    spot: StructSpot = StructSpot(1)  # noqa: RUF009  # it is frozen
    color: Color = Color.RED
    texts: list[str] = field(default_factory=list)


class TupleKeepsItsOwn(NamedTuple):
    spot: ModelSpot = ModelSpot(x=1)
    texts: tuple[str, ...] | None = None


class ModelKeepsItsOwn(pydantic.BaseModel):
    texts: list[str] = []


@pytest.mark.parametrize(
    "kind",
    [KeepsItsOwn, AttrsKeepsItsOwn, DataKeepsItsOwn, TupleKeepsItsOwn, ModelKeepsItsOwn],
    ids=lambda x: x.__name__,
)
def test_a_default_within_a_value_is_each_ones_own(kind: Any) -> None:
    it = codec(kind)
    raw = encode_plain([] if kind is TupleKeepsItsOwn else {})
    one, other = it.decode(raw), it.decode(raw)
    assert one == other
    assert one.texts is not other.texts or kind is TupleKeepsItsOwn


@pydantic.dataclasses.dataclass
class Bounded:
    n: int = pydantic.Field(gt=0)
    texts: list[str] = pydantic.Field(default_factory=list)


class Named(abc.ABC):
    @property
    @abc.abstractmethod
    def name(self) -> str: ...


@dataclass(slots=True)
class Dog(Named):
    name: str
    age: int = 0


class Positive:
    """Looks at each value, and keeps it where any would be."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            raise AttributeError(self.name)  # no default
        return instance.__dict__[self.name]

    def __set__(self, instance: Any, value: int) -> None:
        if value < 0:
            raise ValueError(value)
        instance.__dict__[self.name] = value


@dataclass
class Guarded:
    n: int = Positive()  # type: ignore[assignment]
    m: int = 0


@pytest.mark.parametrize(
    "value", [Bounded(n=1, texts=["a"]), Dog("rex", 3), Guarded(1, 2)], ids=lambda x: type(x).__name__
)
def test_what_stands_for_a_default_in_other_libraries_and_bases_is_none(value: Any) -> None:
    kind = type(value)

    class Holds(Agent, name="holds"):
        found: kind | None = None  # type: ignore[valid-type]

    it = codec(kind)
    again = it.decode(encode_plain(it.dump(value)))
    assert again == value
    assert type(again) is kind
