"""A session that keeps a format of its own, and still reads what last year's release wrote.

An agent's annotated fields are kept as they are; then session_upcast.py shows all that a new version needs.
Override `dump` and `load` when what you keep should differ from what you hold: here items and prices are kept as one
compact list, and the total is not kept at all.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any, Self

from overwinter import Agent, InstanceManager, SQLiteStore


class LastYearsSession(Agent, name="session"):
    """Version 1, as it was released: a cart was a list of items. It is here only to write an old record."""

    user_id: str
    cart: list[str] = []

    async def add(self, item: str) -> None:
        self.cart.append(item)

    def dump(self) -> Any:
        return {"user_id": self.user_id, "cart": self.cart}

    @classmethod
    def load(cls, data: Any, version: int) -> Self:  # noqa: ARG003  # there was one version only
        return cls(user_id=data["user_id"], cart=data["cart"])


class Session(Agent, name="session", version=2):
    """Version 2: a cart has amounts, and there are preferences."""

    user_id: str
    cart: dict[str, int] = {}
    preferences: dict[str, str] = {}
    total: int = 0

    async def add(self, item: str, amount: int = 1) -> int:
        self.cart[item] = self.cart.get(item, 0) + amount
        self.total += amount
        return self.total

    async def prefer(self, name: str, value: str) -> None:
        self.preferences[name] = value

    def dump(self) -> Any:
        """Return plain data: None, bool, int, float, str, bytes, and lists and dicts of them."""
        return {
            "user_id": self.user_id,
            "cart": [[item, amount] for item, amount in self.cart.items()],
            "preferences": self.preferences,
        }

    @classmethod
    def load(cls, data: Any, version: int) -> Self:
        """Make an agent of what `dump` returned; `version` is that of the class that did."""
        if version == 1:
            amounts = {item: data["cart"].count(item) for item in data["cart"]}
            data = {"user_id": data["user_id"], "cart": list(amounts.items()), "preferences": {}}
        cart = dict(data["cart"])
        return cls(user_id=data["user_id"], cart=cart, preferences=data["preferences"], total=sum(cart.values()))


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sessions.db")

        async with InstanceManager(LastYearsSession, store=SQLiteStore(path)) as old:
            async with old.attach("user-123", initial={"user_id": "ada"}) as session_1:
                for item in ("tea", "tea", "bread"):
                    await session_1.add(item)

        # A year later the new release finds the old record, and migrates it as it thaws.
        async with InstanceManager(Session, store=SQLiteStore(path), idle_timeout=15 * 60) as sessions:
            async with sessions.attach("user-123") as session:
                print("items after adding two more:", await session.add("tea", amount=2))
                await session.prefer("language", "en")

        # Once it changed, it is stored as version 2.
        async with InstanceManager(Session, store=SQLiteStore(path)) as sessions:
            state = await sessions.state("user-123")
            print("cart:", state.cart)
            print("preferences:", state.preferences)


if __name__ == "__main__":
    asyncio.run(main())
