"""Many dictionaries checked at once: a yes must be as sure as the check of one by one."""

from __future__ import annotations

import sys
from collections import OrderedDict
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overwinter import Agent
from overwinter.agent._bulk import WORTH, all_plain
from overwinter.agent._codec import LIMIT
from overwinter.agent._fields import agent_codec
from overwinter.agent._schema import Schema
from overwinter.errors import AgentStateError


class Text(str):
    pass


class Whole(int):
    pass


class Thing:
    def __init__(self) -> None:
        self.a, self.b = 1, 2


class Bag(Agent):
    items: list[dict[str, Any]] = []


class Named(Agent):
    items: list[dict[Literal["a", "b"], Any]] = []


class Short(Agent):
    items: list[dict[Annotated[str, msgspec.Meta(max_length=1)], Any]] = []


class Numbered(Agent):
    items: list[dict[int, Any]] = []


PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
FOREIGN = st.sampled_from(
    [
        (),
        (1,),
        set(),
        frozenset(),
        bytearray(),
        Decimal(1),
        Text("a"),
        Whole(1),
        OrderedDict(),
        memoryview(b""),
        Thing(),
    ]
)
KEYS = st.text(max_size=3) | st.sampled_from([Text("a"), 1, b"k", None, ("t",)])


def trees(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.builds(lambda: Thing().__dict__)
        ),
        max_leaves=12,
    )


def plain_one_by_one(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and plain_one_by_one(item) for key, item in value.items())
    if type(value) is list:
        return all(map(plain_one_by_one, value))
    return value is None or type(value) in (bool, int, float, str, bytes)


@given(st.lists(st.dictionaries(KEYS, trees(PLAIN | FOREIGN, KEYS), max_size=4), max_size=6))
def test_a_yes_is_sure(items: list[dict[Any, Any]]) -> None:
    assert not all_plain(items, LIMIT) or all(map(plain_one_by_one, items))


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="from 3.13 on a dict may keep its values to itself: always a no"
)
@given(st.lists(st.dictionaries(st.text(max_size=3), trees(PLAIN, st.text(max_size=3)), max_size=4), max_size=6))
def test_what_is_plain_gets_a_yes(items: list[dict[str, Any]]) -> None:
    assert all_plain(items, LIMIT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"a": ()}, {"a": bytearray()}, {"a": Text("a")}, {"a": [1, (2,)]}, {"a": {"b": {1}}}, {Text("a"): 1}, {1: 2},
        {"a": {None: 1}}, OrderedDict(a=1), [("a", 1)], "", (), None,
    ],
)  # fmt: skip
@pytest.mark.parametrize("others", [WORTH - 2, WORTH, 50])
def test_one_wrong_item_among_many_is_refused(wrong: Any, others: int) -> None:
    agent = Bag(items=[{"a": 1} for _ in range(others)] + [wrong])
    with pytest.raises(AgentStateError, match="items"):
        agent_codec(Bag).check(agent, "Bag")


@pytest.mark.parametrize("many", [WORTH - 1, WORTH, 50])
@pytest.mark.parametrize("cls", [Named, Short, Numbered])
def test_keys_of_other_kinds_are_held_to_their_own(cls: Any, many: int) -> None:
    schema = Schema(cls, name="bag")
    right: Any = {1: 2} if cls is Numbered else {"a": 2}
    schema.encode(cls(items=[right] * many))
    for wrong in ([right] * (many - 1) + [{"other": 1}], [{"other": 1}] * many):
        with pytest.raises(AgentStateError):
            schema.encode(cls(items=wrong))


def test_levels_are_counted_as_one_by_one() -> None:
    def nested(levels: int) -> list[dict[str, Any]]:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return [{"a": value} for _ in range(WORTH)]

    codec, deepest = agent_codec(Bag), LIMIT - 3  # below the agent, its list and a dict
    codec.check(Bag(items=nested(deepest)), "Bag")
    with pytest.raises(AgentStateError, match="nested more than"):
        codec.check(Bag(items=nested(deepest + 1)), "Bag")


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(AgentStateError, match="nested more than"):
        agent_codec(Bag).check(Bag(items=[{"a": loop} for _ in range(WORTH)]), "Bag")
    wide: list[Any] = [1]
    for _ in range(60):
        wide = [wide, wide]  # 2 ** 60 items, were they all listed
    assert not all_plain([wide], LIMIT)
