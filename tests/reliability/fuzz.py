"""Hostile records that coverage leads to: atheris makes the bytes, ``judge`` of hostile.py says what may come of it.

``python fuzz.py FOLDER -max_total_time=180``: the folder keeps what reached something new, for the next run. It takes
an environment of its own, with atheris: ``make fuzz``. A finding is written to a file, and is repeated by
``python fuzz.py FILE``.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["overwinter"]):
    import hostile
    from hostile_agents import REVISION, samples

    from overwinter.errors import CorruptRecordError
    from overwinter.record import pack, unpack
    from overwinter.stores.base import Stored

GOODS = samples(random.Random(1))
WAYS = ("record", "body", "header", *hostile.FRAMES)


def one_input(data: bytes) -> None:
    """The first byte chooses the sample, the second what the others are."""
    if len(data) < 2:
        return
    good, way, rest = GOODS[data[0] % len(GOODS)], WAYS[data[1] % len(WAYS)], data[2:]
    stored: Stored | None = Stored(rest, REVISION)
    if way == "body":
        stored = Stored(pack(good.header, rest), REVISION)
    elif way == "header":
        stored = Stored(hostile.seal(rest, good.body, good.header.flags), REVISION)
    elif way != "record":
        try:
            stored = hostile.unframe(way, rest)
        except CorruptRecordError:
            return
    hostile.read_names(rest[:200])
    if stored is not None:
        hostile.judge(good, stored)


def main() -> None:
    folder = Path(sys.argv[1])
    if not folder.suffix and not folder.is_file():
        folder.mkdir(exist_ok=True)
        for number, good in enumerate(GOODS):
            head = good.data[16 : len(good.data) - 16 - len(good.body)]
            assert unpack(hostile.seal(head, good.body, good.header.flags)) == unpack(good.data)
            parts = {"record": good.data, "body": good.body, "header": head}
            parts |= {store: frame(good.data) for store, frame in hostile.FRAMES.items()}
            for way, part in parts.items():
                (folder / f"good-{number}-{way}").write_bytes(bytes([number, WAYS.index(way)]) + part)
    atheris.Setup(
        [sys.argv[0], *sys.argv[1:], "-max_len=4096", "-len_control=0", "-rss_limit_mb=1024", "-timeout=10"], one_input
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
