"""An agent's state as bytes and back: versions, extras, rollback, and every way it can go wrong."""

from __future__ import annotations

import contextlib
import enum
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overwinter.agent._schema import Schema, UnresolvedAnnotation, collect_upcasts, is_upcast, upcast
from overwinter.errors import (
    AgentStateError,
    CorruptRecordError,
    MigrationError,
    MissingInitialError,
    NewerRecordError,
)
from overwinter.record import check_depth

if TYPE_CHECKING:
    from nowhere import Elsewhere  # type: ignore[import-not-found]


class Base(msgspec.Struct, kw_only=True, dict=True, weakref=True):
    pass


class Size(enum.StrEnum):
    S = "s"


class Line(msgspec.Struct):
    sku: str
    price: Decimal


@dataclass
class Note:
    text: str


class Hint(TypedDict):
    hint: str


class Tool(pydantic.BaseModel):
    name: str
    args: dict[str, Any] = {}
    ratio: float = 0.0
    raw: bytes = b""
    _secret: str = "none"


class Seen(pydantic.BaseModel):
    last: deque[Any] = deque()
    hits: defaultdict[str, int] = defaultdict(int)
    lists: defaultdict[str, list[int]] = defaultdict(list)


class Cart(Base):
    owner: str
    lines: list[Line] = []
    meta: dict[str, Any] = {}
    total: float = 0.0
    at: datetime | None = None


class Chat(Base):
    history: list[Note | Hint | Tool] = []
    seen: set[UUID] = set()


class Log(Base):
    places: list[Seen] = []


def schema(cls: type[Any], version: int = 1, **more: Any) -> Schema[Any]:
    return Schema(cls, name=more.pop("name", cls.__name__), version=version, **more)


def thaw(
    it: Schema[Any], body: bytes, *, extras: bool = False, version: int | None = None, fingerprint: bytes | None = None
) -> Any:
    return it.decode(
        body,
        version=it.version if version is None else version,
        fingerprint=it.fingerprint if fingerprint is None else fingerprint,
        has_extras=extras,
        key="ada",
    )


# ---------------------------------------------------------------- there and back


def test_state_comes_back() -> None:
    it = schema(Cart)
    cart = Cart(
        owner="ada", lines=[Line("a", Decimal("1.50"))], meta={"a": [1, None]}, at=datetime(2020, 1, 1, tzinfo=UTC)
    )
    cart.llm = object()  # type: ignore[attr-defined]  # transient: no part of the state
    back, extras = thaw(it, it.encode(cart))
    assert back == cart
    assert extras == {}
    assert type(back) is Cart
    assert str(back.lines[0].price) == "1.50"
    assert not vars(back)


def test_the_wire_is_a_map_of_the_fields_by_name() -> None:
    assert msgspec.msgpack.decode(schema(Cart).encode(Cart(owner="ada"))) == {
        "owner": "ada", "lines": [], "meta": {}, "total": 0.0, "at": None,
    }  # fmt: skip


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(Note, st.text("ab"))
        | st.builds(lambda h: {"hint": h}, st.text("ab"))
        | st.builds(Tool, name=st.text("ab"))
    )
)
def test_unions_of_models_dataclasses_and_typed_dicts_come_back(history: list[Any]) -> None:
    it = schema(Chat)
    chat = Chat(history=history)
    back, _ = thaw(it, it.encode(chat))
    assert back.history == history
    assert [type(item) for item in back.history] == [type(item) for item in history]


def test_unchanged_state_has_unchanged_bytes() -> None:
    it = schema(Chat)
    chat = Chat(history=[Note("a")], seen={UUID(int=n) for n in range(30)})
    body = it.encode(chat)
    assert it.encode(chat) == body
    assert it.encode(it.copy(body)) == body
    chat.seen.add(UUID(int=99))
    assert it.encode(chat) != body
    chat.seen.remove(UUID(int=99))
    assert it.encode(chat) == body
    assert it.ordered


def test_an_int_in_a_float_field_has_the_bytes_of_the_float() -> None:
    it = schema(Cart)
    cart = Cart(owner="ada", total=3)
    body = it.encode(cart)
    assert body == it.encode(Cart(owner="ada", total=3.0))
    assert type(it.copy(body).total) is float
    assert it.encode(cart, {"more": 1}) == it.encode(Cart(owner="ada", total=3.0), {"more": 1})


def test_nan_comes_back() -> None:
    it = schema(Cart)
    back = it.copy(it.encode(Cart(owner="ada", total=float("nan"), meta={"x": float("nan")})))
    assert back.total != back.total
    assert back.meta["x"] != back.meta["x"]


# ---------------------------------------------------------------- refused


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


REFUSED: list[tuple[Any, str]] = [
    (lambda: Cart(owner=5), r"Cart\.owner: expected str, got int"),  # type: ignore[arg-type]
    (lambda: Cart(owner="a", lines=[Line("s", 1)]), r"Cart\.lines\[0\]\.price: expected Decimal, got int"),  # type: ignore[arg-type]
    (lambda: Cart(owner="a\ud800"), r"Cart\.owner: a str with a lone surrogate at position 1"),
    (lambda: Cart(owner="a", meta={"a\ud800": 1}), r"Cart\.meta\[key 0\]: a str with a lone surrogate"),
    (lambda: Cart(owner="a", meta={"n": [2**64]}), r"Cart\.meta\[entry 0\]\[0\]: an int of more than 64 bits"),
    (lambda: Cart(owner="a", meta={"n": -(2**63) - 1}), "an int of more than 64 bits"),
    (lambda: Cart(owner="a", meta={"n": (1,)}), r"Cart\.meta\[entry 0\]: tuple under Any"),
    (lambda: Cart(owner="a", meta={"n": deep(98)}), "more than 100 levels"),
    (lambda: Cart(owner="a", meta={"n": deep(5000)}), "more than 100 levels"),
    (lambda: Chat(history=[5]), r"Chat\.history\[0\]: expected Note \| Hint \| Tool, got int"),  # type: ignore[list-item]
    (lambda: Chat(history=[Tool(name="x", ratio=float("nan"))]), r"would not come back"),
    (
        lambda: Chat(history=[Note("a"), Tool(name="x", args={"n": (1, 2)})]),
        r"Chat\.history\[1\]\.args\[entry 0\]: would not come back",
    ),
    (lambda: Chat(history=[Tool(name="x", raw=b"\xff")]), r"Chat\.history: can't be written"),
    (lambda: Chat(history=[Tool(name="x", args={"n": deep(98)})]), "more than 100 levels"),
    (lambda: Log(places=[Seen(last=deque([1], maxlen=3))]), r"places\[0\]\.last \(its maxlen\): would not come back"),
    (lambda: Log(places=[Seen(last=deque([(1, 2)]))]), r"places\[0\]\.last\[0\]: would not come back"),
    (lambda: Log(places=[Seen(hits=defaultdict(lambda: 7))]), r"\.hits \(its default_factory\): would not come back"),
    (lambda: Chat(history=[Tool.model_construct(name=5)]), "Tool.*string_type at Tool.name"),
]


@pytest.mark.parametrize(("made", "told"), REFUSED, ids=lambda x: None)
def test_state_that_would_not_come_back_is_refused(made: Any, told: str) -> None:
    agent = made()
    with pytest.raises(AgentStateError, match=told):
        schema(type(agent)).encode(agent)


def test_the_deepest_state_that_passes_is_a_hundred_levels_deep() -> None:
    it = schema(Cart)
    assert it.copy(it.encode(Cart(owner="a", meta={"n": deep(97)}))).meta == {"n": deep(97)}


@pytest.mark.parametrize(
    "made",
    [lambda value: Cart(owner="a", meta={"x": value}), lambda value: Chat(history=[Tool(name="x", args={"a": value})])],
)
def test_what_is_written_is_never_too_deep_for_the_record(made: Any) -> None:
    refused = 0
    for levels in range(85, 105):
        agent = made(deep(levels))
        it = schema(type(agent))
        try:
            body = it.encode(agent)
        except AgentStateError:
            refused += 1
        else:
            assert not refused, "deeper than what was refused"
            check_depth(body)
    assert 0 < refused < 20, "both sides of the limit were met"


def test_a_private_attribute_of_a_model_is_not_lost_in_silence() -> None:
    tool = Tool(name="x")
    it = schema(Chat)
    assert it.copy(it.encode(Chat(history=[tool]))).history == [tool]
    tool._secret = "hunter2"
    with pytest.raises(AgentStateError, match=r"Chat\.history\[0\] \(its private attributes\)") as caught:
        it.encode(Chat(history=[tool]))
    assert "hunter2" not in str(caught.value)


def test_a_deque_and_a_defaultdict_in_a_model_come_back() -> None:
    it = schema(Log)
    seen = Seen(last=deque([1, "a"]), hits=defaultdict(int, {"x": 1}), lists=defaultdict(list, {"y": [2]}))
    back = it.copy(it.encode(Log(places=[seen, Seen()]))).places
    assert back == [seen, Seen()]
    assert [(each.hits["new"], each.lists["new"]) for each in back] == [(0, []), (0, [])]


class Positive(Base):
    n: int = 0

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"{self.n} is secret")


def test_state_that_the_class_itself_would_refuse_is_refused() -> None:
    agent = Positive()
    agent.n = -7
    with pytest.raises(AgentStateError, match="would not come back") as caught:
        schema(Positive).encode(agent)
    assert "-7" not in str(caught.value)


# ---------------------------------------------------------------- the class


class Lost(Base):
    thing: Elsewhere


class Handle(Base):
    name: str = ""
    file: memoryview | None = None


def test_an_annotation_that_does_not_resolve_names_the_class_and_the_way_out() -> None:
    with pytest.raises(
        UnresolvedAnnotation, match=r"agent class Lost: .*Elsewhere, which is not defined: define Elsewhere before"
    ):
        schema(Lost)


def test_a_field_that_can_not_be_kept_is_named() -> None:
    with pytest.raises(TypeError, match="agent class Handle: field file: memoryview can't be kept: use bytes"):
        schema(Handle)


def test_what_is_required() -> None:
    assert schema(Cart).required == ("owner",)
    assert schema(Chat).required == ()


class V1(Base):
    n: int = 0


class V1Again(Base):
    n: int = 5


class V1Float(Base):
    n: float = 0.0


class V1Required(Base):
    n: int


class Reordered(Base):
    b: int = 0
    a: Line | None = None


class Ordered(Base):
    a: Line | None = None
    b: int = 0


def test_the_fingerprint_is_that_of_the_fields_and_their_types() -> None:
    first = schema(V1).fingerprint
    assert len(first) == 8
    assert schema(V1Again, name="other").fingerprint == first
    assert schema(Reordered).fingerprint != schema(Ordered).fingerprint  # whose records have other bytes
    assert len({first, schema(V1Float).fingerprint, schema(V1Required).fingerprint, schema(Cart).fingerprint}) == 4


# ---------------------------------------------------------------- other versions


class Session(Base):
    topic: str
    turns: int = 0
    history: list[Note | Hint] = []

    @upcast(since=1)
    @staticmethod
    def _topic_was_missing(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "topic": "unknown"}

    @staticmethod
    @upcast(since=2)
    def _text_became_history(old: dict[str, Any]) -> dict[str, Any]:
        old["history"] = [Note(old.pop("text"))]
        return old


def test_upcasts_run_in_order_and_keep_what_is_not_theirs() -> None:
    it = schema(Session, 3)
    agent, extras = thaw(
        it, msgspec.msgpack.encode({"turns": 4, "text": "hi", "added_later": [1]}), version=1, fingerprint=b""
    )
    assert agent == Session(topic="unknown", turns=4, history=[Note("hi")])
    assert msgspec.msgpack.decode(it.encode(agent, extras))["added_later"] == [1]
    agent, _ = thaw(it, msgspec.msgpack.encode({"topic": "a", "text": "hi"}), version=2, fingerprint=b"")
    assert agent.topic == "a"


class Before(Base):
    x: list[Any] | set[int] = []
    y: list[list[Any] | tuple[int, ...]] = []
    z: list[Any] | set[int] = []


class After(Base):
    x: list[Any] | set[int] = []
    pairs: list[list[Any] | tuple[int, ...]] = []
    z: list[Any] | set[int] = []

    @staticmethod
    @upcast(since=1)
    def _renamed(old: dict[str, Any]) -> dict[str, Any]:
        return {"x": old["x"], "pairs": old["y"], "z": {5, 6}}


def test_an_upcast_changes_nothing_that_it_only_lets_be_or_moves_and_may_return_real_values() -> None:
    body = schema(Before).encode(Before(x=[1], y=[[1], (2,)], z=[7]))
    agent, _ = thaw(schema(After, 2), body, version=1, fingerprint=b"")
    assert agent == After(x=[1], pairs=[[1], (2,)], z={5, 6})


def test_a_record_of_a_newer_version_is_refused() -> None:
    with pytest.raises(NewerRecordError, match=r"Session 'ada': the record is of version 4, this class of version 3"):
        thaw(schema(Session, 3), b"\x80", version=4)


class Raises(Base):
    @upcast(since=1)
    @staticmethod
    def _a(old: dict[str, Any]) -> dict[str, Any]:
        return {"x": old["secret"]}


class ReturnsNone(Base):
    @upcast(since=1)
    @staticmethod
    def _a(old: dict[str, Any]) -> dict[str, Any]:
        return None  # type: ignore[return-value]


class ReturnsMisfit(Base):
    n: int = 0

    @upcast(since=1)
    @staticmethod
    def _a(old: dict[str, Any]) -> dict[str, Any]:
        return {"n": "hunter2"}


class ReturnsObject(Base):
    n: int = 0

    @upcast(since=1)
    @staticmethod
    def _a(old: dict[str, Any]) -> dict[str, Any]:
        return {"n": object()}


class ReturnsDate(Base):
    n: Any = 0

    @upcast(since=1)
    @staticmethod
    def _a(old: dict[str, Any]) -> dict[str, Any]:
        return {"n": datetime(2020, 1, 1, tzinfo=UTC)}


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (Raises, r"Raises 'ada': @upcast\(since=1\) raised KeyError"),
        (ReturnsNone, r"@upcast\(since=1\) returned NoneType: it must return a dict"),
        (
            ReturnsMisfit,
            r"after its upcasts the record of version 1 does not fit version 2: Expected `int`, got `str` - at `\$\.n`",
        ),
        (ReturnsObject, r"the result of @upcast\(since=1\) can't be written"),
        (ReturnsDate, r"datetime under Any"),
    ],
)
def test_a_failing_upcast_says_which(cls: type[Any], told: str) -> None:
    with pytest.raises(MigrationError, match=told) as caught:
        thaw(schema(cls, 2), b"\x80", version=1)
    assert "hunter2" not in str(caught.value)


def test_a_dict_whose_keys_are_maps_is_nothing_that_an_upcast_can_be_given() -> None:
    body = b"\x81\xa1n\x81\x81\xa3sku\xa1x\x05"  # {"n": {{"sku": "x"}: 5}}
    with pytest.raises(MigrationError, match=r"keys are maps.*load"):
        thaw(schema(Raises, 2), body, version=1)


def test_the_error_of_an_upcast_is_the_cause() -> None:
    with pytest.raises(MigrationError) as caught:
        thaw(schema(Raises, 2), b"\x80", version=1)
    assert type(caught.value.__cause__) is KeyError


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", b"\x81\x01\x02", b"\xff" * 40])
def test_an_old_record_that_is_no_map_of_fields_is_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptRecordError, match="ada"):
        thaw(schema(Session, 3), body, version=1)


class Loose(Base):
    any: Any = None
    at: datetime | None = None


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"any": msgspec.msgpack.Ext(5, b"")}, "Ext under Any"),
        ({"any": datetime(2026, 1, 1, tzinfo=UTC)}, "datetime under Any"),
        ({"any": [{1: 2}]}, "int as a key under Any"),
        ({"at": "2026-01-01T00:00:00+05:00"}, "in another zone than UTC"),
    ],
)
def test_a_record_that_only_another_writer_could_have_made_is_corrupt(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(CorruptRecordError, match=told):
        thaw(schema(Loose), msgspec.msgpack.encode(fields))


class Place(msgspec.Struct, frozen=True):
    x: int


class Both(Base):
    by_place: dict[Place, int] = {}
    tool: Tool | None = None


def test_a_model_may_stand_beside_keys_that_are_maps() -> None:
    both = Both(by_place={Place(1): 2}, tool=Tool(name="t"))
    it = schema(Both)
    assert thaw(it, it.encode(both))[0] == both


def test_the_chain_of_upcasts_is_checked() -> None:
    assert sorted(collect_upcasts(Session, 3)) == [1, 2]
    with pytest.raises(TypeError, match=r"version=4 needs .* lacks @upcast\(since=3\)"):
        schema(Session, 4)
    with pytest.raises(TypeError, match=r"@upcast\(since=2\) leads beyond version=2: raise version= to 3"):
        schema(Session, 2)

    class Twice(Session):
        @upcast(since=1)
        @staticmethod
        def _a(old: dict[str, Any]) -> dict[str, Any]:
            return old

        @upcast(since=1)
        @staticmethod
        def _b(old: dict[str, Any]) -> dict[str, Any]:
            return old

    with pytest.raises(TypeError, match="two functions are marked"):
        collect_upcasts(Twice, 3)


def test_a_subclass_inherits_the_chain_and_may_replace_a_step() -> None:
    class Sub(Session):
        @upcast(since=1)
        @staticmethod
        def _other(old: dict[str, Any]) -> dict[str, Any]:
            return {**old, "topic": "sub"}

    agent, _ = thaw(schema(Sub, 3), msgspec.msgpack.encode({"text": "x"}), version=1)
    assert agent.topic == "sub"
    assert collect_upcasts(Sub, 2).keys() == {1}, "what is inherited may lead further than the class has come"


def test_the_mark_of_an_upcast() -> None:
    assert is_upcast(vars(Session)["_topic_was_missing"])
    assert is_upcast(vars(Session)["_text_became_history"])
    assert not is_upcast(vars(Positive)["__post_init__"])
    for wrong in (0, -1, True, "1"):
        with pytest.raises(TypeError, match="@upcast takes the version"):
            upcast(since=wrong)  # type: ignore[arg-type]

    class TwoArguments(Base):
        @upcast(since=1)  # type: ignore[type-var]
        @staticmethod
        def _a(old: dict[str, Any], version: int) -> dict[str, Any]:
            return old

    with pytest.raises(TypeError, match="must take one argument"):
        collect_upcasts(TwoArguments, 2)
    with pytest.raises(TypeError, match="static method"):
        upcast(since=1)(classmethod(lambda cls, old: old))  # type: ignore[type-var]


# ---------------------------------------------------------------- other shapes of the same version


class Wide(Base):
    n: int = 0
    nick: str = ""
    when: list[datetime] = []


def test_fields_that_the_class_has_not_are_kept_and_written_back() -> None:
    wide, narrow = schema(Wide), schema(V1)
    body = wide.encode(Wide(n=3, nick="x", when=[datetime(2020, 1, 1, 2, 3, 4, 567, tzinfo=UTC)]))
    agent, extras = thaw(narrow, body, fingerprint=wide.fingerprint)
    assert extras.keys() == {"nick", "when"}
    agent.n += 1
    written = narrow.encode(agent, extras)
    again, extras = thaw(narrow, written, extras=True)
    assert again.n == 4
    assert extras.keys() == {"nick", "when"}
    assert thaw(wide, written, fingerprint=narrow.fingerprint)[0] == Wide(
        n=4, nick="x", when=[datetime(2020, 1, 1, 2, 3, 4, 567, tzinfo=UTC)]
    )
    assert narrow.encode(again, extras) == written


def test_a_field_with_a_default_may_be_added_without_a_new_version() -> None:
    agent, extras = thaw(schema(Wide), schema(V1).encode(V1(n=3)), fingerprint=schema(V1).fingerprint)
    assert agent == Wide(n=3)
    assert extras == {}


def test_extras_beside_fields_that_msgspec_does_not_take() -> None:
    it = schema(Chat)
    body = it.encode(Chat(history=[Note("a")]), {"later": msgspec.Raw(b"\x01")})
    agent, extras = thaw(it, body, extras=True)
    assert agent.history == [Note("a")]
    assert it.encode(agent, extras) == body


@pytest.mark.parametrize("cls", [V1Required, Cart])
def test_a_changed_shape_without_a_version_says_so(cls: type[Any]) -> None:
    body = msgspec.msgpack.encode({"n": "hunter2", "owner": 5})
    with pytest.raises(
        MigrationError, match=r"changed shape without a new version=.*version=2.*@upcast\(since=1\)"
    ) as caught:
        thaw(schema(cls), body, fingerprint=b"otherone")
    assert "hunter2" not in str(caught.value)


class Sized(Base):
    size: Size = Size.S
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x81\xa4size\xa7hunter2",
        b"\x81\xa4kind\xa7hunter2",
        b"\x91" * 5000,
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_bytes_that_this_class_did_not_write_are_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptRecordError, match="Sized 'ada': the record does not decode") as caught:
        thaw(schema(Sized), body)
    assert "hunter2" not in str(caught.value)


HOSTS = [(schema(Session, 3), 3), (schema(Chat), 1), (schema(Cart), 1)]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.booleans(), st.sampled_from([1, 2, 3]))
def test_decoding_is_total(body: bytes, extras: bool, version: int) -> None:
    for it, last in HOSTS:
        with contextlib.suppress(CorruptRecordError, MigrationError):
            thaw(it, body, extras=extras, version=min(version, last))


# ---------------------------------------------------------------- rollback, copies


def test_restore_puts_the_fields_back_in_place() -> None:
    it = schema(Chat)
    chat = Chat(history=[Note("a")], seen={UUID(int=1)})
    chat.llm = llm = object()  # type: ignore[attr-defined]
    body = it.encode(chat)
    chat.history.append(Note("b"))
    chat.seen = "nonsense"  # type: ignore[assignment]
    it.restore(chat, body, {})
    assert chat == Chat(history=[Note("a")], seen={UUID(int=1)})
    assert chat.llm is llm  # type: ignore[attr-defined]
    assert it.encode(chat) == body


def test_restore_passes_over_extras() -> None:
    it = schema(V1)
    agent = V1(n=1)
    body = it.encode(agent, {"later": 5})
    agent.n = 2
    it.restore(agent, body, {"later": 5})
    assert agent.n == 1
    assert not hasattr(agent, "later")


def test_a_copy_is_detached() -> None:
    it = schema(Cart)
    cart = Cart(owner="ada", lines=[Line("a", Decimal(1))])
    copy = it.copy(it.encode(cart))
    copy.lines[0].sku = "b"
    assert cart.lines[0].sku == "a"


# ---------------------------------------------------------------- fresh


def test_a_fresh_agent_shares_nothing_with_its_initial() -> None:
    it = schema(Cart)
    lines = [Line("a", Decimal(1))]
    cart = it.fresh({"owner": "ada", "lines": lines}, "k")
    lines[0].sku = "b"
    lines.append(Line("c", Decimal(2)))
    assert cart.lines == [Line("a", Decimal(1))]
    given_agent = Cart(owner="ada", lines=lines)
    again = it.fresh(given_agent, "k")
    assert again == given_agent
    assert again.lines is not lines
    assert schema(Chat).fresh(None, "k") == Chat()


@pytest.mark.parametrize(
    ("initial", "told"),
    [
        (None, "Cart 'k': initial lacks owner: pass initial="),
        ({}, "initial lacks owner"),
        ({"owner": "a", "onwer": 1}, "initial has unknown onwer"),
        ({"onwer": "a"}, "initial lacks owner and has unknown onwer"),
        ({"owner": "a", 5: 1}, "has unknown 5"),
        (5, "must be a mapping of fields or a Cart, not int"),
        (Chat(), "must be a mapping of fields or a Cart, not Chat"),
    ],
)
def test_an_initial_that_does_not_fit(initial: Any, told: str) -> None:
    with pytest.raises(MissingInitialError, match=told):
        schema(Cart).fresh(initial, "k")


class SubLine(Line):
    pass


def test_the_state_of_a_fresh_agent_is_checked() -> None:
    with pytest.raises(AgentStateError, match=r"Cart 'k': Cart\.owner: expected str"):
        schema(Cart).fresh({"owner": 5}, "k")
    with pytest.raises(AgentStateError, match=r"Cart\.lines\[0\]: expected exactly Line, got SubLine"):
        schema(Cart).fresh(Cart(owner="a", lines=[SubLine("a", Decimal(1))]), "k")


# ---------------------------------------------------------------- dump and load of one's own


class Custom(Base):
    n: int = 0
    handle: memoryview | None = None

    def dump(self) -> Any:
        return {"number": self.n}

    @classmethod
    def load(cls, data: Any, version: int) -> Self:
        return cls(n=data["number"] if version > 1 else data["old"])


def test_dump_and_load_of_ones_own() -> None:
    it = schema(Custom, 2, custom=True)
    body = it.encode(Custom(n=5, handle=memoryview(b"")))
    assert msgspec.msgpack.decode(body) == {"number": 5}
    assert thaw(it, body) == (Custom(n=5), {})
    assert thaw(it, msgspec.msgpack.encode({"old": 3}), version=1)[0] == Custom(n=3)
    assert it.fresh({"n": 7}, "k") == Custom(n=7)
    assert it.fresh(None, "k") == Custom()
    agent = Custom(n=9)
    it.restore(agent, body, {})
    assert agent.n == 5
    assert it.ordered


@pytest.mark.parametrize(
    "data", [{"a": (1,)}, {"a": {1}}, {"a": datetime(2020, 1, 1, tzinfo=UTC)}, {1.5: 2}, 2**64, "\ud800", deep(101)]
)
def test_dump_must_return_json_values_and_bytes(data: Any) -> None:
    class Dumps(Custom):
        def dump(self) -> Any:
            return data

    with pytest.raises(AgentStateError, match=r"Dumps\.dump\(\)"):
        schema(Dumps, custom=True).encode(Dumps())


def test_dump_may_return_whole_numbers_as_keys() -> None:
    class Dumps(Custom):
        def dump(self) -> Any:
            return {1: "a"}

        @classmethod
        def load(cls, data: Any, version: int) -> Self:
            assert data == {1: "a"}
            return cls(n=1)

    it = schema(Dumps, custom=True)
    assert it.copy(it.encode(Dumps())).n == 1


def test_a_failing_load_is_a_migration_error() -> None:
    it = schema(Custom, 2, custom=True)
    with pytest.raises(MigrationError, match="load\\(\\) raised KeyError on data of version 2") as caught:
        thaw(it, b"\x80")
    assert type(caught.value.__cause__) is KeyError
    with pytest.raises(CorruptRecordError):
        thaw(it, b"\xc1")

    class Other(Custom):
        @classmethod
        def load(cls, data: Any, version: int) -> Any:
            return Custom()

    with pytest.raises(MigrationError, match="load\\(\\) returned Custom: it must return a Other"):
        thaw(schema(Other, custom=True), b"\x80")


def test_what_dump_and_load_do_unless_overridden() -> None:
    it = schema(Chat)
    chat = Chat(history=[Note("a"), {"hint": "b"}], seen={UUID(int=1)})
    plain = it.dump_plain(chat)
    assert plain == {"history": [["Note", {"text": "a"}], ["Hint", {"hint": "b"}]], "seen": [str(UUID(int=1))]}
    assert it.load_plain(plain, 1) == chat
    cart = Cart(owner="ada", lines=[Line("a", Decimal("1.5"))], at=datetime(2020, 1, 1, tzinfo=UTC))
    plain = schema(Cart).dump_plain(cart)
    assert plain["at"] == "2020-01-01T00:00:00Z"
    assert schema(Cart).load_plain(plain, 1) == cart
    with pytest.raises(MigrationError, match="does not fit the class"):
        schema(Cart).load_plain({"owner": 5}, 1)
