"""Where records are kept.

``MemoryStore`` and ``SQLiteStore`` come with the package; ``Store`` is the base of a store of your own.
Drivers load on first use: ``import overwinter.stores`` costs no SQLite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..errors import UsageError
from .base import Durability, Expect, Revision, Store, Stored
from .memory import MemoryStore

if TYPE_CHECKING:
    from .sqlite import SQLiteStore

__all__ = ["Durability", "Expect", "MemoryStore", "Revision", "SQLiteStore", "Store", "Stored", "from_url"]

_SCHEMES = "sqlite:///relative.db, sqlite:////absolute/path.db, memory://"


def __getattr__(name: str) -> Any:
    if name == "SQLiteStore":
        from .sqlite import SQLiteStore  # noqa: PLC0415  # the driver loads on first use

        return SQLiteStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def from_url(url: str) -> Store:
    """Make a store from a URL, as it stands in a setting: ``sqlite:///app.db``, ``sqlite:////var/lib/app.db``, ``memory://``.

    Percent-escapes are decoded. The URL is never quoted in an error, since it may hold a password.
    """
    scheme, colon, rest = url.partition("://")
    if not colon:
        raise UsageError(f"the store's URL has no scheme: use one of {_SCHEMES}")
    if scheme == "memory":
        if rest:
            raise UsageError("a memory store has no path or options: use memory://")
        return MemoryStore()
    if scheme != "sqlite":
        known = scheme if scheme.isalnum() and len(scheme) <= 16 else "of this URL"
        raise UsageError(f"the scheme {known} is none of a store that is here: use one of {_SCHEMES}")
    if not rest.startswith("/") or rest == "/" or "?" in rest or "#" in rest:
        raise UsageError(
            "a SQLite URL is sqlite:/// and a path, without host or options: sqlite:///app.db, sqlite:////srv/app.db"
        )
    from .sqlite import SQLiteStore  # noqa: PLC0415  # as above

    return SQLiteStore(unquote(rest[1:]))
