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
    """A store's name, and what nobody can read from its class."""

    name: str
    choose_it: str
    page: str
    survives: str = ""
    """Only where the class can't tell, since it depends on the server."""

    costs: str = ""
    """What a crash costs, where there is more to say than follows from the durability."""


ROWS = (
    Row("SQLiteStore", "one machine; one file to back up, the shortest way to the disk", "#sqlitestore"),
    Row("FileStore", "one machine; a file per agent, to look at, copy or remove one by one", "#filestore"),
    Row(
        "RedisStore",
        "many machines, changes within a fraction of a millisecond, a server that is there anyway",
        "redis.md",
        "what the server's settings give: power loss with `appendfsync always`",
        "nothing acknowledged with `appendfsync always`; with `everysec` and a power loss the last second or more; "
        "a failover what was not replicated yet",
    ),
    Row(
        "PostgresStore",
        "many machines, a database that is there anyway, with its backups and replicas",
        "postgres.md",
        "what the server's settings give: power loss; with synchronous standbys loss of the machine",
        "nothing acknowledged; a failover to a standby that is not synchronous what was not replicated yet",
    ),
    Row(
        "ObjectStore",
        "many machines, nothing to run; agents that change seldom, or may wait some tens of milliseconds",
        "objects.md",
        "loss of the machine in a cloud (`REPLICATED`); power loss at an address of your own (`HOST`)",
    ),
    Row("MemoryStore", "tests; it outlives a manager, as a disk would", "testing.md#a-restart"),
)

_COLUMNS = ("store", "choose it for", "an acknowledged change survives", "a crash costs", "owners", "keys")
_SURVIVES = {
    Durability.NONE: "nothing",
    Durability.PROCESS: "`kill -9`",
    Durability.HOST: "power loss",
    Durability.REPLICATED: "loss of the machine",
}
_COSTS = {
    Durability.NONE: "everything",
    Durability.PROCESS: "nothing acknowledged; a power loss the newest changes",
    Durability.HOST: "nothing acknowledged",
    Durability.REPLICATED: "nothing acknowledged",
}
_YOURS = ("your own", "", "what it declares", "what the contract finds", "what its `claim` allows", "with a `keys`")
_LONGEST = 60


def matrix() -> str:
    """Return the table as Markdown, for a page in ``docs``."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, ROWS), _YOURS]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in rows)


def _cells(row: Row) -> tuple[str, ...]:
    kind: type[Store] = getattr(stores, row.name)
    survives = row.survives or f"{_SURVIVES[kind.durability]} (`Durability.{kind.durability.name}`)"
    costs = row.costs or _COSTS[kind.durability]
    return (f"[{_call(kind)}]({row.page})", row.choose_it, survives, costs, _owners(kind), _keys(kind))


def _keys(kind: type[Store]) -> str:
    if kind.keys is Store.keys:
        return "not listed"
    return "listed and counted" if kind.count is not Store.count else "listed; counted by listing"


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
