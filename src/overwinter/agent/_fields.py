"""From an annotation to its codec: what can be kept, and what to do about what can't.

Pure code about types. Does not know agents, records or stores.
"""

from __future__ import annotations

import collections.abc
import enum
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

from ._codec import Codec, reach
from ._containers import DictCodec, FixedTupleCodec, ItemsCodec, UnionCodec
from ._defaults import check_default, check_inner
from ._leaves import SCALARS, AnyCodec, Constrained, EnumCodec, LiteralCodec, ModelCodec, scalar
from ._models import dec_hook, is_model
from ._records import RecordCodec, fields_of, record_kind

__all__ = ["Codec", "UnresolvedAnnotation", "agent_codec", "codec", "dec_hook"]


class UnresolvedAnnotation(TypeError):  # noqa: N818  # a TypeError that may go away by itself, not one more kind of failure
    """An annotation names what isn't defined yet."""


_ABSTRACT: dict[Any, type] = {
    collections.abc.Collection: list,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
    collections.abc.Mapping: dict,
    collections.abc.MutableMapping: dict,
}
_ITEMS = (list, set, frozenset)
_WAY_OUT = "mark the field transient(), or override dump and load"
_INSTEAD = {
    "deque": "use list",
    "Iterable": "use list",
    "OrderedDict": "use dict, which keeps its order",
    "defaultdict": "use dict and setdefault",
    "Counter": "use dict[str, int]",
    "Path": "use str",
    "PosixPath": "use str",
    "complex": "use tuple[float, float]",
    "Fraction": "use tuple[int, int]",
    "range": "use tuple[int, int]",
    "ZoneInfo": "use its key, a str",
    "memoryview": "use bytes",
    "Raw": "use bytes",
    "Ext": "use bytes",
    "UnsetType": "use None",
}


def codec(annotation: Any, where: str = "annotation") -> Codec:
    """The codec of one resolved annotation.

    Raises:
        TypeError: values of this type can't be kept; the text says what to use.
    """
    found = _Walk(where).walk(annotation)
    _settle(found, where)
    return found


def agent_codec(cls: Any) -> RecordCodec:
    """The codec of an agent class: its fields, whatever else its instances hold."""
    where = f"agent class {cls.__name__}"
    found = RecordCodec(cls, cls, "struct", agent=True)
    hints = _hints(cls, where)
    names = [name for name, *_ in fields_of(cls, "struct")]
    walk = _Walk(where)  # one walk: a class that several fields hold has one codec
    hints, found.own_load = _resolved(cls, "struct", {}, {name: hints[name] for name in names})
    codecs = {name: walk.at(f"{where}: field {name}").walk(hints[name]) for name in names}
    found.fill(codecs)
    for name, part in codecs.items():
        _settle(part, f"{where}: field {name}")
        for each in reach(part):
            if isinstance(each, RecordCodec):
                check_inner(each.cls, each.kind, f"{where}: field {name}")
    for name, default in zip(reversed(names), reversed(cls.__struct_defaults__), strict=False):
        check_default(default, codecs[name], f"{where}: field {name}")
    return found


def _settle(found: Codec, where: str) -> None:
    for part in reach(found):
        part.settle(where)
    for part in reach(found):
        if part.plain_load:
            try:
                _ = part.native
            except NameError as error:
                raise _unresolved(where, part.label, error) from None
            except Exception as error:  # noqa: BLE001  # msgspec has several words for no
                raise TypeError(f"{where}: {part.label} can't be kept ({error}): {_WAY_OUT}") from None


def _hints(cls: Any, where: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise _unresolved(where, cls.__name__, error) from None
    except SyntaxError as error:
        raise TypeError(f"{where}: an annotation of {cls.__name__} is no expression ({error.msg}): mend it") from None


def _unresolved(where: str, owner: str, error: NameError) -> UnresolvedAnnotation:
    name = getattr(error, "name", None) or "a name"
    return UnresolvedAnnotation(
        f"{where}: an annotation of {owner} says {name}, which is not defined: "
        f"define {name} before the class, or at module level"
    )


class _Walk:
    """One walk through an annotation."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._known: dict[Any, Codec] = {}
        self._aliases: list[Any] = []

    def at(self, where: str) -> _Walk:
        self._where = where
        return self

    def refuse(self, what: str, way_out: str = "") -> TypeError:
        return TypeError(f"{self._where}: {what} can't be kept: {f'{way_out}, or ' if way_out else ''}{_WAY_OUT}")

    def walk(self, annotation: Any) -> Codec:
        if annotation is Any or annotation is object:
            return AnyCodec(annotation)
        if annotation is None:
            return scalar(type(None))
        if isinstance(annotation, TypeVar):
            return self._variable(annotation)
        if isinstance(annotation, typing.NewType):
            return self.walk(annotation.__supertype__)
        origin = get_origin(annotation)
        if hasattr(annotation, "__value__") or hasattr(origin, "__value__"):
            return self._alias(annotation, origin)
        if origin is None:
            return self._class(annotation)
        if origin is not annotation and not hasattr(annotation, "__args__"):  # a bare List of typing's
            return self.walk(origin)
        return self._generic(annotation, origin, get_args(annotation))

    def _variable(self, variable: TypeVar) -> Codec:
        if variable.__constraints__:
            raise self.refuse(f"type variable {variable.__name__} with constraints", "use a bound")
        return AnyCodec() if variable.__bound__ is None else self.walk(variable.__bound__)

    def _alias(self, annotation: Any, origin: Any) -> Codec:
        alias = annotation if origin is None else origin
        if alias in self._aliases:
            raise self.refuse(f"recursive alias {alias.__name__}", "use Any, or a class")
        self._aliases.append(alias)
        try:
            value, given = alias.__value__, get_args(annotation)
            return self.walk(
                value if origin is None else _substitute(value, dict(zip(alias.__type_params__, given, strict=True)))
            )
        finally:
            self._aliases.pop()

    def _class(self, cls: Any) -> Codec:
        if cast("Any", type(cls)).__hash__ is None:  # a list of types and the like
            raise self.refuse(repr(cls), "write list[...] or dict[..., ...]")
        if cls in SCALARS:
            return scalar(cls)
        if cls in _ABSTRACT or cls in (*_ITEMS, dict, tuple):
            return self._generic(cls, cls, (Any, ...) if cls is tuple else (Any, Any))
        if is_model(cls):
            return ModelCodec(cls)
        if isinstance(cls, type) and issubclass(cls, enum.Enum):
            return EnumCodec(cls)
        kind = record_kind(cls)
        if kind is not None:
            return self._record(cls, cls, kind, {})
        name = str(getattr(cast("Any", cls), "__name__", None) or cast("Any", cls))
        raise self.refuse(name, _INSTEAD.get(name, "" if name in _INSTEAD else "use a Struct or a dataclass"))

    def _generic(self, annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> Codec:
        if origin is Annotated:
            return self._annotated(annotation, arguments)
        if origin in (typing.Final, typing.Required, typing.NotRequired) or getattr(origin, "_name", "") == "ReadOnly":
            return self.walk(arguments[0])
        if origin is Literal:
            return self._literal(annotation, arguments)
        if origin is Union or origin is types.UnionType:
            return self._union(annotation, arguments)
        concrete = _ABSTRACT.get(origin, origin)
        if concrete in _ITEMS:
            return ItemsCodec(annotation, concrete, self.walk(arguments[0]))
        if concrete is dict:
            return DictCodec(annotation, self.walk(arguments[0]), self.walk(arguments[1]))
        if concrete is tuple:
            if len(arguments) == 2 and arguments[1] is ...:
                return ItemsCodec(annotation, tuple, self.walk(arguments[0]))
            return FixedTupleCodec(annotation, tuple(map(self.walk, arguments)))
        kind = record_kind(origin)
        if kind is not None:
            return self._record(annotation, origin, kind, dict(zip(origin.__parameters__, arguments, strict=True)))
        name = getattr(origin, "__name__", None) or str(origin)
        raise self.refuse(name, _INSTEAD.get(name, ""))

    def _annotated(self, annotation: Any, arguments: tuple[Any, ...]) -> Codec:
        inner = self.walk(arguments[0])
        metas = [meta for meta in arguments[1:] if isinstance(meta, msgspec.Meta)]
        return Constrained(annotation, inner, metas) if metas else inner

    def _literal(self, annotation: Any, arguments: tuple[Any, ...]) -> Codec:
        odd = next((value for value in arguments if type(value) not in (type(None), bool, int, str)), None)
        if odd is not None:
            raise self.refuse(f"a Literal of {type(odd).__name__}", "use None, bool, int and str, or the enum itself")
        if any(type(value) is int and not -(2**63) <= value < 2**63 for value in arguments):
            raise self.refuse("a Literal of an int beyond 2**63", "use int")
        return LiteralCodec(annotation, arguments)

    def _union(self, annotation: Any, arguments: tuple[Any, ...]) -> Codec:
        members: list[Codec] = []
        for argument in arguments:
            member = self.walk(argument)
            members += member.parts if isinstance(member, UnionCodec) else [member]
        if (
            any(isinstance(member, AnyCodec) for member in members)
            and sum(m.gates != (type(None),) for m in members) > 1
        ):
            raise self.refuse("Any beside other types in a union", "name the types")
        return UnionCodec(annotation, members)

    def _record(self, annotation: Any, cls: Any, kind: str, arguments: dict[Any, Any]) -> Codec:
        if annotation in self._known:
            return self._known[annotation]
        found = self._known[annotation] = RecordCodec(annotation, cls, kind)
        hints = _hints(cls, self._where)
        held, alike = _resolved(cls, kind, arguments, {name: hints.get(name, Any) for name, *_ in fields_of(cls, kind)})
        found.own_load = found.own_load and alike
        codecs = {name: self.walk(hint) for name, hint in held.items()}
        marks = {name: get_origin(hint) for name, hint in hints.items()} if kind == "typeddict" else {}
        said = {typing.Required: True, typing.NotRequired: False}
        found.fill(codecs, {name: said[mark] for name, mark in marks.items() if mark in said})
        return found


_Scope = dict[Any, Any]
"""What type variables stand for."""


def _resolved(cls: Any, kind: str, arguments: _Scope, hints: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The annotations with what each class among the bases says of its type variables; and whether msgspec agrees."""
    own = _scopes(cls, arguments, {}, lambda base: base.__dict__.get("__orig_bases__", base.__bases__))
    # a TypedDict has no TypedDicts among its bases, and repeats their annotations: the deepest is whose they are
    order = list(reversed(own)) if kind == "typeddict" else list(cls.__mro__)
    owners = {name: next((base for base in order if name in inspect.get_annotations(base)), cls) for name in hints}
    found = {name: _substitute(hint, own.get(owners[name], {})) for name, hint in hints.items()}
    if kind == "typeddict":
        seen = {name: _substitute(hint, arguments) for name, hint in hints.items()}
    else:  # with several bases and no arguments of its own, a class seems to have the arguments of its first base
        other = _scopes(cls, arguments, {}, lambda base: getattr(base, "__orig_bases__", base.__bases__))
        seen = {name: _substitute(hint, other.get(owners[name], {})) for name, hint in hints.items()}
    # msgspec also gives arguments to a class that is named without them
    bare = any(
        isinstance(hint, type) and not own.get(owners[name], {}).keys().isdisjoint(getattr(hint, "__parameters__", ()))
        for name, hint in hints.items()
    )
    return found, found == seen and not bare


def _scopes(
    cls: Any, arguments: _Scope, found: dict[Any, _Scope], bases: Callable[[Any], tuple[Any, ...]]
) -> dict[Any, _Scope]:
    """The arguments of a class and of all its bases: those of a base may be told in terms of the class's own."""
    if not found.get(cls):
        found[cls] = arguments
        for base in bases(cls):
            origin = get_origin(base) or base
            if isinstance(origin, type) and origin is not Generic:
                variables = getattr(cast("Any", origin), "__parameters__", ())
                given = [_substitute(argument, arguments) for argument in get_args(base)]
                _scopes(origin, dict(zip(variables, given, strict=False)), found, bases)
    return found


def _substitute(hint: Any, known: _Scope) -> Any:
    """The annotation with its type variables replaced."""
    if isinstance(hint, TypeVar):
        return known.get(hint, hint)
    free = cast("tuple[Any, ...]", getattr(hint, "__parameters__", ()))
    if not free or isinstance(hint, type) or not any(variable in known for variable in free):
        return hint
    return hint[tuple(known.get(variable, variable) for variable in free)]
