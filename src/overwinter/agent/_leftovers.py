"""What a record holds that the code doesn't know: fields that newer code added, inside the values of an agent.

Fields of the agent itself are kept by name. Those of an object inside it are kept for that very object, as long as it
is part of the state, wherever it moves; nothing is written on the object, so that it prints and compares as ever.
Only records of another shape than the class's, and those that say so, are searched; all others cost nothing.
Does not know versions, stores or turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from ..errors import AgentStateError, NewerRecordError
from ._codec import LIMIT, UNMADE, Codec, decode_plain, encode_plain, too_deep
from ._compare import difference, levels
from ._leaves import ModelCodec
from ._models import model_parts
from ._records import RecordCodec, is_frozen

__all__ = ["Leftovers", "unknown_fields"]

Path = tuple[Any, ...]
"""Names of fields, numbers of items, ``(key,)`` of a dict's entries, and ``None`` inside a set."""

_raw_fields: Callable[[bytes], dict[str, msgspec.Raw]] = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


class _Place(NamedTuple):
    """An object with fields, and the map or array that it was read from or is written as."""

    path: Path
    holder: Any
    """``None`` for what can't be recognized later: an item of a set, or what a class's own code replaced."""
    node: Any
    known: frozenset[str] | int


class Leftovers(dict[str, Any]):
    """The unknown fields of an agent, by name, and with them those of the objects inside it."""

    def __init__(self, top: Mapping[str, Any], codec: Codec, name: str) -> None:
        super().__init__(top)
        self._codec, self._name = codec, name
        self._held: dict[int, tuple[Any, Any]] = {}  # with the object itself, so that its id stays its own
        self._met: dict[Path, Any] = {}

    def __bool__(self) -> bool:  # even without any at the top, and after the last object has left: a rollback may
        return True  # bring it back

    def learn(self, agent: Any, body: bytes) -> list[str]:
        """Take what *body* has beside the state of *agent*, which was made of it; return where it can't be kept."""
        found, lost = _unknown(self._codec, agent, decode_plain(body))
        self._held = {id(place.holder): (place.holder, rest) for place, rest in found}
        self._met = {}
        self._meet(_places(self._codec, agent, decode_plain(body), looking=False))
        return [f"{self._name}{_text(path)}" for path in lost]

    def of(self, agent: Any, body: bytes) -> Leftovers:
        """The same for a copy, whose objects are others."""
        other = Leftovers(self, self._codec, self._name)
        other.learn(agent, body)
        return other

    def add_to(self, agent: Any, body: bytes) -> bytes:
        """The encoded state with what its objects were read with.

        Raises:
            AgentStateError: a frozen object was replaced that has such fields, which is how one changes it.
        """
        plain = decode_plain(body)
        places = _places(self._codec, agent, plain, looking=False)
        self._check_replaced(places)
        self._meet(places)
        for place in places:
            held = self._held.get(id(place.holder))
            if held is None:
                continue
            if isinstance(place.known, int):
                place.node.extend(held[1])
            else:
                for name, value in held[1].items():
                    place.node.setdefault(name, value)
        if levels(plain) > LIMIT:
            raise too_deep(self._name)
        return encode_plain(plain)

    def _meet(self, places: list[_Place]) -> None:
        self._met = {place.path: place.holder for place in places if is_frozen(type(place.holder))}

    def _check_replaced(self, places: list[_Place]) -> None:
        now = {place.path: place.holder for place in places}
        there = {id(place.holder) for place in places}
        before = {id(holder) for holder in self._met.values()}
        for path, holder in self._met.items():
            if id(holder) not in self._held or id(holder) in there:
                continue
            new = now.get(path)
            if type(new) is type(holder) and id(new) not in before:
                names = ", ".join(_names(self._held[id(holder)][1]))
                raise AgentStateError(
                    f"{self._name}{_text(path)}: a frozen {type(holder).__name__} that has fields which this code "
                    f"doesn't know ({names}) was replaced by another, which would lose them: "
                    "let the code that knows them make this change"
                )


def unknown_fields(codec: RecordCodec, agent: Any, body: bytes, name: str, key: str) -> dict[str, Any]:
    """The fields of *body* that the class of *agent*, made of it, doesn't know; ``Leftovers`` if values have such too.

    Raises:
        NewerRecordError: one of them can't be kept.
    """
    # as raw bytes, so that they are written back as they were; copied, so that they don't keep the record in memory
    fields = {field.wire for field in codec.fields}
    top = {each: raw.copy() for each, raw in _raw_fields(body).items() if each not in fields}
    if not any(part.has_fields for part in codec.parts) or not any(_unknown(codec, agent, decode_plain(body))):
        return top
    found = Leftovers(top, codec, name)
    lost = found.learn(agent, body)
    if lost:
        raise NewerRecordError(
            f"{name} {key!r}: the record has a field that this code doesn't know and can't keep there: {lost[0]}: "
            "deploy the code that knows it; if none does any more, raise version= and drop it in an @upcast; "
            "the stored bytes are unchanged"
        )
    return found


def _text(path: Path) -> str:
    return "".join(
        f".{part}" if isinstance(part, str) else f"[{part}]" if isinstance(part, int) else "[...]" for part in path
    )


def _names(rest: Any) -> Iterable[str]:
    return cast("dict[str, Any]", rest) if isinstance(rest, dict) else [f"{len(rest)} more"]


# ---------------------------------------------------------------- searching


def _unknown(codec: Codec, agent: Any, plain: Any) -> tuple[list[tuple[_Place, Any]], list[Path]]:
    """The objects inside an agent with what each doesn't know, and the paths of what no object can hold."""
    found: list[tuple[_Place, Any]] = []
    lost: list[Path] = []
    held: set[int] = set()
    for place in _places(codec, agent, plain, looking=True):
        rest: Any
        if isinstance(place.known, int):
            rest = list(place.node[place.known :])
        else:
            rest = {name: item for name, item in place.node.items() if name not in place.known}
        if rest and (place.holder is None or id(place.holder) in held):  # the latter: one object for equal values
            lost += [(*place.path, name) for name in _names(rest)]
        elif rest:
            held.add(id(place.holder))
            found.append((place, rest))
    return found, lost


def _places(codec: Codec, value: Any, plain: Any, *, looking: bool) -> list[_Place]:
    """Each object with fields inside a value. *looking*: at what it was read from, not at what it is written as."""
    found: list[_Place] = []
    todo: deque[tuple[Path, Codec, Any, Any, bool]] = deque([((), codec, value, plain, False)])
    while todo:
        path, codec, value, plain, passing = todo.popleft()
        if value is UNMADE:
            if not looking:
                continue  # a set holds no object that is recognized later
            value, passing = codec.decode(encode_plain(plain)), True
        if isinstance(codec, ModelCodec):
            parts = _model_places(codec, value, plain, looking=looking)
            found += [part._replace(path=path + part.path, holder=None if passing else part.holder) for part in parts]
        elif isinstance(codec, RecordCodec) and path:
            found.append(_Place(path, None if passing else value, plain, codec.known))
        for step, part, item, node in codec.steps(value, plain):
            if part.has_fields:
                replaced = looking and not codec.own_exact and not _made(part, node, item)
                todo.append((path + step, part, UNMADE if replaced else item, node, passing))
    return found


def _model_places(codec: ModelCodec, value: Any, plain: Any, *, looking: bool) -> list[_Place]:
    places = [_Place(*part) for part in model_parts(value, plain)]
    if not looking:
        return places
    _drop_used(codec, value, plain, places)
    written = {id(holder): node for _, holder, node, _ in model_parts(value, decode_plain(encode_plain(value)))}
    return [place if _same_item(place, written) else place._replace(holder=None) for place in places]


def _same_item(place: _Place, written: Mapping[int, Any]) -> bool:
    """Whether an item of a list is the one that was read at its number: a validator may have sorted the list."""
    node = written.get(id(place.holder))
    if node is None or not any(isinstance(part, int) for part in place.path):
        return node is not None
    return all(
        node[name] == item for name, item in place.node.items() if name in node and type(item) not in (dict, list)
    )


def _drop_used(codec: ModelCodec, value: Any, plain: Any, places: list[_Place]) -> None:
    """Take out of the maps what a validator of the model reads, such as a field's former name.

    It made a field of it already; if it were kept it would come back over the field at the next thaw.
    """
    suspects: dict[Any, list[tuple[dict[str, Any], str]]] = {}  # by class and name, for there may be many objects
    for place in places:
        for name in place.node:
            if name not in cast("frozenset[str]", place.known):
                suspects.setdefault((type(place.holder), name), []).append((place.node, name))
    every = [suspect for group in suspects.values() for suspect in group]
    if not every or not _made(codec, plain, value):  # a default such as a random id: nothing can be told
        return
    if _made_without(codec, plain, value, every):
        return
    used = [group for group in suspects.values() if not _made_without(codec, plain, value, group)]
    for node, name in (suspect for group in used for suspect in group):
        del node[name]


def _made(codec: Codec, plain: Any, value: Any) -> bool:
    """Whether *value* is what is read from *plain*, and not what the code of a class put in its place."""
    try:
        return difference(value, codec.decode(encode_plain(plain))) is None
    except Exception:  # noqa: BLE001  # validators are the user's; what they refuse makes no such value
        return False


def _made_without(codec: ModelCodec, plain: Any, value: Any, suspects: list[tuple[dict[str, Any], str]]) -> bool:
    taken = [(node, name, node.pop(name)) for node, name in suspects]
    try:
        return _made(codec, plain, value)
    finally:
        for node, name, item in taken:
            node[name] = item
