"""Nothing here can hang: not even the close of a manager whose manual clock nobody moves any more."""

from __future__ import annotations

import pytest
from waiting import ends_within


@pytest.fixture(autouse=True)
def _bounded():
    with ends_within(30):
        yield
