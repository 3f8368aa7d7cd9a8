"""What a Redis server says of itself, and whether agents may be kept there.

This file knows INFO, CONFIG and words. It does not know connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import StoreUnavailableError, UsageError
from .base import Durability

__all__ = ["Facts", "Terms", "check", "read_facts"]

_OLDEST = (6, 2)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the user asked for."""

    durability: Durability | None
    allow_eviction: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server said."""

    version: tuple[int, ...]
    role: str
    loading: bool
    clustered: bool
    max_memory: int
    policy: str
    durability: Durability | None
    """What its settings give; ``None`` if it keeps them to itself."""
    why: str
    """The settings, in words."""
    rewriting: bool
    """Whether its log is being written anew, or about to be."""
    process: str
    """Differs after a restart."""
    life: str
    """Differs after a restart, and after each change of its role; and when it gets or loses replicas."""


def read_facts(info: bytes, config: Mapping[bytes, bytes] | None) -> Facts:
    """Make facts of the answers to INFO and CONFIG GET; *config* is ``None`` if CONFIG is forbidden."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    said = {name: value.strip() for name, colon, value in lines if colon}
    durability, why = _durability(said, config)
    return Facts(
        version=tuple(int(part) for part in said.get("redis_version", "0").split(".")[:2] if part.isdecimal()),
        role=said.get("role", "unknown"),
        loading=said.get("loading", "0") != "0",
        clustered=said.get("cluster_enabled", "0") == "1",
        max_memory=int(said.get("maxmemory", "0")),
        policy=said.get("maxmemory_policy", "noeviction"),
        durability=durability,
        why=why,
        rewriting=said.get("aof_rewrite_in_progress", "0") != "0" or said.get("aof_rewrite_scheduled", "0") != "0",
        process=said.get("run_id", ""),
        life=f"{said.get('run_id')} {said.get('master_replid')}",
    )


def _durability(said: Mapping[str, str], config: Mapping[bytes, bytes] | None) -> tuple[Durability | None, str]:
    logged = said.get("aof_enabled", "0") == "1"
    if config is None or b"appendfsync" not in config:
        if logged:
            return Durability.PROCESS, "it writes a log, and does not tell how often it flushes it"
        return None, "it does not tell how it keeps its data, since CONFIG is forbidden"
    if not logged:
        return Durability.NONE, "appendonly is no: what was written since the last snapshot dies with the server"
    flush = config[b"appendfsync"].decode()
    if flush != "always":
        return Durability.PROCESS, f"appendfsync is {flush}"
    if config.get(b"no-appendfsync-on-rewrite") == b"yes":
        return Durability.PROCESS, "no-appendfsync-on-rewrite is yes, so some writes are not flushed"
    return Durability.HOST, "appendfsync is always"


def check(facts: Facts, terms: Terms, where: str) -> Durability:
    """Return what acknowledged writes survive.

    Raises:
        UsageError: agents must not be kept on this server.
        StoreUnavailableError: not now.
    """
    if facts.version < _OLDEST:
        found = ".".join(map(str, facts.version))
        raise UsageError(f"{where} is Redis {found}; overwinter needs 6.2 or newer, or Valkey")
    if facts.clustered:
        raise UsageError(f"{where} is a node of a cluster, and this store talks to one server: see docs/redis.md")
    if facts.role != "master":
        raise StoreUnavailableError(f"{where} is a replica, which takes no writes: give the address of the primary")
    if facts.loading:
        raise StoreUnavailableError(f"{where} is loading its data: try again later")
    evicts = facts.max_memory > 0 and facts.policy != "noeviction"
    if evicts and not terms.allow_eviction:
        raise UsageError(
            f"{where} throws keys away when it is full (maxmemory-policy {facts.policy}), and agents would start "
            "anew: set maxmemory-policy noeviction, or pass allow_eviction=True if losing agents is fine"
        )
    return _agree(Durability.NONE if evicts else facts.durability, facts.why, terms.durability, where)


def _agree(found: Durability | None, why: str, asked: Durability | None, where: str) -> Durability:
    if asked is None:
        return Durability.NONE if found is None else found
    if found is not None and asked > found:
        raise UsageError(
            f"durability={asked.name} was asked for, and the settings of {where} give {found.name} only ({why}): "
            "change them, or ask for less"
        )
    return asked
