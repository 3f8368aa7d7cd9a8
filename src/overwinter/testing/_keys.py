"""Keys that are only data, and that a store which builds names, patterns or SQL of them mixes up."""

from __future__ import annotations

import unicodedata

__all__ = ["hostile_keys", "hostile_prefixes"]

_PATHS = ["/", "..", "../../etc/passwd", ".", "a/b", "a//b", "a/", "/a", "~", "C:\\x", "con", "nul.txt", "a\\b", "-rf"]
_SIGNS = [
    "%",
    "%00",
    "%2F",
    "*",
    "?",
    "[a-z]",
    "_",
    "a_b",
    "axb",
    "a%b",
    "a{b}",
    "#",
    "&",
    "a:b",
    "a;b",
    "$(id)",
    "`id`",
]
_CODE = ["'; DROP TABLE agents; --", "' OR ''='", '"', "'", "''", "{}", "null", "None", "0", "00", "0.0", "1e3", "true"]
_BLANKS = [" ", "  ", "a ", " a", "a", "\t", "\n", "a\n", "\r\n", "\x00", "a\x00", "a\x00b", "\x7f", "\u200b", "\ufeff"]
_TWINS = [
    "KEY",
    "key",
    "Key",
    "straße",
    "strasse",
    "STRASSE",
    "\u0131",
    "i",
    "I",
    "İ",
    "\ufb01",
    "fi",
    "\u212b",
    "\u00c5",
]
_FORMS = [
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    "A\u030a",
    "a\u202eb",
    "ключ",
    "鍵",
    "🔑",
]
_WIDE = ["👩\u200d🚀", "\U0010ffff", "\uffff", "é" * 512]
_LONG = ["k" * 1024, "k" * 1023, "k" * 1023 + "l", "p" * 255, "p" * 256, "p" * 255 + "/q"]


def hostile_keys() -> list[str]:
    """All different, each of 1 to 1024 UTF-8 bytes."""
    return list(dict.fromkeys(_PATHS + _SIGNS + _CODE + _BLANKS + _TWINS + _FORMS + _WIDE + _LONG))


def hostile_prefixes() -> list[str]:
    """Beginnings of some of these keys: patterns, escapes, parts of characters and of words."""
    plain = ["", "a", "A", "e", "k", "0", "S", "/", "a/", ".", "..", "-", "~", "#", "$", "{", "%%"]
    signs = ["%", "a%", "_", "a_", "*", "?", "[", "[a-z]", "\\", "a\\", "'", "''", '"', ":"]
    odd = ["\0", "a\0", "\n", " ", "a ", "\ufeff", "\uffff", "\U0010ffff", *_FORMS[:2]]
    return [*plain, *signs, *odd, "p" * 255, "k" * 1023]
