"""A class that changed: the usual way to migrate.

`version=2` names the shape of the fields, and an `@upcast` for each former version makes the next one's data of it.
An agent is migrated when it thaws. Its record is written anew when something changes it, not before; an upcast that
raises leaves the stored bytes as they are.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from overwinter import Agent, InstanceManager, SQLiteStore, upcast


class LastYearsSession(Agent, name="session"):
    """Version 1, as it was released. It is here only to write an old record."""

    user_id: str
    cart: list[str] = []

    async def add(self, item: str) -> None:
        self.cart.append(item)


class Session(Agent, name="session", version=2):
    """Version 2: a cart has amounts, and there are preferences."""

    user_id: str
    cart: dict[str, int] = {}
    preferences: dict[str, str] = {}  # a new field with a default would need no new version

    @upcast(since=1)
    @staticmethod
    def _carts_have_amounts(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "cart": {item: old["cart"].count(item) for item in old["cart"]}}

    async def add(self, item: str, amount: int = 1) -> dict[str, int]:
        self.cart[item] = self.cart.get(item, 0) + amount
        return self.cart


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sessions.db")

        async with InstanceManager(LastYearsSession, store=SQLiteStore(path)) as old:
            async with old.attach("user-123", initial={"user_id": "ada"}) as session_1:
                for item in ("tea", "tea", "bread"):
                    await session_1.add(item)

        async with InstanceManager(Session, store=SQLiteStore(path)) as sessions:
            async with sessions.attach("user-123") as session:
                print("cart:", await session.add("bread"))


if __name__ == "__main__":
    asyncio.run(main())
