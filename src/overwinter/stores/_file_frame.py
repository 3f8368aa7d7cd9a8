"""What a file of a FileStore holds: a head that says whose it is, then the data. Described in docs/stores.md.

This file knows bytes. It does not know files, and what the data is: a record has a checksum of its own.
"""

from __future__ import annotations

import hashlib
import struct

from ..record import MAX_BYTES

__all__ = ["MAX_DATA", "MAX_KEY", "MAX_REVISION", "DamagedError", "head_size", "key_in", "name_of", "pack", "unpack"]

MAX_KEY, MAX_REVISION, MAX_DATA = 65535, 255, MAX_BYTES  # bytes; what is larger is no record, and not read into memory

_MAGIC = b"\x89OWF"
_FORMAT = 1
_FIXED = struct.Struct("<4sBBHQ")  # magic, format, length of the revision, of the key, of the data
_CHECKSUM = 16
_BODY = _FIXED.size + _CHECKSUM


class DamagedError(Exception):
    """It is no file of this key. The text is the end of a sentence that begins with the file."""


def name_of(key: str) -> str:
    """The name of the file of *key*, 64 hexadecimal digits; the first two name its folder. Frozen: never change it."""
    return hashlib.blake2b(key.encode(), digest_size=32).hexdigest()


def pack(key: str, revision: bytes, size: int) -> bytes:
    """Return the head of a file with *size* bytes of data."""
    encoded = key.encode()
    fixed = _FIXED.pack(_MAGIC, _FORMAT, len(revision), len(encoded), size)
    return fixed + _checksum(fixed, revision + encoded) + revision + encoded


def head_size(start: bytes) -> int:
    """How many bytes the head has that begins with *start*, as far as that can be told before it is verified."""
    if len(start) < _BODY:
        return _BODY
    _, _, revision, key, _ = _FIXED.unpack_from(start)
    return _BODY + int(revision) + int(key)


def unpack(start: bytes, total: int, key: str) -> tuple[bytes, int]:
    """Return the revision, and where the data begins, of a file of *total* bytes that begins with *start*.

    Raises:
        DamagedError: it is not whole, or of another key.
    """
    revision, found, size = _head(start)
    begin = head_size(start)
    if total != begin + size:
        raise DamagedError(f"is torn: it has {total} bytes and should have {begin + size}")
    if found != key.encode():
        raise DamagedError("holds another key")
    if size > MAX_DATA:
        raise DamagedError(f"has {size:,} bytes, more than a record can have")
    return revision, begin


def key_in(start: bytes) -> str:
    """Return the key in the head of a file that begins with *start*; the data need not be whole.

    Raises:
        DamagedError: the head is not whole.
    """
    _, found, _ = _head(start)
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise DamagedError("holds a key that is no text") from None


def _head(start: bytes) -> tuple[bytes, bytes, int]:
    """Revision, key and size of the data, verified."""
    if len(start) < _BODY or not start.startswith(_MAGIC):
        raise DamagedError("is no file of this store, or torn")
    _, version, revision_size, _, size = _FIXED.unpack_from(start)
    if version > _FORMAT:
        raise DamagedError(f"has format {version}, newer than {_FORMAT}: upgrade overwinter")
    names = start[_BODY : head_size(start)]
    if version < 1 or _checksum(start[: _FIXED.size], names) != start[_FIXED.size : _BODY]:
        raise DamagedError("is damaged")
    return names[:revision_size], names[revision_size:], int(size)


def _checksum(fixed: bytes, names: bytes) -> bytes:
    return hashlib.blake2b(fixed + names, digest_size=_CHECKSUM).digest()
