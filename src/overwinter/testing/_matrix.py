"""What each store of the package promises, as a table: read from the classes, so that it is said once.

This file knows stores by name and what their classes declare. ``docs/stores.md`` begins with this table, and a test
compares the two.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from .. import stores
from ..stores.base import Durability, Store

__all__ = ["ROWS", "Row", "matrix"]


@dataclass(frozen=True, slots=True)
class Row:
    """A store's name and what nobody can read from its class."""

    name: str
    good_for: str
    survives: str = ""
    """Only where the class can't tell, since it depends on the server."""


ROWS = (
    Row("SQLiteStore", "programs on one machine"),
    Row("FileStore", "the same, one file per agent"),
    Row("MemoryStore", "tests; it outlives a manager, as a disk would"),
)

_COLUMNS = ("store", "for", "survives", "owners", "lists keys", "counts them")
_SURVIVES = {
    Durability.NONE: "nothing",
    Durability.PROCESS: "`kill -9`",
    Durability.HOST: "power loss",
    Durability.REPLICATED: "loss of the machine",
}
_YOURS = ("your own", "", "what it declares", "what its `claim` allows", "with a `keys` of its own", "by listing")
_LONGEST = 60


def matrix() -> str:
    """Return the table as Markdown."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, ROWS), _YOURS]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in rows)


def _cells(row: Row) -> tuple[str, ...]:
    kind: type[Store] = getattr(stores, row.name)
    lists = kind.keys is not Store.keys
    counts = "at once" if kind.count is not Store.count else "by listing"
    survives = row.survives or f"{_SURVIVES[kind.durability]} (`Durability.{kind.durability.name}`)"
    return (_call(kind), row.good_for, survives, _owners(kind), "yes" if lists else "no", counts if lists else "no")


def _owners(kind: type[Store]) -> str:
    if kind.network:
        return "any machine; the condition of each put decides"
    if kind.claim is not Store.claim:
        return "one process per agent class, or several that are all `shared=True`"
    return "one process"


def _call(kind: type[Store]) -> str:
    """How the store is made: its parameters and their defaults, as far as they fit."""
    parts: list[str] = []
    keywords = False
    for each in inspect.signature(kind).parameters.values():
        if each.kind is each.KEYWORD_ONLY and not keywords:
            keywords = True
            parts.append("*")
        default = f"{each.default:g}" if isinstance(each.default, float) else repr(each.default)
        parts.append(each.name if each.default is each.empty else f"{each.name}={default}")
        if len(", ".join(parts)) > _LONGEST:
            parts[-1] = "…"
            break
    return f"`{kind.__name__}({', '.join(parts)})`"
