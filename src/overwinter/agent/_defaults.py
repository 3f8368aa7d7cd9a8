"""The defaults of fields: each agent gets one of its own, and none is of another type than its field.

Pure code about values and types. Does not know agents, records or stores.
"""

from __future__ import annotations

import copy
import enum
import sys
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any, cast

import msgspec

from ..errors import AgentStateError
from ._codec import LIMIT, Codec
from ._leaves import SCALARS
from ._models import is_model
from ._records import fields_of, is_frozen, record_kind

__all__ = ["check_default", "check_inner", "check_shared", "is_made_anew", "own_default"]

_Default = msgspec.defstruct("_Default", [("made", "set[int]", set[int]())])
_FACTORY: Any = type(cast("object", _Default.__struct_defaults__[0]))
"""What a default that is made anew for each object is; msgspec doesn't export it."""
_FIELD: Any = type(cast("object", msgspec.field()))
_COLLECTIONS = (list, set, dict, bytearray)
"""Those that msgspec makes anew where the default is empty, and refuses where it isn't."""


class _Copies:
    """The factory of a default that can change: msgspec would hand the one object to all agents."""

    def __init__(self, default: Any) -> None:
        self.default = copy.deepcopy(default)  # nor is it shared with who wrote it down

    def __call__(self) -> Any:
        return copy.deepcopy(self.default)


def own_default(default: Any) -> Any:
    """What is to stand in a class body for a field's *default*, so that each agent gets one of its own."""
    told, name = default, None
    if cast("Any", type(default)) is _FIELD:
        told, name = default.default, default.name
    if told is msgspec.NODEFAULT or type(told) in _COLLECTIONS or _is_steady(told):
        return default
    try:
        return msgspec.field(default_factory=_Copies(told), name=name)
    except Exception:  # noqa: BLE001  # whatever a class raises that can't be copied: check_default tells
        return default


def check_default(default: Any, codec: Codec, where: str) -> None:
    """Look at one of ``__struct_defaults__``.

    Raises:
        TypeError: it isn't what *codec* keeps, or all agents would share it.
    """
    shared = cast("Any", type(default)) is not _FACTORY
    if not shared:
        made = default.factory
        if isinstance(made, _Copies):
            default = made.default
        elif any(made is kind for kind in _COLLECTIONS):
            default = made()
        else:
            return  # code of the user's, which is not to run before there is an agent
    if default is msgspec.NODEFAULT:
        return
    kind = cast("Any", type(default))
    try:
        codec.explain(default, f"{where}: default", LIMIT)  # ok passes over what only encoding it would find
    except AgentStateError as error:
        told = str(error)
        if told.startswith(f"{where}: default: expected"):
            told = (
                f"{where}: its default is a {kind.__name__}, not {codec.label}; an empty list, set or dict may stand "
                "as it is, one with something in it needs msgspec.field(default_factory=…)"
            )
        raise TypeError(told) from None
    if shared:
        check_shared(default, where)


def check_shared(default: Any, where: str) -> None:
    """Look at one of ``__struct_defaults__`` of a class whose fields may hold anything.

    Raises:
        TypeError: all agents would share it, and it can change.
    """
    kind = cast("Any", type(default))
    if kind is not _FACTORY and default is not msgspec.NODEFAULT and not _is_steady(default):
        raise TypeError(
            f"{where}: its default, a {kind.__name__}, can't be copied, so all agents would share it: "
            "use msgspec.field(default_factory=…)"
        )


def check_inner(cls: Any, kind: str, where: str) -> None:
    """Look at the defaults of a class with fields whose objects are values.

    Raises:
        TypeError: all objects would share one of them, and it can change.
    """
    for name, default in _defaults(cls, kind):
        if not _is_steady(default):
            way_out = "make it a dataclass, with" if kind == "namedtuple" else "use"
            raise TypeError(
                f"{where}: {kind} {cls.__name__}: the default of its field {name}, a {type(default).__name__}, is "
                f"shared by all its objects, and so by all agents: {way_out} a default_factory"
            )


def _defaults(cls: Any, kind: str) -> Iterable[tuple[str, Any]]:
    """The defaults that stand in a class as they are, rather than being made for each object."""
    if kind == "struct":
        found = zip(reversed(cls.__struct_fields__), reversed(cls.__struct_defaults__), strict=False)
        return [(name, each) for name, each in found if each is not msgspec.NODEFAULT and type(each) is not _FACTORY]
    if kind == "namedtuple":
        return cast("dict[str, Any]", cls._field_defaults).items()
    if kind == "dataclass" and not hasattr(cls, "__pydantic_fields__"):  # pydantic copies what can change
        told = [(each.name, each.default) for each in fields(cls) if each.default is not MISSING]
        return [
            pair for pair in told if not hasattr(cast("Any", type(pair[1])), "__get__")
        ]  # a property that the field overrides
    if kind == "attrs":
        nothing, factory = sys.modules["attr"].NOTHING, sys.modules["attr"].Factory
        told = [(each.name, each.default) for each in cls.__attrs_attrs__]
        return [pair for pair in told if pair[1] is not nothing and not isinstance(pair[1], factory)]
    return ()


def is_made_anew(default: Any) -> bool:
    """Whether code of the user's makes one of ``__struct_defaults__``, and so perhaps another one each time."""
    if cast("Any", type(default)) is not _FACTORY or isinstance(default.factory, _Copies):
        return False
    return not any(default.factory is kind for kind in _COLLECTIONS)


def _is_steady(value: Any) -> bool:
    """Whether nothing in a value can change, so that agents may share it."""
    kind = cast("Any", type(value))
    if kind in SCALARS or isinstance(value, enum.Enum):
        return kind is not bytearray
    if kind is object:  # a mark that code knows by being the very one
        return True
    if kind is frozenset or issubclass(kind, tuple):
        return all(map(_is_steady, value))
    if not is_frozen(kind):
        return False
    if is_model(kind):
        hidden = value.__pydantic_private__ or value.__pydantic_extra__
        return not hidden and all(_is_steady(item) for item in cast("dict[str, Any]", vars(value)).values())
    record = record_kind(kind)
    return record is not None and all(_is_steady(getattr(value, name, None)) for name, *_ in fields_of(kind, record))
