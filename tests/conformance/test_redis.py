"""Redis keeps what a store promises, alone and as a cluster; it carries nothing beside the keys."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from choreo.ports import IdempotencyStore
from choreo.stores.redis import RedisStore
from choreo.testing.conformance import StoreConformance
from tests.redis_server import LocalCluster, started


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One cluster of three primaries for all tests."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), 3)
    with started(cluster):
        yield cluster.url


class TestRedis(StoreConformance):
    """One server."""

    guarantees = frozenset({"anywhere", "deliveries"})
    cluster = False

    @pytest.fixture(autouse=True)
    def _server(self, redis: str) -> None:
        self._url = redis

    @asynccontextmanager
    async def store(self) -> AsyncIterator[IdempotencyStore]:
        """Keys of its own; narrow buckets, since log time goes by seconds here."""
        store = RedisStore(self._url, prefix=uuid4().hex, cluster=self.cluster, bucket_ms=500)
        await store.open()
        await store.apply()
        try:
            yield store
        finally:
            await store.close()


class TestCluster(TestRedis):
    """Three primaries: every script's keys are in one slot, and groups are on different nodes."""

    cluster = True

    @pytest.fixture(autouse=True)
    def _server(self, cluster_url: str) -> None:
        self._url = cluster_url
