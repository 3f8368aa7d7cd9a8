"""Hibernate and thaw by hand, without a manager: the three outcomes of a thaw.

There is an agent, there is none, or there is something that can't be read. The third is never taken for the second:
a fresh agent in its place would overwrite what a backup, or an older release, may still save.
"""

from __future__ import annotations

import asyncio
import os

from overwinter import Agent, MemoryStore, Persistence, Store
from overwinter.errors import RevisionConflictError, ThawError


class Note(Agent, name="note"):
    text: str = ""


async def thaw(persistence: Persistence, key: str) -> Note:
    try:
        note = await persistence.thaw(Note, key)
    except ThawError as error:
        print(f"{key}: failed to thaw, and left alone: {type(error).__name__}")
        raise
    if note is None:
        print(f"{key}: not found, so it starts fresh")
        return Note()
    print(f"{key}: thawed, it says {note.text!r}")
    return note


async def main() -> None:
    store = MemoryStore()  # or SQLiteStore("notes.db")
    async with Persistence(store) as persistence:
        note = await thaw(persistence, "agent-123")  # not found
        note.text = "buy tea"
        await persistence.hibernate("agent-123", note)  # durable when it returns

        mine = await thaw(persistence, "agent-123")  # thawed
        theirs = await thaw(persistence, "agent-123")
        mine.text = "buy bread"
        await persistence.hibernate("agent-123", mine)

        theirs.text = "buy milk"
        try:  # what theirs was made of is no longer what is stored
            await persistence.hibernate("agent-123", theirs)
        except RevisionConflictError:
            print("agent-123: somebody else wrote it meanwhile, nothing was overwritten")

        await damage(store, "note:agent-123")
        try:
            await thaw(persistence, "agent-123")  # failed
        except ThawError:
            await persistence.delete(Note, "agent-123")  # or restore a backup
            print("agent-123: deleted")


async def damage(store: Store, key: str) -> None:
    """Do what a bad disk does: turn one bit."""
    stored = await store.get(key)
    assert stored is not None
    broken = bytes([*stored.data[:-1], stored.data[-1] ^ 1])
    await store.put(key, broken, revision=os.urandom(16), expected=stored.revision)


if __name__ == "__main__":
    asyncio.run(main())
