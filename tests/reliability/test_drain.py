"""SIGTERM with many agents that are not stored yet: all are, within a bound; or each that is not is named."""

from __future__ import annotations

import asyncio
import re
import signal
import time

import pytest
from drain import Hoard

from overwinter import InstanceManager, stores
from overwinter.stores import from_url

MANY = 10_000
SECONDS = 10.0

KINDS = ["sqlite"] + ["file"] * hasattr(stores, "FileStore")


@pytest.fixture(params=KINDS)
def url(request):
    """The URL of a store in a folder."""
    return lambda folder: f"{request.param}:///{folder / 'agents'}"


async def rounds(url, keys):
    async with InstanceManager(Hoard, store=from_url(url), owner_wait=0) as hoards:
        return {
            key: each.rounds for key, each in zip(keys, await asyncio.gather(*map(hoards.state, keys)), strict=True)
        }


@pytest.mark.alone
def test_ten_thousand_agents_are_stored_within_ten_seconds_of_sigterm(tmp_path, worker, url, proof):
    keys = [f"k{i}" for i in range(MANY)]
    service = worker("serve", "drain.py", url=url(tmp_path), agents=MANY, saved=0, size=0, deadline=6 * SECONDS)
    service.expect("saved")
    assert service.expect("dirty") == str(MANY)
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    status = service.ended()
    took = time.monotonic() - began
    proof.count(agents=MANY, milliseconds=round(took * 1000))
    assert (status, service.errors) == (0, "")
    assert took < SECONDS
    assert asyncio.run(rounds(url(tmp_path), keys)) == dict.fromkeys(keys, 1)


def test_on_a_full_disk_each_that_is_not_stored_is_named_and_nothing_that_was_is_lost(disk, worker, url):
    agents, saved = 120, 80  # a file takes 4 KB at least, of the 600 that the disk has
    keys = [f"k{i}" for i in range(agents)]
    options = {"url": url(disk.path), "agents": agents, "saved": saved, "size": 6000, "deadline": 2}
    service = worker("serve", "drain.py", **options)
    service.expect("saved")
    assert service.expect("dirty") == str(agents)
    disk.fill()
    service.process.send_signal(signal.SIGTERM)
    assert service.ended() == 1
    assert "Traceback" not in service.errors
    named = set(re.findall(r"not stored: '(k\d+)'", service.errors))
    assert named <= set(keys)
    assert len(named) > saved / 2  # 600 KB of changes: no leftover pages can take them
    assert not re.search(r"unknown: |abandoned: ", service.errors)

    disk.free()
    durable = {key: 1 if i < saved else 0 for i, key in enumerate(keys)}
    newest = {key: before + 1 for key, before in durable.items()}
    found = asyncio.run(rounds(url(disk.path), keys))
    assert found == {key: (durable if key in named else newest)[key] for key in keys}

    again = worker("serve", "drain.py", **{**options, "size": 10})
    again.expect("saved")
    again.expect("dirty")
    again.process.send_signal(signal.SIGTERM)
    assert (again.ended(), again.errors) == (0, "")
    expected = {key: found[key] + (2 if i < saved else 1) for i, key in enumerate(keys)}
    assert asyncio.run(rounds(url(disk.path), keys)) == expected
