"""Where a log begins and ends and where a group starts in it; and reading from one place to another."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import chain

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import TransportError
from choreo.ports import Start
from choreo.record import Record, TopicPartition
from choreo.transports.kafka.client import offset_at
from choreo.transports.kafka.runs import lenient

EARLIEST, LATEST = -2, -1
READ_UNCOMMITTED, READ_COMMITTED = 0, 1
"""ListOffsets' own words."""

SCAN_WAIT_MS = 500


async def bounds(consumer: AIOKafkaConsumer, partition: TopicPartition) -> tuple[int, int]:
    """First offset and high watermark: a committed offset lies between them, both included."""
    first = await offset_at(consumer, partition, EARLIEST, READ_UNCOMMITTED)
    assert first is not None, "an end of a log always has an offset"
    return first, await end(consumer, partition)


async def end(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int:
    """The high watermark."""
    found = await offset_at(consumer, partition, LATEST, READ_UNCOMMITTED)
    assert found is not None, "an end of a log always has an offset"
    return found


async def start_offset(consumer: AIOKafkaConsumer, partition: TopicPartition, start: Start) -> int:
    """Where `start` points. The end is that of read_committed: what is in an open transaction comes after it."""
    when = {"earliest": EARLIEST, "latest": LATEST}[start] if isinstance(start, str) else start
    found = await offset_at(consumer, partition, when, READ_COMMITTED)
    if found is None:  # no record that late
        found = await offset_at(consumer, partition, LATEST, READ_COMMITTED)
    assert found is not None, "an end of a log always has an offset"
    return found


async def read_range(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition], *, since_ms: int, stall_s: float
) -> list[Record]:
    """All of `partitions` from `since_ms` to their ends as they are now, in order of time.

    Args:
        consumer: Started, of no group.

    Raises:
        TransportError: Nothing moved for `stall_s` seconds.
    """
    lenient(consumer)
    starts = await asyncio.gather(*(start_offset(consumer, partition, since_ms) for partition in partitions))
    ends = await asyncio.gather(*(start_offset(consumer, partition, "latest") for partition in partitions))
    spans = {p: (start, end) for p, start, end in zip(partitions, starts, ends, strict=True) if start < end}
    found: dict[TopicPartition, list[Record]] = {partition: [] for partition in spans}
    if spans:
        consumer.assign([KafkaPartition(*partition) for partition in spans])
        for partition, (start, _) in spans.items():  # in the same step: the fetcher never asks for a position
            consumer.seek(KafkaPartition(*partition), start)
    open_ends = {partition: end for partition, (_, end) in spans.items()}
    where: Mapping[TopicPartition, int] = {}
    clock = asyncio.get_running_loop().time
    moved_s = clock()
    while open_ends:
        for records in (await consumer.getmany(timeout_ms=SCAN_WAIT_MS)).values():
            for each in records:
                partition = TopicPartition(each.topic, each.partition)
                if each.offset < spans[partition][1] and each.timestamp_ms >= since_ms:
                    found[partition].append(each)
        # The position and not the last record: what ends a log may be an aborted transaction.
        now = {partition: await consumer.position(KafkaPartition(*partition)) for partition in open_ends}
        if now != where:
            where, moved_s = now, clock()
        elif clock() - moved_s > stall_s:
            stuck = ", ".join(f"{partition} at {offset}" for partition, offset in now.items())
            raise TransportError(f"the scan did not move for {stall_s:g} s: {stuck}; are the leaders up?")
        for partition in [partition for partition, offset in now.items() if offset >= open_ends[partition]]:
            del open_ends[partition]
            consumer.pause(KafkaPartition(*partition))
    return sorted(chain.from_iterable(found.values()), key=lambda each: (each.timestamp_ms, each[:3]))
