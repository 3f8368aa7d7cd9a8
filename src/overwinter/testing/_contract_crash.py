"""The part of the contract that is about crashes: what was acknowledged, or only seen, is there afterwards.

This file knows what the child says, and compares it with what is stored.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
import time
import unittest
from pathlib import Path

from ..stores.base import Durability, Expect
from ._checks import limited, new_revision
from ._child import content, step_of
from ._factory import Factory
from ._hooks import Hooks
from ._processes import Child, attached
from ._trace import STRACE, killing, kills, verdicts, was_killed, watching

__all__ = ["CrashTests"]

_WRITERS = 4
_POINTS = 8  # system calls at which a writer is killed
_ENOUGH = 1000  # acknowledgements with which it ends, if nobody kills it


class CrashTests(Hooks):
    """A kill takes nothing that was acknowledged, and a power loss would not either."""

    def test_a_kill_in_the_moment_of_the_acknowledgement_loses_nothing(self) -> None:
        factory = self._process()
        for number, die_at in enumerate((1, 30)):
            self._killed(factory, f"moment {number}", die_at)

    def test_a_kill_in_the_moment_of_reading_loses_nothing(self) -> None:
        """What a get returned may be in somebody's reply already."""
        self._killed(self._process(), "seen", -1)

    def test_a_kill_at_any_time_loses_nothing(self) -> None:
        factory = self._process()
        seed = random.SystemRandom().randrange(1 << 32)
        chance = random.Random(seed)  # noqa: S311  # no secret
        for number in range(2):
            self._killed(factory, f"any {number}", 0, after=chance.randrange(1, 60), nap=chance.random() / 200)

    def test_a_kill_at_any_system_call_loses_nothing(self) -> None:
        """Killed as it is about to write, flush, rename or unlink: each half-done change is seen by those after it."""
        factory = self._traceable(Durability.PROCESS)
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace")
            with Child("write", factory, "watched", str(_WRITERS), "40", under=watching(STRACE[0], trace)) as child:
                lines = child.rest()
            assert len(lines) >= 40, f"the traced child failed{child.errors()}"
            points = kills(trace.read_text(errors="replace"), _POINTS)
            if not points:
                raise unittest.SkipTest("this store changes no file by a system call that is known here")
            self._killed_at(factory, points, trace)

    def _killed_at(self, factory: Factory, points: list[tuple[str, int]], trace: Path) -> None:
        names, killed = [f"{call} {number}" for call, number in points], f"ended {-signal.SIGKILL}"
        lines: list[str] = []
        with Child("write often", factory, str(_WRITERS), str(_ENOUGH), *names) as child:
            for name, (call, number) in zip(names, points, strict=True):
                pid = int(child.line().removeprefix("ready "))
                with attached(killing(STRACE[0], trace, pid, call, number)):
                    lines = child.until("ended ")
                if lines[-1:] != [killed]:
                    break
                assert was_killed(trace.read_text(errors="replace"), call, number), f"nobody came to {name}"
                self._judge(name, lines[:-1])
        assert lines[-1:] == [killed], f"the child ended by itself{child.errors()}"

    def _process(self) -> Factory:
        return asyncio.run(limited(self._need_durability(Durability.PROCESS), self.limit))

    def _traceable(self, least: Durability) -> Factory:
        factory = asyncio.run(limited(self._need_durability(least, skip_network=True), self.limit))
        if shutil.which(STRACE[0]) is None:
            why = f"strace is not installed, so nothing was checked of Durability.{least.name}: install it"
            if os.environ.get("CI"):
                raise AssertionError(why)
            raise unittest.SkipTest(why)
        return factory

    def _killed(self, factory: Factory, name: str, die_at: int, *, after: int = 400, nap: float = 0.0) -> None:
        """Have a child write until it is killed, by itself or *nap* seconds after *after* lines; then compare."""
        with Child("write", factory, name, str(_WRITERS), str(die_at)) as child:
            lines = [line for _ in range(after) if (line := child.line())]
            time.sleep(nap)
            child.kill()
            lines += child.rest()
        assert child.process.returncode == -signal.SIGKILL, f"the child ended by itself{child.errors()}"
        self._judge(name, lines)

    def _judge(self, name: str, lines: list[str]) -> None:
        done = dict.fromkeys((f"{name} {number}" for number in range(_WRITERS)), 0)
        seen = dict(done)
        for line in lines:
            word, _, rest = line.partition(" ")
            key, _, step = rest.rpartition(" ")
            steps = done if word == "done" else seen
            steps[key] = max(int(step), steps[key])
        asyncio.run(limited(self._compare(done, seen), self.limit))

    async def _compare(self, done: dict[str, int], seen: dict[str, int]) -> None:
        async with await self.make_store() as store:
            for key, step in done.items():
                stored = await store.get(key)
                data = None if stored is None else stored.data
                assert step_of(key, data) is not None, f"after a kill, {key!r} holds what nobody put there"
                if seen[key] > step:
                    assert data == content(key, seen[key]), "a get returned what a kill then took back"
                allowed = (content(key, step), content(key, step + 1))  # the next one was on its way
                assert data in allowed, f"{key!r} was acknowledged {step} times, and after a kill it holds another step"
                expected = Expect.ABSENT if stored is None else stored.revision
                new = new_revision()
                await store.put(key, b"on", revision=new, expected=expected)
                assert await store.head(key) == new, "after a kill, a put does not work any more"

    def test_what_is_acknowledged_was_flushed(self) -> None:
        """Watched from outside: between begin and acknowledgement the disk was told to keep it."""
        factory = self._traceable(Durability.HOST)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace")
            with Child("trace", factory, under=[*STRACE, "-o", str(path)]) as child:
                lines = child.rest()
            assert lines[-1:] == ["end"], f"the traced child failed{child.errors()}"
            found = verdicts(path.read_text(errors="replace"))
        assert not found, "; ".join(found)
