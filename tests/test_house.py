"""The house keeps its order: imports run one way, pure modules stay pure. Read from the source.

What is only imported for types or inside a function counts too.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "overwinter"

# A unit imports only from those before it. Inside a package the modules form no cycle.
HOUSE = (
    "errors",
    "_types",
    "_depth",
    "_clock",
    "agent",
    "record",
    "stores",
    "_store_keys",
    "persistence",
    "telemetry",
    "runtime",
    "manager",
    "system",
    "_run",
    "testing",
    "__init__",
)
PURE = ("errors", "_types", "_depth", "agent", "record", "runtime._lifecycle")  # no I/O, no tasks, no threads, no clock
IMPURE = frozenset({
    "asyncio", "concurrent", "fcntl", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time",
    "apsw", "sqlite3",
})  # fmt: skip
NOWHERE = frozenset({"pickle", "marshal", "shelve", "dill", "cloudpickle"})
DRIVERS = {  # other packages only inside functions or for types
    "msgspec": ("agent", "record"),
    "apsw": ("stores",),
    "redis": ("stores",),
}
ONLY_REEXPORT = ("agent", "record", "runtime", "testing")  # stores and the root load drivers on first use


def read(root: Path) -> dict[str, ast.Module]:
    """Each module below *root* by its dotted name; a package goes by its own name, the root by ``__init__``."""
    trees = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(), str(path))
    return trees


def is_package(root: Path, name: str) -> bool:
    return name == "__init__" or (root / name.replace(".", "/")).is_dir()


def imports(root: Path, name: str, tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Each module that *name* imports, wherever in it: our own as ``.name``, the root as ``.__init__``."""
    package = [] if name == "__init__" else name.split(".")
    if not is_package(root, name):
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                yield (f".{rest or '__init__'}" if top == "overwinter" else alias.name), node
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + module
            elif module[0] == "overwinter":
                base = module[1:]
            else:
                yield ".".join(module), node
                continue
            for alias in node.names:
                child = [*base, alias.name]
                is_module = (root / Path(*child)).is_dir() or (root / Path(*child)).with_suffix(".py").is_file()
                yield "." + (".".join(child if is_module else base) or "__init__"), node


def at_import(tree: ast.Module) -> set[ast.stmt]:
    """The statements that run when the module is imported, ``if TYPE_CHECKING`` aside."""
    found: set[ast.stmt] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.stmt):
            found.add(node)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def unit(name: str) -> str:
    return name.partition(".")[0]


def is_in(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def violations(root: Path) -> list[str]:
    """Everything in the tree that breaks the house's rules, in words."""
    trees = read(root)
    found: list[str] = []
    inside: dict[str, set[str]] = {}
    for name, tree in trees.items():
        found += of_module(name, tree)
        if unit(name) not in HOUSE:
            found.append(f"{name} has no place in the house: add it to HOUSE and to docs/design.md")
            continue
        early = at_import(tree)
        for target, node in imports(root, name, tree):
            where = f"{name}:{node.lineno} imports {target}"
            if not target.startswith("."):
                found += of_foreign(name, target, node in early, where)
                continue
            other = target[1:]
            if other == "__init__":
                found.append(f"{where}: nobody imports the root package")
            elif unit(other) not in HOUSE or HOUSE.index(unit(other)) > HOUSE.index(unit(name)):
                found.append(f"{where}, which stands below it")
            elif unit(other) == unit(name):
                inside.setdefault(name, set()).add(other)
    try:
        graphlib.TopologicalSorter(inside).prepare()
    except graphlib.CycleError as error:
        found.append(f"a cycle: {' -> '.join(error.args[1])}")
    return found


def of_foreign(name: str, target: str, early: bool, where: str) -> list[str]:
    top = unit(target)
    if top in NOWHERE:
        return [f"{where}: it runs what it reads"]
    if is_in(name, PURE) and top in IMPURE:
        return [f"{where}: this part of the house is pure"]
    if early and top not in sys.stdlib_module_names and not is_in(name, DRIVERS.get(top, ())):
        return [f"{where}: only {', '.join(DRIVERS)} are there for sure, each in its place"]
    return []


def of_module(name: str, tree: ast.Module) -> list[str]:
    found: list[str] = []
    if not ast.get_docstring(tree):
        found.append(f"{name} has no docstring: what does it know, and what not?")
    names = exported(tree)
    if names is None and name != "runtime":
        found.append(f"{name} has no __all__")
    elif names is not None:
        found += [f"{name} exports {each!r} but has no such name" for each in sorted(set(names) - defined(tree))]
        found += [
            f"{name} exports {each!r} twice" for each in sorted({each for each in names if names.count(each) > 1})
        ]
    package = name in ONLY_REEXPORT
    if not package and not any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body):
        found.append(f"{name} lacks from __future__ import annotations")
    if package and any(not isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in tree.body):
        found.append(f"{name} is a package: its __init__ only re-exports")
    return found


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


def defined(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_the_house_is_in_order() -> None:
    assert violations(SRC) == []


def test_the_root_exports_what_it_imports_and_nothing_twice() -> None:
    tree = read(SRC)["__init__"]
    names = exported(tree)
    imported = [
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level and node.module
        for alias in node.names
    ]
    assert names is not None
    assert sorted(names) == sorted(imported)
    assert len(set(names)) == len(names)


def test_a_public_name_means_one_thing() -> None:
    import overwinter
    import overwinter.errors
    import overwinter.stores
    import overwinter.testing

    seen: dict[str, object] = {}
    for module in (overwinter, overwinter.errors, overwinter.stores, overwinter.testing):
        for name in module.__all__:
            value = getattr(module, name)
            assert seen.setdefault(name, value) is value, f"{name} of {module.__name__} is not the one seen before"


GOOD = '"""Knows nothing."""\nfrom __future__ import annotations\n'
END = "\n__all__ = []\n"


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("errors.py", "from . import _types", "stands below it"),
        ("record/_a.py", "from ..stores.base import Store", "stands below it"),
        ("record/_a.py", "from overwinter.stores import base", "stands below it"),
        ("record/_a.py", "import overwinter.stores.base", "stands below it"),
        ("record/_a.py", "def f():\n    from ..manager import M", "stands below it"),
        (
            "record/_a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..runtime._b import B",
            "stands below it",
        ),
        ("manager.py", "from . import Agent", "nobody imports the root"),
        ("record/_a.py", "from .. import Agent", "nobody imports the root"),
        ("manager.py", "import overwinter", "nobody imports the root"),
        ("manager.py", "from overwinter import Agent", "nobody imports the root"),
        ("record/_a.py", "import asyncio", "pure"),
        ("agent/_a.py", "def f():\n    import os.path", "pure"),
        ("runtime/_lifecycle.py", "from time import monotonic", "pure"),
        ("manager.py", "import pickle", "runs what it reads"),
        ("manager.py", "import msgspec", "in its place"),
        ("agent/_a.py", "try:\n    import pydantic\nexcept ImportError:\n    pass", "in its place"),
        ("record/_a.py", "from ._b import b", "a cycle"),
        ("record/_a.py", "from . import b", "a cycle"),
        ("cellar.py", "", "no place in the house"),
        ("record/__init__.py", "def f(): ...", "only re-exports"),
    ],
)
def test_a_seeded_violation_is_found(tmp_path: Path, path: str, text: str, words: str) -> None:
    (tmp_path / "_types.py").write_text(GOOD + END)
    (tmp_path / "stores").mkdir()
    for name in ("stores/__init__.py", "stores/base.py", "manager.py"):
        (tmp_path / name).write_text(GOOD + END)
    for folder, module in (("record", "_a"), ("agent", "_a"), ("runtime", "_lifecycle")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{module}.py").write_text(GOOD + END)
    (tmp_path / "record/_b.py").write_text(GOOD + "from ._a import a" + END)
    (tmp_path / "record/__init__.py").write_text(GOOD + "from ._b import b" + END)
    assert violations(tmp_path) == []
    (tmp_path / path).write_text(GOOD + text + END)
    found = violations(tmp_path)
    assert any(words in each for each in found), found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from __future__ import annotations" + END, "no docstring"),
        (GOOD, "no __all__"),
        ('"""Doc."""' + END, "lacks from __future__"),
        (GOOD + '__all__ = ["gone"]', "no such name"),
        (GOOD + 'a = 1\n__all__ = ["a", "a"]', "twice"),
    ],
)
def test_a_module_says_what_it_is(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "errors.py").write_text(text)
    assert any(words in each for each in violations(tmp_path))


def test_what_is_only_needed_for_types_or_on_demand_may_be_missing(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pydantic\ndef f():\n    import attrs\n"
    (tmp_path / "manager.py").write_text(GOOD + text + END)
    assert violations(tmp_path) == []


def test_no_test_example_or_tool_opens_a_database_with_the_standard_module() -> None:
    """In a process with a store open it would drop the store's POSIX locks; a subprocess may."""
    root = Path(__file__).parent.parent
    for folder in ("src", "tests", "examples", "demo", "benchmarks", "mutation"):
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text()
            for node in ast.walk(ast.parse(text, str(path))) if "sqlite3" in text else ():
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                    assert not {"sqlite3", "_sqlite3"} & {name.partition(".")[0] for name in names}, path


def test_no_msgspec_is_allowed_that_is_older_than_the_one_that_is_tested() -> None:
    """Below 1.0 a minor version changes what is raised and written; patches don't."""
    root = SRC.parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pinned = re.search(r"^msgspec==(\d+\.\d+)", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"msgspec>={pinned[1]}" in project["dependencies"]
