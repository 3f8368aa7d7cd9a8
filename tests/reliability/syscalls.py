"""Errors of system calls in a child process, as the kernel would give them: a seccomp filter asks us about each call.

The child calls ``watch``, after which the kernel holds its listed calls until we let them go on, or fail; ``supervise``
is our side. Nothing in the child is replaced, and it takes 20 µs a call.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import signal
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CALLS", "ERRNOS", "SYNCS", "Board", "Fault", "Seen", "missing", "supervise", "watch"]

ERRNOS = ["EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE", "EACCES"]
SYNCS = {"fsync", "fdatasync"}

_MACHINES = {"x86_64": 0, "aarch64": 1}
# Numbers on those machines, not all of which have each call; and where its file is: a descriptor in that argument, a
# path in the first, or a folder in the first and a path in it in the second.
CALLS = {
    "close": (3, 57, "fd 0"),
    "fchown": (93, 55, "fd 0"),
    "fcntl": (72, 25, "fd 0"),
    "fdatasync": (75, 83, "fd 0"),
    "flock": (73, 32, "fd 0"),
    "fstat": (5, 80, "fd 0"),
    "fsync": (74, 82, "fd 0"),
    "ftruncate": (77, 46, "fd 0"),
    "getdents64": (217, 61, "fd 0"),
    "lseek": (8, 62, "fd 0"),
    "lstat": (6, None, "path"),
    "mkdir": (83, None, "path"),
    "mkdirat": (258, 34, "at"),
    "mmap": (9, 222, "fd 4"),
    "newfstatat": (262, 79, "at"),
    "openat": (257, 56, "at"),
    "pread64": (17, 67, "fd 0"),
    "pwrite64": (18, 68, "fd 0"),
    "read": (0, 63, "fd 0"),
    "renameat": (264, 38, "at"),
    "stat": (4, None, "path"),
    "unlink": (87, None, "path"),
    "unlinkat": (263, 35, "at"),
    "utimensat": (280, 88, "at"),
    "write": (1, 64, "fd 0"),
}
_MACHINE = _MACHINES.get(platform.machine(), 0)
_NAMES = {numbers[_MACHINE]: name for name, numbers in CALLS.items()}
_SECCOMP, _PIDFD_GETFD = (317, 277)[_MACHINE], 438
_ALL_THREADS_AND_A_LISTENER = 1 | 1 << 3 | 1 << 4
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_GO_ON = 1
_CALL = struct.Struct("QIIiIQ6Q")  # id, thread, flags, number, machine, where from, arguments
_ANSWER = struct.Struct("QqiI")  # id, result, error, flags
_LOCKS = {fcntl.F_SETLK, fcntl.F_SETLKW, 37, 38}
_UNLOCK = struct.pack("h", fcntl.F_UNLCK)  # never refused on a local disk, and SQLite does not reckon with it
_PATIENCE = 20.0

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why this can't be done here; empty if it can."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if platform.machine() not in _MACHINES or platform.system() != "Linux":
        return f"the numbers of system calls are not known for {platform.system()} on {platform.machine()}"
    if not actions.exists() or "user_notif" not in actions.read_text().split():
        return "this kernel has no seccomp with user_notif"
    return ""


@dataclass(frozen=True)
class Fault:
    """The *nth* such call fails, or that and all later ones; without an *error* it writes only half."""

    call: str
    error: str = ""
    nth: int = 1
    for_ever: bool = False


class Board:
    """What child and supervisor both see at any moment."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def armed(self) -> bool:
        return self._memory[0] == 1

    @armed.setter
    def armed(self, value: bool) -> None:
        self._memory[0] = value

    @property
    def fired(self) -> int:
        return int(struct.unpack_from("i", self._memory, 4)[0])

    @fired.setter
    def fired(self, value: int) -> None:
        struct.pack_into("i", self._memory, 4, value)


@dataclass
class Seen:
    """What a child did with the files of a folder while the board was armed, and what it must never do."""

    calls: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def watch(calls: set[str], parent: socket.socket) -> int:
    """Have all threads of this process ask *parent* before each of *calls*; return the descriptor that they ask."""
    numbers = [CALLS[name][_MACHINE] for name in calls]
    wanted = [number for number in numbers if number is not None]
    steps = [(0x20, 0, 0, 0)]  # load the number of the call
    steps += [(0x15, len(wanted) - place, 0, number) for place, number in enumerate(wanted)]
    steps += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)]  # allow; ask
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
    _libc.prctl(1, signal.SIGKILL)  # it ends with its parent, whom it would ask in vain
    if _libc.prctl(38, 1, 0, 0, 0) != 0:  # no new privileges, without which it takes root
        raise OSError(ctypes.get_errno(), "prctl")
    listener: int = _libc.syscall(_SECCOMP, 1, _ALL_THREADS_AND_A_LISTENER, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    parent.send(str(listener).encode())
    parent.recv(1)  # he has it
    return listener


def supervise(
    pid: int, child_socket: socket.socket, fault: Fault | None, folder: str, board: Board, *, flush_again: bool = False
) -> Seen:
    """Answer the child *pid* until it ends, and reap it.

    It must ``watch``, and end with status 0; and, unless it may *flush_again*, leave a descriptor alone whose flush
    failed.
    """
    seen = Seen()
    listener = child_socket.recv(16)
    if not listener:
        os.waitpid(pid, 0)
        seen.wrong.append("it ended before the trouble began")
        return seen
    process = os.pidfd_open(pid)
    ours = _take(process, int(listener))
    child_socket.send(b".")
    child = _Child(pid, process, fault, folder, board, seen, flush_again)
    poll = select.poll()
    for descriptor in (ours, process):
        poll.register(descriptor, select.POLLIN)
    try:
        while True:
            ready = dict(poll.poll(_PATIENCE * 1000))
            if ready.get(ours, 0) & select.POLLIN:
                _answer(ours, child)
            elif process in ready:
                break
            elif not ready:
                os.kill(pid, signal.SIGKILL)
                seen.wrong.append(f"it hung for {_PATIENCE:g} s")
            else:
                poll.unregister(ours)  # nobody is left who could ask
    finally:
        os.close(ours)
        os.close(process)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        seen.wrong.append(f"it ended with status {status}")
    return seen


@dataclass
class _Child:
    pid: int
    process: int
    fault: Fault | None
    folder: str
    board: Board
    seen: Seen
    flush_again: bool
    unflushable: set[int] = field(default_factory=set)


def _answer(listener: int, child: _Child) -> None:
    buffer = bytearray(_CALL.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer, True)
    except FileNotFoundError:
        return  # its thread is gone
    number, thread, _, call, _, _, *arguments = _CALL.unpack(buffer)
    name = _NAMES[call]
    error = _verdict(child, name, thread, arguments)
    if error == "short":
        try:
            written = _write_half(child, name, thread, arguments)
        except ProcessLookupError:
            return  # it was killed meanwhile
        answer = _ANSWER.pack(number, written, 0, 0)
    else:
        answer = _ANSWER.pack(number, 0, -getattr(errno, error) if error else 0, 0 if error else _GO_ON)
    try:
        fcntl.ioctl(listener, _SEND, answer)
    except FileNotFoundError:
        return


def _verdict(child: _Child, name: str, thread: int, arguments: list[int]) -> str:
    """The error that this call gets; empty if it may go on."""
    first = arguments[0] & 0xFFFFFFFF
    if name == "close":
        child.unflushable.discard(first)
    elif name in SYNCS and first in child.unflushable and not child.flush_again:
        child.seen.wrong.append("a descriptor whose flush failed was flushed again")
    if not child.board.armed or not _path(name, thread, arguments).startswith(child.folder):
        return ""
    if name == "fcntl" and arguments[1] in _LOCKS and _memory(thread, arguments[2], 2) == _UNLOCK:
        return ""
    child.seen.calls[name] += 1
    fault = child.fault
    if fault is None or name != fault.call:
        return ""
    count = child.seen.calls[name]
    if count != fault.nth and not (fault.for_ever and count > fault.nth):
        return ""
    child.board.fired += 1
    if name in SYNCS:
        child.unflushable.add(first)
    return fault.error or "short"


def _path(name: str, thread: int, arguments: list[int]) -> str:
    kind = CALLS[name][2]
    if kind.startswith("fd"):
        return _target(thread, arguments[int(kind[3:])])
    if kind == "path":
        return _text(thread, arguments[0])
    text = _text(thread, arguments[1]) if arguments[1] else ""  # without one it is the descriptor's
    return text if text.startswith("/") else f"{_target(thread, arguments[0])}/{text}"


def _target(thread: int, descriptor: int) -> str:
    try:
        return str(Path(f"/proc/{thread}/fd/{ctypes.c_int32(descriptor & 0xFFFFFFFF).value}").readlink())
    except (FileNotFoundError, ProcessLookupError):
        return ""  # no such descriptor, which is for the kernel to say, or its thread is gone


def _text(thread: int, address: int) -> str:
    return os.fsdecode(_memory(thread, address, 1024).split(b"\0", 1)[0])


def _memory(thread: int, address: int, size: int) -> bytes:
    try:
        descriptor = os.open(f"/proc/{thread}/mem", os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError):
        return b""  # it was killed meanwhile, and gets no answer
    try:
        return os.pread(descriptor, size, address)
    finally:
        os.close(descriptor)


def _write_half(child: _Child, name: str, thread: int, arguments: list[int]) -> int:
    """Write some of it in the child's place."""
    data = _memory(thread, arguments[1], (arguments[2] + 1) // 2)
    descriptor = _take(child.process, arguments[0])
    try:
        return os.write(descriptor, data) if name == "write" else os.pwrite(descriptor, data, arguments[3])
    finally:
        os.close(descriptor)


def _take(process: int, descriptor: int) -> int:
    """The child's descriptor, as one of ours."""
    ours: int = _libc.syscall(_PIDFD_GETFD, process, descriptor, 0)
    if ours < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return ours
