"""obstore's threads, which are those of the whole process: what a fork and the end of the interpreter mean to them.

This file knows no store and no request.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time

from ..errors import UsageError

__all__ = ["about_to_use"]

_LONGEST_GOODBYE = 0.5  # seconds; they need a millisecond or two
_used_in = 0  # the process that sent a first request


def about_to_use() -> None:
    """Note that this process will send requests.

    Raises:
        UsageError: it was forked by one that had sent some, so nothing would ever answer.
    """
    global _used_in
    if _used_in not in (0, os.getpid()):
        raise UsageError(
            "an ObjectStore was used before a fork, and obstore's threads stayed in the parent process: start this "
            "process by spawn (multiprocessing.get_context('spawn')), or open the store in the children only"
        )
    if not _used_in:
        atexit.register(_see_off)
    _used_in = os.getpid()


def _see_off() -> None:
    """Wait until no thread but Python's own is inside Python.

    obstore's are there to hand a result over, and wake the loop in the midst of that: a program that ends at once would
    be aborted by the one that comes back to an interpreter which is no more.
    """
    end = time.monotonic() + _LONGEST_GOODBYE
    while sys._current_frames().keys() - _started_by_python() and time.monotonic() < end:
        time.sleep(0.001)


def _started_by_python() -> set[int | None]:
    # A thread of obstore's that asked for its name, as a log does, has a dummy for a thread object.
    return {each.ident for each in threading.enumerate() if not isinstance(each, threading._DummyThread)}
