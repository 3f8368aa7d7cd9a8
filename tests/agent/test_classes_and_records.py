"""What the record of another class, name or version does to an agent: nothing is lost, nothing starts afresh."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from overwinter import (
    Agent,
    AgentSystem,
    InstanceManager,
    MemoryStore,
    Persistence,
    upcast,
)
from overwinter.errors import (
    AgentStateError,
    CorruptRecordError,
    MigrationError,
    NewerRecordError,
    RevisionConflictError,
    StoreInUseError,
    StoreUnavailableError,
    ThawError,
    UnknownAgentError,
)
from overwinter.persistence import default_key
from overwinter.stores import Expect
from overwinter.testing import FaultyStore, ManualClock


class Point(msgspec.Struct):
    x: int


class Untouched:
    """The bytes under a store key, which must be the same when a block ends."""

    def __init__(self, store, key):
        self._store, self._key = store, key

    async def __aenter__(self):
        self._before = await self._store.get(self._key)
        assert self._before is not None

    async def __aexit__(self, *exc):
        assert await self._store.get(self._key) == self._before


class Before(Agent, name="cart"):
    items: list[str] = []

    async def add(self, item: str) -> int:
        self.items.append(item)
        return len(self.items)


class Renamed(Agent, name="basket", aliases=("trolley", "cart")):
    items: list[str] = []

    async def add(self, item: str) -> int:
        self.items.append(item)
        return len(self.items)

    async def read(self) -> list[str]:
        return self.items


async def test_a_record_is_found_under_a_former_name_and_stays_there():
    store = MemoryStore()
    async with store:
        async with InstanceManager(Before, store=store) as carts:
            await carts.call("ada", Before.add, "apple")
        async with InstanceManager(Renamed, store=store) as baskets:
            assert await baskets.call("ada", Renamed.add, "pear") == 2
            assert await baskets.call("bob", Renamed.add, "plum") == 1
            assert await store.get(default_key("basket", "ada")) is None
            assert await store.get(default_key("cart", "ada")) is not None
            assert await store.get(default_key("basket", "bob")) is not None
            await baskets.stop("ada")
            assert await baskets.call("ada", Renamed.add, "fig") == 3
            with pytest.raises(StoreInUseError, match="'cart'"):  # nobody else may own what it may find
                await InstanceManager(Before, store=store).open()
            await baskets.delete("ada")
            assert await store.get(default_key("cart", "ada")) is None
            assert (await baskets.state("ada")).items == []


@pytest.mark.parametrize("error", [StoreUnavailableError("down"), CorruptRecordError("damaged"), RuntimeError("bug")])
@pytest.mark.parametrize("name", ["basket", "trolley", "cart"])
async def test_what_can_not_be_read_under_one_of_its_names_is_not_absent(name, error):
    store, before = FaultyStore(MemoryStore()), default_key("cart", "ada")
    async with store:
        async with InstanceManager(Before, store=store) as carts:
            await carts.call("ada", Before.add, "apple")
        async with Untouched(store.inner, before), InstanceManager(Renamed, store=store) as baskets:
            store.fail("get", error, key=default_key(name, "ada"), times=2)
            with pytest.raises(ThawError):
                await baskets.call("ada", Renamed.add, "pear")
            assert baskets.keys() == []
            with pytest.raises(type(error)):
                await Persistence(store).thaw(Renamed, "ada")
            assert await store.count() == 1
            assert await baskets.call("ada", Renamed.read) == ["apple"]


async def test_the_record_of_an_agent_of_another_name_is_refused():
    store = MemoryStore()

    def by_key_alone(name, key):
        return key

    def all_in_one(name, key):
        return "the-one"

    async with store:
        async with InstanceManager(Before, store=store, key_fn=by_key_alone) as carts:
            await carts.call("ada", Before.add, "apple")
        async with Untouched(store, "ada"), InstanceManager(V1, store=store, key_fn=by_key_alone) as sessions:
            with pytest.raises(UnknownAgentError, match=r"session 'ada'.*'cart'.*aliases=.*key_fn"):
                await sessions.get("ada", initial={"title": "fresh"})
            with pytest.raises(UnknownAgentError, match=r"session 'ada'.*'cart'.*key_fn"):
                await sessions.delete("ada")
            assert sessions.keys() == []
        async with InstanceManager(Before, store=store, key_fn=all_in_one) as carts:
            await carts.call("ada", Before.add, "apple")
            async with Untouched(store, "the-one"):
                with pytest.raises(CorruptRecordError, match=r"cart 'bob'.*'ada'.*key_fn"):
                    await carts.call("bob", Before.add, "pear")
                with pytest.raises(CorruptRecordError, match=r"cart 'bob'.*'ada'.*key_fn"):
                    await carts.delete("bob")
                with pytest.raises(CorruptRecordError, match=r"cart 'bob'.*'ada'.*key_fn"):
                    await Persistence(store, key_fn=all_in_one).delete(Before, "bob")
            assert await carts.call("ada", Before.add, "fig") == 2
            await carts.delete("ada")
            assert await store.get("the-one") is None


async def test_with_a_key_fn_what_can_not_be_read_can_be_deleted():
    def by_key_alone(name, key):
        return key

    store = MemoryStore()
    async with store, InstanceManager(Before, store=store, key_fn=by_key_alone) as carts:
        await store.put("ada", b"no record", revision=b"1" * 16, expected=Expect.ABSENT)
        with pytest.raises(CorruptRecordError):
            await carts.call("ada", Before.add, "apple")
        await carts.delete("ada")
        await carts.delete("ada")
        assert await carts.call("ada", Before.add, "apple") == 1


class Fields1(Agent, name="profile"):
    name: str = ""

    async def rename(self, name: str) -> None:
        self.name = name


class Fields2(Agent, name="profile"):
    name: str = ""
    points: list[Point] = []
    tags: dict[str, Any] = {}

    async def win(self) -> int:
        self.points.append(Point(len(self.points)))
        self.tags["last"] = {"at": len(self.points)}
        return len(self.points)


async def test_old_and_new_code_write_one_agent_in_turns_and_no_field_is_lost():
    store, options = MemoryStore(), {"shared": True, "superseded": "retry"}
    async with store:
        for number in range(1, 4):
            async with InstanceManager(Fields2, store=store, **options) as new:
                assert await new.call("ada", Fields2.win) == number
                assert (await new.state("ada")).name == ("" if number == 1 else f"name {number - 1}")
            async with InstanceManager(Fields1, store=store, **options) as old:
                await old.call("ada", Fields1.rename, "in vain, for it is renamed again")
                await old.call("ada", Fields1.rename, f"name {number}")
                with pytest.raises(TypeError):
                    await old.call("ada", Fields1.rename)
            async with Persistence(store) as persistence:  # by hand too
                agent = await persistence.thaw(Fields1, "ada")
                await persistence.hibernate("ada", agent)
        async with InstanceManager(Fields2, store=store) as new:
            copy = await new.state("ada")
        assert (copy.name, copy.points, copy.tags) == ("name 3", [Point(0), Point(1), Point(2)], {"last": {"at": 3}})


class V1(Agent, name="session"):
    title: str = "none"

    async def entitle(self, title: str) -> None:
        self.title = title


class V3(Agent, name="session", version=3):
    topic: str
    words: int

    @upcast(since=1)
    @staticmethod
    def _title_was_topic(old: dict[str, Any]) -> dict[str, Any]:
        return {"topic": old["title"]}

    @upcast(since=2)
    @staticmethod
    def _words_are_counted(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "words": len(old["topic"].split())}

    async def retell(self, topic: str) -> None:
        self.topic = topic
        self.words = len(topic.split())


async def with_v1_record(store, title="a good title"):
    async with InstanceManager(V1, store=store) as sessions:
        await sessions.call("ada", V1.entitle, title)


async def test_an_old_record_is_brought_up_to_date_and_a_newer_one_is_refused():
    store = MemoryStore()
    async with store:
        await with_v1_record(store)
        async with InstanceManager(V3, store=store) as sessions:
            async with Untouched(store, default_key("session", "ada")):  # a thaw writes nothing
                copy = await sessions.state("ada")
                assert (copy.topic, copy.words) == ("a good title", 3)
                await sessions.stop("ada")
            await sessions.call("ada", V3.retell, "another")
        async with Untouched(store, default_key("session", "ada")), InstanceManager(V1, store=store) as sessions:
            with pytest.raises(NewerRecordError, match=r"'ada'.*3"):
                await sessions.call("ada", V1.entitle, "old code")
            with pytest.raises(NewerRecordError):
                await sessions.get("ada", initial={"title": "fresh"})
            async with Persistence(store) as persistence:
                with pytest.raises(NewerRecordError):
                    await persistence.thaw(V1, "ada")


def _raises(old: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("topic")


def _returns_none(old: dict[str, Any]) -> Any:
    return None


def _does_not_fit(old: dict[str, Any]) -> dict[str, Any]:
    return {"topic": ["not", "a", "str"]}


def _lacks_a_field(old: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("migrate", [_raises, _returns_none, _does_not_fit, _lacks_a_field])
async def test_a_migration_that_fails_leaves_the_stored_bytes_identical(migrate):
    class V2(Agent, name="session", version=2):
        topic: str

        _migrate = upcast(since=1)(staticmethod(migrate))

    store = MemoryStore()
    async with store:
        await with_v1_record(store, "a secret title")
        async with Untouched(store, default_key("session", "ada")), InstanceManager(V2, store=store) as sessions:
            for _ in range(2):
                with pytest.raises(MigrationError, match="'ada'") as caught:
                    await sessions.get("ada", initial={"topic": "fresh"})
                assert "secret" not in str(caught.value)
            if migrate is _raises:
                assert isinstance(caught.value.__cause__, KeyError)
            assert sessions.keys() == []
        async with InstanceManager(V1, store=store) as sessions:  # the old code can still go on
            assert (await sessions.state("ada")).title == "a secret title"


async def test_a_class_that_changed_shape_without_a_new_version_is_told_so():
    class Changed(Agent, name="session"):
        title: int = 0

    store = MemoryStore()
    async with store:
        await with_v1_record(store)
        async with Untouched(store, default_key("session", "ada")), InstanceManager(Changed, store=store) as sessions:
            with pytest.raises(MigrationError, match=r"'ada'.*version="):
                await sessions.get("ada")


# ---------------------------------------------------------------- dump and load of one's own


class Custom1(Agent, name="custom"):
    words: set[str] = set()

    def dump(self) -> Any:
        return sorted(self.words)

    @classmethod
    def load(cls, data: Any, version: int) -> Custom1:
        assert version == 1
        return cls(words=set(data))

    async def learn(self, word: str) -> int:
        self.words.add(word)
        return len(self.words)


class Custom2(Agent, name="custom", version=2):
    counts: dict[str, int] = {}

    def dump(self) -> Any:
        return {"counts": self.counts, "v": 2}

    @classmethod
    def load(cls, data: Any, version: int) -> Custom2:
        if version == 1:
            return cls(counts=dict.fromkeys(data, 1))
        assert (version, data["v"]) == (2, 2)
        return cls(counts=data["counts"])

    async def learn(self, word: str) -> int:
        self.counts[word] = self.counts.get(word, 0) + 1
        return self.counts[word]

    async def spoil(self) -> None:
        self.counts = {"a": object()}


async def test_a_format_of_ones_own_goes_round_with_its_version():
    store = MemoryStore()
    async with store:
        async with InstanceManager(Custom1, store=store) as agents:
            assert await agents.call("ada", Custom1.learn, "word") == 1
            assert await agents.call("ada", Custom1.learn, "other") == 2
            await agents.stop("ada")
            assert (await agents.state("ada")).words == {"word", "other"}
        async with InstanceManager(Custom2, store=store) as agents:
            assert await agents.call("ada", Custom2.learn, "word") == 2
            await agents.stop("ada")
            assert await agents.call("ada", Custom2.learn, "word") == 3
            with pytest.raises(AgentStateError):
                await agents.call("ada", Custom2.spoil)
            assert (await agents.state("ada")).counts == {"other": 1, "word": 3}
        async with Untouched(store, default_key("custom", "ada")), InstanceManager(Custom1, store=store) as agents:
            with pytest.raises(NewerRecordError):
                await agents.get("ada")


@pytest.mark.parametrize("result", ["raises", "None", "another class"])
async def test_a_load_that_fails_leaves_the_stored_bytes_identical(result):
    class Broken(Agent, name="custom", version=2):
        def dump(self) -> Any:
            return 1

        @classmethod
        def load(cls, data: Any, version: int) -> Any:
            if result == "raises":
                raise LookupError("secret word")
            return None if result == "None" else Custom1()

    store = MemoryStore()
    async with store:
        async with InstanceManager(Custom1, store=store) as agents:
            await agents.call("ada", Custom1.learn, "word")
        async with Untouched(store, default_key("custom", "ada")), InstanceManager(Broken, store=store) as agents:
            with pytest.raises(MigrationError, match="'ada'") as caught:
                await agents.get("ada")
            assert "secret" not in str(caught.value)


async def test_fields_and_a_format_of_ones_own_do_not_mix():
    class Fields(Agent, name="custom"):
        words: list[str] = []

    store = MemoryStore()
    async with store:
        async with InstanceManager(Custom1, store=store) as agents:
            await agents.call("ada", Custom1.learn, "word")
        async with Untouched(store, default_key("custom", "ada")), InstanceManager(Fields, store=store) as agents:
            with pytest.raises(ThawError, match=r"custom 'ada'.*dump"):
                await agents.get("ada")


def test_dump_and_load_of_the_base_go_round():
    session = V3(topic="a good title", words=3)
    dumped = session.dump()
    assert dumped == {"topic": "a good title", "words": 3}
    assert V3.load(dumped, 3) == session
    assert V3.load({"title": "a good title"}, 1) == session
    with pytest.raises(MigrationError):
        V3.load({"nothing": "of that"}, 1)
    with pytest.raises(NewerRecordError):
        V3.load(dumped, 4)


# ---------------------------------------------------------------- several classes


async def test_two_classes_that_share_a_former_name_can_not_own_one_store():
    class Other(Agent, name="other", aliases=("trolley",)):
        pass

    system = AgentSystem(store=MemoryStore())
    system.manager(Renamed, owner_wait=0, clock=ManualClock())
    system.manager(Other, owner_wait=0)
    with pytest.raises(StoreInUseError, match="'trolley'"):
        await system.open()


def test_the_default_key_tells_all_pairs_apart():
    names = ["a", "a:b", "a%3Ab", "a%b", "a%", "%3A", ":", "a:"]
    keys = ["c", "b:c", ":c", "%3Ac", ":", "3Ac"]
    assert len({default_key(name, key) for name in names for key in keys}) == len(names) * len(keys)
    assert default_key("a", "b:c") == "a:b:c"  # a key is left as it is
    assert default_key("a:b", "c") == "a%3Ab:c"


async def test_a_record_and_its_row_must_agree_on_the_revision():
    store = MemoryStore()
    async with store:
        async with InstanceManager(Before, store=store) as carts:
            await carts.call("ada", Before.add, "apple")
        key = default_key("cart", "ada")
        found = await store.get(key)
        await store.put(key, found.data, revision=b"another revision", expected=found.revision)
        async with Untouched(store, key), InstanceManager(Before, store=store) as carts:
            with pytest.raises(CorruptRecordError, match=r"cart 'ada'.*disagree on its revision"):
                await carts.call("ada", Before.add, "pear")


async def test_the_direct_api_stores_finds_and_deletes():
    async with Persistence(MemoryStore()) as persistence:
        assert await persistence.thaw(Before, "ada") is None
        await persistence.hibernate("ada", Before(items=["apple"]))
        with pytest.raises(RevisionConflictError, match=r"cart 'ada'.*thaw it again"):
            await persistence.hibernate("ada", Before(items=["over what is there"]))
        one, two = [await persistence.thaw(Before, "ada") for _ in range(2)]
        one.items.append("fig")
        await persistence.hibernate("ada", one)
        with pytest.raises(RevisionConflictError):
            await persistence.hibernate("ada", two)
        assert (await persistence.thaw(Before, "ada")).items == ["apple", "fig"]
        for _ in range(2):
            await persistence.delete(Before, "ada")
            assert await persistence.thaw(Before, "ada") is None
