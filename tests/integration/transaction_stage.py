"""What tests of Kafka transactions play on: groups' transactions, bare producers, commits held in the middle."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from choreo.ports import LogCommit
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.transports.kafka import KafkaTransactions
from choreo.transports.kafka import closing as kafka_closing
from choreo.transports.kafka.settings import KafkaTransactionSettings
from tests.integration.kafka_stage import Stage

SETTLE_S = 3.0
"""Shorter than what a test keeps open on purpose may last."""


class TransactionStage(Stage):
    """Also closes transactions and bare producers at the end of the test, before it looks for what is left."""

    def __init__(self, servers: str) -> None:
        super().__init__(servers)
        self._transactions: list[KafkaTransactions] = []
        self._producers: list[AIOKafkaProducer] = []

    def transactions(self, group: str | None = None, **settings: Any) -> KafkaTransactions:
        transport = self.other(ask_s=10.0, transaction_settings=KafkaTransactionSettings(**settings))
        self._transactions.append(transport.transactions(group or self.group))
        return self._transactions[-1]

    async def producer(self, transactional_id: str, **options: Any) -> AIOKafkaProducer:
        """aiokafka's own, as its documentation has it."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.servers, transactional_id=transactional_id, retry_backoff_ms=10, **options
        )
        self._producers.append(producer)
        await producer.start()
        return producer

    async def visible(self, *topics: str) -> list[bytes | None]:
        """Values under read_committed; Kafka answers a commit before they can be read, so open ones may end first."""
        observer = self.transport.transactions("observer")
        found = await self.transport.topics(topics)
        partitions = [TopicPartition(topic, n) for topic, spec in found.items() for n in range(spec.partitions)]
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await asyncio.gather(*(read(observer, partition) for partition in partitions))
        return [record.value for record in await self.transport.scan(topics, since_ms=0)]

    async def __aexit__(self, *error: object) -> None:
        for transactions in self._transactions:
            await transactions.close()
        for producer in self._producers:
            await kafka_closing.discard(producer)
        await super().__aexit__(*error)


class Hold:
    """Keeps the commit of one partition between its last acknowledgement and EndTxn."""

    def __init__(self, transactions: KafkaTransactions, partition: TopicPartition) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        producer = transactions._producers.fenced[partition].producer
        real: Callable[[], Awaitable[None]] = producer.commit_transaction

        async def commit_transaction() -> None:
            self.reached.set()
            await self.go.wait()
            await real()

        producer.commit_transaction = commit_transaction


async def read(transactions: KafkaTransactions, partition: TopicPartition, offset: int = 0) -> list[Record]:
    return [record async for batch in transactions.read(partition, offset) for record in batch]


def part(topic: str, numbers: Sequence[int], offset: int | None) -> LogCommit:
    return LogCommit([ProducerRecord(topic, b"k", b"%d" % number, ()) for number in numbers], offset)


async def committed(stage: Stage, partition: TopicPartition) -> int:
    """The group's committed offset, -1 without one."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.servers)
    await admin.start()
    found = await admin.list_consumer_group_offsets(stage.group)
    await admin.close()
    return int(found[partition].offset) if partition in found else -1
