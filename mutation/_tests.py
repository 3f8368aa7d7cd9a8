"""The tests: what each of them executes, and how some of them are run in this process."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from . import ROOT, TESTS
from ._trials import KILLED, SURVIVED, Say

__all__ = ["collected", "run_tests", "watch_tests"]

Tests = dict[str, pytest.Item]
_STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn")


class _Instead:
    """Does something else once all tests are collected."""

    def __init__(self, work: Callable[[Tests], object]) -> None:
        self._work = work

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("some tests can't be collected")
        self._work({item.nodeid: item for item in session.items})
        return True


class _Failures:
    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names.append(report.nodeid)


def collected(work: Callable[[Tests], object], files: Sequence[str] = TESTS) -> None:
    """Call *work* with the tests, inside a session of pytest."""
    from hypothesis import Phase, settings  # noqa: PLC0415  # costs much, and a --help needs none

    # The same examples each time; what fails has done its duty, whether or not it could be made smaller.
    quick = settings(derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate])
    settings.register_profile("mutation", quick)
    settings.load_profile("mutation")
    early = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
    options = ("-q", "-W", early, "--capture=no", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--confcutdir={ROOT}")
    code = pytest.main([*options, *files], plugins=[_Instead(work)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"the tests can't be collected: {code!r}")


def run_tests(tests: Tests, names: Sequence[str], say: Say) -> int:
    """Run those called *names* until one fails; return the exit status."""
    failures = _Failures()
    items = [tests[name] for name in names]
    items[0].config.pluginmanager.register(failures)
    for number, item in enumerate(items):
        say(number)
        item.ihook.pytest_runtest_protocol(item=item, nextitem=items[number + 1] if number + 1 < len(items) else None)
        if failures.names:
            return KILLED
    return SURVIVED


def watch_tests(tests: Tests, sources: Sequence[Path], result: Path) -> int:
    """Write into *result* what each test takes, whether it failed or started processes, and what it executed."""
    lines: dict[str, set[int]] = {}
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in _STARTS else None)
    failures = _Failures()
    found: dict[str, Any] = {}
    items = list(tests.values())
    items[0].config.pluginmanager.register(failures)
    with _traced({str(path): str(path) for path in sources}, lines):
        for number, item in enumerate(items):
            lines.clear()
            started.clear()
            failures.names.clear()
            begin = time.monotonic()
            following = items[number + 1] if number + 1 < len(items) else None
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            found[item.nodeid] = {
                "seconds": time.monotonic() - begin,
                "failed": bool(failures.names),
                "alone": not started,
                "lines": {path: sorted(numbers) for path, numbers in list(lines.items())},
            }
    result.write_text(json.dumps(found))
    return 0


@contextlib.contextmanager
def _traced(paths: dict[str, str], lines: dict[str, set[int]]) -> Iterator[None]:
    def enter(frame: FrameType, _event: str, _argument: object) -> Any:
        path = paths.get(frame.f_code.co_filename)
        if path is None:
            return None

        def step(frame: FrameType, _event: str, _argument: object) -> Any:
            lines.setdefault(path, set()).add(frame.f_lineno)
            return step

        return step(frame, _event, _argument)

    threading.settrace(enter)
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)
        threading.settrace(None)
