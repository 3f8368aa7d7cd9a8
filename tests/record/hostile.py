"""Decode 20,000 random and mutated records under an audit hook that ends the process on import, open or exec.

Run by test_envelope.py in a process of its own: an audit hook can't be removed.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import overwinter.record
from overwinter.errors import CorruptRecordError, NewerRecordError

FORBIDDEN = {
    "import",
    "open",
    "exec",
    "compile",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
}


def watch(event: str, _: object) -> None:
    if armed and (event in FORBIDDEN or event.startswith("pickle")):
        os.write(2, f"decoding caused {event}\n".encode())
        os._exit(3)


def mutate(record: bytes, chance: random.Random) -> bytes:
    data = bytearray(record)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data)) if data else 0
        match chance.randrange(4):
            case 0:
                data[at : at + 1] = chance.randbytes(1)
            case 1:
                data[at:at] = chance.randbytes(chance.randint(1, 9))
            case 2:
                del data[at : at + chance.randint(1, 9)]
            case _:
                data[at : at + 4] = b"\xdd\xff\xff\xff"
    return bytes(data)


def main() -> None:
    global armed
    chance = random.Random(2013)
    goldens = [path.read_bytes() for path in sorted(Path(sys.argv[1]).glob("*.bin"))]
    refused = 0
    armed = True
    for n in range(20_000):
        data = mutate(chance.choice(goldens), chance) if n % 2 else chance.randbytes(chance.randrange(300))
        try:
            overwinter.record.unpack(data)
        except (CorruptRecordError, NewerRecordError):
            refused += 1
    if "--prove" in sys.argv:
        open(sys.argv[0]).close()  # noqa: PTH123 - the hook must end us here
    armed = False
    print(refused)


armed = False
sys.addaudithook(watch)
main()
