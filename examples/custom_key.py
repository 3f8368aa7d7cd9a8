"""Where records go: a key function of your own.

`key_fn(name, key)` makes the store's key of the agent's name and its key. It must tell all pairs apart; the default
does, by escaping the colon in the name: `name:key`. Here two tenants share one database, each with keys of its own.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from overwinter import Agent, InstanceManager, SQLiteStore
from overwinter.persistence import KeyFunction


class Cart(Agent, name="cart"):
    items: list[str] = []

    async def add(self, item: str) -> int:
        self.items.append(item)
        return len(self.items)


def tenant_keys(tenant: str) -> KeyFunction:
    if "/" in tenant:
        raise ValueError("a tenant's name must not hold a slash, or its keys could be another tenant's")
    return lambda name, key: f"{tenant}/{name}/{key}"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shop.db")
        for tenant, item in [("acme", "anvil"), ("globex", "globe"), ("acme", "rocket")]:
            async with InstanceManager(Cart, store=SQLiteStore(path), key_fn=tenant_keys(tenant)) as carts:
                count = await carts.call("ada", Cart.add, item)
                print(f"{tenant}: ada has {count} in the cart")

        async with SQLiteStore(path) as store:
            for key in ("acme/cart/ada", "globex/cart/ada", "cart:ada"):
                print(f"{key}:", "stored" if await store.get(key) else "nothing")


if __name__ == "__main__":
    asyncio.run(main())
