"""Pydantic models as plain data and back.

Pydantic is never imported here: whoever has a model has imported it. Does not know agents, records or codecs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args
from weakref import WeakKeyDictionary

import msgspec

__all__ = [
    "dec_hook",
    "enc_hook",
    "is_model",
    "model_parts",
    "model_problem",
    "model_shape",
    "safe_text",
    "thaw_hook",
]


_known: WeakKeyDictionary[type, bool] = WeakKeyDictionary()  # pydantic's metaclass makes hasattr slow: 1 µs a time


def is_model(cls: Any) -> bool:
    """Whether *cls* is a class of pydantic's (version 2) ``BaseModel``."""
    if not isinstance(cls, type):
        return False
    found = _known.get(cls)
    if found is None:
        found = _known[cls] = hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate_json")
    return found


def model_problem(cls: Any) -> str | None:
    """Say why models of this class can't be kept, if they can't."""
    if "by_name" not in inspect.signature(cls.model_validate_json).parameters:
        return "keeping pydantic models takes pydantic 2.11 or newer"
    hidden = sorted(name for name, field in cls.model_fields.items() if field.exclude)
    if hidden:
        return f"its field {hidden[0]} is declared exclude=True, so it would be lost: include it, or keep it elsewhere"
    return None


def enc_hook(value: Any) -> Any:
    """Turn a model into JSON-like data, by field names."""
    if not is_model(type(value)):
        raise TypeError(f"objects of type {type(value).__name__} can't be stored")
    return value.model_dump(mode="json", round_trip=True, by_alias=False, warnings=False)


def dec_hook(cls: type[Any], data: Any) -> Any:
    """Make a model of what came from outside, by its aliases or its field names."""
    if cls is object:  # an annotation that means Any, and that msgspec takes for a class of the user's
        return data
    if not is_model(cls):
        raise NotImplementedError(f"nothing converts to {cls.__name__}")
    if isinstance(data, cls):
        return data
    return cast("Any", cls).model_validate_json(msgspec.json.encode(data, enc_hook=enc_hook), by_name=True)


def thaw_hook(cls: type[Any], data: Any) -> Any:
    """Make a model of what ``enc_hook`` made of one. JSON mode lets strict models take their own dates and sets."""
    if cls is object:  # an annotation that means Any, and that msgspec takes for a class of the user's
        return data
    if not is_model(cls):
        raise NotImplementedError(f"nothing converts to {cls.__name__}")
    try:
        return cast("Any", cls).model_validate_json(msgspec.json.encode(data), by_alias=False, by_name=True)
    except ValueError as error:
        raise ValueError(_model_text(cls, error)) from None


def _model_text(cls: Any, error: ValueError) -> str:
    # str(error) quotes the data, and so may the place inside a dict: name the model, its field and the kind of error
    errors = getattr(error, "errors", None)
    if errors is None:
        return f"Expected `{cls.__name__}` that its validators accept"
    first = errors(include_url=False, include_context=False, include_input=False)[0]
    field = next((f".{place}" for place in first["loc"][:1] if place in cls.model_fields), "")
    return f"Expected `{cls.__name__}` that its validators accept ({first['type']} at {cls.__name__}{field})"


def model_parts(model: Any, plain: Any) -> Iterator[tuple[tuple[Any, ...], Any, dict[str, Any], frozenset[str]]]:
    """The objects with fields in a model, itself too: path, object, the map that stands for it, the names it knows.

    An item of a set is no object to hold on to, so ``None`` stands for it.
    """
    todo: list[tuple[tuple[Any, ...], Any, Any]] = [((), model, plain)]
    while todo:
        path, value, node = todo.pop()
        kind, shape = cast("Any", type(value)), cast("Any", type(node))
        if getattr(kind, "__pydantic_root_model__", False):
            todo.append((path, value.root, node))
        elif shape is list and issubclass(kind, set | frozenset):
            yield from (((*path, None, *inner), None, part, known) for inner, part, known in _set_parts(value, node))
        elif shape is list and issubclass(kind, Sequence):
            todo += [((*path, n), item, part) for n, (item, part) in enumerate(zip(value, node, strict=False))]
        elif shape is dict and issubclass(kind, dict) and not all(type(key) is str for key in value):
            todo += [((*path, (n,)), *pair) for n, pair in enumerate(zip(value.values(), node.values(), strict=False))]
        elif shape is dict and (fields := _fields_by_name(value)) is not None:
            yield path, value, node, frozenset(node if _takes_all(value) else fields)
            todo += [((*path, name), item, node[name]) for name, item in fields.items() if name in node]


def _set_parts(items: Any, nodes: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], frozenset[str]]]:
    likes: list[Any] = list({cast("Any", type(item)): item for item in items}.values())
    for node in nodes if likes else ():  # one of each class will do to tell which fields are known
        told = [[(path, part, known) for path, _, part, known in model_parts(like, node)] for like in likes]
        yield from min(told, key=lambda parts: sum(len(part.keys() - known) for _, part, known in parts))


def _takes_all(value: Any) -> bool:
    return is_model(type(value)) and value.model_config.get("extra") == "allow"


def _fields_by_name(value: Any) -> dict[str, Any] | None:
    kind = cast("Any", type(value))
    if issubclass(kind, dict):
        return cast("dict[str, Any]", value)
    names = kind.model_fields if is_model(kind) else getattr(kind, "__dataclass_fields__", None)
    return None if names is None else {name: getattr(value, name) for name in names if hasattr(value, name)}


_SAFE = ("Expected `", "Object missing required field `")
_PLACE = re.compile(r" - at `[^`]*`$")


def safe_text(error: Exception) -> str:
    """Return what a decoder's error says, without the parts of the data that it may quote."""
    text = str(error)
    if isinstance(error, msgspec.ValidationError) and text.startswith(_SAFE) and error.__cause__ is None:
        return text
    if isinstance(error.__cause__, ValueError) and text.startswith(_SAFE) and "validators accept" in text:
        return text
    place = _PLACE.search(text) if isinstance(error, msgspec.ValidationError) else None
    return f"{type(error.__cause__ or error).__name__}{place.group() if place else ''}"


def model_shape(cls: Any, seen: set[Any]) -> str:
    """The fields of a model and of the models in them, for the fingerprint."""
    if cls in seen:
        return str(cls.__name__)
    seen.add(cls)
    fields = sorted(cls.model_fields.items())
    inner = ",".join(
        f"{name}{'' if field.is_required() else '?'}:{_hint(field.annotation, seen)}" for name, field in fields
    )
    return f"{cls.__name__}({inner})"


def _hint(annotation: Any, seen: set[Any]) -> str:
    if is_model(annotation):
        return model_shape(annotation, seen)
    name = getattr(annotation, "__name__", None) or re.sub(r"[\w.]*\.", "", str(annotation)).split("[")[0]
    arguments = get_args(annotation)
    return f"{name}[{','.join(_hint(argument, seen) for argument in arguments)}]" if arguments else str(name)
