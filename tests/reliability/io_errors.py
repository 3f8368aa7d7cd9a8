"""A process of its own for ``test_io_errors.py``: it forks a child for each case that it reads, fails that child's
system calls, and judges what the child was told and what is stored afterwards. A line of JSON in, one out.

A case says which store and durability, which span of a manager's life has the trouble, and which call fails how.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import shutil
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fault_bugs import plant
from syscalls import CALLS, SYNCS, Board, Fault, supervise, watch
from worker import Counter

from overwinter import InstanceManager, Interval
from overwinter.errors import (
    AgentNotFoundError,
    CloseError,
    CorruptRecordError,
    OutcomeUnknownError,
    OverwinterError,
    StoreUnavailableError,
    SupersededError,
    ThawError,
)
from overwinter.stores import FileStore, SQLiteStore, Store
from overwinter.testing import ManualClock

KEYS = ["ada", "bob", "cy", "dee", "eve", "fay"]
SIZE = 1500
DURABILITIES: dict[str, dict[str, Any]] = {
    "call": {"durability": "call"},
    "shared": {"durability": "call", "shared": True},
    "interval": {"durability": Interval(5)},
    "hibernate": {"durability": "hibernate"},
}
# Without one of these nothing becomes durable, so while they fail for ever nothing may be said to be.
NEEDED = {"file": {"write", "fsync", "renameat"}, "sqlite": {"pwrite64", "fdatasync"}}


@dataclasses.dataclass(frozen=True)
class Case:
    store: str
    durability: str
    span: str
    fault: Fault | None
    bug: str = ""


def make_store(kind: str, folder: str, timeout: float = 5.0) -> Store:
    if kind == "file":
        return FileStore(f"{folder}/agents", timeout=timeout)
    return SQLiteStore(f"{folder}/agents.db", timeout=timeout)


def open_files(folder: str) -> collections.Counter[str]:
    """What this process has open there."""
    found: list[str] = []
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(str(entry.readlink()))
    return collections.Counter(name for name in found if name.startswith(folder))


async def passing(clock: ManualClock, awaitable: Awaitable[Any]) -> Any:
    """Wait for something, while time passes for those who try again."""
    task = asyncio.ensure_future(awaitable)
    while not task.done():
        await asyncio.wait([task], timeout=0.001)
        clock.advance(0.25)
    return task.result()


def leftovers(folder: str) -> list[str]:
    return [str(path) for path in Path(folder).rglob("*") if path.name.endswith((".tmp", "-journal"))]


class Life:
    """A manager in trouble, and what may be true of each of its agents."""

    def __init__(self, case: Case, folder: str, prefix: str, board: Board) -> None:
        self.case, self.folder, self.prefix, self.board = case, folder, prefix, board
        self.gated = DURABILITIES[case.durability]["durability"] == "call"
        self.may: dict[str, set[int | None]] = {key: {None} for key in KEYS}
        """What each agent's count may be, for all that we were told; ``None``: it is absent."""
        self.stored: dict[str, int | None] = dict.fromkeys(KEYS)
        """The last count that certainly is stored."""
        self.late: set[str] = set()
        """Who was changed when nothing could be stored any more."""
        self.doubtful: set[str] = set()
        """Whose delete may have happened."""
        self.wrong: list[str] = []
        self.told: collections.Counter[str] = collections.Counter()
        self.clock = ManualClock()
        self.manager = self.make()

    def make(self) -> InstanceManager[Counter]:
        fault = self.case.fault
        # SQLite takes a lock that is refused for one that is taken, and waits.
        busy = fault is not None and (fault.call, fault.error) == ("fcntl", "EACCES")
        return InstanceManager(
            Counter,
            store=make_store(self.case.store, self.folder, 0.05 if busy else 5.0),
            **DURABILITIES[self.case.durability],
            store_patience=1,
            idle_timeout=60,
            clock=self.clock,
        )

    # ------------------------------------------------------------ what is asked, and what may be answered

    async def ask(self, what: str, awaitable: Awaitable[Any], *also: type[Exception]) -> Any:
        """The answer; an error that may be is returned, and any other is wrong."""
        try:
            return await passing(self.clock, awaitable)
        except Exception as raised:  # whatever it is, it is judged
            error = raised
        self.told[type(error).__name__] += 1
        if not self.may_be_told(error, *also):
            self.wrong.append(f"{what} raised {type(error).__name__}: {error}")
        return error

    def may_be_told(self, error: BaseException, *also: type[Exception]) -> bool:
        if type(error) is ThawError:
            return type(error.__cause__) is StoreUnavailableError
        fault = self.case.fault
        if fault is not None and (self.case.store, fault.call, fault.error) == ("sqlite", "pread64", "EIO"):
            also += (CorruptRecordError,)  # what can't be read is damaged, says SQLite
        return type(error) in (StoreUnavailableError, OutcomeUnknownError, *also)

    def must_fail(self, fired: int) -> bool:
        """Whether nothing that was asked when so many calls had failed can have become durable."""
        fault = self.case.fault
        if fault is None or not fault.for_ever or not fault.error or not self.board.armed:
            return False
        return (fired > 0 or fault.nth == 1) and fault.call in NEEDED[self.case.store]

    def durable(self, what: str, fired: int) -> None:
        if self.must_fail(fired):
            self.wrong.append(f"{what} was said to be stored, which can't be")

    async def grow(self, key: str) -> bool:
        fired, was = self.board.fired, self.may[key]
        also = [SupersededError] if key in self.doubtful else []
        answer = await self.ask(f"grow {key}", self.manager.call(self.prefix + key, Counter.grow, SIZE), *also)
        if isinstance(answer, OutcomeUnknownError):
            self.may[key] = was | {(value or 0) + 1 for value in was}
        elif isinstance(answer, SupersededError):
            self.may[key] = {None}
        elif isinstance(answer, int):
            if answer not in {(value or 0) + 1 for value in was}:
                self.wrong.append(f"grow {key} made it {answer}, and it was one of {was}")
            self.may[key] = {answer}
            self.doubtful.discard(key)
            if self.gated:
                self.durable(f"grow {key}", fired)
                self.stored[key] = answer
            elif self.must_fail(fired):
                self.late.add(key)
        return isinstance(answer, int)

    async def keep(self, key: str, verb: str) -> None:
        """Save it or stop it: either way it is stored, or still there."""
        fired, was, known = self.board.fired, self.may[key], self.stored[key]
        live = self.manager.inspect(self.prefix + key).state == "live"
        answer = await self.ask(f"{verb} {key}", getattr(self.manager, verb)(self.prefix + key))
        if answer is None and live and len(was) == 1:
            [self.stored[key]] = was
            if self.stored[key] != known:
                self.durable(f"{verb} {key}", fired)

    async def delete(self, key: str) -> None:
        answer = await self.ask(f"delete {key}", self.manager.delete(self.prefix + key))
        if answer is None:
            self.may[key], self.stored[key] = {None}, None
        elif isinstance(answer, OutcomeUnknownError):
            self.may[key] = self.may[key] | {None}
            self.stored[key] = None
            self.doubtful.add(key)

    async def look(self, key: str) -> None:
        if self.may[key] == {None}:
            return
        agent = await self.ask(f"state {key}", self.manager.state(self.prefix + key))
        if isinstance(agent, Counter):
            if agent.count not in self.may[key] and not (agent.count == 0 and None in self.may[key]):
                self.wrong.append(f"{key} shows {agent.count}, and it is one of {self.may[key]}")
            if len(agent.freight) != agent.count:
                self.wrong.append(f"{key} is torn")

    async def list_keys(self) -> None:
        found: list[str] = []

        async def read() -> None:
            async for key in self.manager.stored_keys(self.prefix):
                found.append(key.removeprefix(self.prefix))  # noqa: PERF401  # what came before an error counts

        # A listing tells all other keys before it says that a file can't be read.
        answer = await self.ask("stored_keys", read(), CorruptRecordError)
        must = {key for key in KEYS if self.stored[key] is not None}
        can = {key for key in KEYS if self.may[key] != {None}}
        if not set(found) <= can or len(found) != len(set(found)) or (answer is None and not must <= set(found)):
            self.wrong.append(f"listed {found}: must have {must}, may have {can}")
        number = await self.ask("count_stored", self.manager.count_stored(self.prefix), CorruptRecordError)
        if isinstance(number, int) and not len(must) <= number <= len(can):
            self.wrong.append(f"counted {number}: must have {must}, may have {can}")

    def none_is_dropped(self) -> None:
        """What was acknowledged and is not stored must live, dirty, for all to see."""
        dirty = 0
        for key in KEYS:
            seen = self.manager.inspect(self.prefix + key)
            dirty += seen.dirty_since is not None
            if key in self.late and seen.dirty_since is None:
                self.wrong.append(f"{key} is acknowledged and can't be stored, and is not dirty: {seen}")
            if seen.dirty_since is not None and seen.state != "live":
                self.wrong.append(f"{key} is dirty, and not live: {seen}")
        if self.manager.stats().dirty != dirty:
            self.wrong.append(f"stats() has {self.manager.stats().dirty} dirty agents, not {dirty}")

    # ------------------------------------------------------------ spans

    async def begin(self) -> None:
        """Some are live, some are stored only, some are nowhere."""
        await self.manager.open()
        for key in ("ada", "bob", "cy", "fay"):
            await self.grow(key)
        for key in ("bob", "fay"):
            await self.keep(key, "stop")
        await self.keep("cy", "save")

    async def work(self) -> None:
        await self.grow("ada")
        await asyncio.gather(self.grow("dee"), self.grow("eve"))
        await self.grow("bob")
        await self.keep("ada", "save")
        await self.keep("ada", "stop")
        await self.grow("ada")
        for key in ("cy", "fay"):
            await self.delete(key)
        self.clock.advance(61)  # they are idle, and hibernate if they can
        for key in KEYS:
            await self.look(key)
        self.none_is_dropped()

    async def recover(self) -> None:
        """The trouble is over: everything works again, and nothing is missing."""
        self.board.armed = False
        for key in KEYS:
            for _ in range(20):  # a manager whose store was down may turn a call or two away, while it finds out
                if await self.grow(key):
                    break
                await self.ask("time", self.clock.sleep(2))
            else:
                self.wrong.append(f"{key} does not come back to work")
            await self.keep(key, "save")
        stats = self.manager.stats()
        if stats.dirty or stats.unknown:
            self.wrong.append(f"not all is stored: {stats}")
        if leftovers(self.folder):
            self.wrong.append(f"left: {leftovers(self.folder)}")

    async def close(self) -> None:
        answer = await self.ask("close", self.manager.close(deadline=5), CloseError)
        if answer is not None and not self.board.armed:
            self.wrong.append(f"close: {answer!r}")
        if not isinstance(answer, CloseError):
            return
        if answer.not_stored and self.gated:
            self.wrong.append(f"close could not store what was durable: {answer}")
        for key in (*answer.not_stored, *answer.unknown, *answer.abandoned):
            # Anything from what is stored to what was acknowledged last, but that only if nobody knows.
            name, last = key.removeprefix(self.prefix), key not in answer.not_stored
            low, high = self.stored[name], max(value or 0 for value in self.may[name])
            self.may[name] = {low, *range((low or 0) + 1, high + last)}

    async def open(self) -> None:
        """Open it in trouble; if that fails, nothing is left behind, and it works when the trouble is over."""
        before = open_files(self.folder)
        answer = await self.ask("open", self.manager.open())
        if answer is None:
            await self.grow("ada")
            return
        if open_files(self.folder) != before:
            self.wrong.append(f"an open that failed left open: {open_files(self.folder) - before}")
        self.board.armed = False
        self.manager = self.make()
        await self.manager.open()

    def crash(self) -> None:
        """It ends here: what was acknowledged in memory may be lost, back to what is stored."""
        if not self.gated:
            for key, low in self.stored.items():
                high = max(value or 0 for value in self.may[key])
                self.may[key] |= {low, *range((low or 0) + 1, high)}

    async def live(self, arm: Callable[[], int]) -> None:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        threads, span = threading.active_count(), self.case.span
        if span != "new":
            await self.begin()
        if span == "open":
            await self.manager.close()
            self.manager = self.make()
        elif span == "close":
            for key in ("ada", "bob", "dee"):
                await self.grow(key)
        before = open_files(self.folder)
        listener = arm()
        if span in ("open", "new"):
            await self.open()
        elif span == "list":
            await self.list_keys()
        elif span != "close":
            await self.work()
        if span == "crash":
            self.crash()
            return
        if span != "close":
            await self.recover()
            if span in ("work", "list") and open_files(self.folder) - before:
                self.wrong.append(f"descriptors leaked: {open_files(self.folder) - before}")
        await self.close()
        self.board.armed = False
        if open_files(self.folder):
            self.wrong.append(f"left open: {open_files(self.folder)}")
        if threading.active_count() != threads:
            self.wrong.append(f"threads are left: {threading.enumerate()}")
        for report in reports:
            if not self.may_be_told(report.get("exception", TypeError()), SupersededError):
                self.wrong.append(f"reported {report}")
        os.close(listener)


def be_the_child(case: Case, folder: str, prefix: str, board: Board, parent: socket.socket) -> None:
    """Live through the case, and tell the parent what was wrong and what may be stored."""
    if case.bug:
        plant(case.bug)
    asked = set(CALLS) if case.fault is None else {case.fault.call}

    def arm() -> int:
        listener = watch(asked | ({"close"} if asked & SYNCS else set()), parent)
        board.armed = True
        return listener

    async def live() -> None:
        life = Life(case, folder, prefix, board)
        await life.live(arm)
        may = {key: sorted(values, key=str) for key, values in life.may.items()}
        parent.send(json.dumps({"wrong": life.wrong, "may": may, "told": life.told}).encode())
        if case.span == "crash":
            os._exit(0)

    asyncio.run(live())


async def look_again(case: Case, folder: str, prefix: str, may: dict[str, list[int | None]]) -> list[str]:
    """What is wrong with what is stored, as another process finds it; then remove it."""
    wrong: list[str] = []
    async with InstanceManager(Counter, store=make_store(case.store, folder)) as manager:
        for key, values in may.items():
            try:
                await manager.get(prefix + key, missing="raise")
                agent = await manager.state(prefix + key)
            except AgentNotFoundError:
                value = None
            except OverwinterError as error:
                wrong.append(f"{key} can't be read: {type(error).__name__}: {error}")
                continue
            else:
                value = agent.count
                if len(agent.freight) != value:
                    wrong.append(f"{key} is torn")
            if value not in values:
                wrong.append(f"{key}: {value} is stored, and it is one of {values}")
            await manager.delete(prefix + key)
    return wrong + [f"left: {name}" for name in leftovers(folder)]


def run(case: Case, folder: str, number: int) -> dict[str, Any]:
    """What became of a case."""
    board, (ours, theirs) = Board(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    home = f"{folder}/new" if case.span == "new" else folder
    if case.span == "new":
        Path(home).mkdir()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            be_the_child(case, home, f"{number}/", board, theirs)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    theirs.close()
    # Until a new database has its log, SQLite rolls back by the descriptor whose flush failed; nothing is in it yet.
    rolls_back = case.store == "sqlite" and case.span == "new"
    seen = supervise(pid, ours, case.fault, folder, board, flush_again=rolls_back)
    told = json.loads(ours.recv(1 << 16) or "{}")
    ours.close()
    wrong = seen.wrong + told.get("wrong", ["it told nothing"])
    if not seen.wrong and "may" in told:
        try:
            wrong += asyncio.run(look_again(case, home, f"{number}/", told["may"]))
        except OverwinterError as error:
            wrong.append(f"the next process finds {type(error).__name__}: {error}")
    if case.span == "new":
        shutil.rmtree(home)
    return {"wrong": wrong, "fired": board.fired, "told": told.get("told", {}), "calls": seen.calls}


async def make(kind: str, folder: str) -> None:
    async with InstanceManager(Counter, store=make_store(kind, folder)) as manager:
        await manager.call("somebody else", Counter.grow, SIZE)


def main(folder: str) -> None:
    for number, line in enumerate(sys.stdin):
        case = json.loads(line)
        case = Case(**{**case, "fault": case["fault"] and Fault(**case["fault"])})
        home = f"{folder}/{case.store}"
        if not Path(home).exists():
            Path(home).mkdir()
            asyncio.run(make(case.store, home))
        result = run(case, home, number)
        if result["wrong"]:  # the next begin without what it left
            shutil.rmtree(home)
        os.write(1, json.dumps(result).encode() + b"\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[2])["folder"])
