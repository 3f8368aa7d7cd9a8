"""A manager, its store and its clock do what a plain model says, whatever is asked, fails and crashes meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import KEYS, Hooked, Late, Operation, Plain, Process, World

from overwinter import Interval
from overwinter.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from overwinter.persistence import Keeper
from overwinter.runtime import _ledger
from overwinter.runtime._ledger import Ledger
from overwinter.runtime._performer import Performer
from overwinter.runtime._registry import Registry
from overwinter.runtime._server import AgentServer
from overwinter.stores.base import Expect, Stored

QUIET = 1000  # passes of the loop after which something spins

TROUBLES = [
    "put is refused", "put is lost", "put lands unknown", "put is late", "put is odd", "put is refused", "put",
    "get fails", "get is odd", "get", "head fails", "head", "delete is refused", "delete lands unknown", "delete",
]  # fmt: skip

keys = st.sampled_from(["a", "a", "b"])
whos = st.integers(0, 1)
passes = st.sampled_from([QUIET, QUIET, QUIET, QUIET, 0, 1, 2, 3, 5, 8])
STEPS = ["mark", "wait", "stay", "commit", "raise", "call", "back", "tell"]
SCRIPTS = [script for length in range(4) for script in itertools.product(STEPS, repeat=length)]
scripts = st.sampled_from(SCRIPTS)  # one choice each, for choosing takes longer than doing
changes = st.sampled_from(
    [("mark",), ("mark",), ("mark", "wait"), ("wait", "mark"), ("mark", "raise"), ("mark", "stay", "mark")]
)

FAULTS = {  # how an operation fails: verb, error, and whether it is done all the same
    "put is refused": ("put", "down", lambda: StoreUnavailableError("refused"), False),
    "put is lost": ("put", "unknown", lambda: OutcomeUnknownError("lost"), False),
    "put lands unknown": ("put", "unknown", lambda: OutcomeUnknownError("landed"), True),
    "put is late": ("put", "unknown", lambda: Late("on its way"), False),
    "put is odd": ("put", "unknown", lambda: ConnectionError("odd"), True),
    "get fails": ("get", "get", lambda: StoreUnavailableError("no get"), False),
    "get is odd": ("get", "get", lambda: ConnectionError("odd"), False),
    "head fails": ("head", "head", lambda: StoreUnavailableError("no head"), False),
    "delete is refused": ("delete", "down", lambda: StoreUnavailableError("refused"), False),
    "delete lands unknown": ("delete", "unknown", lambda: OutcomeUnknownError("landed"), True),
}


class Loop(asyncio.SelectorEventLoop):
    """Its time is the model's: a timeout of asyncio's own comes when the clock is moved, and never sleeps."""

    clock: Any = None

    def time(self) -> float:
        return super().time() if self.clock is None else self.clock.monotonic()


class Machine(RuleBasedStateMachine):
    """Runs one pass of the loop after another; everything else is said by ``model.py``."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.world = World(self.loop)
        self.loop.clock = self.world.clock
        self.loop.set_exception_handler(self._reported)
        self.quiet = True
        self.steps = 0
        self.slots: list[Process | None] = [None]

    def _reported(self, _: object, context: dict[str, Any]) -> None:
        if "agent" not in context:
            self.world.wrong(f"the loop got {context}")

    # ------------------------------------------------------------ the loop

    def run(self, most: int) -> None:
        """Some passes of the loop, fewer if nothing is left to do."""
        left, ready = most, self.loop._ready

        def again() -> None:
            nonlocal left
            left -= 1
            self.quiet = not ready
            if left <= 0 or (self.quiet and most - left > 2):
                self.loop.stop()
            else:
                self.loop.call_soon(again)

        if most:
            self.loop.call_soon(again)
            self.loop.run_forever()
            if most == QUIET and left <= 0:
                self.world.wrong("the loop spins")

    def do(self, action: Any, *args: Any) -> Any:
        """Call something that needs a running loop."""
        outcome: list[Any] = []

        def act() -> None:
            try:
                outcome.append(action(*args))
            except BaseException as error:
                outcome.append(error)

        self.loop.call_soon(act)
        self.run(1)
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def wait_for(self, coroutine: Any) -> Any:
        task = self.loop.create_task(coroutine)
        for _ in range(50):
            self.run(20)
            if task.done():
                return task.result()
            self.advance(0.5)
        raise AssertionError(f"it hangs: {task}")

    def advance(self, seconds: float) -> None:
        def move() -> None:
            self.world.clock.advance(seconds)
            for process in self.world.processes:
                for operation in process.operations:
                    operation.leap = max(operation.leap, seconds)
                if not process.dead:
                    process.clock.advance(seconds)

        self.do(move)

    # ------------------------------------------------------------ processes

    @initialize(
        durability=st.sampled_from(["call", "call", "call", 1.0, "hibernate", "hibernate"]),
        cls=st.sampled_from([Plain, Hooked]),
        shared=st.booleans(),
        retry=st.booleans(),
        idle=st.sampled_from([5.0, None, 5.0]),
        turn=st.sampled_from([None, None, 8.0]),
        live=st.sampled_from([None, None, None, 1]),
        mailbox=st.sampled_from([None, None, None, 3]),
        patience=st.sampled_from([0.0, 2.0, 10.0, 0.0]),
    )
    def choose(self, durability, cls, shared, retry, idle, turn, live, mailbox, patience) -> None:
        interval = Interval(durability) if isinstance(durability, float) else durability
        self.options: dict[str, Any] = {"durability": interval, "store_patience": patience, "idle_timeout": idle}
        given = {"turn_timeout": turn, "max_live": live, "max_mailbox": mailbox}
        self.options |= {name: value for name, value in given.items() if value is not None}
        if shared:
            self.options["shared"] = True
            self.slots = [None, None]
        if retry:
            self.options["superseded"] = "retry"
        self.cls = cls
        self.wait_for(self.world.disk.__aenter__())

    def process(self, who: int) -> Process:
        """The process in a place, begun if there is none."""
        place = who % len(self.slots)
        found = self.slots[place]
        if found is None or found.closed or found.dead:
            found = self.slots[place] = Process(self.world, self.cls, self.options)
            self.world.processes.append(found)
            self.wait_for(found.manager.open())
        return found

    # ------------------------------------------------------------ what callers do

    @rule(who=whos, key=keys, script=scripts, n=passes)
    def call(self, who, key, script, n) -> None:
        process = self.process(who)
        self._start(process, Operation(process, "act", key, script), n, process.manager.call, key, self.cls.act)

    @rule(who=whos, key=keys, script=changes, n=passes)
    def change(self, who, key, script, n) -> None:
        self.call(who, key, script, n)

    @rule(who=whos, key=keys, script=st.sampled_from([(), (), ("wait",), ("raise",), ("wait", "raise")]), n=passes)
    def look(self, who, key, script, n) -> None:
        process = self.process(who)
        self._start(process, Operation(process, "look", key, script), n, process.manager.call, key, self.cls.look)

    @rule(who=whos, key=keys, script=st.sampled_from([(), ("wait",), ("wait", "raise"), ("stay",)]), n=passes)
    def peek(self, who, key, script, n) -> None:
        process = self.process(who)
        self._start(process, Operation(process, "peek", key, script), n, process.manager.call, key, self.cls.peek)

    @rule(who=whos, key=keys, script=scripts, n=passes, take=st.integers(0, 3))
    def stream(self, who, key, script, n, take) -> None:
        process = self.process(who)
        operation = Operation(process, "items", key, script[:2], rest=script[2:])
        self._start(process, operation, n, process.consume, operation, take)

    def _start(self, process: Process, operation: Operation, n: int, action: Any, *args: Any) -> None:
        self.world.count[operation.kind] += 1
        self.do(process.start, operation, action, *args)
        self.run(n)

    @rule(who=whos, key=keys, script=st.sampled_from([("mark",), ("mark", "wait"), ("mark", "raise")]), n=passes)
    def repeat(self, who, key, script, n) -> None:
        process = self.process(who)
        operation = Operation(process, "act", key, script, call_id="the same")
        self._start(process, operation, n, process.manager.options(call_id="the same").call, key, self.cls.act)

    @rule(who=whos, key=keys, what=st.sampled_from(["get", "find", "initial", "state", "save", "save", "stop", "stop",
          "delete", "tell", "touch", "attach"]), n=passes)  # fmt: skip
    def ask(self, who, key, what, n) -> None:
        process, world = self.process(who), self.world
        manager = process.manager
        if process.closing:
            return
        if what == "tell":
            self.do(process.tell, key)
        elif what == "touch":
            self.do(manager.touch, key)
        else:
            operation = Operation(process, what, key)
            life = operation.life = process.lives.get(key)
            if life is not None and key in set(manager.keys()) and not manager.inspect(key).running:
                operation.before = life.cur
            if what == "delete":
                process.deleting.add(key)
                operation.known = world.durable & set(world.disk_marks.get(key, ()))
            initial = None
            if what == "initial" or (what == "attach" and n % 2):
                mark = world.new_mark(None)
                process.initials[key].add(mark)
                initial = {"marks": [mark], "last": mark, "size": 1}
            match what:
                case "attach":
                    self._start(process, operation, n, process.hold, operation, initial)
                case "initial":
                    self._start(process, operation, n, lambda: manager.get(key, initial=initial))
                case "find":
                    self._start(process, operation, n, lambda: manager.get(key, missing="raise"))
                case _:
                    self._start(process, operation, n, getattr(manager, what), key)
        self.run(n)

    def _under_way(self) -> list[Operation]:
        return [
            operation for process in self.world.processes for operation in process.operations
            if not operation.done and not process.dead and operation.kind != "close"
        ]  # fmt: skip

    @rule(which=st.integers(0, 5), how=st.sampled_from(["go", "go", "cancel", "cancel key", "all go"]), n=passes)
    def end(self, which, how, n) -> None:
        under_way = self._under_way()
        if not under_way:
            return
        operation = under_way[which % len(under_way)]
        if how == "cancel":
            self.do(operation.cancel)
        elif how == "cancel key":
            if not operation.process.closing:
                operation.process.cancelled.add(operation.key)
                self.do(operation.process.manager.cancel, operation.key)
        else:
            for one in under_way if how == "all go" else [operation]:
                self.do(one.go.set)
        self.run(n)

    # ------------------------------------------------------------ what happens

    @rule(seconds=st.sampled_from([0.03, 0.3, 1.1, 3.0, 12.0, 12.0, 31.0]), n=passes,
          what=st.sampled_from(["nothing else", "late requests arrive", "the store is well"]))  # fmt: skip
    def time_passes(self, seconds, what, n) -> None:
        if what == "late requests arrive":
            self._arrive()
        elif what == "the store is well":
            for process in self.world.processes:
                if not process.dead:
                    self.do(process.way.heal)
        self.advance(seconds)
        self.run(n)

    @rule(who=whos, key=keys, fault=st.sampled_from(TROUBLES), times=st.sampled_from([1, 1, 3, math.inf]))
    def trouble(self, who, key, fault, times) -> None:
        """A store that fails, or (a verb alone) one that is slow."""
        process = self.process(who)
        if fault not in FAULTS:
            if not process.way._gates:
                process.way.hold(fault, after=times == 1)
            return
        verb, kind, make, after = FAULTS[fault]

        def error() -> BaseException:
            process.fired[kind, key] += 1
            self.world.count[f"{verb}_faults"] += 1
            return make()

        process.way.fail(verb, error, times=times, after=after, key=f"{self.cls.__name__.lower()}:{key}")

    def _arrive(self) -> None:
        """What was on its way for long reaches the disk."""
        if self.world.disk.late:
            self.world.count["landed_late"] += self.wait_for(self.world.disk.land())

    @rule(key=keys, what=st.sampled_from(["write", "corrupt", "restore", "restore"]))
    def outside(self, key, what) -> None:
        world, name = self.world, f"{self.cls.__name__.lower()}:{key}"
        stored = world.disk._records.get(name)
        if what == "write" and key not in world.corrupt:
            self.wait_for(world.write_behind(key, self.cls))
        elif what == "corrupt" and stored is not None and key not in world.corrupt:
            world.corrupt[key] = stored
            world.ever_corrupt.add(key)
            world.disk._records[name] = Stored(stored.data[:-1] + bytes([stored.data[-1] ^ 1]), stored.revision)
            world.count["corrupted"] += 1
        elif what == "restore":
            self._restore(key)

    def _restore(self, key: str) -> None:
        if key in self.world.corrupt:
            self.world.disk._records[f"{self.cls.__name__.lower()}:{key}"] = self.world.corrupt.pop(key)

    @precondition(lambda self: self.cls is Hooked)
    @rule(key=keys, what=st.sampled_from(["", "start marks", "start raises", "start waits", "stop marks",
          "stop raises", "stop waits"]))  # fmt: skip
    def hook(self, key, what) -> None:
        self.world.hooks[key] = what
        if not what:
            self.do(self.world.hook_gate.set)

    @precondition(lambda self: self.steps > 10)
    @rule(who=whos, dead=st.sampled_from(["dropped", "late"]))
    def crash(self, who, dead) -> None:
        """As kill -9 does it: nothing of the process goes on, and what it had sent may arrive, late or never."""
        self.steps = 0
        process, world = self.process(who), self.world
        since = process.manager.stats().dirty_since
        process.dead = dead
        for key, life in process.lives.items():
            given_up = process.closing and process.manager.inspect(key).state == "cold"  # close() was about to say so
            for mark in life.cur:
                if world.told.get(mark) == "soft" and mark not in world.disk_marks.get(key, ()):
                    shown = since and world.times.get(mark, since) >= since
                    if not (shown or given_up or world.foreign(process, key, life.since)):
                        world.wrong(f"a crash loses {mark} of {key!r}, and the loss window did not say so")
                    world.told[mark] = "maybe"
        home = process.manager._registry.home
        self.run(3)  # what has just been begun is seen to be dead, so that nothing is left that never ran
        for _ in range(5):
            mine = {operation.task for operation in process.operations} | home.tasks | process.way.tasks
            mine |= {process.manager._door.close_task} if process.manager._door.close_task else set()
            for task in mine:
                if not task.done():
                    task.cancel()
            self.run(20)
        world.count["crashes"] += 1

    @precondition(lambda self: self.steps > 10)
    @rule(who=whos, deadline=st.sampled_from([0.0, 2.0, 30.0]), n=passes)
    def close(self, who, deadline, n) -> None:
        process, self.steps = self.process(who), 0
        if not process.closing:
            process.closing = True
            self._start(
                process, Operation(process, "close", "a", deadline=deadline), n, process.manager.close, deadline
            )

    # ------------------------------------------------------------ what is always so

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.steps += 1
        for operation in self._under_way():
            operation.age += 1
            if operation.age > 2 + operation.number % 5:  # nobody blocks an agent for long
                self.loop.call_soon(operation.go.set)
        assert not self.world.violations, "\n".join(self.world.violations)

    @invariant()
    def stats_are_right(self) -> None:
        if not self.quiet:
            return
        for process in self.world.processes:
            if not (process.dead or process.closing):
                self._check_stats(process)

    def _check_stats(self, process: Process) -> None:
        world, manager = self.world, process.manager
        stats, live = manager.stats(), set(manager.keys())
        for key, life in process.lives.items():
            world.note_times(life.cur)
            missing = [mark for mark in life.cur if mark not in process.dur.get(key, ())]
            if not missing or world.foreign(process, key, life.since):
                continue
            deletes = [one for one in process.operations if one.key == key and one.kind == "delete"]
            if not all(one.done and one.error is None for one in deletes):
                continue
            if process.gated and process._put_failed(key):
                continue
            seen = manager.inspect(key)
            if seen.state == "thawing":
                continue
            assert seen.state != "cold", f"{key!r} is gone, and {missing} is not stored"
            first = min(world.times[mark] for mark in missing)
            assert seen.dirty_since is not None, f"{key!r} lacks {missing} and calls itself clean"
            assert seen.dirty_since <= first, f"{key!r} is dirty since {first}, not {seen.dirty_since}"
        assert stats.attached == len({one.key for one in process.operations if one.kind == "attach" and not one.done})
        assert len(live) <= self.options.get("max_live", math.inf)
        if self.cls is Hooked:
            for key in live:
                assert process.running[key] == 1, f"{key!r} is live without on_start"
        if not any(world.foreign(process, key) for key in KEYS):
            assert not stats.superseded, "superseded, and nobody else wrote"
        interval = self.options["durability"]
        if isinstance(interval, Interval) and stats.dirty_since is not None and not process.fired:
            assert world.now() - stats.dirty_since <= interval.seconds + 1e-6, "stored later than the interval says"

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        try:
            if not self.world.violations:
                self._end()
        finally:
            for process in self.world.processes:
                process.dead = process.dead or "dropped"
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.run(50)
            self.loop.close()
        assert not self.world.violations, "\n".join(self.world.violations)
        World.seen.update(self.world.count)

    def _end(self) -> None:
        """All is well again: whoever waits gets an answer, and everything can be stored."""
        world = self.world
        world.hooks.clear()
        alive = [process for process in world.processes if not process.dead]
        for key in KEYS:
            self._restore(key)
        self.do(world.hook_gate.set)
        for process in alive:
            self.do(process.way.heal)
        for _ in range(400):
            left = [one for process in alive for one in process.operations if not one.done]
            if not left:
                break
            for one in left:
                self.do(one.go.set)
            self.run(20)
            self.advance(0.5)
        assert not left, f"{left} never ended"
        for process in alive:
            if not process.closing:
                process.closing = True
                operation = Operation(process, "close", "a")
                self._start(process, operation, 20, process.manager.close)
                for _ in range(200):
                    if operation.done:
                        break
                    self.advance(0.5)
                    self.run(20)
                assert operation.done, "close() hangs"
                assert operation.error is None, f"the store is well, and close() raised {operation.error!r}"
        self.run(QUIET)
        self.advance(60.0)
        self.run(QUIET)
        self.wait_for(world.disk.land())
        for key, mark in [(maker.key, mark) for mark, maker in world.makers.items() if maker is not None]:
            told, there = world.told.get(mark), mark in world.disk_marks.get(key, ())
            lost = told == "ok" or (told == "soft" and not any(world.foreign(one, key) for one in world.processes))
            if lost and not there and mark not in world.gone | world.deleted_once:
                world.wrong(f"{mark} of {key!r} was acknowledged, and is not stored")
        tasks = {task for task in asyncio.all_tasks(self.loop) if not task.done()}
        assert not tasks, f"left behind: {tasks}"
        for process in alive:
            timers = [timer.callback for timer in process.clock._timers if timer.callback is not None]
            assert not timers, f"a closed manager left timers behind: {timers}"


def explore(examples: int, number: int, phases: tuple[Phase, ...] = (Phase.generate, Phase.shrink)) -> None:
    run_state_machine_as_test(
        seed(number)(type("Run", (Machine,), {})),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
            phases=phases,
        ),
    )


@pytest.mark.parametrize("part", [1, 2])
def test_a_manager_does_what_the_model_says(proof, part):
    World.seen.clear()
    runs = proof.size(run=100, long=10_000)
    explore(runs, proof.chance("runs").randrange(1 << 32))
    proof.count(runs=runs, **World.seen)
    for fault in ("put_faults", "get_faults", "crashes", "foreign_writes"):
        assert World.seen[fault], f"no {fault} in {runs} runs"


# ---------------------------------------------------------------- that it can fail


def reply_at_once(patch) -> None:
    def admission(self, tag, loop):
        future = loop.create_future()
        future.set_result(None)
        return future

    patch.setattr(Ledger, "admission", admission)


def forget_a_field(patch) -> None:
    restore = Performer._restore

    def forgetful(self, body):
        size = self.agent.size
        restore(self, body)
        self.agent.size = size

    patch.setattr(Performer, "_restore", forgetful)


def call_unknown_not_stored(patch) -> None:
    outcome = _ledger._outcome

    def sure(error):
        found = outcome(error)
        return StoreUnavailableError("surely not") if isinstance(found, OutcomeUnknownError) else found

    patch.setattr(_ledger, "_outcome", sure)


def adopt_whatever_is_there(patch) -> None:
    async def adopt(self):
        self.revision = await self._terms.keeper.store.head(self.store_key) or Expect.ABSENT
        return True

    def first_try_failed(self, error):
        self._host.hold()
        self._recovery = self._host.spawn(self._recover(error))

    patch.setattr(Ledger, "_adopt", adopt)
    patch.setattr(Ledger, "_first_try_failed", first_try_failed)


def hibernate_unstored(patch) -> None:
    async def hibernate(self):
        if self.is_idle() and self.turns.try_enter(False) and not self._leave_now():
            await self._leave()

    patch.setattr(AgentServer, "hibernate", hibernate)


def start_fresh_after_an_error(patch) -> None:
    async def load(self, key):
        try:
            return await whole(self, key)
        except StoreError:
            return None

    def fetched(self, stored, error, *rest, **more):
        fetch(self, stored, None if isinstance(error, StoreError) else error, *rest, **more)

    whole, fetch = Keeper.load, AgentServer._fetched
    patch.setattr(Keeper, "load", load)
    patch.setattr(AgentServer, "_fetched", fetched)


def commit_without_waiting(patch) -> None:
    async def commit(self, turn):
        self._finish(turn)

    patch.setattr(AgentServer, "commit", commit)


def begin_beside_the_old_life(patch) -> None:
    async def over(self, server):
        self.servers.pop(server.key, None)

    patch.setattr(Registry, "_over", over)


def trust_the_copy(patch) -> None:
    async def admit(self, readonly):
        if self._broken:
            await self._rebuild()

    patch.setattr(AgentServer, "_admit", admit)


def forget_receipts(patch) -> None:
    patch.setattr(_ledger, "add_receipt", lambda receipts, receipt: receipts)


def call_itself_clean(patch) -> None:
    patch.setattr(Ledger, "dirty_since", property(lambda self: None, lambda self, value: None))


BUGS = [
    reply_at_once,
    forget_a_field,
    call_unknown_not_stored,
    adopt_whatever_is_there,
    hibernate_unstored,
    start_fresh_after_an_error,
    commit_without_waiting,
    begin_beside_the_old_life,
    trust_the_copy,
    forget_receipts,
    call_itself_clean,
]


@pytest.mark.filterwarnings("ignore")  # a broken manager leaves coroutines behind
@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_found(bug, proof, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(BaseException):  # noqa: B017, PT011  # an assertion of the model's, or a group of them
        explore(2_000, proof.chance("runs").randrange(1 << 32), (Phase.generate,))  # it ends with the first failure
    proof.count(found=1)
