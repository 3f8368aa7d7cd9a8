"""The few types that cross every border of the house. No logic but the check of a key."""

from __future__ import annotations

from .errors import InvalidKeyError

__all__ = ["MAX_KEY_BYTES", "check_key"]

MAX_KEY_BYTES = 1024


def check_key(key: object, agent: str) -> str:
    """Return *key* if it can address an agent: a ``str`` of 1 to 1024 UTF-8 bytes, compared code point by code point.

    Raises:
        InvalidKeyError: any other value.
    """
    if type(key) is not str:
        raise InvalidKeyError(
            f"a key of {agent} must be a str, not {type(key).__name__}: pass str(...) of what identifies it"
        )
    if not key:
        raise InvalidKeyError(
            f"a key of {agent} must not be empty: pass what identifies the agent, such as a user's id"
        )
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKeyError(
            f"a key of {agent} holds a lone surrogate at position {error.start}: "
            "decode the bytes it came from as UTF-8 first"
        ) from None
    if size > MAX_KEY_BYTES:
        raise InvalidKeyError(
            f"a key of {agent} has {size} bytes, more than {MAX_KEY_BYTES}: use a hash or a shorter id"
        )
    return key
