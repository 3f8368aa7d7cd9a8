"""Many more keys than may be live at a time: memory stays flat, and every count is right."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    ("keys", "max_live", "again"),
    [(30_000, 500, 10), pytest.param(1_000_000, 10_000, 50, marks=pytest.mark.soak)],
)
def test_memory_is_flat_however_many_keys_are_visited(tmp_path, worker, record_property, keys, max_live, again):
    crowd = worker(
        "visit", "crowd.py", url=f"sqlite:///{tmp_path}/guests.db", keys=keys, max_live=max_live, again=again
    )
    seen = [json.loads(crowd.expect("now")) for _ in range(100)]
    assert crowd.expect("first") == "0"
    assert crowd.expect("second") == "0"
    assert crowd.ended() == 0, crowd.errors

    record_property("megabytes", [resident for _, _, resident in seen])
    assert max(live for _, live, _ in seen) <= max_live
    warm, *later = [resident for visited, _, resident in seen if visited >= keys / 2]  # caches have filled
    assert max(later) <= 1.05 * warm, f"resident megabytes as it went: {seen}"
