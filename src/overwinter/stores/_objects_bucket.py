"""One bucket, as a place for whole objects: read one, write one over a version that was seen, list, remove.

This file knows obstore, and what its errors say about a write: refused by its condition, certainly not stored, or
perhaps stored. It does not know keys, and what is in an object. No text of obstore goes into an error of ours: it
quotes addresses and replies, and these may hold signatures.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..errors import OutcomeUnknownError, StoreUnavailableError
from ._objects_frame import MAX_SIZE, Tag

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

__all__ = ["Bucket", "Held", "RefusedError"]

_PAGE = 1000  # objects per request, as many as providers give
_PAUSES = (0.05, 0.25)  # seconds before a read is repeated

_STATUS = re.compile(r"status code: (\d{3})\b")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_RETRIES = re.compile(r"\bretries: (\d+)")
_ODD_NAME = re.compile(r'\bpath: "((?:[^"\\]|\\.)*)"')
_NEVER_CONNECTED = re.compile(r"HttpError \{\s*kind: Connect,")
_NO_OBJECT = ("NoSuchKey", "BlobNotFound")
_SLOWER = ("SlowDown", "TooManyRequests", "ServerBusy", "429")

_ADVICE = {
    "NoSuchBucket": "the bucket does not exist: create it, or name another one",
    "ContainerNotFound": "the container does not exist: create it, or name another one",
    "401": "the credentials are not valid: set those of an account that may use this bucket",
    "403": "access is denied: check the credentials, and that they may get, put and list objects there",
    "404": "the bucket, or the address of the server, does not exist: check both",
    "301": "the bucket is in another region: set region=",
    "507": "the server has no space left: free some",
}


class RefusedError(Exception):
    """The object is not at the version that the write expected; nothing was stored by it.

    *repeated*: it is a repetition by the client that was refused, and what became of the first attempt isn't known.
    """

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.repeated = repeated


@dataclass(frozen=True, slots=True)
class Held:
    """An object, or its beginning."""

    content: bytes
    size: int
    tag: Tag


class Bucket:
    """Objects by name. *where* is how errors call it."""

    def __init__(self, client: S3Store | GCSStore | AzureStore, where: str) -> None:
        self.where = where
        self._client = client

    async def read(self, name: str, end: int | None = None) -> Held | None:
        """Return the object, or its first *end* bytes; ``None`` if, and only if, the server says that it is absent.

        Of one that is larger than ``MAX_SIZE`` and asked for whole, only the size: it may be larger than memory.
        """
        for pause in _PAUSES:
            try:
                return await self._read(name, end)
            except _AgainError:
                await asyncio.sleep(pause)
        try:
            return await self._read(name, end)
        except _AgainError as error:
            raise StoreUnavailableError(str(error)) from None

    async def write(self, name: str, content: bytes, over: Tag | None) -> Tag:
        """Store *content* if the object is at version *over*, or absent if that is ``None``; return its version.

        Raises:
            RefusedError: it is not.
            StoreUnavailableError: certainly not stored.
            OutcomeUnknownError: perhaps stored.
        """
        from obstore import exceptions, put_async  # noqa: PLC0415  # the driver loads on first use

        mode: Any = "create" if over is None else over  # obstore types both keys as required, and refuses None
        try:
            result = await put_async(self._client, name, content, mode=mode, use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError, exceptions.NotModifiedError) as error:
            if _code(str(error)) in _ADVICE:  # obstore takes any 404 for a version that is not there
                raise _after_write(f"{self.where}/{name}", str(error)) from None
            raise RefusedError(_is_repeated(str(error))) from None
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise _after_write(f"{self.where}/{name}", str(error)) from None
        return _tag(result)

    async def pages(self, folder: str | None) -> AsyncIterator[list[tuple[str, int]]]:
        """Yield names and sizes of the objects in *folder*, or of all of them."""
        import obstore  # noqa: PLC0415  # as above
        from obstore import exceptions  # noqa: PLC0415  # as above

        stream: Any = cast("Any", obstore).list(self._client, folder, chunk_size=_PAGE)  # its types need pyarrow's kin
        while True:
            try:
                page = await stream.__anext__()
            except StopAsyncIteration:
                return
            except exceptions.InvalidPathError as error:
                raise _in_the_way(f"{self.where}/{folder or ''}", str(error)) from None
            except (exceptions.BaseError, OSError, ValueError) as error:
                raise _unavailable(f"{self.where}/{folder or ''}", "listing failed", str(error)) from None
            yield [(meta["path"], meta["size"]) for meta in page]

    async def remove(self, name: str) -> None:
        """Remove the object, whatever it is. Idempotent."""
        from obstore import delete_async, exceptions  # noqa: PLC0415  # as above

        try:
            await delete_async(self._client, name)
        except FileNotFoundError:
            return
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise _unavailable(f"{self.where}/{name}", "not removed", str(error)) from None

    async def _read(self, name: str, end: int | None) -> Held | None:
        from obstore import exceptions, get_async  # noqa: PLC0415  # as above

        missing = ""
        try:
            result = await get_async(self._client, name, options=None if end is None else {"range": (0, end)})
            size = result.meta["size"]
            content = b"" if end is None and size > MAX_SIZE else bytes(await result.bytes_async())
            return Held(content, size, _tag(result.meta))
        except FileNotFoundError as error:
            missing = str(error)
        except (exceptions.BaseError, OSError, ValueError) as error:
            text = str(error)
            status = _status(text)
            if status != "416" or end is None:
                unavailable = _unavailable(f"{self.where}/{name}", "not read", text)
                if status is None or status >= "500" or _slower(text):
                    raise _AgainError(str(unavailable)) from None
                raise unavailable from None
        # What follows stands outside the handlers: an error raised in one would show the driver's text as its context.
        if not missing:
            return await self._read(name, None)  # an empty object has no range at all
        await self._missing(name, missing)
        return None

    async def _missing(self, name: str, text: str) -> None:
        """Make sure that it is the object that is missing, and not the bucket: a fresh agent would begin there."""
        if _code(text) in _NO_OBJECT:
            return
        if _code(text) in _ADVICE:
            raise _unavailable(f"{self.where}/{name}", "not read", text)
        async for _ in self.pages("=none"):  # the server didn't say which: one that lists the bucket has it
            break


class _AgainError(Exception):
    """A read failed in a way that may be over the next time."""


def _tag(meta: Mapping[str, Any]) -> Tag:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def _after_write(name: str, text: str) -> StoreUnavailableError | OutcomeUnknownError:
    """Say what an error means for the object *name*, which was to be written."""
    status = _status(text)
    first = not _is_repeated(text)  # what a repeated request is told says nothing about the one before
    sent = status is not None or not _NEVER_CONNECTED.search(text)
    if first and (not sent or _slower(text) or (status is not None and ("300" <= status < "500" or status == "507"))):
        return _unavailable(name, "not stored", text)
    reason = f"the server answered {status}" if status else "the connection or the server failed"
    return OutcomeUnknownError(f"{name}: {reason}: perhaps stored. Only another conditional put can tell")


def _unavailable(name: str, what: str, text: str) -> StoreUnavailableError:
    status, code = _status(text), _code(text)
    if code in _ADVICE:
        return StoreUnavailableError(f"{name}: {what}: {_ADVICE[code]}")
    if "169.254." in text or "metadata.google.internal" in text:
        return StoreUnavailableError(f"{name}: {what}: there are no credentials: set them in the environment")
    if status is not None:
        said = f"{status} {code}" if code else status
        advice = "it is busy: try again later" if _slower(text) else _ADVICE.get(status, "see the server's log")
        return StoreUnavailableError(f"{name}: {what}: the server answered {said}: {advice}")
    if "BareRedirect" in text:
        return StoreUnavailableError(f"{name}: {what}: {_ADVICE['301']}")
    if _NEVER_CONNECTED.search(text):
        return StoreUnavailableError(f"{name}: {what}: no connection to the server: check its address, and if it runs")
    return StoreUnavailableError(f"{name}: {what}: the connection or the server failed: try again later")


def _in_the_way(where: str, text: str) -> StoreUnavailableError:
    """An object's name, such as one with ``//``, that obstore takes for no path: its page can't be read at all."""
    name = _ODD_NAME.search(text)
    which = f"the object {name[1]} of the bucket" if name else "an object there"
    return StoreUnavailableError(
        f"{where}: listing failed: {which} has a name that can't be listed. It is none of this store's: move it away"
    )


def _is_repeated(text: str) -> bool:
    retries = _RETRIES.search(text)
    return retries is not None and retries[1] != "0"


def _slower(text: str) -> bool:
    return _code(text) in _SLOWER or _status(text) in _SLOWER


def _code(text: str) -> str:
    match = _CODE.search(text)
    return "" if match is None else match[1]


def _status(text: str) -> str | None:
    match = _STATUS.search(text)
    return None if match is None else match[1]
