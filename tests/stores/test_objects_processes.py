"""Two processes on one bucket, one of which is stopped in the middle of a write and goes on when the other is done."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter

from moto_server import MotoServer

from overwinter.errors import RevisionConflictError
from overwinter.stores import Expect
from overwinter.stores.objects import ObjectStore

RACES = 100
TIMEOUT = 0.2

STALE = """
import asyncio, json, sys
from overwinter.errors import OutcomeUnknownError, RevisionConflictError, StoreUnavailableError
from overwinter.stores.objects import ObjectStore

async def main():
    place, options, timeout = json.loads(sys.argv[1])
    async with ObjectStore(place, **options) as store:
        store.timeout = timeout
        print("open", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            base, new = map(bytes.fromhex, line.split())
            print("began", flush=True)
            try:
                await store.put("a:key", b"stale", revision=new, expected=base)
            except (OutcomeUnknownError, RevisionConflictError, StoreUnavailableError) as error:
                print(type(error).__name__, flush=True)
            else:
                print("stored", flush=True)

asyncio.run(main())
"""


async def test_of_two_processes_one_wins_each_revision(s3: MotoServer, child) -> None:
    place, dice = f"s3://{s3.bucket}/{os.urandom(8).hex()}", random.Random(4)
    process = child(STALE, json.dumps([place, s3.options, TIMEOUT]), prelude="")
    lines = asyncio.to_thread
    assert await lines(process.stdout.readline) == "open\n"
    outcomes: Counter[str] = Counter()
    async with ObjectStore(place, **s3.options) as store:
        base = os.urandom(16)
        await store.put("a:key", b"base", revision=base, expected=Expect.ABSENT)
        for race in range(RACES):
            theirs, ours = os.urandom(16), os.urandom(16)
            early = race % 4 == 0  # before its write, and else somewhere in it
            if early:
                process.send_signal(signal.SIGSTOP)
            process.stdin.write(f"{base.hex()} {theirs.hex()}\n")
            process.stdin.flush()
            if not early:
                assert await lines(process.stdout.readline) == "began\n"
                await asyncio.sleep(dice.random() * 0.02)
                process.send_signal(signal.SIGSTOP)
            try:
                await store.put("a:key", b"ours", revision=ours, expected=base)
                won = True
            except RevisionConflictError:
                won = False
            if race % 5 == 0:
                await asyncio.sleep(TIMEOUT)  # its time runs out while it stands still
            process.send_signal(signal.SIGCONT)
            if early:
                assert await lines(process.stdout.readline) == "began\n"
            verdict = (await lines(process.stdout.readline)).strip()
            outcomes[verdict] += 1
            there = await store.get("a:key")
            assert there is not None
            assert (there.revision == ours) == won, "an acknowledged write was lost"
            assert there.revision in (ours, theirs)
            assert verdict != "stored" or not won, "two winners of one revision"
            assert verdict not in ("RevisionConflictError", "StoreUnavailableError") or won, "nobody won"
            base = there.revision
    assert outcomes["RevisionConflictError"]
