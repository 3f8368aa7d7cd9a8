"""What PostgreSQL's errors mean: which ones prove that nothing was stored, and what to tell whoever asked.

This file knows SQLSTATEs. It quotes no text of the server's or the driver's about a statement, since such a text may
hold what is stored; about a connection that failed it does, without the password.
"""

from __future__ import annotations

from ..errors import CorruptRecordError, OutcomeUnknownError, OverwinterError, StateTooLargeError, StoreUnavailableError

__all__ = ["Unsure", "connection_failed", "definite", "judge", "worth_repeating", "worth_splitting"]

_ADVICE = {
    "25006": "the server takes no writes: a standby, or default_transaction_read_only is on; connect to the primary",
    "3D000": "there is no such database: create it, or correct the connection string",
    "42P01": "the table is not there: `await store.setup()` creates it, unless it should be there with agents in it",
    "3F000": "the schema is not there: `await store.setup()` creates it, unless it should be there with agents in it",
    "42501": "the role may not do that: GRANT SELECT, INSERT, UPDATE, DELETE on the table to it",
    "53100": "the server's disk is full: make space",
    "53200": "the server is out of memory: see its log",
    "53300": "the server has no connection left: raise max_connections, or put PgBouncer before it",
    "57014": "the statement was cancelled, by its time limit or by hand: see what keeps the row locked",
    "57P01": "the server is being shut down",
    "57P02": "the server crashed and recovers",
    "57P03": "the server is starting up or shutting down",
}
_DAMAGE = ("XX001", "XX002")  # data_corrupted, index_corrupted
_REPEAT = ("40001", "40P01", "0A000")  # lost to another transaction, a deadlock, a plan that no longer fits its table


class Unsure(Exception):  # noqa: N818  # it says what is known, and never leaves the store
    """The server went away, or something it said leaves open whether what was sent is stored."""


def definite(error: Exception) -> bool:
    """Whether the server said no to the request. It is one transaction, so then nothing of it was stored.

    A FATAL says no to the session instead, which may come after the commit.
    """
    if getattr(error, "sqlstate", None) is None:
        return False
    severity = getattr(getattr(error, "diag", None), "severity_nonlocalized", None)
    return severity not in ("FATAL", "PANIC")


def worth_repeating(error: Exception) -> bool:
    """Whether the same request may well succeed at once."""
    return definite(error) and getattr(error, "sqlstate", None) in _REPEAT


def worth_splitting(error: Exception) -> bool:
    """Whether the error may be one row's, so that the others of its batch deserve a try without it."""
    state = getattr(error, "sqlstate", None) or ""
    return state[:2] in ("22", "23", "54") or state in _DAMAGE


def judge(error: Exception, what: str, *, unsure: bool) -> OverwinterError:
    """The error of ours for a request about *what* that failed with *error*; *unsure* if it was a write and left."""
    state = getattr(error, "sqlstate", None) or ""
    if not definite(error):
        if not unsure:
            return StoreUnavailableError(
                f"no answer from {what}: its connection is given up ({_name(error)}). Try again later"
            )
        return OutcomeUnknownError(
            f"no answer from {what}: its connection is given up ({_name(error)}), so the change may be stored. "
            "Only another conditional put can tell"
        )
    if state in _DAMAGE:
        return CorruptRecordError(
            f"PostgreSQL found damage ({_name(error)}): {what}. Restore a backup; it is left as it is"
        )
    if state[:2] == "54":
        return StateTooLargeError(f"the record is larger than PostgreSQL can store: {what}. Keep less in one agent")
    advice = _ADVICE.get(state, "see the server's log")
    return StoreUnavailableError(f"PostgreSQL refused ({_name(error)}): {what}. {advice}; nothing was stored")


def connection_failed(error: Exception, where: str, password: str | None) -> StoreUnavailableError:
    """The error of ours for a connection that could not be made: with the server's reason, without the password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    if password:
        reason = reason.replace(password, "***")
    return StoreUnavailableError(f"no connection to {where}: {reason}")


def _name(error: Exception) -> str:
    if isinstance(error, Unsure):
        return str(error)
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__}, {state}" if state else type(error).__name__
