"""Processes and disks for the tests beside it: what a crash and a full disk do can't be tried in one process."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import LOCAL, NETWORK, Place, place_of
from proofs import Proof

sys.path.append(str(Path(__file__).parents[1] / "stores"))  # for the stores with one bug each, and their twins

PATIENCE = 30.0
"""Seconds after which a child that says nothing has failed its test."""


class Worker:
    """A running ``worker.py``, or another program of this folder that is started the same way."""

    def __init__(self, role: str, options: dict[str, object], errors: Path, program: str) -> None:
        self._errors = errors
        with errors.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", str(Path(__file__).with_name(program)), role, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )
        self.pid = self.process.pid
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # Read all the time: a child must never wait for us to read what it said.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def line(self) -> str | None:
        """The next line it said; ``None`` if it ended."""
        try:
            return self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"the child said nothing for {PATIENCE:g} s; its stderr: {self.errors}") from None

    def expect(self, start: str) -> str:
        """The next line, which must begin with *start*; returns the rest."""
        line = self.line()
        assert (line or "").startswith(start), f"expected {start!r}, got {line!r}; stderr: {self.errors}"
        assert line is not None
        return line[len(start) :].strip()

    def rest(self) -> list[str]:
        """What it says until it ends."""
        return list(iter(self.line, None))

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self, sign: signal.Signals = signal.SIGKILL) -> list[str]:
        """Send a signal that ends it; return what it had said."""
        self.process.send_signal(sign)
        lines = self.rest()
        assert self.process.wait(PATIENCE) == -sign, self.errors
        return lines

    def ended(self) -> int:
        """Wait for it to end by itself; return its exit code."""
        return self.process.wait(PATIENCE)

    def destroy(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # it ended before it had read everything


@pytest.fixture(params=[*LOCAL, *NETWORK])
def place(request: pytest.FixtureRequest, in_memory: Path) -> Iterator[Place]:
    """Each store that several processes can share, with a server of the test's own."""
    with place_of(request.param, in_memory, lambda: request.getfixturevalue("s3")) as place:
        yield place


StartWorker = Callable[..., Worker]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start a worker: ``worker("hold", path=…)``. Whoever is left is killed after the test."""
    workers: list[Worker] = []

    def start(role: str, program: str = "worker.py", **options: object) -> Worker:
        workers.append(Worker(role, options, tmp_path / f"stderr-{len(workers)}", program))
        return workers[-1]

    yield start
    for each in workers:
        each.destroy()


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave no byte."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def free(self) -> None:
        self._filler.unlink()

    def make_readonly(self) -> None:
        _mount("-o", "remount,ro", str(self.path))

    def grow(self) -> None:
        _mount("-o", "remount,size=1m", str(self.path))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A tmpfs of 600 KB, or of the size that a test gives.

    Where none can be mounted the test is skipped, but never in CI: there it fails.
    """
    size = getattr(request, "param", "600k")
    path = Path(tempfile.mkdtemp(prefix="overwinter-test-"))  # not in pytest's folder, which it could not clear then
    try:
        _mount("-t", "tmpfs", "-o", f"size={size},mode=700", "overwinter-test", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        path.rmdir()
        told = getattr(error, "stderr", "") or str(error)
        if os.environ.get("CI"):
            pytest.fail(f"CI must be able to mount a tmpfs, or full disks go untested: {told}")
        pytest.skip(f"a tmpfs can't be mounted here (it takes root): {told.strip()}")
    yield Disk(path)
    done = subprocess.run(["umount", str(path)], capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=PATIENCE)
    path.rmdir()
    assert done.returncode == 0, f"somebody still has a file open there: {done.stderr}"


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Iterator[Proof]:
    """How much to try, chance, and the count of what was tried."""
    proof = Proof(request)
    request.node.user_properties.append(("proof", proof.counts))
    yield proof
    proof.check()
