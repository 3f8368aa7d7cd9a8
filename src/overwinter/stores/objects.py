"""Records as objects of a cloud's storage: S3, Google Cloud Storage, Azure Blob Storage, or servers like them.

This file knows the store protocol, and what to do when a condition failed. It does not know requests and their errors
(``_objects_bucket.py``), names (``_objects_names.py``), what is in an object (``_objects_frame.py``), how a client is
made (``_objects_client.py``), nor how a server is tried out (``_objects_probe.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import (
    CorruptRecordError,
    InvalidKeyError,
    OutcomeUnknownError,
    RevisionConflictError,
    StateTooLargeError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from ._objects_bucket import Bucket, Held, RefusedError
from ._objects_client import address_of, connect, durability_of
from ._objects_frame import (
    ABSENT,
    MAX_DATA,
    MAX_KEY,
    MAX_REVISION,
    TOMBSTONE,
    Seen,
    head_limit,
    key_in,
    look,
    record,
    tombstone,
)
from ._objects_names import folder_of, is_hashed, is_name, is_whole_folder, key_of, name_of
from ._objects_probe import probe
from ._objects_threads import about_to_use
from .base import Durability, Expect, Revision, Store, Stored

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

__all__ = ["ObjectStore"]

T = TypeVar("T")

_REMEMBERED = 10_000  # versions that were seen, some 200 bytes each
_TOLD = 5  # damaged objects that an error names
_ATTEMPTS = 4  # of a write that was refused though what is there is what it expected


class ObjectStore(Store):
    """Keep each record in an object of its own, written only over the version that was read.

    *target* is a URL like ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``, or a
    client of obstore. *options* are those of obstore's client for that provider; credentials come from the environment
    if they are not among them. *timeout* is how many seconds a call may take, *concurrency* how many requests are on
    their way at once. *durability* is for a server at an address of your own, of which ``HOST`` is taken for granted.

    Promises:

    * A put that returned is stored as the provider stores objects: in several copies, in a cloud.
    * Compare and write are one step, by ``If-Match`` and ``If-None-Match``, or Google's generations. A server that
      doesn't keep these conditions is found out when the store is opened, and refused.
    * A deleted record leaves a tombstone of 32 bytes, and who creates it anew does so over this very tombstone: a
      request that was delayed since before the delete can't bring the old record back.
    * A write that landed although its reply was lost is recognised when it is repeated by the client. If others wrote
      over it meanwhile, its outcome is unknown.
    * Only an answer that names the object as missing is *absent*. A missing bucket is an error.
    * Cancelling a caller is safe: what it began happens or doesn't, whole.

    Caveats:

    * A request takes tens of milliseconds and costs money. Each put is one; the first put of a record that this store
      hasn't read or written lately is two, and a re-creation three.
    * Tombstones stay. No rule may remove objects by age: it would remove agents that are merely idle.
    * obstore works in threads of its own, which no fork takes along: where a process has opened an ObjectStore, its
      forked children can't, and are told so. Start them by spawn, or open stores in the children only.
    """

    network = True
    durability = Durability.REPLICATED

    def __init__(
        self,
        target: str | S3Store | GCSStore | AzureStore,
        *,
        timeout: float = 10.0,
        concurrency: int = 32,
        durability: Durability | None = None,
        **options: Any,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")
        client = connect(target, timeout, options)
        self.timeout = timeout
        self.durability = durability_of(client) if durability is None else durability
        self._bucket = Bucket(client, address_of(target))
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._puts: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._bucket.where!r})"

    async def open(self) -> None:
        about_to_use()
        self._slots = asyncio.Semaphore(self._concurrency)  # of this event loop
        self._seen.clear()
        async with self._deadline(), self._slots:
            await probe(self._bucket)

    async def close(self) -> None:
        """Wait for the puts that were submitted. A later ``async with`` opens it again."""
        puts, self._puts = self._puts, set()
        if self._pid == os.getpid() and puts:
            await asyncio.wait(puts)  # each has its deadline

    # ------------------------------------------------------------ the three verbs

    async def get(self, key: str) -> Stored | None:
        self._check(key)
        async with self._deadline(), self._slots:
            seen, held = await self._look(key, whole=True)
        if seen.damage:
            raise self._corrupt(key, seen)
        if held is None or seen.revision is None:
            return None
        return Stored(held.content[seen.begin :], seen.revision)

    async def head(self, key: str) -> Revision | None:
        self._check(key)
        async with self._deadline(), self._slots:
            seen, _ = await self._look(key)
        if seen.damage:
            raise self._corrupt(key, seen)
        return seen.revision

    async def put(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> None:
        self._check_put(key, data, revision, expected)
        await self._put_in_time(key, bytes(data), bytes(revision), expected)

    async def delete(self, key: str, *, expected: Revision | Expect) -> None:
        self._check(key)
        async with self._deadline() as fate, self._slots:
            await self._delete(key, expected, fate)

    def submit(self, key: str, data: bytes, *, revision: Revision, expected: Revision | Expect) -> asyncio.Future[None]:
        self._check_put(key, data, revision, expected)  # here: a close may come before the task's first step
        put = asyncio.ensure_future(self._put_in_time(key, bytes(data), bytes(revision), expected))
        self._puts.add(put)
        put.add_done_callback(self._puts.discard)
        return put

    async def in_time(self, operation: Awaitable[T], late: type[StoreError] = StoreUnavailableError) -> T:
        return await operation  # every call here has its own deadline, and knows better what became of it

    # ------------------------------------------------------------ listing

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield the keys that begin with *prefix*: a request per 1,000 objects of an agent, and one per long key.

        Objects with other names than this store gives are left out, and so are empty ones.

        Raises:
            StoreUnavailableError: the server is out of reach, or an object's name can't be listed, which is told then.
            CorruptRecordError: some objects with hashed names can't be told the key of. It comes last, when all other
                keys were yielded.
        """
        damaged: list[str] = []
        number = 0
        async for page in self._pages(prefix):
            for key in filter(None, map(key_of, page)):
                if key.startswith(prefix):
                    yield key
            hashed = [name for name in page if is_hashed(name)]
            for begin in range(0, len(hashed), self._concurrency):
                self._check_open()  # it may have been closed since the last yield
                names = hashed[begin : begin + self._concurrency]
                found = await self._keys_of(names)
                lost = [name for name, key in zip(names, found, strict=True) if key is None]
                number += len(lost)
                damaged += lost[: _TOLD - len(damaged)]
                for key in filter(None, found):
                    if key.startswith(prefix):
                        yield key
        if number:
            raise CorruptRecordError(
                f"{number} objects of {self._bucket.where} can't be told the key of, all others were listed: "
                f"{'; '.join(damaged)}{' …' if number > len(damaged) else ''}. They are left as they are: restore them"
            )

    async def count(self, prefix: str = "") -> int:
        if is_whole_folder(prefix):
            return sum([sum(map(is_name, page)) async for page in self._pages(prefix)])
        return await super().count(prefix)

    async def _pages(self, prefix: str) -> AsyncIterator[list[str]]:
        pages = self._bucket.pages(folder_of(prefix))
        while True:
            self._check(prefix)
            async with self._deadline(), self._slots:
                page = await anext(pages, None)
            if page is None:
                return
            # A folder that a console makes is an empty object, and seen without the slash at the end of its name.
            yield [name for name, size in page if size not in (0, TOMBSTONE)]

    async def _keys_of(self, names: list[str]) -> list[str | None]:
        try:
            async with asyncio.TaskGroup() as group:  # if one fails or the caller leaves, none goes on
                reads = [group.create_task(self._key_of(name)) for name in names]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [read.result() for read in reads]

    async def _key_of(self, name: str) -> str | None:
        """Return the key in the object with this hashed *name*; empty if it has gone, ``None`` if it is damaged."""
        async with self._slots, self._deadline():  # the wait is for calls that have deadlines, and isn't its own
            held = await self._bucket.read(name, head_limit(None))
        if held is None or held.size == TOMBSTONE:
            return ""
        key = key_in(held.content)
        return key if key is not None and name_of(key) == name else None

    # ------------------------------------------------------------ how it is done

    async def _look(self, key: str, *, whole: bool = False) -> tuple[Seen, Held | None]:
        held = await self._bucket.read(name_of(key), None if whole else head_limit(key))
        seen = ABSENT if held is None else look(key, held.content, held.size, held.tag)
        self._remember(key, seen)
        return seen, held

    async def _put_in_time(self, key: str, data: bytes, revision: Revision, expected: Revision | Expect) -> None:
        def fits(there: Seen) -> bool:
            return there.absent if expected is Expect.ABSENT else there.revision == expected

        async with self._deadline() as fate, self._slots:
            seen = self._seen.get(key, ABSENT)
            if expected is Expect.ABSENT:
                seen = seen if seen.absent else ABSENT  # a tombstone that was seen, or nothing; the server knows better
            elif seen.revision != expected:
                seen, _ = await self._look(key)
            await self._replace(key, record(key, revision, data), Seen({}, revision), seen, fits, fate)

    async def _delete(self, key: str, expected: Revision | Expect, fate: _Fate) -> None:
        seen = self._seen.get(key, ABSENT)
        if expected in (Expect.ANY, Expect.ABSENT) or seen.revision != expected:
            seen, _ = await self._look(key)
        mark = os.urandom(16)

        def fits(there: Seen) -> bool:
            return there.absent or expected is Expect.ANY or there.revision == expected

        await self._replace(key, tombstone(key, mark), Seen({}, mark=mark), seen, fits, fate)

    async def _replace(
        self, key: str, content: bytes, ours: Seen, seen: Seen, fits: Callable[[Seen], bool], fate: _Fate
    ) -> None:
        """Write *content* over what was *seen*, as long as that *fits*; *ours* is how it would be seen itself."""
        before = self._seen.get(key, seen)  # a create may know of a record, and let the server say if it is there still
        for attempt in range(_ATTEMPTS):
            if not fits(seen):
                raise self._corrupt(key, seen) if seen.damage else _conflict(key)
            if ours.mark and seen.absent:
                return  # deleted already
            if attempt:  # it was refused and still fits: a server that is busy with this object, or a lost race
                await asyncio.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311  # to part two writers
            fate.open = True
            try:
                tag = await self._bucket.write(name_of(key), content, seen.tag)
            except RefusedError as refusal:
                seen = await self._after_refusal(key)
                fate.open = False
                if (seen.revision, seen.mark) == (ours.revision, ours.mark):
                    return  # it had landed, and what was refused was a repetition
                if ours.mark and seen.absent:
                    return  # deleted, by whomever
                if refusal.repeated and (fits(seen) or seen.tag != before.tag):
                    # The first attempt may have landed and been written over, or be on its way. It did not, and won't,
                    # only if what is there was there before it and never fitted.
                    raise OutcomeUnknownError(
                        f"perhaps stored: key {key!r}: the client repeated the write and was refused. Only another "
                        "conditional put can tell"
                    ) from None
            else:
                self._remember(key, Seen(tag, ours.revision, ours.mark))
                return
        raise StoreUnavailableError(
            f"not changed: key {key!r} is too busy: the server refuses to change it, or others do all the time; "
            "try again later"
        )

    async def _after_refusal(self, key: str) -> Seen:
        try:
            seen, _ = await self._look(key)
        except StoreUnavailableError as error:
            # The client may have repeated a write that had landed. Only what is there could tell, and it isn't known.
            raise OutcomeUnknownError(f"perhaps stored: {error}") from None
        return seen

    @contextlib.asynccontextmanager
    async def _deadline(self) -> AsyncGenerator[_Fate]:
        """The time that a call has. Its wait for a slot is part of it, unless it took that first."""
        fate = _Fate()
        try:
            async with asyncio.timeout(self.timeout):
                yield fate
        except TimeoutError:
            late = f"{self._bucket.where} did not answer within {self.timeout:g} s"
            raise (OutcomeUnknownError if fate.open else StoreUnavailableError)(late) from None

    def _remember(self, key: str, seen: Seen) -> None:
        self._seen.pop(key, None)
        if seen.tag and not seen.damage:
            self._seen[key] = seen
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)

    def _check(self, key: str) -> None:
        self._check_open()
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            raise InvalidKeyError("a key holds a lone surrogate: decode it as UTF-8 at its source") from None
        if size > MAX_KEY:
            raise InvalidKeyError(f"a key has more than {MAX_KEY} bytes: use a hash or a shorter id")

    def _check_put(self, key: str, data: bytes, revision: Revision, expected: Revision | Expect) -> None:
        self._check(key)
        if len(revision) > MAX_REVISION:
            raise UsageError(f"the revision of key {key!r} has more than {MAX_REVISION} bytes: use 16 random ones")
        if len(data) > MAX_DATA:  # it could not be read again
            raise StateTooLargeError(
                f"the record of key {key!r} has {len(data):,} bytes; an ObjectStore takes {MAX_DATA:,}"
            )
        if expected is Expect.ANY:
            raise UsageError(
                f"a put of key {key!r} expects a revision or Expect.ABSENT: Expect.ANY is only for deleting"
            )

    def _corrupt(self, key: str, seen: Seen) -> CorruptRecordError:
        return CorruptRecordError(
            f"the object {self._bucket.where}/{name_of(key)} of key {key!r} {seen.damage}: restore it from a backup, "
            "or delete the agent"
        )


class _Fate:
    """Whether a write is on its way whose outcome isn't known."""

    def __init__(self) -> None:
        self.open = False


def _conflict(key: str) -> RevisionConflictError:
    return RevisionConflictError(f"not stored: key {key!r} is not at the expected revision; read it again first")
