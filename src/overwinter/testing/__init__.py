"""Help for the tests of programs that use overwinter, and of stores of one's own. Needs no test framework.

``ManualClock`` moves time, ``FaultyStore`` fails on demand, ``until`` waits for what happens in the background, and a
subclass of ``StoreContract`` shows whether a store keeps the promises that managers rely on; so does
``python -m overwinter.testing``. ``strict`` holds ``@readonly`` calls to their word.
"""

from __future__ import annotations

from ._clock import ManualClock, until
from ._contract import StoreContract
from ._factory import Factory as StoreFactory
from ._faulty import FaultyStore, Gate
from ._strict import strict

__all__ = ["FaultyStore", "Gate", "ManualClock", "StoreContract", "StoreFactory", "strict", "until"]
