"""The changelog store keeps what a store promises, on a real Kafka; its keys are known within their partition."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from choreo.ports import IdempotencyStore, TopicSpec, Transport
from choreo.record import Record, TopicPartition
from choreo.stores.changelog import ChangelogStore, changelog_specs
from choreo.testing.conformance import StoreConformance
from choreo.testing.conformance_shelf import Shelf
from choreo.transports.kafka import KafkaTransport

QUICK = {"heartbeat_interval_ms": 200, "session_timeout_ms": 6_000}


class SettledLog(KafkaTransport):
    """A scan that waits for transactions to end, which is a moment after their commit was answered."""

    async def scan(self, topics: Sequence[str], *, since_ms: int, key: bytes | None = None) -> Sequence[Record]:
        """Up to the end of all that was appended."""
        transactions, known = self.transactions("settled"), await self.topics(topics)
        for partition in [TopicPartition(topic, n) for topic in topics for n in range(known[topic].partitions)]:
            async for _ in transactions.read(partition, 0):
                pass
        await transactions.close()
        return await super().scan(topics, since_ms=since_ms, key=key)


class TestChangelog(StoreConformance):
    """Emits and offset in the transaction of the keys."""

    guarantees = frozenset({"offset", "emits"})

    @pytest.fixture(autouse=True)
    def _servers(self, kafka: str) -> None:
        self._bootstrap_servers = kafka

    @asynccontextmanager
    async def store(self) -> AsyncIterator[IdempotencyStore]:
        """Of a group of its own."""
        self._log = SettledLog(self._bootstrap_servers, consumer_options=QUICK)
        await self._log.open()
        self._group = f"group-{uuid4()}"
        store = ChangelogStore(self._log, self._group)
        try:
            await store.open()
            yield store
        finally:
            await store.close()
            await self._log.close()

    def log(self) -> Transport:
        """The log that the store is on."""
        return self._log

    def group(self) -> str:
        """The one the store was made for."""
        return self._group

    async def prepare(self, shelf: Shelf) -> None:
        """As `choreo topics apply` does."""
        inputs = {shelf.p.topic: TopicSpec(shelf.p.topic, 2)}
        await self._log.create_topics(changelog_specs(shelf.group, inputs))
