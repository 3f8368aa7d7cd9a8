"""Where records are kept.

``Store`` is the base of a store of your own; ``copy_records`` copies from any store to any other.
Drivers load on first use: ``import overwinter.stores`` costs no SQLite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _urls
from ._copy import Copied, copy_records
from ._urls import from_url
from .base import Durability, Expect, Revision, Store, Stored
from .memory import MemoryStore

if TYPE_CHECKING:
    from .file import FileStore
    from .objects import ObjectStore
    from .postgres import PostgresStore
    from .redis import RedisStore
    from .sqlite import SQLiteStore

__all__ = [
    "Copied",
    "Durability",
    "Expect",
    "FileStore",
    "MemoryStore",
    "ObjectStore",
    "PostgresStore",
    "RedisStore",
    "Revision",
    "SQLiteStore",
    "Store",
    "Stored",
    "copy_records",
    "from_url",
]


def __getattr__(name: str) -> Any:
    if name in _urls.MODULES:
        return _urls.load(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
