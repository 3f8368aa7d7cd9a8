"""Many more keys than may be live at a time: memory stays flat, and every count is right."""

from __future__ import annotations

import json


def test_memory_is_flat_however_many_keys_are_visited(tmp_path, worker, proof):
    keys, max_live, again = proof.size(30_000, 1_000_000), proof.size(500, 10_000), proof.size(10, 50)
    crowd = worker(
        "visit", "crowd.py", url=f"sqlite:///{tmp_path}/guests.db", keys=keys, max_live=max_live, again=again
    )
    seen = [json.loads(crowd.expect("now")) for _ in range(100)]
    assert crowd.expect("first") == "0"
    assert crowd.expect("second") == "0"
    assert crowd.ended() == 0, crowd.errors

    proof.count(
        agents=keys,
        live_at_most=max(live for _, live, _ in seen),
        MB_at_most=round(max(resident for *_, resident in seen)),
    )
    assert max(live for _, live, _ in seen) <= max_live
    warm, *later = [resident for visited, _, resident in seen if visited >= keys / 2]  # caches have filled
    assert max(later) <= 1.05 * warm, f"resident megabytes as it went: {seen}"
