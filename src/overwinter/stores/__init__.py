"""Where records are kept.

``MemoryStore``, ``SQLiteStore`` and ``FileStore`` come with the package; ``Store`` is the base of a store of your own.
``copy_records`` copies from any store to any other.
Drivers load on first use: ``import overwinter.stores`` costs no SQLite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..errors import UsageError
from ._copy import Copied, copy_records
from .base import Durability, Expect, Revision, Store, Stored
from .memory import MemoryStore

if TYPE_CHECKING:
    from .file import FileStore
    from .sqlite import SQLiteStore

__all__ = [
    "Copied",
    "Durability",
    "Expect",
    "FileStore",
    "MemoryStore",
    "Revision",
    "SQLiteStore",
    "Store",
    "Stored",
    "copy_records",
    "from_url",
]

_SCHEMES = "sqlite:///relative.db, sqlite:////absolute/path.db, file:///absolute/folder, memory://"


def __getattr__(name: str) -> Any:
    if name == "SQLiteStore":
        from .sqlite import SQLiteStore  # noqa: PLC0415  # the driver loads on first use

        return SQLiteStore
    if name == "FileStore":
        from .file import FileStore  # noqa: PLC0415  # it needs flock, which not every system has

        return FileStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def from_url(url: str) -> Store:
    """Make a store from a URL, as it stands in a setting.

    ``sqlite:///app.db``, ``sqlite:////var/lib/app.db``, ``file:///var/lib/app`` or ``memory://``. Percent-escapes are
    decoded. The URL is never quoted in an error, since it may hold a password.
    """
    scheme, colon, rest = url.partition("://")
    if not colon:
        raise UsageError(f"the store's URL has no scheme: use one of {_SCHEMES}")
    if scheme == "memory":
        if rest:
            raise UsageError("a memory store has no path or options: use memory://")
        return MemoryStore()
    if scheme not in ("sqlite", "file"):
        known = scheme if scheme.isalnum() and len(scheme) <= 16 else "of this URL"
        raise UsageError(f"the scheme {known} is none of a store that is here: use one of {_SCHEMES}")
    if not rest.startswith("/") or rest == "/" or "?" in rest or "#" in rest:
        raise UsageError(f"the URL of a store on disk has no host and no options, only a path: use one of {_SCHEMES}")
    if scheme == "file":
        from .file import FileStore  # noqa: PLC0415  # as above

        return FileStore(unquote(rest))
    from .sqlite import SQLiteStore  # noqa: PLC0415  # as above

    return SQLiteStore(unquote(rest[1:]))
