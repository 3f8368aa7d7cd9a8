"""Who tests the tests: stores with one bug each, which the contract must refuse, and for the right reason.

Each bug is put into a store that the contract accepts (twins.py), so that nothing else can be the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import unittest
from pathlib import Path
from typing import Any

import bugs
import pytest
import twins

from overwinter.errors import UsageError
from overwinter.stores import Store, Stored
from overwinter.testing import StoreContract, _contract_crash, _steps
from overwinter.testing._contract import promises


class InMemory(StoreContract):
    """Of a store whose data is in the object."""

    can_corrupt = True
    kind: type[Any] = twins.Durable
    folder: Path

    async def make_store(self) -> Store:
        if not hasattr(self, "store"):
            self.store = self.kind()
        store: Store = self.store
        return store

    async def corrupt(self, key: str) -> None:
        self.store._records[key] = Stored(b"damaged", b"?")


class OnServer(StoreContract):
    """Of a store whose data is on a server, with a network that can be cut."""

    kind: type[Any] = twins.Remote
    folder: Path

    async def make_store(self) -> Store:
        if not hasattr(self, "server"):
            self.server = getattr(self.kind, "make_server", twins.Server)()
        store: Store = self.kind(self.server)
        return store

    troubles = ("request lost", "answer lost", "late", "refused", "answer lost", "late")
    number = 0

    @contextlib.asynccontextmanager
    async def interrupt(self, store):
        self.number += 1
        self.server.trouble = self.troubles[self.number % len(self.troubles)]
        yield
        self.deliver()

    @contextlib.asynccontextmanager
    async def delay(self, store):
        self.server.trouble = "late"
        await asyncio.sleep(0)
        yield
        self.deliver()

    def deliver(self):
        self.server.trouble = None
        for work in self.server.late:
            work()
        self.server.late.clear()


class OnDisk(StoreContract):
    """Of a store in a folder."""

    can_corrupt = True
    kind: type[Any] = twins.Folder
    folder: Path

    def store_factory(self):
        return f"{self.kind.__module__}:{self.kind.__qualname__}", self.folder

    async def corrupt(self, key: str) -> None:
        path = self.folder / self.kind(self.folder).name(key)
        path.write_bytes(path.read_bytes()[:-1])


class InLog(StoreContract):
    """Of a store in a file that one object reads."""

    kind: type[Any] = twins.Journal
    folder: Path

    def store_factory(self):
        return f"{self.kind.__module__}:{self.kind.__qualname__}", self.folder / "log"

    async def make_store(self) -> Store:
        if not hasattr(self, "store"):
            self.store = self.kind(self.folder / "log")
        store: Store = self.store
        return store


CONTRACTS = ((twins.Durable, InMemory), (twins.Remote, OnServer), (twins.Folder, OnDisk), (twins.Journal, InLog))


def case_of(kind: type[Any], folder: Path) -> Any:
    contract = next(contract for base, contract in CONTRACTS if issubclass(kind, base))
    case = type(kind.__name__, (contract,), {"kind": kind})()
    case.folder = folder
    return case


def verdict(kind: type[Any], name: str, folder: Path) -> str | None:
    """What the test called *name* says of *kind*; ``None`` if it accepts it."""
    case = case_of(kind, folder)
    try:
        getattr(case, name)()
    except unittest.SkipTest as reason:
        if "strace is not installed" in str(reason):
            pytest.skip(str(reason))
        pytest.fail(f"{name} does not try {kind.__name__}: {reason}")
    except AssertionError as error:
        return str(error)
    except Exception as error:  # of the store itself
        return f"{type(error).__name__}: {error}"
    return None


class TestDurable(InMemory):
    pass


class TestConnected(InMemory):
    kind = twins.Connected


class TestRemote(OnServer):
    pass


class TestFolder(OnDisk):
    @pytest.fixture(autouse=True)
    def _folder(self, in_memory: Path) -> None:
        self.folder = in_memory


class TestJournal(InLog):
    @pytest.fixture(autouse=True)
    def _folder(self, in_memory: Path) -> None:
        self.folder = in_memory


# What is refused, by which test, and what it says then.
KEYS = "test_keys_are_only_data"
FLUSHED = "test_what_is_acknowledged_was_flushed"
READ = "test_what_managers_read_is_what_get_reads"
BEGUN = "test_what_managers_put_carries_its_outcome"
DAMAGED = "test_what_is_damaged_is_not_absent_to_managers"
KILLED = "test_a_kill_at_any_system_call_loses_nothing"
BUGS = [
    # keys
    (bugs.LowersKeys, KEYS, "taken for another key"),
    (bugs.TruncatesKeys, KEYS, "taken for another key"),
    (bugs.StripsKeys, KEYS, "taken for another key"),
    (bugs.CutsAtNul, KEYS, "taken for another key"),
    (bugs.NormalisesKeys, KEYS, "taken for another key"),
    (bugs.ReplacesSlashes, KEYS, "taken for another key"),
    # conditions
    (bugs.ChecksThenWrites, "test_of_two_who_change_one_wins", "exactly one of two racers must win"),
    (bugs.ChecksThenWrites, "test_counting_from_two_handles_is_exact", "increments that were acknowledged"),
    (bugs.IgnoresExpected, "test_a_stale_revision_does_not_overwrite", "must raise RevisionConflictError"),
    (bugs.CreateOverwrites, "test_a_create_does_not_overwrite", "a second create must raise"),
    (bugs.PutCreatesWhatIsAbsent, "test_a_revision_does_not_fit_what_is_absent", "a put that expects a revision must"),
    (bugs.CountsRevisions, "test_a_revision_does_not_come_back_after_a_delete", "from before the delete must raise"),
    (bugs.HashesRevisions, "test_the_same_data_is_another_revision", "a put from two puts ago must raise"),
    (bugs.ComparesPaddedRevisions, "test_revisions_are_only_data", "a put that expects"),
    (bugs.CutsRevisions, "test_revisions_are_of_any_length", "at another revision"),
    (bugs.KeepsOldRevision, "test_what_was_put_comes_back", "at another revision"),
    (bugs.SwallowsConflicts, "test_a_create_does_not_overwrite", "a second create must raise"),
    (bugs.WithoutALock, "test_of_two_who_change_one_wins", "exactly one of two racers must win"),
    (bugs.LocksThreadsOnly, "test_counting_from_two_processes_is_exact", "two processes were told of"),
    (bugs.DecidesABatchByItsBegin, "test_of_one_key_twice_in_a_batch_one_wins", "exactly one of three creates"),
    # deletes
    (bugs.DeletesAnyRevision, "test_delete", "a delete at a stale revision must raise"),
    (bugs.DeleteRaisesOnAbsent, "test_delete_is_idempotent", "absent"),
    (bugs.DeleteKeepsATombstone, "test_delete", "what was deleted must be absent"),
    (bugs.Resurrects, "test_a_late_create_does_not_bring_back_what_was_deleted", "brought back what was deleted"),
    # data
    (bugs.EmptyIsAbsent, "test_empty_data_is_not_absent", "was put and is absent"),
    (bugs.StripsData, "test_what_was_put_comes_back", "holds other data than was put"),
    (bugs.StaleHead, "test_what_was_put_comes_back", "head of .* differs from get"),
    (bugs.TearsRecords, "test_readers_see_whole_records_beside_a_writer", "a mix of two records"),
    (bugs.DamagedIsAbsent, "test_what_is_damaged_is_not_absent", "must raise CorruptRecordError, not return None"),
    (bugs.TornIsAbsent, "test_what_is_damaged_is_not_absent", "must raise CorruptRecordError, not return None"),
    (bugs.CreatesOverDamage, "test_what_is_damaged_is_not_absent", "a create over damaged data must raise"),
    (bugs.ReadsBeforeItDeletes, "test_what_is_damaged_can_be_deleted", "the only way out"),
    (bugs.DeletesDamageAtAnyRevision, "test_what_is_damaged_is_not_changed_at_a_stale_revision", "a delete at a stale"),
    # batches
    (bugs.LosesSubmits, "test_submitted_puts_carry_their_outcome", "was put and is absent"),
    (bugs.FetchesNothing, READ, "fetch gave None"),
    (bugs.BeginsToGetWhatWasThereFirst, READ, "begin_get told"),
    (bugs.TellsAGetAtOnce, READ, "in a later pass"),
    (bugs.FetchesDamageAsAbsent, DAMAGED, "fetch of damaged data must raise"),
    (bugs.BeginsAndStoresNothing, BEGUN, "was put and is absent"),
    (bugs.BeginsWithoutACondition, BEGUN, "it is a conflict"),
    (bugs.BeginsOverDamage, DAMAGED, "of a create over damaged data"),
    (bugs.TellsAtOnce, BEGUN, "in a later pass"),
    (bugs.TellsConflictsTwice, BEGUN, "must call done once, not 2 times"),
    (bugs.NeverTellsAConflict, BEGUN, "hangs in a begin_put: done is not called"),
    (bugs.BatchFailsAsAWhole, "test_a_conflict_in_a_batch_fails_alone", "because of another one in its batch"),
    (bugs.OneTemporaryName, "test_many_puts_at_once_all_land", "FileNotFound|Corrupt|than was put"),
    # lives
    (bugs.DropsWhatIsQueuedAtClose, "test_closing_does_what_was_begun", "without an outcome"),
    (bugs.LeaksOpenFiles, "test_opening_and_closing_leaks_nothing", "file descriptors"),
    (bugs.OpensTwice, "test_a_store_is_opened_once_and_closed_by_the_last", "is logged in"),
    (bugs.ClosesWithTheFirst, "test_a_store_is_opened_once_and_closed_by_the_last", "closed"),
    (bugs.AbsentWhenClosed, "test_after_close_nothing_is_reported_as_absent", "or tell the truth, not None"),
    (bugs.FailsOddlyWhenClosed, "test_before_open_nothing_is_reported_as_absent", "must raise UsageError, not Attr"),
    (bugs.LetsEverybodyOwn, "test_an_agent_name_has_one_owner", "a second claim"),
    # cancellation
    (bugs.TearsCancelledPuts, "test_a_put_may_be_cancelled_at_every_await", "must be whole or not at all"),
    (bugs.LeavesTheLockLocked, "test_a_get_may_be_cancelled_at_every_await", "hangs after a get that was cancelled"),
    (bugs.AnswersTheNextCaller, "test_a_get_may_be_cancelled_at_every_await", "after a cancelled get"),
    (bugs.AnswersTheNextCaller, "test_calls_beside_a_cancelled_one_get_their_own_answers", "beside cancelled gets"),
    (bugs.SwallowsCancellation, "test_a_head_may_be_cancelled_at_every_await", "must end with CancelledError"),
    (bugs.CancelsWithItsCaller, "test_a_submitted_put_survives_its_caller", "cancelled with its caller"),
    (bugs.StaysLoggedInWhenOpeningIsCancelled, "test_opening_may_be_cancelled_at_every_await", "is logged in"),
    (bugs.StaysLoggedInWhenClosingIsCancelled, "test_closing_may_be_cancelled_at_every_await", "is logged in"),
    # listing
    (bugs.ListsWhatIsDeleted, "test_keys_lists_what_is_there", "which are not there"),
    (bugs.ListsOnePage, "test_keys_go_on_beyond_a_page", "misses"),
    (bugs.SkipsAKeyPerPage, "test_keys_go_on_beyond_a_page", "misses"),
    (bugs.RepeatsAKeyPerPage, "test_keys_go_on_beyond_a_page", "more than once"),
    (bugs.ListsByOffset, "test_keys_that_come_and_go_meanwhile_hide_no_others", "there all the time"),
    (bugs.ListsALiveDictionary, "test_keys_that_come_and_go_meanwhile_hide_no_others", "changed"),
    (bugs.PrefixIsAPattern, "test_a_prefix_is_only_data", "which are not there"),
    (bugs.PrefixIsAGlob, "test_a_prefix_is_only_data", "which are not there|misses"),
    (bugs.CountsEverything, "test_keys_lists_what_is_there", "count"),
    (bugs.CountsWhatWasEverPut, "test_keys_lists_what_is_there", "count"),
    (bugs.KeepsTheLockOfAListing, "test_a_listing_may_be_left_early", "hangs"),
    # unknown outcomes
    (bugs.CallsALostAnswerDefinite, "test_a_put_that_is_retried_lands_once", "says that it was not stored, and it is"),
    (bugs.BelievesARead, "test_after_an_unknown_outcome_a_conditional_put_decides", "was not stored, and it is"),
    (bugs.RetriesAsAnother, "test_after_an_unknown_outcome_a_conditional_put_decides", "was not stored, and it is"),
    (
        bugs.RaisesWhatTheDriverRaises,
        "test_a_put_that_is_retried_lands_once",
        "must raise OutcomeUnknownError, not Conn",
    ),
    # crashes
    (bugs.WritesBehind, "test_a_kill_in_the_moment_of_the_acknowledgement_loses_nothing", "was acknowledged"),
    (bugs.WritesBehind, FLUSHED, "acknowledged before it was written"),
    (bugs.WritesInPlace, KILLED, "Corrupt"),
    (bugs.CachesFirst, "test_a_kill_in_the_moment_of_reading_loses_nothing", "what a kill then took back|another step"),
    (bugs.NeverFlushes, FLUSHED, "acknowledged before its file was flushed"),
    (bugs.FlushesBeforeItWrites, FLUSHED, "before its file was flushed"),
    (bugs.RenamesBeforeItFlushes, FLUSHED, "renamed before it was flushed"),
    (bugs.NeverFlushesTheFolder, FLUSHED, "before the folder of its file was flushed"),
    (bugs.DeletesWithoutAFlush, FLUSHED, "a delete was acknowledged"),
    (bugs.ReadsWhatIsNotFlushed, FLUSHED, "returned by a get before the folder"),
    (bugs.AcknowledgesBeforeTheGroupIsFlushed, FLUSHED, "acknowledged before its file was flushed"),
    (bugs.ServesWhatIsNotFlushed, FLUSHED, "returned by a get"),
    (bugs.NeverFlushesTheFolderOfItsLog, FLUSHED, "before the folder of its file was flushed"),
]


@pytest.mark.parametrize(("kind", "name", "why"), BUGS, ids=[f"{kind.__name__}-{name}" for kind, name, _ in BUGS])
def test_a_store_with_a_bug_is_refused(
    kind: type[Any], name: str, why: str, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "hangs" in why or "without an outcome" in why:
        monkeypatch.setattr(_steps, "_PATIENCE", 0.5)  # nothing comes, however long one waits
    said = verdict(kind, name, in_memory)
    assert said is not None, f"{name} does not notice {kind.__name__}"
    assert re.search(why, said), f"{name} refuses {kind.__name__} for another reason: {said}"


class SaysNoMoreThanUsage(twins.Durable):
    """A store of one's own, which has no reason to tell closed from misused."""

    def get_now(self, key):
        if not self._leases:
            raise UsageError("not open: use it in async with")
        return super().get_now(key)

    async def head(self, key):
        self.get_now(key)
        return await super().head(key)

    def put_now(self, key, data, revision, expected):
        self.get_now(key)
        super().put_now(key, data, revision, expected)

    async def delete(self, key, *, expected):
        if self._leases:
            await super().delete(key, expected=expected)
        else:
            self.get_now(key)


@pytest.mark.parametrize("when", ["before_open", "after_close"])
def test_a_store_that_is_not_open_may_raise_usage_error(
    when: str, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InMemory, "refuses_misuse", True)
    assert verdict(SaysNoMoreThanUsage, f"test_{when}_nothing_is_reported_as_absent", in_memory) is None


class FarAway(twins.Durable):
    async def get(self, key):
        await asyncio.sleep(0.001)
        return await super().get(key)


def test_a_store_that_is_only_slow_may_be_given_more_time(in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(FarAway, KEYS, in_memory) is None
    monkeypatch.setattr(InMemory, "limit", 0.1)
    said = verdict(FarAway, KEYS, in_memory)
    assert (
        said == "this test was not done in 0.1 s: if the store is right and only slow, give the contract a higher limit"
    )


@pytest.mark.parametrize("in_ci", [False, True])
@pytest.mark.parametrize("name", [FLUSHED, KILLED])
def test_without_strace_nothing_passes_unseen(
    name: str, in_ci: bool, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_contract_crash, "STRACE", ("no-such-strace",))
    monkeypatch.setenv("CI", "true" if in_ci else "")
    with pytest.raises(AssertionError if in_ci else unittest.SkipTest, match="strace is not installed"):
        getattr(case_of(bugs.NeverFlushes, in_memory), name)()


def test_a_kill_that_does_not_come_is_noticed(in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(strace: str, trace: Path, pid: int, call: str, number: int) -> list[str]:
        return killing(strace, trace, pid, call, number + 1000)

    killing = _contract_crash.killing
    monkeypatch.setattr(_contract_crash, "killing", late)
    monkeypatch.setattr(_contract_crash, "_ENOUGH", 20)
    assert re.search("nobody came to", verdict(twins.Folder, KILLED, in_memory) or "")


def test_each_bug_is_tried_and_each_test_is_there() -> None:
    there = {
        each
        for each in vars(bugs).values()
        if isinstance(each, type) and issubclass(each, Store) and each.__module__ == "bugs" and each is not bugs.Mapped
    }
    assert {kind for kind, _, _ in BUGS} == there
    assert all(why for _, _, why in BUGS)
    page = Path(__file__).parent.parent.parent / "docs" / "testing.md"
    assert f"with {len(there)} stores that have" in page.read_text()
    assert {name for _, name, _ in BUGS} <= set(promises(StoreContract))
