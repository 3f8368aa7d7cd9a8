"""The folder of a FileStore: who may use it, how it is made, and the 256 folders in it, each with its lock.

This file knows folders, locks and what a crash leaves behind. It does not know what is in a file.

The modification time of a shard's lock file is a flag, the cheapest there is. A store that changes something puts a
number of its own there, and zero when it closes. Who gets the lock and finds a number of somebody else, or his own and
his last change failed, can't know that all he sees is durable: he removes leftovers and flushes the folder first.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Self

from ..errors import CorruptRecordError, StoreUnavailableError, UsageError
from ._file_layer import Files, file_system, is_remote, refusal
from ._flock import LockFile, poll, refuse_strangers, take_turn

__all__ = ["SHARDS", "Folder", "Shard", "Tenure", "temporary_name"]

SHARDS = [f"{number:02x}" for number in range(256)]
_MARKER = "format"
_TEXT = "overwinter file store {}\n"
_FORMAT = 1
_OURS = re.compile(r"[0-9a-f]{2}|lock|format|format\.tmp|owner-[0-9a-f]{16}\.lock")
_POLITE = 0.02  # seconds for which one who had the lock lets others go first
_RECORD = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.tmp")


def temporary_name(name: str) -> str:
    """A name that nobody has used, in the form by which leftovers are found."""
    return f"{name}.{os.urandom(8).hex()}.tmp"


class Folder:
    """The root, open. ``open`` and ``close`` are called once each, ``shard`` from many threads."""

    def __init__(self, path: str, timeout: float, files: Files, *, allow_network: bool) -> None:
        self.path = path
        self._timeout = timeout
        self._files = files
        self._allow_network = allow_network
        self._root = -1
        self._known = False
        self._tenure = Tenure()
        self._identity: tuple[int, int] | None = None

    def open(self) -> None:
        try:
            self._enter()
            if not self._is_made():  # looked at before anything of ours is there
                self._refuse_other_files()
            lock = LockFile(f"{self.path}/lock")
            lock.open()
            try:
                if not poll(lock, time.monotonic() + self._timeout):
                    raise StoreUnavailableError(
                        f"another process has been opening {self.path} for {self._timeout:g} s: "
                        "see whether it is stopped, or raise timeout="
                    )
                if not self._is_made():
                    self._make()
            finally:
                lock.close()
            self._clean()
            self._known = True
        except OSError as error:
            if isinstance(error, StoreUnavailableError):
                raise
            raise refusal(error, f"the store {self.path} can't be opened") from None

    def close(self) -> None:
        for name in list(self._tenure.sound):
            with contextlib.suppress(OSError, UsageError), self.shard(name) as shard:
                shard.hand_over()  # or whoever comes next flushes once for nothing
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def shard(self, name: str) -> Shard:
        """Return the folder of a file of this *name*, or which is called so; enter it to use it."""
        return Shard(self._files, f"{self.path}/{name[:2]}", self._root, self._tenure, known=self._known)

    def check(self) -> None:
        """Raise if the folder lost its name: another process would find, and lock, another one there."""
        try:
            status = os.stat(self.path)  # noqa: PTH116  # a Path costs as much as all of reading a file
        except OSError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != self._identity:
            raise StoreUnavailableError(f"{self.path} was moved or replaced while in use: put it back, or restart")

    # ------------------------------------------------------------ opening

    def _enter(self) -> None:
        """Open the root, make it if it is missing, and refuse it where it can't be used safely."""
        above = Path(self.path).parent
        if not above.is_dir():
            raise UsageError(f"there is no folder {above} for the store {Path(self.path).name}: create it first")
        with contextlib.suppress(FileExistsError):
            Path(self.path).mkdir(0o700)
        refuse_strangers(self.path, os.lstat(self.path), folder=True)
        self._root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(self._root)
        refuse_strangers(self.path, status, folder=True)
        if status.st_mode & 0o002:
            raise UsageError(f"every user may write to {self.path}: chmod 700 it, or use a folder in it")
        self._identity = status.st_dev, status.st_ino
        kind = file_system(self._root)
        if is_remote(kind) and not self._allow_network:
            raise UsageError(
                f"{self.path} is on {kind}, where locks and flushes may not mean what they say: use a local disk, "
                "or pass allow_network=True if one machine alone uses it and you trust its server"
            )

    def _is_made(self) -> bool:
        try:
            descriptor = self._files.open(_MARKER, self._root)
        except FileNotFoundError:
            return False
        try:
            text = self._files.read(descriptor, 64, 0).decode("ascii", "replace")
        finally:
            self._files.close(descriptor)
        found = re.fullmatch(_TEXT.format(r"(\d{1,9})"), text)
        if not found:
            raise CorruptRecordError(f"{self.path}/{_MARKER} is damaged: restore a backup; nothing was changed")
        if int(found[1]) > _FORMAT:
            raise UsageError(
                f"{self.path} has format {int(found[1])} and this overwinter knows format {_FORMAT}: "
                "upgrade overwinter; the folder is left as it is"
            )
        return True

    def _refuse_other_files(self) -> None:
        if not all(_OURS.fullmatch(name) for name in self._files.names(self._root)):
            raise UsageError(f"{self.path} holds other files: use an empty folder; it is left as it is")

    def _make(self) -> None:
        """Make what is missing. The marker comes last: where it stands, the names of all folders are durable."""
        for name in SHARDS:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._root)
            self._make_lock(name)
        above = os.open(Path(self.path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._files.fsync(above)
        finally:
            self._files.close(above)
        self._files.fsync(self._root)
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(f"{_MARKER}.tmp", self._root)
        descriptor = self._files.create(f"{_MARKER}.tmp", self._root)
        try:
            self._files.write_all(descriptor, _TEXT.format(_FORMAT).encode())
            self._files.fsync(descriptor)
        finally:
            self._files.close(descriptor)
        self._files.rename(f"{_MARKER}.tmp", _MARKER, self._root)
        self._files.fsync(self._root)

    def _make_lock(self, name: str) -> None:
        """Make a shard's lock file now, so that a full disk can't keep anybody from reading later."""
        with contextlib.suppress(FileExistsError):
            descriptor = self._files.create(f"{name}/lock", self._root)
            try:
                self._files.stamp(descriptor, 0)
            finally:
                self._files.close(descriptor)

    def _clean(self) -> None:
        """Remove what killed writers left. Where somebody is at work it isn't looked: he will see to it himself."""
        for name in SHARDS:
            with self.shard(name) as shard:
                if shard.acquire(0, shared=False) and (not shard.sound or shard.leftovers()):
                    shard.mend()


class Tenure:
    """What an open store remembers of the shards."""

    def __init__(self) -> None:
        # Whole seconds, since some file systems keep no more, and not beyond 2038.
        self.token = (1 + int.from_bytes(os.urandom(4)) % (2**31 - 1)) * 1_000_000_000
        self.sound: set[str] = set()
        """Where our token stands and our last change was sealed."""
        self.released: dict[str, float] = {}


class Shard:
    """One of the 256 folders, open while it is entered: two descriptors, so that nothing is held between two jobs.

    It is locked by ``flock``s on the folder, the turnstile, and on a file in it, the lock. What was opened here is not
    used again after an fsync of it failed.
    """

    def __init__(self, files: Files, path: str, root: int, tenure: Tenure, *, known: bool) -> None:
        self._files = files
        self._root = root
        self.name = path[-2:]
        self._folder = LockFile(path, folder=True, known=known)
        self._lock = LockFile(f"{path}/lock", known=known)
        self._tenure = tenure
        self._stamp = -1
        self._locked = False
        self._marked = False
        self.unsure = False
        """Whether something failed in a way that the next one has to look after."""

    def __enter__(self) -> Self:
        self._folder.open(self.name, self._root)
        try:
            self._lock.open("lock", self._folder.descriptor)
        except BaseException:
            self._folder.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._locked:
            self._tenure.released[self.name] = time.monotonic()
        self._lock.close()
        self._folder.close()

    @property
    def path(self) -> str:
        return self._folder.path

    @property
    def descriptor(self) -> int:
        """Of the folder."""
        return self._folder.descriptor

    def acquire(self, deadline: float, *, shared: bool) -> bool:
        """Wait for the lock until *deadline*; whether it is ours. What was *shared* may become exclusive so."""
        if self._locked:
            self._lock.unlock()
        # Only who had the lock a moment ago can keep others from it; anybody else may pass the turnstile by.
        stranger = self._tenure.released.get(self.name, 0) + _POLITE < time.monotonic()
        self._locked = (stranger and self._lock.try_lock(shared=shared)) or take_turn(
            self._folder, self._lock, deadline, shared=shared
        )
        return self._locked

    def hold(self, deadline: float, *, shared: bool) -> bool:
        """Get the lock, and finish what somebody may have left unfinished: it must not be read before it is durable."""
        if not self.acquire(deadline, shared=shared):
            return False
        if not self.sound:
            if shared and not self.acquire(deadline, shared=False):
                return False
            if not self.sound:
                self.mend()
        return True

    @property
    def sound(self) -> bool:
        """Whether all that is seen here is durable. Ask with the lock held."""
        self._stamp = os.fstat(self._lock.descriptor).st_mtime_ns
        return not self._stamp or (self._stamp == self._tenure.token and self.name in self._tenure.sound)

    def leftovers(self) -> list[str]:
        return [name for name in self._files.names(self.descriptor) if _TEMPORARY.fullmatch(name)]

    def records(self) -> list[str]:
        """The names of all records."""
        return [name for name in self._files.names(self.descriptor) if _RECORD.fullmatch(name)]

    def mend(self) -> None:
        """Remove leftovers and make durable what is there. Needs the exclusive lock."""
        for name in self.leftovers():
            self._files.unlink(name, self.descriptor)
        self._files.fsync(self.descriptor)
        self._put(0)

    def mark(self) -> None:
        """Note that a change begins, before anything is done that must not be left so."""
        if not self._marked:
            if self._stamp != self._tenure.token:
                self._put(self._tenure.token)
            self._tenure.sound.discard(self.name)
            self._marked = True

    def seal(self) -> None:
        """Make the changes durable."""
        self._files.fsync(self.descriptor)

    def discard(self, name: str) -> None:
        """Remove a file that came to nothing; if that fails, somebody will later."""
        try:
            self._files.unlink(name, self.descriptor)
        except FileNotFoundError:
            return
        except OSError:
            self.unsure = True

    def unmark(self) -> None:
        """Note that nothing is left to do, unless it is."""
        if self._marked and not self.unsure:
            self._tenure.sound.add(self.name)

    def hand_over(self) -> None:
        """Note that what we did here is durable, for those who come when we are gone."""
        if self.acquire(0, shared=False) and self.sound and self._stamp:
            self._put(0)

    def _put(self, stamp: int) -> None:
        self._files.stamp(self._lock.descriptor, stamp)
        self._stamp = stamp
