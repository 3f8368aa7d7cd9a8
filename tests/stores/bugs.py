"""Stores with one bug each, of the kind that people write. See test_contract_bites.py for how each is found."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import os
import re
import threading
import time
import unicodedata
from pathlib import Path

from twins import Connected, Connection, Durable, Folder, Journal, Remote, Server

from overwinter.errors import CorruptRecordError, OutcomeUnknownError, RevisionConflictError, StoreUnavailableError
from overwinter.stores import Expect, Stored

# ---------------------------------------------------------------- keys


class Mapped(Durable):
    async def get(self, key):
        return await super().get(self.name(key))

    async def head(self, key):
        return await super().head(self.name(key))

    async def put(self, key, data, *, revision, expected):
        await super().put(self.name(key), data, revision=revision, expected=expected)

    async def delete(self, key, *, expected):
        await super().delete(self.name(key), expected=expected)


class LowersKeys(Mapped):
    name = staticmethod(str.lower)


class TruncatesKeys(Mapped):
    name = staticmethod(lambda key: key[:255])


class StripsKeys(Mapped):
    name = staticmethod(str.strip)


class CutsAtNul(Mapped):
    name = staticmethod(lambda key: key.partition("\0")[0])


class NormalisesKeys(Mapped):
    name = staticmethod(lambda key: unicodedata.normalize("NFC", key))


class ReplacesSlashes(Mapped):
    name = staticmethod(lambda key: key.replace("/", "_"))


# ---------------------------------------------------------------- conditions


class ChecksThenWrites(Durable):
    async def put(self, key, data, *, revision, expected):
        self._compare(key, expected)
        await asyncio.sleep(0)
        self._records[key] = Stored(data, revision)


class IgnoresExpected(Durable):
    def put_now(self, key, data, revision, expected):
        self._records[key] = Stored(data, revision)


class CreateOverwrites(Durable):
    def put_now(self, key, data, revision, expected):
        if expected is not Expect.ABSENT:
            self._compare(key, expected)
        self._records[key] = Stored(data, revision)


class PutCreatesWhatIsAbsent(Durable):
    def put_now(self, key, data, revision, expected):
        if key in self._records:
            self._compare(key, expected)
        self._records[key] = Stored(data, revision)


class CountsRevisions(Durable):
    """What is compared is a counter per key, which starts again after a delete."""

    def __init__(self):
        super().__init__()
        self.numbers = {}

    def put_now(self, key, data, revision, expected):
        found = self._records.get(key)
        number = 0 if found is None else self.numbers[found.revision]
        if number != (0 if expected is Expect.ABSENT else self.numbers.get(expected)):
            raise RevisionConflictError("somebody else wrote")
        self.numbers[revision] = number + 1
        self._records[key] = Stored(data, revision)


class HashesRevisions(Durable):
    """As an object store's ETag: a hash of the content, so that the same content is the same revision."""

    def put_now(self, key, data, revision, expected):
        wanted = expected if expected is Expect.ABSENT else self.tag(expected)
        found = self._records.get(key)
        if (Expect.ABSENT if found is None else self.tag(found.revision)) != wanted:
            raise RevisionConflictError("somebody else wrote")
        self.tags[revision] = data
        self._records[key] = Stored(data, revision)

    def __init__(self):
        super().__init__()
        self.tags = {}

    def tag(self, revision):
        return self.tags.get(revision, revision)


class ComparesPaddedRevisions(Durable):
    """As a column of fixed width does."""

    def _compare(self, key, expected):
        found = self._revision(key)
        if isinstance(expected, bytes) and found is not None and found.rstrip(b"\0") == expected.rstrip(b"\0"):
            return
        super()._compare(key, expected)


class KeepsOldRevision(Durable):
    def put_now(self, key, data, revision, expected):
        self._compare(key, expected)
        old = self._records.get(key)
        self._records[key] = Stored(data, revision if old is None else old.revision)


class SwallowsConflicts(Durable):
    async def put(self, key, data, *, revision, expected):
        with contextlib.suppress(RevisionConflictError):
            await super().put(key, data, revision=revision, expected=expected)


class CutsRevisions(Durable):
    def put_now(self, key, data, revision, expected):
        super().put_now(key, data, revision[:16], expected[:16] if isinstance(expected, bytes) else expected)


# ---------------------------------------------------------------- deletes


class DeletesAnyRevision(Durable):
    async def delete(self, key, *, expected):
        self._records.pop(key, None)


class DeleteRaisesOnAbsent(Durable):
    async def delete(self, key, *, expected):
        if key not in self._records:
            raise RevisionConflictError("absent")
        await super().delete(key, expected=expected)


class DeleteKeepsATombstone(Durable):
    async def delete(self, key, *, expected):
        await super().delete(key, expected=expected)
        self._records[key] = Stored(b"", b"tombstone")


# ---------------------------------------------------------------- data


class EmptyIsAbsent(Durable):
    async def get(self, key):
        stored = await super().get(key)
        return stored if stored and stored.data else None


class StripsData(Durable):
    def put_now(self, key, data, revision, expected):
        super().put_now(key, data.rstrip(b"\0"), revision, expected)


class StaleHead(Durable):
    heads = None

    async def head(self, key):
        self.heads = self.heads or {}
        return self.heads.setdefault(key, await super().head(key))


class DamagedIsAbsent(Durable):
    async def get(self, key):
        try:
            return await super().get(key)
        except CorruptRecordError:
            return None


class CreatesOverDamage(Durable):
    def put_now(self, key, data, revision, expected):
        found = self._records.get(key)
        if found is not None and found.data == b"damaged" and expected is Expect.ABSENT:
            del self._records[key]
        super().put_now(key, data, revision, expected)


class ReadsBeforeItDeletes(Durable):
    async def delete(self, key, *, expected):
        await self.get(key)
        await super().delete(key, expected=expected)


class DeletesDamageAtAnyRevision(Durable):
    async def delete(self, key, *, expected):
        found = self._records.get(key)
        if found is not None and found.data == b"damaged":
            expected = Expect.ANY
        await super().delete(key, expected=expected)


class TearsRecords(Durable):
    """Data and revision are two writes."""

    async def put(self, key, data, *, revision, expected):
        key.encode()
        self.put_now(key, data, revision, expected)
        old = self._records[key]
        self._records[key] = Stored(old.data[: len(data) // 2], revision)
        await asyncio.sleep(0)
        self._records[key] = Stored(data, revision)


# ---------------------------------------------------------------- batches and lives


class LosesSubmits(Durable):
    def submit(self, key, data, *, revision, expected):
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class FetchesNothing(Durable):
    def fetch(self, key):
        nothing = asyncio.get_running_loop().create_future()
        nothing.set_result(None)
        return nothing


class FetchesDamageAsAbsent(Durable):
    def fetch(self, key):
        async def fetched():
            with contextlib.suppress(CorruptRecordError):
                return await self.get(key)

        return asyncio.ensure_future(fetched())


class BeginsToGetWhatWasThereFirst(Durable):
    first = None

    def begin_get(self, key, done):
        self.first = self.first or self._records.get(key)
        asyncio.get_running_loop().call_soon(done, self.first, None)


class TellsAGetAtOnce(Durable):
    def begin_get(self, key, done):
        done(self._records.get(key), None)


class BeginsAndStoresNothing(Durable):
    def begin_put(self, key, data, *, revision, expected, done):
        asyncio.get_running_loop().call_soon(done, None)


class BeginsWithoutACondition(Durable):
    def begin_put(self, key, data, *, revision, expected, done):
        self._records[key] = Stored(data, revision)
        asyncio.get_running_loop().call_soon(done, None)


class BeginsOverDamage(Durable):
    def begin_put(self, key, data, *, revision, expected, done):
        found = self._records.get(key)
        if found is not None and found.data == b"damaged":
            del self._records[key]
        super().begin_put(key, data, revision=revision, expected=expected, done=done)


class TellsAtOnce(Durable):
    def begin_put(self, key, data, *, revision, expected, done):
        try:
            self.put_now(key, data, revision, expected)
        except RevisionConflictError as error:
            done(error)
        else:
            done(None)


class TellsConflictsTwice(Durable):
    """Once where it is found, and once where the task ends."""

    def begin_put(self, key, data, *, revision, expected, done):
        async def put():
            try:
                await self.put(key, data, revision=revision, expected=expected)
            except RevisionConflictError as error:
                done(error)
                raise

        asyncio.ensure_future(put()).add_done_callback(lambda task: done(task.exception()))


class NeverTellsAConflict(Durable):
    def begin_put(self, key, data, *, revision, expected, done):
        put = self.submit(key, data, revision=revision, expected=expected)
        put.add_done_callback(lambda put: put.exception() or done(None))


class CancelsWithItsCaller(Connected):
    def submit(self, key, data, *, revision, expected):
        put = super().submit(key, data, revision=revision, expected=expected)
        caller = asyncio.current_task()
        caller.add_done_callback(lambda task: task.cancelled() and put.cancel())
        return put


class BatchFailsAsAWhole(Journal):
    def decide(self, batch):
        landed, answers = super().decide(batch)
        error = next((error for _, error in answers if error is not None), None)
        return ([], [(done, error) for done, _ in answers]) if error else (landed, answers)


class DecidesABatchByItsBegin(Journal):
    """Conditions are checked against what is stored, not against what came before in the same batch."""

    def decide(self, batch):
        landed, answers = [], []
        for each in batch:
            more = super().decide([each])
            landed += more[0]
            answers += more[1]
        return landed, answers


class DropsWhatIsQueuedAtClose(Journal):
    async def close(self):
        if self.flusher is not None:
            self.flusher.cancel()
        await asyncio.sleep(0.01)
        self.file.close()


class LeaksOpenFiles(Journal):
    async def close(self):
        os.dup(self.file.fileno())
        await super().close()


class OpensTwice(Connected):
    async def __aenter__(self):
        entered = await super().__aenter__()
        if self._leases > 1:
            await self.open()
        return entered


class ClosesWithTheFirst(Durable):
    closed = False

    async def open(self):
        self.closed = False

    async def __aexit__(self, *exc):
        await super().__aexit__(*exc)
        self.closed = True

    async def put(self, key, data, *, revision, expected):
        if self.closed:
            raise StoreUnavailableError("closed")
        await super().put(key, data, revision=revision, expected=expected)


class AbsentWhenClosed(Durable):
    async def get(self, key):
        return await super().get(key) if self._leases else None


class FailsOddlyWhenClosed(Connected):
    def _check_open(self):
        if not self._leases:
            raise AttributeError("'NoneType' object has no attribute 'send'")


class LetsEverybodyOwn(Durable):
    async def claim(self, name, *, shared, wait):
        return


# ---------------------------------------------------------------- cancellation


class TearsCancelledPuts(Durable):
    async def put(self, key, data, *, revision, expected):
        self._compare(key, expected)
        self._records[key] = Stored(data[: len(data) // 2], revision)
        await asyncio.sleep(0)
        self._records[key] = Stored(data, revision)


class LeavesTheLockLocked(Connected):
    async def ask(self, work):
        await self.lock.acquire()
        try:
            await asyncio.sleep(0)
            answer = work()
        except RevisionConflictError:
            self.lock.release()
            raise
        self.lock.release()
        return answer


class AnswersTheNextCaller(Connected):
    """A cancelled call leaves its answer on the connection, and whoever comes next reads it."""

    async def ask(self, work):
        async with self.lock:
            self.connection = self.connection or Connection()
            self.connection.ask(work)
            return await self.connection.answer()


class SwallowsCancellation(Connected):
    async def ask(self, work):
        asking = asyncio.ensure_future(super().ask(work))
        while not asking.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([asking])
        return asking.result()


class StaysLoggedInWhenOpeningIsCancelled(Connected):
    async def log_in(self):
        if self.held:
            raise StoreUnavailableError("somebody is logged in")
        self.held = True
        await asyncio.sleep(0)
        await asyncio.sleep(0)


class StaysLoggedInWhenClosingIsCancelled(Connected):
    async def close(self):
        await asyncio.sleep(0)
        self.held = False


# ---------------------------------------------------------------- listing


class ListsWhatIsDeleted(Durable):
    gone = ()

    async def delete(self, key, *, expected):
        await super().delete(key, expected=expected)
        self.gone = (*self.gone, key)

    def after(self, last, prefix):
        keys = sorted({*self._records, *self.gone})
        return [key for key in keys if key.startswith(prefix) and (last is None or key > last)][: self.page]


class ListsOnePage(Durable):
    page = 1000

    async def keys(self, prefix=""):
        for key in self.after(None, prefix):
            yield key


class SkipsAKeyPerPage(Durable):
    def after(self, last, prefix):
        keys = super().after(last, prefix)
        return keys if last is None else keys[1:]


class RepeatsAKeyPerPage(Durable):
    async def keys(self, prefix=""):
        last, page = None, self.after(None, prefix)
        while page:
            for key in page:
                yield key
            page = self.after(last, prefix)
            last = page[-1] if page and page[-1] != last else last
            if len(page) < self.page:
                break


class ListsByOffset(Durable):
    """Pages by number: what is deleted meanwhile moves the others up, and the next page begins too late."""

    async def keys(self, prefix=""):
        offset = 0
        while page := sorted(key for key in self._records if key.startswith(prefix))[offset : offset + self.page]:
            for key in page:
                yield key
            offset += len(page)


class ListsALiveDictionary(Durable):
    async def keys(self, prefix=""):
        for key in self._records:
            if key.startswith(prefix):
                yield key


class PrefixIsAPattern(Durable):
    """LIKE without an ESCAPE."""

    def after(self, last, prefix):
        pattern = re.escape(prefix).replace("%", ".*").replace("_", ".")
        keys = sorted(key for key in self._records if re.match(pattern, key, re.DOTALL))
        return [key for key in keys if last is None or key > last][: self.page]


class PrefixIsAGlob(Durable):
    def after(self, last, prefix):
        keys = sorted(key for key in self._records if fnmatch.fnmatchcase(key, prefix + "*"))
        return [key for key in keys if last is None or key > last][: self.page]


class CountsEverything(Durable):
    async def count(self, prefix=""):
        return len(self._records)


class CountsWhatWasEverPut(Durable):
    ever = frozenset()

    def put_now(self, key, data, revision, expected):
        super().put_now(key, data, revision, expected)
        self.ever |= {key}

    async def count(self, prefix=""):
        return sum(key.startswith(prefix) for key in self.ever)


class KeepsTheLockOfAListing(Durable):
    lock = None

    async def open(self):
        self.lock = asyncio.Lock()

    async def keys(self, prefix=""):
        await self.lock.acquire()
        async for key in super().keys(prefix):
            try:
                yield key
            except GeneratorExit:
                return  # and the lock stays with it
        self.lock.release()

    async def put(self, key, data, *, revision, expected):
        async with self.lock:
            await super().put(key, data, revision=revision, expected=expected)


# ---------------------------------------------------------------- a server behind a network


class CallsALostAnswerDefinite(Remote):
    async def lost(self, work):
        raise StoreUnavailableError("the connection was reset")


class RetriesAsAnother(Remote):
    """A lost answer is asked for again, and the conflict with the own first try is reported as somebody else's."""

    async def put(self, key, data, *, revision, expected):
        try:
            await super().put(key, data, revision=revision, expected=expected)
        except OutcomeUnknownError:
            found = await self.get(key)
            if found is not None and found.revision != expected:
                raise RevisionConflictError("somebody else wrote") from None
            raise


class BelievesARead(Remote):
    """What a read doesn't show is taken for not stored, while the request is still on its way."""

    async def put(self, key, data, *, revision, expected):
        try:
            await super().put(key, data, revision=revision, expected=expected)
        except OutcomeUnknownError:
            found = await self.get(key)
            if found is None or found.revision != revision:
                raise StoreUnavailableError("not stored") from None


class RaisesWhatTheDriverRaises(Remote):
    async def lost(self, work):
        raise ConnectionResetError("by peer")


class ForgetfulServer(Server):
    def bury(self, key, found):
        pass


class Resurrects(Remote):
    """No tombstones: a create that was on its way when the key was deleted lands."""

    make_server = ForgetfulServer


# ---------------------------------------------------------------- files


class NeverFlushes(Folder):
    def flush(self, file):
        pass


class NeverFlushesTheFolder(Folder):
    def flush_folder(self):
        pass


class RenamesBeforeItFlushes(Folder):
    def write(self, path, content):
        temporary = self.temporary(path)
        with temporary.open("wb", buffering=0) as file:
            file.write(content)
            temporary.replace(path)
            self.flush(file)
        self.flush_folder()


class FlushesBeforeItWrites(Folder):
    """Python's buffer is written when the file is closed, after the fsync."""

    def write(self, path, content):
        temporary = self.temporary(path)
        with temporary.open("wb") as file:
            file.write(content)
            self.flush(file)
        temporary.replace(path)
        self.flush_folder()


class DeletesWithoutAFlush(Folder):
    def remove(self, path):
        path.unlink(missing_ok=True)


class OneTemporaryName(Folder):
    def temporary(self, path):
        return path.with_name("new")


class WithoutALock(Folder):
    @contextlib.contextmanager
    def locked(self, key, how):
        yield

    def write(self, path, content):
        time.sleep(0.01)  # a disk that takes its time
        super().write(path, content)


class LocksThreadsOnly(Folder):
    """Compare and write are one step among the threads of one process."""

    lock = threading.Lock()

    @contextlib.contextmanager
    def locked(self, key, how):
        with self.lock:
            yield


class ReadsWhatIsNotFlushed(Folder):
    """Readers take no lock, so they see a rename before the slow disk has flushed it."""

    def read_locked(self, key):
        return self.read(key)

    def write(self, path, content):
        temporary = self.temporary(path)
        with temporary.open("wb", buffering=0) as file:
            file.write(content)
            self.flush(file)
        temporary.replace(path)
        time.sleep(0.02)
        self.flush_folder()


class TornIsAbsent(Folder):
    def damaged(self):
        return None


class CachesFirst(Folder):
    """Who reads is served from a memory that is ahead of the disk."""

    def __init__(self, folder):
        super().__init__(folder)
        self.cache = {}

    async def put(self, key, data, *, revision, expected):
        found = await self.get(key)
        if (Expect.ABSENT if found is None else found.revision) != expected:
            raise RevisionConflictError("somebody else wrote")
        self.cache[key] = Stored(data, revision)
        await asyncio.sleep(0.005)
        await super().put(key, data, revision=revision, expected=expected)

    async def get(self, key):
        return self.cache.get(key) or await super().get(key)

    async def delete(self, key, *, expected):
        await super().delete(key, expected=expected)
        self.cache.pop(key, None)


class WritesBehind(Folder):
    """Acknowledges at once, and writes when there is time."""

    def __init__(self, folder):
        super().__init__(folder)
        self.queue, self.lock = [], threading.Lock()

    def write(self, path, content):
        with self.lock:
            self.queue.append((path, content))
        threading.Timer(0.05, self.drain).start()

    def drain(self):
        with self.lock:
            with contextlib.suppress(FileNotFoundError):  # the test was refused and its folder is gone
                for path, content in self.queue:
                    super().write(path, content)
            self.queue.clear()

    def read(self, key):
        with self.lock:
            for path, content in reversed(self.queue):
                if path.name == self.name(key):
                    size = content[0]
                    return Stored(content[33 + size :], content[1 : 1 + size])
        return super().read(key)


class WritesInPlace(Folder):
    """A kill between two writes leaves half of it."""

    def write(self, path, content):
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(content), 512):
                file.write(content[start : start + 512])
            self.flush(file)
        self.flush_folder()


# ---------------------------------------------------------------- a log


class AcknowledgesBeforeTheGroupIsFlushed(Journal):
    async def write(self, lines, landed, answers):
        self.file.write(lines)
        for key, stored in landed:
            self.apply(key, stored)
        self.tell(answers)
        await asyncio.sleep(0.005)  # for more that may come and share the flush
        await asyncio.to_thread(os.fdatasync, self.file.fileno())


class ServesWhatIsNotFlushed(Journal):
    async def write(self, lines, landed, answers):
        for key, stored in landed:
            self.apply(key, stored)
        await asyncio.sleep(0.002)
        await super().write(lines, landed, answers)


class NeverFlushesTheFolderOfItsLog(Journal):
    async def open(self):
        Path(self.path).touch()
        await super().open()
