"""What every store must do, as tests: the promises that managers rely on.

This file puts the parts of the contract together. It uses plain asserts and ``asyncio.run``, so that it works in any
test runner that collects classes with ``test_`` methods, without a plugin.
"""

from __future__ import annotations

from ._contract_cancel import CancelTests
from ._contract_core import CoreTests
from ._contract_crash import CrashTests
from ._contract_life import LifetimeTests
from ._contract_listing import BatchTests, ListingTests
from ._contract_revisions import RaceTests, RevisionTests
from ._contract_trouble import CorruptionTests, OutcomeTests

__all__ = ["StoreContract", "promises"]


class StoreContract(
    CrashTests,
    ListingTests,
    LifetimeTests,
    OutcomeTests,
    CorruptionTests,
    CancelTests,
    BatchTests,
    RaceTests,
    RevisionTests,
    CoreTests,
):
    """Subclass it, name it ``Test…``, tell it how a store is made, and run it with pytest.

    ::

        class TestMyStore(StoreContract):
            @pytest.fixture(autouse=True)
            def _folder(self, tmp_path):
                self.folder = tmp_path

            def store_factory(self):
                return "my.module:MyStore", self.folder

    Each of ``make_store``, ``store_factory``, ``corrupt``, ``interrupt`` and ``delay`` that is there allows more to be
    tested. What can't be is skipped, and the reason says what is missing. What is tested also follows from what
    the store declares: its ``durability``, ``network``, and whether it has a ``keys`` of its own.
    """


def promises(contract: type[StoreContract]) -> list[str]:
    """The names of the tests, in the order in which they stand, what is simple first."""
    names: dict[str, None] = {}
    for part in reversed(contract.__mro__):
        names.update(dict.fromkeys(name for name in vars(part) if name.startswith("test_")))
    return [name for name in names if callable(getattr(contract, name))]
