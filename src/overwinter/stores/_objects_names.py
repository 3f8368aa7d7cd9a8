"""The names of objects: from a store key and back, without a request where the key is short. Frozen: never change it.

``Note:ada`` is the object ``Note/ada``. Letters, digits, ``-`` and ``_`` stand for themselves and every other byte of
the key's UTF-8 is ``=`` and two hexadecimal digits, so no name means anything to a server, and none holds a ``.``, a
``/`` or a ``%``. Names that begin with ``=`` and a small letter, or with ``~``, are no escaped keys.

This file knows strings. It does not know requests.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["PROBES", "folder_of", "is_hashed", "is_name", "is_whole_folder", "key_of", "name_of"]

PROBES = "=probe"
"""The folder of the objects with which a server is tried out."""

# A provider takes 1,024 bytes, the prefix included; these leave 400 for the prefix.
_MAX_FOLDER, _MAX_LEAF = 200, 400
_NONE, _EMPTY, _LONG = "=none", "=empty", "=long"  # no colon in the key; nothing before or behind it; too long

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")
_HASHED = re.compile(r"~[0-9a-f]{64}")


def name_of(key: str) -> str:
    """Return the name of the object of *key*: different for different keys, and at most 601 bytes long."""
    head, colon, tail = key.partition(":")
    folder = _folder(head) if colon else _NONE
    leaf = _escape(tail if colon else key) or _EMPTY
    if len(leaf) > _MAX_LEAF or folder == _LONG:
        leaf = "~" + hashlib.blake2b(key.encode(), digest_size=32).hexdigest()
    return f"{folder}/{leaf}"


def key_of(name: str) -> str | None:
    """Return the key whose object has this *name*; ``None`` if it is a hash, or nothing of ours."""
    folder, slash, leaf = name.partition("/")
    head = "" if folder == _EMPTY else _unescape(folder)
    tail = "" if leaf == _EMPTY else _unescape(leaf)
    if not slash or tail is None:
        return None
    if folder == _NONE:
        key = tail
    elif head is not None:
        key = f"{head}:{tail}"
    else:
        return None
    return key if name_of(key) == name else None


def is_hashed(name: str) -> bool:
    """Whether the key is only in the object, not in its *name*."""
    folder, _, leaf = name.partition("/")
    known = folder in (_NONE, _EMPTY, _LONG) or _unescape(folder) is not None
    return known and _HASHED.fullmatch(leaf) is not None


def is_name(name: str) -> bool:
    """Whether *name* is that of an object of some key."""
    return is_hashed(name) or key_of(name) is not None


def folder_of(prefix: str) -> str | None:
    """Return the folder of all keys that begin with *prefix*; ``None`` if they are in several."""
    head, colon, _ = prefix.partition(":")
    return _folder(head) if colon else None


def is_whole_folder(prefix: str) -> bool:
    """Whether every key of ``folder_of(prefix)`` begins with *prefix*."""
    return not prefix or (prefix.find(":") == len(prefix) - 1 and folder_of(prefix) != _LONG)


def _folder(head: str) -> str:
    escaped = _escape(head) or _EMPTY
    return escaped if len(escaped) <= _MAX_FOLDER else _LONG


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda match: b"=%02X" % match[0][0], text.encode()).decode()


def _unescape(text: str) -> str | None:
    if not _ESCAPED.fullmatch(text):
        return None
    try:
        return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode()).decode()
    except UnicodeDecodeError:
        return None
