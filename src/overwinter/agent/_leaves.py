"""Codecs of types without fields or items: numbers, text, time, enums, literals, models, and ``Any``.

Knows what MessagePack makes of each of them; does not know where they stand.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import msgspec

from ..errors import AgentStateError
from ._codec import Codec, Source, Step, encode_plain, misfit, too_deep
from ._models import model_problem, model_shape

__all__ = ["SCALARS", "AnyCodec", "Constrained", "EnumCodec", "LiteralCodec", "ModelCodec", "Scalar", "scalar"]


class Scalar(Codec):
    """A type whose values are one thing."""

    def __init__(self, cls: type, wire: str, refuse: Callable[[Any, str], None] | None = None) -> None:
        super().__init__(None if cls is type(None) else cls, "None" if cls is type(None) else cls.__name__)
        self.gates, self.wires, self._refuse = (cls,), frozenset({wire}), refuse
        self.own_strict = cls not in (datetime, time)  # text may give one any zone

    def test(self, source: Source, var: str, depth: int) -> str:
        cls = self.gates[0]
        if cls is type(None):
            return f"{var} is not None"
        if cls in (datetime, time):
            zone = f"{var}.tzinfo is not None and {var}.tzinfo is not {source.bind(UTC)}"
            return f"type({var}) is not {source.bind(cls)} or {zone}"
        return f"type({var}) is not {cls.__name__ if cls.__module__ == 'builtins' else source.bind(cls)}"

    def explain(self, value: Any, path: str, room: int) -> None:
        if type(value) is self.gates[0]:
            if self._refuse is not None:
                self._refuse(value, path)
        elif type(value) is not int or not self._takes_int(value):
            raise misfit(path, self.label, value, self.gates)

    def _takes_int(self, value: int) -> bool:
        """A float field takes an int that is a float's equal, and gives back the float."""
        return self.gates[0] is float and -(2**63) <= value < 2**64 and float(value) == value


def _check_int(value: int, path: str) -> None:
    if not -(2**63) <= value < 2**64:
        raise AgentStateError(f"{path}: an int of more than 64 bits: declare a Decimal or a str, and keep it as that")


def _check_str(value: str, path: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise AgentStateError(
            f"{path}: a str with a lone surrogate at position {error.start}: "
            "decode the bytes it came from as UTF-8, or keep bytes"
        ) from None


def _check_zone(value: datetime | time, path: str) -> None:
    offset = value.utcoffset()
    if value.tzinfo is None or (offset is not None and not offset and value.tzname() == "UTC"):
        return
    raise AgentStateError(
        f"{path}: a {type(value).__name__} in another zone than UTC: MessagePack keeps no zone: "
        ".astimezone(timezone.utc), and keep the zone's name beside it"
    )


SCALARS: dict[type, tuple[str, Callable[[Any, str], None] | None]] = {
    type(None): ("nil", None),
    bool: ("bool", None),
    int: ("int", _check_int),
    float: ("float", None),
    str: ("str", _check_str),
    bytes: ("bin", None),
    bytearray: ("bin", None),
    datetime: ("str", _check_zone),
    date: ("str", None),
    time: ("str", _check_zone),
    timedelta: ("str", None),
    UUID: ("str", None),
    Decimal: ("str", None),
}


def scalar(cls: type) -> Scalar:
    """The codec of a type in ``SCALARS``."""
    return Scalar(cls, *SCALARS[cls])


class EnumCodec(Codec):
    """An enum by its values where msgspec can (all str or all int), else by its members' names."""

    def __init__(self, cls: type[enum.Enum]) -> None:
        super().__init__(cls, cls.__name__)
        self.gates = (cls,)
        flags = [cast("Any", cls)(n) for n in (0, sum(m.value for m in cls))] if issubclass(cls, enum.Flag) else []
        self.own_load = self.own_dump = self._by_value(cls, [*cls, *flags])
        first = next(iter(cls), None)
        self.wires = frozenset({"int" if self.own_load and isinstance(getattr(first, "value", ""), int) else "str"})

    @staticmethod
    def _by_value(kind: type[enum.Enum], members: list[enum.Enum]) -> bool:
        try:
            decoder = msgspec.msgpack.Decoder(kind)
            return all(decoder.decode(encode_plain(member)) is member for member in members)
        except (TypeError, ValueError, OverflowError, NotImplementedError, msgspec.MsgspecError):
            return False

    def test(self, source: Source, var: str, depth: int) -> str:
        kind = f"type({var}) is not {source.bind(self.gates[0])}"
        if self.own_load:
            return kind
        return f"{kind} or {source.bind(self.annotation.__members__)}.get({var}._name_) is not {var}"

    def explain(self, value: Any, path: str, room: int) -> None:
        if type(value) is not self.gates[0]:
            raise misfit(path, self.label, value, self.gates)
        if not self.own_load and self.annotation.__members__.get(getattr(value, "_name_", None)) is not value:
            raise AgentStateError(  # such as what a _missing_ made up: nothing would find it by its name
                f"{path}: a value of {self.label} that is none of its members, by whose names it is kept: add it as one"
            )

    def to_wire(self, value: Any) -> Any:
        return value.name

    def from_wire(self, raw: bytes | msgspec.Raw) -> Any:
        name = msgspec.msgpack.decode(raw, type=str)
        try:
            return self.annotation[name]
        except KeyError:
            raise msgspec.ValidationError(f"Expected `{self.label}`, got a name that it hasn't") from None

    def shape(self, seen: set[Any]) -> str:
        members = (f"{name}={member.value!r}" for name, member in self.annotation.__members__.items())
        return f"{self.label}({','.join(members)})"


class LiteralCodec(Codec):
    """A few values of None, bool, int and str."""

    def __init__(self, annotation: Any, values: tuple[Any, ...]) -> None:
        kinds: dict[type, None] = dict.fromkeys(map(type, values))
        super().__init__(
            annotation, f"Literal[{', '.join(map(repr, values))}]", tag="|".join(k.__name__ for k in kinds)
        )
        self._values: frozenset[tuple[type, Any]] = frozenset(zip(map(type, values), values, strict=True))
        self.gates, self.wires = tuple(kinds), frozenset(SCALARS[kind][0] for kind in kinds)

    def test(self, source: Source, var: str, depth: int) -> str:
        return (
            f"type({var}) not in {source.bind(self.gates)} or (type({var}), {var}) not in {source.bind(self._values)}"
        )

    def explain(self, value: Any, path: str, room: int) -> None:
        if type(value) not in self.gates:
            raise misfit(path, self.label, value)
        if (type(value), value) not in self._values:
            raise AgentStateError(
                f"{path}: expected {self.label}, got another {type(value).__name__}: assign one of these, or add it"
            )


class ModelCodec(Codec):
    """A pydantic model. Only reading it back tells whether it comes back equal."""

    own_exact = False
    own_fields = True
    wires = frozenset({"map"})

    def __init__(self, cls: Any) -> None:
        super().__init__(cls, cls.__name__)
        self.gates = (cls,)

    @property
    def own_ordered(self) -> bool:  # type: ignore[override]  # asked for only once the model is complete
        return (
            "set[" not in (shape := model_shape(self.annotation, set())) and ":set" not in shape and "Set[" not in shape
        )

    def settle(self, where: str) -> None:
        problem = model_problem(self.annotation)
        if problem:
            raise TypeError(f"{where}: pydantic model {self.label}: {problem}")

    def test(self, source: Source, var: str, depth: int) -> str:
        return f"type({var}) is not {source.bind(self.gates[0])}"

    def explain(self, value: Any, path: str, room: int) -> None:
        if type(value) is not self.gates[0]:
            raise misfit(path, self.label, value, self.gates)

    def shape(self, seen: set[Any]) -> str:
        return model_shape(self.annotation, seen)


class Constrained(Codec):
    """``Annotated[..., msgspec.Meta(...)]``: only reading it back tells whether the constraint holds."""

    own_exact = False

    def __init__(self, annotation: Any, inner: Codec, metas: list[msgspec.Meta]) -> None:
        super().__init__(annotation, inner.label, tag=inner.tag, parts=(inner,))
        self.gates, self.wires, self._inner, self._metas = inner.gates, inner.wires, inner, metas

    def settle(self, where: str) -> None:
        if not self.plain_load:
            raise TypeError(
                f"{where}: a msgspec.Meta constraint can't stand on {self.label}, which overwinter reads itself: "
                "put it on the parts"
            )

    def test(self, source: Source, var: str, depth: int) -> str | None:
        return self._inner.test(source, var, depth)

    def emit(self, source: Source, var: str, pad: int, depth: int) -> None:
        self._inner.emit(source, var, pad, depth)

    def explain(self, value: Any, path: str, room: int) -> None:
        self._inner.explain(value, path, room)

    def to_wire(self, value: Any) -> Any:
        return self._inner.dump(value)

    def steps(self, value: Any, plain: Any) -> tuple[Step]:
        return (((), self._inner, value, plain),)

    def shape(self, seen: set[Any]) -> str:
        limits = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length", "tz")
        told = [
            f"{name}={getattr(meta, name)!r}"
            for meta in self._metas
            for name in limits
            if getattr(meta, name) is not None
        ]
        return f"{self._inner.shape(seen)}({','.join(told)})"


_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_TEXT = frozenset({str})
_ADVICE = "Any means JSON values and bytes; give the field its real type"


class AnyCodec(Codec):
    """JSON values and bytes: what comes back from MessagePack as it went in, without any type to go by."""

    own_strict = False  # MessagePack has more, such as extensions

    def __init__(self, annotation: Any = Any, *, keys: frozenset[type] = _TEXT, advice: str = _ADVICE) -> None:
        super().__init__(annotation, "Any")
        self._keys, self._advice = keys, advice

    def test(self, source: Source, var: str, depth: int) -> str:
        return f"type({var}) not in {source.bind(_PLAIN)} and not {source.bind(self._fits)}({var}, room - {depth})"

    def _fits(self, value: Any, room: int) -> bool:
        kind = cast("Any", type(value))
        if kind in _PLAIN:
            return True
        if room < 1:
            return False
        if kind is dict:
            for key, item in value.items():
                if type(key) not in self._keys or (type(item) not in _PLAIN and not self._fits(item, room - 1)):
                    return False
            return True
        if kind is list:
            return all(type(item) in _PLAIN or self._fits(item, room - 1) for item in value)
        return False

    def explain(self, value: Any, path: str, room: int) -> None:
        kind = cast("Any", type(value))
        if kind is int or kind is str:
            SCALARS[kind][1](value, path)  # type: ignore[misc]  # both have a check
        elif kind not in _PLAIN:
            if kind is not dict and kind is not list:
                raise AgentStateError(f"{path}: {kind.__name__} under Any: {self._advice}")
            if room < 1:
                raise too_deep(path)
            self._explain_items(value, path, room)

    def _explain_items(self, value: Any, path: str, room: int) -> None:
        if type(value) is list:
            for number, item in enumerate(cast("Any", value)):
                self.explain(item, f"{path}[{number}]", room - 1)
            return
        for number, (key, item) in enumerate(cast("dict[Any, Any]", value).items()):
            if type(key) not in self._keys:
                raise AgentStateError(
                    f"{path}[key {number}]: a {type(key).__name__} as a key under Any: {self._advice}, "
                    "such as dict[int, str]"
                )
            self.explain(key, f"{path}[key {number}]", room)
            self.explain(item, f"{path}[entry {number}]", room - 1)
