"""A process that races for revisions on a Redis: puts when told to, and settles an unknown outcome as managers do."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from overwinter.errors import OutcomeUnknownError, RevisionConflictError, StoreUnavailableError
from overwinter.stores import Store
from overwinter.stores.redis import RedisStore


async def settle(store: Store, key: str, data: bytes, expected: bytes) -> bytes | None:
    """Put until the outcome is known; return our revision, or ``None`` if another was faster.

    Each try has twice the time of the one before it, so that a slow machine gets there too.
    """
    attempted: list[bytes] = []
    while True:
        store.timeout *= 2
        revision = os.urandom(16)
        try:
            await store.put(key, data, revision=revision, expected=expected)
        except StoreUnavailableError:
            continue
        except OutcomeUnknownError:
            attempted.append(revision)
        except RevisionConflictError:
            while True:
                store.timeout *= 2
                try:
                    found = await store.head(key)
                except StoreUnavailableError:
                    continue
                return found if found in attempted else None
        else:
            return revision


async def main() -> None:
    options = json.loads(sys.argv[2])
    loop = asyncio.get_running_loop()
    async with RedisStore(options["url"]) as store:
        print("ready", flush=True)
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            store.timeout = options["timeout"] / 2
            won = await settle(store, "key", b"child", bytes.fromhex(line))
            print("lost" if won is None else f"won {won.hex()}", flush=True)


asyncio.run(main())
