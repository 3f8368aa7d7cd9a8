"""Child processes of the contract: started, listened to, and ended whatever happens.

This file knows processes and pipes. It does not know what the child says.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Self

from ._factory import Factory, to_arguments

__all__ = ["Child", "attached"]

_LIMIT = 60.0
_START = "from overwinter.testing._child import main; main()"


class Child:
    """A process that runs a mode of ``_child.py`` on a store; killed at the end of the block, if it isn't dead yet."""

    def __init__(self, mode: str, factory: Factory, *options: str, under: Sequence[str] = ()) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        paths = [str(Path(path).resolve()) for path in sys.path if Path(path).exists()]
        self.process = subprocess.Popen(  # noqa: S603  # ourselves
            [*under, sys.executable, "-c", _START, mode, *options, "--", *to_arguments(factory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},  # it must find the same store
            text=True,
        )
        self._watch = threading.Timer(_LIMIT, self.process.kill)
        self._watch.daemon = True
        self._wrote = ""

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._watch.cancel()
        self.kill()
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self._watch.join()
        self._errors.seek(0)
        self._wrote = self._errors.read().decode(errors="replace")
        self._errors.close()

    def line(self) -> str:
        """Wait for the next line; empty at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def say(self, word: str) -> None:
        """Write a line that the child may wait for; one that has ended needs none."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()

    def until(self, word: str) -> list[str]:
        """Wait for a line that begins with *word*, or the end; the lines that came until then, and with it."""
        lines: list[str] = []
        while line := self.line():
            lines.append(line)
            if line.startswith(word):
                break
        return lines

    def rest(self) -> list[str]:
        """Wait for the end; the whole lines that came until then."""
        assert self.process.stdout is not None
        text = self.process.stdout.read()
        self.process.wait()
        return text.split("\n")[:-1]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def errors(self) -> str:
        """What the child wrote to its stderr, or the end of it, to be put behind a message when the block is over."""
        return "; it wrote: " + self._wrote[-2000:].strip() if self._wrote else ""


@contextlib.contextmanager
def attached(command: Sequence[str]) -> Generator[None]:
    """Have *command* trace a running process while entered; leave when that process has ended, or it is let go."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:  # noqa: S603  # ourselves
        assert tracer.stderr is not None
        try:
            said = tracer.stderr.readline()
            if "attached" not in said:
                raise AssertionError(f"a running process can't be traced: {said}{tracer.stderr.read()}")
            yield
            tracer.stderr.read()  # it ends with the process
        finally:
            tracer.terminate()
