"""Whether what came out is what went in: equal in value and in type, all the way down.

Knows the kinds of objects that a codec makes; does not know codecs or bytes.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from weakref import WeakKeyDictionary

from ._models import is_model

__all__ = ["difference", "field_names", "levels"]

_SIMPLE = frozenset({type(None), bool, int, str, bytes})


def difference(before: Any, after: Any) -> str | None:
    """Return the path to where *after* is not *before* (empty: right here), or ``None`` if they are equal."""
    kind = cast("Any", type(before))
    if kind is not type(after):
        whole = kind is int and type(after) is float and before == after  # an int where the class declares a float
        return None if whole else ""
    if kind in _SIMPLE:
        return None if before == after else ""
    compare = _compared.get(kind)
    if compare is None:
        compare = _compared[kind] = _comparison(kind)
    return compare(before, after)


_Comparison = Callable[[Any, Any], "str | None"]
_compared: WeakKeyDictionary[type, _Comparison] = WeakKeyDictionary()


def _comparison(kind: Any) -> _Comparison:
    """How two objects of one type are compared."""
    if kind is float:
        return lambda a, b: None if a == b or (math.isnan(a) and math.isnan(b)) else ""
    if kind is Decimal:
        return lambda a, b: None if a.as_tuple() == b.as_tuple() else ""
    if kind in (datetime, time):
        return lambda a, b: None if a == b and _same_zone(a, b) else ""
    if issubclass(kind, defaultdict):  # as deque: in models, where nothing else is checked
        return lambda a, b: _dicts(a, b) if a.default_factory is b.default_factory else " (its default_factory)"
    if issubclass(kind, deque):
        return lambda a, b: _lists(a, b) if a.maxlen == b.maxlen else " (its maxlen)"
    if issubclass(kind, dict):
        return _dicts
    if issubclass(kind, list | tuple):
        return _lists
    if issubclass(kind, set | frozenset):
        return _sets
    names = None if issubclass(kind, Enum) else field_names(kind)
    if names is None:
        return lambda a, b: None if a == b else ""
    return _models(names) if is_model(kind) else _objects(names)


def field_names(kind: Any) -> list[str] | None:
    """The fields of a class of objects; ``None`` if it has none that could be known."""
    if is_model(kind):
        return list(kind.model_fields)
    if hasattr(kind, "__struct_fields__"):
        return list(kind.__struct_fields__)
    if hasattr(kind, "__dataclass_fields__"):
        return [name for name, field in kind.__dataclass_fields__.items() if field._field_type.name == "_FIELD"]
    if hasattr(kind, "__attrs_attrs__"):
        return [attribute.name for attribute in kind.__attrs_attrs__]
    return None


def _objects(names: list[str]) -> _Comparison:
    def compare(before: Any, after: Any) -> str | None:
        for name in names:
            found = difference(getattr(before, name, None), getattr(after, name, None))
            if found is not None:
                return f".{name}{found}"
        return None

    return compare


def _models(names: list[str]) -> _Comparison:
    fields = _objects(names)

    def compare(before: Any, after: Any) -> str | None:
        if before.__pydantic_private__ or after.__pydantic_private__:
            found = difference(before.__pydantic_private__, after.__pydantic_private__)
            if found is not None:
                return " (its private attributes)"
        if before.__pydantic_extra__ and difference(before.__pydantic_extra__, after.__pydantic_extra__) is not None:
            return " (its extra fields)"
        return fields(before, after)

    return compare


def _same_zone(before: datetime | time, after: datetime | time) -> bool:
    if getattr(before.tzinfo, "key", "UTC") != "UTC":
        return False  # a ZoneInfo: only its offset at that moment would come back
    return before.utcoffset() == after.utcoffset() and (before.tzinfo is None) is (after.tzinfo is None)


def _dicts(before: dict[Any, Any], after: dict[Any, Any]) -> str | None:
    if len(before) != len(after):
        return ""
    for number, (old, new) in enumerate(zip(before.items(), after.items(), strict=True)):
        if difference(old[0], new[0]) is not None:
            return f"[key {number}]"
        found = difference(old[1], new[1])
        if found is not None:
            return f"[entry {number}]{found}"
    return None


def _lists(before: Sequence[Any], after: Sequence[Any]) -> str | None:
    if len(before) != len(after):
        return ""
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        found = difference(old, new)
        if found is not None:
            return f"[{number}]{found}"
    return None


def _sets(before: set[Any], after: set[Any]) -> str | None:
    if before != after:
        return ""
    others = {item: item for item in after}
    return next(("" for item in before if difference(item, others[item]) is not None), None)


def levels(plain: Any) -> int:
    """How deep the containers in decoded data are nested."""
    kind = cast("Any", type(plain))
    if kind is not dict and kind is not list:
        return 0
    deepest = 0
    for item in plain.values() if kind is dict else plain:
        if type(item) is dict or type(item) is list:
            deepest = max(deepest, levels(item))
    return deepest + 1
