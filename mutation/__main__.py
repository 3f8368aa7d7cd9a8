"""``python -m mutation [PATTERN …] [--sample N] [--survivors]``: make faults, see which ones the tests find."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import fnmatch
import gc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from . import PACKAGE, ROOT, SUBJECTS
from ._changes import Change, changes
from ._report import ALIVE, page, words
from ._tests import Tests, collected, run_tests, watch_tests
from ._trials import ELSEWHERE, IMPOSSIBLE, KILLED, UNCOLLECTED, Outcome, Say, forked, run_trials

RESULTS, REPORT = ROOT / "build" / "mutation.jsonl", ROOT / "build" / "mutation.md"
KNOWN = ROOT / "build" / "mutation-tests.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One change of one module, whose tree all its faults share: it is changed in a process of its own."""

    module: str
    tree: ast.Module
    change: Change
    name: str

    @property
    def path(self) -> Path:
        return PACKAGE / self.module


def find_faults() -> list[Fault]:
    """All faults of all modules, each with a name that lines which move don't change."""
    found: list[Fault] = []
    seen: dict[str, int] = {}
    for pattern in SUBJECTS:
        for path in sorted(PACKAGE.glob(pattern)):
            module = path.relative_to(PACKAGE).as_posix()
            tree = ast.parse(path.read_text(), str(path))
            for change in changes(tree):
                name = f"{module} | {change.place} | {change.text}"
                seen[name] = seen.get(name, 0) + 1
                found.append(Fault(module, tree, change, name if seen[name] == 1 else f"{name} ({seen[name]})"))
    return found


def compiled(fault: Fault) -> CodeType:
    """The module's code with the fault in it."""
    fault.change.make()
    code: CodeType = compile(fault.tree, str(fault.path), "exec", dont_inherit=True)
    return code


def functions() -> dict[tuple[str, str, int], list[FunctionType]]:
    """Our functions by file, dotted name and first line, wherever they are: in properties and decorators too."""
    found: dict[tuple[str, str, int], list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(PACKAGE)):
            code = thing.__code__
            found.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(thing)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def try_in_place(
    fault: Fault, known: dict[tuple[str, str, int], list[FunctionType]], tests: Tests, names: Sequence[str], say: Say
) -> int:
    """Give the functions that exist the changed code, and run the tests called *names*."""
    assert fault.change.function is not None
    name, line = fault.change.function
    new = next(code for code in _codes(compiled(fault)) if (code.co_qualname, code.co_firstlineno) == (name, line))
    try:
        for function in known[str(fault.path), name, line]:
            function.__code__ = new
    except (KeyError, ValueError):  # there is none yet, or it closes over other variables now
        return ELSEWHERE
    return run_tests(tests, names, say)


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the module of a fault when it is imported."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.loaded, self.failed = fault, False, False
        dotted = fault.module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.name = f"overwinter.{dotted}"

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(self.fault.path))

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self.fault.path)
        try:
            exec(compiled(self.fault), vars(module))  # noqa: S102  # that is what an import is
        except BaseException:
            self.failed = True
            raise
        self.loaded = True


def try_at_import(fault: Fault, names: Sequence[str], say: Say) -> int:
    """Import overwinter with the fault in it, and run the tests called *names*."""
    importer = _Importer(fault)
    sys.meta_path.insert(0, importer)
    status: list[int] = []
    files = sorted({name.partition("::")[0] for name in names})
    try:
        collected(lambda tests: status.append(run_tests(tests, names, say)), files)
    except RuntimeError:
        return IMPOSSIBLE if importer.failed else UNCOLLECTED if importer.loaded else KILLED
    return status[0]


class Progress:
    """Keeps what was found, a line each, so that a run which is stopped is not lost; and says how far it is."""

    def __init__(self, total: int) -> None:
        self.total, self.begin = total, time.monotonic()

    def note(self, fault: Fault, outcome: Outcome) -> None:
        with RESULTS.open("a") as file:
            file.write(json.dumps({"name": fault.name, **dataclasses.asdict(outcome)}) + "\n")
        minutes = (time.monotonic() - self.begin) / 60
        print(f"{minutes:5.1f} min: {outcome.what} {fault.name}", file=sys.stderr, flush=True)


def results() -> dict[str, dict[str, Any]]:
    """What was found, by the faults' names; what came later counts."""
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {outcome["name"]: outcome for outcome in found}


def in_child(work: Callable[[], object]) -> None:
    """Run *work* in a process of its own, whose loaded modules nobody else has."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001  # the child ends here, whatever it is
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("it ended there")


def look(tests: Tests) -> dict[str, dict[str, Any]]:
    """How long each test takes and what it executes; kept until its file or a subject changes."""
    sources = [path for pattern in SUBJECTS for path in sorted(PACKAGE.glob(pattern))]
    helpers = sorted({*(ROOT / "tests").rglob("*.py")} - {*(ROOT / "tests").rglob("test_*.py")})
    common = b"".join([str(ROOT).encode(), *(path.read_bytes() for path in (*sources, *helpers))])
    marks = {
        name: hashlib.sha256(common + (ROOT / name).read_bytes()).hexdigest()
        for name in {name.partition("::")[0] for name in tests}
    }
    kept = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    kept = {file: entry for file, entry in kept.items() if entry["mark"] == marks.get(file)}
    new = {name: item for name, item in tests.items() if name.partition("::")[0] not in kept}
    if new:
        print(f"looking what {len(new)} tests execute", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
            result = Path(folder) / "tests.json"
            pipe, pid = forked(lambda _: watch_tests(new, sources, result), folder)
            status = os.waitpid(pid, 0)[1]
            os.close(pipe)
            if status:
                raise SystemExit("the tests can't be watched")
            for name, test in json.loads(result.read_text()).items():
                file = name.partition("::")[0]
                kept.setdefault(file, {"mark": marks[file], "tests": {}})["tests"][name] = test
        KNOWN.write_text(json.dumps(kept))
    known = {name: test for entry in kept.values() for name, test in entry["tests"].items()}
    for name, test in known.items():
        if test["failed"]:
            print(f"left out, for it fails when it is watched: {name}", file=sys.stderr)
        test["lines"] = {path: set(lines) for path, lines in test["lines"].items()}
    return {name: test for name, test in known.items() if test["alone"] and not test["failed"]}


class Judges:
    """Which tests are run for a fault, and in which order: first those that found others in the same function."""

    def __init__(self, known: dict[str, dict[str, Any]]) -> None:
        self._known = known
        self._found: dict[tuple[str, str], Counter[str]] = {}

    def of(self, fault: Fault) -> list[str]:
        """The tests that execute the changed lines; if they are executed at import, all that use the module."""
        path, lines, whole = str(fault.path), set(fault.change.lines), fault.change.function is None
        names = [
            name
            for name, test in self._known.items()
            if path in test["lines"] and (whole or test["lines"][path] & lines)
        ]
        found = self._found.get((fault.module, fault.change.place), Counter())
        return sorted(names, key=lambda name: (-found[name], self._known[name]["seconds"]))

    def note(self, fault: Fault, name: str) -> None:
        self._found.setdefault((fault.module, fault.change.place), Counter())[name] += 1


def run(faults: list[Fault], jobs: int) -> None:
    """Try them all: in functions that exist, and those that are left in modules that are imported anew."""
    exchange = RESULTS.with_suffix(".tmp")

    def first(tests: Tests) -> None:
        known = look(tests)
        judges, progress, live = Judges(known), Progress(len(faults)), functions()
        left: list[tuple[int, list[str]]] = []

        def start(number: int) -> tuple[int, list[str], Callable[[Say], int]]:
            names = judges.of(faults[number])
            return number, names, partial(try_in_place, faults[number], live, tests, names)

        def done(number: int, outcome: Outcome) -> None:
            if outcome.what == "elsewhere":
                left.append((number, judges.of(faults[number])))
                return
            if outcome.by and outcome.what != "broken":
                judges.note(faults[number], outcome.by)
            progress.note(faults[number], outcome)

        todo = []
        for number, fault in enumerate(faults):
            names = judges.of(fault)
            if not names:
                progress.note(fault, Outcome("not reached"))
            elif fault.change.function is None:
                left.append((number, names))
            else:
                todo.append(partial(start, number))
        gc.collect()
        gc.freeze()  # a child that collects garbage would copy all that it looks at
        durations = {name: test["seconds"] for name, test in known.items()}
        run_trials(todo, durations, jobs, done)
        exchange.write_text(json.dumps([durations, left]))

    def quietly() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        collected(first)

    in_child(quietly)
    durations, left = json.loads(exchange.read_text())
    exchange.unlink()
    progress = Progress(len(faults))
    todo = [
        lambda number=number, names=names: (number, names, partial(try_at_import, faults[number], names))
        for number, names in left
    ]
    run_trials(todo, durations, jobs, lambda number, outcome: progress.note(faults[number], outcome))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m mutation", description="Small faults, and who notices them.")
    parser.add_argument("patterns", metavar="PATTERN", nargs="*", help="only these: 'runtime/_gate.py*', '*flush*'")
    parser.add_argument("--sample", type=int, metavar="N", help="so many of them, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice (default: 0)")
    parser.add_argument("--survivors", action="store_true", help="only those that survived last time, or broke")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time (default: all cores)"
    )
    parser.add_argument("--least", type=float, default=80.0, help="percent to be found, or the exit status is 1")
    parser.add_argument("--list", action="store_true", help="show the faults, and make none")
    options = parser.parse_args(arguments)
    if options.sample is not None and options.sample < 1:
        parser.error(f"a sample has 1 fault or more, not {options.sample}")
    every = find_faults()
    faults = every
    if options.patterns:
        faults = [f for f in faults if any(fnmatch.fnmatchcase(f.name, f"{p}*") for p in options.patterns)]
        if not faults:
            parser.error(f"no fault is called {' or '.join(map(repr, options.patterns))}: see --list")
    if options.survivors:
        last = results()
        faults = [fault for fault in faults if fault.name in last and last[fault.name]["what"] in (*ALIVE, "broken")]
    if options.sample is not None and options.sample < len(faults):
        chosen = random.Random(options.seed).sample(range(len(faults)), options.sample)  # noqa: S311
        faults = [faults[number] for number in sorted(chosen)]
    if options.list:
        print("\n".join(fault.name for fault in faults))
        return 0
    if not faults:
        print("none of them survived last time")
        return 0
    for module in ("apsw", "attrs", "hypothesis", "msgspec", "pydantic"):
        importlib.import_module(module)  # once, not for each fault

    RESULTS.parent.mkdir(exist_ok=True)
    if not options.survivors:
        RESULTS.unlink(missing_ok=True)
    run(faults, options.jobs)
    last = results()
    found = {fault.name: last[fault.name] for fault in every if fault.name in last}
    text, percent = page(found, words())
    REPORT.write_text(text)
    print(text)
    return int(percent < options.least)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
