"""Whether a server keeps the conditions of writes. Some ignore them: they store regardless, or answer 200 and don't.

Without them two owners would overwrite each other and both be told "stored". So a store that is opened tries it out on
an object of its own, looks at what is there after each step, and refuses the server if it is not what must be.

This file knows a bucket. It does not know keys. It can't find a server that compares and stores in two steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from ..errors import OutcomeUnknownError, StoreUnavailableError, UsageError
from ._objects_bucket import Bucket, RefusedError
from ._objects_frame import Tag
from ._objects_names import PROBES

__all__ = ["probe"]

_LAST_TRY = 1.0  # seconds beyond the deadline of who opens the store


async def probe(bucket: Bucket) -> None:
    """Try the conditions of writes on an object with a random name, and remove it.

    Raises:
        UsageError: this server does not keep them.
        StoreUnavailableError: it can't be used at all: no such bucket, no access, no connection.
    """
    name = f"{PROBES}/{os.urandom(16).hex()}"
    if await bucket.read(name) is not None:
        raise UsageError(f"{bucket.where}: the server has an object that nobody wrote: it can't hold agents")
    try:
        await _try(bucket, name)
    except OutcomeUnknownError as error:
        raise StoreUnavailableError(f"not opened: {error}") from None
    finally:
        # It may be forbidden, or the server silent by now; and the probe harms nobody.
        with contextlib.suppress(StoreUnavailableError, TimeoutError):
            async with asyncio.timeout(_LAST_TRY):
                await bucket.remove(name)


async def _try(bucket: Bucket, name: str) -> None:
    first, second = os.urandom(64), os.urandom(64)
    old = await _written(bucket, name, first, None)
    await _refused(bucket, name, None, "If-None-Match: *")
    await _holds(bucket, name, first, old, "If-None-Match: *")
    new = await _written(bucket, name, second, old)
    if new == old:
        raise _useless(bucket, "two versions of an object have one ETag")
    await _refused(bucket, name, old, "If-Match")
    await _holds(bucket, name, second, new, "If-Match")


async def _written(bucket: Bucket, name: str, content: bytes, over: Tag | None) -> Tag:
    try:
        tag = await bucket.write(name, content, over)
    except RefusedError:
        held = await bucket.read(name)
        if held is None or held.content != content:  # else it had landed, and what was refused was a repetition
            raise _useless(bucket, "it refused a write whose condition was true") from None
        tag = held.tag
    await _holds(bucket, name, content, tag, "If-None-Match: *" if over is None else "If-Match")
    return tag


async def _refused(bucket: Bucket, name: str, over: Tag | None, condition: str) -> None:
    try:
        await bucket.write(name, os.urandom(64), over)
    except RefusedError:
        return
    raise _useless(bucket, f"it ignored the condition {condition!r}, or said that it stored what it did not")


async def _holds(bucket: Bucket, name: str, content: bytes, tag: Tag, what: str) -> None:
    held = await bucket.read(name)
    if held is None or held.content != content:
        raise _useless(bucket, f"after a write ({what}) it holds something else than it said")
    if not tag or held.tag != tag:
        raise _useless(bucket, "the ETag of a write is not that of the object")


def _useless(bucket: Bucket, what: str) -> UsageError:
    return UsageError(
        f"{bucket.where}: this server can't keep two owners apart: {what}. Use one with conditional writes: S3, Google "
        "Cloud Storage, Azure Blob Storage, or a server of the S3 kind that has them (If-None-Match and If-Match)"
    )
