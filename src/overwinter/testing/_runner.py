"""``python -m overwinter.testing``: a store is judged without a test framework, a line for each promise.

This file knows the command line and how a test ends. It does not know what is tested.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import sysconfig
import tempfile
import time
import traceback
import unittest
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..stores.base import Durability, Store
from ._contract import StoreContract, promises
from ._factory import Factory, find, is_url, needs_argument, store_of, takes_argument
from ._matrix import matrix

__all__ = ["main"]

_ABOUT = """\
Judge a store by the promises that overwinter's managers rely on.

STORE is one of
  a URL                  sqlite:///{folder}/agents.db     file://{folder}/agents     memory://
  module:callable        a store class, or a function that makes a store, with the ARGUMENTs that follow
  module:contract        a subclass of overwinter.testing.StoreContract; it may have hooks such as corrupt(), and
                         finds a fresh folder as self.folder

Each test must begin with nothing stored. So {folder} stands for a folder that is new for each test, and {name} for a
word that is new for each test, for a table, a prefix or a bucket. A callable that needs an argument and is given
none gets the folder, as a pathlib.Path."""

_EXAMPLES = """\
examples:
  python -m overwinter.testing my_module:MyStore
  python -m overwinter.testing my_module:make_store redis://localhost/0 prefix-{name} -k cancelled
  python -m overwinter.testing sqlite:///{folder}/agents.db -x

The exit status is 0 if every promise that could be tested is kept, 1 if one is broken, 2 if nothing could be run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.matrix:
        sys.stdout.write(matrix())
        return 0
    try:
        contract = StoreContract if asked.store is None else _contract(asked.store, asked.arguments)
    except (UsageError, ImportError, TypeError) as error:
        parser.error(str(error))
    wanted = [part.replace(" ", "_").lower() for part in asked.k]
    names = [name for name in promises(contract) if not wanted or any(part in name.lower() for part in wanted)]
    if not names:
        parser.error(f"no promise has {' or '.join(map(repr, asked.k))} in its name: see --list")
    if asked.list:
        sys.stdout.write("".join(f"{_words(name)}\n" for name in names))
        return 0
    if asked.store is None:
        parser.error("which store? See --help")
    return _Run(contract, verbose=asked.verbose, stop=asked.x, limit=asked.limit).all(names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m overwinter.testing",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="STORE", nargs="?")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="for the callable")
    parser.add_argument("-k", metavar="NAME", action="append", default=[], help="only promises with NAME in their name")
    parser.add_argument("-x", action="store_true", help="stop at the first broken promise")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="what one test may take (default: 60)")
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    parser.add_argument("--list", action="store_true", help="list the promises and run nothing")
    parser.add_argument("--matrix", action="store_true", help="print what the package's stores promise")
    return parser


# ---------------------------------------------------------------- which store


def _contract(name: str, arguments: list[str]) -> type[StoreContract]:
    """Return the contract to run: the one that is named, or one about the store that is named."""
    parts: list[str] = [name, *arguments]
    if not is_url(name):
        found = find(name)
        unfinished = needs_argument(found) and not arguments
        if isinstance(found, type) and issubclass(found, StoreContract):
            if arguments:
                raise UsageError(f"{name} is a contract, which takes no arguments: {' '.join(arguments)!r} is too much")
            return found
        if unfinished:
            parts.append("{folder}")

    class Named(StoreContract):
        def __init__(self) -> None:
            self._word = f"t{uuid.uuid4().hex[:12]}"
            self._same: Store | None = None

        def store_factory(self) -> Factory:
            return _filled(parts, getattr(self, "folder", Path()), self._word)

        async def make_store(self) -> Store:
            if self._same is None:
                store = store_of(self.store_factory())
                if store.durability is not Durability.NONE:
                    return store
                self._same = store  # what promises to keep nothing keeps it, if anywhere, in the object
            return self._same

    with _folder() as folder:
        trial = store_of(_filled(parts, folder, "trial"))
    fresh = any("{folder}" in part or "{name}" in part for part in parts)
    if not fresh and trial.durability is not Durability.NONE:
        raise UsageError(f"each test must begin with nothing stored: put {{folder}} or {{name}} into {parts[-1]!r}")
    return Named


def _filled(parts: list[str], folder: Path, word: str) -> Factory:
    return tuple(
        folder if part == "{folder}" else part.replace("{folder}", str(folder)).replace("{name}", word)
        for part in parts
    )


# ---------------------------------------------------------------- running


class _Run:
    def __init__(self, contract: type[StoreContract], *, verbose: bool, stop: bool, limit: float | None) -> None:
        self._contract = contract
        self._verbose = verbose
        self._stop = stop
        self._limit = limit
        self._counts = {"ok": 0, "FAILED": 0, "skipped": 0}

    def all(self, names: list[str]) -> int:
        """Run the tests, each with a fresh case; return the exit status."""
        began = time.monotonic()
        for number, name in enumerate(names, 1):
            self._show(f"[{number}/{len(names)}] ", name)
            verdict, why = self._one(name)
            self._counts[verdict] += 1
            self._show(f"[{number}/{len(names)}] ", name, verdict, why)
            if verdict == "FAILED" and self._stop:
                break
        kept, broken, skipped = self._counts.values()
        took = time.monotonic() - began
        sys.stdout.write(f"{kept} promises kept, {broken} broken, {skipped} not tested, in {took:.1f} s\n")
        return 1 if broken else 0

    def _one(self, name: str) -> tuple[str, str]:
        with _folder() as folder:
            case: Any = self._contract()
            case.folder = folder
            if self._limit is not None:
                case.limit = self._limit
            try:
                _call_if_there(case, "setup_method", name)
                try:
                    getattr(case, name)()
                finally:
                    _call_if_there(case, "teardown_method", name)
            except _or_pytests("skip", unittest.SkipTest) as reason:
                return "skipped", str(reason)
            except _or_pytests("fail", Exception) as error:  # whatever a foreign store raises is its verdict
                if self._verbose:
                    traceback.print_exc()
                return "FAILED", _why(error)
        return "ok", ""

    def _show(self, place: str, name: str, verdict: str = "", why: str = "") -> None:
        if verdict:
            reason = f": {why}" if why else ""
            sys.stdout.write(f"{place}{verdict:8}{_words(name)}{reason}\n")
        elif sys.stdout.isatty():
            sys.stdout.write(f"{place}...     {_words(name)}\r")
        sys.stdout.flush()


@contextlib.contextmanager
def _folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="overwinter-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _or_pytests(name: str, ours: type[Exception]) -> tuple[type[BaseException], ...]:
    """*ours*, and what ``pytest.skip`` or ``pytest.fail`` raises, which is no ``Exception``: a hook may call it."""
    pytest = sys.modules.get("pytest")
    return (ours,) if pytest is None else (ours, getattr(pytest, name).Exception)


def _call_if_there(case: Any, name: str, test: str) -> None:
    """Call a hook, with the test if it takes one, as pytest does."""
    hook = getattr(case, name, None)
    if hook is not None:
        hook(*[getattr(case, test)] * takes_argument(hook))


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _why(error: BaseException) -> str:
    """What was broken; and where, if the store itself raised it."""
    if isinstance(error, AssertionError) and str(error):
        return str(error)
    ours = (str(Path(__file__).parent), sysconfig.get_path("stdlib"))
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    where = f" (at {Path(places[-1].filename).name}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {error}{where}"
