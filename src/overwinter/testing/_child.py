"""The child process of the contract: it writes and says what was acknowledged, until it is killed or has done its work.

This file knows the store protocol and one line of output per event. Each line is one system call, so what was said is
said even if the next thing that happens is the end.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..errors import OutcomeUnknownError, RevisionConflictError, StoreError, StoreUnavailableError, UsageError
from ..stores.base import Expect, Revision, Store
from ._factory import Factory, from_arguments, store_of

__all__ = ["content", "main", "step_of", "tell", "wait_for_a_tracer"]

_DELETES = 5  # each fifth step deletes
_TRACED = 6
_HANGS = 30  # seconds
_COUNTS = 0.3  # seconds for which two processes count
_PR_SET_PTRACER = 0x59616D61


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def tell(*words: object) -> None:
    """Say it with another system call than those that change files: it must not be counted among them."""
    os.writev(1, [(" ".join(map(str, words)) + "\n").encode()])


def content(key: str, step: int) -> bytes | None:
    """What is stored under *key* after *step* changes: a header and bytes that follow from it."""
    if step % _DELETES == 0:
        return None
    name = f"{key}/{step}"
    return name.encode() + b"/" + hashlib.shake_128(name.encode()).digest(step * 997 % 20_000)


def step_of(key: str, data: bytes | None) -> int | None:
    """Which step left *data* under *key*; ``None`` if no single one did."""
    if data is None:
        return 0
    parts = data[:200].split(b"/")
    step = int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else 0
    return step if content(key, step) == data else None


# ---------------------------------------------------------------- to be killed


async def write(store: Store, name: str, writers: str, die_at: str) -> None:
    """Change keys for ever. Die with the acknowledgement number *die_at*, or when a change is seen before its own."""
    acknowledged = dict.fromkeys((f"{name} {number}" for number in range(int(writers))), 0)
    told = 0

    async def change(key: str) -> None:
        nonlocal told
        expected: Revision | Expect = Expect.ABSENT
        while True:
            step = acknowledged[key] + 1
            data = content(key, step)
            if data is None:
                await store.delete(key, expected=expected)
                expected = Expect.ABSENT
            else:
                new = os.urandom(16)
                await store.put(key, data, revision=new, expected=expected)
                expected = new
            acknowledged[key] = step
            tell("done", key, step)
            told += 1
            if told == int(die_at):
                os.kill(os.getpid(), signal.SIGKILL)

    async def look(key: str) -> None:
        while True:
            stored = await store.get(key)
            step = (step_of(key, stored.data) or 0) if stored is not None else 0
            if step > acknowledged[key]:
                tell("seen", key, step)
                if die_at == "-1":
                    os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(0)

    await asyncio.gather(*map(change, acknowledged), *map(look, acknowledged))


def write_often(factory: Factory, writers: str, die_at: str, *names: str) -> None:
    """Write once for each name, in a forked child each, which waits until somebody traces it."""
    for name in names:
        child = os.fork()
        if child == 0:
            signal.alarm(_HANGS)
            wait_for_a_tracer()
            asyncio.run(_with(factory, write, name, writers, die_at))
            os._exit(0)
        tell("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def wait_for_a_tracer() -> None:
    """Say that this process may be traced, and wait until every thread of it is."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1))  # where Yama would let only an ancestor do it
    tell("ready", os.getpid())
    while any("TracerPid:\t0\n" in task.read_text() for task in Path("/proc/self/task").glob("*/status")):
        time.sleep(0.001)


# ---------------------------------------------------------------- to be traced


async def trace(store: Store) -> None:
    """Put, replace and delete, one by one and together, with marks in the data that a trace of system calls shows."""
    number = 0

    async def change(key: str, expected: Revision | Expect) -> Revision:
        nonlocal number
        number += 1
        name, mark, new = f"put-{number}", os.urandom(8).hex(), os.urandom(8).hex().encode()
        unknown = True
        say("begin", name, mark, new.decode())

        async def look() -> None:
            while unknown:
                stored = await store.get(key)
                if stored is not None and stored.revision == new and unknown:
                    say("seen", name)
                    return
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        await store.put(key, f"{mark} ".encode() * 8, revision=new, expected=expected)
        unknown = False
        say("done", name)
        await looking
        return new

    base: Revision | Expect = Expect.ABSENT
    for _ in range(_TRACED):
        base = await change("traced", base)
    together = await asyncio.gather(*(change(f"traced {each}", Expect.ABSENT) for each in range(_TRACED)))
    assert isinstance(base, bytes)
    for key, revision in (("traced", base), ("traced 1", together[1])):
        number += 1
        say("begin", f"delete-{number}", revision.decode())
        await store.delete(key, expected=revision)
        say("done", f"delete-{number}")
    say("end")


# ---------------------------------------------------------------- to fork


async def fork(store: Store) -> None:
    """Use the store in a forked child, which may be refused, and then here, which must work."""
    new = os.urandom(16)
    await store.put("forked", b"here", revision=new, expected=Expect.ABSENT)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # a child that hangs is ended by it
        os._exit(_outcome(store, new))
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    outcomes = {0: "refused", 1: "served"}
    code = os.waitstatus_to_exitcode(status)
    words = {2: "the child got another exception than UsageError", 3: "the child got a wrong answer"}
    if code not in outcomes:
        say(words.get(code, "the child hung or crashed"))
        return
    say(outcomes[code])
    stored = await store.get("forked")
    if stored is None or stored.revision != new:
        say("the parent can't read what it had put")
        return
    await store.put("forked", b"again", revision=os.urandom(16), expected=new)
    say("done")


def _outcome(store: Store, revision: Revision) -> int:
    try:
        stored = asyncio.run(store.get("forked"))  # the parent's loop runs in the parent only
    except UsageError:
        return 0
    except Exception:  # noqa: BLE001  # whatever it is, it is not what it should be
        return 2
    return 1 if stored is not None and stored.revision == revision else 3


# ---------------------------------------------------------------- to be raced


async def count(factory: Factory, key: str) -> None:
    """Count under *key* for a while, beside another process; say how often it was told that it did, and may have."""
    try:
        store = store_of(factory)
        await store.__aenter__()
        await store.claim("counts", shared=True, wait=0)  # as managers of several processes do
    except StoreError:
        say("refused")
        raise
    told = unknown = 0
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    end = time.monotonic() + _COUNTS
    while time.monotonic() < end:
        try:
            stored = await store.get(key)
            value = 0 if stored is None else int(stored.data)
            expected = Expect.ABSENT if stored is None else stored.revision
            await store.put(key, b"%d" % (value + 1), revision=os.urandom(16), expected=expected)
            told += 1
        except OutcomeUnknownError:
            unknown += 1
        except (RevisionConflictError, StoreUnavailableError):
            await asyncio.sleep(0)
    await store.release("counts")
    await store.__aexit__(None, None, None)
    say(told, unknown)


_MODES: dict[str, Callable[..., Awaitable[None]]] = {"write": write, "trace": trace, "fork": fork}


def main() -> None:
    """Run a mode with its options up to ``--``, on the store that follows."""
    mode, *rest = sys.argv[1:]
    end = rest.index("--")
    factory = from_arguments(rest[end + 1 :])
    if mode == "write often":
        write_often(factory, *rest[:end])
    elif mode == "count":
        asyncio.run(count(factory, *rest[:end]))
    else:
        asyncio.run(_with(factory, _MODES[mode], *rest[:end]))


async def _with(factory: Factory, work: Callable[..., Awaitable[None]], *options: str) -> None:
    async with store_of(factory) as store:
        await work(store, *options)
