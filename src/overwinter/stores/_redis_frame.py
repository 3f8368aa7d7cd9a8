"""What stands in Redis: the names of keys, the value under one, and the scripts that change it in one step.

This file knows bytes and Lua. It does not know connections, futures or who asks.
"""

from __future__ import annotations

import enum
import hashlib
import os
import re

from ..errors import CorruptRecordError
from .base import Revision, Stored

__all__ = [
    "DELETE", "GET", "HEAD_END", "LIST", "PUT", "REFRESH", "TEXTS", "TOMBSTONE_LIFE", "TOUCH", "Names", "Verdict",
    "head_of", "is_tombstone", "new_tombstone", "read_value", "revision_of", "unreadable",
]  # fmt: skip

MAGIC = b"\x89OW1"
RECORD, TOMBSTONE = b"R", b"T"
HEAD_END = b"%d" % (6 + 255 - 1)
"""The last byte that may belong to a value's head, counted from 0 as GETRANGE does."""

TOMBSTONE_LIFE = 24 * 3600
"""Seconds that are remembered of what was deleted: far more than a request is valid."""

_SHORTEST = 6


class Names:
    """The names of keys below one prefix. Those of agents and the store's own can't meet, whatever the agent's key."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.store = prefix.encode() + b"store"
        self._agent = prefix.encode() + b"agent:"

    def of(self, key: str) -> bytes:
        return self._agent + key.encode()

    def key(self, name: bytes) -> str | None:
        """Return the key that *name* is of, or ``None`` if no key has such a name."""
        try:
            return name[len(self._agent) :].decode()
        except UnicodeDecodeError:
            return None

    def pattern(self, prefix: str) -> bytes:
        """Return a pattern for SCAN: the signs that mean something there are only data here."""
        return re.sub(rb"([*?\[\]\\^-])", rb"\\\1", self.of(prefix)) + b"*"


def head_of(revision: Revision, kind: bytes = RECORD) -> bytes:
    """Return what a value begins with, and what the conditions of writes are compared with."""
    if len(revision) > 255:
        raise ValueError(f"a revision has at most 255 bytes, not {len(revision)}")
    return MAGIC + kind + bytes([len(revision)]) + revision


def new_tombstone() -> bytes:
    """Return the value of a key that was deleted. No two are alike, so a create can say which one it saw."""
    return head_of(os.urandom(16), TOMBSTONE)


def is_tombstone(value: bytes) -> bool:
    return value[:5] == MAGIC + TOMBSTONE


def read_value(key: str, value: bytes) -> Stored | None:
    """Return what a value says; ``None`` for a tombstone."""
    end = _end_of_head(key, value)
    return None if is_tombstone(value) else Stored(value[end:], value[_SHORTEST:end])


def revision_of(key: str, value: bytes) -> Revision | None:
    """As ``read_value``, of the first bytes of a value."""
    end = _end_of_head(key, value)
    return None if is_tombstone(value) else value[_SHORTEST:end]


def _end_of_head(key: str, value: bytes) -> int:
    end = _SHORTEST + value[5] if len(value) >= _SHORTEST else 0
    if not end or value[:4] != MAGIC or value[4:5] not in (RECORD, TOMBSTONE) or end > len(value):
        raise unreadable(key)
    return end


def unreadable(key: str) -> CorruptRecordError:
    return CorruptRecordError(
        f"what Redis holds under key {key!r} is no record of overwinter: it was left as it is; "
        "see who else uses this prefix, or restore it from a backup"
    )


# ---------------------------------------------------------------- scripts


class Verdict(bytes, enum.Enum):
    """What a script answers, if not a tombstone's head."""

    DONE = b"done"
    CONFLICT = b"conflict"
    UNREADABLE = b"unreadable"
    LOST = b"lost"
    """The store's own key is not the one this process knows."""
    LATE = b"late "
    """The request was on its way for too long, or our idea of the server's clock is wrong: that follows, in seconds."""


# KEYS: the record, the store's own key. ARGV: the store's id, the second after which the request is void, and more.
# Whatever comes to the server in time to be written was sent when the data was there, and before tombstones die.
# An empty `head` is a key that is not there; GETRANGE says '' of a foreign empty string too, so EXISTS is asked.
_BEGIN = r"""
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
local now = redis.call('TIME')[1]
if tonumber(now) > tonumber(ARGV[2]) then return 'late ' .. now end
local head = redis.pcall('GETRANGE', KEYS[1], 0, 260)
if type(head) == 'table' then
  head = nil
elseif head == '' then
  if redis.call('EXISTS', KEYS[1]) == 1 then head = nil end
elseif #head < 6 or string.sub(head, 1, 4) ~= '\137OW1' or not string.find(string.sub(head, 5, 5), '[RT]')
    or #head < 6 + string.byte(head, 6) then
  head = nil
else
  head = string.sub(head, 1, 6 + string.byte(head, 6))
end
local dead = head and string.sub(head, 5, 5) == 'T'
"""

# ARGV: …, the expected head ('' for none), the new value, the length of its head, milliseconds to live or '0'.
# A value that bears this write's own revision is this write, come before: a repeated request does no harm.
# pcall: the server's refusal (OOM, READONLY, MISCONF) is the answer, under its own code, and nothing was written.
_PUT = (
    _BEGIN
    + r"""
if not head then return 'unreadable' end
if head == string.sub(ARGV[4], 1, tonumber(ARGV[5])) then return 'done' end
if head ~= ARGV[3] then
  if ARGV[3] == '' and dead then return head end
  return 'conflict'
end
local answer
if ARGV[6] == '0' then
  answer = redis.pcall('SET', KEYS[1], ARGV[4])
else
  answer = redis.pcall('SET', KEYS[1], ARGV[4], 'PX', ARGV[6])
end
if answer.err then return answer end
return 'done'
"""
)

# ARGV: …, the expected head or '*' for whatever is there, the tombstone, its milliseconds to live.
# What is absent gets a tombstone too: a create from before the delete may still be on its way.
# DEL comes first, since a server that is full allows it, and what a script that has written does next.
_DELETE = (
    _BEGIN
    + r"""
if ARGV[3] ~= '*' then
  if not head then return 'unreadable' end
  if head ~= '' and not dead and head ~= ARGV[3] then return 'conflict' end
end
local answer = redis.pcall('DEL', KEYS[1])
if type(answer) == 'table' then return answer end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
return 'done'
"""
)

# KEYS: the record. ARGV: milliseconds to live. A tombstone's life is its own.
_GET = r"""
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, 1, 5) == '\137OW1R' then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return value
"""

# What is foreign is nobody's to refresh, and no error: others are refreshed beside it.
_REFRESH = r"""
if redis.pcall('GETRANGE', KEYS[1], 0, 4) == '\137OW1R' then return redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 0
"""

# KEYS: names. Returns those under which something is, unless it is a tombstone.
_LIST = r"""
local found = {}
for _, name in ipairs(KEYS) do
  local head = redis.pcall('GETRANGE', name, 0, 4)
  if type(head) == 'table' or (head ~= '' and head ~= '\137OW1T') then found[#found + 1] = name end
end
return found
"""

TOUCH = b"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""
"""A write that changes nothing, to see it arrive in the log. KEYS: the store's own key. ARGV: the store's id."""


def _name_of(text: str) -> bytes:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()


PUT, DELETE, GET, LIST, REFRESH = map(_name_of, (_PUT, _DELETE, _GET, _LIST, _REFRESH))
TEXTS = {_name_of(text): text.encode() for text in (_PUT, _DELETE, _GET, _LIST, _REFRESH)}
"""The scripts by the names that the server gives them."""
