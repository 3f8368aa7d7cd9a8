"""Write ids: nobody makes one twice, in no thread and in no forked child."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from overwinter.persistence import new_revision


def test_no_write_id_comes_twice_in_any_thread():
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: [new_revision() for _ in range(3000)], range(4)))
    made = [revision for part in parts for revision in part]
    assert {type(revision) for revision in made} == {bytes}
    assert {len(revision) for revision in made} == {16}
    assert len(set(made)) == 12_000


def test_write_ids_are_drawn_many_at_once(monkeypatch):
    drawn: list[int] = []
    urandom = os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: (drawn.append(size), urandom(size))[1])
    for _ in range(1000):
        new_revision()
    assert 3 <= len(drawn) <= 4


def test_a_forked_child_makes_others():
    code = """
import os
from overwinter.persistence import new_revision
new_revision()
read, write = os.pipe()
child = os.fork()
made = b"".join(new_revision() for _ in range(300))
if not child:
    os.write(write, made)
    os._exit(0)
os.waitpid(child, 0)
theirs = os.read(read, 16 * 300)
split = lambda ids: {ids[at : at + 16] for at in range(0, len(ids), 16)}
print(len(split(made)), len(split(theirs)), len(split(made) & split(theirs)))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["300", "300", "0"]
