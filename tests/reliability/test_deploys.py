"""A rolling deploy: two releases of one class run at once and write the same agents."""

from __future__ import annotations

import json

import apsw
import pytest


class Release:
    """A process that runs one release."""

    def __init__(self, worker, name, path):
        self._child = worker(name, "deploy.py", path=str(path))
        self._child.expect("ready")

    def begin(self, key, method, *arguments):
        self._child.say(f"{key} {method} {json.dumps(arguments)}")

    def reply(self):
        return json.loads(self._child.expect("reply"))

    def call(self, key, method, *arguments):
        self.begin(key, method, *arguments)
        return self.reply()

    def fails(self, key, method, *arguments):
        self.begin(key, method, *arguments)
        return self._child.expect("failed")

    def end(self):
        self._child.say("end")
        self._child.expect("ended")
        assert self._child.ended() == 0, self._child.errors


@pytest.fixture
def release(tmp_path, worker):
    return lambda name: Release(worker, name, tmp_path / "agents.db")


def record(path, key):
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        ((data,),) = connection.execute("SELECT data FROM agents WHERE key = ?", (f"profile:{key}",)).fetchall()
        return data
    finally:
        connection.close()


def test_two_releases_of_one_version_write_one_agent_in_turns_and_keep_each_others_fields(release):
    old, new = release("old"), release("new")
    old.call("ada", "rename", "Ada")
    expected = []
    for i in range(5):
        old.call("ada", "nickname", f"n{i}")
        assert new.call("ada", "visit", "new") == 2 * i + 1
        new.call("ada", "paint", f"c{i}", "red")
        assert old.call("ada", "visit", "old") == 2 * i + 2
        expected += ["new", "old"]
        assert old.call("ada", "read") == ["Ada", 2 * i + 2, [f"n{j}" for j in range(i + 1)], expected]
        assert new.call("ada", "read") == ["Ada", 2 * i + 2, {f"c{j}": "red" for j in range(i + 1)}, expected]
    # After the deploy, and after it was taken back, everything is still there.
    for each in (old, new):
        each.end()
    assert release("new").call("ada", "read") == ["Ada", 10, {f"c{j}": "red" for j in range(5)}, expected]
    assert release("old").call("ada", "read") == ["Ada", 10, [f"n{j}" for j in range(5)], expected]


def test_two_releases_that_write_at_the_same_time_lose_nothing_either(release):
    old, new = release("old"), release("new")
    for i in range(50):
        old.begin("ada", "visit", "old")
        new.begin("ada", "visit", "new")
        if i % 5 == 0:
            old.begin("ada", "nickname", f"n{i}")
            new.begin("ada", "paint", f"c{i}", "red")
    for _ in range(60):
        old.reply()
        new.reply()
    name, visits, nicknames, log = old.call("ada", "read")
    assert (name, visits, nicknames) == ("", 100, [f"n{i}" for i in range(0, 50, 5)])
    assert sorted(log) == ["new"] * 50 + ["old"] * 50
    assert new.call("ada", "read") == ["", 100, {f"c{i}": "red" for i in range(0, 50, 5)}, log]


def test_two_releases_keep_each_others_fields_inside_a_value_too(release):
    old, new = release("old"), release("new")
    new.call("ada", "remark", "hello")  # a field of Visit that the old release doesn't have
    old.call("ada", "rename", "Ada")
    assert new.call("ada", "remarks") == ["hello"]


def test_whatever_sort_of_object_holds_them(release):
    old, new = release("old album"), release("new album")
    for minutes in range(1, 4):
        new.call("ada", "fill", minutes)
        old.call("ada", "entitle", str(minutes))
        each = [[str(minutes), n] for n in range(1, minutes + 1)]
        assert new.call("ada", "read") == [[str(minutes), minutes], *each, *each, *each]


def test_old_code_refuses_what_a_newer_version_wrote_and_leaves_it_alone(release, tmp_path):
    old, second = release("old"), release("second")
    old.call("ada", "rename", "Ada Lovelace")
    old.call("bob", "rename", "Bob")
    old.call("ada", "nickname", "countess")
    assert second.call("ada", "read") == ["Ada", "Lovelace", 0, []]
    assert old.call("ada", "visit", "old") == 1  # reading migrates nothing in the store, so old code goes on
    assert second.call("ada", "visit", "second") == 2
    written = record(tmp_path / "agents.db", "ada")
    assert old.fails("ada", "visit", "old") == "NewerRecordError"  # though it had the agent alive
    assert old.fails("ada", "read") == "NewerRecordError"
    assert record(tmp_path / "agents.db", "ada") == written
    assert old.call("bob", "visit", "old") == 1  # other agents are none the worse
    assert second.call("ada", "read") == ["Ada", "Lovelace", 2, ["old", "second"]]
    for each in (old, second):
        each.end()
    assert release("old").fails("ada", "read") == "NewerRecordError"
    assert release("second").call("ada", "visit", "later") == 3
