"""The system calls of a FileStore, thin enough that a test can put a failing disk in their place.

This file knows descriptors and what the system's errors mean. It does not know what is in a file. Every call raises
``OSError``, and nothing but the names and texts of errors leaves it.
"""

from __future__ import annotations

import contextlib
import errno
import os

from ..errors import StoreUnavailableError

__all__ = ["Files", "definite", "file_system", "is_remote", "refusal"]

_NEVER_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# Where a flush may mean little, an flock may not reach the others, or a server we don't see decides.
_REMOTE = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse", "fuseblk", "glusterfs", "lustre", "ncpfs", "nfs",
    "nfs4", "orangefs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
})  # fmt: skip


class Files:
    """What is done to records. Names are relative to the descriptor of a folder."""

    def create(self, name: str, folder: int) -> int:
        """Create a file that was not there, for its owner only, to be written."""
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NEVER_FOLLOW, 0o600, dir_fd=folder)

    def open(self, name: str, folder: int) -> int:
        """Open a file to be read. A pipe that somebody put there doesn't block."""
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | _NEVER_FOLLOW, dir_fd=folder)

    def stat(self, descriptor: int) -> os.stat_result:
        return os.fstat(descriptor)

    def read(self, descriptor: int, size: int, offset: int) -> bytes:
        return os.pread(descriptor, size, offset)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        return os.write(descriptor, data)

    def write_all(self, descriptor: int, data: bytes) -> None:
        """Write *data* to its end: a disk that is nearly full, or a signal, may end a write early without an error."""
        left = memoryview(data)
        while left:
            left = left[self.write(descriptor, left) :]

    def begin_writing(self, descriptor: int) -> None:
        """Have the disk begin with it, and don't wait."""
        with contextlib.suppress(OSError):  # advice; the flush tells
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, old: str, new: str, folder: int) -> None:
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)

    def unlink(self, name: str, folder: int) -> None:
        os.unlink(name, dir_fd=folder)

    def names(self, folder: int) -> list[str]:
        return os.listdir(folder)

    def stamp(self, descriptor: int, nanoseconds: int) -> None:
        """Set the times of a file."""
        os.utime(descriptor, ns=(nanoseconds, nanoseconds))


def definite(error: OSError) -> bool:
    """Whether a rename or unlink that failed so has certainly not happened. An I/O error says nothing."""
    return error.errno in _FULL | _FORBIDDEN | _OURS | {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EBUSY}


def refusal(error: OSError, what: str) -> StoreUnavailableError:
    """The error of ours for something that certainly did not happen."""
    name = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in _FULL:
        way = "Make space; nothing was stored, and later calls will work again"
        return StoreUnavailableError(f"the disk is full, or a quota is used up ({name}): {what}. {way}")
    if error.errno in _FORBIDDEN:
        return StoreUnavailableError(f"{what}: {name}. See that this process may read and write there")
    if error.errno in _OURS:
        return StoreUnavailableError(f"{what}: {name}. Raise the limits of this process; nothing was stored")
    return StoreUnavailableError(f"the disk fails ({name}): {what}. Nothing was stored; see the system's log")


def file_system(descriptor: int) -> str:
    """The type of the file system that *descriptor* is on, such as ``ext4``; empty if the system doesn't tell."""
    try:
        mount = _field(f"/proc/self/fdinfo/{descriptor}", "mnt_id:")
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:  # noqa: PTH123
            for line in mounts:
                if line.split(" ", 1)[0] == mount:
                    return line.partition(" - ")[2].split(" ", 1)[0]
    except OSError:
        pass  # no /proc, as in some sandboxes
    return ""


def _field(path: str, name: str) -> str:
    with open(path, encoding="utf-8") as lines:  # noqa: PTH123
        return next((line.split()[1] for line in lines if line.startswith(name)), "")


def is_remote(kind: str) -> bool:
    """Whether a file system of this type is on the network, or made by another program."""
    return kind in _REMOTE or kind.startswith("fuse.")
