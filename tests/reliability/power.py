"""A disk that loses power: every name, sector and size is as it was at some moment since it was last flushed.

It follows a log of steps, which a store's recorder (recorders.py) writes in an order in which they may have happened:

    create PATH · write PATH OFFSET DATA · truncate PATH SIZE · stamp PATH TIME · flush PATH · flush failed PATH
    make PATH · rename PATH NEW · unlink PATH · flush folder PATH

Nothing is taken for granted but what POSIX says of fsync: names may be kept without data and data without names, later
changes without earlier ones, a size without what was written up to it, a rename by halves; and a sector that was never
flushed may hold what another file left there. A sector is new up to some point and old behind it, at worst. After a
flush that failed, only what is written again is flushed by the next one: the kernel calls the rest clean.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Disk", "File", "State", "put_on"]

SECTOR = 512
ZEROS, FOREIGN = bytes(SECTOR), b"\xa5" * SECTOR
FOLDER = -1


class File(NamedTuple):
    """What a file holds, and its modification time in nanoseconds."""

    data: bytes
    time: int = 0


State = dict[str, File | None]
"""A disk as it is found: what is under each path; ``None`` is a folder."""


class Cell:
    """What something was since it was last flushed, oldest first, and from which moment on."""

    __slots__ = ("moments", "values")

    def __init__(self, *values: Any) -> None:
        self.moments, self.values = [0] * len(values), list(values)

    def change(self, moment: int, value: Any) -> None:
        self.moments.append(moment)
        self.values.append(value)

    def settle(self) -> None:
        del self.moments[:-1], self.values[:-1]

    @property
    def last(self) -> Any:
        return self.values[-1]

    @property
    def unsure(self) -> bool:
        return len(self.values) > 1

    def at(self, moment: int) -> int:
        """Which of its values it had then."""
        return max((number for number, when in enumerate(self.moments) if when <= moment), default=0)


class Pick:
    """Chooses what is left: what there was at one moment or, more or less often, at any."""

    def __init__(self, chance: random.Random, moment: int, wild: Sequence[float] = (0, 0.05, 0.5, 1)) -> None:
        self._chance, self._moment, self._wild = chance, moment, chance.choice(wild)

    def of(self, cell: Cell) -> int:
        if not cell.unsure:
            return 0
        return self._chance.randrange(len(cell.values)) if self._is_wild() else cell.at(self._moment)

    def size(self, cell: Cell) -> int:
        if cell.unsure and self._is_wild():
            return self._chance.choice([*cell.values, *range(min(cell.values), max(cell.values), SECTOR)])
        return int(cell.values[self.of(cell)])

    def sector(self, cell: Cell) -> bytes:
        number = self.of(cell)
        new: bytes = cell.values[number]
        if not number or not self._is_wild() or self._chance.randrange(4):
            return new
        cut = self._chance.randrange(SECTOR)
        old: bytes = cell.values[number - 1]
        return new[:cut] + old[cut:]

    def _is_wild(self) -> bool:
        return self._chance.random() < self._wild


class Inode:
    """A file without its names."""

    def __init__(self, file: File) -> None:
        self._size, self._time = Cell(len(file.data)), Cell(file.time)
        padded = file.data + bytes(-len(file.data) % SECTOR)
        self._sectors = [Cell(padded[start : start + SECTOR]) for start in range(0, len(padded), SECTOR)]
        self._flushed: File | None = file
        self._stuck: set[Cell] = set()
        """What no flush takes with it any more."""
        self._reach = 0  # how far was written since the last flush

    def write(self, moment: int, offset: int, data: bytes) -> None:
        self._flushed = None
        end = offset + len(data)
        while len(self._sectors) * SECTOR < end:
            self._sectors.append(Cell(FOREIGN, ZEROS))
        for number in range(offset // SECTOR, -(-end // SECTOR)):
            cell, start = self._sectors[number], number * SECTOR
            low, high = max(offset - start, 0), min(end - start, SECTOR)
            piece = data[start + low - offset : start + high - offset]
            cell.change(moment, cell.last[:low] + piece + cell.last[high:])
            self._stuck.discard(cell)
        if end > self._size.last:
            self._size.change(moment, end)
        self._reach = max(self._reach, end)

    def truncate(self, moment: int, size: int) -> None:
        self._flushed = None
        for number in range(size // SECTOR, len(self._sectors)):
            cell = self._sectors[number]
            cell.change(moment, cell.last[: max(size - number * SECTOR, 0)].ljust(SECTOR, b"\0"))
            self._stuck.discard(cell)
        self._size.change(moment, size)
        self._stuck.discard(self._size)

    def stamp(self, moment: int, time: int) -> None:
        self._flushed = None
        self._time.change(moment, time)

    def fail_to_flush(self) -> None:
        self._stuck.update(self.unsure())
        self._reach = 0

    def flush(self) -> None:
        if self._size in self._stuck:
            self._size.values = [max(size, self._reach) for size in self._size.values]
            if min(self._size.values) == self._size.last:
                self._stuck.discard(self._size)
        self._reach = 0
        for cell in self.unsure():
            if cell not in self._stuck:
                cell.settle()
        if self._stuck:
            return
        size = self._size.last
        self._flushed = File(b"".join(cell.last for cell in self._sectors)[:size].ljust(size, b"\0"), self._time.last)

    def unsure(self) -> list[Cell]:
        return [] if self._flushed else [cell for cell in (self._size, self._time, *self._sectors) if cell.unsure]

    def left(self, pick: Pick) -> File:
        if self._flushed:
            return self._flushed
        size = pick.size(self._size)
        data = b"".join(map(pick.sector, self._sectors[: -(-size // SECTOR)]))
        return File(data[:size].ljust(size, b"\0"), self._time.values[pick.of(self._time)])


class Disk:
    """Follows a log, and says what may be left."""

    def __init__(self, found: State) -> None:
        self._now = 0
        self._inodes: list[Inode] = []
        self._names = {path: Cell(FOLDER if file is None else self._new(file)) for path, file in found.items()}

    def _new(self, file: File) -> int:
        self._inodes.append(Inode(file))
        return len(self._inodes) - 1

    # ------------------------------------------------------------ what happens

    def follow(self, step: str, path: str, *rest: Any) -> None:
        self._now += 1
        if step == "create":
            self._name(path, self._new(File(b"")))
        elif step == "make":
            self._name(path, FOLDER)
        elif step == "rename":
            self._name(rest[0], self._names[path].last)
            self._name(path, None)
        elif step == "unlink":
            self._name(path, None)
        elif step == "flush folder":
            self._flush_folder(path)
        else:
            if path not in self._names or self._names[path].last is None:
                self._name(path, self._new(File(b"")))  # a lock file, which was made behind the recorder's back
            inode = self._inodes[self._names[path].last]
            if step == "flush":
                inode.flush()
            elif step == "flush failed":
                inode.fail_to_flush()
            else:
                getattr(inode, step)(self._now, *rest)

    def _name(self, path: str, number: int | None) -> None:
        self._names.setdefault(path, Cell(None)).change(self._now, number)

    def _flush_folder(self, path: str) -> None:
        for name in [name for name in self._names if parent(name) == path]:
            self._names[name].settle()
            if self._names[name].last is None:
                del self._names[name]

    # ------------------------------------------------------------ what is left

    def lose_power(self, chance: random.Random) -> State:
        """One of the states in which the disk may be found: names as of one moment and data as of another, say."""
        numbers = {number for cell in self._names.values() for number in cell.values} - {None, FOLDER}
        unsure = [cell for cell in self._names.values() if cell.unsure]
        unsure += [cell for number in sorted(numbers) for cell in self._inodes[number].unsure()]
        moments = sorted({moment for cell in unsure for moment in cell.moments}) or [0]
        return self._left(Pick(chance, chance.choice(moments)), Pick(chance, chance.choice(moments)))

    def whole(self) -> State:
        """The state in which nothing is lost."""
        last = Pick(random.Random(), self._now, wild=(0,))
        return self._left(last, last)

    def _left(self, names: Pick, data: Pick) -> State:
        state: State = {}
        for path, cell in self._names.items():  # a folder comes before what is in it
            number = cell.values[names.of(cell)]
            if number is not None and (parent(path) == "." or parent(path) in state):
                state[path] = None if number == FOLDER else self._inodes[number].left(data)
        return state


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "."


def put_on(folder: Path, state: State) -> None:
    """Make a new folder hold this."""
    folder.mkdir()
    for path, file in state.items():
        if file is None:
            (folder / path).mkdir(0o700)
        else:
            descriptor = os.open(folder / path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(descriptor, file.data)
            os.utime(descriptor, ns=(file.time, file.time))
            os.close(descriptor)
