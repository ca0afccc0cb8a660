"""What the tests of KafkaTransport play on: topics, members and their assignments, closed at the end of each test."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self
from uuid import uuid4

from choreo.ports import Start, TopicSpec
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.transports.kafka import KafkaConsumer, KafkaTransport

QUICK = {"heartbeat_interval_ms": 200, "session_timeout_ms": 6_000, "metadata_max_age_ms": 500}


class Owner:
    """An Assignment that starts every partition where it should, and remembers what it was told."""

    def __init__(self, start: Start | None = "earliest") -> None:
        self.start = start
        self.consumer: KafkaConsumer | None = None
        self.owned: set[TopicPartition] = set()
        self.told: list[tuple[str, int, bool]] = []
        self.on_assigned: Callable[[], Awaitable[None]] | None = None
        self.on_revoked: Callable[[], Awaitable[None]] | None = None

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append(("assigned", len(partitions), False))
        if self.on_assigned is not None:
            await self.on_assigned()
        if self.start is not None:
            assert self.consumer is not None
            for partition in partitions:
                self.consumer.seek(partition, await self.consumer.position(partition, self.start))
        self.owned = set(partitions)

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        if self.on_revoked is not None:
            await self.on_revoked()
        self.told.append(("revoked", len(partitions), lost))
        self.owned -= set(partitions)


class Stage:
    """Topics, transports and consumers of one test, closed at its end."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.transport = KafkaTransport(servers, send_s=10.0, ask_s=5.0)
        self.group = f"group-{uuid4()}"
        self._transports = [self.transport]
        self._consumers: list[KafkaConsumer] = []

    def other(self, **options: Any) -> KafkaTransport:
        self._transports.append(KafkaTransport(self.servers, **options))
        return self._transports[-1]

    async def topic(self, partitions: int = 1, **config: str) -> str:
        name = f"topic-{uuid4()}"
        settings = tuple((key.replace("_", "."), value) for key, value in config.items())
        await self.transport.create_topics([TopicSpec(name, partitions, config=settings)])
        return name

    async def join(
        self, topic: str, start: Start | None = "earliest", *, owner: Owner | None = None, **options: Any
    ) -> tuple[Owner, KafkaConsumer]:
        owner = owner or Owner(start)
        transport = self.other(ask_s=5.0, consumer_options={**QUICK, **options})
        owner.consumer = await transport.consumer(self.group, [topic], owner)
        self._consumers.append(owner.consumer)
        return owner, owner.consumer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for consumer in self._consumers:
            await consumer.close()
        for transport in self._transports:
            await transport.close()
        left = [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not [each for each in left if "aiokafka" in each], "aiokafka still runs"


def values(topic: str, numbers: Sequence[int], key: bytes | None = b"k") -> list[ProducerRecord]:
    return [ProducerRecord(topic, key, b"%d" % number, ()) for number in numbers]


async def until(
    condition: Callable[[list[Record]], Any], *consumers: KafkaConsumer, within_s: float = 10.0
) -> list[Record]:
    """Fetch until `condition` holds for what has come, and return that."""
    found: list[Record] = []
    async with asyncio.timeout(within_s):
        while not condition(found):
            for batch in await asyncio.gather(*(each.fetch(records_max=500, wait_s=0.1) for each in consumers)):
                found.extend(batch)
    return found


async def fetched(consumer: KafkaConsumer, count: int) -> list[Record]:
    return await until(lambda found: len(found) >= count, consumer)
