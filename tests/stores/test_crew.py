"""The threads of a FileStore: who does what, in which order, and how they end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

from overwinter.errors import OutcomeUnknownError, StoreUnavailableError
from overwinter.stores._crew import Crew
from overwinter.stores._jobs import MAX_ROWS, NOBODY, Job
from overwinter.stores._lane import Lane


class Worker:
    """Notes what is done when. Groups that are held wait for their event; what is left is left so often."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.order: list[bytes] = []
        self.held: dict[str, threading.Event] = {}
        self.left: dict[str, int] = {}
        self.now: set[str] = set()
        self.most = 0
        self.ended = 0
        self.fail: Exception | None = None
        self._guard = threading.Lock()

    def start(self) -> None:
        if self.fail is not None:
            raise self.fail

    def work(self, batch: list[Job]) -> None:
        group = batch[0].key[0]
        with self._guard:
            assert group not in self.now, "two threads in one group"
            self.now.add(group)
            self.most = max(self.most, len(self.now))
            self.batches.append([job.key for job in batch])
        if group in self.held:
            assert self.held[group].wait(20)
        with self._guard:
            self.now.remove(group)
            if self.left.get(group, 0) > 0:
                self.left[group] -= 1
                return
        for job in batch:
            self.order.append(job.data)
            job.answer(job.key)

    def rest(self) -> None:
        """Nothing."""

    def stop(self) -> None:
        self.ended += 1


def crew(worker: Worker, threads: int = 4, patience: float = 20) -> Crew:
    return Crew("test", worker, lambda key: key[0], threads=threads, patience=patience)


def send(desk: Crew | Lane, *keys: str) -> list[asyncio.Future[str]]:
    loop = asyncio.get_running_loop()
    jobs = [Job("put", key, loop.create_future(), b"%d" % number) for number, key in enumerate(keys)]
    for job in jobs:
        desk.send(job)
    return [job.future for job in jobs]


def held() -> int:
    """Bytes of records that jobs keep in memory."""
    return sum(len(job.data) for job in gc.get_objects() if isinstance(job, Job))


async def end(desk: Crew | Lane) -> None:
    desk.abandon()
    await desk.join(20)


async def test_groups_are_done_beside_each_other_and_their_jobs_in_order():
    worker = Worker()
    worker.held["a"] = threading.Event()
    desk = crew(worker)
    await desk.open()
    a = send(desk, "a1", "a2", "a1", "a1")
    b = send(desk, "b1", "b2")
    await asyncio.gather(*b)
    assert not any(future.done() for future in a)
    a += send(desk, "a3")
    await asyncio.sleep(0)  # it is handed over
    worker.held["a"].set()
    await asyncio.gather(*a)
    assert [batch for batch in worker.batches if batch[0][0] == "a"] == [["a1", "a2"], ["a1", "a3"], ["a1"]]
    await end(desk)
    assert worker.ended == 1


async def test_where_no_order_is_needed_what_is_left_waits_for_the_others_of_its_group():
    worker = Worker()
    worker.left["a"] = 1
    desk = Crew("test", worker, lambda key: key[0], threads=1, patience=20, order=False)
    await desk.open()
    await asyncio.gather(*send(desk, *(f"a{number}" for number in range(MAX_ROWS + 2))))
    assert [batch[0] for batch in worker.batches][:2] == ["a0", f"a{MAX_ROWS}"]
    await end(desk)


async def test_threads_are_started_when_they_are_needed_and_no_more_than_allowed():
    worker = Worker()
    before = threading.active_count()
    desk = crew(worker, threads=3)
    await desk.open()
    for _ in range(50):
        await asyncio.gather(*send(desk, "a"))
    assert threading.active_count() - before <= 2  # the first may still be on its way back to the queue
    worker.held = {group: threading.Event() for group in "abcdefgh"}
    futures = send(desk, *"abcdefgh")
    while worker.most < 3:
        await asyncio.sleep(0)
    for event in worker.held.values():
        event.set()
    await asyncio.gather(*futures)
    assert (worker.most, threading.active_count() - before) == (3, 3)
    await end(desk)
    assert threading.active_count() == before


async def test_a_group_that_must_wait_keeps_nobody_and_keeps_its_order():
    worker = Worker()
    worker.left["a"] = 31
    desk = crew(worker, threads=1)
    await desk.open()
    a = send(desk, "a1", "a1", "a2")
    await asyncio.gather(*send(desk, "b1", "c1"))
    await asyncio.gather(*a)
    order = [batch for batch in worker.batches if batch[0][0] == "a"]
    assert order[-2:] == [["a1", "a2"], ["a1"]]
    assert worker.order[-3:] == [b"0", b"2", b"1"]
    assert worker.left["a"] == 0
    await end(desk)


async def test_an_end_waits_for_what_was_begun_and_left():
    worker = Worker()
    worker.left = {"a": 5, "b": 3}
    desk = crew(worker, threads=2)
    await desk.open()
    futures = send(desk, "a1", "a1", "b1", "b1", "c1", "d1")
    await end(desk)
    await end(desk)
    assert [future.result() for future in futures] == ["a1", "a1", "b1", "b1", "c1", "d1"]
    assert (worker.ended, worker.now) == (1, set())


async def test_a_start_that_fails_leaves_nothing():
    worker = Worker()
    worker.fail = StoreUnavailableError("no disk")
    before = threading.active_count()
    with pytest.raises(StoreUnavailableError, match="no disk"):
        await crew(worker).open()
    assert (threading.active_count(), worker.ended) == (before, 1)


async def test_a_system_without_more_threads_makes_do_with_what_there_is(monkeypatch):
    worker = Worker()
    desk = crew(worker)
    await desk.open()

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    await asyncio.gather(*send(desk, *"abcdefgh"))
    await end(desk)


@pytest.mark.parametrize("kind", ["crew", "lane"])
async def test_a_thread_that_hangs_keeps_nothing_of_what_was_given_up_and_never_does_it(kind):
    worker, told = Worker(), []
    worker.held["a"] = threading.Event()
    desk = Lane("test", worker, patience=0.05) if kind == "lane" else crew(worker, threads=1, patience=0.05)
    await desk.open()
    (begun,) = send(desk, "a0")
    while not worker.now:
        await asyncio.sleep(0)
    jobs = [Job("put", key, NOBODY, bytes(1_000_000), done=told.append) for key in ("a1", "b1", "b2", "b2")]
    for job in jobs:
        desk.send(job)
    with pytest.raises(OutcomeUnknownError, match="did not answer"):
        await begun
    while len(told) < len(jobs):
        await asyncio.sleep(0.01)
    assert {type(error) for error in told} == {StoreUnavailableError}, "they were certainly not done"
    del job, jobs
    assert held() < 1_000_000
    worker.held["a"].set()
    await asyncio.gather(*send(desk, "c1"))
    assert worker.batches == [["a0"], ["c1"]]
    await end(desk)


async def test_what_was_left_and_then_given_up_is_not_kept():
    worker, told = Worker(), []
    worker.left["a"] = 1
    worker.held["b"] = threading.Event()
    desk = crew(worker, threads=1, patience=0.2)
    await desk.open()
    desk.send(Job("put", "a1", NOBODY, bytes(1_000_000), done=told.append))
    send(desk, "b1")  # takes the only thread, before that comes to `left` again
    while not told:
        await asyncio.sleep(0.01)
    assert type(told[0]) is StoreUnavailableError
    assert held() < 1_000_000
    worker.held["b"].set()
    await asyncio.gather(*send(desk, "a2"))
    assert worker.batches == [["a1"], ["b1"], ["a2"]]
    await end(desk)


async def test_a_job_that_nobody_answers_is_given_up():
    worker = Worker()
    worker.held["a"] = threading.Event()
    desk = Crew("test", worker, lambda key: key[0], threads=2, patience=0.01)
    await desk.open()
    begin = time.monotonic()
    (future,) = send(desk, "a1")
    with pytest.raises(Exception, match=r"did not answer within 0.01 s"):
        await future
    assert time.monotonic() - begin < 10
    worker.held["a"].set()
    await end(desk)
