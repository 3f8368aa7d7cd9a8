"""options(call_id=…): a repeated id gets the first answer, across crashes too."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import traceback
import typing
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum, Flag, IntFlag, StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest
from agents import Counter
from waiting import outcome, pass_time

from overwinter import Agent, InstanceManager, MemoryStore, Persistence, Signal, commit, on, readonly
from overwinter.errors import (
    AlreadyAppliedError,
    CallIdReusedError,
    CorruptRecordError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from overwinter.persistence import default_key
from overwinter.record import pack, unpack
from overwinter.testing import FaultyStore, ManualClock, until


class Shop(Agent):
    sold: int = 0

    async def sell(self, what: str, fail: bool = False) -> tuple[str, int]:
        self.sold += 1
        if fail:
            raise ValueError("as asked")
        return what, self.sold

    async def nothing(self) -> int:
        return self.sold

    async def large(self) -> str:
        self.sold += 1
        return "x" * 100_000

    async def in_steps(self) -> int:
        self.sold += 1
        await commit()
        return self.sold


@pytest.mark.parametrize("again", ["live", "thawed", "another manager"])
async def test_a_repeated_id_gets_the_first_answer(again):
    store = FaultyStore(MemoryStore())
    shops = InstanceManager(Shop, store=store)
    await shops.open()
    assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)
    puts = store.calls["put"]
    if again == "thawed":
        await shops.stop("a")
    if again == "another manager":
        await shops.close()
        shops = InstanceManager(Shop, store=store)
        await shops.open()
    shop = await shops.options(call_id="1").get("a")
    assert await shop.sell("tea") == ("tea", 1)
    assert (await shops.state("a")).sold == 1
    assert store.calls["put"] == puts
    assert await shops.options(call_id="2").call("a", Shop.sell, "tea") == ("tea", 2)
    assert await shops.call("a", Shop.sell, "tea") == ("tea", 3)
    await shops.close()


async def test_a_duplicate_in_flight_waits_at_the_same_gate():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Shop, store=store) as shops:
        gate = store.hold("put")
        calls = [asyncio.create_task(shops.options(call_id="1").call("a", Shop.sell, "tea")) for _ in range(3)]
        await gate.reached()
        assert not any(call.done() for call in calls)
        gate.release()
        assert await asyncio.gather(*calls) == [("tea", 1)] * 3
        assert store.calls["put"] == 1


async def test_another_call_under_the_same_id_is_an_error():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        shop = await shops.options(call_id="1").get("a")
        await shop.sell("tea")
        for other in (shop.sell("milk"), shop.large(), shop.sell("tea", fail=True)):
            with pytest.raises(CallIdReusedError, match="call_id '1'"):
                await other
        assert (await shops.state("a")).sold == 1
        again = await shops.options(call_id="2").get("a")
        assert await again.in_steps() == 2
        with pytest.raises(CallIdReusedError, match="call_id '2'"):
            await again.large()  # another method, the same arguments


async def test_what_failed_or_changed_nothing_is_not_kept():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        shop = await shops.options(call_id="1").get("a")
        for _ in range(2):
            with pytest.raises(ValueError, match="as asked"):
                await shop.sell("tea", fail=True)
        assert await shop.nothing() == 0
        assert await shop.sell("tea") == ("tea", 1)


async def test_a_reply_too_large_to_keep_is_told():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        shop = await shops.options(call_id="1").get("a")
        assert len(await shop.large()) == 100_000
        with pytest.raises(AlreadyAppliedError, match="read the agent"):
            await shop.large()
        assert (await shops.state("a")).sold == 1


async def test_a_reply_that_another_release_gave_and_this_one_can_not_is_told():
    class Before(Agent, name="Desk"):
        sold: int = 0

        async def sell(self) -> str:
            self.sold += 1
            return "one"

    class After(Agent, name="Desk"):
        sold: int = 0

        async def sell(self) -> int:
            self.sold += 1
            return self.sold

    store = MemoryStore()
    async with InstanceManager(Before, store=store) as desks:
        assert await desks.options(call_id="1").call("a", Before.sell) == "one"
    async with InstanceManager(After, store=store) as desks:
        with pytest.raises(AlreadyAppliedError, match=r"none that sell\(\) returns now: read the agent"):
            await desks.options(call_id="1").call("a", After.sell)
        assert (await desks.state("a")).sold == 1


async def test_a_call_that_commits_is_kept_too():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        shop = await shops.options(call_id="1").get("a")
        assert [await shop.in_steps(), await shop.in_steps()] == [1, 1]


async def test_with_on_error_keep_what_a_call_that_raised_changed_is_not_changed_again():
    async with InstanceManager(Counter, store=MemoryStore(), durability="hibernate", on_error="keep") as counters:
        once = counters.options(call_id="pay 1")
        assert isinstance(await outcome(once.call("ada", Counter.fail)), ValueError)
        assert isinstance(await outcome(once.call("ada", Counter.fail)), AlreadyAppliedError)
        assert await counters.call("ada", Counter.read) == 1


async def test_the_last_ids_are_kept_and_no_more():
    store = MemoryStore()
    async with InstanceManager(Shop, store=store) as shops:
        for number in range(200):
            await shops.options(call_id=str(number)).call("a", Shop.sell, "tea")
        assert await shops.options(call_id="199").call("a", Shop.sell, "tea") == ("tea", 200)
        assert await shops.options(call_id="0").call("a", Shop.sell, "tea") == ("tea", 201)  # forgotten
    assert len((await _data(store)).data) < 20_000


async def _data(store):
    async with store:
        return await store.get("Shop:a")


async def test_an_id_is_part_of_rollback():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Shop, store=store, clock=clock, store_patience=1) as shops:
        await shops.get("a")
        store.fail("put", lambda: StoreUnavailableError("full"), times=1e9)
        call = asyncio.create_task(shops.options(call_id="1").call("a", Shop.sell, "tea"))
        await until(lambda: clock.advance(0.5) or call.done())
        assert isinstance(call.exception(), StoreUnavailableError)
        store.heal()
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)
        assert (await shops.state("a")).sold == 1  # it was made now: the first one never was
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)
        assert (await shops.state("a")).sold == 1


async def test_an_unknown_outcome_is_cleared_up_by_repeating_under_the_id():
    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Shop, store=store, clock=clock, store_patience=1) as shops:
        await shops.get("a")
        store.fail("put", lambda: OutcomeUnknownError("reset"), times=5, after=True)
        call = asyncio.create_task(shops.options(call_id="1").call("a", Shop.sell, "tea"))
        await until(lambda: clock.advance(0.5) or call.done())
        assert isinstance(call.exception(), OutcomeUnknownError)
        await until(lambda: clock.advance(0.5) or not shops.stats().dirty)
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)


async def test_the_direct_api_keeps_the_receipts():
    store = MemoryStore()
    async with InstanceManager(Shop, store=store) as shops:
        await shops.options(call_id="1").call("a", Shop.sell, "tea")
    async with Persistence(store) as persistence:
        shop = await persistence.thaw(Shop, "a")
        shop.sold = 10
        await persistence.hibernate("a", shop)
    async with InstanceManager(Shop, store=store) as shops:
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 1)


@pytest.mark.parametrize("call_id", ["", "x" * 129, 7, None, "a\nb"])
async def test_an_id_is_short_text(call_id):
    with pytest.raises(ValueError, match="call_id is"):
        InstanceManager(Counter).options(call_id=call_id)


async def test_ids_are_kept_up_to_64_and_their_replies_to_16_kilobytes():
    async with InstanceManager(Shop, store=MemoryStore()) as shops:
        for number in range(64):
            await shops.options(call_id=str(number)).call("a", Shop.sell, "tea")
        assert await shops.options(call_id="0").call("a", Shop.sell, "tea") == ("tea", 1)
        await shops.options(call_id="64").call("a", Shop.sell, "tea")
        assert await shops.options(call_id="1").call("a", Shop.sell, "tea") == ("tea", 2)
        assert await shops.options(call_id="0").call("a", Shop.sell, "tea") == ("tea", 66)  # the oldest is forgotten
        for number in range(8):
            await shops.options(call_id=f"large {number}").call("a", Shop.sell, "x" * 3000)
        assert (await shops.options(call_id="large 7").call("a", Shop.sell, "x" * 3000))[1] == 74
        assert (await shops.options(call_id="large 0").call("a", Shop.sell, "x" * 3000))[1] == 75  # no room


def change(by: int):
    async def step(self) -> int:
        self.count += by
        return self.count

    return step


def logged(function):
    async def wrapper(self, **kwargs):
        return await function(self, **kwargs)

    return wrapper


class Made(Agent):
    """Its methods have other names of their own than those under which the class has them."""

    count: int = 0
    up = change(1)
    down = change(-1)

    @on("paid")
    @logged
    async def paid(self, by: int = 1) -> None:
        self.count += by


async def test_a_method_is_known_by_the_name_that_its_class_has_for_it():
    async with InstanceManager(Made, store=MemoryStore()) as made:
        with_id = made.options(call_id="1")
        assert await with_id.call("a", Made.up) == 1
        with pytest.raises(CallIdReusedError, match=r"up\(\)"):
            await with_id.call("a", Made.down)
        assert await with_id.call("a", Made.up) == 1
        await made.call("a", Signal("paid", {}))
        assert (await made.state("a")).count == 2


async def test_a_call_that_only_reads_needs_no_receipt():
    class Read(Shop):
        @readonly
        async def look(self) -> int:
            return self.sold

    async with InstanceManager(Read, store=MemoryStore()) as shops:
        await shops.options(call_id="1").call("a", Read.sell, "tea")
        assert await shops.options(call_id="2").call("a", Read.look) == 1
        await shops.call("a", Read.sell, "tea")
        assert await shops.options(call_id="2").call("a", Read.look) == 2


IN_ANOTHER_PROCESS = """
import asyncio, sys
from pathlib import Path
from pydantic import BaseModel
from overwinter import Agent, InstanceManager, SQLiteStore

class Box(BaseModel):
    tags: set[str]
    paths: set[Path]

class Bag(Agent):
    n: int = 0

    async def put(self, tags: set[str], more: dict[str, set[str]], box: Box) -> int:
        self.n += 1
        return self.n

async def main():
    names = {"red", "green", "blue", "white", "black"}
    box = Box(tags=names, paths=set(map(Path, names)))
    async with InstanceManager(Bag, store=SQLiteStore(sys.argv[1])) as bags:
        print(await bags.options(call_id="1").call("a", Bag.put, names, {"x": frozenset(names)}, box))

asyncio.run(main())
"""


def test_the_same_arguments_are_the_same_call_in_another_process(tmp_path):
    for seed in "123":
        done = subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS, tmp_path / "bags.db"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "1\n", done.stderr


@dataclass
class Tea:
    name: str
    price: Any = None


@dataclass
class Coffee:
    name: str
    price: Any = None


class Pair(NamedTuple):
    a: int
    b: int


class Size(Enum):
    SMALL = (1,)
    LARGE = (2,)


class Colour(StrEnum):
    RED = "red"


class Extra(Flag):
    MILK, SUGAR, ICE = 1, 2, 4


class Mode(IntFlag):
    READ = 1


class Optional(msgspec.Struct):
    a: int
    b: int | msgspec.UnsetType = msgspec.UNSET


class Inner(pydantic.BaseModel):
    x: int
    hidden: int = pydantic.Field(0, exclude=True)


class Model(pydantic.BaseModel, extra="allow", arbitrary_types_allowed=True):
    inner: Inner | None = None
    one: Any = None
    many: list[Path] = []
    by_path: dict[Path, Any] = {}
    key: pydantic.SecretStr = pydantic.SecretStr("")


class Root(pydantic.RootModel[list[Path]]):
    pass


class Till(Agent):
    count: int = 0

    async def by(self, step: int = 1, *, mark: object = "") -> int:
        self.count += 1
        return self.count

    async def some(self, *steps: int, **marks: int) -> int:
        self.count += 1
        return self.count

    async def take(self, what: Any) -> int:
        self.count += 1
        return self.count

    async def fill(self, items: list[int]) -> int:
        self.count += 1
        items.append(self.count)
        return self.count


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    return lambda till: getattr(till, name)(*args, **kwargs)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (call("by", 5), call("by", step=5)),
        (call("by"), call("by", 1)),
        (call("by", step=1, mark=""), call("by", mark="")),
        (call("some", 1, a=1, b=2), call("some", 1, b=2, a=1)),
        (call("take", {"a": 1, "b": {"c": 2, "d": 3}}), call("take", {"b": {"d": 3, "c": 2}, "a": 1})),
        (call("take", {1: {2}, 3: {4}}), call("take", {3: {4}, 1: {2}})),
        (call("take", Optional(1)), call("take", Optional(1))),
        (call("take", Extra.MILK | Extra.ICE), call("take", Extra.ICE | Extra.MILK)),
        (call("take", Model(many=[Path("a")])), call("take", Model(many=[Path("a")]))),
        (call("take", Root([Path("a")])), call("take", Root([Path("a")]))),
    ],
)
async def test_the_same_call_written_in_another_way_gets_the_first_answer(first, again):
    async with InstanceManager(Till, store=MemoryStore()) as tills:
        till = await tills.options(call_id="1").get("a")
        assert [await first(till), await again(till)] == [1, 1]


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (call("by", 5), call("by", 1)),
        (call("by"), call("by", True)),
        (call("some", 1), call("some", steps=1)),
        (call("take", Tea("a")), call("take", Coffee("a"))),
        (call("take", [Tea("a", {1})]), call("take", [Tea("a", {2})])),
        (call("take", date(2020, 1, 1)), call("take", "2020-01-01")),
        (call("take", Decimal(1)), call("take", "1")),
        (call("take", 1), call("take", 1.0)),
        (call("take", (1,)), call("take", [1])),
        (call("take", {1}), call("take", frozenset({1}))),
        (call("take", Pair(1, 2)), call("take", (1, 2))),
        (call("take", OrderedDict(a=1)), call("take", {"a": 1})),
        (call("take", {1: 2}), call("take", {1: 3})),
        (call("take", ["date", b""]), call("take", ("date", b""))),
        (call("take", Size.SMALL), call("take", Size.LARGE)),
        (call("take", Colour.RED), call("take", "red")),
        (call("take", Extra.MILK), call("take", Extra.MILK | Extra.ICE)),
        (call("take", Mode(8)), call("take", Mode(16))),
        (call("take", ([1],)), call("take", (b"\x91\x01",))),
        (call("take", Optional(1)), call("take", Optional(1, 2))),
        (call("take", Inner(x=1)), call("take", Inner(x=1, hidden=5))),
        (call("take", Model(inner=Inner(x=1))), call("take", Model(inner=Inner(x=1, hidden=5)))),
        (call("take", Model(one=Tea("a"))), call("take", Model(one=Coffee("a")))),
        (call("take", Model(one=Path("a"))), call("take", Model(one="a"))),
        (call("take", Model(many=[Path("a")])), call("take", Model(many=[Path("b")]))),
        (call("take", Model(by_path={Path("a"): 1})), call("take", Model(by_path={Path("b"): 1}))),
        (call("take", Model(key="a")), call("take", Model(key="b"))),
        (call("take", Model(more=1)), call("take", Model(more=2))),
        (call("take", Root([Path("a")])), call("take", Root([Path("b")]))),
    ],
)
async def test_a_call_that_differs_in_a_value_or_in_its_type_is_another(first, other):
    async with InstanceManager(Till, store=MemoryStore()) as tills:
        till = await tills.options(call_id="1").get("a")
        assert await first(till) == 1
        with pytest.raises(CallIdReusedError):
            await other(till)
        assert (await tills.state("a")).count == 1


async def test_arguments_count_as_they_were_before_the_call():
    async with InstanceManager(Till, store=MemoryStore()) as tills:
        till = await tills.options(call_id="1").get("a")
        assert [await till.fill([]), await till.fill([])] == [1, 1]


async def test_an_argument_that_can_not_be_told_is_refused_before_the_call():
    class Hidden(pydantic.BaseModel, arbitrary_types_allowed=True):
        what: object = pydantic.Field(exclude=True)

    async with InstanceManager(Till, store=MemoryStore()) as tills:
        till = await tills.options(call_id="1").get("a")
        for what, name in (
            (Path("a"), "PosixPath"),
            ([{object()}], "object"),
            (Hidden(what=print), "builtin_function"),
        ):
            with pytest.raises(TypeError, match=rf"take\(\) with a call_id takes .* could hold, not a {name}"):
                await till.take(what)
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            await till.take()
        assert await till.take(1) == 1


@pytest.mark.parametrize("how", ["by position", "by name"])
async def test_an_error_over_an_argument_does_not_quote_it(how):
    class Told:
        def __repr__(self) -> str:
            return "hunter2"

    async with InstanceManager(Till, store=MemoryStore()) as tills:
        till = await tills.options(call_id="1").get("a")
        what = ["hunter2", Told()]
        with pytest.raises(TypeError, match="not a Told") as caught:
            await (till.take(what) if how == "by position" else till.take(what=what))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("receipt", [["hunter2"], ["1", "sell", b"hunter2", "hunter2"]])
async def test_receipts_that_do_not_decode_are_not_quoted(receipt):
    store = MemoryStore()
    async with store, InstanceManager(Shop, store=store) as shops:
        await shops.options(call_id="1").call("a", Shop.sell, "tea")
        await shops.stop("a")
        key = default_key("Shop", "a")
        record = await store.get(key)
        header, body = unpack(record.data)
        data = pack(msgspec.structs.replace(header, calls=(receipt,)), body)
        await store.put(key, data, revision=header.revision, expected=record.revision)
        with pytest.raises(CorruptRecordError, match=r"Shop 'a'.*receipts of calls do not decode") as caught:
            await shops.get("a")
        assert (await store.get(key)).data == data
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


async def test_a_parameter_that_a_release_adds_leaves_earlier_calls_what_they_were():
    class Before(Agent, name="Desk"):
        sold: int = 0

        async def sell(self, what: str) -> int:
            self.sold += 1
            return self.sold

    class After(Agent, name="Desk"):
        sold: int = 0

        async def sell(self, what: str, gift: bool = False) -> int:
            self.sold += 1
            return self.sold

    store = MemoryStore()
    async with InstanceManager(Before, store=store) as desks:
        assert await desks.options(call_id="1").call("a", Before.sell, "tea") == 1
    async with InstanceManager(After, store=store) as desks:
        desk = await desks.options(call_id="1").get("a")
        assert await desk.sell("tea") == 1
        with pytest.raises(CallIdReusedError):
            await desk.sell("tea", gift=True)


def given(function):
    @functools.wraps(function)
    async def wrapper(self):
        return await function(self, 5)

    return wrapper


class Wrapped(Agent):
    count: int = 0

    @given
    async def up(self, by: int) -> int:
        self.count += by
        return self.count


async def test_a_decorator_may_take_other_arguments_than_it_shows():
    async with InstanceManager(Wrapped, store=MemoryStore()) as agents:
        agent = await agents.options(call_id="1").get("a")
        assert [await agent.up(), await agent.up()] == [5, 5]


@pytest.mark.parametrize("annotation", [typing.List, "typing.Nothing", "list[", "1 / 0"])  # noqa: UP006  # people write it
async def test_a_return_annotation_that_says_nothing_fails_no_call(annotation):
    class Lists(Agent):
        n: int = 0

        async def more(self):
            self.n += 1
            return [self.n]

    Lists.more.__annotations__["return"] = annotation
    async with InstanceManager(Lists, store=MemoryStore()) as lists:
        agent = await lists.options(call_id="1").get("a")
        assert [await agent.more(), await agent.more()] == [[1], [1]]


class Private(pydantic.BaseModel):
    a: int
    _b: int = 0


class Asks(Agent):
    count: int = 0

    async def private(self, b: int) -> Private:
        self.count += 1
        found = Private(a=1)
        found._b = b
        return found


async def test_a_reply_that_would_come_back_another_is_not_given():
    async with InstanceManager(Asks, store=MemoryStore()) as asks:
        same, other = await asks.options(call_id="1").get("a"), await asks.options(call_id="2").get("a")
        assert [await same.private(0), await same.private(0)] == [Private(a=1)] * 2
        assert (await other.private(5))._b == 5
        with pytest.raises(AlreadyAppliedError, match="its reply was not kept"):
            await other.private(5)
        assert (await asks.state("a")).count == 2


@pytest.mark.parametrize("end", ["unknown", "raises"])
async def test_what_a_call_with_an_id_committed_is_not_done_again(end):
    class Steps(Agent, name="steps"):
        n: int = 0

        async def climb(self) -> int:
            self.n += 1
            await commit()
            if end == "raises":
                raise ValueError("after the first step")
            self.n += 10
            return self.n

    store, clock = FaultyStore(MemoryStore()), ManualClock()
    async with InstanceManager(Steps, store=store, clock=clock, store_patience=1) as manager:
        climb = manager.options(call_id="1").call
        if end == "unknown":
            store.fail("put", OutcomeUnknownError("lost"), after=True, times=2)
        first = asyncio.create_task(climb("a", Steps.climb))
        await pass_time(clock, first.done)
        assert isinstance(first.exception(), ValueError if end == "raises" else OutcomeUnknownError)
        store.heal()
        await pass_time(clock, lambda: not manager.stats().dirty)
        with pytest.raises(AlreadyAppliedError):
            await climb("a", Steps.climb)
        assert (await manager.state("a")).n == 1
        assert await manager.options(call_id="2").call("b", Steps.climb) == 11 if end == "unknown" else True


class Told(typing.NamedTuple):
    n: int
    notes: list[str] = []  # shared by nobody: a reply is no agent's state


class Tells(Agent):
    n: int = 0

    async def go(self) -> Told:
        self.n += 1
        return Told(self.n, ["x"])


async def test_a_reply_may_be_of_a_class_that_no_state_may_be():
    async with InstanceManager(Tells, store=MemoryStore()) as manager:
        once = manager.options(call_id="1")
        first = await once.call("ada", Tells.go)
        again = await once.call("ada", Tells.go)
        assert again == first == Told(1, ["x"])
        assert type(again) is Told
