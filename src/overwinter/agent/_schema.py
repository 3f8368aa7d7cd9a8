"""An agent's state as bytes and back: what goes in comes back equal in value and type, or is refused.

Knows one agent class, its version and its upcasts. Does not know records, stores or who calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

import msgspec

from .._depth import check_depth
from ..errors import (
    AgentStateError,
    CorruptRecordError,
    MigrationError,
    MissingInitialError,
    NewerRecordError,
    OverwinterError,
)
from ._codec import LIMIT, Codec, encode_plain, reach, too_deep
from ._compare import difference
from ._defaults import check_shared, is_made_anew
from ._fields import UnresolvedAnnotation, agent_codec
from ._leaves import AnyCodec, ModelCodec
from ._leftovers import Leftovers, unknown_fields
from ._models import enc_hook, safe_text
from ._records import RecordCodec, fields_of
from ._upcasts import collect_upcasts, is_fields, is_upcast, run_upcast, upcast

__all__ = ["Schema", "UnresolvedAnnotation", "collect_upcasts", "is_upcast", "upcast"]

A = TypeVar("A", bound=msgspec.Struct)

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_untyped: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode
_dumped = AnyCodec(
    keys=frozenset({str, int, bytes}),
    advice="dump() returns JSON values and bytes: lists for tuples and sets, text for dates",
)


class Schema(Generic[A]):
    """How the agents of one class are written and read.

    Raises:
        TypeError: a field's type can't be kept, or the upcasts have a gap.
        UnresolvedAnnotation: an annotation names what is not defined, perhaps not yet.
    """

    def __init__(
        self, cls: type[A], *, name: str, version: int = 1, aliases: tuple[str, ...] = (), custom: bool = False
    ) -> None:
        self.cls, self.name, self.version, self.aliases, self.custom = cls, name, version, aliases, custom
        self._fields = fields_of(cls, "struct")
        self._names = frozenset(field[0] for field in self._fields)
        self.required = tuple(field[0] for field in self._fields if field[3])
        self._upcasts = {} if custom else collect_upcasts(cls, version)
        if not custom:
            _ = self._codec
            return
        names = [field[0] for field in self._fields]
        for each, default in zip(reversed(names), reversed(cast("Any", cls).__struct_defaults__), strict=False):
            check_shared(default, f"agent class {cls.__name__}: field {each}")

    @cached_property
    def _codec(self) -> RecordCodec:  # only where it is needed: a class with a format of its own may hold anything
        codec = agent_codec(self.cls)
        if codec.plain_load:
            try:
                _ = codec.native
            except TypeError as error:
                raise TypeError(f"agent class {self.cls.__name__}: its fields can't be kept: {error}") from None
        _ = codec.ok
        return codec

    @cached_property
    def fingerprint(self) -> bytes:
        """Eight bytes that change when the fields or their types do."""
        told = "dump and load" if self.custom else self._codec.shape(set()).partition("(")[2]
        return hashlib.blake2b(told.encode(errors="surrogatepass"), digest_size=8).digest()

    @cached_property
    def ordered(self) -> bool:
        """Whether equal states always have equal bytes. Not so for sets in pydantic models."""
        return self.custom or self._codec.ordered

    @cached_property
    def _exact(self) -> bool:
        return self._codec.exact

    @cached_property
    def repeats(self) -> bool:
        """Whether a state that was decoded is encoded as it was: no code of the class's own runs on the way."""
        return not self.custom and self.ordered and self._exact

    @cached_property
    def makes_defaults(self) -> bool:
        """Whether a field's default is made by a function that may make another one each time."""
        return any(map(is_made_anew, self.cls.__struct_defaults__))

    @cached_property
    def _has_models(self) -> bool:
        return any(isinstance(part, ModelCodec) for part in reach(self._codec))

    # ------------------------------------------------------------ to bytes

    def encode(self, agent: A, extras: Mapping[str, Any] = _NOTHING) -> bytes:
        """Check the state and return it as MessagePack, with *extras* beside the fields.

        Raises:
            AgentStateError: it is not what the class declares, or would not come back equal.
        """
        if self._plain and not extras:  # nearly always: two steps, and nothing to compare
            try:
                body = encode_plain(agent) if self._codec.quick(agent, LIMIT) else None
            except Exception:  # noqa: BLE001  # the way round finds out what it is, and says where
                body = None
            if body is not None:
                return body
        return self._encode_with_care(agent, extras)

    @cached_property
    def _plain(self) -> bool:
        """Whether what passes the check is written as it is, and comes back equal."""
        return not self.custom and self._codec.plain_dump and self._codec.exact and not self._has_models

    def _encode_with_care(self, agent: A, extras: Mapping[str, Any]) -> bytes:
        if self.custom:
            return self._encode_dump(agent)
        codec = self._codec
        plain = False
        try:
            plain = codec.ok(agent, LIMIT)
            if not plain:
                codec.explain(agent, self.name, LIMIT)
            body = self._write(agent, extras)
            if self._has_models:
                check_depth(body)  # as bytes: in keys, too
        except AgentStateError:
            raise
        except (CorruptRecordError, RecursionError):
            raise too_deep(self.name) from None
        except Exception as error:  # noqa: BLE001  # whatever refuses a value says so with the value; we say where
            raise self._unwritable(agent, error) from None
        if not self._exact:
            self._compare(agent, body)
        # an int where a float is declared comes back as the float: the bytes are those of what comes back
        if plain:
            return body
        again = self.copy(body)
        return self._write(again, extras.of(again, body) if isinstance(extras, Leftovers) else extras)

    def unchanged(self, agent: A, body: bytes, extras: Mapping[str, Any] = _NOTHING) -> bool:
        """Whether the state is certainly still the one that *body* encodes: bytes alone cost a fraction of a check."""
        try:
            return self.repeats and self._write(agent, extras) == body
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001  # encode tells what is wrong with it
            return False

    def _write(self, agent: A, extras: Mapping[str, Any]) -> bytes:
        codec = self._codec
        if codec.plain_dump and not extras:
            return encode_plain(agent)
        plain = codec.plain_dump
        fields = {each.wire: getattr(agent, each.name) for each in codec.fields} if plain else codec.to_wire(agent)
        body = encode_plain({**fields, **extras})
        return extras.add_to(agent, body) if isinstance(extras, Leftovers) else body

    def _unwritable(self, agent: A, error: Exception) -> AgentStateError:
        try:
            self._codec.explain(agent, self.name, LIMIT)
        except AgentStateError as found:
            return found
        for name, _, _, _ in self._fields:
            try:
                encode_plain(getattr(agent, name))
            except Exception as found:  # noqa: BLE001  # as in encode
                if type(found) is type(error):
                    return AgentStateError(f"{self.name}.{name}: can't be written ({type(error).__name__}): {_KINDS}")
        return AgentStateError(f"{self.name}: its state can't be written ({type(error).__name__}): {_KINDS}")

    def _compare(self, agent: A, body: bytes) -> None:
        try:
            back = self.copy(body)
        except Exception as error:  # noqa: BLE001  # validators are the user's: whatever they raise, it doesn't come back
            text = safe_text(error)
            raise AgentStateError(
                f"{self.name}: its state would not come back from the store: {text}: {_KINDS}"
            ) from None
        for name, _, _, _ in self._fields:
            place = difference(getattr(agent, name), getattr(back, name))
            if place is not None:
                raise AgentStateError(
                    f"{self.name}.{name}{place}: would not come back from the store as it is: {_KINDS}"
                )

    def _encode_dump(self, agent: A) -> bytes:
        data = cast("Any", agent).dump()
        path = f"{self.name}.dump()"
        try:
            _dumped.check(data, path)
            return encode_plain(data)
        except (OverflowError, UnicodeEncodeError):
            _dumped.explain(data, path, LIMIT)
            raise
        except RecursionError:
            raise too_deep(path) from None

    def dump_plain(self, agent: A) -> dict[str, Any]:
        """The fields as JSON values and bytes: what ``Agent.dump`` returns."""
        wire = agent if self._codec.plain_dump else self._codec.to_wire(agent)
        plain = msgspec.to_builtins(wire, builtin_types=(bytes, bytearray), enc_hook=enc_hook)
        return cast("dict[str, Any]", _untyped(encode_plain(plain)))

    def load_plain(self, data: Any, version: int) -> A:
        """Make an agent of what ``dump_plain`` of a class of *version* returned."""
        if version > self.version:
            raise NewerRecordError(
                f"{self.name}: the data is of version {version}, this class of version {self.version}: "
                "deploy the newer class"
            )
        try:
            body = encode_plain(data)
            if version < self.version:
                body = self._upcast(body, version, self.name)
            return cast(A, self._codec.decode(body))
        except OverwinterError:
            raise
        except Exception as error:  # noqa: BLE001  # validators are the user's
            raise MigrationError(
                f"{self.name}: data of version {version} does not fit the class: {safe_text(error)}"
            ) from None

    # ------------------------------------------------------------ from bytes

    def decode(
        self, body: bytes, *, version: int, fingerprint: bytes, has_extras: bool, key: str
    ) -> tuple[A, dict[str, Any]]:
        """The agent of a record and what the record holds besides.

        Raises:
            CorruptRecordError: the bytes are not what this very class wrote.
            NewerRecordError: a newer version of the class wrote them.
            MigrationError: they are of a former version or shape, and do not become one of this class.
        """
        where = f"{self.name} {key!r}"
        if version > self.version:
            raise NewerRecordError(
                f"{where}: the record is of version {version}, this class of version {self.version}: "
                "deploy the newer class"
            )
        if self.custom:
            return self._load(body, version, where), {}
        same = version == self.version and fingerprint == self.fingerprint
        if version < self.version:
            body = self._upcast(body, version, where)
        try:
            agent = cast(A, self._codec.decode(body))
        except Exception as error:  # noqa: BLE001  # validators are the user's; hostile bytes raise what they like
            raise self._unreadable(where, version, same, safe_text(error)) from None
        if not (same and self._codec.strict) and not self._codec.ok(agent, LIMIT):
            try:  # another shape, or another writer, may give what this one doesn't allow, such as a date under Any
                self._codec.explain(agent, self.name, LIMIT)
            except AgentStateError as error:
                raise self._unreadable(where, version, same, str(error)) from None
        if same and not has_extras:
            return agent, {}
        try:
            return agent, unknown_fields(self._codec, agent, body, self.name, key)
        except NewerRecordError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            raise self._unreadable(where, version, same, safe_text(error)) from None

    def _unreadable(self, where: str, version: int, same: bool, text: str) -> MigrationError | CorruptRecordError:
        if same:
            return CorruptRecordError(
                f"{where}: the record does not decode: {text}: restore a backup; the stored bytes are unchanged"
            )
        if version == self.version:
            return MigrationError(
                f"{where}: the record does not fit the class, which changed shape without a new version=: {text}: "
                f"set version={version + 1} and write an @upcast(since={version}); the stored bytes are unchanged"
            )
        return MigrationError(
            f"{where}: after its upcasts the record of version {version} does not fit version {self.version}: {text}: "
            "mend the upcast; the stored bytes are unchanged"
        )

    def _upcast(self, body: bytes, version: int, where: str) -> bytes:
        try:
            data = _untyped(body)
        except Exception as error:  # noqa: BLE001  # hostile bytes raise what they like
            if "hashable" in str(error):  # which msgspec has no type of error for
                raise MigrationError(
                    f"{where}: the record of version {version} holds a dict whose keys are maps, which no @upcast "
                    "can be given; the stored bytes are unchanged. Read it with a load() of the class's own"
                ) from None
            raise self._unreadable(where, version, True, safe_text(error)) from None
        for since in range(version, self.version):
            step = self._upcasts.get(since)
            if step is None or not is_fields(data):
                raise CorruptRecordError(
                    f"{where}: the record is no map of fields of version {since}: restore a backup"
                )
            data = run_upcast(step, since, data, where)
        try:
            return encode_plain(self._rewired(data))
        except Exception as error:
            raise MigrationError(
                f"{where}: the result of @upcast(since={self.version - 1}) can't be written: mend it"
            ) from error

    def _rewired(self, data: dict[str, Any]) -> dict[str, Any]:
        """Let an upcast return real values too, where the wire has a form of our own for them."""
        data = dict(data)
        for field in self._codec.fields:
            if field.wire in data and not field.codec.plain_dump:
                value = data[field.wire]
                if not _is_wire(field.codec, value) and field.codec.fits(value, LIMIT - 1):
                    data[field.wire] = field.codec.to_wire(value)
        return data

    def _load(self, body: bytes, version: int, where: str) -> A:
        try:
            data = _untyped(body)
        except Exception as error:  # noqa: BLE001  # hostile bytes raise what they like
            raise self._unreadable(where, version, True, safe_text(error)) from None
        try:
            agent: object = cast("Any", self.cls).load(data, version)
        except Exception as error:
            raise MigrationError(
                f"{where}: load() raised {type(error).__name__} on data of version {version}; "
                "the stored bytes are unchanged"
            ) from error
        if type(agent) is not self.cls:
            raise MigrationError(
                f"{where}: load() returned {type(agent).__name__}: it must return a {self.cls.__name__}"
            )
        return agent

    # ------------------------------------------------------------ without a record

    def restore(self, agent: A, body: bytes, extras: Mapping[str, Any] = _NOTHING) -> None:
        """Put the fields back in place from bytes that ``encode`` made. *extras* are no fields."""
        before = self.copy(body, extras)
        for name in agent.__struct_fields__:
            setattr(agent, name, getattr(before, name))
        if self.custom:  # whose load() may set more than fields, and whose dump() may say what that became
            vars(agent).update(vars(before))

    def copy(self, body: bytes, extras: Mapping[str, Any] = _NOTHING) -> A:
        """A detached agent from bytes that ``encode`` made; *extras*, if given, are then those of the copy."""
        if self.custom:
            return self._load(body, self.version, self.name)
        agent = cast(A, self._codec.decode(body))
        if isinstance(extras, Leftovers):
            extras.learn(agent, body)
        return agent

    def fresh(self, initial: Mapping[str, Any] | A | None, key: str) -> A:
        """A new agent, which shares nothing with *initial*.

        Raises:
            MissingInitialError: *initial* lacks a required field, or has one that the class hasn't.
            AgentStateError: a value is not of the declared type.
        """
        where = f"{self.name} {key!r}"
        agent = self._made(initial, where)
        try:
            if initial is not None:
                return self.copy(self.encode(agent))
            if not self.custom:
                self._codec.check(agent, self.name)
        except AgentStateError as error:
            raise AgentStateError(f"{where}: {error}") from None
        return agent

    def _made(self, initial: Mapping[str, Any] | A | None, where: str) -> A:
        if initial is None and not self.required:
            return self.cls()
        if type(initial) is self.cls:
            return initial
        if initial is not None and not isinstance(initial, Mapping):
            raise MissingInitialError(
                f"{where}: initial must be a mapping of fields or a {self.cls.__name__}, not {type(initial).__name__}"
            )
        given = {} if initial is None else dict(initial)
        missing = [name for name in self.required if name not in given]
        unknown = sorted(str(name) for name in given.keys() - self._names)
        if missing or unknown:
            wrong = {"lacks": missing, "has unknown": unknown}
            told = " and ".join(f"{what} {', '.join(names)}" for what, names in wrong.items() if names)
            raise MissingInitialError(
                f"{where}: initial {told}: pass initial={{...}} with the fields of {self.cls.__name__}, "
                "or give the fields defaults"
            )
        return self.cls(**given)


def _is_wire(codec: Codec, value: Any) -> bool:
    """Whether it can be read as it is: then it stood in the record so, and an upcast let it be, or moved it."""
    try:
        raw = encode_plain(value)
        if difference(_untyped(raw), value) is not None:
            return False
        codec.decode(raw)
    except Exception:  # noqa: BLE001  # a real value, which has no wire form or another, or fails a validator
        return False
    return True


_KINDS = "keep values that the declared type can give back, or make the attribute transient()"
