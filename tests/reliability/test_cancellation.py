"""Cancelling a caller is safe at every await of what a manager does: nothing lost, leaked, locked or half-written.

Whether a change is there is known exactly: it is if, and only if, its body came to its end, or to a commit point.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from proofs import Proof

from overwinter import Agent, InstanceManager, commit, transient
from overwinter.errors import CorruptRecordError
from overwinter.persistence import default_key
from overwinter.record import unpack
from overwinter.runtime._arriving import Arriving
from overwinter.runtime._attachment import Attachment
from overwinter.runtime._performer import Performer
from overwinter.runtime._stream import Stream
from overwinter.runtime._turn import TURN
from overwinter.runtime._turnstile import Turnstile
from overwinter.stores import (
    Durability,
    FileStore,
    MemoryStore,
    ObjectStore,
    PostgresStore,
    RedisStore,
    SQLiteStore,
    Store,
)
from overwinter.testing import _steps, until
from overwinter.testing._steps import cancelled_everywhere, within


class Book(Agent):
    """Counts in two halves, with an await between them."""

    half: int = 0
    whole: int = 0

    async def add(self, world: World) -> int:
        await self._turn_page()
        world.ended[self.key] += 1
        return self.whole

    async def _turn_page(self) -> None:
        self.half += 1
        await asyncio.sleep(0)
        self.whole += 1

    async def add_when(self, world: World, event: asyncio.Event) -> int:
        await event.wait()
        return await self.add(world)

    async def add_twice(self, world: World) -> int:
        await self._turn_page()
        world.ended[self.key] += 1  # a commit begins by making a version, and that stays
        await commit()
        return await self.add(world)

    async def ask(self, world: World, other: str) -> int:
        self.half += 1
        world.reply(other, await world.manager.call(other, Book.add, world))
        self.whole += 1
        world.ended[self.key] += 1
        return self.whole

    async def tell(self, world: World, other: str) -> int:
        world.manager.tell(other, Book.add, world)
        return await self.add(world)

    async def pages(self, world: World, number: int) -> Any:
        for _ in range(number):
            await self._turn_page()
            world.ended[self.key] += 1  # as with a commit
            yield self.whole


class Starting(Book):
    """The same, with a beginning and an end."""

    world: World = transient()

    async def on_start(self, world: World) -> None:
        self.world = world
        world.alive[self.key] += 1
        world.most_alive = max(world.most_alive, world.alive[self.key])
        await asyncio.sleep(0)

    async def on_stop(self) -> None:
        await asyncio.sleep(0)
        self.world.alive[self.key] -= 1


class SlowStore(MemoryStore):
    """Its operations take some passes of the event loop, before and after."""

    async def get(self, key: str) -> Any:
        async with some_passes():
            return await super().get(key)

    async def put(self, key: str, data: bytes, **more: Any) -> None:
        async with some_passes():
            await super().put(key, data, **more)

    async def delete(self, key: str, **more: Any) -> None:
        async with some_passes():
            await super().delete(key, **more)

    async def open(self) -> None:
        async with some_passes():
            await super().open()

    async def close(self) -> None:
        async with some_passes():
            await super().close()


@contextlib.asynccontextmanager
async def some_passes() -> AsyncGenerator[None]:
    await asyncio.sleep(0)
    yield
    await asyncio.sleep(0)


class World:
    """A manager, and what must be true of its agents."""

    def __init__(self, store: Store, kind: type[Book], durability: Any) -> None:
        self.store, self.kind, self.durability = store, kind, durability
        self.ended: Counter[str] = Counter()
        self.alive: Counter[str] = Counter()
        self.most_alive = 0
        self.stream: Any = None
        self.replies: dict[str, list[int]] = {}
        self.beside: list[asyncio.Task[Any]] = []
        self.before = asyncio.all_tasks()
        self.manager = self.make()

    def make(self) -> InstanceManager[Any]:
        return InstanceManager(self.kind, store=self.store, durability=self.durability, context=self)

    def reply(self, key: str, number: int) -> None:
        assert number not in self.replies.setdefault(key, []), f"{number} of {key!r} was somebody else's reply"
        assert number <= self.ended[key]
        self.replies[key].append(number)

    async def add(self, key: str = "a") -> None:
        self.reply(key, await self.manager.call(key, self.kind.add, self))

    def add_beside(self, key: str = "a") -> None:
        self.beside.append(asyncio.create_task(self.add(key)))

    def leftovers(self) -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks() - self.before if not task.done()} - {asyncio.current_task()}

    def is_quiet(self) -> bool:
        stats = self.manager.stats()
        nobody = (stats.queued, stats.thawing, stats.attached, stats.unknown) == (0, 0, 0, ())
        gates = sum(server.ledger.waiting for server in self.manager._registry.servers.values())
        return nobody and not gates and not self.leftovers()

    async def sound(self, *keys: str, vanishes: bool = False) -> None:
        """Nobody is left, and each agent is what its bodies made of it, for the next caller and on the disk."""
        for task in self.beside:
            await within(task, "beside")
        self.beside.clear()
        await until(self.is_quiet)  # what was begun goes on, and ends
        assert self.most_alive <= 1, "two lives of one agent"
        for key in keys or ("a",):
            seen = self.manager.inspect(key)
            assert (seen.running, seen.holders) == (0, ()), seen
            book = await within(self.manager.state(key), "asked for its state")
            if vanishes and not book.whole:
                self.ended[key] = 0
                self.replies.pop(key, None)
            assert (book.half, book.whole) == (self.ended[key],) * 2, f"{book!r}: {self.ended[key]} calls ended"
            await within(self.add(key), "called again")
            if self.durability != "call":
                await self.manager.save(key)
            assert await self.stored(key) == self.ended[key]
        assert self.is_quiet()

    async def stored(self, key: str) -> int:
        stored = await self.store.get(default_key(self.kind.__name__, key))
        assert stored is not None
        loaded = self.manager._home.keeper.read(key, default_key(self.kind.__name__, key), stored)
        return int(loaded.agent.whole)

    async def cold(self, *keys: str) -> None:
        await self.sound(*keys)
        for key in keys or ("a",):
            await self.manager.stop(key)


def later(passes: int, action: Callable[[], Any]) -> None:
    """Do it after some passes of the event loop, whoever is cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    if passes:
        loop.call_soon(later, passes - 1, action)
    else:
        action()


# ---------------------------------------------------------------- what is cancelled

Act: TypeAlias = Callable[[World], Coroutine[Any, Any, Any]]


async def get(world: World) -> None:
    await world.manager.get("a")


async def call(world: World) -> None:
    await world.add()


async def queue(world: World) -> None:
    """Wait in the mailbox behind a call that goes on for some passes, before another one."""
    event = asyncio.Event()
    first = world.manager.call("a", world.kind.add_when, world, event)
    world.beside.append(asyncio.create_task(first))
    later(6, event.set)
    later(3, world.add_beside)
    await asyncio.sleep(0)
    await world.add()


async def crowd(world: World) -> None:
    """Wait at the gate with others."""
    world.add_beside()
    later(1, world.add_beside)
    await world.add()


async def twice(world: World) -> None:
    world.reply("a", await world.manager.call("a", world.kind.add_twice, world))


async def nest(world: World) -> None:
    world.reply("a", await world.manager.call("a", world.kind.ask, world, "b"))


async def tell(world: World) -> None:
    world.reply("a", await world.manager.call("a", world.kind.tell, world, "b"))


async def attach(world: World) -> None:
    async with world.manager.attach("a") as book:
        world.reply("a", await book.add(world))


async def stream(world: World) -> None:
    world.stream = world.manager.call("a", world.kind.pages, world, 20)  # kept: its collection would end it, too
    async for number in world.stream:
        world.reply("a", number)


async def leave_stream(world: World) -> None:
    async with world.manager.call("a", world.kind.pages, world, 20) as pages:
        async for number in pages:
            world.reply("a", number)
            break


async def state(world: World) -> None:
    book = await world.manager.state("a")
    assert book.half == book.whole


async def save(world: World) -> None:
    await world.add()
    await world.manager.save("a")


async def stop(world: World) -> None:
    await world.add()
    await world.manager.stop("a")


async def delete(world: World) -> None:
    world.alive.clear()  # it ends without on_stop
    await world.manager.delete("a")


async def told(world: World) -> None:
    await world.sound("a", "b")
    assert world.ended["a"] == world.ended["b"], "what a turn tells leaves if the turn stays, and only then"


CASES: dict[str, tuple[Act, Callable[[World], Awaitable[None]], str]] = {
    "get": (get, World.cold, "call"),
    "first call": (call, World.cold, "call"),
    "later call": (call, World.sound, "call"),
    "call in the mailbox": (queue, World.sound, "call"),
    "call in the mailbox of a thaw": (queue, World.cold, "call"),
    "call at the gate": (crowd, World.sound, "call"),
    "commit": (twice, World.sound, "call"),
    "nested call": (nest, lambda world: world.cold("a", "b"), "call"),
    "tell": (tell, told, "call"),
    "attach": (attach, World.cold, "call"),
    "stream": (stream, World.sound, "call"),
    "leaving a stream": (leave_stream, World.sound, "call"),
    "state": (state, World.cold, "call"),
    "save": (save, World.sound, "hibernate"),
    "stop": (stop, World.sound, "hibernate"),
    "delete": (delete, lambda world: world.sound(vanishes=True), "call"),
}

STORES: dict[str, tuple[Callable[[Path], Store], type[Book], int]] = {
    "memory": (lambda _: SlowStore(), Book, 200),
    "memory, on_start": (lambda _: SlowStore(), Starting, 200),
    "sqlite": (lambda folder: SQLiteStore(folder / "agents.db"), Book, 0),
    "files": (lambda folder: FileStore(folder / "agents"), Starting, 0),
}
"""How a store is made, of which agents, and how many passes are tried one by one: threads take thousands of them."""


async def cancel_everywhere(case: str, store: Store, kind: type[Book] = Book, each_pass: int = 200) -> int:
    act, check, durability = CASES[case]
    world = World(store, kind, durability)
    async with world.manager:
        await check(world)
        return await cancelled_everywhere(
            lambda: act(world), lambda: check(world), case, each_await=300, each_pass=each_pass
        )


@pytest.mark.parametrize("where", STORES)
@pytest.mark.parametrize("case", CASES)
async def test_a_caller_may_be_cancelled_at_every_await(proof: Proof, in_memory: Path, case: str, where: str) -> None:
    make, kind, each_pass = STORES[where]
    cancelled = await cancel_everywhere(case, make(in_memory), kind, each_pass)
    assert cancelled > 2
    proof.count(cancellations=cancelled)


@pytest.mark.parametrize("where", STORES)
async def test_open_may_be_cancelled_at_every_await(proof: Proof, in_memory: Path, where: str) -> None:
    make, kind, each_pass = STORES[where]
    store = make(in_memory)
    world = World(store, kind, "call")

    async def start() -> None:
        world.manager = world.make()
        await world.manager.open()

    async def check() -> None:
        await world.manager.close()
        world.manager = world.make()
        async with world.manager:
            await world.sound()
        assert not world.leftovers()

    proof.count(cancellations=await cancelled_everywhere(start, check, "open", each_await=300, each_pass=each_pass))


@pytest.mark.parametrize("where", STORES)
async def test_close_may_be_cancelled_at_every_await(proof: Proof, in_memory: Path, where: str) -> None:
    make, kind, each_pass = STORES[where]
    world = World(make(in_memory), kind, "hibernate")
    await world.manager.open()
    for key in "abc":
        await world.add(key)

    async def check() -> None:
        await within(world.manager.close(), "closed again")
        assert not world.leftovers()
        world.manager = world.make()
        await world.manager.open()
        for key in "abc":
            assert await world.stored(key) == world.ended[key]
            await world.add(key)

    close = lambda: world.manager.close()  # noqa: E731 - the manager is another one each time
    proof.count(cancellations=await cancelled_everywhere(close, check, "close", each_await=300, each_pass=each_pass))
    await world.manager.close()


# ---------------------------------------------------------------- parts broken on purpose


def never_given_back(patch: pytest.MonkeyPatch) -> None:
    """A caller who leaves just as it gets its turn keeps it."""

    async def enter(self: Turnstile, shared: bool) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue = OrderedDict(self._queue)
        self._queue[waiter] = shared
        await waiter

    patch.setattr(Turnstile, "enter", enter)


def never_rolled_back(patch: pytest.MonkeyPatch) -> None:
    undo = Performer._undo

    def keep(self: Any, turn: Any, error: BaseException) -> None:
        if not isinstance(error, asyncio.CancelledError):
            undo(self, turn, error)

    patch.setattr(Performer, "_undo", keep)


def never_let_go(patch: pytest.MonkeyPatch) -> None:
    """Only whoever comes to the end of the block lets go of the agent."""

    async def leave(self: Any, *exc: object) -> None:
        if exc[0] is None:
            self._release()
        else:
            self._task.remove_done_callback(self._release)

    patch.setattr(Attachment, "__aexit__", leave)


def never_ended(patch: pytest.MonkeyPatch) -> None:
    """A stream goes on although nobody takes its items."""
    patch.setattr(Stream, "_leave", lambda self: None)


def thawed_by_its_caller(patch: pytest.MonkeyPatch) -> None:
    """Whoever is cancelled while it waits for a thaw takes the life with it."""
    passage = Arriving.passage

    def tied(self: Any) -> asyncio.Future[None]:
        future = passage(self)
        future.add_done_callback(lambda done: done.cancelled() and self.home.remove(self))
        return future

    patch.setattr(Arriving, "passage", tied)


def told_at_once(patch: pytest.MonkeyPatch) -> None:
    """What a turn tells leaves before it is known whether the turn stays."""
    tell = InstanceManager.tell

    def hasty(self: Any, *args: Any) -> None:
        token = TURN.set(None)
        tell(self, *args)
        TURN.reset(token)

    patch.setattr(InstanceManager, "tell", hasty)


BROKEN = {
    never_given_back: "call in the mailbox",
    never_rolled_back: "later call",
    never_let_go: "attach",
    never_ended: "stream",
    thawed_by_its_caller: "get",
    told_at_once: "tell",
}


@pytest.mark.parametrize("breakage", BROKEN, ids=lambda breakage: breakage.__name__)
async def test_a_part_that_is_broken_is_found(breakage: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        breakage(patch)
        patch.setattr(_steps, "_PATIENCE", 0.3)
        patch.setattr(sys.modules[__name__], "until", partial(until, limit=0.3))
        with pytest.raises(AssertionError):
            await cancel_everywhere_at_once(BROKEN[breakage])


async def cancel_everywhere_at_once(case: str) -> None:
    """As ``cancel_everywhere``; the manager is not closed, which a broken one might never be."""
    act, check, durability = CASES[case]
    world = World(SlowStore(), Starting, durability)
    await world.manager.open()
    await check(world)
    await cancelled_everywhere(lambda: act(world), lambda: check(world), case, each_await=300, each_pass=200)


# ---------------------------------------------------------------- at random, on real servers


@pytest.fixture
def shared_store(request: pytest.FixtureRequest) -> Store:
    """A store on the server that the parameter names, with nothing in it."""
    server, name = request.getfixturevalue(request.param), os.urandom(8).hex()
    if request.param == "postgres":
        return PostgresStore(server.url, table=f"cancelled_{name}")
    if request.param == "s3":
        return ObjectStore(f"s3://{server.bucket}/{name}", **server.options)
    return RedisStore(server.url, prefix=f"{name}:", durability=Durability.HOST)


CLIENTS = 16


@pytest.mark.parametrize("shared_store", ["valkey", "redis", "postgres", "s3"], indirect=True)
async def test_clients_that_are_cancelled_at_random_get_their_own_answers(proof: Proof, shared_store: Store) -> None:
    chance = proof.chance("when")
    rounds = proof.size(run=500, long=10_000) // CLIENTS + 1
    world = World(shared_store, Book, "call")
    async with world.manager:
        world.before |= asyncio.all_tasks()  # those of connections
        keys = [f"client {number}" for number in range(CLIENTS)]
        chances = [random.Random(chance.getrandbits(64)) for _ in keys]
        done = await asyncio.gather(*(client(world, *each, rounds) for each in zip(keys, chances, strict=True)))
        assert min(done) > 0  # most are cut off, but how many is up to the server's speed
        assert sum(done) > CLIENTS * rounds // 5
        await until(lambda: world.manager.stats().queued == 0)
        for key in keys:
            await own(world, key)
    proof.count(cancellations=sum(done))


async def client(world: World, key: str, chance: random.Random, rounds: int) -> int:
    """Call, read and stop one's own agent, each time cancelled after a while; how often it was."""
    cancelled = 0
    for _ in range(rounds):
        act = chance.choice([world.add, world.add, own_record, world.manager.stop])
        task = asyncio.create_task(own_record(world, key) if act is own_record else act(key))
        if chance.random() < 0.5:
            for _ in range(chance.randrange(20)):
                await asyncio.sleep(0)
        else:
            await asyncio.wait([task], timeout=chance.random() * 0.004)  # until an answer is on its way
        cancelled += task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
    return cancelled


async def own_record(world: World, key: str) -> None:
    """What the store itself says of a key is that key's."""
    stored = await world.store.get(default_key("Book", key))
    if stored is not None:
        header, _ = unpack(stored.data)
        assert (header.key, header.revision) == (key, stored.revision)


async def own(world: World, key: str) -> None:
    book = await within(world.manager.state(key), "asked for its state")
    assert (book.half, book.whole) == (world.ended[key],) * 2
    await world.add(key)
    assert await world.stored(key) == world.ended[key]
    await own_record(world, key)


async def test_a_store_that_gives_an_answer_to_the_wrong_caller_is_found() -> None:
    class Mixed(SlowStore):
        """One who is cancelled leaves its answer for the next."""

        left: list[Any] = []

        async def get(self, key: str) -> Any:
            answer = self.left.pop() if self.left else None
            if answer is not None:
                return answer
            answer = await MemoryStore.get(self, key)
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                self.left.append(answer)
                raise
            return answer

    async def is_found(chance: random.Random) -> bool:
        Mixed.left.clear()
        world = World(Mixed(), Book, "call")
        async with world.manager:
            clients = [client(world, f"client {n}", random.Random(chance.getrandbits(64)), 50) for n in range(4)]
            done = await asyncio.gather(*clients, return_exceptions=True)
        return any(isinstance(each, AssertionError | CorruptRecordError) for each in done)

    # Whether a cancellation comes in the one pass in which an answer is on its way is a matter of real time, too.
    assert any([await is_found(random.Random(number)) for number in range(10)])
