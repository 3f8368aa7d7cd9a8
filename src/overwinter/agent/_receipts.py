"""Receipts: what an agent keeps of its last calls, so that a repeated call id gets the first reply.

Pure. Knows ids, arguments, replies and how many are kept; not when a call is made.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from itertools import repeat
from typing import Any, TypeAlias, cast, get_type_hints
from weakref import WeakKeyDictionary

import msgspec

from ..errors import AlreadyAppliedError, CallIdReusedError, CorruptRecordError
from ._codec import LIMIT, Codec, encode_plain
from ._compare import difference, field_names
from ._fields import codec
from ._leaves import AnyCodec
from ._models import enc_hook, is_model

__all__ = ["Receipt", "Receipts", "add_receipt", "digest_of", "make_receipt", "receipts_from", "reply_of"]

MOST, MOST_BYTES = 64, 16 * 1024

Receipt: TypeAlias = tuple[str, str, bytes, bytes | None]
"""Call id, method, digest of the arguments, and the reply as MessagePack, or ``None`` if it is not kept."""
Receipts: TypeAlias = tuple[Receipt, ...]

_NONE = b"\xc0"
_LOST = object()
"""Stands for JSON that nobody made of a value."""
_SIMPLE = frozenset({type(None), bool, int, float, str, bytes})  # MessagePack itself tells them apart
_json = AnyCodec()
_in_order = msgspec.msgpack.Encoder(order="deterministic").encode
_signatures: WeakKeyDictionary[Callable[..., Any], inspect.Signature] = WeakKeyDictionary()
_codecs: WeakKeyDictionary[Callable[..., Any], Codec] = WeakKeyDictionary()


_as_receipts = msgspec.msgpack.Decoder(tuple[Receipt, ...]).decode


def receipts_from(where: str, calls: tuple[Any, ...]) -> Receipts:
    """The receipts that a record's header holds.

    Raises:
        CorruptRecordError: they are none.
    """
    if not calls:
        return ()
    try:
        return _as_receipts(encode_plain(calls))
    except msgspec.MsgspecError:
        raise CorruptRecordError(f"{where}: the record's receipts of calls do not decode: restore a backup") from None


def digest_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """What tells a method's arguments from others, in any process. Taken before the call, which may change them.

    Raises:
        TypeError: an argument is of a type that can't be told from its like.
    """
    try:
        told = encode_plain(_told(_given(function, args, kwargs)))
    except Exception as error:
        why = f", not a {error.args[0]}" if type(error) is _UntoldError else f": {type(error).__name__}"
        raise TypeError(
            f"{function.__name__}() with a call_id takes arguments that a record could hold{why}"
        ) from error
    return hashlib.blake2b(told, digest_size=8).digest()


def make_receipt(call_id: str, name: str, function: Callable[..., Any], digest: bytes, reply: Any) -> Receipt:
    """The receipt of a call that returned *reply*."""
    return call_id, name, digest, _encode(function, reply)


def add_receipt(receipts: Receipts, receipt: Receipt) -> Receipts:
    """The last receipts, this one included, within their bounds."""
    if receipts and receipts[-1][0] == receipt[0]:  # what the call committed on its way
        receipts = receipts[:-1]
    kept = [*receipts[-(MOST - 1) :], receipt]
    size = sum(map(_size, kept))
    while size > MOST_BYTES and len(kept) > 1:
        size -= _size(kept.pop(0))
    return tuple(kept)


def reply_of(
    receipts: Receipts, call_id: str, name: str, function: Callable[..., Any], digest: bytes
) -> tuple[Any] | None:
    """The first reply under *call_id*, in a tuple; ``None`` if there is no receipt.

    Raises:
        CallIdReusedError: the id stands for another call.
        AlreadyAppliedError: the reply was not kept, or is of another type than the method's now.
    """
    found = next((receipt for receipt in receipts if receipt[0] == call_id), None)
    if found is None:
        return None
    _, method, first, reply = found
    if method != name or first != digest:
        raise CallIdReusedError(
            f"call_id {call_id!r} was used for another call of {method}(): make an id for each call"
        )
    if reply is None:
        raise AlreadyAppliedError(
            f"the call of {method}() with call_id {call_id!r} was made; its reply was not kept: read the agent"
        )
    try:
        return (_codec(function).decode(reply),)
    except Exception:  # noqa: BLE001  # another release may have stored it, and validators are the user's
        raise AlreadyAppliedError(
            f"the call of {method}() with call_id {call_id!r} was made; its reply is none that {method}() returns now: "
            "read the agent"
        ) from None


def _size(receipt: Receipt) -> int:
    return len(receipt[0]) + len(receipt[1]) + len(receipt[3] or b"") + 16


class _UntoldError(TypeError):
    """A value is of a type that can't be told from its like; names the type."""


def _given(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by their parameters' names, without those that are the default.

    So a parameter that a later release adds, with a default, leaves earlier calls what they were.
    """
    signature = _signatures.get(function)
    if signature is None:
        signature = _signatures[function] = inspect.signature(function)
    try:
        given = signature.bind(None, *args, **kwargs).arguments
    except TypeError:  # Python refuses the call, or a decorator takes more than it shows
        return {"*": args, "**": kwargs}
    known = signature.parameters
    return {name: value for name, value in given.items() if not _same(value, known[name].default)}


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    return type(value) is type(default) and encode_plain(_told(value)) == encode_plain(_told(default))


def _told(value: Any, plain: Any = _LOST) -> Any:
    """Plain data that is the same for equal values and another for others; types are told by their names.

    *plain* is the JSON that a pydantic model made of the value: it stands for types that only pydantic can write.
    """
    kind, shape = cast("Any", type(value)), cast("Any", type(plain))
    if kind in _SIMPLE:
        return value
    name: str = kind.__name__
    if (kind is dict or kind is list) and _json.ok(value, LIMIT):
        return ["", _in_order(value)]  # as below, but fast
    if isinstance(value, Enum):
        member: Any = value.name  # none if it is several flags
        return [name, _told(value.value) if member is None else member]
    if isinstance(value, dict):
        pairs = cast("Any", value).items()
        nodes = _beside(pairs, plain.items() if shape is dict else (), (_LOST, _LOST))
        entries = ((_told(key, k), _told(item, i)) for (key, item), (k, i) in zip(pairs, nodes, strict=False))
        return [name, *sorted(map(encode_plain, entries))]
    if isinstance(value, list | tuple | set | frozenset):
        items = cast("Any", value)
        told = [*map(_told, items, _beside(items, plain if shape is list else ()))]
        return [name, *(sorted(map(encode_plain, told)) if isinstance(value, set | frozenset) else told)]
    names = field_names(kind)
    return [name, _leaf(value, plain) if names is None else _fields(value, names, plain)]


def _beside(values: Any, plain: Iterable[Any], lost: Any = _LOST) -> Iterable[Any]:
    nodes = list(plain)
    return nodes if len(nodes) == len(values) else repeat(lost)


def _leaf(value: Any, plain: Any) -> Any:
    secret = getattr(value, "get_secret_value", None)  # pydantic's secrets are all the same stars in JSON
    if secret is not None:
        return _told(secret())
    try:
        return encode_plain(value)
    except TypeError:
        if plain is _LOST:
            raise _UntoldError(type(value).__name__) from None
        return _told(plain)


def _fields(value: Any, names: list[str], plain: Any) -> Any:
    """The fields that have a value; a model's private attributes are no part of what was asked for."""
    found = {name: getattr(value, name, msgspec.UNSET) for name in names}
    if is_model(type(value)):
        if plain is _LOST:
            plain = _dumped(value)
        if getattr(value, "__pydantic_root_model__", False):
            plain = {"root": plain}
        found |= value.__pydantic_extra__ or {}
    nodes = cast("dict[str, Any]", plain) if type(plain) is dict else {}
    return {n: _told(found[n], nodes.get(n, _LOST)) for n in sorted(found) if found[n] is not msgspec.UNSET}


def _dumped(model: Any) -> Any:
    try:
        return enc_hook(model)
    except Exception:  # noqa: BLE001  # serializers are the user's; what can't be told without is found where it stands
        return _LOST


def _codec(function: Callable[..., Any]) -> Codec:
    found = _codecs.get(function)
    if found is not None:
        return found
    try:
        found = codec(get_type_hints(function, include_extras=True)["return"], function.__name__)
    except Exception:  # noqa: BLE001  # reading an annotation runs code of the user's, and the call is made already
        return AnyCodec()  # without a type to go by, a reply must be JSON values and bytes
    _codecs[function] = found
    return found


def _encode(function: Callable[..., Any], reply: Any) -> bytes | None:
    if reply is None:
        return _NONE
    kind = _codec(function)
    try:
        kind.check(reply, function.__name__)
        data = encode_plain(kind.dump(reply))
        if len(data) > MOST_BYTES // 4 or (not kind.exact and difference(reply, kind.decode(data)) is not None):
            return None
    except Exception:  # noqa: BLE001  # validators are the user's
        return None  # the call is made all the same; only its reply can't be given twice
    return data
