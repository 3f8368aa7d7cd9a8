"""What an agent class may do: transient attributes, inheritance, generics; and state that does not fit it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

import msgspec
import pydantic
import pytest

from overwinter import (
    Agent,
    InstanceManager,
    MemoryStore,
    Signal,
    on,
    readonly,
    transient,
    upcast,
)
from overwinter.errors import (
    AgentStateError,
    SignalDataError,
    UsageError,
)
from overwinter.persistence import default_key

T = TypeVar("T")


class Point(msgspec.Struct):
    x: int


class Point3(Point):
    z: int = 0


@dataclass
class Coin:
    worth: int


@dataclass
class GoldCoin(Coin):
    carat: int = 24


class Plain:
    """Annotates nothing, so it may be a base."""

    async def greet(self) -> str:
        return f"hello from {self.key}"


def test_an_agent_is_a_plain_object():
    class Counter(Agent):
        count: int = 0

        async def increment(self, by: int = 1) -> int:
            self.count += by
            return self.count

    counter = Counter(count=1)
    assert asyncio.run(counter.increment()) == 2
    assert asyncio.run(counter.increment(by=5)) == 7
    with pytest.raises(UsageError, match="Counter has no key"):
        _ = counter.key
    with pytest.raises(TypeError):
        Counter(1)  # fields are given by name
    with pytest.raises(TypeError):
        Counter(total=1)


class Secretive(Agent):
    secret: str = "hunter2"
    pin: int = 4711
    note: str = transient()

    async def fail(self) -> None:
        raise ValueError


async def test_no_repr_shows_state():
    shown = [repr(Secretive()), str(Secretive()), f"{Secretive()}"]
    shown.append(repr(list(Secretive().__rich_repr__())))  # what the rich console would print
    async with InstanceManager(Secretive, store=MemoryStore()) as manager:
        shown += [
            repr(manager),
            repr(await manager.get("ada")),
            repr(await manager.state("ada")),
            repr(manager.inspect("ada")),
        ]
    assert "hunter2" not in "".join(shown)
    assert "4711" not in "".join(shown)
    assert "'ada'" in shown[-2]


class Talker(Agent):
    said: int = 0
    llm: list[str] = transient()
    limit: ClassVar[int] = 3

    async def on_start(self, llm: list[str]) -> None:
        self.llm = llm
        self.extra = "not declared, but set in on_start"

    async def say(self, word: str) -> int:
        self.llm.append(word)
        self.llm = list(self.llm)
        self.extra += word
        self.said += 1
        _ = self.length
        return len(self.llm)

    @cached_property
    def length(self) -> int:
        return len(self.llm)


async def test_transient_attributes_are_no_fields():
    assert Talker.__struct_fields__ == ("said",)
    with pytest.raises(TypeError):
        Talker(llm=[])
    with pytest.raises(AttributeError):
        _ = Talker().llm
    store, shared = MemoryStore(), []
    async with InstanceManager(Talker, store=store, context=shared) as manager:
        assert await manager.call("ada", Talker.say, "secret") == 1
        assert await manager.call("ada", Talker.say, "word") == 2
        await manager.stop("ada")
        assert await manager.call("ada", Talker.say, "new") == 2  # the context's list again
        assert (await manager.state("ada")).said == 3
        stored = await store.get(default_key("Talker", "ada"))
    assert b"secret" not in stored.data
    assert b"llm" not in stored.data


async def test_what_is_declared_transient_may_be_set_later_than_in_on_start():
    class Lazy(Agent):
        cache: dict[str, int] = transient()

        async def fill(self) -> None:
            self.cache = {"a": 1}

        async def look(self) -> int:
            return self.cache["a"]

    async with InstanceManager(Lazy, store=MemoryStore()) as manager:
        await manager.call("ada", Lazy.fill)
        assert await manager.call("ada", Lazy.look) == 1


class Animal(Agent, version=2):
    legs: int = 4
    log: list[str] = []

    @upcast(since=1)
    @staticmethod
    def _legs_were_missing(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "legs": 3}

    async def on_start(self) -> None:
        self.started = True

    @on("walk")
    async def walk(self) -> int:
        return self.legs

    @readonly
    async def count(self) -> int:
        return self.legs


class Bird(Animal, name="bird", version=2):
    wings: int = 2

    async def walk(self) -> int:
        assert self.started
        return self.legs * 10 + self.wings

    @on("fly")
    async def fly(self) -> int:
        self.wings += 1
        return self.wings


class OldBird(Agent, name="bird"):
    log: list[str] = []

    async def sing(self) -> None:
        self.log.append("tweet")


async def test_fields_methods_hooks_and_upcasts_are_inherited():
    store = MemoryStore()
    async with store:
        async with InstanceManager(OldBird, store=store) as old:
            await old.call("ada", OldBird.sing)
        async with InstanceManager(Bird, store=store) as birds:
            bird = await birds.get("ada")
            assert await bird.walk() == 32
            assert await birds.call("ada", Animal.walk) == 32  # the base's method is the address, the subclass's runs
            assert await bird.count() == 3
            assert await birds.call("ada", Signal("fly")) == 3
            copy = await birds.state("ada")
            assert (copy.legs, copy.wings, copy.log) == (3, 3, ["tweet"])
        async with InstanceManager(Animal, store=store) as animals:  # another name, another agent
            assert await animals.call("ada", Animal.walk) == 4
            with pytest.raises(TypeError, match="fly is not a call of agent Animal"):
                await animals.call("ada", Bird.fly)


@dataclass
class Flight:
    to: str


@dataclass
class Stay:
    nights: int


class Client:
    """Nothing that data could be made into."""


@dataclass
class Connection:
    client: Client
    others: list[Connection]


@dataclass
class Lodging:
    nights: int
    client: Client | None = None
    path: Path = Path("here")


@pytest.mark.parametrize(
    "hint",
    [
        *(Flight | Stay, set[int] | list[int], Decimal | str, list[Flight | Stay], Self),
        *(Path, list[Path], dict[str, tuple[int, Client]], Connection, Callable[[], int], Iterable[int]),
        Annotated[list[Client], msgspec.Meta(max_length=5)],
    ],
    ids=str,
)
def test_a_route_whose_parameter_no_data_converts_to_is_an_error_of_the_class(hint):
    class Trip(Agent):
        @on("booked")
        async def book(self, what: hint, why: str = "") -> None:
            """Nothing."""

    Trip.book.__annotations__["what"] = hint
    with pytest.raises(TypeError, match=r"Trip\.book is routed to signal 'booked': no data converts .* 'what' .*: use"):
        InstanceManager(Trip)


class Guest(pydantic.BaseModel):
    name: str


async def test_a_route_may_take_what_nothing_converts_to_where_signals_can_do_without_it():
    class Trip(Agent):
        @on("booked")
        async def book(
            self, where: Lodging, who: list[Guest], why: object, path: Path = Path("here"), client: Client | None = None
        ) -> str:
            return f"{where.nights} {who[0].name} {why} {path}"

    data = {"where": {"nights": 2}, "who": [{"name": "ada"}], "why": 1}
    async with InstanceManager(Trip) as trips:
        assert await trips.call("a", Signal("booked", data)) == "2 ada 1 here"
        for more in ({"path": "there"}, {"client": {}}, {"where": {"nights": 2, "path": "hunter2"}}):
            with pytest.raises(
                SignalDataError, match=f"{next(iter(more))} does not fit the method's annotation"
            ) as caught:
                await trips.call("a", Signal("booked", data | more))
            assert "hunter2" not in str(caught.value)


def test_no_repr_of_a_signal_shows_its_data():
    signal = Signal("paid", {"card": "hunter2"}, id="7")
    assert repr(signal) == "Signal('paid', id='7')"
    assert list(signal.__rich_repr__()) == [("type", "paid"), ("id", "7")]  # what the rich console would print


def test_a_route_whose_parameter_holds_what_is_not_defined_is_an_error_of_the_class():
    @dataclass
    class Booking:
        flight: Nowhere  # type: ignore[name-defined]  # noqa: F821  # the fault

    class Trip(Agent):
        @on("booked")
        async def book(self, what: Booking) -> None:
            """Nothing."""

    Trip.book.__annotations__["what"] = Booking
    with pytest.raises(TypeError, match="'booked', says Nowhere, which is not defined: import it"):
        InstanceManager(Trip)


async def test_a_base_that_annotates_nothing_lends_its_methods():
    class Greeter(Plain, Agent):
        n: int = 0

    async with InstanceManager(Greeter, store=MemoryStore()) as greeters:
        assert await greeters.call("ada", Plain.greet) == "hello from ada"


def decorated(method):
    async def wrapper(self, *args):  # without functools.wraps: both methods are called "wrapper"
        return await method(self, *args) * 2

    return wrapper


async def test_decorated_methods_are_told_apart_by_what_they_are():
    class Doubled(Agent):
        n: int = 1

        @decorated
        async def one(self) -> int:
            return self.n

        @decorated
        async def two(self) -> int:
            return self.n + 1

    async with InstanceManager(Doubled) as manager:
        assert await manager.call("ada", Doubled.one) == 2
        assert await manager.call("ada", Doubled.two) == 4
        assert await (await manager.get("ada")).two() == 4


class Box(Agent, Generic[T]):
    items: list[T] = []

    async def put(self, item: T) -> int:
        self.items.append(item)
        return len(self.items)


class IntBox(Box[int], name="int-box"):
    pass


class PointBox(Box[Point], name="point-box"):
    pass


async def test_a_generic_agent_is_one_for_each_subclass_that_says_of_what():
    store = MemoryStore()
    async with store:
        async with InstanceManager(PointBox, store=store) as boxes:
            assert await boxes.call("ada", PointBox.put, Point(1)) == 1
            await boxes.stop("ada")
            assert (await boxes.state("ada")).items == [Point(1)]
            with pytest.raises(AgentStateError, match="items"):
                await boxes.call("ada", PointBox.put, 5)
        async with InstanceManager(IntBox, store=store) as boxes:
            assert await boxes.call("ada", IntBox.put, 5) == 1
            with pytest.raises(AgentStateError, match="items"):
                await boxes.call("ada", IntBox.put, "five")


U = TypeVar("U")


class NamedBox(Box[dict[str, U]], Generic[U]):
    last: U | None = None


class PointsByName(NamedBox[Point], name="points-by-name"):
    pass


async def test_a_generic_agent_on_top_of_another_says_what_both_hold():
    async with InstanceManager(PointsByName, store=MemoryStore()) as boxes:
        assert await boxes.call("ada", PointsByName.put, {"a": Point(1)}) == 1
        await boxes.stop("ada")
        assert (await boxes.state("ada")).items == [{"a": Point(1)}]
        with pytest.raises(AgentStateError, match="items"):
            await boxes.call("ada", PointsByName.put, {"a": "wrong"})
        assert await boxes.call("ada", PointsByName.put, {"b": Point(2)}) == 2


async def test_a_generic_agent_of_nothing_in_particular_holds_json_values():
    with pytest.raises(TypeError, match=r"Box\[int\] is not a subclass"):
        InstanceManager(Box[int])
    async with InstanceManager(Box, store=MemoryStore()) as boxes:
        assert await boxes.call("ada", Box.put, {"x": [1]}) == 1
        with pytest.raises(AgentStateError, match="items"):
            await boxes.call("ada", Box.put, Point(1))


# ---------------------------------------------------------------- state that does not fit


class Holder(Agent):
    point: Point | None = None
    coins: list[Coin] = []
    anything: Any = None
    count: int = 0

    async def hold(self, field: str, value: Any) -> None:
        self.count += 1
        setattr(self, field, value)


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("point", Point3(1), r"point.*Point3"),
        ("coins", [Coin(1), GoldCoin(2)], r"coins\[1\].*GoldCoin"),
        ("coins", (Coin(1),), r"coins.*tuple"),
        ("coins", [Coin("secret-value")], r"coins\[0\]\.worth"),
        ("count", True, r"count.*bool"),
        ("count", 2**70, r"count"),
        ("anything", (1, 2), r"anything.*tuple"),
        ("anything", {"deep": [{1, 2}]}, r"anything.*set"),
        ("anything", Text("secret-value"), r"anything.*Text"),
        ("anything", {1: "secret-value"}, r"anything"),
        ("anything", "lone \udc80 surrogate", r"anything"),
    ],
)
async def test_state_of_another_type_fails_the_call_and_names_the_field(field, value, told):
    async with InstanceManager(Holder, store=MemoryStore()) as holders:
        await holders.call("ada", Holder.hold, "count", 5)
        before = await holders.state("ada")
        with pytest.raises(AgentStateError, match=told) as caught:
            await holders.call("ada", Holder.hold, field, value)
        assert "ada" in str(caught.value) or "Holder" in str(caught.value)
        assert "secret-value" not in str(caught.value)
        assert await holders.state("ada") == before
        with pytest.raises(AgentStateError):
            await holders.get("bob", initial={field: value})
        assert holders.lookup("bob") is None
        assert (await holders.state("bob")).count == 0  # nothing had been stored


async def test_initial_is_not_shared_with_the_caller():
    mine = Holder(coins=[Coin(1)])
    async with InstanceManager(Holder, store=MemoryStore()) as holders:
        await holders.get("ada", initial=mine)
        mine.coins.append("rubbish")
        assert (await holders.state("ada")).coins == [Coin(1)]
        copy = await holders.state("ada")
        copy.coins.clear()
        assert (await holders.state("ada")).coins == [Coin(1)]
