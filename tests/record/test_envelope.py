from __future__ import annotations

import sys
from hashlib import blake2b
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overwinter.errors import CorruptRecordError, NewerRecordError, StateTooLargeError
from overwinter.record import Header, check_depth, pack, unpack
from overwinter.record import _envelope as envelope

GOLDEN = Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make import PLAIN, RECORDS, body_of  # noqa: E402 - the folder of the goldens is no package

sys.path.remove(str(GOLDEN))

FILES = sorted((GOLDEN / "format-1").glob("*.bin"))
REFUSED = (CorruptRecordError, NewerRecordError)


def forge(data: bytes) -> bytes:
    """Give tampered bytes a checksum that fits."""
    return data[:-16] + blake2b(data[:-16], digest_size=16).digest()


def build(head: bytes, body: bytes, *, form: int = 1, flags: int = 0, reserved: int = 0) -> bytes:
    prefix = b"\x89OWR" + bytes([form, flags]) + reserved.to_bytes(2, "little")
    return forge(prefix + len(head).to_bytes(4, "little") + len(body).to_bytes(4, "little") + head + body + bytes(16))


def head_of(*replaced: tuple[int, object]) -> bytes:
    items: list[object] = ["A", 1, bytes(8), "k", 0, bytes(16), 0, []]
    for index, value in replaced:
        items[index] = value
    return msgspec.msgpack.encode(items)


def test_every_golden_record_is_here() -> None:
    assert {path.stem for path in FILES} == set(RECORDS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_goldens_are_read_and_written_as_ever(path: Path) -> None:
    header, body = RECORDS[path.stem][0], body_of(path.stem)
    assert unpack(path.read_bytes()) == (header, body)
    assert pack(header, body) == path.read_bytes()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_flipped_bit_is_found(path: Path) -> None:
    good = path.read_bytes()
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(REFUSED) as caught:
            unpack(bytes(bad))
        assert caught.type is CorruptRecordError or bit // 8 == 4  # only the format's byte can make it look newer


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_truncation_and_addition_is_found(path: Path) -> None:
    good = path.read_bytes()
    for end in range(len(good)):
        with pytest.raises(CorruptRecordError):
            unpack(good[:end])
    for more in (b"\0", good):
        with pytest.raises(CorruptRecordError, match="should have"):
            unpack(good + more)


def test_the_layout_is_the_documented_one() -> None:
    assert build(
        msgspec.msgpack.encode(["Counter", 1, PLAIN.fingerprint, "ada", 1, PLAIN.revision, PLAIN.time_us, []]), b"\x80"
    ) == pack(PLAIN, b"\x80")


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", CorruptRecordError, "no record"),
        (b"\x89OWR", CorruptRecordError, "truncated to 4 bytes"),
        (b'{"count": 1}' * 9, CorruptRecordError, "no record"),
        (b"\x80\x05\x95" + b"x" * 99, CorruptRecordError, "no record"),
        (build(head_of(), b"\x80", form=2), NewerRecordError, "format 2"),
        (build(head_of(), b"\x80", form=255)[:40], NewerRecordError, "format 255"),
        (build(head_of(), b"\x80", form=0), CorruptRecordError, "never existed"),
        *((build(head_of(), b"\x80", flags=1 << bit), NewerRecordError, "newer overwinter") for bit in range(2, 8)),
        (build(head_of(), b"\x80", reserved=1), NewerRecordError, "newer overwinter"),
        (build(head_of(), b"\x80", reserved=0x8000), NewerRecordError, "newer overwinter"),
        (build(head_of(), b"\x80")[:-1] + b"\0", CorruptRecordError, "checksum"),
    ],
)
def test_the_words_say_what_is_wrong(data: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        unpack(data)
    assert ":" in str(caught.value)  # and what to do


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x80",
        b"\xc1",
        head_of()[:-1],
        head_of() + b"\xc0",
        msgspec.msgpack.encode(["A", 1, bytes(8), "k", 0, bytes(16), 0]),
        msgspec.msgpack.encode(["A", 1, bytes(8), "k", 0, bytes(16), 0, [], 1]),
        head_of((0, 1)),
        head_of((0, b"A")),
        head_of((1, 0)),
        head_of((1, True)),
        head_of((1, 1.0)),
        head_of((2, bytes(7))),
        head_of((3, None)),
        head_of((4, -1)),
        head_of((5, bytes(17))),
        head_of((6, "now")),
        head_of((7, ["id"])),
        head_of().replace(b"\xa1A", b"\xa1\xff"),
        head_of((7, [["ZZ"]])).replace(b"\xa2ZZ", b"\xc7\x0c\xff\xff\xff\xff\xff" + b"\xff" * 8),
        b"\x98" + b"\xdd\xff\xff\xff\xff" * 8,
    ],
)
def test_a_verified_header_of_another_shape_is_corrupt(head: bytes) -> None:
    with pytest.raises(CorruptRecordError):
        unpack(build(head, b"\x80"))


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xc0", b"\xdd\0\0\0\1"])
def test_forged_depth_is_refused_before_anything_decodes_it(opener: bytes) -> None:
    for levels in (101, 10_000, 1_000_000):
        deep = opener * levels + b"\xc0"
        for record in (build(head_of(), deep), build(deep, b"\x80"), build(head_of()[:-1] + deep, b"\x80")):
            with pytest.raises(CorruptRecordError, match="nested deeper"):
                unpack(record)
        with pytest.raises(CorruptRecordError, match="nested deeper"):
            check_depth(deep)


def test_size_is_checked_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    record = pack(PLAIN, bytes(1000))
    unpack(record, max_bytes=len(record))
    with pytest.raises(CorruptRecordError, match="more than"):
        unpack(record, max_bytes=len(record) - 1)
    monkeypatch.setattr(envelope, "MAX_BYTES", len(record))
    pack(PLAIN, bytes(1000))
    with pytest.raises(StateTooLargeError, match="more than"):
        pack(PLAIN, bytes(1001))


headers = st.builds(
    Header,
    agent=st.text(max_size=30),
    version=st.integers(1, 2**63 - 1),
    fingerprint=st.binary(min_size=8, max_size=8),
    key=st.text(min_size=1, max_size=200),
    sequence=st.integers(0, 2**63 - 1),
    revision=st.binary(min_size=16, max_size=16),
    time_us=st.integers(-(2**63), 2**63 - 1),
    flags=st.integers(0, 3),
    calls=st.lists(st.lists(st.integers(0, 9) | st.text(max_size=5), max_size=3), max_size=3).map(tuple),
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(headers, st.binary(max_size=200).map(msgspec.msgpack.encode))
def test_what_goes_in_comes_out(header: Header, body: bytes) -> None:
    assert unpack(pack(header, body)) == (header, body)


@settings(derandomize=True, max_examples=1000, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for candidate in (data, b"\x89OWR\1\0\0\0" + data):
        with pytest.raises(REFUSED):
            unpack(candidate)


@settings(derandomize=True, max_examples=1000, deadline=None)
@given(st.sampled_from(FILES), st.data())
def test_a_mutated_record_with_a_good_checksum_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    record = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(16, len(record) - 1))] = data.draw(st.integers(0, 255))
    try:
        header, body = unpack(forge(bytes(record)))
    except REFUSED:
        return
    assert type(header) is Header
    assert type(body) is bytes
