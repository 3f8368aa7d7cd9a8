"""Locks between processes: flock on files of our own, which the kernel releases when a process dies.

This file knows lock files and forks. It does not know what the locks protect, and it never opens a database:
flock belongs to the open file description, so a child process that kept one would keep its parent's lock alive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import StoreUnavailableError, UsageError

__all__ = ["FairLock", "LockFile", "check_owned", "poll", "refuse_strangers", "take_turn"]

_SHORTEST_NAP = 0.0002
_LONGEST_NAP = 0.004  # a free lock is noticed within 4 ms; a shorter nap costs a core when many processes wait

_descriptors: set[int] = set()
_descriptors_guard = threading.Lock()  # also held over a fork; never while the disk is waited for
_opening: list[str] = []
"""The paths of files that are being opened, and so may have a descriptor that is not noted yet."""
_forks = 0


def _forget_in_child() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    with contextlib.suppress(OSError):  # no /proc: the child keeps a descriptor that nobody locks with
        for link in list(Path("/proc/self/fd").iterdir()) if _opening else ():
            with contextlib.suppress(OSError):  # that of the listing itself
                if str(link.readlink()) in _opening:
                    os.close(int(link.name))
    _opening.clear()
    _descriptors_guard.release()


def _note_fork() -> None:
    global _forks
    _forks += 1
    _descriptors_guard.release()


os.register_at_fork(before=_descriptors_guard.acquire, after_in_parent=_note_fork, after_in_child=_forget_in_child)


def _open(path: str, name: str, flags: int, inside: int | None) -> int:
    """Open a file whose descriptor no child keeps: it would keep what is locked with it."""
    with _descriptors_guard:
        _opening.append(path)
    try:
        while True:
            forks = _forks
            descriptor = os.open(name or path, flags, 0o600, dir_fd=inside)
            with _descriptors_guard:
                if forks == _forks:
                    _descriptors.add(descriptor)
                    return descriptor
            os.close(descriptor)  # a child had it, and may have it still: what it has is never locked
    finally:
        with _descriptors_guard:
            _opening.remove(path)


def check_owned(path: str) -> bool:
    """Whether *path* exists; refuse it if it is a symlink, no plain file, or somebody else's."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    refuse_strangers(path, status)
    return True


def refuse_strangers(path: str, status: os.stat_result, *, folder: bool = False) -> None:
    """Raise unless *status* is of a plain file, or of a *folder*, of this process's user."""
    if stat.S_ISLNK(status.st_mode):
        raise UsageError(
            f"{path} is a symbolic link, and a planted one could send the data anywhere: pass the path it points to"
        )
    if folder and not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{path} is no folder: pass the path of a folder, which may be missing, but not what is above")
    if not folder and not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is no plain file: pass the path of a file, such as {Path(path, 'agents.db')}")
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"{path} belongs to user {status.st_uid} and this process runs as user {os.geteuid()}: "
            "run as its owner, change the owner, or use another path"
        )


class LockFile:
    """A file, never unlinked, that is locked and not read, except for the note that its holder leaves.

    With *folder* it is a folder, which can be locked as well; it must be there. *known*: it was checked before, and is
    where nobody else may write.
    """

    def __init__(self, path: str, *, folder: bool = False, known: bool = False) -> None:
        self.path = path
        self.descriptor = -1
        self._folder = folder
        self._known = known

    def open(self, name: str = "", inside: int | None = None) -> None:
        """Create the file for its owner only, or open it: by its path, or by its *name* in an open folder."""
        flags = (os.O_RDONLY | os.O_DIRECTORY) if self._folder else (os.O_RDWR | os.O_CREAT)
        try:
            self.descriptor = _open(self.path, name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, inside)
            if not self._known:
                refuse_strangers(self.path, os.fstat(self.descriptor), folder=self._folder)
        except OSError as error:
            self.close()
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENOTDIR):
                with contextlib.suppress(OSError):  # what is above it is gone: then that is the error
                    refuse_strangers(self.path, os.lstat(self.path), folder=self._folder)
            what = "folder" if self._folder else "lock file"
            raise StoreUnavailableError(
                f"the {what} {self.path} can't be opened ({os.strerror(error.errno or 0)}): "
                "the store needs a folder that this process may write to"
            ) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unlock and let go. Idempotent."""
        with _descriptors_guard:
            # A fork's child has closed and forgotten its copies; their numbers may be somebody else's by now.
            if self.descriptor in _descriptors:
                _descriptors.discard(self.descriptor)
                os.close(self.descriptor)
            self.descriptor = -1

    def try_lock(self, *, shared: bool = False) -> bool:
        """Take the lock if that is possible now."""
        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if self._folder:
                return True  # NFS locks no folders; and a folder is only ever a turnstile, which is a courtesy
            raise StoreUnavailableError(
                f"the lock file {self.path} can't be locked ({os.strerror(error.errno or 0)}): "
                "put the store on a local file system"
            ) from None
        return True

    def unlock(self) -> None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        except OSError as error:
            if not self._folder:  # as above
                raise StoreUnavailableError(
                    f"the lock file {self.path} can't be unlocked ({os.strerror(error.errno or 0)}): "
                    "others wait until it is; put the store on a local file system"
                ) from None

    def sign(self, *, shared: bool) -> None:
        """Write down who holds the lock, for those who wait."""
        note = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "shared": shared,
        }
        try:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(note).encode(), 0)
        except OSError:
            return  # the note only makes an error message better; a full disk must not take the lock away

    def holder(self) -> str:
        """Say who signed last. Words for an error message, nothing to decide on."""
        try:
            note: Any = json.loads(os.pread(self.descriptor, 4096, 0))
            who = f"process {note['pid']:d} on {note['host']}"
            own = " (this very process)" if note["pid"] == os.getpid() else ""
            return f"{who}{own}, since {note['since']}, {'shared' if note['shared'] else 'exclusive'}"
        except (OSError, ValueError, KeyError, TypeError):
            return "a process that left no name"


class FairLock:
    """A lock that one who just had it can't take again from under another who waits.

    To get the lock one passes a turnstile and keeps it shut until the lock is free. Whoever released the lock
    a moment ago finds the turnstile shut by the one who waits. Polled, since flock has no time-out; with SQLite's
    own busy handler one of two writers made 25,059 batches and the other 1,185.
    """

    def __init__(self, path: str) -> None:
        self._turnstile = LockFile(f"{path}-turnstile")
        self._lock = LockFile(f"{path}-lock")

    def open(self) -> None:
        self._turnstile.open()
        try:
            self._lock.open()
        except BaseException:
            self._turnstile.close()
            raise

    def close(self) -> None:
        self._turnstile.close()
        self._lock.close()

    def acquire(self, deadline: float) -> bool:
        """Wait for the lock until ``time.monotonic()`` is *deadline*; whether it is ours. Blocks its thread."""
        return take_turn(self._turnstile, self._lock, deadline)

    def release(self) -> None:
        self._lock.unlock()


def take_turn(turnstile: LockFile, lock: LockFile, deadline: float, *, shared: bool = False) -> bool:
    """Wait for *lock* until *deadline* and, meanwhile, keep the turnstile shut; whether it is ours."""
    if not poll(turnstile, deadline):
        return False
    try:
        return poll(lock, deadline, shared=shared)
    finally:
        turnstile.unlock()


def poll(lock: LockFile, deadline: float, *, shared: bool = False) -> bool:
    """Wait for a lock until *deadline*; whether it is ours."""
    nap = _SHORTEST_NAP
    while not lock.try_lock(shared=shared):
        if time.monotonic() >= deadline:
            return False
        time.sleep(nap)
        nap = min(nap * 1.5, _LONGEST_NAP)
    return True
