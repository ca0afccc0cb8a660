"""What the tests of ConfluentTransport play on: members that seek at once, and the topics they read."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from choreo.ports import LogCommit, TopicSpec
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.transports.confluent import ConfluentConsumer, ConfluentTransactions, ConfluentTransport

QUICK = {"heartbeat.interval.ms": 200, "session.timeout.ms": 6_000}


class Owner:
    """One member with a transport of its own: takes partitions, fences them if it has transactions, fetches."""

    def __init__(self, transport: ConfluentTransport, group: str, *, transactional: bool = False) -> None:
        self.transport = transport
        self.consumer: ConfluentConsumer
        self.transactions: ConfluentTransactions | None = transport.transactions(group) if transactional else None
        self.group = group
        self.owned: set[TopicPartition] = set()
        self.lost: list[TopicPartition] = []
        self.found: list[Record] = []
        self.drain: Callable[[], Any] | None = None

    async def join(self, topic: str) -> "Owner":
        """Join the group."""
        self.consumer = await self.transport.consumer(self.group, [topic], self)
        return self

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Fence, then read positions, as a store on the log does."""
        if self.transactions is not None:
            await self.transactions.fence(partitions)
        positions = {each: await self.consumer.position(each, "earliest") for each in partitions}
        await self.consumer.commit(positions)
        for partition, offset in positions.items():
            self.consumer.seek(partition, offset)
        self.owned.update(partitions)

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Drain, if told to."""
        if self.drain is not None and not lost:
            await self.drain()
        self.owned.difference_update(partitions)
        if lost:
            self.lost += partitions

    async def fetch(self, wait_s: float = 0.1) -> Sequence[Record]:
        """Once."""
        records = await self.consumer.fetch(records_max=500, wait_s=wait_s)
        self.found += records
        return records


@asynccontextmanager
async def owners(
    kafka: str, count: int, *, transactional: bool = False, **options: Any
) -> AsyncIterator[tuple[str, list[Owner]]]:
    """A group and members that have not joined yet, each on a transport of its own; closed at the end."""
    options = {"group_protocol": "classic", "consumer_options": QUICK, **options}
    group = f"group-{uuid4()}"
    made = [Owner(ConfluentTransport(kafka, **options), group, transactional=transactional) for _ in range(count)]
    try:
        yield group, made
    finally:
        for each in made:
            if each.transactions is not None:
                await each.transactions.close()
            if hasattr(each, "consumer"):
                await each.consumer.close()
            await each.transport.close()


async def until(condition: Callable[[], object], *members: Owner, within_s: float = 30.0) -> None:
    """Let the members fetch until the condition holds."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {within_s:g} s"
        await asyncio.gather(*(each.fetch() for each in members), asyncio.sleep(0.02))


async def topic_of(transport: ConfluentTransport, partitions: int = 1, **config: str) -> str:
    """A new topic."""
    name = f"topic-{uuid4()}"
    settings = tuple((key.replace("_", "."), value) for key, value in config.items())
    await transport.create_topics([TopicSpec(name, partitions, 1, settings)])
    return name


def values(topic: str, numbers: Iterable[int], partition: int | None = 0) -> list[ProducerRecord]:
    """Numbers as values."""
    return [ProducerRecord(topic, b"k", b"%d" % number, (), partition) for number in numbers]


def part(topic: str, numbers: Iterable[int], offset: int | None) -> LogCommit:
    """Numbers to a topic with an offset."""
    return LogCommit(values(topic, numbers), offset)
