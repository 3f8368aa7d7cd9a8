"""Listing the keys of a FileStore: the names of the files of one folder, and the keys that are in their heads.

This file knows that the name of a file tells a key only to who knows it already, so each head is read. What can't be
read has no key, and is never left out in silence: it is told beside the keys. It does not know who asks, or for what.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from ._file_folder import Shard
from ._file_frame import DamagedError, head_size, key_in, name_of
from ._file_layer import Files
from ._file_record import checked_size, open_record

__all__ = ["Part", "part_of"]

_AT_ONCE = 128  # heads that are read with the lock held: some 4 ms, for which writers of the folder wait
_FIRST_READ = 512  # bytes; most heads are read by the first read
_OF_ONE_FILE = {errno.EIO, errno.EACCES, errno.EPERM}  # errors that say nothing about the files beside it


@dataclass(slots=True)
class Part:
    """Some of the keys of a folder."""

    left: list[str]
    """The names of the files that were there when the listing came to the folder, and are still to be looked at."""
    keys: list[str] = field(default_factory=list[str])
    damaged: list[str] = field(default_factory=list[str])
    """Which files can't be told the key of, and why."""


def part_of(files: Files, shard: Shard, names: list[str] | None) -> Part:
    """Read the keys of some of the files called *names*; without, of those in the folder. Needs the lock."""
    names = shard.records() if names is None else names
    part = Part(names[_AT_ONCE:])
    for name in names[:_AT_ONCE]:
        try:
            part.keys.append(_key_of(files, shard, name))
        except FileNotFoundError:
            continue  # deleted since the folder was listed
        except DamagedError as error:
            part.damaged.append(f"{shard.path}/{name} {error}")
        except OSError as error:
            if error.errno not in _OF_ONE_FILE:
                raise
            part.damaged.append(f"{shard.path}/{name} can't be read ({os.strerror(error.errno)})")
    return part


def _key_of(files: Files, shard: Shard, name: str) -> str:
    if name[:2] != shard.name:
        raise DamagedError("is in the wrong folder, where nobody looks for it")
    descriptor = open_record(files, shard, name)
    try:
        checked_size(files, descriptor)
        start = files.read(descriptor, _FIRST_READ, 0)
        if head_size(start) > len(start):
            start = files.read(descriptor, head_size(start), 0)
    finally:
        files.close(descriptor)
    key = key_in(start)
    if name_of(key) != name:
        raise DamagedError("holds another key")
    return key
