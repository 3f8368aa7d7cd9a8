"""What every codec has: a fast check, a slow one that names the place, and a way to bytes and back.

A codec stands for one annotation. ``ok`` is generated source (as in ``dataclasses``) because it runs at the end of each
turn; it may say no to a value that is fine, never yes to one that isn't. ``explain`` has the last word.
Does not know any type in particular.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import msgspec

from ..errors import AgentStateError
from ._models import enc_hook, thaw_hook

__all__ = [
    "LIMIT", "UNMADE", "Bodied", "Codec", "PlainKey", "Source", "Step", "decode_plain", "encode_plain", "misfit",
    "reach", "too_deep",
]  # fmt: skip

LIMIT = 100
"""Levels of containers that a record may have, the agent's own map included."""

UNMADE = object()
"""Stands for a part that can't be told apart from its like, such as an item of a set."""


class PlainKey:
    """A dict's key that is a map, or an array with one: plain data that can't be a key in Python."""

    __slots__ = ("plain",)

    def __init__(self, plain: Any) -> None:
        self.plain = plain


def _enc_hook(value: Any) -> Any:
    return value.plain if type(value) is PlainKey else enc_hook(value)


encode_plain: Callable[[Any], bytes] = msgspec.msgpack.Encoder(enc_hook=_enc_hook).encode
_untyped: Callable[[bytes | msgspec.Raw], Any] = msgspec.msgpack.Decoder().decode
_items: Callable[[bytes | msgspec.Raw], list[msgspec.Raw]] = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_entries: Callable[[bytes | msgspec.Raw], dict[PlainKey, msgspec.Raw]] = msgspec.msgpack.Decoder(
    dict[PlainKey, msgspec.Raw], dec_hook=lambda _, plain: PlainKey(plain)
).decode


def decode_plain(raw: bytes | msgspec.Raw) -> Any:
    """Read any MessagePack as plain data, which ``encode_plain`` writes as it was."""
    try:
        return _untyped(raw)
    except msgspec.DecodeError:  # a dict somewhere in it has keys that can't be hashed
        pass
    try:
        return [decode_plain(item) for item in _items(raw)]
    except msgspec.ValidationError:  # it is no array
        return {_hashable(key): decode_plain(item) for key, item in _entries(raw).items()}


def _hashable(key: PlainKey) -> Any:
    try:
        hash(key.plain)
    except TypeError:
        return key
    return key.plain


class Codec:
    """One annotation's check and its way to MessagePack and back."""

    own_dump: bool = True
    """Apart from its parts, msgspec writes it as it should be written."""
    own_load: bool = True
    """Apart from its parts, msgspec reads it back."""
    own_exact: bool = True
    """Apart from its parts, what passes the check comes back equal."""
    own_strict: bool = True
    """Apart from its parts, what msgspec reads passes the check, whoever wrote it."""
    own_ordered: bool = True
    """Apart from its parts, equal values have equal bytes."""

    own_fields: bool = False
    """Its values have fields, of which a record may have more than the class."""

    gates: tuple[type, ...] = ()
    """The exact types of its values; empty: several, or any."""
    wires: frozenset[str] = frozenset()
    """The kinds of MessagePack values it is written as."""

    def __init__(self, annotation: Any, label: str, *, tag: str | None = None, parts: tuple[Codec, ...] = ()) -> None:
        self.annotation, self.label, self.tag, self.parts = annotation, label, tag or label, parts

    # ------------------------------------------------------------ what holds for it and all its parts

    @cached_property
    def plain_load(self) -> bool:
        return all(part.own_load for part in reach(self))

    @cached_property
    def plain_dump(self) -> bool:
        return self.plain_load and all(part.own_dump for part in reach(self))

    @cached_property
    def exact(self) -> bool:
        return all(part.own_exact for part in reach(self))

    @cached_property
    def strict(self) -> bool:
        return all(part.own_strict and part.own_exact for part in reach(self))

    @cached_property
    def ordered(self) -> bool:
        return all(part.own_ordered for part in reach(self))

    @cached_property
    def has_fields(self) -> bool:
        return any(part.own_fields for part in reach(self))

    @cached_property
    def cyclic(self) -> bool:
        return any(self in reach(part) for part in self.parts)

    def settle(self, where: str) -> None:
        """Raise ``TypeError`` for what only shows once all parts are known."""

    # ------------------------------------------------------------ the check

    def check(self, value: Any, path: str, depth: int = 0) -> None:
        """Raise ``AgentStateError`` unless *value* is exactly of the declared type, all the way down."""
        if not self.ok(value, LIMIT - depth):
            self.explain(value, path, LIMIT - depth)

    def fits(self, value: Any, room: int) -> bool:
        """Whether ``check`` would pass, *room* levels of containers being left."""
        try:
            if not self.ok(value, room):
                self.explain(value, "", room)
        except AgentStateError:
            return False
        return True

    @cached_property
    def quick(self) -> Callable[[Any, int], bool]:
        """``ok`` for who takes an exception, any, as a no too."""
        return Source().compile(self)

    @cached_property
    def ok(self) -> Callable[[Any, int], bool]:
        quick = self.quick

        def ok(value: Any, room: int) -> bool:
            try:
                return quick(value, room)
            except (AttributeError, IndexError, KeyError):  # a field was deleted; `explain` says which
                return False

        return ok

    def explain(self, value: Any, path: str, room: int) -> None:
        """Raise ``AgentStateError`` that names the place, or return because the value is fine."""
        raise NotImplementedError

    def test(self, source: Source, var: str, depth: int) -> str | None:
        """An expression that is true for a value that doesn't fit, if one expression can tell."""
        return None

    def emit(self, source: Source, var: str, pad: int, depth: int) -> None:
        """Write statements that return ``False`` for a value that doesn't fit."""
        source.line(pad, f"if {self.test(source, var, depth)}: return False")

    # ------------------------------------------------------------ to bytes and back

    def dump(self, value: Any) -> Any:
        """What msgspec is to write for *value*."""
        return value if self.plain_dump else self.to_wire(value)

    def decode(self, raw: bytes | msgspec.Raw) -> Any:
        """The value of some MessagePack."""
        return self.native(raw) if self.plain_load else self.from_wire(raw)

    @cached_property
    def native(self) -> Callable[[bytes | msgspec.Raw], Any]:
        return msgspec.msgpack.Decoder(self.annotation, dec_hook=thaw_hook).decode

    def to_wire(self, value: Any) -> Any:
        return value

    def from_wire(self, raw: bytes | msgspec.Raw) -> Any:
        raise NotImplementedError

    def steps(self, value: Any, plain: Any) -> Iterable[Step]:
        """The parts of *value* beside those of *plain*, the MessagePack that it was read from or is written as."""
        return ()

    def shape(self, seen: set[Any]) -> str:
        """The type as text for the fingerprint; a class is spelled out where it is first met."""
        return self.label


Step = tuple[tuple[Any, ...], Codec, Any, Any]
"""How a path goes on, and there the codec, the value and its MessagePack."""


def reach(codec: Codec) -> list[Codec]:
    """Return *codec* and all its parts, each once."""
    found: dict[int, Codec] = {}
    open_ = [codec]
    while open_:
        one = open_.pop()
        if id(one) not in found:
            found[id(one)] = one
            open_ += one.parts
    return list(found.values())


class Source:
    """The source of one check, while it is written."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: dict[int, str] = {}
        self._env: dict[str, Any] = {}
        self._todo: list[tuple[str, Codec]] = []
        self._fresh = self._counter()
        self._deepest = 0

    @staticmethod
    def _counter() -> Iterator[int]:
        number = 0
        while True:
            yield (number := number + 1)

    def line(self, pad: int, text: str) -> None:
        self._lines.append("    " * pad + text)

    def name(self) -> str:
        """A variable of its own."""
        return f"v{next(self._fresh)}"

    def bind(self, value: Any) -> str:
        """The name under which the source sees *value*."""
        if id(value) not in self._names:
            name = self._names[id(value)] = f"c{next(self._fresh)}"
            self._env[name] = value  # also keeps the id from being used again
        return self._names[id(value)]

    def call(self, codec: Codec, var: str, depth: int) -> str:
        """A call of the codec's check in a function of its own."""
        if id(codec) not in self._names:
            name = self._names[id(codec)] = f"f{next(self._fresh)}"
            self._todo.append((name, codec))
        return f"{self._names[id(codec)]}({var}, room - {depth})"

    def level(self, depth: int) -> None:
        """Note a container *depth* levels below the function's value."""
        self._deepest = max(self._deepest, depth + 1)

    def compile(self, codec: Codec) -> Callable[[Any, int], bool]:
        self.call(codec, "v", 0)
        first = self._todo[0][0]
        while self._todo:
            self._function(*self._todo.pop())
        exec(compile("\n".join(self._lines), "<overwinter check>", "exec"), self._env)  # noqa: S102  # only our own templates
        run: Callable[[Any, int], bool] = self._env[first]
        return run

    def _function(self, name: str, codec: Codec) -> None:
        self._deepest = 0
        self.line(0, f"def {name}(v, room):")
        entry = len(self._lines)
        codec.emit_body(self) if isinstance(codec, Bodied) else codec.emit(self, "v", 1, 0)
        self.line(1, "return True")
        if self._deepest:
            self._lines.insert(entry, f"    if room < {self._deepest}: return False")


class Bodied(Codec):
    """A codec whose check is a function where it may contain itself."""

    def emit_body(self, source: Source) -> None:
        self.inline(source, "v", 1, 0)

    def emit(self, source: Source, var: str, pad: int, depth: int) -> None:
        if self.cyclic:
            source.line(pad, f"if not {source.call(self, var, depth)}: return False")
        else:
            self.inline(source, var, pad, depth)

    def inline(self, source: Source, var: str, pad: int, depth: int) -> None:
        raise NotImplementedError


# ---------------------------------------------------------------- errors


def misfit(path: str, label: str, value: Any, gates: tuple[type, ...] = ()) -> AgentStateError:
    """The error for a value of another type than declared. It names types, never the value."""
    got = type(value).__name__
    if gates and isinstance(value, gates) and type(value) not in gates:
        return AgentStateError(
            f"{path}: expected exactly {label}, got {got}, a subclass: it would come back as a plain {label}; "
            f"convert it with {gates[0].__name__}(...), or declare {got}"
        )
    return AgentStateError(f"{path}: expected {label}, got {got}: convert the value, or change the annotation")


def too_deep(path: str) -> AgentStateError:
    """The error for containers within containers beyond the limit."""
    short = path if len(path) <= 120 else f"{path[:80]}...{path[-30:]}"
    return AgentStateError(
        f"{short}: nested more than {LIMIT} levels deep, or within itself: keep a flat form, such as a dict by id"
    )
