"""Who tests the tests: stores with one bug each, which the contract must refuse."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from overwinter.errors import CorruptRecordError, RevisionConflictError
from overwinter.stores import Expect, MemoryStore, Store, Stored
from overwinter.testing import StoreContract


class Durable(MemoryStore):
    """A correct store that claims to keep its records; each bug below is put into it."""

    async def get(self, key: str) -> Stored | None:
        stored = self._records.get(key)
        if stored is not None and stored.data == b"damaged":
            raise CorruptRecordError("damaged")
        return stored

    def put_now(self, key: str, data: bytes, revision: bytes, expected: bytes | Expect) -> None:
        self._compare(key, expected)
        self._records[key] = Stored(data, revision)

    async def put(self, key: str, data: bytes, *, revision: bytes, expected: Any) -> None:
        await asyncio.sleep(0)
        self.put_now(key, data, revision, expected)


class LowersKeys(Durable):
    async def get(self, key):
        return await super().get(key.lower())

    async def head(self, key):
        return await super().head(key.lower())

    async def put(self, key, data, *, revision, expected):
        await super().put(key.lower(), data, revision=revision, expected=expected)

    async def delete(self, key, *, expected):
        await super().delete(key.lower(), expected=expected)


class Mapped(Durable):
    @staticmethod
    def name(key: str) -> str:
        raise NotImplementedError

    async def get(self, key):
        return await super().get(self.name(key))

    async def head(self, key):
        return await super().head(self.name(key))

    async def put(self, key, data, *, revision, expected):
        await super().put(self.name(key), data, revision=revision, expected=expected)

    async def delete(self, key, *, expected):
        await super().delete(self.name(key), expected=expected)


class TruncatesKeys(Mapped):
    name = staticmethod(lambda key: key[:255])


class StripsKeys(Mapped):
    name = staticmethod(lambda key: key.strip())


class CutsAtNul(Mapped):
    name = staticmethod(lambda key: key.partition("\0")[0])


class NormalisesKeys(Mapped):
    name = staticmethod(lambda key: __import__("unicodedata").normalize("NFC", key))


class ReplacesSlashes(Mapped):
    name = staticmethod(lambda key: key.replace("/", "_"))


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
    """A counter per key, which starts again after a delete."""

    def put_now(self, key, data, revision, expected):
        self._compare(key, expected)
        old = self._records.get(key)
        number = 1 if old is None else old.revision[0] + 1
        self._records[key] = Stored(data, bytes([number % 256]))


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


class KeepsOldRevision(Durable):
    def put_now(self, key, data, revision, expected):
        self._compare(key, expected)
        old = self._records.get(key)
        self._records[key] = Stored(data, revision if old is None else old.revision)


class EmptyIsAbsent(Durable):
    async def get(self, key):
        stored = await super().get(key)
        return stored if stored and stored.data else None


class StripsData(Durable):
    def put_now(self, key, data, revision, expected):
        super().put_now(key, data.rstrip(b"\0"), revision, expected)


class StaleHead(Durable):
    heads: dict[str, bytes | None]

    async def head(self, key):
        self.heads = getattr(self, "heads", {})
        return self.heads.setdefault(key, await super().head(key))


class TearsCancelledPuts(Durable):
    async def put(self, key, data, *, revision, expected):
        self._compare(key, expected)
        self._records[key] = Stored(data[: len(data) // 2], revision)
        await asyncio.sleep(0)
        self._records[key] = Stored(data, revision)


class LosesSubmits(Durable):
    def submit(self, key, data, *, revision, expected):
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class SwallowsConflicts(Durable):
    async def put(self, key, data, *, revision, expected):
        try:
            await super().put(key, data, revision=revision, expected=expected)
        except RevisionConflictError:
            return


class DamagedIsAbsent(Durable):
    async def get(self, key):
        try:
            return await super().get(key)
        except CorruptRecordError:
            return None


BUGS = [
    *(CreateOverwrites, ChecksThenWrites, CountsRevisions, CutsAtNul, DamagedIsAbsent, DeleteKeepsATombstone),
    *(
        DeleteRaisesOnAbsent,
        DeletesAnyRevision,
        EmptyIsAbsent,
        IgnoresExpected,
        KeepsOldRevision,
        LosesSubmits,
        LowersKeys,
    ),
    *(NormalisesKeys, PutCreatesWhatIsAbsent, ReplacesSlashes, StaleHead, StripsData, StripsKeys, SwallowsConflicts),
    *(TearsCancelledPuts, TruncatesKeys),
]


def failures(kind: type[MemoryStore]) -> list[str]:
    """Run the whole contract against *kind*; the names of the tests that it fails."""
    failed: list[str] = []
    for name in [name for name in dir(StoreContract) if name.startswith("test_")]:

        class Case(StoreContract):
            can_corrupt = True

            async def make_store(self) -> Store:
                self.store = getattr(self, "store", None) or kind()
                return self.store

            async def corrupt(self, key: str) -> None:
                self.store._records[key] = Stored(b"damaged", b"?")

        try:
            getattr(Case(), name)()
        except AssertionError:
            failed.append(name)
        except Exception as error:
            if type(error).__name__ != "SkipTest":
                failed.append(name)
    return failed


@pytest.mark.parametrize("kind", BUGS, ids=lambda kind: kind.__name__)
def test_a_store_with_a_bug_is_refused(kind: type[MemoryStore]) -> None:
    assert failures(kind), f"the contract does not notice {kind.__name__}"


def test_the_store_without_a_bug_is_accepted() -> None:
    assert failures(Durable) == []
