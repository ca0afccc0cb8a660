"""aiokafka without choreo, for the tests that show what it does wrong. Seen in aiokafka 0.14.0."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.record import ProducerRecord
from choreo.transports.kafka.records import RawBatch

SEEN_IN = "0.14.0"
QUICK = {"heartbeat_interval_ms": 200, "session_timeout_ms": 6_000, "metadata_max_age_ms": 500}


def same_version() -> None:
    """Fail unless the client is the one the faults were seen in."""
    found = version("aiokafka")
    if found != SEEN_IN:
        pytest.fail(
            f"aiokafka is {found}, the faults were seen in {SEEN_IN}: they may be mended. Look at each again, then "
            "set SEEN_IN in tests/integration/bare_client.py and the versions in docs/aiokafka-faults.md"
        )


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped
    """Remembers what it was told, and may take its time over it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.on_revoked: Callable[[], Awaitable[None]] | None = None
        self.on_assigned: Callable[[], Awaitable[None]] | None = None

    async def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        """Nobody else should own them until this is over."""
        if revoked and self.on_revoked is not None:
            await self.on_revoked()
        self.told += ["revoked"] * bool(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        """They may be read now."""
        if assigned and self.on_assigned is not None:
            await self.on_assigned()
        self.told += ["assigned"] * bool(assigned)


@asynccontextmanager
async def bare_consumer(
    servers: str, topic: str, group: str | None = None, *, listener: Listener | None = None, **options: Any
) -> AsyncIterator[AIOKafkaConsumer]:
    """A started consumer that commits nothing by itself."""
    settings = {"enable_auto_commit": False, "auto_offset_reset": "earliest", **QUICK, **options}
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, group_id=group or f"bare-{uuid4()}", **settings)
    await consumer.start()
    try:
        consumer.subscribe([topic], listener=listener)
        yield consumer
    finally:
        await asyncio.wait({asyncio.ensure_future(consumer.stop())}, timeout=8)


@asynccontextmanager
async def bare_producer(servers: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    """A started producer."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def members(servers: str, group: str) -> int:
    """How many members the broker counts in a group."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        (answer,) = await admin.describe_consumer_groups([group])
        return len(answer.groups[0][5])
    finally:
        await admin.close()


async def waited(condition: Callable[[], Any], *, within_s: float = 8.0) -> float:
    """Poll until `condition` holds; returns how long that took."""
    clock = asyncio.get_running_loop().time
    started_s = clock()
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 (the state is aiokafka's, and it sets no event)
            await asyncio.sleep(0.02)
    return clock() - started_s


async def send_batch(servers: str, *records: ProducerRecord, codec: int = 0) -> None:
    """One batch, compressed or not, to partition 0 (or the first record's own)."""
    batch = RawBatch()
    batch._builder._compression_type = codec
    for record in records:
        batch.add(record)
    batch.close()
    async with bare_producer(servers, max_request_size=1 << 24) as producer:
        await (await producer.send_batch(batch, records[0].topic, partition=records[0].partition or 0))
