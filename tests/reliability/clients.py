"""Clients that write down what they did: run as ``python clients.py ROLE OPTIONS``, OPTIONS being JSON.

For each line on stdin, JSON with the options of one round, it forks a process that runs the round, so that a killed
one is replaced at once.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from histories import ABSENT, ANY, Recorder
from worker import say

from overwinter import Agent, InstanceManager, readonly
from overwinter.errors import (
    OutcomeUnknownError,
    RevisionConflictError,
    StoreUnavailableError,
    SupersededError,
    ThawError,
)
from overwinter.stores import Expect, Store, from_url

__all__ = ["Register", "agent_client", "make_store", "store_client"]

_PR_SET_PDEATHSIG = 1
Enough = Callable[[int], bool]
"""Whether so many operations of a client, each with an outcome or an unknown one, are enough."""

Known = dict[str, list[str | None]]
"""What the clients of one process saw under each key."""

STALLS = 0.05
"""How often a client of an agent holds up its event loop."""

REFUSED = 0.002
"""Seconds until a client that was refused tries again."""


def make_store(url: str, timeout: float, options: dict[str, Any]) -> Store:
    """*options* are those of an object store; the others have none here."""
    if options:
        from overwinter.stores.objects import ObjectStore

        return ObjectStore(url, timeout=timeout, **options)
    store = from_url(url)
    store.timeout = timeout
    return store


def enough_at(operations: int, until: str) -> Enough:
    """So many, and the file *until* is there: what is to go wrong has gone wrong."""
    return lambda done: done >= operations and Path(until).exists()


# ---------------------------------------------------------------- of a store


def content(key: str, revision: str) -> bytes:
    return f"{key} {revision} ".encode() * 8


async def store_client(
    store: Store, recorder: Recorder, keys: list[str], known: Known, enough: Enough, dice: random.Random
) -> None:
    """Do operations that mostly fit what was seen last, and else what was there once."""
    done = 0
    while not enough(done):
        key = dice.choice(keys)
        verb = dice.choices(("put", "delete", "get", "head"), (5, 1, 3, 1))[0]
        seen_here = known.setdefault(key, [ABSENT])
        expected = seen_here[-1] if dice.random() < 0.8 else dice.choice(seen_here)
        if verb == "delete":
            expected = expected or ANY
        new = os.urandom(16).hex() if verb == "put" else ABSENT
        number = recorder.call(key, verb, *(() if verb in ("get", "head") else (expected, new)))
        try:
            if verb == "put":
                condition = Expect.ABSENT if expected is ABSENT else bytes.fromhex(expected)
                await store.put(key, content(key, new or ""), revision=bytes.fromhex(new or ""), expected=condition)
                seen = new
            elif verb == "delete":
                await store.delete(key, expected=Expect.ANY if expected == ANY else bytes.fromhex(expected or ""))
                seen = ABSENT
            elif verb == "head":
                head = await store.head(key)
                seen = None if head is None else head.hex()
            else:
                stored = await store.get(key)
                seen = None if stored is None else stored.revision.hex()
                assert stored is None or stored.data == content(key, stored.revision.hex()), "torn, or another's"
        except RevisionConflictError:
            recorder.back(number, "conflict")
        except StoreUnavailableError:
            recorder.back(number, "none")
            await asyncio.sleep(REFUSED)
            continue
        except OutcomeUnknownError:
            pass  # no outcome is written down
        else:
            recorder.back(number, "done", seen)
            seen_here.append(seen)
        done += 1


async def use_store(
    url: str, timeout: float, options: dict[str, Any], path: str, keys: list[str], clients: int, operations: int,
    until: str, seed: str,
) -> None:  # fmt: skip
    known: Known = {}
    async with make_store(url, timeout, options) as store, asyncio.TaskGroup() as group:
        recorder = Recorder(path)
        for number in range(clients):
            dice = random.Random(f"{seed} {number}")
            group.create_task(store_client(store, recorder, keys, known, enough_at(operations, until), dice))


# ---------------------------------------------------------------- of agents


class Register(Agent, name="register"):
    value: str = ""
    count: int = 0

    async def swap(self, value: str) -> tuple[str, int]:
        """Return what was there before."""
        before = self.value, self.count
        self.value = value
        await asyncio.sleep(0)
        self.count += 1
        return before

    async def fail(self, value: str) -> None:
        await self.swap(value)
        raise ValueError("as asked")

    @readonly
    async def read(self) -> tuple[str, int]:
        return self.value, self.count


async def agent_client(
    registers: InstanceManager[Register], recorder: Recorder, keys: list[str], enough: Enough, dice: random.Random
) -> None:
    done = 0
    while not enough(done):
        key = dice.choice(keys)
        verb = dice.choices(("swap", "fail", "read"), (10, 1, 9))[0]
        new = os.urandom(8).hex()
        if dice.random() < STALLS:
            time.sleep(
                dice.uniform(0, 0.01)
            )  # so that the loop hears late of what is stored, and known elsewhere, already
        number = recorder.call(key, verb, *(() if verb == "read" else (new,)))
        try:
            if verb == "read":
                seen = await registers.call(key, Register.read)
            elif verb == "swap":
                seen = await registers.call(key, Register.swap, new)
            else:
                await registers.call(key, Register.fail, new)
        except ValueError:
            recorder.back(number, "none")
        except (StoreUnavailableError, SupersededError, ThawError):  # a thaw: nothing was started
            recorder.back(number, "none")
            await asyncio.sleep(REFUSED)
            continue
        except OutcomeUnknownError:
            pass  # no outcome is written down
        else:
            recorder.back(number, "done", seen)
            await asyncio.sleep(0)  # a read may not wait for anything
        done += 1


async def use_agents(
    url: str, timeout: float, options: dict[str, Any], path: str, keys: list[str], clients: int, operations: int,
    until: str, seed: str, **manager: Any,
) -> None:  # fmt: skip
    store = make_store(url, timeout, options)
    async with InstanceManager(Register, store=store, **manager) as registers, asyncio.TaskGroup() as group:
        recorder = Recorder(path)
        for number in range(clients):
            dice = random.Random(f"{seed} {number}")
            group.create_task(agent_client(registers, recorder, keys, enough_at(operations, until), dice))


# ---------------------------------------------------------------- the process


ROLES = {"store": use_store, "agents": use_agents}


def round_of(role: str, options: dict[str, Any]) -> None:
    """What the forked process does; it dies with this one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        asyncio.run(ROLES[role](**options))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main(role: str, common: dict[str, Any]) -> None:
    make_store(common["url"], 1, common["options"])  # its driver is loaded before any fork
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            round_of(role, {**common, **json.loads(line)})
        say("began", pid)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
