"""One file per agent in a folder on a local disk: a store without a database.

This file knows which threads do the work. It does not know the store protocol (``_local.py``), the order of system
calls (``_file_writer.py``, ``_file_reader.py``, ``_file_listing.py``), folders and locks (``_file_folder.py``), what is
in a file (``_file_frame.py``, ``_file_record.py``) or how threads share the work (``_crew.py``).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from ..errors import CorruptRecordError, InvalidKeyError, UsageError
from ._crew import Crew
from ._file_folder import SHARDS, Folder
from ._file_frame import MAX_KEY, MAX_REVISION, name_of
from ._file_layer import Files
from ._file_listing import Part
from ._file_reader import FileReader
from ._file_writer import FileWriter
from ._local import LocalStore
from .base import Durability, Expect, Revision

__all__ = ["FileStore"]

_WRITERS = 8  # a disk does two to three times as many flushes at once as one by one; more threads add little
_TOLD = 5  # damaged files that an error names


class FileStore(LocalStore):
    """Keep each record in a file of its own, in one of 256 folders in *folder*.

    *timeout* is how many seconds a call waits for other processes (then ``StoreUnavailableError``: not stored).
    A disk that hasn't answered after three times as long is an ``OutcomeUnknownError`` to a write, or
    ``StoreUnavailableError`` if that had not been begun.

    Promises:

    * A put that returned survives a power loss, if the disk keeps its word about fsync: the record is written to a new
      file and flushed, which then replaces the old one, and the folder is flushed. Nobody sees half of it.
    * Nothing blocks the event loop: up to eight threads write, each in another of the folders, and one reads.
    * Compare and write are one step, between threads and processes, by flocks that the kernel ends with their process.
      What a killed process left unfinished is finished, or removed, before anybody reads it.
    * Several processes on one machine may use one folder. Each agent name has one owner unless the managers are
      ``shared=True``.
    * Any key makes a good file name: its hash. The key is in the file and compared; a file that is damaged, torn, or
      of another key is a ``CorruptRecordError``, and never absent.
    * Folders and files are created for their owner only; symlinks and what belongs to other users is refused.
    * Cancelling a caller is safe: what it began happens or doesn't, whole.

    Caveats:

    * Local disks only. NFS, SMB, FUSE and their like are refused. *allow_network* is for one machine alone on a server
      that can be trusted; the store then declares ``Durability.PROCESS``, since what is beyond is the server's word.
    * Two flushes for each put, shared only by puts that wait for one folder: ``SQLiteStore`` is several times as fast
      under load.
    * Listing its keys reads the head of every file, and keeps in memory the names in one of the 256 folders.
    * Opening it lists the names of all files, to remove what killed writers left: about a second for a million.
    * Never delete the lock files in use. Copying the folder while it is in use gives each record whole, but not all
      of one moment.
    * After a fork the child must make a store of its own.
    """

    durability = Durability.HOST

    _files = Files()

    def __init__(self, folder: str | os.PathLike[str], *, timeout: float = 10.0, allow_network: bool = False) -> None:
        super().__init__(folder, timeout=timeout)
        self._allow_network = allow_network
        if allow_network:
            self.durability = Durability.PROCESS

    async def open(self) -> None:
        folder = Folder(self.path, self.timeout, self._files, allow_network=self._allow_network)
        writer = FileWriter(folder, self._files, self.timeout)
        reader = FileReader(folder, self._files, self.timeout)
        await self._open(
            Crew("overwinter-files-writer", writer, _shard_of, threads=_WRITERS, patience=self._patience),
            Crew("overwinter-files-reader", reader, _one_group, threads=1, patience=self._patience, order=False),
        )

    def _check_put(self, key: str, revision: Revision, expected: Revision | Expect) -> None:
        if len(key) > MAX_KEY // 4 and len(key.encode(errors="replace")) > MAX_KEY:
            raise InvalidKeyError(f"a key has more than {MAX_KEY} bytes: use a hash or a shorter id")
        if len(revision) > MAX_REVISION:
            raise UsageError(f"the revision of key {key!r} has more than {MAX_REVISION} bytes: use 16 random ones")
        super()._check_put(key, revision, expected)

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield the keys that begin with *prefix*, as the heads of all files tell them; see ``Store.keys``.

        Raises:
            CorruptRecordError: some files can't be told the key of. It comes last, when all other keys were yielded:
                one damaged file neither hides others nor is left out in silence. It comes whatever *prefix* is, since
                the keys may begin with it. Damage behind a whole head is for ``get`` to tell.
        """
        self._check_text(prefix)
        damaged: list[str] = []
        number = 0
        for folder in SHARDS:
            left: list[str] | None = None
            while left is None or left:
                part: Part = await self._ask("keys", folder, left)
                left = part.left
                number += len(part.damaged)
                damaged += part.damaged[: _TOLD - len(damaged)]
                for key in part.keys:
                    if key.startswith(prefix):
                        yield key
        if number:
            raise CorruptRecordError(
                f"{number} files can't be told the key of, all others were listed: {'; '.join(damaged)}"
                f"{' …' if number > len(damaged) else ''}. They are left as they are: restore them from a backup"
            )

    async def count(self, prefix: str = "") -> int:
        """Return how many keys begin with *prefix*. All of them are counted by the names of files, damaged ones too."""
        if prefix:
            return await super().count(prefix)
        numbers: list[int] = [await self._ask("count", folder) for folder in SHARDS]
        return sum(numbers)

    def _prefix(self) -> str:
        return f"{self.path}/"


def _shard_of(key: str) -> str:
    return name_of(key)[:2]


def _one_group(_: str) -> str:
    """One thread reads: of what is in the page cache it reads 18,000 a second, and two of them, in turns, 7,000."""
    return ""
