"""Names of objects and what is in them: pure functions, for any key and any bytes."""

from __future__ import annotations

import hashlib
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overwinter.stores import _objects_frame as frame
from overwinter.stores._file_frame import pack
from overwinter.stores._objects_names import folder_of, is_hashed, is_name, is_whole_folder, key_of, name_of
from overwinter.testing._keys import hostile_keys

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text("aA:=/~.%_-", max_size=8)
TAG = {"e_tag": "t"}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("Note:ada", "Note/ada"),
        ("Note:a@b.org", "Note/a=40b=2Eorg"),
        ("Note:a:b", "Note/a=3Ab"),
        ("a%3Ab:x", "a=253Ab/x"),
        ("ada", "=none/ada"),
        (":ada", "=empty/ada"),
        ("Note:", "Note/=empty"),
        ("", "=none/=empty"),
        ("Note:é", "Note/=C3=A9"),
        ("Note:..", "Note/=2E=2E"),
        ("Note:" + "k" * 400, "Note/" + "k" * 400),
        ("Note:" + "k" * 401, "Note/~4e071b90e688289f3ec4a89e75e7b7f92261ea7f075d6befcdd72276a187d892"),
        ("N" * 201 + ":k", "=long/~df6f72a36b606973ffb7738b92078a67ccc5a7af5908c2117640eb32bd7c3b37"),
    ],
)
def test_names_are_frozen(key: str, name: str) -> None:
    assert name_of(key) == name
    assert key_of(name) == (None if "~" in name else key)
    assert is_name(name)


@given(KEYS, KEYS)
def test_different_keys_have_different_names(one: str, other: str) -> None:
    assert (name_of(one) == name_of(other)) == (one == other)


@given(KEYS)
def test_a_name_is_safe_short_and_leads_back(key: str) -> None:
    name = name_of(key)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+/[A-Za-z0-9_=~-]+", name)
    assert len(name) <= 601
    assert is_hashed(name) or key_of(name) == key


@given(KEYS, KEYS)
def test_a_folder_holds_all_keys_of_its_prefix(prefix: str, rest: str) -> None:
    folder = folder_of(prefix)
    assert folder is None or name_of(prefix + rest).startswith(folder + "/")


@given(KEYS, KEYS)
def test_a_whole_folder_holds_no_other_keys(prefix: str, other: str) -> None:
    folder = folder_of(prefix)
    if is_whole_folder(prefix) and (folder is None or name_of(other).startswith(folder + "/")):
        assert other.startswith(prefix)


@given(st.text(max_size=40) | st.text("ab=/~0F.", max_size=12))
def test_a_foreign_name_is_none_of_ours(name: str) -> None:
    key = key_of(name)
    assert key is None or name_of(key) == name
    assert is_name(name) == (key is not None or is_hashed(name))


@pytest.mark.parametrize(
    "name",
    [
        "Note/=61",
        "=none/x=3Ay",
        "Note/" + "k" * 401,
        "N" * 201 + "/k",
        "=4E/x",
        "Note/=FF",
        "Note/a/b",
        "Note",
        "=probe/a",
    ],
)
def test_a_name_that_would_not_be_given_is_none_of_ours(name: str) -> None:
    assert key_of(name) is None
    assert not is_name(name)


def test_hostile_keys_collide_neither_in_case_nor_in_form() -> None:
    names = {name_of(prefix + key) for key in hostile_keys() for prefix in ("", "a:", "A:")}
    assert len(names) == 3 * len(hostile_keys())


# ---------------------------------------------------------------- what is in an object


def seen(key: str, content: bytes) -> frame.Seen:
    return frame.look(key, content[: frame.head_limit(key)], len(content), TAG)


def test_what_is_in_an_object_is_frozen() -> None:
    assert frame.record("ключ", b"r" * 16, b"data") == pack("ключ", b"r" * 16, 4) + b"data"  # as in a file
    start = b"\x89OWT\x01\0\0\0" + b"m" * 16
    check = hashlib.blake2b(start + "ключ".encode(), digest_size=8).digest()
    assert frame.tombstone("ключ", b"m" * 16) == start + check


def test_a_record_is_seen_with_its_beginning_alone() -> None:
    content = frame.record("a key", b"r" * 16, b"d" * 10_000)
    there = seen("a key", content)
    assert (there.revision, there.absent, there.damage) == (b"r" * 16, False, None)
    assert content[there.begin :] == b"d" * 10_000
    assert frame.key_in(content[:100]) == "a key"


def test_a_tombstone_is_smaller_than_any_record_and_bound_to_its_key() -> None:
    content = frame.tombstone("a key", b"m" * 16)
    assert len(content) == frame.TOMBSTONE < len(frame.record("k", b"", b""))
    assert (seen("a key", content).mark, seen("a key", content).absent) == (b"m" * 16, True)
    assert seen("b key", content).damage
    assert not seen("b key", content).absent


def test_the_same_data_never_makes_the_same_object() -> None:
    assert frame.record("k", os.urandom(16), b"") != frame.record("k", os.urandom(16), b"")


@pytest.mark.parametrize("content", [frame.record("key", b"r" * 16, b"data"), frame.tombstone("key", b"m" * 16)])
def test_every_cut_and_each_flipped_bit_of_a_head_is_damage_and_never_absence(content: bytes) -> None:
    broken = [content[:size] for size in range(len(content))] + [content + b"x"]
    head = seen("key", content).begin or len(content)
    for bit in range(8 * head):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        broken.append(bytes(flipped))
    for each in broken:
        there = seen("key", each)
        assert there.damage, each
        assert (there.absent, there.revision) == (False, None)


@given(st.binary(max_size=100))
def test_any_bytes_are_damage_and_never_absence(content: bytes) -> None:
    for start in (b"", b"\x89OWF\x01", b"\x89OWT\x01\0\0\0"):
        there = seen("key", start + content)
        assert there.damage
        assert not there.absent
        assert frame.key_in(start + content) is None
