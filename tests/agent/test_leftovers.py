"""Fields inside values that the class doesn't know: newer code wrote them, and this code gives them back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS, MUTABLE, Kinds, get, put
from typing_extensions import TypedDict

from overwinter.agent._schema import Schema, upcast
from overwinter.errors import AgentStateError, MigrationError, NewerRecordError


def agent(name: str, **fields: Any) -> Any:
    """A schema whose class has these fields, each annotation with a default."""
    told = [(each, kind, msgspec.field(default_factory=default)) for each, (kind, default) in fields.items()]
    cls = msgspec.defstruct(name, told, kw_only=True, dict=True, weakref=True)
    return Schema(cls, name="box")


def shelf(item: Any) -> Any:
    """A schema that holds items in every sort of container."""
    return agent(
        "Box",
        one=(item | None, lambda: None),
        many=(list[item], list),
        pair=(tuple[int, item] | None, lambda: None),
        row=(tuple[item, ...], tuple),
        named=(dict[str, list[item]], dict),
        either=(item | str, str),
    )


def thaw(it: Any, body: bytes, writer: Any, *, has_extras: bool = False) -> Any:
    return it.decode(body, version=writer.version, fingerprint=writer.fingerprint, has_extras=has_extras, key="ada")


def filled(it: Any, make: Any) -> Any:
    return it.cls(
        one=make(1), many=[make(2), make(3)], pair=(0, make(4)), row=(make(5),), named={"a": [make(6)]}, either=make(7)
    )


# ---------------------------------------------------------------- kept


@pytest.mark.parametrize("kind", KINDS)
def test_what_newer_code_added_comes_back_from_older_code(kind: str) -> None:
    older, newer = KINDS[kind]
    old, new = shelf(older), shelf(newer)
    written = filled(new, lambda n: newer(a=n, b=[n, -n]))
    box, extras = thaw(old, new.encode(written), new)
    assert "b" not in str(box.many[0]) or kind == "model that allows"  # nothing was written on the object
    # There and back once more in older code: hibernated, and thawed by its own fingerprint.
    box, extras = thaw(old, old.encode(box, extras), old, has_extras=bool(extras))
    body = old.encode(box, extras)
    assert thaw(new, body, old, has_extras=bool(extras))[0] == written
    assert old.encode(*thaw(old, body, old, has_extras=bool(extras))) == body


@pytest.mark.parametrize("kind", MUTABLE)
def test_an_object_that_changes_and_moves_keeps_them_and_a_new_one_has_none(kind: str) -> None:
    older, newer = KINDS[kind]
    old, new = shelf(older), shelf(newer)
    box, extras = thaw(old, new.encode(filled(new, lambda n: newer(a=n, b=[n]))), new)
    put(box.many[0], "a", 20)
    box.many.insert(0, older(a=0))
    box.row = (*box.row, box.many.pop())  # the last of the list moves to a tuple
    box.one = older(a=10)
    box.named["z"] = box.named.pop("a")
    back = thaw(new, old.encode(box, extras), old, has_extras=True)[0]
    assert [(get(item, "a"), get(item, "b") if get(item, "a") else None) for item in back.many] == [
        (0, None),
        (20, [2]),
    ]
    assert [get(item, "b") for item in back.row] == [[5], [3]]
    assert get(back.one, "a") == 10
    assert (back.one.get("b", []) if isinstance(back.one, dict) else back.one.b) == []
    assert [get(item, "b") for item in back.named["z"]] == [[6]]


def test_a_rollback_gives_them_to_the_objects_that_it_makes() -> None:
    older, newer = KINDS["dataclass"]
    old, new = shelf(older), shelf(newer)
    written = filled(new, lambda n: newer(a=n, b=[n]))
    box, extras = thaw(old, new.encode(written), new)
    body = old.encode(box, extras)
    for name in ("many", "named"):
        getattr(box, name).clear()
    box.one = box.pair = None
    box.row, box.either = (), ""
    assert b"\xa1b" not in old.encode(box, extras)  # they went with the objects
    old.restore(box, body, extras)
    assert old.encode(box, extras) == body
    assert thaw(new, body, old, has_extras=True)[0] == written
    box.many.pop()
    old.restore(box, body, extras)
    assert old.encode(box, extras) == body
    copy = old.copy(body)  # for looking at: it leaves the agent's own as they are
    copy.many.clear()
    assert old.encode(box, extras) == body
    assert old.encode(old.copy(body, extras), extras) == body


def test_they_may_be_deep_and_beside_others() -> None:
    make = dataclasses.make_dataclass
    leaf, new_leaf = make("Leaf", [("a", int)]), make("Leaf", [("a", int), ("b", int)])
    branch = make("Branch", [("leaves", dict[str, list[leaf | None]])])
    new_branch = make("Branch", [("leaves", dict[str, list[new_leaf | None]]), ("c", dict[str, int])])
    old = agent("Box", tree=(dict[int, branch], dict))
    new = agent("Box", tree=(dict[int, new_branch], dict), top=(int, int))
    written = new.cls(tree={5: new_branch({"x": [None, new_leaf(1, 2)]}, {"d": 3})}, top=7)
    box, extras = thaw(old, new.encode(written), new)
    assert extras.keys() == {"top"}
    box.tree[5].leaves["x"][1].a = 11
    box.tree[4] = branch({})
    del box.tree[4]
    written.tree[5].leaves["x"][1].a = 11
    assert thaw(new, old.encode(box, extras), old, has_extras=True)[0] == written


def test_members_of_a_union_that_is_told_apart_by_name() -> None:
    first, newer_first = KINDS["dataclass"]

    @dataclass
    class Other:
        z: int

    old = agent("Box", many=(list[first | Other], list))
    new = agent("Box", many=(list[newer_first | Other], list))
    written = new.cls(many=[Other(1), newer_first(2, [3])])
    box, extras = thaw(old, new.encode(written), new)
    box.many.reverse()
    assert thaw(new, old.encode(box, extras), old, has_extras=True)[0].many == [newer_first(2, [3]), Other(1)]


def test_a_value_that_is_mended_as_it_is_written() -> None:
    old = agent("Box", many=(list[dataclasses.make_dataclass("Item", [("a", float)])], list))
    new = agent("Box", many=(list[dataclasses.make_dataclass("Item", [("a", float), ("b", int)])], list))
    newer = new.cls.__annotations__["many"].__args__[0]
    box, extras = thaw(old, new.encode(new.cls(many=[newer(1.5, 2)])), new)
    box.many[0].a = 3  # an int: it is written as the float that comes back
    assert thaw(new, old.encode(box, extras), old, has_extras=True)[0].many == [newer(3.0, 2)]


def test_a_record_without_any_costs_the_next_turns_nothing() -> None:
    old, new = shelf(KINDS["dataclass"][0]), shelf(KINDS["dataclass"][1])
    _, extras = thaw(new, old.encode(filled(old, KINDS["dataclass"][0])), old)
    assert extras == {}
    assert not extras


def test_levels_are_counted_with_them() -> None:
    @dataclass
    class Node:
        below: list[Node]

    Node.__annotations__["below"] = list[Node]

    @dataclass
    class NewNode:
        below: list[NewNode]
        deep: Any = None

    NewNode.__annotations__["below"] = list[NewNode]
    old, new = agent("Box", many=(list[Node], list)), agent("Box", many=(list[NewNode], list))
    deep: Any = 0
    for _ in range(90):
        deep = [deep]
    box, extras = thaw(old, new.encode(new.cls(many=[NewNode([], deep)])), new)
    for _ in range(5):
        box.many = [Node(box.many)]
    with pytest.raises(AgentStateError, match="nested more than 100 levels"):
        old.encode(box, extras)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_older_code_does_to_a_list_each_object_keeps_its_own(data: Any) -> None:
    older, newer = KINDS["dataclass"]
    old, new = shelf(older), shelf(newer)
    body = new.encode(new.cls(many=[newer(n, [n]) for n in range(6)]))
    box, extras = thaw(old, body, new)
    fresh = 100
    for _ in range(data.draw(st.integers(0, 8))):
        act = data.draw(st.sampled_from(["pop", "insert", "reverse", "shuffle", "write", "restore"]))
        if act == "pop" and box.many:
            box.many.pop(data.draw(st.integers(0, len(box.many) - 1)))
        elif act == "insert":
            box.many.insert(data.draw(st.integers(0, len(box.many))), older(fresh))
            fresh += 1
        elif act == "reverse":
            box.many.reverse()
        elif act == "shuffle":
            box.many = data.draw(st.permutations(box.many))
        elif act == "write":
            body = old.encode(box, extras)
            box, extras = thaw(old, body, old, has_extras=bool(extras))
        elif act == "restore" and body:
            body = old.encode(box, extras)
            box.many = []
            old.restore(box, body, extras)
    back = thaw(new, old.encode(box, extras), old, has_extras=bool(extras))[0]
    assert [(item.a, item.b) for item in back.many] == [(i.a, [i.a] if i.a < 100 else []) for i in box.many]


# ---------------------------------------------------------------- frozen objects


@pytest.mark.parametrize("kind", [name for name in KINDS if "frozen" in name])
def test_a_frozen_object_can_move_and_go_but_not_be_replaced_by_another(kind: str) -> None:
    older, newer = KINDS[kind]
    old, new = shelf(older), shelf(newer)
    written = new.encode(filled(new, lambda n: newer(a=n, b=[n])))
    box, extras = thaw(old, written, new)
    box.many.append(older(a=9))
    del box.many[0]
    box.one = None
    body = old.encode(box, extras)
    assert [item.b for item in thaw(new, body, old, has_extras=True)[0].many] == [[3], []]
    box.many[0] = older(a=33)
    with pytest.raises(
        AgentStateError, match=r"^box\.many\[0\]: a frozen Item that .*was replaced by another"
    ) as raised:
        old.encode(box, extras)
    assert "33" not in str(raised.value)
    old.restore(box, body, extras)
    box.many[1] = older(a=10)  # which had nothing to lose
    box.named["a"] = [older(a=66)]
    with pytest.raises(AgentStateError, match=r"^box\.named\[\.\.\.\]\[0\]: a frozen"):
        old.encode(box, extras)


# ---------------------------------------------------------------- what nobody can hold is refused


def refused(old: Any, new: Any, written: Any) -> str:
    body = new.encode(written)
    with pytest.raises(
        NewerRecordError, match=r"^box 'ada': the record has a field that this code doesn't know"
    ) as raised:
        thaw(old, body, new)
    assert "secret" not in str(raised.value)
    return str(raised.value).split("there: ")[1].split(":")[0]


def test_items_of_sets_and_keys_have_no_place_to_keep_them() -> None:
    older, newer = (
        Kinds.dataclasses(frozen=True)[0],
        dataclasses.make_dataclass("Item", [("a", int), ("b", str, "")], frozen=True),
    )
    old, new = agent("Box", some=(set[older], set)), agent("Box", some=(set[newer], set))
    assert refused(old, new, new.cls(some={newer(1, "secret")})) == "box.some[...].b"
    back, extras = thaw(new, old.encode(old.cls(some={older(1)})), old)
    assert (back.some, extras) == ({newer(1)}, {})
    older, newer = (
        Kinds.structs(array_like=True, frozen=True)[0],
        msgspec.defstruct("Item", [("a", int), ("b", str, "")], array_like=True, frozen=True),
    )
    old, new = agent("Box", some=(dict[older, int], dict)), agent("Box", some=(dict[newer, int], dict))
    assert refused(old, new, new.cls(some={newer(1, "secret"): 1})) == "box.some[...].1 more"


@pytest.mark.parametrize("held", [int, dict[str, int] | KINDS["dataclass"][0]])  # the latter is read by our own code
def test_named_tuples_are_as_long_as_they_are(held: Any) -> None:
    older, newer = NamedTuple("Item", [("a", held)]), NamedTuple("Item", [("a", held), ("b", str)])  # type: ignore[misc]
    old, new = agent("Box", some=(list[older], list)), agent("Box", some=(list[newer], list))  # type: ignore[valid-type]
    made = new.cls(some=[newer(1 if held is int else {}, "secret")])
    with pytest.raises(MigrationError, match=r"does not fit the class.*length") as raised:
        thaw(old, new.encode(made), new)
    assert "secret" not in str(raised.value)


class OldSpan(NamedTuple):
    left: int
    right: int = 0


class LongerSpan(NamedTuple):
    left: int
    right: int = 0
    middle: int | None = None


class OtherSpan(NamedTuple):
    left: int
    middle: int = 0
    right: int = 0


OldRow, LongerRow, OtherRow = (
    msgspec.defstruct("Row", [(name, int, 0) for name in names], array_like=True)
    for names in (("left", "right"), ("left", "right", "middle"), ("left", "middle", "right"))
)


@pytest.mark.parametrize("beside", [None, KINDS["dataclass"][0]])  # with the latter it is read by our own code
@pytest.mark.parametrize(
    ("older", "longer", "other"), [(OldSpan, LongerSpan, OtherSpan), (OldRow, LongerRow, OtherRow)]
)
def test_what_is_kept_by_position_may_get_a_new_last_field_and_for_all_else_there_are_upcasts(
    older: Any, longer: Any, other: Any, beside: Any
) -> None:
    def box(kind: Any, **more: Any) -> Any:
        return agent("Box", some=(list[kind], list), more=(beside | str | list[int], str), **more)

    old, new = box(older), box(longer)
    body = old.encode(old.cls(some=[older(1, 2)]))
    assert thaw(new, body, old)[0].some == [longer(1, 2)]
    assert thaw(box(other), body, old)[0].some == [other(1, 2, 0)], "as it is told: it stays where it stood"

    class Box(box(other).cls):  # type: ignore[misc]
        @upcast(since=1)
        @staticmethod
        def _right_has_moved(data: dict[str, Any]) -> dict[str, Any]:
            return data | {"some": [[left, 0, right] for left, right in data["some"]]}

    assert thaw(Schema(Box, name="box", version=2), body, old)[0].some == [other(1, 0, 2)]


def test_what_a_class_replaces_as_it_is_made_keeps_nothing() -> None:
    older, newer = KINDS["dataclass"]

    @dataclass
    class Sorted:
        items: list[older]  # type: ignore[valid-type]

        def __post_init__(self) -> None:
            self.items = sorted(self.items, key=lambda item: -item.a)

    @dataclass
    class NewSorted:
        items: list[newer]  # type: ignore[valid-type]

    Sorted.__annotations__["items"], NewSorted.__annotations__["items"] = list[older], list[newer]
    old, new = agent("Box", some=(list[Sorted], list)), agent("Box", some=(list[NewSorted], list))
    two = [newer(1, [10]), newer(2, [20])]
    assert refused(old, new, new.cls(some=[NewSorted(two)])) == "box.some[0].items[0].b"
    two.reverse()
    box, extras = thaw(old, new.encode(new.cls(some=[NewSorted(two)])), new)  # in order as it is
    assert thaw(new, old.encode(box, extras), old, has_extras=True)[0].some == [NewSorted(two)]


def test_one_object_for_equal_values_can_not_tell_whose_they_are() -> None:
    class Fly(pydantic.BaseModel):
        a: int

        @pydantic.model_validator(mode="wrap")
        @classmethod
        def one_for_all(cls, data: Any, handler: Any) -> Any:
            made = handler(data)
            return pool.setdefault(made.a, made)

    pool: dict[int, Fly] = {}
    _, newer = Kinds.models()
    old, new = agent("Box", some=(list[Fly], list)), agent("Box", some=(list[newer], list))
    assert refused(old, new, new.cls(some=[newer(a=1, b=[1]), newer(a=1, b=[2])])).endswith(".b")


# ---------------------------------------------------------------- pydantic models


def test_models_and_other_objects_inside_models() -> None:
    hint, new_hint = TypedDict("Hint", {"h": int}), TypedDict("Hint", {"h": int, "i": int})
    note, new_note = (dataclasses.make_dataclass("Note", [("t", str), *more]) for more in ([], [("u", int, 0)]))

    def release(part: Any, note: Any, hint: Any) -> Any:
        return pydantic.create_model(
            "Outer",
            parts=(list[part], []),
            by=(dict[int, part], {}),
            note=(note | None, None),
            hints=(tuple[hint, ...], ()),
            root=(pydantic.RootModel[list[part]] | None, None),
        )

    older, newer = Kinds.models()
    outer, new_outer = release(older, note, hint), release(newer, new_note, new_hint)
    old, new = agent("Box", some=(list[outer], list)), agent("Box", some=(list[new_outer], list))

    def made(a: int) -> Any:
        part = newer(a=a, b=[1])
        root = pydantic.RootModel[list[newer]]([newer(a=3, b=[3])])
        return new_outer(
            parts=[part], by={7: newer(a=2, b=[2])}, note=new_note("t", 4), hints=({"h": 1, "i": 2},), root=root
        )

    box, extras = thaw(old, new.encode(new.cls(some=[made(1)])), new)
    box.some[0].parts[0].a = 11
    box.some[0].parts.insert(0, older(a=0))
    (back,) = thaw(new, old.encode(box, extras), old, has_extras=True)[0].some
    assert back.parts.pop(0) == newer(a=0)
    assert back == made(11)


def test_items_of_a_set_in_a_model_are_refused() -> None:
    def release(**fields: Any) -> Any:
        item = pydantic.create_model("Item", a=(int, ...), __config__=pydantic.ConfigDict(frozen=True), **fields)
        return agent("Box", one=(pydantic.create_model("Outer", some=(set[item], set())) | None, lambda: None)), item

    (old, _), (new, item) = release(), release(b=(str, ""))
    outer = new.cls.__annotations__["one"].__args__[0]
    assert refused(old, new, new.cls(one=outer(some={item(a=1, b="secret")}))) == "box.one.some[...].b"


def test_what_a_validator_reads_is_no_leftover() -> None:
    class Model(pydantic.BaseModel):
        name: str
        id: int = 0

        @pydantic.model_validator(mode="before")
        @classmethod
        def renamed(cls, data: Any) -> Any:
            if "nom" in data:
                data = {**data, "name": data.pop("nom")}
            return data

    former = pydantic.create_model("Model", nom=(str, ...), extra=(int, 5))
    old, new = agent("Box", some=(list[former], list)), agent("Box", some=(list[Model], list))
    box, extras = thaw(new, old.encode(old.cls(some=[former(nom="Ada")])), old)
    assert box.some[0].name == "Ada"
    box.some[0].name = "Bob"
    body = new.encode(box, extras)
    assert msgspec.msgpack.decode(body)["some"] == [{"name": "Bob", "id": 0, "extra": 5}]
    assert thaw(new, body, new, has_extras=True)[0].some[0].name == "Bob"


def test_a_model_with_a_default_that_differs_each_time() -> None:
    class Model(pydantic.BaseModel):
        a: int
        id: UUID = pydantic.Field(default_factory=uuid4)

    _, newer = Kinds.models()
    old, new = agent("Box", some=(list[Model], list)), agent("Box", some=(list[newer], list))
    box, extras = thaw(old, new.encode(new.cls(some=[newer(a=1, b=[2])])), new)
    assert thaw(new, old.encode(box, extras), old, has_extras=True)[0].some == [newer(a=1, b=[2])]


def test_a_model_whose_validator_sorts_is_refused_where_it_would_mix_them_up() -> None:
    older, newer = Kinds.models()

    class Sorted(pydantic.BaseModel):
        items: list[older]  # type: ignore[valid-type]

        @pydantic.field_validator("items")
        @classmethod
        def in_order(cls, items: Any) -> Any:
            return sorted(items, key=lambda item: item.a)

    plain = pydantic.create_model("Sorted", items=(list[newer], ...))
    old = agent("Box", one=(Sorted | None, lambda: None))
    new = agent("Box", one=(plain | None, lambda: None))
    made = plain(items=[newer(a=2, b=[2]), newer(a=1, b=[1])])
    assert refused(old, new, new.cls(one=made)).startswith("box.one.items[")


# ---------------------------------------------------------------- versions


def test_an_upcast_may_drop_them_and_what_it_leaves_is_kept() -> None:
    older, newer = KINDS["dataclass"]
    first = agent("Box", many=(list[newer], list))

    class Box(msgspec.Struct, kw_only=True, dict=True, weakref=True):
        many: list[older] = []  # type: ignore[valid-type]

        @upcast(since=1)
        @staticmethod
        def _drop(data: dict[str, Any]) -> dict[str, Any]:
            return {"many": [{k: v for k, v in item.items() if k != "b" or v == [2]} for item in data["many"]]}

    Box.__annotations__["many"] = list[older]
    second = Schema(Box, name="box", version=2)
    box, extras = thaw(second, first.encode(first.cls(many=[newer(1, [1]), newer(2, [2])])), first)
    assert msgspec.msgpack.decode(second.encode(box, extras)) == {"many": [{"a": 1}, {"a": 2, "b": [2]}]}


def keyed(item: Any, key: Any) -> Any:
    """A schema with dicts whose keys are objects, which are written as maps."""
    return agent(
        "Box",
        odd=(dict[key, item], dict),
        deep=(dict[str, list[dict[tuple[int, key], item]]], dict),
        many=(list[item], list),
        mixed=(dict[key | int, item], dict),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_fields_beside_keys_that_are_objects_come_back(kind: str) -> None:
    older, newer = KINDS[kind]
    key = dataclasses.make_dataclass("Key", [("k", int)], frozen=True)
    old, new = keyed(older, key), keyed(newer, key)
    written = new.cls(
        odd={key(1): newer(a=1, b=[1]), key(2): newer(a=2, b=[2])},
        deep={"a": [{(1, key(1)): newer(a=3, b=[3])}]},
        many=[newer(a=4, b=[4])],
        mixed={7: newer(a=5, b=[5]), key(1): newer(a=6, b=[6])},
    )
    box, extras = thaw(old, new.encode(written), new)
    body = old.encode(box, extras)
    assert thaw(new, body, old, has_extras=bool(extras))[0] == written
    assert old.encode(*thaw(old, body, old, has_extras=bool(extras))) == body


def test_keys_that_are_objects_may_come_later_and_in_what_nobody_knows() -> None:
    older, _ = KINDS["dataclass"]
    key = dataclasses.make_dataclass("Key", [("k", int)], frozen=True)
    newer = dataclasses.make_dataclass("Item", [("a", int), ("b", dict[key, int])])
    old, new = keyed(older, key), agent("Box", odd=(dict[key, Any], dict), many=(list[newer], list))
    box, extras = thaw(old, new.encode(new.cls(many=[newer(1, {key(1): 2})])), new)
    box.odd[key(5)] = older(6)
    back, _ = thaw(new, old.encode(box, extras), old, has_extras=True)
    assert (back.odd, back.many) == ({key(5): {"a": 6}}, [newer(1, {key(1): 2})])


def test_a_key_that_has_fields_which_nobody_knows_is_refused() -> None:
    older, newer = (
        dataclasses.make_dataclass("Key", [("k", int), *more], frozen=True) for more in ([], [("z", int, 0)])
    )
    old, new = (agent("Box", spots=(dict[key, str], dict)) for key in (older, newer))
    with pytest.raises(NewerRecordError, match=r"spots\[\.\.\.\]\.z"):
        thaw(old, new.encode(new.cls(spots={newer(1, 1): "a", newer(1, 2): "b"})), new)
    assert thaw(new, old.encode(old.cls(spots={older(1): "a"})), old)[0].spots == {newer(1, 0): "a"}


def test_a_default_that_is_left_out_does_not_come_back_over_a_change() -> None:
    def release(**more: Any) -> Any:
        fields = [("a", int, 0), *((name, *said) for name, said in more.items())]
        return msgspec.defstruct("Item", fields, omit_defaults=bool(not more))

    older, newer = release(), release(b=(int, 0))
    old, new = agent("Box", many=(list[older], list)), agent("Box", many=(list[newer], list))
    box, extras = thaw(old, new.encode(new.cls(many=[newer(a=5, b=1)])), new)
    box.many[0].a = 0
    body = old.encode(box, extras)
    assert msgspec.msgpack.decode(body) == {"many": [{"b": 1}]}
    assert thaw(new, body, old, has_extras=True)[0].many == [newer(a=0, b=1)]
