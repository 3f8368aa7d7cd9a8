"""Who tests the tests: small faults in the source, one at a time, each of which some test should notice.

``python -m mutation`` makes them and runs the tests that execute the changed line. Functions are changed in a fork of a
process that has collected all tests already, so that most faults cost some tenths of a second; what runs when a module
is imported is changed in a fork of a process that has not imported overwinter yet. ``words.txt`` says of the known
survivors why they live.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["PACKAGE", "ROOT", "SUBJECTS", "TESTS"]

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "overwinter"
SUBJECTS = ("_depth.py", "persistence.py", "record/*.py", "runtime/*.py")
TESTS = (
    "tests/record", "tests/runtime", "tests/test_write_ids.py", "tests/agent/test_classes.py",
    "tests/agent/test_classes_and_records.py", "tests/agent/test_classes_at_work.py",
    "tests/agent/test_leftovers_at_work.py",
)  # fmt: skip
"""Those that judge: quick, and without servers. Tests that start processes are left out, for those are not changed."""
