"""Everything that is on the log under read_committed, read by choreo and by a client that is none of choreo's."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from choreo.record import Record
from choreo.transports.kafka import KafkaTransport

READ_S = 120.0
Read = tuple[str, int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]
"""Topic, partition, offset, key, value, headers."""


async def by_choreo(servers: str, topics: Sequence[str]) -> list[Record]:
    """As `Transport.scan` finds it."""
    transport = KafkaTransport(servers)
    await transport.open()
    try:
        return sorted(await transport.scan(topics, since_ms=0), key=lambda each: each[:3])
    finally:
        await transport.close()


async def by_librdkafka(servers: str, topics: Sequence[str]) -> list[Read]:
    """As confluent-kafka finds it without anything of ours in between."""
    return sorted(await asyncio.to_thread(_librdkafka, servers, topics), key=lambda each: each[:3])


def plain(record: Record) -> Read:
    """What of a record both clients tell."""
    return (record.topic, record.partition, record.offset, record.key, record.value, record.headers)


def _librdkafka(servers: str, topics: Sequence[str]) -> list[Read]:
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

    settings: dict[str, Any] = {"bootstrap.servers": servers, "group.id": f"second-{uuid4()}"}
    settings |= {"isolation.level": "read_committed", "enable.partition.eof": True, "enable.auto.commit": False}
    consumer = Consumer(settings)
    found: list[Read] = []
    try:
        known = consumer.list_topics(timeout=30).topics
        places = {(topic, number) for topic in topics for number in known[topic].partitions}
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for topic, number in places])
        until_s = time.monotonic() + READ_S
        while places:
            assert time.monotonic() < until_s, f"not read to their ends within {READ_S:g} s: {sorted(places)}"
            for message in consumer.consume(1_000, timeout=0.5):
                error, topic, number = message.error(), message.topic() or "", message.partition() or 0
                if error is None:
                    headers: Any = tuple(message.headers() or ())
                    offset = message.offset()
                    assert offset is not None
                    found.append((topic, number, offset, message.key(), message.value(), headers))
                elif error.code() == KafkaError._PARTITION_EOF:
                    places.discard((topic, number))
                else:
                    assert error.retriable(), str(error)
        return found
    finally:
        consumer.close()
