"""Receipts: what an agent keeps of its last calls, so that a repeated call id gets the first reply.

Pure. Knows ids, replies and how many are kept; not when a call is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_type_hints

import msgspec

from ..errors import AgentStateError, AlreadyAppliedError, CallIdReusedError, CorruptRecordError
from ._codec import Codec, encode_plain
from ._fields import codec
from ._leaves import AnyCodec

__all__ = ["Receipt", "Receipts", "add_receipt", "make_receipt", "receipts_from", "reply_of"]

MOST, MOST_BYTES = 64, 16 * 1024

Receipt: TypeAlias = tuple[str, str, bytes, bytes | None]
"""Call id, method, digest of the arguments, and the reply as MessagePack, or ``None`` if it is not kept."""
Receipts: TypeAlias = tuple[Receipt, ...]
Arguments: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]

_NONE = b"\xc0"


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


def make_receipt(call_id: str, name: str, function: Callable[..., Any], call: Arguments, reply: Any) -> Receipt:
    """The receipt of a call that returned *reply*."""
    return call_id, name, _digest(function, call), _encode(function, reply)


def add_receipt(receipts: Receipts, receipt: Receipt) -> Receipts:
    """The last receipts, this one included, within their bounds."""
    kept = [*receipts[-(MOST - 1) :], receipt]
    size = sum(map(_size, kept))
    while size > MOST_BYTES and len(kept) > 1:
        size -= _size(kept.pop(0))
    return tuple(kept)


def reply_of(
    receipts: Receipts, call_id: str, name: str, function: Callable[..., Any], call: Arguments
) -> tuple[Any] | None:
    """The first reply under *call_id*, in a tuple; ``None`` if there is no receipt.

    Raises:
        CallIdReusedError: the id stands for another call.
        AlreadyAppliedError: the reply was not kept, or is of another type than the method's now.
    """
    found = next((receipt for receipt in receipts if receipt[0] == call_id), None)
    if found is None:
        return None
    _, method, digest, reply = found
    if method != name or digest != _digest(function, call):
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


def _digest(function: Callable[..., Any], call: Arguments) -> bytes:
    try:
        told = encode_plain([list(call[0]), dict(sorted(call[1].items()))])
    except Exception as error:
        raise TypeError(
            f"{function.__name__}() with a call_id takes arguments that a record could hold: {type(error).__name__}"
        ) from error
    return hashlib.blake2b(told, digest_size=8).digest()


def _codec(function: Callable[..., Any]) -> Codec:
    try:
        return codec(get_type_hints(function, include_extras=True)["return"], function.__name__)
    except (KeyError, TypeError, NameError):
        return AnyCodec()  # without a type to go by, a reply must be JSON values and bytes


def _encode(function: Callable[..., Any], reply: Any) -> bytes | None:
    if reply is None:
        return _NONE
    kind = _codec(function)
    try:
        kind.check(reply, function.__name__)
        data = encode_plain(kind.dump(reply))
    except (AgentStateError, ValueError, TypeError, OverflowError, RecursionError):
        return None  # the call is made all the same; only its reply can't be given twice
    return data if len(data) <= MOST_BYTES // 4 else None
