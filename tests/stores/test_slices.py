"""A batch's callers are told in slices, so that the loop is never theirs for long; what they bring shares a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from overwinter.errors import OutcomeUnknownError, StoreUnavailableError
from overwinter.stores import Expect, SQLiteStore
from overwinter.stores._jobs import _SLICE, MAX_ROWS, NOBODY, Desk, Job
from overwinter.stores.base import Stored


class Worker:
    def start(self) -> None: ...

    def work(self, batch: list[Job]) -> None:
        for job in batch:
            job.answer()

    def rest(self) -> None: ...

    def stop(self) -> None: ...


class Loop(Desk):
    """A desk whose thread is the loop itself: a batch is answered when the test says so."""

    def __init__(self) -> None:
        super().__init__(Worker(), patience=20)
        self.handed: list[list[Job]] = []
        self.slices = 0

    def _tell_some(self) -> None:
        self.slices += 1
        super()._tell_some()

    def _begin(self) -> None:
        self._start_worker()

    def _hand_over(self, jobs: list[Job]) -> None:
        self.handed.append(jobs)

    def _withdraw(self, jobs: set[Job]) -> set[Job]:
        return set()  # what is handed over is begun

    def _dismiss(self) -> None:
        self._stop_worker()

    def answer(self) -> None:
        self._work(self.handed.pop(0))


def job(done: Callable[..., object], data: bytes = b"") -> Job:
    return Job("put", "key", NOBODY, data, b"", Expect.ABSENT, done)


async def passes(number: int = 1) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def opened() -> Loop:
    desk = Loop()
    await desk.open()
    return desk


async def end(desk: Loop) -> None:
    desk.abandon()
    await desk.join(20)


async def test_callers_are_told_some_in_each_pass_of_the_loop():
    desk, told = await opened(), []
    for number in range(3 * _SLICE):
        desk.send(job(lambda _, number=number: told.append(number)))
    await passes()
    desk.answer()
    counts = []
    while len(told) < 3 * _SLICE:
        await passes()
        counts.append(len(told))
    assert [count for count in counts if count] == [_SLICE, 2 * _SLICE, 3 * _SLICE]
    assert told == sorted(told)
    await passes(8)
    assert desk.slices == 3
    await end(desk)


async def test_one_large_state_is_a_slice_of_its_own():
    desk, told = await opened(), []
    for _ in range(3):
        desk.send(job(told.append, bytes(1_000_000)))
    await passes()
    desk.answer()
    await passes(2)
    assert 0 < len(told) < 3
    await passes(3)
    assert len(told) == 3
    await end(desk)


async def test_what_the_callers_of_a_batch_bring_is_handed_over_together():
    desk, told = await opened(), []

    def again(_: object) -> None:
        asyncio.get_running_loop().call_soon(desk.send, job(told.append))  # as a caller that is woken

    for _ in range(4 * _SLICE):
        desk.send(job(again))
    await passes()
    desk.answer()
    await passes(8)
    assert [len(jobs) for jobs in desk.handed] == [4 * _SLICE]
    await end(desk)


async def test_a_whole_batch_is_not_held_back():
    desk = await opened()
    for _ in range(20 * _SLICE):
        desk.send(job(lambda _: None))
    await passes()
    desk.answer()
    await passes()
    for _ in range(MAX_ROWS):
        desk.send(job(lambda _: None))
    await passes(2)
    assert [len(jobs) for jobs in desk.handed] == [MAX_ROWS]
    await end(desk)


async def test_a_large_state_that_was_read_is_a_slice_of_its_own():
    desk, told = await opened(), []
    for _ in range(3):
        desk.send(Job("get", "key", NOBODY, done=lambda *_: told.append(None)))
    await passes()
    for one in desk.handed[0]:
        one.value = Stored(bytes(1_000_000), b"")
        one.answered = True
    desk._settle(desk.handed[0])
    assert len(told) == 1
    await end(desk)


async def test_small_batches_that_come_together_are_no_larger_a_slice():
    desk, told = await opened(), []
    for _ in range(8):
        for _ in range(_SLICE):
            desk.send(job(told.append))
        await passes(2)
    while desk.handed:
        desk.answer()
    await passes()
    assert len(told) == _SLICE
    await passes(10)
    assert len(told) == 8 * _SLICE
    await end(desk)


async def test_one_that_raises_when_all_are_given_up_keeps_nobody_from_being_told():
    desk, told = await opened(), []

    def wrong(error: object) -> None:
        told.append(error)
        raise ZeroDivisionError

    for done in (told.append, wrong, told.append):
        desk.send(job(done))
    desk.abandon()
    desk.handed.clear()
    with pytest.raises(ZeroDivisionError):
        await desk.join(20)
    await passes(2)
    assert [type(error) for error in told] == [OutcomeUnknownError] * 3


async def test_what_is_held_back_is_handed_over_before_the_end():
    desk, told = await opened(), []
    for _ in range(3 * _SLICE):
        desk.send(job(lambda _: None))
    await passes()
    desk.answer()
    await passes()
    desk.send(job(told.append))
    desk.abandon()
    assert [len(jobs) for jobs in desk.handed] == [1]
    desk.answer()
    await desk.join(20)
    assert told == [None]


async def test_one_that_raises_keeps_nobody_from_being_told():
    desk, told, seen = await opened(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(type(context["exception"])))

    def wrong(_: object) -> None:
        raise ZeroDivisionError

    for number in range(3 * _SLICE):
        desk.send(job(wrong if number == 5 else told.append))
    await passes()
    desk.answer()
    await passes(8)
    assert len(told) == 3 * _SLICE - 1
    assert seen == [ZeroDivisionError]
    await end(desk)


async def test_closing_tells_those_who_were_not_told_yet_and_each_once():
    desk, told = await opened(), []
    for _ in range(3 * _SLICE):
        desk.send(job(told.append))
    await passes()
    desk.answer()
    await end(desk)
    await passes(8)
    assert told == [None] * (3 * _SLICE)


async def test_gets_tell_what_is_stored_or_the_error(tmp_path):
    async with SQLiteStore(tmp_path / "a.db") as store:
        await store.put("key", b"data", revision=bytes(16), expected=Expect.ABSENT)
        for key, data in (("key", b"data"), ("none", None)):
            got: asyncio.Future[tuple[object, object]] = asyncio.get_running_loop().create_future()
            assert store.begin_get(key, lambda *outcome, got=got: got.set_result(outcome)) is None
            found, error = await got
            assert (found and found.data, error) == (data, None)


async def test_a_fetch_of_ones_own_is_used_and_its_error_told(tmp_path):
    class Own(SQLiteStore):
        def fetch(self, key):
            future = asyncio.get_running_loop().create_future()
            future.set_exception(StoreUnavailableError(key))
            return future

    async with Own(tmp_path / "a.db") as store:
        outcomes: list[tuple[object, object]] = []
        assert store.begin_get("key", lambda *outcome: outcomes.append(outcome)) is not None
        await passes(2)
        (found, error), *_ = outcomes
        assert found is None
        assert isinstance(error, StoreUnavailableError)
