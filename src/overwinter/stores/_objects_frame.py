"""What an object holds: a record in the frame of a file (``_file_frame.py``), or the tombstone of a deleted one.

Both begin with something random, a revision or a mark, so an ETag that is a hash of the content never comes back.
A tombstone is smaller than any record: a listing tells them apart without reading them.

This file knows bytes. It does not know requests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..record import MAX_BYTES
from . import _file_frame
from ._file_frame import DamagedError, pack, unpack

__all__ = [
    "ABSENT",
    "MAX_DATA",
    "MAX_KEY",
    "MAX_REVISION",
    "MAX_SIZE",
    "TOMBSTONE",
    "Seen",
    "Tag",
    "head_limit",
    "key_in",
    "look",
    "record",
    "tombstone",
]

Tag = dict[str, str]
"""What a provider calls this very version of an object: ``e_tag``, ``version``, or both."""

MAX_KEY, MAX_REVISION, MAX_DATA = 8192, 255, MAX_BYTES  # bytes

TOMBSTONE = 32
"""The size of a tombstone; the head of a record alone is larger."""

_MAGIC = b"\x89OWT\x01\0\0\0"  # the fifth byte is the format
_MARK = 16
_FIXED = 32  # bytes of a head that come before the revision and the key

MAX_SIZE = _FIXED + MAX_REVISION + MAX_KEY + MAX_DATA
"""No object of this store is larger. One that is comes from somebody else, and isn't read into memory."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found under a key, as far as a condition can ask for it."""

    tag: Tag | None = None
    """``None`` if there is no object."""
    revision: bytes | None = None
    """``None`` if there is no record."""
    mark: bytes | None = None
    """What tells this tombstone from others; ``None`` if it is none."""
    begin: int = 0
    """Where the data begins."""
    damage: str | None = None
    """Why it can't be read; the end of a sentence that begins with the object."""

    @property
    def absent(self) -> bool:
        """Whether no record is there for sure: nothing at all, or a tombstone."""
        return self.tag is None or self.mark is not None


ABSENT = Seen()


def record(key: str, revision: bytes, data: bytes) -> bytes:
    return pack(key, revision, len(data)) + data


def tombstone(key: str, mark: bytes) -> bytes:
    """Return the tombstone of *key*; *mark* is 16 random bytes."""
    start = _MAGIC + mark
    return start + _checksum(start, key)


def head_limit(key: str | None) -> int:
    """How many bytes are enough to ``look`` at an object of *key*; at that of any, if it is ``None``."""
    return _FIXED + MAX_REVISION + (MAX_KEY if key is None else len(key.encode()))


def look(key: str, start: bytes, total: int, tag: Tag) -> Seen:
    """Say what an object of *total* bytes is that begins with *start*; for any bytes."""
    if total > MAX_SIZE:
        return Seen(tag, damage=f"is none of this store: it has {total:,} bytes, more than {MAX_SIZE:,}")
    if total == TOMBSTONE and start.startswith(_MAGIC):
        if start == tombstone(key, start[len(_MAGIC) :][:_MARK]):
            return Seen(tag, mark=start[len(_MAGIC) :][:_MARK])
        return Seen(tag, damage="is a damaged tombstone, or one of another key")
    try:
        revision, begin = unpack(start, total, key)
    except DamagedError as error:
        return Seen(tag, damage=str(error))
    return Seen(tag, revision, begin=begin)


def key_in(start: bytes) -> str | None:
    """Return the key that an object names which begins with *start*; ``None`` if that can't be told."""
    try:
        return _file_frame.key_in(start)
    except DamagedError:
        return None


def _checksum(start: bytes, key: str) -> bytes:
    return hashlib.blake2b(start + key.encode(), digest_size=8).digest()
