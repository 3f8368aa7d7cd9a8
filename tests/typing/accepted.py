"""What a type checker must accept and infer: checked by mypy and pyright, never run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self, assert_type

from overwinter import Agent, AgentSystem, InstanceManager, Persistence, Signal, on, readonly, transient, upcast
from overwinter.stores import Copied, MemoryStore, copy_records


@dataclass
class Message:
    role: str
    text: str


class App:
    """A context."""


class Counter(Agent):
    count: int = 0

    async def increment(self, by: int = 1) -> int:
        self.count += by
        return self.count

    @readonly
    async def read(self) -> int:
        return self.count


class Chat(Agent, name="chat.session", version=2, aliases=("session",)):
    topic: str = "unknown"
    user: str  # a required field may follow a default
    history: list[Message] = []
    app: App = transient()

    @upcast(since=1)
    @staticmethod
    def _topic_was_missing(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "topic": "unknown"}

    async def on_start(self, app: App) -> None:
        self.app = app

    async def say(self, text: str) -> AsyncIterator[str]:
        self.history.append(Message("user", text))
        yield text

    @on("chat.rename")
    async def rename(self, topic: str) -> None:
        self.topic = topic


class Plain(Agent):
    async def on_start(self) -> None: ...


class Custom(Agent):
    n: int = 0

    def dump(self) -> Any:
        return self.n

    @classmethod
    def load(cls, data: Any, version: int) -> Self:
        return cls(n=data)


class Worker(Agent):
    @abstractmethod
    async def work(self, job: str) -> int: ...


class Digger(Worker):
    async def work(self, job: str) -> int:
        return len(job)


async def main(
    counters: InstanceManager[Counter], chats: InstanceManager[Chat], diggers: InstanceManager[Digger]
) -> None:
    async with counters.attach("ada") as counter:
        assert_type(counter, Counter)
        assert_type(await counter.increment(by=2), int)
    assert_type(await counters.call("ada", Counter.increment, by=2), int)
    assert_type(await counters.call("ada", Counter.increment, 2), int)
    assert_type(await counters.call("ada", Counter.read), int)
    assert_type(counters.lookup("ada"), Counter | None)
    assert_type([key async for key in counters.stored_keys()], list[str])
    assert_type(await counters.count_stored("a"), int)
    async with Persistence(MemoryStore()) as persistence:
        assert_type([key async for key in persistence.keys(Counter)], list[str])
    bar: list[int] = []
    copied = await copy_records(MemoryStore(), MemoryStore(), on_progress=lambda so_far: bar.append(so_far.seen))
    assert_type(copied, Copied)
    assert_type(await counters.state("ada"), Counter)
    assert_type(counters.tell("ada", Counter.increment, by=3), None)

    chat = await chats.get("s1", initial={"user": "ada"})
    await chats.get("s2", initial=Chat(user="ada"))
    async for token in chat.say("hi"):
        assert_type(token, str)
    async for token in chats.call("s1", Chat.say, "hi"):
        assert_type(token, str)
    async with chats.call("s1", Chat.say, "hi") as words:
        assert_type(await anext(words), str)
    await chats.call("s1", Signal("chat.rename", {"topic": "winter"}))
    chats.tell("s1", Signal("chat.rename", {"topic": "winter"}))

    assert_type(await diggers.call("d", Worker.work, "hole"), int)

    async with AgentSystem(store=MemoryStore(), context=App()) as system:
        assert_type(system.manager(Counter, idle_timeout=60), InstanceManager[Counter])
    async with Persistence(MemoryStore()) as persistence:
        assert_type(await persistence.thaw(Counter, "ada"), Counter | None)
        await persistence.hibernate("ada", Counter(count=1))


plain = Counter(count=1)
assert_type(plain.count, int)
managed = InstanceManager(Counter, store=MemoryStore(), idle_timeout=60)
assert_type(managed, InstanceManager[Counter])
