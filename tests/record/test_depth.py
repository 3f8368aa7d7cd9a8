from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overwinter._depth import _scan
from overwinter.errors import CorruptRecordError
from overwinter.record import check_depth

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=60,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(derandomize=True, max_examples=300, deadline=None)
@given(values)
def test_the_scan_knows_the_depth_of_every_value(value: Any) -> None:
    body = msgspec.msgpack.encode(value)
    levels = depth(value)
    _scan(body, levels)
    if levels:
        with pytest.raises(CorruptRecordError, match="nested"):
            _scan(body, levels - 1)
    for end in {0, len(body) // 3, len(body) // 2, len(body) - 1}:
        with pytest.raises(CorruptRecordError, match=r"truncated|does not end"):
            _scan(body[:end], 1000)
    with pytest.raises(CorruptRecordError, match="does not end"):
        _scan(body + b"\xc0", 1000)


LONG = [
    *(msgspec.msgpack.encode("x" * n) for n in (0, 31, 32, 255, 256, 65535, 65536)),
    *(msgspec.msgpack.encode(b"\x91" * n) for n in (0, 255, 256, 65535, 65536)),
    *(msgspec.msgpack.encode([None] * n) for n in (0, 15, 16, 65535, 65536)),
    *(msgspec.msgpack.encode(dict.fromkeys(range(n))) for n in (0, 15, 16, 65535, 65536)),
    *(
        msgspec.msgpack.encode(msgspec.msgpack.Ext(5, b"\x91" * n))
        for n in (0, 1, 2, 3, 4, 8, 16, 17, 255, 256, 65535, 65536)
    ),
    *(
        msgspec.msgpack.encode(n)
        for n in (0, 127, 128, 255, 256, 65535, 65536, 2**32, -1, -32, -33, -129, -32769, -(2**31) - 1)
    ),
    *(b"\xca" + b"\0" * 4, msgspec.msgpack.encode(1.5), b"\xc0", b"\xc2", b"\xc3"),
]


@pytest.mark.parametrize("body", LONG, ids=range(len(LONG)))
def test_every_kind_of_token_is_measured(body: bytes) -> None:
    _scan(b"\x92" + body + b"\xc0", 2)
    with pytest.raises(CorruptRecordError, match="truncated"):
        _scan(b"\x93" + body + b"\xc0", 2)


@pytest.mark.parametrize("size", [0, 1, 9])
@pytest.mark.parametrize(("first", "width", "more"), [
    (0xC4, 1, 0), (0xC5, 2, 0), (0xC6, 4, 0), (0xC7, 1, 1), (0xC8, 2, 1), (0xC9, 4, 1), (0xD9, 1, 0), (0xDA, 2, 0),
    (0xDB, 4, 0),
])  # fmt: skip
def test_each_width_of_a_length_is_read_exactly(first: int, width: int, more: int, size: int) -> None:
    body = bytes([first]) + size.to_bytes(width, "big") + bytes(more + size)
    _scan(b"\x92" + body + b"\xc0", 2)
    for wrong in (body[:-1], body + b"\xc0"):
        with pytest.raises(CorruptRecordError):
            _scan(b"\x91" + wrong, 2)


def test_one_byte_starts_no_value() -> None:
    with pytest.raises(CorruptRecordError, match="starts no value"):
        _scan(b"\x91\xc1", 100)


@pytest.mark.parametrize(
    "opener", [b"\x91", b"\x81\xa0", b"\xdc\0\1", b"\xdd\0\0\0\1", b"\xde\0\1\xa0", b"\xdf\0\0\0\1\xa0"]
)
def test_the_limit_is_exact(opener: bytes) -> None:
    check_depth(opener * 100 + b"\xc0")
    with pytest.raises(CorruptRecordError, match="nested deeper than 100"):
        check_depth(opener * 101 + b"\xc0")


def test_wide_is_not_deep() -> None:
    check_depth(msgspec.msgpack.encode([{"n": [n]} for n in range(10_000)]))


def test_bytes_that_only_look_like_openers_are_no_depth() -> None:
    check_depth(msgspec.msgpack.encode(["\u0080" * 500, b"\x91" * 500]))


@pytest.mark.parametrize("opener", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_a_claimed_length_costs_no_memory(opener: bytes) -> None:
    with pytest.raises(CorruptRecordError, match="truncated"):
        check_depth(opener + b"\x90" * 101)
