"""What may be an agent class: a mistake is found where the class stands, or when its first manager is built."""

from __future__ import annotations

import abc
import collections
import dataclasses
import pathlib
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Literal, TypeVar

import attrs
import msgspec
import pytest

from overwinter import (
    Agent,
    InstanceManager,
    MemoryStore,
    Persistence,
    on,
    transient,
    upcast,
)

T = TypeVar("T")


class Point(msgspec.Struct):
    x: int


class Plain:
    """Annotates nothing, so it may be a base."""

    async def greet(self) -> str:
        return f"hello from {self.key}"


class Annotated:
    note: str = ""


class AnnotatedStruct(msgspec.Struct):
    note: str = ""


@dataclasses.dataclass
class Coin:
    worth: int


@dataclasses.dataclass
class Uncopied:
    worth: int

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError


@dataclasses.dataclass
class Bag(dict):
    name: str = ""


@dataclasses.dataclass
class Failed(Exception):
    code: int


class Slots:
    __slots__ = ("hidden",)


@dataclasses.dataclass(slots=True)
class OnSlots(Slots):
    shown: int


@attrs.define
class AttrsOnSlots(Slots):
    shown: int


def gap_in_the_upcasts():
    class Bad(Agent, version=3):
        @upcast(since=1)
        @staticmethod
        def _one(old: dict[str, Any]) -> dict[str, Any]:
            return old


def no_upcast_at_all():
    class Bad(Agent, version=2):
        pass


def an_upcast_of_the_present_version():
    class Bad(Agent, version=1):
        @upcast(since=1)
        @staticmethod
        def _one(old: dict[str, Any]) -> dict[str, Any]:
            return old


def two_upcasts_of_one_version():
    class Bad(Agent, version=2):
        @upcast(since=1)
        @staticmethod
        def _one(old: dict[str, Any]) -> dict[str, Any]:
            return old

        @upcast(since=1)
        @staticmethod
        def _another(old: dict[str, Any]) -> dict[str, Any]:
            return old


def an_upcast_beside_load():
    class Bad(Agent, version=2):
        def dump(self) -> Any:
            return {}

        @classmethod
        def load(cls, data: Any, version: int) -> Any:
            return cls()

        @upcast(since=1)
        @staticmethod
        def _one(old: dict[str, Any]) -> dict[str, Any]:
            return old


def a_sync_public_method():
    class Bad(Agent):
        def increment(self) -> None: ...


def a_sync_public_method_of_a_mixin():
    class Mixin:
        def increment(self) -> None: ...

    class Bad(Mixin, Agent):
        pass


def a_sync_public_generator():
    class Bad(Agent):
        def items(self):
            yield 1


def dump_without_load():
    class Bad(Agent):
        def dump(self) -> Any:
            return {}


def load_without_dump():
    class Bad(Agent):
        @classmethod
        def load(cls, data: Any, version: int) -> Any:
            return cls()


def an_inherited_dump_and_one_load():
    class Base(Agent):
        def _nothing(self): ...

    class Bad(Base):
        @classmethod
        def load(cls, data: Any, version: int) -> Any:
            return cls()


def two_routes_for_one_signal():
    class Bad(Agent):
        @on("paid")
        async def one(self) -> None: ...

        @on("paid")
        async def other(self) -> None: ...


def two_routes_by_inheritance():
    class Base(Agent):
        @on("paid")
        async def one(self) -> None: ...

    class Bad(Base):
        @on("paid")
        async def other(self) -> None: ...


def a_route_to_a_sync_method():
    class Bad(Agent):
        @on("paid")
        def _paid(self) -> None: ...


def a_route_to_a_static_method():
    class Bad(Agent):
        @on("paid")
        @staticmethod
        async def paid() -> None: ...


def a_route_to_a_stream():
    class Bad(Agent):
        @on("paid")
        async def paid(self) -> AsyncIterator[int]:
            yield 1


def a_transient_without_annotation():
    class Bad(Agent):
        llm = transient()


def a_claimed_name_as_transient():
    class Bad(Agent):
        key: str = transient()


def a_kept_field_made_transient():
    class Base(Agent):
        llm: int = 0

    class Bad(Base):
        llm: int = transient()


def a_new_default_without_annotation():
    class Base(Agent):
        limit: int = 5

    class Bad(Base):
        limit = 6


def a_method_that_hides_a_field():
    class Base(Agent):
        limit: int = 5

    class Bad(Base):
        async def limit(self) -> None: ...


def a_property_that_hides_a_field():
    class Base(Agent):
        limit: int = 5

    class Bad(Base):
        @property
        def limit(self) -> int:
            return 6


def an_annotated_base():
    class Bad(Annotated, Agent):
        pass


def an_annotated_base_of_a_base():
    class Middle(Annotated):
        pass

    class Bad(Middle, Agent):
        pass


def a_struct_as_base():
    class Bad(AnnotatedStruct, Agent):
        pass


def a_field_that_is_a_deque():
    class Bad(Agent):
        queue: collections.deque[int] = msgspec.field(default_factory=collections.deque)


def a_field_that_is_a_path():
    class Bad(Agent):
        home: pathlib.Path


def a_field_that_is_a_function():
    class Bad(Agent):
        callback: collections.abc.Callable[[], None]


def a_field_of_a_plain_class():
    class Bad(Agent):
        thing: Plain


def a_field_deep_inside():
    class Bad(Agent):
        homes: dict[str, list[pathlib.Path | None]] = {}


def an_init_of_its_own():
    class Bad(Agent):
        def __init__(self) -> None:
            self.llm = 5


def an_init_of_a_mixin():
    class Mixin:
        def __init__(self) -> None: ...

    class Bad(Mixin, Agent):
        pass


def a_mutable_default_with_something_in_it():
    class Bad(Agent):
        tags: list[str] = ["a"]


def a_default_of_another_type():
    class Bad(Agent):
        count: int = "none"


def a_default_made_by_dataclasses():
    class Bad(Agent):
        tags: list[str] = dataclasses.field(default_factory=list)


def an_empty_default_of_another_type():
    class Bad(Agent):
        tags: set[int] = {}


def an_empty_list_for_a_tuple():
    class Bad(Agent):
        tags: tuple[int, ...] = []


def a_default_that_does_not_fit_64_bits():
    class Bad(Agent):
        count: int = 2**70


def a_default_of_a_wrong_dataclass():
    class Bad(Agent):
        coin: Coin = Coin("penny")


def a_default_that_can_not_be_copied():
    class Bad(Agent):
        coin: Uncopied = Uncopied(1)


def a_shared_default_beside_load():
    class Bad(Agent):
        thing: Any = threading.Lock()

        def dump(self) -> Any:
            return None

        @classmethod
        def load(cls, data: Any, version: int) -> Any:
            return cls()


def a_literal_beyond_64_bits():
    class Bad(Agent):
        kind: Literal[9223372036854775808] | None = None


def an_annotation_that_is_no_expression():
    class Bad(Agent):
        count: "int |" = 0  # noqa: F722


def a_dataclass_that_is_a_dict():
    class Bad(Agent):
        bag: Bag | None = None


def a_dataclass_that_is_an_exception():
    class Bad(Agent):
        failed: list[Failed] = []


def a_dataclass_with_a_slot_of_its_base():
    class Bad(Agent):
        slotted: OnSlots | None = None


def an_attrs_class_with_a_slot_of_its_base():
    class Bad(Agent):
        slotted: AttrsOnSlots | None = None


def load_with_too_few_parameters():
    class Bad(Agent):
        def dump(self) -> Any:
            return {}

        @classmethod
        def load(cls, data: Any) -> Any:
            return cls()


def dump_with_a_parameter():
    class Bad(Agent):
        def dump(self, deep: bool) -> Any:
            return {}

        @classmethod
        def load(cls, data: Any, version: int) -> Any:
            return cls()


def on_stop_with_a_parameter():
    class Bad(Agent):
        async def on_stop(self, app: Any) -> None: ...


def on_rollback_with_a_parameter():
    class Bad(Agent):
        def on_rollback(self, error: Any) -> None: ...


BAD = [
    (gap_in_the_upcasts, r"Bad.*2"),
    (no_upcast_at_all, r"Bad.*1"),
    (an_upcast_of_the_present_version, r"Bad"),
    (two_upcasts_of_one_version, r"Bad"),
    (an_upcast_beside_load, r"Bad.*load"),
    (a_sync_public_method, r"Bad.*increment.*async.*_increment"),
    (a_sync_public_method_of_a_mixin, r"Bad.*increment.*async"),
    (a_sync_public_generator, r"Bad.*items.*async"),
    (dump_without_load, r"Bad.*override both"),
    (load_without_dump, r"Bad.*override both"),
    (an_inherited_dump_and_one_load, r"Bad.*override both"),
    (two_routes_for_one_signal, r"Bad.*'paid'.*(one and other|other and one)"),
    (two_routes_by_inheritance, r"Bad.*'paid'.*(one and other|other and one)"),
    (a_route_to_a_sync_method, r"Bad.*_paid.*signal.*async"),
    (a_route_to_a_static_method, r"Bad.*paid.*signal.*async"),
    (a_route_to_a_stream, r"Bad.*paid.*signal"),
    (a_transient_without_annotation, r"Bad.*llm.*annotation"),
    (a_claimed_name_as_transient, r"Bad.*'key'.*claims"),
    (a_kept_field_made_transient, r"Bad.*llm"),
    (a_new_default_without_annotation, r"Bad: limit is a field.*hidden by a int.*annotate it again"),
    (a_method_that_hides_a_field, r"Bad: limit is a field.*hidden by a function"),
    (a_property_that_hides_a_field, r"Bad: limit is a field.*hidden by a property"),
    (an_annotated_base, r"Bad.*Annotated.*'note'.*subclass of Agent"),
    (an_annotated_base_of_a_base, r"Bad.*Annotated.*'note'"),
    (a_struct_as_base, r"Bad.*AnnotatedStruct.*'note'"),
    (a_field_that_is_a_deque, r"Bad.*queue.*deque"),
    (a_field_that_is_a_path, r"Bad.*home.*Path"),
    (a_field_that_is_a_function, r"Bad.*callback"),
    (a_field_of_a_plain_class, r"Bad.*thing.*Plain"),
    (a_field_deep_inside, r"Bad.*homes.*Path"),
    (an_init_of_its_own, r"Bad.*__init__.*on_start"),
    (an_init_of_a_mixin, r"Bad.*__init__.*on_start"),
    (a_mutable_default_with_something_in_it, r"default_factory"),
    (a_default_of_another_type, r"Bad.*count.*default is a str, not int"),
    (a_default_made_by_dataclasses, r"Bad.*tags.*default is a Field, not list.*default_factory"),
    (an_empty_default_of_another_type, r"Bad.*tags.*default is a dict, not set\[int\]"),
    (an_empty_list_for_a_tuple, r"Bad.*tags.*default is a list, not tuple"),
    (a_default_that_does_not_fit_64_bits, r"Bad.*count: default: an int of more than 64 bits"),
    (a_default_of_a_wrong_dataclass, r"Bad.*coin: default\.worth: expected int, got str"),
    (a_default_that_can_not_be_copied, r"Bad.*coin.*a Uncopied, can't be copied.*default_factory"),
    (a_shared_default_beside_load, r"Bad.*thing.*a lock, can't be copied.*default_factory"),
    (a_literal_beyond_64_bits, r"Bad.*kind.*Literal.*use int"),
    (an_annotation_that_is_no_expression, r"Bad.*annotation of Bad is no expression"),
    (a_dataclass_that_is_a_dict, r"Bad.*bag.*Bag is a subclass of dict.*make that a field"),
    (a_dataclass_that_is_an_exception, r"Bad.*failed.*Failed is a subclass of Exception.*make that a field"),
    (a_dataclass_with_a_slot_of_its_base, r"Bad.*OnSlots has a slot hidden from Slots.*make it a field"),
    (an_attrs_class_with_a_slot_of_its_base, r"Bad.*AttrsOnSlots has a slot hidden from Slots.*make it a field"),
    (load_with_too_few_parameters, r"Bad.*'load'.*version"),
    (dump_with_a_parameter, r"Bad.*'dump'"),
    (on_stop_with_a_parameter, r"Bad.*'on_stop'"),
    (on_rollback_with_a_parameter, r"Bad.*'on_rollback'"),
]


@pytest.mark.parametrize(("define", "told"), BAD, ids=[define.__name__ for define, _ in BAD])
def test_a_mistake_in_a_class_is_a_type_error_where_the_class_stands(define, told):
    with pytest.raises(TypeError, match=told) as caught:
        define()
    assert caught.type is not msgspec.ValidationError


CLAIMED = ("key", "dump", "load", "on_start", "on_stop", "on_rollback")
KINDS = {
    "field": lambda name: {"__annotations__": {name: int}, name: 0},
    "field without default": lambda name: {"__annotations__": {name: int}},
    "property": lambda name: {name: property(lambda self: 1)},
    "constant": lambda name: {name: 5},
    "static method": lambda name: {name: staticmethod(lambda: None)},
    "class": lambda name: {name: type(name, (), {})},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLAIMED)
def test_a_claimed_name_is_refused(name, kind):
    with pytest.raises(TypeError, match=f"Bad: '{name}' is a name that Agent claims"):
        type(Agent)("Bad", (Agent,), {"__module__": __name__, **KINDS[kind](name)})


async def _asynchronous(self): ...
def _plain(self): ...


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", _asynchronous),
        ("key", _plain),
        ("dump", _asynchronous),
        ("load", _plain),
        ("load", _asynchronous),
        ("on_start", _plain),
        ("on_stop", _plain),
        ("on_rollback", _asynchronous),
    ],
)
def test_a_claimed_name_of_the_wrong_kind_is_refused(name, value):
    with pytest.raises(TypeError, match=f"Bad: '{name}' is a name that Agent claims"):
        type(Agent)("Bad", (Agent,), {"__module__": __name__, name: value})


@pytest.mark.parametrize(
    "keyword", ["frozen", "rename", "kw_only", "tag", "array_like", "forbid_unknown_fields", "nmae"]
)
def test_a_class_keyword_that_is_none_of_ours_is_refused(keyword):
    with pytest.raises(TypeError, match=f"Bad.*'{keyword}'.*name=, version= and aliases="):
        type(Agent)("Bad", (Agent,), {"__module__": __name__}, **{keyword: True})


@pytest.mark.parametrize(
    "keywords",
    [
        {"name": ""},
        {"name": 5},
        {"name": 0},
        {"name": "a\nb"},
        {"name": "a" * 256},
        {"name": "\udc80"},
        {"version": 0},
        {"version": -1},
        {"version": True},
        {"version": "1"},
        {"version": 1.0},
        {"version": None},
        {"version": 2**31},
        {"aliases": "old"},
        {"aliases": ["old"]},
        {"aliases": None},
        {"aliases": ("",)},
        {"aliases": (5,)},
        {"aliases": ("Bad",)},
        {"aliases": ("old", "old")},
    ],
    ids=repr,
)
def test_class_keywords_are_checked(keywords):
    with pytest.raises(TypeError, match=r"Bad: (a name|version=|aliases=)"):
        type(Agent)("Bad", (Agent,), {"__module__": __name__}, **keywords)


def test_what_is_no_agent_class_has_no_manager():
    for other in (Agent, Point, Plain, int, None, list[int]):
        with pytest.raises(TypeError, match=r"(not a subclass of overwinter\.Agent)"):
            InstanceManager(other)


# ---------------------------------------------------------------- checked when a manager is built


class Abstract(Agent):
    total: int = 0

    async def add(self) -> int:
        self.total += await self._step()
        return self.total

    @abstractmethod
    async def _step(self) -> int: ...

    @property
    @abc.abstractmethod
    def unit(self) -> str: ...


class Concrete(Abstract):
    async def _step(self) -> int:
        return 2

    @property
    def unit(self) -> str:
        return "m"


async def test_an_abstract_agent_has_no_manager_and_its_subclass_has():
    with pytest.raises(TypeError, match=r"Abstract is abstract: it lacks _step, unit"):
        InstanceManager(Abstract)
    with pytest.raises(TypeError, match="abstract"):
        Abstract()
    with pytest.raises(TypeError, match="abstract"):
        await in_store(MemoryStore(), lambda p: p.thaw(Abstract, "ada"))
    async with InstanceManager(Concrete, store=MemoryStore()) as manager:
        assert await manager.call("ada", Abstract.add) == 2


async def test_an_annotation_that_resolves_later_is_checked_when_a_manager_is_built(monkeypatch):
    class Early(Agent):
        later: Later | None = None  # noqa: F821

    with pytest.raises(TypeError, match=r"Early.*Later.*not defined.*define Later before"):
        InstanceManager(Early)
    with pytest.raises(TypeError, match=r"Early.*Later"):
        await in_store(MemoryStore(), lambda p: p.thaw(Early, "ada"))
    monkeypatch.setitem(globals(), "Later", pathlib.Path)  # it resolves now, to what can't be kept
    with pytest.raises(TypeError, match=r"Early.*later.*Path"):
        InstanceManager(Early)
    monkeypatch.setitem(globals(), "Later", Point)
    async with InstanceManager(Early, store=MemoryStore()) as manager:
        assert (await manager.state("ada")).later is None


def test_a_routed_method_whose_annotation_does_not_resolve_is_told_when_a_manager_is_built():
    class Routed(Agent):
        @on("paid")
        async def paid(self, by: Nobody) -> None: ...  # noqa: F821

    with pytest.raises(TypeError, match=r"Routed.*paid.*Nobody"):
        InstanceManager(Routed)


async def in_store(store, use):
    async with Persistence(store) as persistence:
        return await use(persistence)


class NoArgument(Agent):
    seen: str = ""

    async def on_start(self) -> None:
        self.seen = "nothing"


class OneArgument(Agent):
    seen: str = ""

    async def on_start(self, app: str) -> None:
        self.seen = app


class OptionalArgument(Agent):
    seen: str = ""

    async def on_start(self, app: str = "default") -> None:
        self.seen = app


class AnyArguments(Agent):
    seen: str = ""

    async def on_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen = ",".join(args)


@pytest.mark.parametrize(
    ("cls", "seen"), [(NoArgument, "nothing"), (OneArgument, "app"), (OptionalArgument, "app"), (AnyArguments, "app")]
)
async def test_on_start_takes_the_context_or_nothing(cls, seen):
    async with InstanceManager(cls, context="app") as manager:
        assert (await manager.state("ada")).seen == seen


def test_on_start_that_takes_more_is_told_when_a_manager_is_built():
    class Two(Agent):
        async def on_start(self, app: str, more: str) -> None: ...

    class Keyword(Agent):
        async def on_start(self, *, app: str) -> None: ...

    for cls in (Two, Keyword):
        with pytest.raises(TypeError, match=f"{cls.__name__}: on_start takes"):
            InstanceManager(cls)


def test_a_name_is_the_classs_own_or_the_one_it_is_given_and_never_depends_on_the_module():
    class Cart(Agent):
        pass

    class Named(Agent, name="cart"):
        pass

    names = [repr(InstanceManager(cls)) for cls in (Cart, Named)]
    assert names == ["<InstanceManager of Cart: 0 live>", "<InstanceManager of cart: 0 live>"]
