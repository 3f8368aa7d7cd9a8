"""What a trace of system calls says about durability: was a record flushed before its put was acknowledged?

And which calls change files, so that a process can be killed at each of them.

This file knows strace's output and which calls make what durable. It does not know stores: it finds a record by
marks in its data and its revision, which the traced process announced on its stdout.

What is looked for: the write that bears the mark went to a file; that file was flushed after it; and if the file was
created or renamed, its folder was flushed after that. What was written only later was not durable.
A store that packs or encrypts its records shows no mark; then some flush between begin and acknowledgement must do
as a proof.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

__all__ = ["CHANGES", "STRACE", "killing", "kills", "verdicts", "was_killed", "watching"]

_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
_SYNCS = ("fsync", "fdatasync", "sync_file_range", "msync", "sync", "syncfs")
_NAMES = ("open", "openat", "creat", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat")
# A question mark before a name: not every machine has that call.
_TRACED = "trace=" + ",".join(f"?{name}" for name in _WRITES + _SYNCS + _NAMES)
STRACE = ("strace", "-f", "--seccomp-bpf", "-y", "-s", "100000", "-e", _TRACED, "-e", "signal=none")

# Not writev: the child says with it what was acknowledged.
CHANGES = ("write", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate", "copy_file_range", "utimensat",
            *_SYNCS, "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat")  # fmt: skip

_LINE = re.compile(r"(\d+) +(.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?)(?:<(.*?)>)?[^<>]*", re.DOTALL)
_TARGET = re.compile(r"(\d+)<([^>]*)>")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"')
_SAID = re.compile(r'1<[^>]*>, "(begin|done|seen) ([^\\"]*)\\n"')
_QUOTED = re.compile(r"`[^`]*`")
_EVERY_FILE = "*"


@dataclass(slots=True)
class Call:
    """A system call that succeeded; *start* and *end* are lines of the trace."""

    name: str
    arguments: str
    start: int
    end: int
    opened: str = ""
    thread: str = ""


@dataclass(slots=True)
class Put:
    """A change from its announcement to its acknowledgement."""

    name: str
    marks: list[str]
    begin: int
    done: int = 0
    seen: int = 0


@dataclass(slots=True)
class Disk:
    """What happened to files, in order: by line of the trace."""

    writes: list[Call] = field(default_factory=list)
    syncs: list[tuple[str, Call]] = field(default_factory=list)
    renames: list[tuple[str, str, Call]] = field(default_factory=list)
    removals: list[tuple[str, Call]] = field(default_factory=list)
    created: dict[str, int] = field(default_factory=dict)
    direct: set[str] = field(default_factory=set)


def verdicts(trace: str) -> list[str]:
    """Everything that a power loss could have taken back, in words."""
    disk, puts = _read(trace)
    found: list[str] = []
    for put in puts.values():
        if put.name.startswith("delete"):
            found += _judge_delete(disk, put)
        else:
            found += _judge_put(disk, put)
    if not puts:
        found.append("the trace shows no put: this strace can't be read")
    kinds = {_QUOTED.sub("", each): each for each in reversed(found)}  # the first of each kind: files go by many names
    return list(reversed(kinds.values()))


# ---------------------------------------------------------------- reading


def _calls(trace: str) -> Iterator[Call]:
    """The calls that succeeded, in the order in which they ended; and writes, in the order in which they began."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(trace.splitlines()):
        match = _LINE.match(line)
        if match is None:
            continue
        task, text = match.groups()
        start = number
        if text.endswith("<unfinished ...>"):
            begun[task] = (number, text.removesuffix("<unfinished ...>").rstrip())
            continue
        resumed = _RESUMED.match(text)
        if resumed is not None:
            if task not in begun:
                continue
            start, beginning = begun.pop(task)
            text = beginning + resumed[1]
        call = _CALL.match(text)
        if call is not None and call[3] != "?" and int(call[3]) >= 0:
            yield Call(call[1], call[2], start, number, call[4] or "", task)


def _read(trace: str) -> tuple[Disk, dict[str, Put]]:
    disk = Disk()
    puts: dict[str, Put] = {}
    for call in _calls(trace):
        if call.name in _WRITES:
            said = _SAID.match(call.arguments)
            if said is not None:
                _note(puts, said[1], said[2].split(), call)
            elif _file_of(call):
                disk.writes.append(call)
        elif call.name in _SYNCS:
            disk.syncs.append((_file_of(call) if call.name not in ("sync", "syncfs", "msync") else _EVERY_FILE, call))
        elif call.name.startswith(("open", "creat")):
            if "O_CREAT" in call.arguments or call.name == "creat":
                disk.created.setdefault(call.opened, call.end)
            if "O_DSYNC" in call.arguments or "O_SYNC" in call.arguments:
                disk.direct.add(call.opened)
        else:
            paths = [f"{folder}/{name}" if folder and not name.startswith("/") else name
                     for folder, name in _PATH.findall(call.arguments)]  # fmt: skip
            if call.name.startswith("unlink"):
                disk.removals.append((paths[0], call))
            else:
                disk.renames.append((paths[0], paths[1], call))
    return disk, puts


def _note(puts: dict[str, Put], word: str, rest: list[str], call: Call) -> None:
    name, *marks = rest
    if word == "begin":
        puts[name] = Put(name, marks, call.end)
    elif name in puts and word == "done":
        puts[name].done = call.start
    elif name in puts:
        puts[name].seen = call.start


def _file_of(call: Call) -> str:
    """The path of a call's descriptor; empty if it is a pipe, a socket, a terminal or the like."""
    target = _TARGET.match(call.arguments)
    path = "" if target is None else target[2].removesuffix(" (deleted)")
    return path if path.startswith("/") and not path.startswith(("/dev/pts", "/dev/null", "/dev/tty", "/proc/")) else ""


# ---------------------------------------------------------------- killing


def watching(strace: str, trace: Path) -> list[str]:
    """The command before a command whose calls that change files are to be seen in *trace*."""
    names = ",".join(f"?{name}" for name in (*CHANGES, "writev"))
    return [strace, "-f", "--seccomp-bpf", "-y", "-e", f"trace={names}", "-e", "signal=none", "-o", str(trace)]


def kills(trace: str, number: int) -> list[tuple[str, int]]:
    """Where to kill, some *number* of points: the n-th time that a thread makes a call which changes files.

    Only calls that go on after the first acknowledgement, so that the n-th of them comes for certain.
    """
    counts: dict[str, Counter[str]] = {}
    began = False
    for call in _calls(trace):
        began = began or (call.name == "writev" and call.arguments.startswith("1<"))
        if began and call.name in CHANGES and (call.name not in ("write", "pwrite64") or _file_of(call)):
            counts.setdefault(call.name, Counter())[call.thread] += 1
    each = max(1, number // max(1, len(counts)))
    points: dict[tuple[str, int], None] = {}
    for name, threads in sorted(counts.items()):
        most = max(threads.values())
        points.update({(name, 1 + most * part // (each + 1)): None for part in range(1, each + 1)})
    return list(points)


def killing(strace: str, trace: Path, pid: int, call: str, number: int) -> list[str]:
    """The command that kills a process when a thread of it begins its *call* of this *number*, counted from now."""
    # Without --seccomp-bpf, under which strace 6.1 counts and kills nobody.
    fault = f"inject={call}:signal=SIGKILL:when={number}"
    return [strace, "-f", "-e", f"trace={call}", "-e", "signal=none", "-e", fault, "-o", str(trace), "-p", str(pid)]


def was_killed(trace: str, call: str, number: int) -> bool:
    """Whether it was that call which came last."""
    begun = Counter(line.split()[0] for line in trace.splitlines() if f" {call}(" in line)
    return max(begun.values(), default=0) == number


# ---------------------------------------------------------------- judging


def _judge_put(disk: Disk, put: Put) -> list[str]:
    found: list[str] = []
    told = [(put.done, "acknowledged")] if put.done else []
    told += [(put.seen, "returned by a get")] if put.seen else []
    for when, what in told:
        for mark in put.marks:
            found += _judge_record(disk, mark, put.begin, when, what)
    return found


def _judge_record(disk: Disk, mark: str, begin: int, when: int, what: str) -> list[str]:
    writes = [write for write in disk.writes if mark in write.arguments]
    homes = [write for write in writes if write.start < when]
    if not writes and not _some_sync(disk, begin, when) and not _written_to_direct(disk, begin, when):
        return [f"a put was {what} and nothing was flushed (fsync, fdatasync) since it began"]
    if not homes:
        return [f"a put was {what} before it was written"] if writes else []
    doubts = [_doubt(disk, write, when) for write in homes]
    found = [f"a put was {what} {doubts[0]}"] if all(doubts) else []
    return found + [torn for write in homes if (torn := _renamed_too_early(disk, write))]


def _doubt(disk: Disk, write: Call, when: int) -> str:
    """Why what *write* wrote may be lost in a power loss at line *when*; empty if it can't."""
    first = path = _file_of(write)
    moved = disk.created.get(path, -1)
    flushed = path in disk.direct or "RWF_DSYNC" in write.arguments or "RWF_SYNC" in write.arguments
    events = [("", target, call) for target, call in disk.syncs] + [(new, old, call) for old, new, call in disk.renames]
    for new, target, call in sorted(events, key=lambda event: event[2].end):
        if call.end >= when:
            break
        if new:
            if target == path and call.end > write.start:
                path, moved = new, call.end
        elif target in (path, _EVERY_FILE) and call.start > write.end:
            flushed = True
    if not flushed:
        return f"before its file was flushed ({_name(first)}: written, and no fsync or fdatasync after it)"
    folder = str(PurePosixPath(path).parent)
    if moved >= 0 and not any(
        target in (folder, _EVERY_FILE) and call.start > moved and call.end < when for target, call in disk.syncs
    ):
        return (
            f"before the folder of its file was flushed ({_name(path)}: created or renamed, and no fsync of its folder)"
        )
    return ""


def _renamed_too_early(disk: Disk, write: Call) -> str:
    path = _file_of(write)
    for old, _, rename in disk.renames:
        if old == path and rename.start > write.end:
            flushed = path in disk.direct or any(
                target in (path, _EVERY_FILE) and call.start > write.end and call.end < rename.start
                for target, call in disk.syncs
            )
            return "" if flushed else f"{_name(path)} was renamed before it was flushed: a power loss may leave it torn"
    return ""


def _judge_delete(disk: Disk, put: Put) -> list[str]:
    """What was removed must be removed in its folder, and flushed; what marks a deletion otherwise must be flushed."""
    if not put.done:
        return []
    if not _some_sync(disk, put.begin, put.done) and not _written_to_direct(disk, put.begin, put.done):
        return ["a delete was acknowledged and nothing was flushed (fsync, fdatasync) since it began"]
    homes = _homes(disk, put)
    for path, call in [*disk.removals, *((old, call) for old, _, call in disk.renames)]:
        if path in homes and put.begin < call.start < put.done:
            folder = str(PurePosixPath(path).parent)
            if not any(
                target in (folder, _EVERY_FILE) and sync.start > call.end and sync.end < put.done
                for target, sync in disk.syncs
            ):
                return [f"a delete was acknowledged before the folder was flushed ({_name(path)} was unlinked)"]
    return []


def _homes(disk: Disk, put: Put) -> set[str]:
    """The files that bear the record which *put* deletes."""
    homes: set[str] = set()
    for write in disk.writes:
        if write.start < put.begin and any(mark in write.arguments for mark in put.marks):
            path = _file_of(write)
            for old, new, call in disk.renames:
                if old == path and call.start > write.start:
                    path = new
            homes.add(path)
    return homes


def _some_sync(disk: Disk, begin: int, end: int) -> bool:
    return any(call.start > begin and call.end < end for _, call in disk.syncs)


def _written_to_direct(disk: Disk, begin: int, end: int) -> bool:
    return any(_file_of(call) in disk.direct and call.start > begin and call.end < end for call in disk.writes)


def _name(path: str) -> str:
    return f"`{PurePosixPath(path).name}`"
