"""Turns: one at a time, in order, whole or not at all."""

from __future__ import annotations

import asyncio
from datetime import date

import pytest
from agents import Counter, Order, Recorder

from overwinter import Agent, AgentSystem, InstanceManager, Interval, MemoryStore, Signal, commit, on, readonly
from overwinter.errors import (
    AgentStateError,
    ClosedError,
    InvalidKeyError,
    MissingInitialError,
    ReentrantCallError,
    SignalDataError,
    StateTooLargeError,
    UnknownSignalError,
)
from overwinter.testing import FaultyStore, until


async def test_a_reference_and_call_are_the_same_thing():
    async with InstanceManager(Counter) as counters, counters.attach("ada") as counter:
        assert await counter.increment() == 1
        assert await counters.call("ada", Counter.increment, by=2) == 3
        assert await counter.increment(by=2) == 5
        assert await counter.increment(2) == await counters.call("ada", Counter.read) == 7
        assert counter.key == "ada"
        assert counter == await counters.get("ada")
        assert len({counter, await counters.get("ada")}) == 1
        assert repr(counter) == "<reference to Counter 'ada'>"


async def test_reading_or_setting_a_field_through_a_reference_says_what_to_do():
    async with InstanceManager(Counter) as counters:
        counter = await counters.get("ada")
        with pytest.raises(AttributeError, match=r"await manager.state\('ada'\)"):
            _ = counter.count
        with pytest.raises(AttributeError, match="write a method"):
            counter.count = 3
        with pytest.raises(AttributeError, match="its calls are fail, increment"):
            counter.incremnt()


async def test_a_call_that_raises_leaves_the_state_as_it_was_and_the_next_one_works():
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        assert await counters.call("ada", Counter.increment) == 1
        with pytest.raises(ValueError, match="as asked"):
            await counters.call("ada", Counter.fail)
        state = await counters.state("ada")
        assert (state.count, state.notes) == (1, [])
        assert counters.inspect("ada").last_error == "ValueError"
        assert await counters.call("ada", Counter.increment) == 2


async def test_turns_are_first_come_first_served_and_alone():
    async with InstanceManager(Counter) as counters:
        event = asyncio.Event()
        first = asyncio.create_task(counters.call("ada", Counter.wait, event, by=10))
        await until(lambda: counters.inspect("ada").running)
        rest = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(3)]
        await until(lambda: counters.stats().queued == 3)
        event.set()
        assert await first == 10
        assert await asyncio.gather(*rest) == [11, 12, 13]


async def test_readonly_calls_run_beside_each_other_but_never_beside_a_write():
    async with InstanceManager(Counter) as counters:
        event = asyncio.Event()
        watchers = [asyncio.create_task(counters.call("ada", Counter.watch, event)) for _ in range(3)]
        await until(lambda: counters.inspect("ada").running == 3)
        write = asyncio.create_task(counters.call("ada", Counter.increment))
        late = asyncio.create_task(counters.call("ada", Counter.read))
        await until(lambda: counters.stats().queued == 2)
        assert not write.done()
        event.set()
        assert await asyncio.gather(*watchers, write, late) == [0, 0, 0, 1, 1]
        event.clear()
        write = asyncio.create_task(counters.call("ada", Counter.wait, event, by=5))
        await until(lambda: counters.inspect("ada").running)
        late = asyncio.create_task(counters.call("ada", Counter.read))
        await until(lambda: late.done() or counters.stats().queued == 1)
        assert not late.done()
        event.set()
        assert await asyncio.gather(write, late) == [6, 6]


async def test_a_caller_cancelled_in_the_queue_withdraws_its_call_and_lets_the_others_pass():
    async with InstanceManager(Counter) as counters:
        event = asyncio.Event()
        first = asyncio.create_task(counters.call("ada", Counter.watch, event))
        await until(lambda: counters.inspect("ada").running)
        withdrawn = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: counters.stats().queued == 1)
        reader = asyncio.create_task(counters.call("ada", Counter.read))
        await until(lambda: counters.stats().queued == 2)
        withdrawn.cancel()
        assert await reader == 0  # it waited behind the write only
        event.set()
        assert await first == 0
        assert await counters.call("ada", Counter.read) == 0


async def test_a_caller_cancelled_just_as_it_gets_its_turn_gives_it_back():
    async with InstanceManager(Counter) as counters:
        event = asyncio.Event()
        first = asyncio.create_task(counters.call("ada", Counter.wait, event))
        await until(lambda: counters.inspect("ada").running)
        second = asyncio.create_task(counters.call("ada", Counter.increment))
        await until(lambda: counters.stats().queued == 1)
        event.set()
        asyncio.get_running_loop().call_soon(second.cancel)  # when it is granted, and not started yet
        await first
        await asyncio.wait([second])
        assert second.cancelled()
        assert await asyncio.wait_for(counters.call("ada", Counter.increment), 1) == 1


async def test_a_caller_cancelled_in_its_turn_rolls_it_back():
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        task = asyncio.create_task(counters.call("ada", Counter.wait, asyncio.Event(), by=5))
        await until(lambda: counters.inspect("ada").running)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await counters.call("ada", Counter.read) == 0


@pytest.mark.parametrize("store", [None, MemoryStore()], ids=["no store", "store"])
async def test_state_of_a_wrong_type_fails_the_call_that_put_it_there(store):
    async with InstanceManager(Counter, store=store) as counters:
        await counters.call("ada", Counter.increment)
        for wrong in ("1", 1.5, True, None, 2**70):
            with pytest.raises(AgentStateError, match=r"count"):
                await counters.call("ada", Counter.spoil, wrong)
        assert await counters.call("ada", Counter.increment) == 2


async def test_an_attribute_first_set_in_a_call_is_a_mistake_and_is_taken_back():
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        with pytest.raises(AgentStateError, match=r"Counter 'ada'.*'totl'.*annotate"):
            await counters.call("ada", Counter.mistype)
        assert await counters.call("ada", Counter.increment) == 1


class Large(Agent):
    text: str = ""

    async def grow(self, size: int) -> None:
        self.text = "x" * size


async def test_state_over_the_bound_fails_the_call():
    async with InstanceManager(Large, store=MemoryStore(), max_state=1000) as manager:
        await manager.call("a", Large.grow, 500)
        with pytest.raises(StateTooLargeError, match="max_state=1,000"):
            await manager.call("a", Large.grow, 5000)
        assert len((await manager.state("a")).text) == 500


async def test_a_wrong_argument_is_an_ordinary_type_error():
    async with InstanceManager(Counter) as counters:
        with pytest.raises(TypeError, match="unexpected keyword"):
            await counters.call("ada", Counter.increment, bye=1)
        assert await counters.call("ada", Counter.increment) == 1


class Friend(Agent):
    met: int = 0

    async def on_start(self, context) -> None:
        self.friends = context["friends"]

    async def meet(self, *others: str) -> int:
        self.met += 1
        if others:
            await self.friends.call(others[0], Friend.meet, *others[1:])
        return self.met

    async def meet_together(self, barrier: asyncio.Barrier, other: str) -> None:
        await barrier.wait()  # both turns run by now
        await self.friends.call(other, Friend.meet)

    async def meet_in_a_task(self, other: str) -> None:
        await asyncio.gather(self.friends.call(other, Friend.meet))

    async def meet_later(self, other: str) -> asyncio.Task:
        async def later():
            await asyncio.sleep(0)
            return await self.friends.call(other, Friend.meet)

        self.friends_task = asyncio.create_task(later())
        return self.friends_task


@pytest.mark.parametrize("chain", [("a",), ("b", "a"), ("b", "c", "a")])
async def test_a_call_that_would_wait_for_itself_raises_at_once(chain):
    context = {}
    async with InstanceManager(Friend, context=context) as friends:
        context["friends"] = friends
        with pytest.raises(ReentrantCallError, match="inside a turn that it would wait for"):
            await asyncio.wait_for(friends.call("a", Friend.meet, *chain), 5)
        assert await friends.call("a", Friend.meet) == 1


async def test_two_that_call_each_other_do_not_wait_for_ever():
    context = {}
    async with InstanceManager(Friend, context=context) as friends:
        context["friends"] = friends
        barrier = asyncio.Barrier(2)
        calls = [friends.call(key, Friend.meet_together, barrier, other) for key, other in ("ab", "ba")]
        both = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        assert [type(outcome) for outcome in both].count(ReentrantCallError) == 1
        assert both.count(None) == 1


async def test_reentrancy_is_seen_through_tasks_of_the_turn():
    context = {}
    async with InstanceManager(Friend, context=context) as friends:
        context["friends"] = friends
        with pytest.raises(ReentrantCallError):
            await asyncio.wait_for(friends.call("a", Friend.meet_in_a_task, "a"), 5)


class Late(Agent):
    n: int = 0

    async def on_start(self, context) -> None:
        self.context, self.task = context, None

    async def later(self) -> None:
        async def add():
            await self.context["gate"].wait()
            self.context["manager"].tell(self.key, Late.add)
            return await self.context["manager"].call(self.key, Late.add)

        self.task = asyncio.create_task(add())
        self.context["task"] = self.task

    async def add(self) -> int:
        self.n += 1
        return self.n


async def test_a_task_that_outlives_its_turn_may_call_its_own_agent():
    context = {"gate": asyncio.Event()}
    async with InstanceManager(Late, context=context) as manager:
        context["manager"] = manager
        await manager.call("a", Late.later)
        context["gate"].set()
        assert await asyncio.wait_for(context["task"], 5) in (1, 2)  # a call may overtake a tell
        await until(lambda: not manager._home.tasks)
        assert (await manager.state("a")).n == 2  # what it told has left: no turn holds it back


async def test_signals_reach_the_method_they_are_routed_to():
    async with InstanceManager(Order, store=MemoryStore()) as orders:
        await orders.get("456", initial={"order_id": "456"})
        assert await orders.call("456", Signal("step.complete", {"step": "validate"})) == ["validate"]
        orders.tell("456", Signal("step.complete", {"step": "pay"}))
        await until(lambda: not orders._home.tasks)
        assert (await orders.state("456")).done == ["validate", "pay"]


async def test_an_override_keeps_the_routes_of_its_base():
    class Quick(Order, name="quick"):
        async def complete(self, step: str) -> list[str]:
            return [step.upper()]

    async with InstanceManager(Quick) as orders:
        await orders.get("1", initial={"order_id": "1"})
        assert await orders.call("1", Signal("step.complete", {"step": "pay"})) == ["PAY"]


@pytest.mark.parametrize(
    ("signal", "error", "told"),
    [
        (Signal("step.compleet", {"step": "x"}), UnknownSignalError, "routed are: step.complete"),
        (Signal("step.complete", {}), SignalDataError, "lacks step"),
        (Signal("step.complete", {"step": "x", "stap": "y"}), SignalDataError, "unknown stap"),
        (Signal("step.complete", {"step": 7}), SignalDataError, "does not convert"),
        (Signal("step.complete", "validate"), SignalDataError, "must be a mapping"),
    ],
)
async def test_a_wrong_signal_is_an_error_that_says_how(signal, error, told):
    async with InstanceManager(Order) as orders:
        await orders.get("456", initial={"order_id": "456"})
        with pytest.raises(error, match=told):
            await orders.call("456", signal)


@pytest.mark.parametrize("key", ["", 7, None, [], b"ada", "x" * 1025, "é" * 513, "\ud800"])
async def test_a_bad_key_is_refused_everywhere(key):
    async with InstanceManager(Counter, store=MemoryStore()) as counters:
        with pytest.raises(InvalidKeyError):
            await counters.get(key)
        with pytest.raises(InvalidKeyError):
            await counters.call(key, Counter.read)
        with pytest.raises(InvalidKeyError):
            counters.tell(key, Counter.read)
        with pytest.raises(InvalidKeyError):
            counters.attach(key)
        with pytest.raises(InvalidKeyError):
            await counters.delete(key)


async def test_initial_is_needed_for_required_fields_and_only_then_used():
    async with InstanceManager(Order, store=MemoryStore()) as orders:
        for initial in (None, {}, {"order": "456"}, {"order_id": "456", "x": 1}):
            with pytest.raises(MissingInitialError, match=r"order_id|x"):
                await orders.get("456", initial=initial)
        with pytest.raises(AgentStateError):
            await orders.get("456", initial={"order_id": 456})
        done = ["a"]
        await orders.get("456", initial={"order_id": "456", "done": done})
        done.append("not mine")
        await orders.get("456", initial={"order_id": "other"})
        assert (await orders.state("456")).order_id == "456"
        assert (await orders.state("456")).done == ["a"]
        await orders.stop("456")
        await orders.get("456", initial={"order_id": "other"})
        assert (await orders.state("456")).order_id == "456"


async def test_callers_with_and_without_initial_race_and_each_gets_what_it_asked_for():
    async with InstanceManager(Order, store=MemoryStore()) as orders:
        without, with_it = await asyncio.gather(
            orders.get("456"), orders.get("456", initial=Order(order_id="456")), return_exceptions=True
        )
        assert isinstance(without, MissingInitialError)
        assert with_it.key == "456"


async def test_one_thaw_however_many_callers():
    store = FaultyStore(MemoryStore())
    async with InstanceManager(Counter, store=store) as counters:
        gate = store.hold("get")
        calls = [asyncio.create_task(counters.call("ada", Counter.increment)) for _ in range(50)]
        await gate.reached()
        assert counters.stats().thawing == 1
        gate.release()
        assert sorted(await asyncio.gather(*calls)) == list(range(1, 51))
        assert store.calls["get"] == 1


async def test_tell_inside_a_turn_leaves_with_it_or_not_at_all():
    class Teller(Agent):
        n: int = 0

        async def on_start(self, context) -> None:
            self.counters = context

        async def pass_on(self, fail: bool) -> None:
            self.n += 1
            self.counters.tell("ada", Counter.increment)
            if fail:
                raise ValueError("as asked")

        async def only_tell(self) -> None:
            self.counters.tell("ada", Counter.increment)

        async def tell_and_commit(self) -> None:
            self.n += 1
            self.counters.tell("ada", Counter.increment)
            await commit()
            self.n += 1

    store = FaultyStore(MemoryStore())
    async with AgentSystem(store=store) as system:
        counters = system.manager(Counter)
        tellers = system.manager(Teller)
        tellers._home.context = counters
        await tellers.get("t")
        with pytest.raises(ValueError, match="as asked"):
            await tellers.call("t", Teller.pass_on, True)
        gate = store.hold("put", key="Teller:t")
        call = asyncio.create_task(tellers.call("t", Teller.pass_on, False))
        await gate.reached()
        for _ in range(50):
            await asyncio.sleep(0)
        assert counters.inspect("ada").state == "cold"  # not durable, so it has not left
        gate.release()
        await call
        await until(lambda: counters.lookup("ada") is not None and not counters._home.tasks)
        assert await counters.call("ada", Counter.read) == 1
        await tellers.call("t", Teller.pass_on, False)
        await until(lambda: not counters._home.tasks)
        assert await counters.call("ada", Counter.read) == 2  # each leaves once
        await tellers.call("t", Teller.only_tell)
        await until(lambda: not counters._home.tasks)
        assert await counters.call("ada", Counter.read) == 3  # with nothing to store it leaves at once
        await tellers.call("t", Teller.tell_and_commit)
        await until(lambda: not counters._home.tasks)
        assert await counters.call("ada", Counter.read) == 4


async def test_a_failed_tell_reaches_the_loops_exception_handler():
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
    async with InstanceManager(Counter) as counters:
        counters.tell("ada", Counter.fail)
        await until(lambda: seen)
    assert isinstance(seen[0]["exception"], ValueError)
    assert (seen[0]["agent"], seen[0]["key"]) == ("Counter", "ada")
    assert "told fail()" in seen[0]["message"]


async def test_another_classs_method_is_refused():
    async with InstanceManager(Counter) as counters:
        with pytest.raises(TypeError, match=r"Order.complete is not a call of agent Counter"):
            counters.call("ada", Order.complete, "x")
        with pytest.raises(TypeError, match="is not a call"):
            counters.call("ada", Counter.on_stop)


async def test_use_before_open_and_after_close():
    counters = InstanceManager(Counter)
    with pytest.raises(ClosedError, match="async with"):
        counters.call("ada", Counter.read)
    async with counters:
        counter = await counters.get("ada")
    with pytest.raises(ClosedError, match="closed"):
        counter.read()
    with pytest.raises(ClosedError):
        await counters.get("ada")


async def test_hooks_see_the_context_and_run_once_each_life():
    log: list[str] = []
    async with InstanceManager(Recorder, store=MemoryStore(), context=log) as manager:
        await manager.call("a", Recorder.add)
        await manager.stop("a")
        assert await manager.call("a", Recorder.add) == 2
    assert log == ["start a", "stop a", "start a", "stop a"]


async def test_on_rollback_may_mend_what_is_transient():
    class Cached(Agent):
        n: int = 0

        async def on_start(self) -> None:
            self.double = 0

        async def set(self, n: int, fail: bool = False) -> None:
            self.n, self.double = n, 2 * n
            if fail:
                raise ValueError("as asked")

        def on_rollback(self) -> None:
            self.double = 2 * self.n

        @readonly
        async def doubled(self) -> int:
            return self.double

    async with InstanceManager(Cached) as manager:
        await manager.call("a", Cached.set, 2)
        with pytest.raises(ValueError, match="as asked"):
            await manager.call("a", Cached.set, 50, fail=True)
        assert await manager.call("a", Cached.doubled) == 4


async def test_a_call_runs_in_its_callers_task():
    class Where(Agent):
        async def am_i(self) -> asyncio.Task | None:
            return asyncio.current_task()

    async with InstanceManager(Where, store=MemoryStore()) as manager:
        assert await manager.call("a", Where.am_i) is asyncio.current_task()


class Rooted(Agent):
    n: int = 0
    words: list[str] = []

    async def on_start(self) -> None:
        self.socket = ["open"]

    async def fail(self) -> None:
        self.n = 5
        self.words.append("never kept")
        self.socket.append("written")
        raise ValueError("as asked")

    async def who(self) -> tuple[int, list[str], int, list[str]]:
        return id(self), self.socket, self.n, list(self.words)


@pytest.mark.parametrize("durability", ["call", "hibernate", Interval(5), None])
async def test_a_call_that_raises_is_undone_in_place_under_any_durability(durability):
    options = {"durability": durability, "store": MemoryStore()} if durability else {}
    async with InstanceManager(Rooted, **options) as manager:
        me, socket, _, _ = await manager.call("a", Rooted.who)
        with pytest.raises(ValueError, match="as asked"):
            await manager.call("a", Rooted.fail)
        again, same, n, words = await manager.call("a", Rooted.who)
        assert (again, n, words) == (me, 0, [])
        assert same is socket
        assert socket == ["open", "written"]  # what is transient is the class's business: on_rollback


class Weighed(Agent):
    """Counts how often it is encoded."""

    n: int = 0
    weighed = 0

    def dump(self):
        Weighed.weighed += 1
        return self.n

    @classmethod
    def load(cls, data, version):
        return cls(n=data)

    @readonly
    async def look(self) -> int:
        return self.n

    async def nothing(self) -> int:
        return self.n


async def test_a_readonly_turn_is_not_even_encoded():
    async with InstanceManager(Weighed, store=MemoryStore()) as manager:
        await manager.get("a")
        before = Weighed.weighed
        await manager.call("a", Weighed.look)
        assert Weighed.weighed == before
        await manager.call("a", Weighed.nothing)
        assert Weighed.weighed == before + 1


async def test_a_call_to_another_agent_leaves_at_once_and_stays():
    class Sender(Agent):
        n: int = 0

        async def on_start(self, context) -> None:
            self.counters = context

        async def send(self) -> None:
            self.n += 1
            assert await self.counters.call("ada", Counter.increment) == 1
            raise ValueError("as asked")

    async with (
        InstanceManager(Counter, store=MemoryStore()) as counters,
        InstanceManager(Sender, store=MemoryStore(), context=counters) as senders,
    ):
        with pytest.raises(ValueError, match="as asked"):
            await senders.call("a", Sender.send)
        assert (await senders.state("a")).n == 0
        assert await counters.call("ada", Counter.read) == 1


async def test_an_attribute_first_set_in_a_call_that_only_reads_fails_that_call_and_no_other():
    class Peeker(Counter, name="peeker"):
        @readonly
        async def peek(self) -> int:
            self.cache = 1
            return self.count

    async with InstanceManager(Peeker, store=MemoryStore()) as manager:
        with pytest.raises(AgentStateError, match="'cache' was first set in a call"):
            await manager.call("a", Peeker.peek)
        assert await manager.call("a", Peeker.increment) == 1


@pytest.mark.parametrize(
    ("data", "told"),
    [({"a": 1}, "a does not fit"), ({"self": "2020-01-01"}, "unknown self"), ({1: "2020-01-01"}, "unknown 1")],
)
async def test_the_data_of_a_signal_converts_to_what_further_parameters_are_declared_as(data, told):
    class Dated(Agent, name="dated"):
        dates: dict[str, date] = {}

        @on("dates")
        async def note(self, **dates: date) -> int:
            self.dates.update(dates)
            return len(self.dates)

    async with InstanceManager(Dated) as manager:
        assert await manager.call("a", Signal("dates", {"x": "2020-01-01"})) == 1
        assert (await manager.state("a")).dates == {"x": date(2020, 1, 1)}
        with pytest.raises(SignalDataError, match=told):
            await manager.call("a", Signal("dates", data))
