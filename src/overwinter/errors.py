"""Every exception that overwinter raises, in one short tree.

This file knows words only. A message says what happened, to which agent and key, and what to do now.
It never holds state, a message's content or a connection string: exception texts end up in logs.
"""

from __future__ import annotations

from typing import Any, Self

__all__ = [
    "AgentDeletedError",
    "AgentNotFoundError",
    "AgentStateError",
    "AlreadyAppliedError",
    "CallIdReusedError",
    "CloseError",
    "ClosedError",
    "CopyError",
    "CorruptRecordError",
    "InvalidKeyError",
    "MailboxFullError",
    "MigrationError",
    "MissingInitialError",
    "NewerRecordError",
    "OutcomeUnknownError",
    "OutsideTurnError",
    "OverwinterError",
    "ReadonlyError",
    "ReentrantCallError",
    "RevisionConflictError",
    "SignalDataError",
    "StateTooLargeError",
    "StoreError",
    "StoreInUseError",
    "StoreUnavailableError",
    "SupersededError",
    "ThawError",
    "TooManyLiveError",
    "TurnCancelledError",
    "TurnTimeoutError",
    "UnknownAgentError",
    "UnknownSignalError",
    "UsageError",
]


class OverwinterError(Exception):
    """The root: ``except OverwinterError`` catches whatever the library itself raises."""

    def again(self) -> Self:
        """The same error for one more of those who wait: a shared one would collect everybody's traceback."""
        other = type(self).__new__(type(self))  # one of a store's own may be made of other things than its text
        other.args, other.__cause__ = self.args, self.__cause__
        other.__dict__.update(self.__dict__)
        return other


# ---------------------------------------------------------------- how the library is used


class UsageError(OverwinterError, RuntimeError):
    """The library was used where it can't work: another event loop, another thread, after a fork."""


class ClosedError(UsageError):
    """The manager, system or store is closed, or was never opened."""


class InvalidKeyError(OverwinterError, ValueError):
    """A key is not a string of 1 to 1024 UTF-8 bytes."""


class UnknownSignalError(OverwinterError, LookupError):
    """No method of the agent class is routed to this type of signal."""


class SignalDataError(OverwinterError, TypeError):
    """A signal's data does not convert to the parameters of the method it is routed to."""


# ---------------------------------------------------------------- an agent's state


class AgentStateError(OverwinterError, TypeError):
    """The state does not fit what the class declares; the call failed and the state is as before it."""


class StateTooLargeError(OverwinterError, ValueError):
    """The encoded state is larger than ``max_state``; the call failed and the state is as before it."""


class OutsideTurnError(OverwinterError, RuntimeError):
    """State was changed outside a turn, where nothing could make the change durable or roll it back."""


class ReadonlyError(OverwinterError, TypeError):
    """A ``@readonly`` call changed the state; found only in the test kit's strict mode."""


class ReentrantCallError(OverwinterError, RuntimeError):
    """A call that would wait for itself: an agent called itself, or two called each other, inside their turns."""


class AlreadyAppliedError(OverwinterError):
    """A call with this ``call_id`` was made before, and its reply can't be given: too large, no plain data, or the call
    ended behind a ``commit()``, what it did before that being stored.
    """


class CallIdReusedError(OverwinterError, ValueError):
    """A ``call_id`` was used again for another method or other arguments; nothing was called."""


class TurnCancelledError(OverwinterError):
    """Somebody ended the running call with ``manager.cancel(key)``; it has no effect beyond its commit points."""


class TurnTimeoutError(OverwinterError, TimeoutError):
    """The call ran longer than ``turn_timeout`` and was ended; it has no effect beyond its commit points."""


class MailboxFullError(OverwinterError):
    """``max_mailbox`` calls wait for this agent already; this one was not started."""


class TooManyLiveError(OverwinterError):
    """``max_live`` agents are live and none of them could hibernate; nothing was started."""


class AgentDeletedError(OverwinterError, LookupError):
    """The agent was deleted while this call waited for its turn; the call was not started."""


# ---------------------------------------------------------------- coming alive


class ThawError(OverwinterError):
    """The agent could not come alive. Nothing was started and nothing was written."""


class AgentNotFoundError(ThawError, LookupError):
    """Nothing is stored under this key, and the caller asked not to create it."""


class MissingInitialError(ThawError, TypeError):
    """A fresh agent of a class with required fields was asked for without a fitting ``initial``."""


class CorruptRecordError(ThawError, ValueError):
    """Bytes are stored under the key and do not verify. They are left as they are, and never taken for *absent*."""


class NewerRecordError(ThawError):
    """The record is of a newer version of the class or in a newer format, or holds a field that would be lost."""


class UnknownAgentError(ThawError):
    """The record belongs to an agent of another name."""


class MigrationError(ThawError):
    """An ``@upcast`` or ``load`` failed on stored data; the stored bytes are unchanged."""


# ---------------------------------------------------------------- the store


class StoreError(OverwinterError):
    """What a store may raise."""


class RevisionConflictError(StoreError):
    """Not stored: the revision under the key is not the expected one. Somebody else wrote."""


class StoreUnavailableError(StoreError, OSError):
    """Certainly not stored, and nothing is wrong with the data: try again later."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)


class OutcomeUnknownError(StoreError):
    """Perhaps stored, perhaps not. Only another conditional put can tell; a read can't."""


class StoreInUseError(StoreError):
    """Another owner holds this agent name on this store."""


class CopyError(StoreError):
    """``copy_records`` copied all else. ``result``, a ``Copied``, has the numbers and the first keys."""

    def __init__(self, message: str = "", *, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class SupersededError(OverwinterError):
    """Another owner wrote this agent's record. Our copy was dropped, and what this call changed was not stored.

    What it had made durable with ``commit()`` stays.
    """

    origin: object = None
    """For the manager: whose change was lost. A call inside a method may raise this error for another agent."""


class CloseError(OverwinterError):
    """Closing could not store every agent.

    ``not_stored``: keys whose last changes are certainly not stored; ``unknown``: keys whose last put or delete has no
    known outcome; ``abandoned``: keys whose turn or ``on_stop`` did not end in time.
    """

    def __init__(
        self,
        message: str = "",
        *,
        not_stored: tuple[str, ...] = (),
        unknown: tuple[str, ...] = (),
        abandoned: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.not_stored = not_stored
        self.unknown = unknown
        self.abandoned = abandoned
