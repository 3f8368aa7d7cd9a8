"""Trials: a process for each fault, forked from one that is ready, which runs tests until the first one fails."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "Say", "forked", "run_trials"]

SURVIVED, KILLED, IMPOSSIBLE, ELSEWHERE, UNCOLLECTED = 0, 1, 2, 3, 4  # exit statuses
_WITHOUT_TEST: dict[int | None, str] = {SURVIVED: "survived", IMPOSSIBLE: "impossible", ELSEWHERE: "elsewhere"}
PATIENCE, TIMES = 6.0, 5  # seconds that any test may take here, and how often what it takes without a fault
CPU = 600  # seconds of a processor that all tests of one fault may take
Say = Callable[[int], None]
"""Tells which test begins."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one fault."""

    what: str
    """``survived``, ``killed``, ``hung`` (killed, for a test took too long), ``impossible``: it can't be imported, or
    ``broken``: no test judged it.
    """
    by: str = ""
    seconds: float = 0.0


class _Child:
    def __init__(self, number: int, tests: Sequence[str], work: Callable[[Say], int]) -> None:
        self.number, self.tests, self.at = number, tests, -1
        self.began = time.monotonic()
        self.folder = tempfile.mkdtemp(prefix="mutation-")
        self.pipe, self.pid = forked(work, self.folder)
        self.since = self.clock()

    def clock(self) -> float:
        """The time that passes for it: not while it waits for a processor that others use."""
        try:
            waited = int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            waited = 0.0
        return time.monotonic() - waited

    def goes_to(self, test: int) -> None:
        self.at, self.since = test, self.clock()

    def hangs(self, durations: dict[str, float]) -> bool:
        own = durations[self.tests[self.at]] if self.at >= 0 else 1.0
        return self.clock() > self.since + PATIENCE + TIMES * own

    def end(self) -> int:
        """Kill whatever is left of it; return its exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        shutil.rmtree(self.folder, ignore_errors=True)
        return os.waitstatus_to_exitcode(status)


def forked(work: Callable[[Say], int], folder: str) -> tuple[int, int]:
    """Run *work* in a child of its own group that prints nothing; return the pipe it talks through, and its pid."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return reader, pid
    status = IMPOSSIBLE
    try:
        os.setpgid(0, 0)
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))  # a loop without end, whose parent was killed
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        status = work(lambda number: _write(writer, number))
    except BaseException:  # noqa: BLE001  # pytest, too, may be thrown out of its course by a fault
        status = KILLED
    finally:
        os._exit(status)


def _write(pipe: int, number: int) -> None:
    os.write(pipe, number.to_bytes(4, "big"))


def run_trials(
    todo: Iterable[Callable[[], tuple[int, Sequence[str], Callable[[Say], int]]]],
    durations: dict[str, float],
    jobs: int,
    done: Callable[[int, Outcome], object],
) -> None:
    """Try each of *todo*, *jobs* at a time; called, it tells its number, its tests, and what its process does."""
    waiting = iter(todo)
    with selectors.DefaultSelector() as selector:
        more = True
        while more or selector.get_map():
            while more and len(selector.get_map()) < jobs:
                following = next(waiting, None)
                if following is None:
                    more = False
                    break
                child = _Child(*following())
                selector.register(child.pipe, selectors.EVENT_READ, child)
            for key, _ in selector.select(timeout=0.5):
                child = key.data
                data = os.read(child.pipe, 65536)
                if data:
                    child.goes_to(int.from_bytes(data[-4:], "big"))
                else:
                    selector.unregister(child.pipe)
                    done(child.number, _outcome(child, child.end()))
            for key in list(selector.get_map().values()):
                child = key.data
                if child.hangs(durations):
                    selector.unregister(child.pipe)
                    child.end()
                    done(child.number, _outcome(child, None))


def _outcome(child: Any, status: int | None) -> Outcome:
    seconds = round(time.monotonic() - child.began, 2)
    by = child.tests[child.at] if child.at >= 0 else ""
    if status in _WITHOUT_TEST:
        return Outcome(_WITHOUT_TEST[status], "", seconds)
    if status is None:  # in an endless loop, be it at import: who runs the tests notices
        return Outcome("hung", by, seconds)
    if status == UNCOLLECTED:
        return Outcome("killed", "collecting the tests", seconds)
    # The kernel ends who has used up the memory, which others may have taken, or its time, which is that of all tests.
    # Other signals are the process's own doing, as of a test that sends itself one which nobody handles any more.
    outside = status in (-signal.SIGKILL, -signal.SIGXCPU)
    return Outcome("broken" if outside or child.at < 0 else "killed", by, seconds)
