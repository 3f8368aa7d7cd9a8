"""A process that races for revisions of a store, or for an agent, with time-outs so short that a stop exceeds them.

Run as ``python racer.py ROLE OPTIONS``; it does what a line on stdin says, and tells the outcome.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from clients import Register, make_store
from worker import order, say

from overwinter import InstanceManager
from overwinter.errors import OutcomeUnknownError, OverwinterError, RevisionConflictError, StoreUnavailableError
from overwinter.stores import Expect, Store

PATIENT = 10.0


@asynccontextmanager
async def hasty_store(url: str, options: dict[str, Any], timeout: float) -> AsyncGenerator[Store]:
    """What is on disk has its time-out from the start; a server is first reached in peace."""
    store = make_store(url, timeout if url.startswith(("file:", "sqlite:")) else PATIENT, options)
    async with store:
        store.timeout = timeout
        yield store


async def settle(hasty: Store, patient: Store, key: str, expected: bytes | Expect) -> bytes | None:
    """Put until the outcome is known, as managers do; return our revision, or ``None`` if another was faster."""
    attempted: list[bytes] = []
    store = hasty
    while True:
        revision = os.urandom(16)
        try:
            await store.put(key, b"child", revision=revision, expected=expected)
        except StoreUnavailableError:
            pass  # it was not stored
        except OutcomeUnknownError:
            attempted.append(revision)
        except RevisionConflictError:
            found = await patient.head(key)
            return found if found in attempted else None
        else:
            return revision
        store = patient


async def race_for_revisions(url: str, options: dict[str, Any], timeout: float) -> None:
    """Each line: a key, and the revision that is expected or "absent"."""
    async with hasty_store(url, options, timeout) as hasty, make_store(url, PATIENT, options) as patient:
        say("ready")
        while line := await order():
            key, base = line.split()
            won = await settle(hasty, patient, key, Expect.ABSENT if base == "absent" else bytes.fromhex(base))
            say("lost" if won is None else f"won {won.hex()}")


class Held(Register, name="register"):
    async def swap_held(self, value: str) -> tuple[str, int]:
        """Wait in the turn until told to go on."""
        say("began")
        await order()
        return await self.swap(value)


async def until_it_lives(registers: InstanceManager[Held], key: str) -> None:
    """What the last race left in doubt is settled first."""
    while True:
        try:
            await registers.call(key, Held.read)
        except OverwinterError:
            await asyncio.sleep(0.005)
        else:
            return


async def race_for_an_agent(url: str, options: dict[str, Any], timeout: float, **manager: Any) -> None:
    """Each line: a method, a key, and the new value of its ``Register``."""
    async with (
        hasty_store(url, options, timeout) as store,
        InstanceManager(Held, store=store, store_patience=timeout, shared=True, **manager) as registers,
    ):
        say("ready")
        while line := await order():
            method, key, value = line.split()
            store.timeout = PATIENT
            await until_it_lives(registers, key)  # and may be stale when it writes
            store.timeout = PATIENT if method == "swap_held" else timeout  # that one shall not fail before it is held
            try:
                before = await registers.call(key, getattr(Held, method), value)
            except OverwinterError as error:
                say(type(error).__name__)
            else:
                say("reply", json.dumps(before))


ROLES = {"revisions": race_for_revisions, "agent": race_for_an_agent}

if __name__ == "__main__":
    asyncio.run(ROLES[sys.argv[1]](**json.loads(sys.argv[2])))
