"""Write the golden records of format 1. Run once, when a format is released; a golden file never changes afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from overwinter.record import CUSTOM, EXTRAS, Header, pack

FOLDER = Path(__file__).parent / "format-1"

PLAIN = Header(
    agent="Counter",
    version=1,
    fingerprint=bytes(range(8)),
    key="ada",
    sequence=1,
    revision=bytes(range(16)),
    time_us=1_790_000_000_123_456,
)

RECORDS: dict[str, tuple[Header, object]] = {
    "plain": (PLAIN, {"count": 1}),
    "extras": (
        msgspec.structs.replace(PLAIN, agent="chat.session", version=7, sequence=2**40, flags=EXTRAS),
        {
            "topic": "winter",
            "history": [{"role": "user", "text": "grüße ❄"}, ["ToolCall", {"name": "find"}]],
            "added_later": None,
        },
    ),
    "custom": (
        msgspec.structs.replace(PLAIN, flags=CUSTOM, key="k\0/../é" + "x" * 1000),
        ["v", 1.5, b"\x00\xff", -3, True],
    ),
    "empty": (msgspec.structs.replace(PLAIN, sequence=0, time_us=0), {}),
    "calls": (
        msgspec.structs.replace(PLAIN, calls=(["id-1", "increment", 3], ["id-2", "increment", None])),
        {"count": 3},
    ),
    "deep": (PLAIN, {"tree": "…"}),
}


def body_of(name: str) -> bytes:
    if name == "deep":  # exactly 100 levels: the map, and 99 arrays around a nil
        return b"\x81\xa4tree" + b"\x91" * 99 + b"\xc0"
    return msgspec.msgpack.encode(RECORDS[name][1])


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (header, _) in RECORDS.items():
        path = FOLDER / f"{name}.bin"
        if path.exists():
            sys.exit(f"{path} exists: golden files are never written again")
        path.write_bytes(pack(header, body_of(name)))


if __name__ == "__main__":
    main()
