"""From a URL, as it stands in a setting, to a store. It knows schemes, and which store takes them."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from urllib.parse import unquote

from ..errors import UsageError
from .base import Store
from .memory import MemoryStore

__all__ = ["MODULES", "from_url", "load"]

MODULES = {
    "FileStore": "file",
    "ObjectStore": "objects",
    "PostgresStore": "postgres",
    "RedisStore": "redis",
    "SQLiteStore": "sqlite",
}
"""Where the stores are that need a driver, or a system that has flock: they load on first use."""

_NETWORK = {
    **dict.fromkeys(("postgresql", "postgres"), "PostgresStore"),
    **dict.fromkeys(("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"), "ObjectStore"),
    **dict.fromkeys(("redis", "rediss", "unix", "valkey", "valkeys"), "RedisStore"),
}
_SCHEMES = (
    "sqlite:///relative.db, sqlite:////absolute/path.db, file:///absolute/folder, postgresql://, redis://, "
    "s3://, gs://, az:// or memory://"
)


def load(name: str) -> Any:
    """Return the class of a store by its name."""
    return getattr(import_module(f".{MODULES[name]}", __package__), name)


def from_url(url: str) -> Store:
    """Make a store from a URL, as it stands in a setting.

    ``sqlite:///app.db``, ``sqlite:////var/lib/app.db``, ``file:///var/lib/app``, ``memory://``, or the URL of a server,
    with the options that its driver understands: ``postgresql://``, ``redis://``, ``valkey://``, ``unix://`` for a
    Redis on a socket, ``s3://``, ``gs://``, ``az://``. The URL is never quoted in an error: it may hold a password.

    Raises:
        UsageError: no store has this scheme, or it has no such URL.
        ImportError: the store needs an extra; the text says which.
    """
    scheme, colon, rest = url.partition("://")
    if not colon:
        raise UsageError(f"the store's URL has no scheme: use one of {_SCHEMES}")
    if scheme in _NETWORK:
        store: Store = load(_NETWORK[scheme])(url)
        return store
    if scheme == "memory":
        if rest:
            raise UsageError("a memory store has no path or options: use memory://")
        return MemoryStore()
    if scheme not in ("sqlite", "file"):
        known = scheme if scheme.isalnum() and len(scheme) <= 16 else "of this URL"
        raise UsageError(f"the scheme {known} is none of a store that is here: use one of {_SCHEMES}")
    if not rest.startswith("/") or rest == "/" or "?" in rest or "#" in rest:
        raise UsageError(f"the URL of a store on disk has no host and no options, only a path: use one of {_SCHEMES}")
    local: Store = load("FileStore")(unquote(rest)) if scheme == "file" else load("SQLiteStore")(unquote(rest[1:]))
    return local
