"""Signals: events that are routed to methods, for callers who know an event's type and not a method.

Pure. Knows how a signal's data becomes a method's arguments; not who delivers it.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar, cast, get_type_hints

import msgspec
from msgspec.inspect import CustomType, type_info

from ..errors import SignalDataError
from ._fields import dec_hook
from ._models import is_model

__all__ = ["Route", "Signal", "on", "signal_types"]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__overwinter_signals__"


class Signal(msgspec.Struct, frozen=True):
    """An event, with the attributes of CloudEvents 1.0.

    ``data`` is a mapping whose items become the parameters of the method that is routed to ``type``.
    """

    type: str
    data: Any = None
    source: str = "overwinter"
    id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    time: datetime | None = None
    subject: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    specversion: str = "1.0"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("type", self.type), ("id", self.id)]  # as below: msgspec's own would show the data

    def __repr__(self) -> str:  # the data may be secret
        return f"Signal({self.type!r}, id={self.id!r})"


def on(type: str, /) -> Callable[[F], F]:
    """Route signals of *type* to the decorated method; one method may have several routes."""
    if not isinstance(cast(object, type), str) or not type:
        raise TypeError('@on takes the type of a signal: @on("order.paid")')

    def mark(method: F) -> F:
        setattr(method, _MARK, (*signal_types(method), type))
        return method

    return mark


def signal_types(method: object) -> tuple[str, ...]:
    """The types of signals that ``@on`` routes to *method*."""
    return cast("tuple[str, ...]", getattr(method, _MARK, ()))


def _check_known(hint: Any) -> None:
    """Raise ``TypeError`` if data for *hint* must hold an object of a class that nothing converts to."""
    found: dict[int, Any] = {}
    open_: list[Any] = [type_info(hint)]
    while open_:
        one = open_.pop()
        if isinstance(one, CustomType) and one.cls is not object and not is_model(one.cls):
            raise TypeError(f"nothing converts to {one.cls.__name__}")
        if id(one) not in found:
            found[id(one)] = one  # also keeps the id from being used again
            within = ("type", "item_type", "key_type", "value_type")
            open_ += [getattr(one, part) for part in within if hasattr(one, part)]
            open_ += getattr(one, "item_types", ())
            open_ += [field.type for field in getattr(one, "fields", ()) if field.required]


class Route:
    """How signals of one type reach one method."""

    __slots__ = ("_converters", "_open", "_required", "_rest", "_whole", "agent", "method", "type")

    def __init__(self, agent: str, type: str, method: str, function: Callable[..., Any]) -> None:
        self.agent, self.type, self.method = agent, type, method
        parameters = list(inspect.signature(function).parameters.values())[1:]
        try:
            hints = get_type_hints(function, include_extras=True)
        except NameError as error:
            raise self._undefined(error) from None
        self._whole = next((p.name for p in parameters if hints.get(p.name) is Signal), None)
        self._rest: Any = next((hints.get(p.name, Any) for p in parameters if p.kind is p.VAR_KEYWORD), None)
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != self._whole]
        self._required = {p.name for p in named if p.default is p.empty}
        self._converters: dict[str, Any] = {p.name: hints.get(p.name, Any) for p in named}
        for name, hint in (*self._converters.items(), ("**", self._rest)):
            self._check_hint(name, hint)
        odd = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
        if odd:
            raise TypeError(
                f"{agent}.{self.method} is routed to signal {type!r}: "
                f"parameter {odd[0]!r} must be named, not positional"
            )

    def _check_hint(self, name: str, hint: Any) -> None:
        """Raise ``TypeError`` for what no data converts to: every signal would fail, as if it were at fault."""
        try:
            msgspec.msgpack.Decoder(hint, dec_hook=dec_hook)
            if name in self._required:
                _check_known(hint)
        except NameError as error:
            raise self._undefined(error) from None
        except TypeError as error:
            raise TypeError(
                f"{self.agent}.{self.method} is routed to signal {self.type!r}: no data converts to the annotation of "
                f"parameter {name!r} ({error}): use one of its types, Structs with tags, or Any and convert it yourself"
            ) from None

    def _undefined(self, error: NameError) -> TypeError:
        return TypeError(
            f"agent {self.agent}: an annotation of {self.method}, routed to signal {self.type!r}, says {error.name}, "
            "which is not defined: import it at run time too, for the data is converted to it"
        )

    def arguments(self, signal: Signal, key: str) -> dict[str, Any]:
        """The keyword arguments that *signal* stands for.

        Raises:
            SignalDataError: its data lacks a parameter, has one too many, or does not convert.
        """
        where = f"{self.agent} {key!r}: signal {self.type!r} to {self.method}()"
        data: object = {} if signal.data is None else signal.data
        if not isinstance(data, Mapping):
            if self._whole is not None and not self._required:
                return {self._whole: signal}
            raise SignalDataError(f"{where}: its data must be a mapping of parameters, not {type(data).__name__}")
        given = cast("Mapping[str, Any]", data)
        missing = sorted(self._required - given.keys())
        unknown = sorted(str(name) for name in given.keys() - self._converters.keys() if not self._is_known(name))
        if missing or unknown:
            wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(
                unknown
            )
            raise SignalDataError(
                f"{where}: its data {' and '.join(wrong)}; the parameters are {', '.join(self._converters) or 'none'}"
            )
        arguments = {
            name: self._convert(name, value, where)
            for name, value in given.items()
            if self._open or name in self._converters
        }
        if self._whole is not None:
            arguments[self._whole] = signal
        return arguments

    def _is_known(self, name: object) -> bool:
        """Whether a name that is no parameter may stand in the data, for ``**`` or for who takes the whole signal."""
        return type(name) is str and name != "self" if self._open else self._whole is not None

    def _convert(self, name: str, value: Any, where: str) -> Any:
        try:
            return msgspec.convert(value, self._converters.get(name, self._rest), dec_hook=dec_hook)
        except (msgspec.ValidationError, ValueError, TypeError, NotImplementedError):  # the last of `dec_hook`
            # the original text may quote the data
            raise SignalDataError(
                f"{where}: its data does not convert: {name} does not fit the method's annotation"
            ) from None
