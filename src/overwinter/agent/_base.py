"""What an agent is: the base class, its class keywords, and the checks of a class.

Pure: no asyncio, no I/O. An agent doesn't know whether it is live, nor who called it.
"""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, cast, dataclass_transform

import msgspec
from msgspec import StructMeta

from ..errors import UsageError
from ._checks import check_fields, check_hook, check_init, check_keywords
from ._defaults import own_default
from ._schema import Schema, UnresolvedAnnotation, collect_upcasts, is_upcast
from ._signals import Route, signal_types

__all__ = [
    "Agent",
    "AgentMeta",
    "AgentType",
    "Method",
    "agent_type",
    "give_key",
    "interleave",
    "readonly",
    "stream",
    "transient",
]

A = TypeVar("A", bound="Agent")
F = TypeVar("F", bound=Callable[..., Any])

CLAIMED = ("key", "dump", "load", "on_start", "on_stop", "on_rollback")
KEY = "#key"  # our own entries in an agent's __dict__ can't clash: they are no identifiers


class _Transient:
    """The mark that ``transient()`` leaves in a class body."""


def transient(*, init: Literal[False] = False) -> Any:  # noqa: ARG001  # for type checkers: no argument of __init__
    """Declare an attribute that is not kept: ``on_start`` sets it, each time the agent comes alive."""
    return _Transient()


def readonly(method: F) -> F:
    """Promise that a method changes no state: it may run beside other readonly calls, and nothing is written."""
    method.__overwinter_readonly__ = True  # type: ignore[attr-defined]  # a mark on a function
    return method


def interleave(method: F) -> F:
    """Let a method run even while another call runs: for "how far are you?". Implies ``@readonly``.

    It sees state that may still be rolled back, so its reply is provisional.
    """
    method.__overwinter_interleave__ = True  # type: ignore[attr-defined]  # as above
    return readonly(method)


def stream(*, provisional: bool) -> Callable[[F], F]:
    """Say of a streaming method that its items are *provisional*: they leave at once, and no ``yield`` commits.

    Then the whole call is rolled back if it fails, and a consumer may have seen what never became durable.
    """

    def mark(method: F) -> F:
        method.__overwinter_provisional__ = provisional  # type: ignore[attr-defined]  # as above
        return method

    return mark


class Method:
    """One method that can be called."""

    __slots__ = ("function", "interleave", "name", "provisional", "readonly", "streaming")

    def __init__(self, name: str, function: Callable[..., Any], *, readonly: bool = False) -> None:
        self.name = name
        self.function = function
        self.readonly = readonly
        self.interleave: bool = getattr(function, "__overwinter_interleave__", False)
        self.provisional: bool = getattr(function, "__overwinter_provisional__", False)
        self.streaming = inspect.isasyncgenfunction(function)


_struct_names: frozenset[str] = frozenset(dir(msgspec.Struct))


def _take_transients(clsname: str, ns: dict[str, Any]) -> frozenset[str]:
    """Take what is declared ``transient()`` out of a class body, before msgspec would make fields of it."""
    names = frozenset(name for name, value in ns.items() if isinstance(value, _Transient))
    annotations: dict[str, Any] = ns.get("__annotations__", {})
    for name in names:
        if name in CLAIMED:
            raise TypeError(
                f"agent class {clsname}: {name!r} is a name that Agent claims: call the attribute something else"
            )
        if name not in annotations:
            raise TypeError(
                f"agent class {clsname}: {name} = transient() needs an annotation: {name}: SomeType = transient()"
            )
        del annotations[name], ns[name]
    return names


def _own_defaults(ns: dict[str, Any]) -> None:
    """Make a factory of each default that can change, before msgspec would let all agents share it."""
    for name, hint in ns.get("__annotations__", {}).items():
        if name in ns and "ClassVar" not in str(hint):
            ns[name] = own_default(ns[name])


def _check_base(clsname: str, base: type) -> None:
    """Fields come from agents alone: msgspec would pass over the annotations of any other base in silence."""
    for parent in base.__mro__:
        check_init(f"agent class {clsname}", vars(parent))
        kept = [n for n, hint in vars(parent).get("__annotations__", {}).items() if "ClassVar" not in str(hint)]
        if (
            kept
            and not isinstance(parent, AgentMeta)
            and parent.__module__ not in ("msgspec", "typing", "abc", "builtins")
        ):
            raise TypeError(
                f"agent class {clsname}: base {parent.__name__} annotates {kept[0]!r} but is no agent, "
                f"so it would not be kept: make {parent.__name__} a subclass of Agent"
            )


class AgentMeta(StructMeta, ABCMeta):
    """Makes an agent class and checks it: a mistake in a class is a ``TypeError`` where the class stands."""

    def __new__(
        mcls,
        clsname: str,
        bases: tuple[type, ...],
        ns: dict[str, Any],
        /,
        *,
        name: str | None = None,
        version: int = 1,
        aliases: tuple[str, ...] = (),
        **kw: Any,
    ) -> type:
        if kw:
            raise TypeError(
                f"agent class {clsname}: unknown class keyword {next(iter(kw))!r}; "
                "there are name=, version= and aliases="
            )
        check_init(f"agent class {clsname}", ns)
        transients = _take_transients(clsname, ns)
        _own_defaults(ns)
        for base in bases:
            _check_base(clsname, base)
        cls = super().__new__(mcls, clsname, bases, ns, kw_only=True, dict=True, weakref=True)
        if bases and bases[0] is not msgspec.Struct:
            _types[cls] = AgentType(
                cast("type[Agent]", cls), clsname if name is None else name, version, aliases, transients
            )
        return cls

    def __init__(cls, clsname: str, bases: tuple[type, ...], ns: dict[str, Any], /, **kw: Any) -> None:
        super().__init__(clsname, bases, ns)


_types: dict[type, AgentType[Any]] = {}


def agent_type(cls: type[A]) -> AgentType[A]:
    """What overwinter knows of an agent class; raises ``TypeError`` if it is none."""
    try:
        return _types[cls]
    except (KeyError, TypeError):
        raise TypeError(f"{cls!r} is not a subclass of overwinter.Agent") from None


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field, transient))
class Agent(msgspec.Struct, metaclass=AgentMeta):
    """The base of all agents.

    Annotated fields are kept; every other attribute is transient and is set in ``on_start``. Public ``async``
    methods are the calls. Class keywords: ``name`` (in the store; default: the class's name), ``version`` (of the
    fields; with an ``@upcast`` from each former one) and ``aliases`` (former names).
    """

    if TYPE_CHECKING:

        def __init_subclass__(
            cls, *, name: str | None = None, version: int = 1, aliases: tuple[str, ...] = ()
        ) -> None: ...

    @property
    def key(self) -> str:
        """The key under which this agent lives."""
        try:
            return cast(str, self.__dict__[KEY])
        except KeyError:
            raise UsageError(
                f"this {type(self).__name__} has no key: it is a plain object, not an agent under a manager"
            ) from None

    def dump(self) -> Any:
        """Return what is kept, as plain data. Override it together with ``load`` for a format of your own."""
        return agent_type(type(self)).schema.dump_plain(self)

    @classmethod
    def load(cls, data: Any, version: int) -> Self:
        """Make an agent of what ``dump`` returned, *version* being that of the class that did."""
        return agent_type(cls).schema.load_plain(data, version)

    async def on_start(self, *args: Any, **kwargs: Any) -> None:
        """Called each time the agent comes alive, with the manager's ``context`` if it takes an argument."""

    async def on_stop(self) -> None:
        """Called before the agent leaves memory. State that it changes is stored once more."""

    def on_rollback(self) -> None:
        """Called after the fields went back to what they were before a failed call. Mend transient attributes here."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []  # as below: msgspec's own would show the state

    def __repr__(self) -> str:  # never the state: it would end up in logs
        key = self.__dict__.get(KEY)
        return f"<{type(self).__name__} {key!r}>" if key is not None else f"<{type(self).__name__}, not live>"


class _Seed:
    """Lends agents the dictionary of an instance: those of one class share their keys, and take half the memory."""


def give_key(agent: Agent, key: str) -> None:
    """Tell an agent under which key it lives."""
    attributes = vars(agent)
    if attributes:
        attributes[KEY] = key
    else:
        seed = _Seed()
        setattr(seed, KEY, key)
        agent.__dict__ = seed.__dict__  # pyright: ignore[reportAttributeAccessIssue]  # an instance's is a plain dict


class AgentType(Generic[A]):
    """One agent class as the rest of the house sees it."""

    def __init__(
        self, cls: type[A], name: str, version: int, aliases: tuple[str, ...], transients: frozenset[str]
    ) -> None:
        self.cls, self.name, self.version, self.aliases = cls, name, version, aliases
        check_keywords(f"agent class {cls.__name__}", name, version, aliases)
        self.transients: frozenset[str] = transients.union(
            *(_types[base].transients for base in cls.__mro__[1:] if base in _types)
        )
        melting = sorted(self.transients & set(cls.__struct_fields__))
        if melting:
            raise TypeError(f"agent class {cls.__name__}: {melting[0]} is both kept and transient(): rename one")
        self.methods: dict[str, Method] = {}
        self._handlers: dict[str, str] = {}
        found = {attribute: inspect.getattr_static(cls, attribute) for attribute in dir(cls)}
        check_fields(f"agent class {cls.__name__}", cls.__struct_fields__, found)
        for attribute, value in found.items():
            self._take(attribute, value)
        self.custom = cls.dump is not Agent.dump
        if self.custom != (getattr(cls.load, "__func__", None) is not getattr(Agent.load, "__func__", None)):
            raise TypeError(f"agent class {cls.__name__}: dump and load belong together: override both or neither")
        if self.custom and any(map(is_upcast, found.values())):
            raise TypeError(
                f"agent class {cls.__name__}: with a load of its own an @upcast is never called: "
                "migrate in load(data, version)"
            )
        if not self.custom:
            collect_upcasts(cls, version)
        self.starts = cls.on_start is not Agent.on_start
        self.stops = cls.on_stop is not Agent.on_stop
        self.mends = cls.on_rollback is not Agent.on_rollback
        cached = {name for name, value in found.items() if isinstance(value, cached_property)}
        self.settable = frozenset(self.transients | cached | {KEY})
        if not self.abstract:
            with suppress(UnresolvedAnnotation):  # a name defined further down: checked when a manager is built
                _ = self.schema

    @property
    def abstract(self) -> bool:
        return bool(getattr(self.cls, "__abstractmethods__", ()))

    @cached_property
    def schema(self) -> Schema[A]:
        return Schema(self.cls, name=self.name, version=self.version, aliases=self.aliases, custom=self.custom)

    @cached_property
    def routes(self) -> dict[str, Route]:
        return {
            kind: Route(self.name, kind, name, self.methods[name].function) for kind, name in self._handlers.items()
        }

    @cached_property
    def takes_context(self) -> bool:
        parameters = list(inspect.signature(self.cls.on_start).parameters.values())[1:]
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
            raise TypeError(
                f"agent class {self.cls.__name__}: on_start takes the manager's context or nothing, "
                f"not {len(required)} arguments"
            )
        return bool(positional) or any(p.kind is p.VAR_POSITIONAL for p in parameters)

    def check(self) -> None:
        """Raise ``TypeError`` if no agent can be made: the class is abstract, or its annotations don't resolve."""
        if self.abstract:
            missing = ", ".join(sorted(getattr(self.cls, "__abstractmethods__", ())))
            raise TypeError(f"agent class {self.cls.__name__} is abstract: it lacks {missing}")
        _ = self.schema, self.routes, self.takes_context

    def method(self, method: Callable[..., Any]) -> Method:
        """The call that a method of the class, or of one of its bases, stands for."""
        try:
            return self._by_function[method]
        except (KeyError, TypeError):
            told = getattr(method, "__qualname__", repr(method))
            raise TypeError(
                f"{told} is not a call of agent {self.name}: its calls are {', '.join(sorted(self.public)) or 'none'}"
            ) from None

    @cached_property
    def _by_function(self) -> dict[Callable[..., Any], Method]:
        """Each call by its function and by those that it overrides."""
        found = {vars(base)[n]: m for n, m in self.methods.items() for base in self.cls.__mro__ if n in vars(base)}
        return found | {m.function: m for m in self.methods.values()}

    @cached_property
    def public(self) -> dict[str, Method]:
        return {name: method for name, method in self.methods.items() if not name.startswith("_")}

    # ------------------------------------------------------------ the checks

    def _take(self, name: str, value: Any) -> None:
        where = f"agent class {self.cls.__name__}"
        if name in CLAIMED:
            self._check_claimed(name, value)
            return
        # An override keeps its base's routes: they belong to the name, and would be lost in silence.
        marks = (signal_types(vars(base)[name]) for base in self.cls.__mro__ if name in vars(base))
        signals = next(filter(None, marks), ())
        if isinstance(value, (staticmethod, classmethod)) or name.startswith("__") or name in _struct_names:
            if signals:
                raise TypeError(f"{where}: {name} is routed to a signal, so it must be an async method")
            return
        if not inspect.isfunction(value) or (name.startswith("_") and not signals):
            return
        if is_upcast(value):
            return
        if not (inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)):
            if signals:
                raise TypeError(f"{where}: {name} is routed to a signal, so it must be an async method")
            raise TypeError(
                f"{where}: public method {name} is not async: calls are `async def`; "
                f"make it a property, or a helper with a leading underscore (_{name})"
            )
        self.methods[name] = Method(name, value, readonly=hasattr(value, "__overwinter_readonly__"))
        for kind in signals:
            if inspect.isasyncgenfunction(value):
                raise TypeError(f"{where}: streaming method {name} can't be routed to a signal")
            if kind in self._handlers:
                raise TypeError(f"{where}: signal {kind!r} is routed to both {self._handlers[kind]} and {name}")
            self._handlers[kind] = name

    def _check_claimed(self, name: str, value: Any) -> None:
        where = f"agent class {self.cls.__name__}: {name!r} is a name that Agent claims"
        if name in self.cls.__struct_fields__:
            raise TypeError(f"{where}: call the field something else")
        if value is inspect.getattr_static(Agent, name):
            return
        if name == "key":
            raise TypeError(f"{where} for the agent's key: call yours something else")
        wanted = {"load": "a classmethod", "dump": "a plain method", "on_rollback": "a plain method"}.get(
            name, "an async method"
        )
        fits = {
            "a classmethod": isinstance(value, classmethod),
            "a plain method": inspect.isfunction(value) and not inspect.iscoroutinefunction(value),
            "an async method": inspect.iscoroutinefunction(value),
        }
        if not fits[wanted]:
            raise TypeError(f"{where}: it must be {wanted}")
        check_hook(where, name, getattr(value, "__func__", value))
