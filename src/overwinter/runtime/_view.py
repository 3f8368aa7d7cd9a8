"""What can be seen of a manager from outside: frozen records, made when somebody looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import StoreError
from ._lifecycle import COLD, LIVE, THAWING
from ._registry import Registry
from ._server import AgentServer

__all__ = ["Inspection", "Stats", "inspect", "stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What a manager does now, and what it has done."""

    live: int
    """Agents in memory, those that come and go included."""
    attached: int
    """Keys that somebody is attached to."""
    thawing: int
    """Agents that are coming alive."""
    dirty: int
    """Live agents with changes that are not stored."""
    dirty_since: float | None
    """When the oldest of those changes was made, in seconds since 1970: a crash loses nothing older."""
    loss_window: float
    """Seconds since then; 0 if everything is stored. Under ``"call"`` those changes are not acknowledged yet."""
    unknown: tuple[str, ...]
    """Keys of agents whose last write has an outcome that nobody knows yet."""
    queued: int
    """Calls that wait for their turn."""
    created: int
    """Agents that started fresh, so far."""
    thawed: int
    hibernated: int
    superseded: int
    """Copies that were dropped because another owner wrote the agent, so far."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """One agent, as its manager sees it."""

    key: str
    state: str
    """``cold``, ``thawing``, ``live`` or ``freezing``."""
    running: int
    queued: int
    attached: int
    holders: tuple[str, ...]
    """Who is attached: the names that their tasks had then, one for each attachment."""
    dirty_since: float | None
    last_error: str | None
    """The type of the last exception that a call or the store raised, or that kept the agent from coming alive; never
    its text, which may hold state."""
    why_live: str | None
    """What keeps it from hibernating; ``None`` if it isn't live."""


def stats(registry: Registry[Any]) -> Stats:
    """Count; costs a look at each live agent."""
    home, servers = registry.home, registry.servers.values()
    kept = [server for server in servers if not server.ledger.lost]  # what a copy had that was dropped is gone already
    since = [server.ledger.dirty_since for server in kept if server.ledger.dirty_since is not None]
    return Stats(
        live=len(servers),
        attached=len(home.held),
        thawing=sum(server.state is THAWING for server in servers),
        dirty=sum(not server.ledger.clean for server in kept),
        dirty_since=min(since, default=None),
        loss_window=max(0.0, home.terms.clock.time() - min(since)) if since else 0.0,
        unknown=tuple(server.key for server in kept if server.ledger.unknown),
        queued=sum(server.turns.queued for server in servers),
        created=home.created,
        thawed=home.thawed,
        hibernated=home.hibernated,
        superseded=home.superseded,
    )


def inspect(registry: Registry[Any], key: str) -> Inspection:
    """Look at one key, live or not."""
    home, server = registry.home, registry.servers.get(key)
    holders = tuple(home.held.get(key, ()))
    error: type[BaseException] | None = home.failures.last(key)
    if server is None:
        told = None if error is None else error.__name__
        return Inspection(key, COLD.value, 0, 0, len(holders), holders, None, told, None)
    error = server.last_error or server.ledger.last_error or error
    return Inspection(
        key=key,
        state=server.state.value,
        running=len(server.running),
        queued=server.turns.queued,
        attached=len(holders),
        holders=holders,
        dirty_since=None if server.ledger.lost else server.ledger.dirty_since,
        last_error=None if error is None else error.__name__,
        why_live=_why_live(server, len(holders)) if server.state is LIVE else None,
    )


def _why_live(server: AgentServer[Any], attached: int) -> str:
    if attached:
        return f"{attached} attached"
    if server.running or server.turns.queued:
        return "calls are running or waiting"
    if server.last_error is not None and issubclass(server.last_error, StoreError) and not server.ledger.clean:
        return "it could not be stored"
    if server.home.idle is None or server.home.idle.endless:
        return "the manager has no idle_timeout"
    remaining = server.home.idle.remaining(server)
    return "it is being stored" if remaining is None else f"idle for {remaining:.3g} s more"
