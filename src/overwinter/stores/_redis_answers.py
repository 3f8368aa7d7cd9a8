"""What an error of a Redis server says about the request that got it.

This file knows the server's codes. An error that it does not know says nothing: a proxy may have made it.
"""

from __future__ import annotations

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

from ..errors import CorruptRecordError, OutcomeUnknownError, OverwinterError, StoreUnavailableError
from ._redis_line import StaleLineError

__all__ = ["refusal"]

# By the driver's types, which take the code off the message; more than one may fit, the first counts.
_TYPES: list[tuple[type[Exception], str, bool]] = [
    (OutOfMemoryError, "is full: raise its maxmemory, or delete what nobody needs", False),
    (ReadOnlyError, "is a replica now and takes no writes", True),
    (
        NoPermissionError,
        "forbids it: docs/redis.md lists the commands that its user needs",
        False,
    ),
    (BusyLoadingError, "is loading its data", True),
    (AuthenticationError, "does not know us any more: see the user and the password", True),
    (MasterDownError, "is a replica that lost its primary", True),
    (ClusterDownError, "is in a cluster that is down", True),
    (TryAgainError, "is moving its keys", True),
    (AskError, "does not hold this key: it belongs to another node of a cluster", True),
]

_CODES = {
    "MISCONF": "can't write to its disk, and takes no writes until it can: see its log",
    "NOREPLICAS": "misses replicas, and takes no writes without (min-replicas-to-write)",
    "BUSY": "is busy with somebody's script",
}


def refusal(error: Exception, where: str, about: str, *, writes: bool) -> OverwinterError:
    """Return the outcome that *error* stands for.

    Raises:
        StaleLineError: the outcome, and whoever answered is not the one to ask now.
    """
    for kind, words, stale in _TYPES:
        if isinstance(error, kind):
            refused = StoreUnavailableError(f"{where} {words}; not done: {about}")
            if stale:
                raise StaleLineError(refused)
            return refused
    code = str(error).partition(" ")[0]
    if code == "WRONGTYPE":
        return CorruptRecordError(
            f"{where} holds something that is no record of overwinter, not even a string: it was left as it is; "
            f"see who else uses this prefix: {about}"
        )
    if code in _CODES:
        return StoreUnavailableError(f"{where} {_CODES[code]}; not done: {about}")
    # Only the first word, and only if it is a code: what follows may quote the request.
    words = f"answered with an error of its own ({code[:20] if code.isupper() else type(error).__name__})"
    if writes:
        return OutcomeUnknownError(f"{where} {words}; perhaps done: {about}")
    return StoreUnavailableError(f"{where} {words}; not done: {about}")
