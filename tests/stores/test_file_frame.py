"""The bytes of a file of a FileStore: frozen, and damage is found."""

from __future__ import annotations

import hashlib

import pytest

from overwinter.stores._file_frame import DamagedError, head_size, name_of, pack, unpack

KEY, REVISION, DATA = "agent:ключ/../\0", bytes(range(16)), b"what an agent remembers"


def whole() -> bytes:
    return pack(KEY, REVISION, len(DATA)) + DATA


def test_names_are_frozen():
    assert name_of("counter:ada") == "31ed86d6e60ff9f505b67915ce37fc93b8240fed277ce24c86a2326995997107"
    assert name_of("é") == hashlib.blake2b("é".encode(), digest_size=32).hexdigest()
    assert name_of("e\N{COMBINING ACUTE ACCENT}") != name_of("é")


def test_the_format_is_frozen():
    fixed = b"\x89OWF" + bytes([1, 16]) + len(KEY.encode()).to_bytes(2, "little") + len(DATA).to_bytes(8, "little")
    names = REVISION + KEY.encode()
    assert whole() == fixed + hashlib.blake2b(fixed + names, digest_size=16).digest() + names + DATA


def test_what_was_packed_is_unpacked():
    content = whole()
    assert head_size(content) == len(content) - len(DATA)
    assert unpack(content, len(content), KEY) == (REVISION, len(content) - len(DATA))
    assert unpack(pack("k", b"", 0), len(pack("k", b"", 0)), "k")[0] == b""


def test_every_flipped_bit_of_the_head_is_found():
    content = whole()
    for place in range(head_size(content)):
        for bit in range(8):
            bad = bytearray(content)
            bad[place] ^= 1 << bit
            with pytest.raises(DamagedError):
                unpack(bytes(bad), len(bad), KEY)


def test_every_truncation_and_a_longer_file_is_found():
    content = whole()
    for size in [*range(len(content)), len(content) + 1]:
        with pytest.raises(DamagedError, match=r"torn|damaged"):
            unpack(content[:size], size, KEY)


def test_another_key_is_found():
    for other in ("agent:ключ/../", KEY + "\0", KEY.upper(), "x"):
        with pytest.raises(DamagedError, match="another key"):
            unpack(whole(), len(whole()), other)


def test_a_newer_format_says_so():
    bad = bytearray(whole())
    bad[4] = 2
    with pytest.raises(DamagedError, match=r"format 2.*upgrade overwinter"):
        unpack(bytes(bad), len(bad), KEY)
