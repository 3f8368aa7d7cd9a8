"""Histories of what clients did, as they write them down, and the models: what each operation may do.

A line is written before an operation is called and another when it has an outcome, each with one system call, so that
what was written is there even if the client is killed. What has no outcome is unknown. Processes share the clock.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from linearizable import Operation, Step, refusal

__all__ = ["ABSENT", "AGENT", "ANY", "STORE", "Recorder", "check", "read"]

ABSENT, ANY = None, "any"
"""What a put or a delete expects, if it is no revision."""


class Recorder:
    """Writes down what the clients of one process do."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = itertools.count()

    def call(self, key: str, *what: object) -> int:
        number = next(self._numbers)
        self._write("call", number, time.monotonic_ns(), key, what)
        return number

    def back(self, number: int, outcome: str, seen: object = None) -> None:
        """*outcome*: ``"done"``; ``"conflict"``; ``"none"``, it certainly did not happen."""
        self._write("back", number, time.monotonic_ns(), outcome, seen)

    def _write(self, *line: object) -> None:
        os.write(self._file, (json.dumps(line) + "\n").encode())

    def close(self) -> None:
        os.close(self._file)


def read(
    paths: Iterable[str | Path], *, stale_reads: bool = False, tombstones: bool = False
) -> dict[str, list[Operation]]:
    """The history of each key. What certainly did not happen is left out: whoever sees it sees what nobody did.

    With *stale_reads*, a read may tell of any moment before its return. With *tombstones*, a create may conflict with
    a delete beside it, even of what is absent: both leave another tombstone, and a create stands on the one it saw.
    """
    keys: dict[str, list[Operation]] = {}
    for path in paths:
        whole = (
            Path(path).read_text().split("\n")[:-1]
        )  # a kill may tear the last line: what it tells did not happen yet
        lines = [json.loads(line) for line in whole]
        outcomes = {number: rest for kind, number, *rest in lines if kind == "back"}
        for kind, number, call, *rest in lines:
            if kind != "call":
                continue
            key, (verb, *arguments) = rest
            back, outcome, seen = outcomes.get(number, (math.inf, "unknown", None))
            reads = verb in READS
            if outcome == "none" or (reads and outcome == "unknown"):
                continue
            if isinstance(seen, list):
                seen = tuple(seen)
            begin = 0 if reads and stale_reads else call
            keys.setdefault(key, []).append(Operation(begin, back, (verb, *arguments, outcome, seen)))
    return {key: without_barred(history) for key, history in keys.items()} if tombstones else keys


def without_barred(history: list[Operation]) -> list[Operation]:
    """Leave out creates that a delete may have barred: they say no more than what certainly did not happen."""
    deletes = [each for each in history if each.what[0] == "delete" and each.what[-2] != "conflict"]

    def barred(each: Operation) -> bool:
        create = each.what[0] == "put" and each.what[1] is ABSENT and each.what[-2] == "conflict"
        return create and any(delete.call < each.back and each.call < delete.back for delete in deletes)

    return [each for each in history if not barred(each)]


def count(history: Iterable[Operation]) -> Counter[str]:
    """How many of them had which outcome."""
    return Counter(each.what[-2] for each in history)


READS = ("get", "head", "read")


def store(revision: Any, what: Any) -> Iterable[Hashable]:
    """A key of a store: its state is the revision that is there."""
    verb, *arguments, outcome, seen = what
    if verb in READS:
        return [revision] if seen == revision else []
    expected, new = arguments
    fits = revision == expected or (verb == "delete" and (expected == ANY or revision is ABSENT))
    if outcome == "conflict":
        return [] if fits else [revision]
    if outcome == "unknown" and new == revision:
        return []  # as if it had never been done
    return [new] if fits else []


def agent(state: Any, what: Any) -> Iterable[Hashable]:
    """A ``Register``: its state is the value that is there, and how many were before it."""
    verb, *arguments, outcome, seen = what
    if outcome == "done" and seen != state:
        return []
    return [state] if verb in READS else [(arguments[0], state[1] + 1)]


STORE: tuple[Hashable, Step] = (ABSENT, store)
AGENT: tuple[Hashable, Step] = (("", 0), agent)


def check(histories: dict[str, list[Operation]], model: tuple[Hashable, Step]) -> None:
    """Fail if a key's history is not linearizable."""
    for key, history in histories.items():
        why = refusal(history, *model)
        assert why is None, f"key {key!r}: {why}"
