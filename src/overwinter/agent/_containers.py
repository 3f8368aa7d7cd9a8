"""Codecs of what holds items: lists, sets, tuples, dicts, and unions.

A union that msgspec can't tell apart is written as ``[tag, value]``, the tag being the name of the value's type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Union, cast

import msgspec

from ..errors import AgentStateError
from ._bulk import WORTH, all_plain
from ._codec import UNMADE, Codec, PlainKey, Source, Step, encode_plain, misfit, reach, too_deep
from ._leaves import AnyCodec, LiteralCodec, Scalar
from ._models import thaw_hook

__all__ = ["DictCodec", "FixedTupleCodec", "ItemsCodec", "UnionCodec"]

Bytes = bytes | msgspec.Raw

_raws: Callable[[Bytes], list[msgspec.Raw]] = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_tagged: Callable[[Bytes], tuple[str, msgspec.Raw]] = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw]).decode
_fields: Callable[[Bytes], dict[str, msgspec.Raw]] = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_NIL = b"\xc0"


class ItemsCodec(Codec):
    """A list, set, frozenset or tuple of any length."""

    wires = frozenset({"array"})

    def __init__(self, annotation: Any, cls: type, item: Codec) -> None:
        label = f"tuple[{item.label}, ...]" if cls is tuple else f"{cls.__name__}[{item.label}]"
        super().__init__(annotation, label, tag=cls.__name__, parts=(item,))
        self.gates, self._cls, self._item = (cls,), cls, item
        self._is_set = cls in (set, frozenset)
        self.own_dump = not self._is_set  # the order of a set's items is an accident: equal sets would differ in bytes

    @property
    def own_load(self) -> bool:  # type: ignore[override]  # asked for only once all parts are known
        return not (self._is_set and _has_any(self._item))

    def emit(self, source: Source, var: str, pad: int, depth: int) -> None:
        source.level(depth)
        item = source.name()
        source.line(pad, f"if type({var}) is not {self._cls.__name__}: return False")
        if self._cls is list and isinstance(self._item, DictCodec) and self._item.json:
            source.line(pad, f"for {item} in {var}:")
            source.line(pad + 1, f"if type({item}) is not dict: return False")
            sure = f"{source.bind(all_plain)}({var}, room - {depth + 2})"
            source.line(pad, f"if len({var}) < {WORTH} or not {sure}:")
            pad += 1
        source.line(pad, f"for {item} in {var}:")
        self._item.emit(source, item, pad + 1, depth + 1)

    def explain(self, value: Any, path: str, room: int) -> None:
        if type(value) is not self.gates[0]:
            raise misfit(path, self.label, value, self.gates)
        if room < 1:
            raise too_deep(path)
        for number, item in enumerate(cast("list[Any]", value)):
            self._item.explain(item, f"{path}[{number}]", room - 1)

    def to_wire(self, value: Any) -> Any:
        items = list(value) if self._item.plain_dump else [self._item.to_wire(item) for item in value]
        return sorted(items, key=encode_plain) if self._is_set else items

    def from_wire(self, raw: Bytes) -> Any:
        return cast("Any", self._cls)(self._item.decode(item) for item in _raws(raw))

    def steps(self, value: Any, plain: Any) -> Iterator[Step]:
        if self._is_set:
            return (((None,), self._item, UNMADE, node) for node in plain)
        return (((n,), self._item, item, node) for n, (item, node) in enumerate(zip(value, plain, strict=False)))

    def shape(self, seen: set[Any]) -> str:
        return f"{self._cls.__name__}[{self._item.shape(seen)}]"


class FixedTupleCodec(Codec):
    """A tuple with a type for each place."""

    wires = frozenset({"array"})
    gates = (tuple,)

    def __init__(self, annotation: Any, items: tuple[Codec, ...]) -> None:
        super().__init__(
            annotation, f"tuple[{', '.join(item.label for item in items) or '()'}]", tag="tuple", parts=items
        )

    def emit(self, source: Source, var: str, pad: int, depth: int) -> None:
        source.level(depth)
        source.line(pad, f"if type({var}) is not tuple or len({var}) != {len(self.parts)}: return False")
        for number, part in enumerate(self.parts):
            item = source.name()
            source.line(pad, f"{item} = {var}[{number}]")
            part.emit(source, item, pad, depth + 1)

    def explain(self, value: Any, path: str, room: int) -> None:
        if type(value) is not tuple:
            raise misfit(path, self.label, value, self.gates)
        items = cast("Any", value)
        if len(items) != len(self.parts):
            raise misfit(f"{path} (a tuple of {len(items)} items)", self.label, items)
        if room < 1:
            raise too_deep(path)
        for number, (part, item) in enumerate(zip(self.parts, items, strict=True)):
            part.explain(item, f"{path}[{number}]", room - 1)

    def to_wire(self, value: Any) -> Any:
        return [part.dump(item) for part, item in zip(self.parts, value, strict=True)]

    def from_wire(self, raw: Bytes) -> Any:
        raws = _raws(raw)
        if len(raws) != len(self.parts):
            raise msgspec.ValidationError(f"Expected `array` of length {len(self.parts)}, got {len(raws)}")
        return tuple(part.decode(item) for part, item in zip(self.parts, raws, strict=True))

    def steps(self, value: Any, plain: Any) -> Iterator[Step]:
        parts = zip(self.parts, value, plain, strict=False)
        return (((n,), part, item, node) for n, (part, item, node) in enumerate(parts))

    def shape(self, seen: set[Any]) -> str:
        return f"tuple[{','.join(part.shape(seen) for part in self.parts)}]"


def _has_any(item: Codec) -> bool:
    """Whether an object in it has a field of ``Any``: msgspec makes a tuple of a list there, where it reads a key."""
    return any(isinstance(each, AnyCodec) for part in reach(item) if part.own_fields for each in reach(part))


class DictCodec(Codec):
    """A dict whose keys are plain values."""

    wires = frozenset({"map"})
    gates = (dict,)

    def __init__(self, annotation: Any, key: Codec, value: Codec) -> None:
        super().__init__(annotation, f"dict[{key.label}, {value.label}]", tag="dict", parts=(key, value))
        self._any_key = isinstance(key, AnyCodec)
        # Any as a key: what comes back under Any from any key is told by its type, and JSON's keys are strings
        self._key, self._value = (Scalar(str, "str") if self._any_key else key), value
        self.json = type(self._key) is Scalar and self._key.gates == (str,) and isinstance(value, AnyCodec)
        """Whether it holds JSON values and bytes under any ``str``."""

    def settle(self, where: str) -> None:
        if not self._key.plain_dump:
            raise TypeError(
                f"{where}: {self._key.label} can't be the key of a dict that is kept: use str, int or a tuple of such"
            )
        if _has_any(self._key):
            raise TypeError(
                f"{where}: {self._key.label} can't be the key of a dict that is kept, for an object in it has a field "
                "of Any, where a list would come back as a tuple: give the field its real type"
            )

    def emit(self, source: Source, var: str, pad: int, depth: int) -> None:
        source.level(depth)
        key, value = source.name(), source.name()
        source.line(pad, f"if type({var}) is not dict: return False")
        source.line(pad, f"for {key}, {value} in {var}.items():")
        tests = [self._key.test(source, key, depth + 1), self._value.test(source, value, depth + 1)]
        if None not in tests:
            source.line(pad + 1, f"if {' or '.join(f'({test})' for test in tests)}: return False")
            return
        self._key.emit(source, key, pad + 1, depth + 1)
        self._value.emit(source, value, pad + 1, depth + 1)

    def explain(self, value: Any, path: str, room: int) -> None:
        if type(value) is not dict:
            raise misfit(path, self.label, value, self.gates)
        if room < 1:
            raise too_deep(path)
        for number, (key, item) in enumerate(cast("Any", value).items()):
            if self._any_key and type(key) is not str:
                raise misfit(f"{path}[key {number}] (declare the keys' type, such as dict[int, str])", "str", key)
            self._key.explain(key, f"{path}[key {number}]", room - 1)
            self._value.explain(item, f"{path}[entry {number}]", room - 1)

    def to_wire(self, value: Any) -> Any:
        return {key: self._value.dump(item) for key, item in value.items()}

    def from_wire(self, raw: Bytes) -> Any:
        return {key: self._value.decode(item) for key, item in self._entries(raw).items()}

    @cached_property
    def _entries(self) -> Callable[[Bytes], dict[Any, msgspec.Raw]]:
        wanted = dict[self._key.annotation, msgspec.Raw]  # type: ignore[name-defined]  # a type made at run time
        return msgspec.msgpack.Decoder(wanted).decode

    def steps(self, value: Any, plain: Any) -> Iterator[Step]:
        for (key, item), (node_key, node) in zip(value.items(), plain.items(), strict=False):
            yield (None,), self._key, UNMADE, node_key.plain if isinstance(node_key, PlainKey) else node_key
            yield ((key,),), self._value, item, node

    def shape(self, seen: set[Any]) -> str:
        return f"dict[{self._key.shape(seen)},{self._value.shape(seen)}]"


class UnionCodec(Codec):
    """One of several types, told apart by the exact type of the value."""

    def __init__(self, annotation: Any, members: list[Codec]) -> None:
        members, kept = _without_literals(members), len(members)
        super().__init__(annotation, " | ".join(member.label for member in members), parts=tuple(members))
        self._nil = any(member.gates == (type(None),) for member in members)
        self._real = [member for member in members if member.gates != (type(None),)]
        self.gates = tuple(dict.fromkeys(gate for member in members for gate in member.gates))
        self.wires = frozenset(wire for member in members for wire in member.wires)
        self._reduced = Union[tuple(member.annotation for member in members)]  # noqa: UP007  # members known at run time
        self._by_type: dict[type, list[Codec]] = {}
        for member in members:
            for gate in member.gates:
                self._by_type.setdefault(gate, []).append(member)
        # an int would come back as the member of an enum that has it as its value
        self._takes_int = not any("int" in member.wires for member in members)
        self._structs = _struct_tags(self._real)
        self._told = len(self._real) == 1 or self._told_apart()
        self.own_load = self._told and len(members) == kept
        self.own_dump = self._told
        self._direct = False  # known when all parts are
        self._tags: dict[str, Codec] = {member.tag: member for member in self._real}

    def _told_apart(self) -> bool:
        """Whether msgspec can tell the members apart by what they are written as."""
        wires = [wire for member in self._real for wire in member.wires if not (self._structs and wire == "map")]
        if len(set(wires)) != len(wires):
            return False
        try:
            msgspec.msgpack.Decoder(self._reduced)
        except (TypeError, NotImplementedError):  # the latter for an enum beyond 64 bits, which is kept by its names
            return False
        return True

    def settle(self, where: str) -> None:
        if any(isinstance(member, AnyCodec) for member in self._real) and len(self._real) > 1:
            raise TypeError(f"{where}: Any beside other types in a union: name the types")
        self._direct = len(self._real) == 1 or (self._told and all(member.plain_load for member in self._real))
        if not self._direct and self._structs is None and len(self._tags) < len(self._real):
            name = _twice([member.tag for member in self._real])
            raise TypeError(
                f"{where}: {self.label} has two members called {name}, which a record can't tell apart: "
                "give one of the classes another name, or wrap it in one"
            )

    # ------------------------------------------------------------ check

    def test(self, source: Source, var: str, depth: int) -> str | None:
        if self._nil and len(self._real) == 1:
            test = self._real[0].test(source, var, depth)
            return test and f"{var} is not None and ({test})"
        simple = all(
            isinstance(member, Scalar) and member.test(source, var, depth).count(" or ") == 0 for member in self.parts
        )
        return f"type({var}) not in {source.bind(frozenset(self.gates))}" if simple else None

    def emit(self, source: Source, var: str, pad: int, depth: int) -> None:
        test = self.test(source, var, depth)
        if test is not None:
            source.line(pad, f"if {test}: return False")
        elif any(isinstance(member, AnyCodec) for member in self._real):
            source.line(pad, f"if {var} is not None:")
            self._real[0].emit(source, var, pad + 1, depth)
        else:
            self._emit_cases(source, var, pad, depth + (0 if self._direct or self._structs else 1))

    def _emit_cases(self, source: Source, var: str, pad: int, depth: int) -> None:
        kind = source.name()
        source.line(pad, f"{kind} = type({var})")
        word = "if"
        for gate, members in self._by_type.items():
            source.line(pad, f"{word} {kind} is {source.bind(gate)}:")
            word = "elif"
            if gate is type(None):
                source.line(pad + 1, "pass")
            elif len(members) == 1:
                members[0].emit(source, var, pad + 1, depth)
            else:
                calls = " or ".join(source.call(member, var, depth) for member in members)
                source.line(pad + 1, f"if not ({calls}): return False")
        source.line(pad, "else: return False")

    def explain(self, value: Any, path: str, room: int) -> None:
        member = self._member(value, path, room)
        if member is None:
            if type(value) is int and float in self.gates:
                raise AgentStateError(
                    f"{path}: expected {self.label}, got int, which would be read as a value of the enum: "
                    "write float(value)"
                )
            raise misfit(path, self.label, value, self.gates)
        member.explain(value, path, room if self._direct or self._structs else room - 1)

    def _member(self, value: Any, path: str = "", room: int = 100) -> Codec | None:
        """The member whose type the value has; of several, the first that it fits."""
        kind = cast("Any", type(value))
        found = self._by_type.get(kind, [])
        if not found and kind is int and self._takes_int:
            found = self._by_type.get(float, [])
        if not found:
            return next((member for member in self._real if isinstance(member, AnyCodec)), None)
        for member in found[:-1]:
            if member.fits(value, room):
                return member
        return found[-1]

    # ------------------------------------------------------------ wire

    def to_wire(self, value: Any) -> Any:
        if value is None and self._nil:
            return None
        member = self._member(value)
        assert member is not None, "checked before it is dumped"
        body = member.dump(value)
        return body if self._direct or self._structs else [member.tag, body]

    def from_wire(self, raw: Bytes) -> Any:
        if self._nil and bytes(raw) == _NIL:
            return None
        if len(self._real) == 1:
            return self._real[0].decode(raw)
        if self._direct:
            return self._reduced_decoder(raw)
        if self._structs is not None:
            field, classes = self._structs
            found = _fields(raw).get(field)
            tag, body = (None if found is None else msgspec.msgpack.decode(found)), raw
            member = classes.get(tag) if isinstance(tag, str | int) else None
        else:
            tag, body = _tagged(raw)
            member = self._tags.get(tag)
        if member is None:
            raise msgspec.ValidationError(f"Expected `{self.label}`, got something else")
        return member.decode(body)

    @cached_property
    def _reduced_decoder(self) -> Callable[[Bytes], Any]:
        return msgspec.msgpack.Decoder(self._reduced, dec_hook=thaw_hook).decode

    def steps(self, value: Any, plain: Any) -> Iterable[Step]:
        member = None if value is None and self._nil else self._member(value)
        body = plain if self._direct or self._structs or member is None else plain[1]
        return () if member is None else (((), member, value, body),)

    def shape(self, seen: set[Any]) -> str:
        return "|".join(part.shape(seen) for part in self.parts)


def _without_literals(members: list[Codec]) -> list[Codec]:
    """``Literal["auto"] | str`` is ``str``, as far as values go; msgspec refuses the pair."""
    scalars = {gate for member in members if isinstance(member, Scalar) for gate in member.gates}
    return [member for member in members if not (isinstance(member, LiteralCodec) and scalars.issuperset(member.gates))]


def _struct_tags(members: list[Codec]) -> tuple[str, dict[str | int, Codec]] | None:
    """The field and the values by which Structs with tags of their own are told apart, if all members are such."""
    configs = [getattr(member.annotation, "__struct_config__", None) for member in members]
    if len(members) < 2 or any(config is None or config.tag is None or config.array_like for config in configs):
        return None
    fields = {config.tag_field for config in configs if config is not None}
    tags = {config.tag: member for config, member in zip(configs, members, strict=True) if config is not None}
    return (fields.pop(), tags) if len(fields) == 1 and len(tags) == len(members) else None


def _twice(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
