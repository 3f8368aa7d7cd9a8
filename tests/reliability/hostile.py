"""Decode hostile records, all the way to live agents; an audit hook ends the process on import, open or exec.

Run by test_hostile_bytes.py in a process of its own: an audit hook can't be removed, nor can a bound of memory. Each
case follows from the seed and its number. ``judge`` is also what fuzz.py calls.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import faulthandler
import functools
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from hostile_agents import CALL, KEY, REVISION, Everything, Plain, Sample, samples

from overwinter import InstanceManager, MemoryStore
from overwinter.agent import _receipts
from overwinter.errors import (
    AlreadyAppliedError,
    CallIdReusedError,
    CorruptRecordError,
    MigrationError,
    NewerRecordError,
    OutsideTurnError,
    ThawError,
    UnknownAgentError,
)
from overwinter.persistence import Loaded
from overwinter.record import CUSTOM, EXTRAS, Header, pack, unpack
from overwinter.stores import _file_frame, _objects_frame, _objects_names, _redis_frame
from overwinter.stores.base import Stored

FORBIDDEN = (
    "import", "open", "exec", "compile", "code.", "pickle", "marshal", "ctypes", "os.", "subprocess", "socket.",
    "shutil", "tempfile", "sqlite3", "urllib", "http.", "webbrowser", "pty.", "fcntl", "mmap", "builtins.input",
    "builtins.breakpoint",
)  # fmt: skip
ROOM = 256 * 1024 * 1024
"""Bytes of address space that hostile records may make us take, though many of them claim to have four times 2**30."""
SECONDS = 1.0
"""Of processor time that one record may take. They have a few KB, but for some of a MB."""

DEEP = b"a nest of more than 100 levels"
TOKENS = [
    # They claim more than there is.
    b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01", b"\xdc\xff\xff", b"\xa5abc",
    # No UTF-8: a stray byte, a surrogate, an overlong NUL.
    b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xa2\xc0\x80",
    # NaN, infinity, -0.0; numbers at the borders and in longer forms than need be.
    b"\xcb\x7f\xf8\0\0\0\0\0\0", b"\xcb\x7f\xf0\0\0\0\0\0\0", b"\xca\x7f\x80\0\0", b"\xcb\x80\0\0\0\0\0\0\0",
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xd9\x01a", b"\xcf" + bytes(8),
    # Extensions, timestamps among them.
    b"\xd4\x05\0", b"\xc7\x00\x05", b"\xd6\xff\0\0\0\0", b"\xc7\x0c\xff" + b"\xff" * 12, b"\xd7\xff" + b"\xff" * 8,
    # Keys: twice the same, nil, an array, a map.
    b"\x82\xa1a\x01\xa1a\x02", b"\x81\xc0\xc0", b"\x81\x90\xc0", b"\x81\x80\xc0", b"\x82\x01\xc0\xc3\xc0",
    # Other types, and text that looks like something.
    b"\xc0", b"\xc2", b"\x80", b"\x90", b"\xa0", b"\xc4\0", b"\x00", b"\xff", b"\x92\xa4Tool\x80", b"\x92\xa4Note\xc0",
    b"\xaa2026-02-30", b"\xb49999-99-99T99:99:99Z", b"\xb92026-01-01T00:00:00+05:00", b"\xa5P999D", b"\xa81E+99999",
    b"\xa9__class__", b"\xc4\x0bcos\nsystem\n",
    DEEP,
]  # fmt: skip

Case = tuple[str, Sample, bytes]
"""How it was made, whose record it was, and the bytes that a store holds for it."""


def watch(event: str, _: object) -> None:
    if armed and event.startswith(FORBIDDEN):
        os.write(2, f"decoding caused {event} in case {number}\n".encode())
        faulthandler.dump_traceback()
        os._exit(3)


armed, number = False, -1


# ---------------------------------------------------------------- making them


def nest(chance: random.Random) -> bytes:
    opener = chance.choice([b"\x91", b"\x81\xc0", b"\xdd\0\0\0\1", b"\x81\x91"])
    return opener * chance.choice([101, 102, 200, 900, 5_000, 100_000 if chance.random() < 0.05 else 300]) + b"\xc0"


def token(chance: random.Random) -> bytes:
    found = chance.choice(TOKENS)
    return nest(chance) if found is DEEP else found


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change some bytes, put some in, take some out."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found)) if found else 0
        match chance.randrange(5):
            case 0:
                found[at : at + 1] = chance.randbytes(1)
            case 1:
                found[at:at] = chance.randbytes(chance.randint(1, 9))
            case 2:
                del found[at : at + chance.randint(1, 9)]
            case 3:
                found[at : at + 1] = bytes([found[at] ^ 1 << chance.randrange(8)]) if found else b""
            case _:
                found[at : at + chance.randrange(5)] = token(chance)
    return bytes(found)


def replant(body: bytes, chance: random.Random) -> bytes:
    """Put a hostile value in the place of a good one, somewhere in a body that is whole otherwise."""
    top = msgspec.msgpack.decode(body)
    node, hostile = top, msgspec.Raw(token(chance))
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places or (node is not top and chance.random() < 0.1):
            places = []
        here = chance.choice(places) if places else None
        inner = node[here] if places else None
        if isinstance(inner, dict | list) and inner and chance.random() < 0.7:
            node = inner
            continue
        if isinstance(node, list):
            node[here if places else 0 : 1 + (here or 0)] = [hostile] * chance.choice([1, 1, 2, 0])
        elif chance.random() < 0.8:
            node[here if places else "?"] = hostile
        elif places:
            del node[here]
        return msgspec.msgpack.encode(top)


def seal(head: bytes, body: bytes, flags: int = 0) -> bytes:
    """A record of a header of any bytes; all checks that a writer can't get wrong are right."""
    start = b"\x89OWR\x01" + bytes([flags, 0, 0]) + len(head).to_bytes(4, "little") + len(body).to_bytes(4, "little")
    return start + head + body + blake2b(start + head + body, digest_size=16).digest()


def head_of(header: Header, chance: random.Random) -> bytes:
    """A header with one hostile item."""
    h = header
    items: list[Any] = [h.agent, h.version, h.fingerprint, h.key, h.sequence, h.revision, h.time_us, h.calls]
    at = chance.randrange(8)
    if at == 7 and chance.random() < 0.8:
        items[7] = [["1", "add", CALL, token(chance)]]
        if chance.random() < 0.5:
            items[7].append(msgspec.Raw(msgspec.msgpack.encode(items[7][0]).replace(b"\xa11", token(chance))))
    else:
        items[at] = msgspec.Raw(token(chance))
    return msgspec.msgpack.encode(items)


def make(goods: list[Sample], chance: random.Random) -> Case:
    """A case: mostly with checksums that fit, since all else is refused before anything is decoded."""
    good = chance.choice(goods)
    match chance.randrange(16):
        case 0:
            return "noise", good, chance.randbytes(chance.randrange(300))
        case 1:
            return "noise in a record", good, seal(chance.randbytes(40), chance.randbytes(chance.randrange(99)))
        case 2 | 3:
            return "changed", good, mutate(good.data, chance)
        case 4 | 5 | 6:
            return "changed body", good, pack(good.header, mutate(good.body, chance))
        case 7:
            changed = mutate(msgspec.msgpack.encode(good.header)[: chance.randrange(99)], chance)
            return "noise for a header", good, seal(changed, good.body)
        case 8 | 9:
            return "hostile header", good, seal(head_of(good.header, chance), good.body, good.header.flags)
        case 10:
            other = chance.choice(goods)
            header = msgspec.structs.replace(
                good.header, version=chance.randint(1, 4), flags=chance.randrange(4),
                fingerprint=chance.choice([good.header.fingerprint, bytes(8)]),
            )  # fmt: skip
            return "another body", good, pack(header, other.body)
        case _:
            return "hostile value", good, pack(good.header, replant(good.body, chance))


# ---------------------------------------------------------------- reading them

FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "file": lambda data: _file_frame.pack(KEY, REVISION, len(data)) + data,
    "redis": lambda data: _redis_frame.head_of(REVISION) + data,
    "objects": lambda data: _objects_frame.record(KEY, REVISION, data),
}


def unframe(store: str, data: bytes) -> Stored | None:
    """What a store makes of the bytes that it finds; ``None`` is absence."""
    if store == "file":
        with contextlib.suppress(_file_frame.DamagedError):
            _file_frame.key_in(data)
        try:
            revision, begin = _file_frame.unpack(data, len(data), KEY)
        except _file_frame.DamagedError:
            raise CorruptRecordError("damaged") from None
        return Stored(data[begin:], revision)
    if store == "objects":
        seen = _objects_frame.look(KEY, data, len(data), {"e_tag": "1"})
        _objects_frame.key_in(data)
        if seen.revision is None and not seen.absent:
            assert seen.damage
            raise CorruptRecordError("damaged")
        return None if seen.revision is None else Stored(data[seen.begin :], seen.revision)
    head, stored = _redis_frame.revision_of(KEY, data), _redis_frame.read_value(KEY, data)
    assert head == (stored and stored.revision)
    return stored


def read_names(data: bytes) -> None:
    """Names that a server lists: of nothing of ours, or of a key whose name they are."""
    redis = _redis_frame.Names("p:")
    key = redis.key(b"p:agent:" + data)
    assert key is None or redis.of(key) == b"p:agent:" + data
    name = data.decode("utf-8", "surrogateescape")
    found = _objects_names.key_of(name)
    assert found is None or _objects_names.name_of(found) == name


def judge(sample: Sample, stored: Stored) -> str:
    """Read a record as an agent's, and write it again; ``AssertionError`` for an outcome that isn't documented."""
    keeper = sample.keeper
    try:
        header: Header | None = unpack(stored.data)[0]
    except (CorruptRecordError, NewerRecordError) as error:
        header, refused = None, type(error)
    try:
        loaded = keeper.read(KEY, sample.store_key, stored)
    except ThawError as error:
        kind, text = type(error), str(error)
    else:
        assert header is not None, f"{refused.__name__} came alive"
        return written_again(sample, loaded, header)
    assert header is not None or kind is refused, f"the record was {refused}, the agent {kind}"
    assert kind in words_for(header, sample), f"{kind.__name__} is no word for this: {text}"
    return "refused"


def words_for(header: Header | None, sample: Sample) -> set[type[ThawError]]:
    """The errors that may say why an agent can't be made of a record with this header."""
    kind, schema = sample.keeper.kind, sample.keeper.kind.schema
    known: set[type[ThawError]] = {CorruptRecordError, NewerRecordError}
    if header is None:
        return known
    if schema.custom or (header.version, header.fingerprint) != (schema.version, schema.fingerprint):
        known.add(MigrationError)
    if header.agent != kind.name:
        known.add(UnknownAgentError)
    if bool(header.flags & CUSTOM) != schema.custom:
        known.add(ThawError)
    return known


def written_again(sample: Sample, loaded: Loaded[Any], header: Header) -> str:
    """What came alive can be stored, and comes alive again."""
    keeper, schema = sample.keeper, sample.keeper.kind.schema
    assert type(loaded.agent) is keeper.kind.cls
    again = keeper.encode(loaded.agent, loaded.extras)
    flags = header.flags if schema.custom else EXTRAS
    header = msgspec.structs.replace(header, version=schema.version, fingerprint=schema.fingerprint, flags=flags)
    keeper.read(KEY, sample.store_key, Stored(pack(header, again), header.revision))
    return "read"


def told(_: object, context: dict[str, Any]) -> None:
    """A record that nobody's encoder wrote, such as one with a field twice, is taken for a change outside a turn."""
    if not isinstance(context["exception"], OutsideTurnError):
        failures.append(context["exception"])


failures: list[BaseException] = []


async def revive(managers: dict[type, InstanceManager[Any]], sample: Sample, stored: Stored) -> str:
    """Let a manager find it: an agent comes alive that can be called and stored, or nothing does."""
    cls = sample.keeper.kind.cls
    manager = managers[cls]
    store = manager._store
    store._records[sample.store_key] = stored
    try:
        agent = await manager.get(KEY)
    except ThawError:
        assert store._records[sample.store_key] is stored, "what could not be read was changed"
        assert not manager.keys()
        return "refused"
    if cls in (Everything, Plain):
        agent = await manager.options(call_id="1").get(KEY)
        with contextlib.suppress(AlreadyAppliedError, CallIdReusedError):
            assert type(await agent.add()) is int
    await manager.state(KEY)
    await manager.stop(KEY)
    assert not manager.keys()
    return "revived"


def one(goods: list[Sample], chance: random.Random) -> tuple[str, str, Sample, Stored | None]:
    """Make one case and read it as far as it goes; what became of it."""
    way, sample, data = make(goods, chance)
    read_names(data[:200])
    store = chance.choice(["none", *FRAMES])
    stored: Stored | None = Stored(data, REVISION)
    if store != "none":
        framed = FRAMES[store](data)
        spoilt = mutate(framed[: 80 + len(KEY)], chance) + framed[80 + len(KEY) :] if chance.random() < 0.3 else framed
        try:
            stored = unframe(store, spoilt)
        except CorruptRecordError:
            assert spoilt != framed, f"the frame of {store} does not come back"
            return f"{way}, {store}", "refused", sample, None
        if stored is None:
            assert spoilt != framed
            return f"{way}, {store}", "absent", sample, None
    assert stored is not None
    return f"{way}, {store}", judge(sample, stored), sample, stored


async def main(seed: str, first: int, cases: int, breakage: str) -> None:
    global armed, number
    goods = samples(random.Random(seed))
    counts: collections.Counter[str] = collections.Counter()
    managers = {kind: InstanceManager(kind, store=MemoryStore()) for kind in {good.keeper.kind.cls for good in goods}}
    asyncio.get_running_loop().set_exception_handler(told)
    for manager in managers.values():
        await manager.open()
    _receipts._codec = functools.cache(_receipts._codec)  # it compiles annotations, which are no bytes of a store's
    for good in goods:  # everything that is loaded or compiled once is so before the hook listens
        assert judge(good, Stored(good.data, REVISION)) == "read"
        assert await revive(managers, good, Stored(good.data, REVISION)) == "revived"
    for cls in (Everything, Plain):  # a reply that is kept for the first time, too
        assert await managers[cls].options(call_id="2").call("other", cls.add) == 1
        await managers[cls].stop("other")
    if breakage:
        BREAKAGES[breakage]()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    way, armed = "", True
    for number in range(first, first + cases):
        chance = random.Random(f"{seed} {number}")
        began = time.process_time()
        try:
            way, outcome, sample, stored = one(goods, chance)
            if stored is not None and not number % 16:
                counts[await revive(managers, sample, stored)] += 1
                assert not failures, failures
            assert time.process_time() - began < SECONDS, f"it took {time.process_time() - began:.1f} s"
        except BaseException:
            armed = False
            print(
                f"case {number} of seed {seed!r}: {make(goods, random.Random(f'{seed} {number}'))!r}"[:3000],
                file=sys.stderr,
            )
            raise
        counts["records"] += 1
        counts[outcome] += 1
        counts[way] += 1
    armed = False
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    print(json.dumps(counts))


# ---------------------------------------------------------------- parts broken on purpose


def _break_import() -> None:
    from overwinter.agent import _schema

    text = _schema.safe_text
    _schema.safe_text = lambda error: __import__("xml.sax") and text(error)


def _break_open() -> None:
    from overwinter import persistence

    persistence.receipts_from = lambda *_: open(__file__).close() or ()  # noqa: PTH123


def _break_exec() -> None:
    from overwinter.agent import _schema

    collect = _schema.run_upcast
    _schema.run_upcast = lambda *args: (exec("1"), collect(*args))[1]


def _break_errors() -> None:
    from overwinter.agent._schema import Schema

    def unreadable(*_: object) -> Exception:
        return ValueError("whatever the decoder says")

    Schema._unreadable = unreadable  # type: ignore[assignment,method-assign]


def _break_memory() -> None:
    from overwinter import persistence

    inner = persistence.unpack

    def reserve(data: bytes) -> Any:
        bytearray(int.from_bytes(data[12:16], "little"))
        at = data.find(b"\xdd\xff\xff\xff\xff")
        bytearray(0 if at < 0 else int.from_bytes(data[at + 1 : at + 5], "big"))
        return inner(data)

    persistence.unpack = reserve


def _break_time() -> None:
    from overwinter.record import _envelope

    def slow(body: bytes) -> None:
        end = time.process_time() + SECONDS * 0.6
        while len(body) > 100 and time.process_time() < end:
            continue

    _envelope.check_depth = slow


def _break_checksum() -> None:
    from overwinter import persistence
    from overwinter.record import _envelope

    def trusting(data: bytes) -> Any:
        try:
            return unpack(data)
        except CorruptRecordError:
            return unpack(data[:-16] + _envelope.blake2b(data[:-16], digest_size=16).digest())

    persistence.unpack = trusting


BREAKAGES = {
    name.removeprefix("_break_"): value for name, value in list(globals().items()) if name.startswith("_break_")
}


if __name__ == "__main__":
    sys.addaudithook(watch)
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
