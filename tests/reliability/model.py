"""What semantics.md says of a manager, as a few tuples: for ``test_model.py``.

Each change appends a number of its own to its agent's list, so whatever anybody sees says which calls had an effect.
For each key the model knows what is on the disk, and for each manager what its life has (``cur``) and what was
acknowledged by the store (``dur``). For each number it knows whether it was acknowledged as durable, and what the
caller was told. It knows nothing of how the manager works.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, ClassVar

import msgspec

from overwinter import Agent, InstanceManager, MemoryStore, Persistence, commit, interleave, readonly, transient
from overwinter.errors import (
    AgentDeletedError,
    AgentNotFoundError,
    ClosedError,
    CloseError,
    CorruptRecordError,
    MailboxFullError,
    OutcomeUnknownError,
    ReentrantCallError,
    RevisionConflictError,
    StoreUnavailableError,
    SupersededError,
    ThawError,
    TooManyLiveError,
    TurnCancelledError,
    TurnTimeoutError,
)
from overwinter.record import unpack
from overwinter.stores.base import Stored
from overwinter.testing import FaultyStore, ManualClock

__all__ = ["KEYS", "Hooked", "Late", "Marks", "Operation", "Plain", "Process", "World"]

KEYS = ("a", "b", "c")
Marks = tuple[int, ...]
NOTHING_STORED = (StoreUnavailableError, SupersededError, ClosedError)


class Boom(Exception):
    """An agent's own error. It tells what its call saw."""


class Late(OutcomeUnknownError):
    """The request is on its way, and may arrive whenever."""


# ---------------------------------------------------------------- the agents


class Plain(Agent, name="plain"):
    """Does what its caller's operation says. The two other fields follow from the list, so a forgotten one shows."""

    marks: list[int] = []
    last: int = 0
    size: int = 0

    async def act(self) -> list[int]:
        operation = OPERATION.get()
        operation.begin(self)
        for step in operation.script:
            await operation.step(self, step)
        operation.seal(self)
        operation.ended = True
        return list(self.marks)

    @readonly
    async def look(self) -> list[int]:
        operation = OPERATION.get()
        operation.begin(self)
        for step in operation.script:
            await operation.step(self, step)
        return list(self.marks)

    @interleave
    async def peek(self) -> list[int]:
        for step in OPERATION.get().script:
            await OPERATION.get().step(self, step)
        return list(self.marks)

    async def items(self):
        operation = OPERATION.get()
        operation.begin(self)
        for step in operation.script:
            await operation.step(self, step)
            operation.seal(self)
            yield list(self.marks)
        for step in operation.rest:
            await operation.step(self, step)
        operation.seal(self)
        operation.ended = True

    def _add(self, mark: int) -> None:
        self.marks.append(mark)
        self.last = mark
        self.size += 1


class Hooked(Plain, name="hooked"):
    """The same with hooks, which are told by the world what to do."""

    process: Any = transient()

    async def on_start(self, process: Process) -> None:
        self.process = process
        await process.on_start(self)

    async def on_stop(self) -> None:
        await self.process.on_stop(self)


def marks_of(agent: Plain) -> Marks:
    marks = tuple(agent.marks)
    assert (agent.last, agent.size) == (marks[-1] if marks else 0, len(marks)), "the fields of an agent disagree"
    return marks


# ---------------------------------------------------------------- one operation of one caller


class Operation:
    """A call, or whatever else is asked of a manager: what it did, and what its caller was told."""

    def __init__(self, process: Process, kind: str, key: str, script: tuple[str, ...] = (), **more: Any) -> None:
        self.process, self.kind, self.key, self.script = process, kind, key, script
        self.world = process.world
        self.number = self.world.number()
        self.rest: tuple[str, ...] = more.get("rest", ())
        self.parent: Operation | None = more.get("parent")
        self.sender: tuple[Operation, int, int, list[int]] | None = more.get("sender")
        self.call_id: str | None = more.get("call_id")
        self.go = asyncio.Event()
        self.age = 0
        self.task: asyncio.Task[None] | None = None
        self.attempt = self.seals = 0
        self.open: list[int] = []  # made, and taken back if it raises
        self.sealed: list[int] = []  # in a version, not known to be durable
        self.base: Marks = ()  # where a failure goes back to
        self.life: Any = None
        self.done = self.ended = self.stayed = False
        self.cancelled = 0  # by its caller, so often
        self.result: Any = None
        self.error: BaseException | None = None
        self.before: Marks | None = None  # what the life had when it was asked
        self.nested = False
        self.deadline = more.get("deadline", 30.0)
        self.leap = 0.0  # the most seconds that passed at once meanwhile
        self.began_at: float | None = None

    def __repr__(self) -> str:
        return f"{self.kind} {self.number} of {self.key!r} {self.script}"

    # what the body does

    def begin(self, agent: Plain) -> None:
        if self.process.dead:
            return
        if self.attempt:  # superseded="retry": what the last attempt made does not exist
            if self.process.options.get("superseded") != "retry":
                self.world.wrong(f"{self} began a second time, and nobody asked for that")
            self._none(self.open + self.sealed)
            self.open, self.sealed = [], []
        self.attempt += 1
        self.deletions = self.world.deletions[self.key]  # before: it may be deleted before its reply arrives
        self.ended = self.stayed = False
        self.began_at = self.world.now()
        self.life = self.process.seen(self.key, agent, self)
        self.base = self.life.cur
        if self.sender is not None:
            who, attempt, seals, made = self.sender
            if attempt == who.attempt and who.seals <= seals:
                self.world.wrong(f"{self} was told by {who}, which was rolled back or is not over")
            if self.process.gated and not self.world.durable.issuperset(made):
                self.world.wrong(f"{self} was told by {who}, and what that changed is not stored")

    async def step(self, agent: Plain, step: str) -> None:
        match step:
            case "mark":
                mark = self.world.new_mark(self)
                self.open.append(mark)
                agent._add(mark)
            case "wait":
                await self.go.wait()
            case "stay":
                try:
                    await self.go.wait()
                except asyncio.CancelledError:
                    asked = asyncio.current_task().cancelling()  # by whoever ends turns, or by callers: they don't
                    self.stayed |= asked > self.cancelled or self.kind in ("items", "left")
            case "commit":
                self.seal(agent)
                made = list(self.sealed)
                upto = tuple(agent.marks)
                await commit()
                self.world.must_be_durable(self, upto, "commit() returned")
                self.sealed = [mark for mark in self.sealed if mark not in made]
            case "raise":
                raise Boom(list(agent.marks))
            case "call" | "back":
                self.nested = True
                await self.process.nested(self, ("mark", "call") if step == "back" else ("mark",))
            case "tell":
                self.process.tell(self.key, sender=(self, self.attempt, self.seals, self.sealed + self.open))

    def seal(self, agent: Plain) -> None:
        """What there is now is a version, as far as the body can tell."""
        if self.stayed:
            return  # it was told to end, and what it does now does not count
        self.seals += 1
        self.sealed += self.open
        self.open = []
        if self.life is not None and not self.process.dead:
            self.base = self.life.cur = marks_of(agent)
            self.world.note_times(self.life.cur)

    def cancel(self) -> None:
        """As its caller."""
        self.cancelled += 1
        self.task.cancel()

    # what the caller is told

    def finish(self, error: BaseException | None) -> None:
        self.done, self.error = True, error
        if self.process.dead:
            return
        if error is None:
            self._succeeded()
        else:
            if not self._explained(error):
                self.world.wrong(f"{self} got {error!r}, for which there is no reason")
            self._failed(error)

    def _succeeded(self) -> None:
        world, process = self.world, self.process
        match self.kind:
            case "left":
                self._none(self.open)
            case "act" | "look" | "state" | "items":
                result = marks_of(self.result) if self.kind == "state" else tuple(self.result)
                if process.gated:
                    world.must_be_durable(self, result, "a reply")
                else:
                    for mark in self.sealed:
                        world.told[mark] = "soft"
                if self.call_id is not None:
                    self._check_repeated(result)
            case "peek":  # unfinished, and so only things that somebody once made
                if not world.makers.keys() >= set(self.result):
                    world.wrong(f"{self} saw {self.result}")
            case "save":
                rolled_back = process.gated and process._put_failed(self.key)  # as far as nobody saw it
                if (
                    self.before is not None
                    and not rolled_back
                    and not world.foreign(process, self.key, self.life.since)
                ):
                    world.must_be_durable(self, self.before, "save() returned")
            case "stop":
                if self.before is not None and not process.gated and not world.foreign(process, self.key):
                    world.must_be_durable(self, self.before, "stop() returned")
            case "close":
                self._closed((), ())
            case "delete":
                world.writers[self.key].append(None)  # whatever lived is gone, stored or not
                for mark in world.loose[self.key]:
                    if world.told.get(mark) == "soft":
                        world.told[mark] = "maybe"
                left = self.known & set(world.disk_marks.get(self.key, ()))
                if left:
                    world.wrong(f"{self} returned, and {left} are still there")

    def _closed(self, not_stored: tuple[str, ...], unknown: tuple[str, ...]) -> None:
        """The manager is closed: it named those, and only those, whose last changes are not stored."""
        world, process = self.world, self.process
        process.closed = True
        for key, life in process.lives.items():
            missing = [mark for mark in life.cur if mark not in process.dur.get(key, ())]
            if world.foreign(process, key, life.since):
                continue
            if key in not_stored or key in unknown:
                for mark in missing:
                    if world.told.get(mark) == "soft":
                        world.told[mark] = "maybe"
                if key in not_stored and set(missing) & set(world.disk_marks.get(key, ())):
                    world.wrong(f"{key!r} was called not stored, and {missing} are")
            elif any(world.told.get(mark) in ("soft", "ok") for mark in missing):
                world.wrong(f"close() did not name {key!r}, which lacks {missing}")

    def _check_repeated(self, result: Marks) -> None:
        assert self.call_id is not None
        ids = self.world.replies[self.key]
        made = self.open + self.sealed
        if not set(made) <= set(result):  # superseded, and when it was tried again there was a reply
            self._none(made)
            self.open, self.sealed, self.attempt = [], [], 0
        known, now = ids.get(self.call_id), self.world.deletions[self.key]
        if self.deletions < now and made and not set(made) & set(self.world.disk_marks.get(self.key, ())):
            return  # it was stored, and deleted, and hears of it only now: what has that id by now came after
        if known is not None and known[1] == now:
            if self.attempt:
                self.world.wrong(f"{self} ran again under the id {self.call_id!r}, which had a reply")
            elif known[0] != result:
                self.world.wrong(f"{self} got {result}, but {self.call_id!r} was answered {known[0]}")
        elif self.process.gated and self.attempt and self.sealed:
            ids[self.call_id] = (result, self.deletions)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, CloseError):
            self._closed(error.not_stored, error.unknown)
        if self.kind == "delete":  # it may have happened, or go on without its caller
            if isinstance(error, asyncio.CancelledError):
                self.world.left_deletes.add(self.key)
            self.world.writers[self.key].append(None)
            for mark in self.world.loose[self.key]:
                if self.world.told.get(mark) == "soft":
                    self.world.told[mark] = "maybe"
        self._none(self.open)
        if isinstance(error, Boom) and self.process.gated and not self.cancelled and not self.nested:
            self.world.must_be_durable(self, self.base, "an error")
        if not self.process.gated or type(error) not in NOTHING_STORED or self.nested:
            return
        if self.ended or not isinstance(
            error, ClosedError
        ):  # else close() ended it: what it committed may yet be stored
            # What its items saw is stored, taken by the consumer or not.
            stored = self.world.durable.union(self.world.disk_marks.get(self.key, ())) if self.kind == "items" else ()
            self._none([mark for mark in self.sealed if mark not in stored])

    def _none(self, marks: list[int]) -> None:
        world = self.world
        for mark in marks:
            world.told[mark] = "none"
            if mark in world.durable or mark in world.disk_marks.get(self.key, ()):
                world.wrong(f"{self} was told {self.error!r}, and {mark} is stored")

    def _explained(self, error: BaseException) -> bool:
        world, process, nested = self.world, self.process, self.nested
        blamed = set(KEYS) if nested or self.parent is not None else {self.key}  # from whichever of the keys
        fired = {kind for kind, key in process.fired if key in blamed}
        match error:
            case Boom():
                return "raise" in self.script or "raise" in self.rest or nested
            case asyncio.CancelledError():
                parent = self.parent
                return self.cancelled or parent is not None
            case TurnCancelledError():
                return bool(blamed & process.cancelled) or self.kind == "peek"  # its agent leaves
            case TurnTimeoutError():
                limit = process.options.get("turn_timeout")
                return limit is not None and (nested or world.now() - (self.began_at or 0) >= limit)
            case MailboxFullError():
                return "max_mailbox" in process.options
            case TooManyLiveError():
                return "max_live" in process.options
            case AgentDeletedError():
                return bool(blamed & process.deleting)
            case ClosedError():
                return process.closing
            case CloseError():
                no_time = self.leap >= self.deadline / 2  # the second half went by at once
                # What began before the half may wait for a place so long; and then time passes in leaps.
                no_place = "max_live" in process.options and self.deadline / 2 < 10 + 2 * self.leap
                return no_time or no_place or bool(process.fired) or bool(world.hooks)
            case ReentrantCallError():
                return nested or self.parent is not None
            case AgentNotFoundError():
                return self.kind == "find"
            case SupersededError():
                return any(world.foreign(process, key) for key in blamed)
            case OutcomeUnknownError():
                stays = not process.gated and (nested or "commit" in (*self.script, *self.rest))
                return bool(fired & {"unknown", "held"}) or ((self.kind == "delete" or stays) and bool(fired))
            case StoreUnavailableError():
                return bool(fired)
            case ThawError():
                return (
                    bool(fired & {"get", "held", "start"})
                    or process.closing
                    or bool(blamed & (world.ever_corrupt | process.cancelled))
                )
        return False


OPERATION: ContextVar[Operation] = ContextVar("operation")


def _next(key: str) -> str:
    return KEYS[(KEYS.index(key) + 1) % 2] if key != "c" else "a"


class Life:
    """An agent in memory: its object, and what the last turn left in it."""

    def __init__(self, agent: Plain, cur: Marks, since: int) -> None:
        self.agent, self.cur, self.since = agent, cur, since


# ---------------------------------------------------------------- a manager and its way to the disk


class Way(FaultyStore):
    """A process's way to the disk, with a kill at its end."""

    def __init__(self, process: Process, disk: Disk) -> None:
        super().__init__(disk)
        self.process = process
        self.tasks: set[asyncio.Future[Any]] = set()
        self.putting: Counter[str] = Counter()

    def _keep(self, task: Any) -> Any:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def submit(self, key, data, *, revision, expected):
        name, task = key.partition(":")[2], self._keep(super().submit(key, data, revision=revision, expected=expected))
        self.putting[name] += 1
        task.add_done_callback(lambda _: self.putting.subtract([name]))
        return task

    def fetch(self, key):
        return self._keep(super().fetch(key))

    async def get(self, key: str) -> Stored | None:
        process, name = self.process, key.partition(":")[2]
        self._note_held("get", key)
        read_at = len(process.world.writers[name])
        try:
            found = await super().get(key)
        except BaseException as error:
            process.loads[name] = error
            raise
        process.loads[name] = found
        process.read_at[name] = read_at
        if not process.dead:
            marks = () if found is None else process.world.decode(found)
            if marks is not None:
                process.dur[name] = marks
                process.world.acknowledged[name].append(marks)
                process.world.durable.update(marks)
        return found

    async def head(self, key: str):
        self._note_held("head", key)
        return await super().head(key)

    async def put(self, key: str, data: bytes, *, revision: bytes, expected: Any) -> None:
        process = self.process
        disk: Disk = self.inner
        post = (key, data, revision, expected, disk.incarnations[key])
        self._note_held("put", key)
        if process.dead:
            raise StoreUnavailableError("there is nobody any more")
        disk.authors[revision] = process
        try:
            await super().put(key, data, revision=revision, expected=expected)
        except Late:
            disk.late.append(post)
            raise
        except asyncio.CancelledError:
            if process.dead == "late":
                disk.late.append(post)
            raise
        if not process.dead:
            process.acknowledge(key.partition(":")[2], data, revision)

    async def delete(self, key: str, *, expected: Any) -> None:
        self._note_held("delete", key)
        if self.process.dead:
            raise StoreUnavailableError("there is nobody any more")
        await super().delete(key, expected=expected)

    def _note_held(self, verb: str, key: str) -> None:
        if any(gate.verb == verb and gate.key in (None, key) for gate in self._gates):
            name = key.partition(":")[2]
            self.process.fired["held", name] += 1
            self.process.fired[f"slow {verb}", name] += 1


class Process:
    """One manager, as a process would have it, and what the model knows of it."""

    def __init__(self, world: World, cls: type[Plain], options: dict[str, Any]) -> None:
        self.world, self.cls, self.options = world, cls, options
        self.gated = options["durability"] == "call"
        self.clock = ManualClock(now=world.clock.monotonic(), epoch=world.clock.time())
        self.way = Way(self, world.disk)
        self.manager: InstanceManager[Plain] = InstanceManager(
            cls, store=self.way, context=self, clock=self.clock, **options
        )
        self.dead = ""
        self.closing = self.closed = False
        self.lives: dict[str, Life] = {}
        self.loads: dict[str, Any] = {}
        self.read_at: dict[str, int] = {}
        self.dur: dict[str, Marks] = {}
        self.running: dict[str, int] = defaultdict(int)
        self.fired: Counter[tuple[str, str]] = Counter()
        self.gave_up: Counter[str] = Counter()
        self.cancelled: set[str] = set()
        self.deleting: set[str] = set()
        self.initials: dict[str, set[int]] = defaultdict(set)
        self.operations: list[Operation] = []

    # what the agent shows

    def seen(self, key: str, agent: Plain, operation: Operation) -> Life:
        """A turn begins: the agent is what the model says it is."""
        world, marks, life = self.world, marks_of(agent), self.lives.get(key)
        if life is None or life.agent is not agent:
            if self.cls is Hooked:
                world.wrong(f"{operation} runs on an agent that on_start was not called for")
            life = self._come(key, agent, marks)
        elif marks != life.cur:
            if not self.gated or marks != self.dur.get(key) or not self._put_failed(key):
                world.wrong(f"{operation} found {marks}, not {life.cur}; durable is {self.dur.get(key)}")
            life.cur = marks
        if bad := {mark for mark in marks if world.told.get(mark) == "none"}:
            world.wrong(f"{operation} sees {bad}, which was told to have no effect")
        saves = any((one.kind, one.key, one.done) == ("save", key, False) for one in self.operations)
        asks = not self._put_failed(key) and (self.gated or not saves)  # which makes it dirty, if it was stored nowhere
        if self.options.get("shared") and marks == self.dur.get(key) and asks and not self.fired["slow head", key]:
            stored = world.disk_marks.get(key, ())
            if marks != stored and key not in world.corrupt:
                world.wrong(f"{operation} runs on the stale {marks}, stored is {stored}")
        return life

    def _put_failed(self, key: str) -> bool:
        return any(self.fired[kind, key] for kind in ("down", "unknown", "held"))

    def _come(self, key: str, agent: Plain, marks: Marks) -> Life:
        """A life that the model did not know yet."""
        world, old = self.world, self.lives.get(key)
        loaded = self.loads.pop(key, "nothing was read")
        if isinstance(loaded, BaseException | str):
            world.wrong(f"{key!r} came alive with {marks}, although the read before said {loaded!r}")
        elif loaded is None:
            if marks and not (len(marks) == 1 and marks[0] in self.initials[key]):
                world.wrong(f"a fresh {key!r} has {marks}")
        elif marks != world.decode(loaded):
            world.wrong(f"{key!r} came alive with {marks}, stored was {world.decode(loaded)}")
        if old is not None and not world.foreign(self, key, old.since):
            lost = [mark for mark in old.cur if mark not in marks and world.told.get(mark) in ("soft", "ok")]
            if lost:
                world.wrong(f"{key!r} came back without {lost}, which was acknowledged")
        life = self.lives[key] = Life(agent, marks, self.read_at.get(key, 0))
        world.note_times(marks)
        return life

    async def on_start(self, agent: Plain) -> None:
        if self.dead:
            return
        key, world, marks = agent.key, self.world, marks_of(agent)
        if self.running[key]:
            world.wrong(f"{key!r} starts while it is alive")
        old = self.lives.get(key)
        if comes := key in self.loads or old is None:
            life = self._come(key, agent, marks)
        else:  # back to life from the bytes that could not be stored
            if marks != old.cur and not (self.gated and marks == self.dur.get(key)):
                world.wrong(f"{key!r} was revived with {marks}, not {old.cur}; durable is {self.dur.get(key)}")
            life = self.lives[key] = Life(agent, marks, old.since)
        what = world.hooks.get(key, "")
        try:
            if what == "start raises":
                raise Boom("on_start")
            if what == "start waits":
                await world.hook_gate.wait()
        except BaseException:
            self.fired["start", key] += 1
            if comes and self.lives.get(key) is life:
                del self.lives[key]  # it never came alive
            raise
        if what == "start marks":
            agent._add(world.new_mark(None))
            life.cur = marks_of(agent)
            world.note_times(life.cur)
        if comes:
            world.times.update(dict.fromkeys(life.cur, world.now()))  # nobody has it before its on_start has ended
        self.running[key] += 1

    async def on_stop(self, agent: Plain) -> None:
        if self.dead:
            return
        key, world = agent.key, self.world
        self.running[key] -= 1
        if self.running[key]:
            world.wrong(f"{key!r} stops, and was not alive")
        life, what = self.lives.get(key), world.hooks.get(key, "")
        if what == "stop raises":
            raise Boom("on_stop")
        if what == "stop waits":
            await world.hook_gate.wait()
        if what == "stop marks" and life is not None and life.agent is agent:
            agent._add(world.new_mark(None))
            life.cur = marks_of(agent)  # a version some passes later, when whoever waits for the hook goes on

    # what the store shows

    def acknowledge(self, key: str, data: bytes, revision: bytes) -> None:
        """A put returned: what it carried is durable, and stays."""
        world, marks = self.world, self.world.decode(Stored(data, revision))
        self.dur[key] = marks
        world.acknowledged[key].append(marks)
        world.durable.update(marks)
        world.loose[key] -= set(marks)

    def cur(self, key: str) -> Marks:
        life = self.lives.get(key)
        return () if life is None or self.dead or self.closed else life.cur

    # what callers do

    def start(self, operation: Operation, action: Callable[..., Awaitable[Any]], *args: Any) -> None:
        async def drive() -> None:
            OPERATION.set(operation)
            try:
                operation.result = await action(*args)
            except BaseException as error:  # the model judges it
                operation.finish(error)
            else:
                operation.finish(None)

        operation.task = asyncio.get_running_loop().create_task(drive())
        self.operations.append(operation)

    async def nested(self, parent: Operation, script: tuple[str, ...]) -> None:
        child = Operation(self, "act", _next(parent.key), script, parent=parent)
        child.nested = "call" in script
        token = OPERATION.set(child)
        try:
            child.result = await self.manager.call(child.key, self.cls.act)
        except BaseException as error:
            child.finish(error)
            raise
        else:
            child.finish(None)
        finally:
            OPERATION.reset(token)

    async def consume(self, operation: Operation, take: int) -> Marks:
        """Take so many items, or all; the last one is what the stream saw."""
        items, item = self.manager.call(operation.key, self.cls.items), ()
        try:
            async for item in items:
                if self.gated and not self.dead:
                    self.world.must_be_durable(operation, tuple(item), "an item")
                take -= 1
                if not take:
                    operation.kind = "left"
                    break
        finally:
            await items.aclose()
        return item

    async def hold(self, operation: Operation, initial: dict[str, Any] | None) -> None:
        async with self.manager.attach(operation.key, initial=initial):
            await operation.go.wait()

    def tell(self, key: str, **more: Any) -> None:
        told = Operation(self, "told", key, ("mark",), **more)
        token = OPERATION.set(told)
        try:
            self.manager.tell(key, self.cls.act)
        except ClosedError:
            assert self.closing
        finally:
            OPERATION.reset(token)


# ---------------------------------------------------------------- the disk


class Disk(MemoryStore):
    """What outlives a process. It tells the world what happens to it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.late: list[tuple[str, bytes, bytes, Any, int]] = []
        self.incarnations: Counter[str] = Counter()
        self.authors: dict[bytes, Process] = {}

    async def claim(self, name: str, *, shared: bool, wait: float) -> None:
        """A kill releases it, as a kernel would; who may own is proved elsewhere."""

    async def put(self, key, data, *, revision, expected) -> None:
        await super().put(key, data, revision=revision, expected=expected)
        self.world.landed(key.partition(":")[2], Stored(bytes(data), revision))

    async def delete(self, key, *, expected) -> None:
        there = key in self._records
        await super().delete(key, expected=expected)
        if there:
            self.incarnations[key] += 1
            self.world.deleted(key.partition(":")[2])

    async def land(self) -> int:
        """What was on its way arrives. A create does not outlive a delete: stores keep tombstones for that."""
        landed, late, self.late = 0, self.late, []
        for key, data, revision, expected, incarnation in late:
            if self.incarnations[key] == incarnation:
                try:
                    await self.put(key, data, revision=revision, expected=expected)
                    landed += 1
                except RevisionConflictError:
                    self.world.count["came_too_late"] += 1
        return landed


class World:
    """The disk, the clock, the processes, and what is known of each number."""

    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.clock = ManualClock()
        self.disk = Disk(self)
        self.processes: list[Process] = []
        self.violations: list[str] = []
        self.count: Counter[str] = Counter()
        self.told: dict[int, str] = {}
        self.durable: set[int] = set()
        self.gone: set[int] = set()
        self.makers: dict[int, Operation | None] = {}
        self.times: dict[int, float] = {}
        self.loose: dict[str, set[int]] = defaultdict(set)
        self.disk_marks: dict[str, Marks] = {}
        self.revisions: dict[str, bytes] = {}
        self.acknowledged: dict[str, list[Marks]] = defaultdict(lambda: [()])
        self.deletions: Counter[str] = Counter()
        self.deleted_once: set[int] = set()
        """What was stored when it was deleted, known to its process or not."""
        self.writers: dict[str, list[Any]] = defaultdict(list)
        self.left_deletes: set[str] = set()  # whose caller left, so that they may come whenever
        self.replies: dict[str, dict[str, tuple[Marks, int]]] = defaultdict(dict)
        self.corrupt: dict[str, Stored] = {}
        self.ever_corrupt: set[str] = set()
        self.hooks: dict[str, str] = {}
        self.hook_gate = asyncio.Event()
        self._numbers = 0

    def wrong(self, what: str) -> None:
        self.violations.append(what)

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def now(self) -> float:
        return self.clock.time()

    def new_mark(self, maker: Operation | None) -> int:
        mark = self.number()
        self.makers[mark] = maker
        if maker is not None:
            self.loose[maker.key].add(mark)
        return mark

    def note_times(self, marks: Marks) -> None:
        for mark in marks:
            self.times.setdefault(mark, self.now())

    def decode(self, stored: Stored) -> Marks | None:
        """The list in a record, whose other fields must agree; ``None``: it is no record."""
        try:
            _, body = unpack(stored.data)
        except CorruptRecordError:
            return None
        fields = msgspec.msgpack.decode(body)
        if isinstance(fields, dict):
            marks, last, size = fields["marks"], fields["last"], fields["size"]
        else:
            marks, last, size = fields
        assert (last, size) == (marks[-1] if marks else 0, len(marks)), "the fields of a record disagree"
        return tuple(marks)

    def foreign(self, process: Process, key: str, since: int = 0) -> bool:
        """Whether anybody else than *process* changed what is stored, or is about to; deletes count, its own too."""
        if key in self.left_deletes or any(writer is not process for writer in self.writers[key][since:]):
            return True
        operations = (operation for one in self.processes for operation in one.operations)
        return any(one.kind == "delete" and one.key == key and not one.done for one in operations)

    def landed(self, key: str, stored: Stored) -> None:
        """A record was written: it goes on from the one before, and holds nothing that was denied."""
        marks, before, writer = (
            self.decode(stored),
            self.disk_marks.get(key, ()),
            self.disk.authors.get(stored.revision),
        )
        assert marks is not None
        if marks[: len(before)] != before:
            self.wrong(f"{key!r}: {marks} was written over {before}")
        # A create of unknown outcome that somebody else deleted meanwhile can't be told from one that never was.
        if writer is not None and not before and writer.fired["unknown", key]:
            self.gone -= set(marks)
        if bad := {mark for mark in marks if self.told.get(mark) == "none" or mark in self.gone}:
            self.wrong(f"{key!r}: {marks} was written, and {bad} does not exist any more")
        self.disk_marks[key] = marks
        self.corrupt.pop(key, None)
        self.writers[key].append(writer)
        live = {mark for process in self.processes for mark in process.cur(key)}
        for mark in self.loose[key] - live - set(marks) - self.deleted_once:
            operation = self.makers[mark]
            if operation is None or operation.done:
                self.loose[key].discard(mark)
                self.told[mark] = "none"  # the line of revisions went on without it

    def deleted(self, key: str) -> None:
        marks = self.disk_marks.pop(key, ())
        self.deleted_once.update(marks)
        self.gone |= {mark for mark in marks if mark in self.durable}
        self.corrupt.pop(key, None)
        self.deletions[key] += 1
        self.writers[key].append(None)

    def must_be_durable(self, operation: Operation, marks: Marks, why: str) -> None:
        for known in reversed(self.acknowledged[operation.key]):
            if known[: len(marks)] == marks:
                break
        else:
            self.wrong(f"{operation}: {why} with {marks}, and the store acknowledged only {known}")
        for mark in marks:
            if self.told.get(mark) == "none":
                self.wrong(f"{operation}: {why} with {mark}, which was told to have no effect")
            self.told[mark] = "ok"

    async def write_behind(self, key: str, cls: type[Plain]) -> None:
        """What another owner does, on another machine."""
        persistence = Persistence(self.disk)
        agent = await persistence.thaw(cls, key)
        agent = cls() if agent is None else agent
        mark = self.new_mark(None)
        agent._add(mark)
        self.durable.add(mark)
        await persistence.hibernate(key, agent)
        self.acknowledged[key].append(marks_of(agent))
        self.count["foreign_writes"] += 1
