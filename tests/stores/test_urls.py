"""URLs that name a store, as they stand in a setting."""

from __future__ import annotations

import subprocess
import sys

import pytest

from overwinter.errors import UsageError
from overwinter.stores import FileStore, MemoryStore, ObjectStore, PostgresStore, RedisStore, SQLiteStore, from_url


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_url("sqlite:///app.db").path == str(tmp_path.resolve() / "app.db")
    assert from_url("sqlite:////srv/with%20space/app.db").path == "/srv/with space/app.db"
    assert from_url("file:///srv/with%20space/agents").path == "/srv/with space/agents"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://", MemoryStore),
        ("sqlite:///app.db", SQLiteStore),
        ("file:///srv/agents", FileStore),
        ("postgresql://user:secret@127.0.0.1/agents", PostgresStore),
        ("postgres://user:secret@127.0.0.1/agents", PostgresStore),
        ("redis://user:secret@127.0.0.1/3", RedisStore),
        ("rediss://user:secret@127.0.0.1", RedisStore),
        ("valkey://user:secret@127.0.0.1", RedisStore),
        ("valkeys://user:secret@127.0.0.1", RedisStore),
        ("unix://user:secret@/run/redis.sock?db=3", RedisStore),
        ("s3://bucket/agents", ObjectStore),
        ("gs://bucket/agents", ObjectStore),
        ("az://container/agents", ObjectStore),
    ],
)
def test_each_scheme_makes_its_store(url, kind, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")  # the URL has no place for it
    store = from_url(url)
    assert type(store) is kind
    assert "secret" not in repr(store)


@pytest.mark.parametrize(
    "url",
    [
        *("", "app.db", "oracle://user:secret@host/0", "sqlite:app.db", "secret:secret@://x", "memory://secret"),
        *("sqlite://secret@host/app.db", "sqlite:///", "sqlite:///a?key=secret", "sqlite:///:memory:"),
        *("file://secret@host/a", "file:///", "file:///a?key=secret", "file://agents", "file:a"),
    ],
)
def test_a_url_that_is_none_lists_those_that_are(url):
    with pytest.raises(UsageError) as caught:
        from_url(url)
    assert "secret" not in str(caught.value)
    assert any(word in str(caught.value) for word in ("sqlite:///", "memory://", "MemoryStore"))


def test_no_driver_loads_before_it_is_needed():
    drivers = "{'apsw', 'redis', 'psycopg', 'obstore'}"
    code = f"import sys, overwinter.stores as s; s.from_url('memory://'); print(*{drivers} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
