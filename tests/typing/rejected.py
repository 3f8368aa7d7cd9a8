"""What a type checker must reject. Each marked line has to be an error; the test counts them. Never run."""

from __future__ import annotations

from overwinter import Agent, InstanceManager, transient


class Counter(Agent):
    count: int = 0
    log: list[str] = transient()

    async def increment(self, by: int = 1) -> int:
        self.count += by
        return self.count


class Other(Agent):
    user: str

    async def poke(self) -> None: ...


class Bad(Agent, version="2"): ...  # WRONG for pyright


async def main(counters: InstanceManager[Counter]) -> None:
    async with counters.attach("ada") as counter:
        await counter.increment(by="2")  # WRONG
        await counter.incremnt()  # WRONG
        _number: int = counter.increment()  # WRONG
        counter.increment()  # WRONG
    await counters.call("ada", Counter.increment, by="2")  # WRONG
    await counters.call("ada", Counter.increment, bye=2)  # WRONG
    await counters.call("ada", Other.poke)  # WRONG
    counters.tell("ada", Other.poke)  # WRONG
    _total: int = counters.call("ada", Counter.increment)  # WRONG
    await counters.get("ada", initial=Other(user="u"))  # WRONG
    Other()  # WRONG
    Counter(1)  # WRONG
    Counter(log=[])  # WRONG
    Counter(counts=1)  # WRONG
