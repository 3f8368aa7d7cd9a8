"""How deep MessagePack is nested, found without recursion and before any decoder sees it.

It does not know what the bytes mean. Decoders recurse on the C stack, so depth is what could end the process.
"""

from __future__ import annotations

from .errors import CorruptRecordError

__all__ = ["MAX_DEPTH", "check_depth"]

MAX_DEPTH = 100

_FIXMAP, _FIXARRAY, _FIXSTR, _NIL = 0x80, 0x90, 0xA0, 0xC0
_OPENERS = bytes(range(_FIXMAP, _FIXSTR)) + b"\xdc\xdd\xde\xdf"
_NOT_OPENERS = bytes(sorted(set(range(256)) - set(_OPENERS)))
_INVALID = 0xC1


def _fixed_sizes() -> bytes:
    """The whole length of each token that its first byte tells; 0 for those that say theirs later."""
    sizes = bytearray([1] * 256)
    for first in range(_FIXSTR, _NIL):
        sizes[first] = 1 + (first & 0x1F)
    for first, size in zip(range(0xCA, 0xD4), (5, 9, 2, 3, 5, 9, 2, 3, 5, 9), strict=True):
        sizes[first] = size  # floats, unsigned, signed
    for first, size in zip(range(0xD4, 0xD9), (3, 4, 6, 10, 18), strict=True):
        sizes[first] = size  # extensions of fixed size
    for first in (*_OPENERS, *_PREFIXED, _INVALID):
        sizes[first] = 0
    return bytes(sizes)


# first byte -> (bytes of the length, bytes before the payload)
_PREFIXED = {
    0xC4: (1, 2), 0xC5: (2, 3), 0xC6: (4, 5),  # bin
    0xC7: (1, 3), 0xC8: (2, 4), 0xC9: (4, 6),  # ext: a type byte follows the length
    0xD9: (1, 2), 0xDA: (2, 3), 0xDB: (4, 5),  # str
}  # fmt: skip
_COUNTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # bytes of the count, tokens per item
_SIZES = _fixed_sizes()


def check_depth(body: bytes, limit: int = MAX_DEPTH) -> None:
    """Raise unless *body* is nested at most *limit* levels. For any bytes, in time linear in their number.

    Raises:
        CorruptRecordError: it is nested deeper, or the tokens don't add up.
    """
    # Fewer bytes that could open a container than levels allowed: proved at C speed (0.7 µs per KB).
    if len(body.translate(None, _NOT_OPENERS)) > limit:
        _scan(body, limit)


def _scan(body: bytes, limit: int) -> None:
    sizes, end = _SIZES, len(body)
    outer: list[int] = []  # tokens still missing from each open container, the innermost one's aside
    left, position = 1, 0
    while left or outer:
        if not left:
            left = outer.pop()
            continue
        if position >= end:
            raise CorruptRecordError("its MessagePack is truncated: restore the record from a backup")
        left -= 1
        first = body[position]
        size = sizes[first]
        if size:
            position += size
            continue
        size, tokens = _long_token(body, position, first)
        position += size
        if tokens >= 0:
            if len(outer) >= limit:
                raise CorruptRecordError(
                    f"it is nested deeper than {limit} levels: keep trees as flat lists with parent ids"
                )
            outer.append(left)
            left = tokens
    if position != end:
        raise CorruptRecordError("its MessagePack does not end where the record does: restore the record from a backup")


def _long_token(body: bytes, position: int, first: int) -> tuple[int, int]:
    """The length of the token at *position* and how many tokens it contains, -1 if it is no container."""
    if first in _PREFIXED:
        width, before = _PREFIXED[first]
        return before + int.from_bytes(body[position + 1 : position + 1 + width], "big"), -1
    if first in _COUNTED:
        width, per_item = _COUNTED[first]
        return 1 + width, per_item * int.from_bytes(body[position + 1 : position + 1 + width], "big")
    if first == _INVALID:
        raise CorruptRecordError("its MessagePack holds a byte that starts no value: restore the record from a backup")
    per_item = 2 if first < _FIXARRAY else 1
    return 1, per_item * (first & 0x0F)
