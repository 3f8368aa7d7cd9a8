"""The contract on S3, as moto has it."""

from __future__ import annotations

import json
import os

import pytest
from moto_server import MotoServer

from overwinter.stores._objects_names import name_of
from overwinter.stores.objects import ObjectStore
from overwinter.testing import StoreContract
from overwinter.testing._factory import Factory


class TestObjectStore(StoreContract):
    can_corrupt = True

    @pytest.fixture(autouse=True)
    def _prefix(self, s3: MotoServer) -> None:
        self.s3 = s3
        self.prefix = os.urandom(8).hex()

    def store_factory(self) -> Factory | None:
        return "servers_for_children:s3", f"s3://{self.s3.bucket}/{self.prefix}", json.dumps(self.s3.options)

    async def corrupt(self, key: str) -> None:
        store = ObjectStore(f"s3://{self.s3.bucket}/{self.prefix}", **self.s3.options)
        held = await store._bucket.read(name_of(key))
        assert held is not None
        await store._bucket.write(name_of(key), held.content[:-1], held.tag)
