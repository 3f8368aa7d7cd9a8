"""The codec of what has named fields: Structs, dataclasses, attrs classes, named tuples and TypedDicts.

It writes what msgspec would write for them, and reads them field by field where msgspec refuses one of the fields.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from inspect import getattr_static
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import msgspec

from ..errors import AgentStateError
from ._codec import Bodied, Codec, Source, Step, misfit, too_deep
from ._leaves import Scalar

__all__ = ["Field", "RecordCodec", "fields_of", "is_frozen", "record_kind"]

Bytes = bytes | msgspec.Raw
_fields: Callable[[Bytes], dict[str, msgspec.Raw]] = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_items: Callable[[Bytes], list[msgspec.Raw]] = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_MISSING = object()
_HOOKS = ("__attrs_pre_init__", "__attrs_post_init__")
_HASH = "_attrs_cached_hash"
"""What an attrs class with ``cache_hash`` needs to be there, and msgspec doesn't set."""


class Field(NamedTuple):
    """One field of a record: what it is called in Python, on the wire and in ``__init__``."""

    name: str
    wire: str
    init: str | None
    required: bool
    codec: Codec


def record_kind(kind: Any) -> str | None:
    """What sort of class with fields *kind* is, if it is one."""
    if not isinstance(kind, type):
        return None
    bases = cast("Any", kind).__mro__
    if msgspec.Struct in bases:
        return "struct"
    if dict in bases and hasattr(kind, "__total__"):
        return "typeddict"
    if tuple in bases and hasattr(kind, "_fields"):
        return "namedtuple"
    if hasattr(kind, "__dataclass_fields__"):
        return "dataclass"
    return "attrs" if hasattr(kind, "__attrs_attrs__") else None


def fields_of(cls: Any, kind: str) -> list[tuple[str, str, str | None, bool]]:
    """Name, wire name, ``__init__`` name and requiredness of each field."""
    if kind == "struct":
        names, defaults = cls.__struct_fields__, cls.__struct_defaults__
        first = len(names) - len(defaults)
        required = [n < first or defaults[n - first] is msgspec.NODEFAULT for n in range(len(names))]
        return list(zip(names, cls.__struct_encode_fields__, names, required, strict=True))
    if kind == "typeddict":
        return [(name, name, name, name in cls.__required_keys__) for name in cls.__annotations__]
    if kind == "namedtuple":
        return [(name, name, name, name not in cls._field_defaults) for name in cls._fields]
    if kind == "dataclass":
        none = dataclasses.MISSING
        return [
            (f.name, f.name, f.name if f.init else None, f.default is none and f.default_factory is none)
            for f in dataclasses.fields(cls)
        ]
    nothing = sys.modules["attr"].NOTHING  # whoever has an attrs class has imported attrs
    return [(a.name, a.name, a.alias if a.init else None, a.default is nothing) for a in cls.__attrs_attrs__]


def is_frozen(cls: Any) -> bool:
    """Whether objects of a class change only by being replaced."""
    if hasattr(cls, "__struct_config__"):
        return bool(cls.__struct_config__.frozen)
    if hasattr(cls, "__dataclass_params__"):
        return bool(cls.__dataclass_params__.frozen)
    if hasattr(cls, "__attrs_attrs__"):
        return bool(cls.__setattr__.__name__ == "_frozen_setattrs")
    return hasattr(cls, "model_config") and bool(cls.model_config.get("frozen"))


def _runs_code(cls: Any, kind: str) -> bool:
    """Whether making an instance runs the class's own code, so that only reading it back tells what comes out."""
    if kind == "attrs":
        hooked = any(hasattr(cls, hook) for hook in _HOOKS)
        return hooked or any(a.validator or a.converter for a in cls.__attrs_attrs__)
    return hasattr(cls, "__post_init__")


def _writes_more(cls: Any, kind: str) -> bool:
    """Whether msgspec may write what is no field: what an object caches, or a ``ClassVar``; or nothing at all."""
    if kind == "dataclass":
        watched = hasattr(cls, "__getattr__") or cls.__getattribute__ is not object.__getattribute__
        return watched and len(cls.__dataclass_fields__) > len(dataclasses.fields(cls))
    if kind != "attrs":
        return False
    names = {attribute.name for attribute in cls.__attrs_attrs__}
    kept = types.MemberDescriptorType, cached_property  # where attrs makes slots, it makes one for what is cached
    spaces = (cast("dict[str, Any]", vars(base)) for base in cls.__mro__)
    held = {name for space in spaces for name, value in space.items() if isinstance(value, kept)}
    return "__attrs_attrs__" not in vars(cls) or any(not name.startswith("_") for name in held - names)


def _default(cls: Any, name: str, made: Any) -> Any:
    """What stands for a field that a record hasn't; an attrs class may make it of the object so far."""
    if hasattr(cls, "__dataclass_fields__"):
        field = cls.__dataclass_fields__[name]
        return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    default = getattr(cls.__attrs_attrs__, name).default
    if not isinstance(default, sys.modules["attr"].Factory):
        return default
    return default.factory(made) if default.takes_self else default.factory()


def _hidden_state(cls: Any, kind: str) -> str | None:
    """Say what a dataclass or attrs class holds beside its fields and ``__dict__``, where nobody looks."""
    names = {name for name, *_ in fields_of(cls, kind)}
    for base in cls.__mro__[:-1]:
        held = cast("dict[str, Any]", vars(base))
        if isinstance(held.get("__new__"), types.BuiltinFunctionType):  # its objects are made, and laid out, in C
            return f"is a subclass of {base.__name__}, whose own content would be lost: make that a field"
        if "__attrs_attrs__" not in held:  # attrs adds slots for what it caches
            slots = {name for name, value in held.items() if isinstance(value, types.MemberDescriptorType)}
            for name in sorted(slots - names):
                return f"has a slot {name} from {base.__name__} that is no field and would be lost: make it a field"
    return None


def _hidden_field(cls: Any, kind: str) -> str | None:
    """The name of a field that can't be read or set but through code of the class's own, such as a property."""
    for name, *_ in fields_of(cls, kind) if kind in ("struct", "dataclass", "attrs") else ():
        found = getattr_static(cls, name, None)
        if isinstance(found, property) or (kind == "struct" and not isinstance(found, types.MemberDescriptorType)):
            return name
    return None


class RecordCodec(Bodied):
    """A class with fields; the agent itself is one, whose other attributes are transient."""

    own_fields = True

    def __init__(self, annotation: Any, cls: Any, kind: str, *, agent: bool = False) -> None:
        super().__init__(annotation, cls.__name__)
        self.cls, self.kind, self._agent = cls, kind, agent
        self.fields: list[Field] = []
        self._config = getattr(cls, "__struct_config__", None)
        self._array = kind == "namedtuple" or bool(self._config and self._config.array_like)
        self.gates, self.wires = (
            (dict,) if kind == "typeddict" else (cls,),
            frozenset({"array" if self._array else "map"}),
        )
        # msgspec leaves out what attrs classes call with a leading underscore, and has no way with takes_self
        self.own_load = not (
            kind == "attrs"
            and (
                hasattr(cls, _HASH)
                or any(a.name.startswith("_") or getattr(a.default, "takes_self", False) for a in cls.__attrs_attrs__)
            )
        )
        self.own_dump = self.own_load and not _writes_more(cls, kind)
        self.own_exact = not _runs_code(cls, kind)

    def fill(self, codecs: dict[str, Codec], marks: Mapping[str, bool] = MappingProxyType({})) -> None:
        """Give it its fields' codecs, which may lead back to it, and what their annotations say of being required.

        A TypedDict doesn't see ``NotRequired`` where its annotations were strings.
        """
        self.fields = [
            Field(name, wire, init, marks.get(name, required), codecs[name])
            for name, wire, init, required in fields_of(self.cls, self.kind)
        ]
        self.parts = tuple(field.codec for field in self.fields)

    def settle(self, where: str) -> None:
        if self.kind == "dataclass" and any(
            f._field_type.name == "_FIELD_INITVAR" for f in self.cls.__dataclass_fields__.values()
        ):
            raise TypeError(
                f"{where}: dataclass {self.label} has an InitVar, which is not kept: "
                "make it a field, or use a factory method"
            )
        if self.kind in ("dataclass", "attrs") and (hidden := _hidden_state(self.cls, self.kind)):
            raise TypeError(f"{where}: {self.kind} {self.label} {hidden}, or mark the agent's field transient()")
        if hidden := _hidden_field(self.cls, self.kind):
            raise TypeError(
                f"{where}: {self.kind} {self.label} has a field {hidden} that something of its name hides, such as a "
                "property, so it could be kept with one value and read with another: call one of them something else"
            )
        if not self.plain_load and self._array and self.kind == "struct":
            raise TypeError(
                f"{where}: Struct {self.label} is array_like and holds a union that needs tags: leave array_like out"
            )

    # ------------------------------------------------------------ check

    def inline(self, source: Source, var: str, pad: int, depth: int) -> None:
        source.level(depth)
        source.line(pad, f"if {self._type_test(source, var)}: return False")
        if self.kind == "typeddict":
            return self._inline_items(source, var, pad, depth)
        read = self._inline_held(source, var, pad)
        simple = [f for f in self.fields if type(f.codec) is Scalar and " or " not in f.codec.test(source, "", depth)]
        if simple:
            tests = " or ".join(f.codec.test(source, read[f.name], depth) or "" for f in simple)
            source.line(pad, f"if {tests}: return False")
        for field in self.fields:
            if field not in simple:
                value = source.name()
                source.line(pad, f"{value} = {read[field.name]}")
                field.codec.emit(source, value, pad, depth + 1)
        return None

    def _inline_held(self, source: Source, var: str, pad: int) -> dict[str, str]:
        """Write the check that an object holds nothing but its fields; return how to read each."""
        read = {field.name: f"{var}.{field.name}" for field in self.fields}
        if self._agent or not self.cls.__dictoffset__:
            return read
        if self.kind in ("struct", "namedtuple"):
            source.line(pad, f"if {var}.__dict__: return False")
            return read
        found: dict[str, Any] = {field.name: getattr_static(self.cls, field.name, _MISSING) for field in self.fields}
        if any(field.init is None and found[field.name] is not _MISSING for field in self.fields):
            # a default that the class holds for its objects, which have it only once it is set: a count tells nothing
            source.line(pad, f"if not {source.bind(frozenset(found))}.issuperset({var}.__dict__): return False")
            return read
        held = source.name()
        slots = sum(isinstance(each, types.MemberDescriptorType) for each in found.values())
        source.line(pad, f"{held} = {var}.__dict__")
        source.line(pad, f"if len({held}) != {len(found) - slots}: return False")
        # read from there, what was deleted is missed, though its class may have a default; and it is quicker
        return read | {
            n: f"{held}[{n!r}]" for n, each in found.items() if not hasattr(cast("Any", type(each)), "__set__")
        }

    def _type_test(self, source: Source, var: str) -> str:
        if self.kind == "typeddict":
            names = source.bind(frozenset(field.name for field in self.fields))
            count = f" or len({var}) != {len(self.fields)}" if all(field.required for field in self.fields) else ""
            return f"type({var}) is not dict{count} or not {names}.issuperset({var})"
        return f"type({var}) is not {source.bind(self.cls)}"

    def _inline_items(self, source: Source, var: str, pad: int, depth: int) -> None:
        key = source.name()
        source.line(pad, f"for {key} in {var}:")
        source.line(pad + 1, f"if type({key}) is not str: return False")
        for field in self.fields:
            value = source.name()
            source.line(pad, f"{value} = {var}.get({field.name!r}, {source.bind(_MISSING)})")
            if field.required:
                source.line(pad, f"if {value} is {source.bind(_MISSING)}: return False")
                field.codec.emit(source, value, pad, depth + 1)
            else:
                source.line(pad, f"if {value} is not {source.bind(_MISSING)}:")
                field.codec.emit(source, value, pad + 1, depth + 1)

    def explain(self, value: Any, path: str, room: int) -> None:
        if type(value) not in self.gates:
            raise misfit(path, self.label, value, self.gates)
        if room < 1:
            raise too_deep(path)
        self._explain_extras(value, path)
        for field in self.fields:
            item = value.get(field.name, _MISSING) if self.kind == "typeddict" else getattr(value, field.name, _MISSING)
            if item is not _MISSING:
                field.codec.explain(item, f"{path}.{field.name}", room - 1)
            elif field.required or self.kind != "typeddict":
                raise AgentStateError(f"{path}.{field.name}: missing: {self.label} declares it, so give it a value")

    def _explain_extras(self, value: Any, path: str) -> None:
        names = {field.name for field in self.fields}
        if self.kind == "typeddict":
            if any(type(key) is not str for key in value):
                raise AgentStateError(f"{path}: a key of {self.label} is no plain str: use the keys that it declares")
            extras = value.keys() - names
        else:
            given: dict[str, Any] = {} if self._agent else getattr(value, "__dict__", {})
            extras = {
                name
                for name in given.keys() - names
                if name != "__orig_class__" and not isinstance(getattr(self.cls, name, None), cached_property)
            }
        if extras:
            raise AgentStateError(
                f"{path}: holds {len(extras)} more than {self.label} declares, which would be lost: "
                "declare it as a field, or don't set it"
            )

    # ------------------------------------------------------------ wire

    def to_wire(self, value: Any) -> Any:
        if self.kind == "typeddict":
            return {field.name: field.codec.dump(value[field.name]) for field in self.fields if field.name in value}
        tag = [] if self._config is None or self._config.tag is None else [self._config.tag]
        items = [field.codec.dump(getattr(value, field.name)) for field in self.fields]
        if self._array:
            return [*tag, *items]
        body = {field.wire: item for field, item in zip(self.fields, items, strict=True)}
        return {self._config.tag_field: tag[0], **body} if self._config is not None and tag else body

    def from_wire(self, raw: Bytes) -> Any:
        if self.kind == "namedtuple":
            items = _items(raw)
            if len(items) > len(self.fields):
                raise msgspec.ValidationError(f"Expected `array` of length {len(self.fields)}, got {len(items)}")
            return self._make({f.name: f.codec.decode(item) for f, item in zip(self.fields, items, strict=False)})
        raws = _fields(raw)
        return self._make({f.name: f.codec.decode(raws[f.wire]) for f in self.fields if f.wire in raws})

    def _make(self, values: dict[str, Any]) -> Any:
        for field in self.fields:
            if field.required and field.name not in values:
                raise msgspec.ValidationError(f"Object missing required field `{field.name}`")
        if self.kind == "typeddict":
            return values
        if self.kind == "struct":  # which has no `__init__` of its own
            return self.cls(**values)
        if self.kind == "namedtuple":
            items = (values[f.name] if f.name in values else self.cls._field_defaults[f.name] for f in self.fields)
            return cast("Any", tuple).__new__(self.cls, items)
        return self._build(values)

    def _build(self, values: dict[str, Any]) -> Any:
        """Make an object as msgspec does: an ``__init__`` or ``__new__`` written by hand may take or make anything."""
        before, after = _HOOKS if self.kind == "attrs" else (None, "__post_init__")
        made = object.__new__(self.cls)
        if before and hasattr(made, before):
            getattr(made, before)()
        for field in self.fields:
            value = values[field.name] if field.name in values else _default(self.cls, field.name, made)
            object.__setattr__(made, field.name, value)
        if before:
            sys.modules["attr"].validate(made)
        if hasattr(self.cls, _HASH):
            object.__setattr__(made, _HASH, None)
        if hasattr(made, after):
            getattr(made, after)()
        for field in self.fields:
            if field.init is None and field.name in values:  # what the hook made of it is for new objects
                object.__setattr__(made, field.name, values[field.name])
        return made

    @cached_property
    def known(self) -> frozenset[str] | int:
        """The names that a map of it may have, or the length of an array."""
        tag = [] if self._config is None or self._config.tag is None else [self._config.tag_field]
        return len(tag) + len(self.fields) if self._array else frozenset([*tag, *(field.wire for field in self.fields)])

    def steps(self, value: Any, plain: Any) -> Iterator[Step]:
        nodes = plain
        if self._array:
            first = cast(int, self.known) - len(self.fields)
            nodes = dict(zip((field.wire for field in self.fields), plain[first:], strict=False))
        for field in self.fields:
            if field.wire in nodes and (self.kind != "typeddict" or field.name in value):
                item = value[field.name] if self.kind == "typeddict" else getattr(value, field.name)
                yield (field.name,), field.codec, item, nodes[field.wire]

    def shape(self, seen: set[Any]) -> str:
        if self.annotation in seen:
            return self.label
        seen.add(self.annotation)
        fields = (f"{f.wire}{'' if f.required else '?'}:{f.codec.shape(seen)}" for f in self.fields)
        tag = f"#{self._config.tag}" if self._config is not None and self._config.tag is not None else ""
        return f"{self.label}{tag}{'[' if self._array else '('}{','.join(fields)})"
