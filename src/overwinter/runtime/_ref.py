"""The typed reference: an address that looks like the agent. Attribute -> call -> dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol
from weakref import WeakSet

from ..agent import AgentType, Method
from ..errors import UsageError

__all__ = ["OPEN", "Dispatcher", "Reference", "reference_class"]


class Dispatcher(Protocol):
    """Who brings a call to its agent."""

    @property
    def identity(self) -> object:
        """What is one and the same for all dispatchers that lead to the same agents."""
        ...

    def dispatch(self, key: str, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...
    def reference(self, key: str) -> Any: ...


OPEN: dict[str, WeakSet[Dispatcher]] = {}
"""The dispatchers that are open in this process, by their agents' name: a pickled reference finds its own here."""


class Reference:
    """The address of one agent. It never goes stale, and it holds nothing alive."""

    __slots__ = ("__weakref__", "_dispatcher", "_key")
    _dispatcher: Dispatcher
    _key: str
    _kind: AgentType[Any]

    def __init__(self, dispatcher: Dispatcher, key: str) -> None:
        _set_dispatcher(self, dispatcher)  # past __setattr__, and half as dear as object's own
        _set_key(self, key)

    @property
    def key(self) -> str:
        """The key of the agent."""
        return self._key

    def __getattr__(self, name: str) -> Any:
        kind, key = type(self)._kind, self._key
        if name in kind.cls.__struct_fields__:
            raise AttributeError(
                f"{name!r} is a field of agent {kind.name} {key!r}, and this is a reference to it: "
                f"read it in a method of the agent, or from a copy: (await manager.state({key!r})).{name}"
            )
        raise AttributeError(
            f"agent {kind.name} has no call {name!r}; its calls are {', '.join(sorted(kind.public)) or 'none'}"
        )

    def __setattr__(self, name: str, value: object) -> None:
        kind = type(self)._kind
        raise AttributeError(
            f"{name!r} can't be set through a reference to {kind.name} {self._key!r}: write a method that sets it"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reference):
            return NotImplemented
        return self._dispatcher.identity is other._dispatcher.identity and self._key == other._key

    def __hash__(self) -> int:
        return hash((id(self._dispatcher.identity), self._key))

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickle, (type(self)._kind.name, self._key)

    def __repr__(self) -> str:
        return f"<reference to {type(self)._kind.name} {self._key!r}>"


_set_dispatcher: Callable[[Reference, Dispatcher], None] = vars(Reference)["_dispatcher"].__set__
_set_key: Callable[[Reference, str], None] = vars(Reference)["_key"].__set__


def unpickle(name: str, key: str) -> Any:
    """The reference to *key* in this process, which must have one manager of the agents called *name* open."""
    found = list(OPEN.get(name, ()))
    if len(found) != 1:
        raise UsageError(
            f"a reference to {name} {key!r} was unpickled where {len(found)} managers of {name} are open: "
            "open one first, or send the key and call get() there"
        )
    return found[0].reference(key)


def reference_class(kind: AgentType[Any]) -> type[Reference]:
    """The class of the references to agents of one kind: each call of theirs is a real method."""
    body: dict[str, Any] = {"__slots__": (), "_kind": kind, "__doc__": kind.cls.__doc__}
    for name, method in kind.public.items():
        body[name] = _caller(method)
    return type(f"{kind.cls.__name__}Reference", (Reference,), body)


def _caller(method: Method) -> Callable[..., Any]:
    @wraps(method.function)
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self._dispatcher.dispatch(self._key, method, args, kwargs)

    return call
