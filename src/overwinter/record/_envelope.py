"""The envelope of a record, format 1: who it is about, the body, and a checksum. ``docs/format.md`` says it in words.

Pure, and total: for any bytes whatever, ``unpack`` returns a value or raises one of two errors. It does not know what
the body means, which key the caller looked under, or what an agent is; the caller adds agent and key to the errors.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct as Layout
from typing import Annotated, Any, TypeAlias

import msgspec

from .._depth import MAX_DEPTH, check_depth
from ..errors import CorruptRecordError, NewerRecordError, StateTooLargeError

__all__ = ["CUSTOM", "EXTRAS", "MAX_BYTES", "MAX_DEPTH", "Header", "check_depth", "pack", "seal", "unpack"]

MAGIC = b"\x89OWR"  # the first byte is no text in any encoding that is still in use
FORMAT = 1
EXTRAS = 0b01
"""Flag: the body holds fields that the writer's class doesn't have."""
CUSTOM = 0b10
"""Flag: the body is what the class's own ``dump()`` returned."""

MAX_BYTES = 256 * 1024 * 1024
"""The largest record. ``pack`` and ``unpack`` agree on it, so that nothing is written that can't be read."""

_KNOWN = EXTRAS | CUSTOM
_PREFIX = Layout("<4sBBHII")  # magic, format, flags, reserved, length of header, length of body
_pack_prefix = _PREFIX.pack
_CHECK = 16  # as quick as 8: 1.7 µs per KB
_AROUND = _PREFIX.size + _CHECK
_empty = blake2b(digest_size=_CHECK)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a record says about itself."""

    agent: str
    version: int
    fingerprint: bytes
    key: str
    sequence: int
    revision: bytes
    time_us: int
    flags: int = 0
    calls: tuple[Any, ...] = ()


HeaderFields: TypeAlias = tuple[str, int, bytes, str, int, bytes, int, tuple[Any, ...]]


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The header as it is written: these nine minus the flags, in this order, nothing more."""

    agent: str
    version: Annotated[int, msgspec.Meta(ge=1)]
    fingerprint: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    key: str
    sequence: Annotated[int, msgspec.Meta(ge=0)]
    revision: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    time_us: int
    calls: list[list[Any]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Wire).decode


def pack(header: Header, body: bytes) -> bytes:
    """Return the record of *body*. The same arguments give the same bytes.

    Raises:
        StateTooLargeError: the record would have more than ``MAX_BYTES``.
    """
    h = header
    return seal((h.agent, h.version, h.fingerprint, h.key, h.sequence, h.revision, h.time_us, h.calls), h.flags, body)


def seal(fields: HeaderFields, flags: int, body: bytes) -> bytes:
    """``pack`` for those who write a record per call: the fields of a ``Header`` but its flags, in their order."""
    head = _encode(fields)
    size = _AROUND + len(head) + len(body)
    if size > MAX_BYTES:
        raise StateTooLargeError(
            f"the record would have {size:,} bytes, more than {MAX_BYTES:,}: "
            "keep large things elsewhere and their names here"
        )
    record = _pack_prefix(MAGIC, FORMAT, flags, 0, len(head), len(body)) + head + body
    check = _empty.copy()  # half as dear as a new one with a size
    check.update(record)
    return record + check.digest()


def unpack(data: bytes, *, max_bytes: int = MAX_BYTES) -> tuple[Header, bytes]:
    """Return the header and the body of a record, verified. Nothing in the body has been decoded; its depth is checked.

    Raises:
        CorruptRecordError: it is no record, damaged, or nested too deep.
        NewerRecordError: it is a record in a later format.
    """
    flags, start, middle, end = _frame(data, max_bytes)
    head, body = data[start:middle], data[middle:end]
    check_depth(head)
    check_depth(body)
    try:
        wire = _decode(head)
    except (ValueError, OverflowError, RecursionError):  # msgspec's own errors are ValueErrors
        raise CorruptRecordError("its header does not decode: restore the record from a backup") from None
    header = Header(
        agent=wire.agent,
        version=wire.version,
        fingerprint=wire.fingerprint,
        key=wire.key,
        sequence=wire.sequence,
        revision=wire.revision,
        time_us=wire.time_us,
        flags=flags,
        calls=tuple(wire.calls),
    )
    return header, body


def _frame(data: bytes, max_bytes: int) -> tuple[int, int, int, int]:
    """Verify the envelope; return the flags and where header and body begin and end."""
    size = len(data)
    if size > max_bytes:
        raise CorruptRecordError(f"the record has {size:,} bytes, more than {max_bytes:,}: overwinter did not write it")
    if data[: len(MAGIC)] != MAGIC:
        raise CorruptRecordError("the bytes are no record of overwinter's: find out what wrote to this store")
    if size < _PREFIX.size + _CHECK:
        raise CorruptRecordError(f"the record is truncated to {size} bytes: restore it from a backup")
    _, version, flags, reserved, head, body = _PREFIX.unpack_from(data)
    if version > FORMAT:  # what follows may be laid out otherwise, its checksum too
        raise NewerRecordError(
            f"the record is in format {version}, written by a newer overwinter: upgrade this process"
        )
    end = _PREFIX.size + head + body
    if size != end + _CHECK:
        raise CorruptRecordError(
            f"the record has {size:,} bytes and should have {end + _CHECK:,}: restore it from a backup"
        )
    if blake2b(data[:end], digest_size=_CHECK).digest() != data[end:]:
        raise CorruptRecordError("the record does not match its checksum: restore it from a backup")
    if version != FORMAT:
        raise CorruptRecordError(
            f"the record is in format {version}, which never existed: find out what wrote to this store"
        )
    if flags & ~_KNOWN or reserved:
        raise NewerRecordError("the record uses a feature of a newer overwinter: upgrade this process")
    return flags, _PREFIX.size, _PREFIX.size + head, end
