"""Pykka: an actor per thread. Each caller is a thread that waits for its answer, which is how Pykka is used."""

from __future__ import annotations

import threading
import time

import pykka

from . import version

__all__ = ["calls", "settings"]


def settings() -> str:
    return f"pykka {version('pykka')}: ThreadingActor, `ref.ask(message)`, its quickest call; callers are threads"


class Counter(pykka.ThreadingActor):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: int) -> int:
        self.count += message
        return self.count


def calls(agents: int, callers: int, seconds: float) -> float:
    actors = [Counter.start() for _ in range(agents)]
    begin = time.perf_counter()
    counts = [0] * callers

    def caller(number: int) -> None:
        ask, done = actors[number % agents].ask, 0
        while time.perf_counter() < begin + seconds:
            ask(1)
            done += 1
        counts[number] = done

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begin
    pykka.ActorRegistry.stop_all()
    return sum(counts) / spent
