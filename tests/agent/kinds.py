"""One class in two releases, the newer with a field more, for each sort of class with fields."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any, TypedDict

import attrs
import msgspec
import pydantic


class Kinds:
    """The same class in two releases, for each sort of class with fields."""

    @staticmethod
    def dataclasses(**options: bool) -> Any:
        old = dataclasses.make_dataclass("Item", [("a", int)], **options)
        new = dataclasses.make_dataclass("Item", [("a", int), ("b", list[int], field(default_factory=list))], **options)
        return old, new

    @staticmethod
    def structs(**options: Any) -> Any:
        old = msgspec.defstruct("Item", [("a", int)], **options)
        new = msgspec.defstruct("Item", [("a", int), ("b", list[int], msgspec.field(default_factory=list))], **options)
        return old, new

    @staticmethod
    def attrs(**options: bool) -> Any:
        old = attrs.make_class("Item", {"a": attrs.field(type=int)}, **options)
        new = attrs.make_class(
            "Item", {"a": attrs.field(type=int), "b": attrs.field(type=list[int], factory=list)}, **options
        )
        return old, new

    @staticmethod
    def typeddicts() -> Any:
        old = TypedDict("Item", {"a": int})  # noqa: UP013
        new = TypedDict("Item", {"a": int, "b": list[int]}, total=False)  # noqa: UP013
        return old, new

    @staticmethod
    def models(**options: Any) -> Any:
        config = pydantic.ConfigDict(**options)
        old = pydantic.create_model("Item", a=(int, ...), __config__=config)
        new = pydantic.create_model("Item", a=(int, ...), b=(list[int], []), __config__=config)
        return old, new


KINDS = {
    "dataclass": Kinds.dataclasses(),
    "slots dataclass": Kinds.dataclasses(slots=True),
    "frozen dataclass": Kinds.dataclasses(frozen=True),
    "Struct": Kinds.structs(),
    "frozen Struct": Kinds.structs(frozen=True),
    "Struct that omits defaults": Kinds.structs(omit_defaults=True),
    "array-like Struct": Kinds.structs(array_like=True),
    "tagged Struct": Kinds.structs(tag="item"),
    "Struct that renames": Kinds.structs(rename="upper"),
    "attrs": Kinds.attrs(slots=False),
    "slots attrs": Kinds.attrs(),
    "frozen attrs": Kinds.attrs(frozen=True),
    "TypedDict": Kinds.typeddicts(),
    "model": Kinds.models(),
    "frozen model": Kinds.models(frozen=True),
    "model that ignores": Kinds.models(extra="ignore"),
    "model that allows": Kinds.models(extra="allow"),
}
MUTABLE = [name for name in KINDS if "frozen" not in name]


def get(item: Any, name: str) -> Any:
    return item[name] if isinstance(item, dict) else getattr(item, name)


def put(item: Any, name: str, value: Any) -> None:
    if isinstance(item, dict):
        item[name] = value
    else:
        setattr(item, name, value)
