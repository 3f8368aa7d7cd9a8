"""Who tests the checker: histories that are linearizable and such that are not, and stores with a bug each."""

from __future__ import annotations

import asyncio
import math
import random
import time

import bugs
import pytest
import twins
from clients import Register, agent_client, store_client
from histories import AGENT, STORE, Recorder, check, read
from linearizable import Operation, find_order, refusal

from overwinter import InstanceManager, MemoryStore
from overwinter.errors import OutcomeUnknownError, StoreUnavailableError
from overwinter.testing import FaultyStore

NEVER = math.inf


def put(call, back, expected, new, outcome="done"):
    return Operation(call, back, ("put", expected, new, outcome if back < NEVER else "unknown", None))


def delete(call, back, expected, outcome="done"):
    return Operation(call, back, ("delete", expected, None, outcome if back < NEVER else "unknown", None))


def get(call, back, seen):
    return Operation(call, back, ("get", "done", seen))


def swap(call, back, new, seen=None):
    return Operation(call, back, ("swap", new, "done" if back < NEVER else "unknown", seen))


LINEARIZABLE = {
    "nothing": [],
    "one after the other": [put(1, 2, None, "a"), get(3, 4, "a"), put(5, 6, "a", "b"), get(7, 8, "b")],
    "a read beside a put sees the old": [put(1, 2, None, "a"), put(3, 9, "a", "b"), get(4, 5, "a"), get(6, 7, "b")],
    "a read beside a put sees the new": [put(1, 9, None, "a"), get(2, 3, "a")],
    "of two creates one conflicts": [put(1, 5, None, "a"), put(2, 4, None, "b", "conflict")],
    "an unknown one that took effect": [put(1, NEVER, None, "a"), get(2, 3, "a")],
    "an unknown one that takes effect late": [put(1, NEVER, None, "a"), get(2, 3, None), get(4, 5, "a")],
    "an unknown one that never does": [put(1, NEVER, None, "a"), get(2, 3, None), put(4, 5, None, "b"), get(6, 7, "b")],
    "a conflict tells of an unknown one": [put(1, NEVER, None, "a"), put(2, 3, None, "b", "conflict"), get(4, 5, "a")],
    "an unknown delete": [put(1, 2, None, "a"), delete(3, NEVER, "a"), get(4, 5, "a"), get(6, 7, None)],
    "a delete of what is absent": [delete(1, 2, "a"), delete(3, 4, "any"), get(5, 6, None)],
}  # fmt: skip
NOT = {
    "a stale read": [put(1, 2, None, "a"), put(3, 4, "a", "b"), get(5, 6, "a")],
    "a read that goes back": [put(1, 9, None, "a"), get(2, 3, "a"), get(4, 5, None)],
    "a lost update": [put(1, 2, None, "a"), put(3, 6, "a", "b"), put(4, 5, "a", "c")],
    "a lost create": [put(1, 2, None, "a"), get(3, 4, None)],
    "a value from nowhere": [put(1, 2, None, "a"), get(3, 4, "b")],
    "a value before it was put": [get(1, 2, "a"), put(3, 4, None, "a")],
    "a conflict without a reason": [put(1, 2, None, "a"), put(3, 4, "a", "b", "conflict")],
    "an unknown one that comes and goes": [put(1, NEVER, None, "a"), get(2, 3, "a"), get(4, 5, None)],
    "an unknown one against its condition": [put(1, 2, None, "a"), put(3, NEVER, None, "b"), get(4, 5, "b")],
    "a create that comes back after a delete": [
        put(1, 2, None, "a"), put(3, 4, "a", "b"), delete(5, 6, "b"), get(7, 8, "a"),
    ],
    "a delete of another revision": [put(1, 2, None, "a"), delete(3, 4, "b")],
}  # fmt: skip
SWAPS = {
    "a chain": ([swap(1, 2, "a", ("", 0)), swap(3, 4, "b", ("a", 1))], True),
    "an unknown one in between": ([swap(1, NEVER, "a"), swap(2, 3, "b", ("a", 1))], True),
    "a lost update": ([swap(1, 4, "a", ("", 0)), swap(2, 3, "b", ("", 0))], False),
    "a double effect": ([swap(1, 2, "a", ("", 0)), swap(3, 4, "b", ("a", 2))], False),
    "an unknown one, twice": ([swap(1, NEVER, "a"), swap(2, 3, "b", ("a", 1)), swap(4, 5, "c", ("a", 3))], False),
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_a_history_that_one_order_explains_is_accepted(name):
    history = LINEARIZABLE[name]
    for mixed in (history, history[::-1]):
        order = find_order(mixed, *STORE)
        assert isinstance(order, list)
        assert {each for each in history if each.back < NEVER} <= set(order) <= set(history)


@pytest.mark.parametrize("name", NOT)
def test_a_history_that_no_order_explains_is_refused(name):
    history = NOT[name]
    for mixed in (history, history[::-1]):
        assert "not linearizable" in refusal(mixed, *STORE)


@pytest.mark.parametrize("name", SWAPS)
def test_histories_of_agents(name):
    history, linearizable = SWAPS[name]
    assert (refusal(history, *AGENT) is None) == linearizable


def simulated(dice, operations, clients=8, unknown=0.02):
    """A history of one key, from operations that did take effect between call and return."""
    state, history, moment, running = None, [], 0, [None] * clients
    while len(history) < operations:
        moment += 1
        who = dice.randrange(clients)
        if running[who] is None:
            running[who] = (moment, dice.choice(("put", "put", "get")), dice.choice((state, state, None)))
            continue
        call, verb, expected = running[who]
        if verb == "get":
            history.append(get(call, moment + 1, state))
        elif dice.random() < unknown:
            history.append(put(call, NEVER, expected, f"v{moment}"))
        elif state == expected:
            state = f"v{moment}"
            history.append(put(call, moment + 1, expected, state))
        else:
            history.append(put(call, moment + 1, expected, "x", "conflict"))
        running[who] = None
    return history


def test_ten_thousand_operations_are_checked_in_seconds_and_one_wrong_reply_is_found(proof):
    dice = proof.chance()
    histories = [simulated(dice, 250) for _ in range(40)]
    began = time.process_time()
    for history in histories:
        assert refusal(history, *STORE) is None
    for history in histories:
        wrong = dice.choice([each for each in history if each.what[0] == "get" and each.what[-1] is not None])
        others = [each for each in history if each is not wrong]
        assert refusal([*others, get(wrong.call, wrong.back, "v0")], *STORE)
    assert time.process_time() - began < 20
    proof.count(operations=sum(map(len, histories)), wrong_replies_found=len(histories))


# ---------------------------------------------------------------- stores with a bug

REMOTE_TROUBLES = ("answer lost", "request lost", "late", "refused")


def enough(done):
    return done >= 50


async def disturb(server, dice, busy):
    """Lose and hold up a hundred requests to a server, and let late ones arrive, as long as somebody is busy."""
    for _ in range(100):
        for _ in range(dice.randrange(1, 20)):
            await asyncio.sleep(0)
        server.trouble = dice.choice(REMOTE_TROUBLES)
        if server.late and dice.random() < 0.5:
            server.late.pop(0)()
        while server.trouble is not None:
            if busy.done():
                return
            await asyncio.sleep(0)


async def verdict_on(kind, path, dice):
    """What is said about a store with eight clients; ``None`` if nothing is wrong."""
    remote = issubclass(kind, twins.Remote)
    store = kind(getattr(kind, "make_server", twins.Server)()) if remote else kind()
    recorder, keys, known = Recorder(path), ["a", "b"], {}
    async with store:

        async def all_of_them():
            async with asyncio.TaskGroup() as clients:
                for number in range(8):
                    mine = random.Random(f"{dice.random()} {number}")
                    clients.create_task(store_client(store, recorder, keys, known, enough, mine))

        busy = asyncio.create_task(all_of_them())
        if remote:
            await disturb(store.server, dice, busy)
        try:
            await busy
        except ExceptionGroup as errors:
            torn, others = errors.split(AssertionError)
            if others is not None:
                raise others from None
            return str(torn.exceptions[0])
    recorder.close()
    try:
        check(read([path], tombstones=remote), STORE)
    except AssertionError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", [MemoryStore, twins.Durable, twins.Connected, twins.Remote])
async def test_a_store_without_a_bug_is_accepted(kind, tmp_path, proof):
    rounds = proof.size(25, 250) if kind is MemoryStore else 5
    for number in range(rounds):
        assert await verdict_on(kind, tmp_path / f"{number}", proof.chance(number)) is None
    proof.count(operations=rounds * 8 * 50)


@pytest.mark.parametrize(
    "kind",
    [
        bugs.ChecksThenWrites, bugs.IgnoresExpected, bugs.CreateOverwrites, bugs.PutCreatesWhatIsAbsent,
        bugs.KeepsOldRevision, bugs.SwallowsConflicts, bugs.DeletesAnyRevision, bugs.DeleteRaisesOnAbsent,
        bugs.DeleteKeepsATombstone, bugs.StaleHead, bugs.TearsRecords, bugs.CallsALostAnswerDefinite,
        bugs.RetriesAsAnother, bugs.BelievesARead,
    ],
)  # fmt: skip
async def test_a_store_with_a_bug_is_refused(kind, tmp_path, proof):
    for number in range(20):
        if await verdict_on(kind, tmp_path / f"{number}", proof.chance(number)):
            proof.count(refused=1)
            return
    pytest.fail(f"eight clients of {kind.__name__} found nothing wrong")


# ---------------------------------------------------------------- managers on such a store


class Open(bugs.LetsEverybodyOwn):
    """Without a bug but for its claims: two managers in one process stand for two processes."""

    network = True


class OpenAndChecksThenWrites(Open, bugs.ChecksThenWrites):
    pass


class OpenAndSwallowsConflicts(Open, bugs.SwallowsConflicts):
    pass


async def refused(kind, path, dice, *, stale_reads=False, faults=(), **options):
    """What is said about two managers with four callers each; ``None`` if nothing is wrong."""
    store = FaultyStore(kind())
    recorder, keys = Recorder(path), ["a", "b"]
    async with (
        InstanceManager(Register, store=store, **options) as one,
        InstanceManager(Register, store=store, **options) as two,
        asyncio.TaskGroup() as callers,
    ):
        for number in range(8):
            mine = random.Random(f"{dice.random()} {number}")
            callers.create_task(agent_client((one, two)[number % 2], recorder, keys, enough, mine))
        for error, after in faults:
            for _ in range(dice.randrange(40)):
                await asyncio.sleep(0)
            store.fail("put", error, after=after)
    recorder.close()
    try:
        check(read([path], stale_reads=stale_reads), AGENT)
    except AssertionError as error:
        return str(error)
    return None


FAULTS = [
    (OutcomeUnknownError("reset"), True), (OutcomeUnknownError("reset"), False), (StoreUnavailableError("no"), False),
] * 3  # fmt: skip


@pytest.mark.parametrize("superseded", ["raise", "retry"])
@pytest.mark.parametrize("shared", [True, False])
async def test_two_managers_are_accepted(shared, superseded, tmp_path, proof):
    for number in range(proof.size(3, 100)):
        dice, options = proof.chance(number), {"shared": shared, "superseded": superseded, "stale_reads": not shared}
        assert await refused(Open, tmp_path / f"{number}", dice, faults=FAULTS, **options) is None


@pytest.mark.parametrize("kind", [OpenAndChecksThenWrites, OpenAndSwallowsConflicts])
async def test_managers_on_a_store_with_a_bug_are_refused(kind, tmp_path, proof):
    verdicts = [await refused(kind, tmp_path / f"{n}", proof.chance(n), shared=True) for n in range(5)]
    assert any(verdicts)
    proof.count(refused=1)


async def test_the_reads_of_a_manager_that_does_not_ask_the_store_are_stale(tmp_path, proof):
    """So it is promised of stores on the network; were it not so, the tests of ``shared=True`` would show nothing."""
    verdicts = [await refused(Open, tmp_path / f"{n}", proof.chance(n), superseded="retry") for n in range(5)]
    assert any(verdicts)
