"""Reading what is committed of one partition, from an offset to its end: how a table is restored from its log."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import TransportError
from choreo.record import Record, TopicPartition
from choreo.transports.kafka import closing as kafka_closing
from choreo.transports.kafka.errors import reason
from choreo.transports.kafka.offsets import bounds
from choreo.transports.kafka.runs import lenient

READ_OPTIONS: Mapping[str, Any] = {
    "auto_offset_reset": "none",
    "isolation_level": "read_committed",
    "enable_auto_commit": False,
    "max_partition_fetch_bytes": 4 * 1024 * 1024,
    "fetch_max_bytes": 4 * 1024 * 1024,
    "fetch_max_wait_ms": 100,
}
RECORDS_MAX = 2_000
"""A batch; decoding more at once would hold the loop up."""

# 0.14 waits it out although what came moved the position without a record: every transaction ends a log like that.
WAIT_MS = 50
STOP_S = 5.0


async def read_to_end(
    arguments: Mapping[str, Any], partition: TopicPartition, offset: int, *, open_s: float, stall_s: float
) -> AsyncIterator[Sequence[Record]]:
    """Batches of `partition` from `offset`, or the first there is, to the high watermark as it is at the start.

    Args:
        arguments: aiokafka's, of connection and security.
        stall_s: How long nothing may move. Longer than an open transaction may last: one that nobody ends is ended
            by its broker at the first check, every 10 s, after its timeout.

    Raises:
        TransportError: The partition cannot be reached, or nothing moved.
    """
    consumer = AIOKafkaConsumer(**{**arguments, **READ_OPTIONS})
    try:
        first, end = await _begin(consumer, partition, offset, open_s=open_s)
        clock = asyncio.get_running_loop().time
        position, moved_s = first, clock()
        while position < end:
            found, now = await _next(consumer, partition, open_s=open_s)
            batch = [each for each in found if each.offset < end]
            if batch:
                yield batch
            if now != position:
                position, moved_s = now, clock()
            elif clock() - moved_s > stall_s:
                raise TransportError(
                    f"{partition}: reading to {end} did not get beyond {position} for {stall_s:g} s; is its leader "
                    "up, or is a transaction open there? (kafka-transactions.sh find-hanging)"
                )
    finally:
        await kafka_closing.stop(consumer, timeout_s=STOP_S)


async def _begin(
    consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int, *, open_s: float
) -> tuple[int, int]:
    """Connect and seek; returns where to begin and where to end."""
    where = KafkaPartition(*partition)
    try:
        async with asyncio.timeout(open_s):
            await consumer.start()
            lenient(consumer)
            consumer.assign([where])
            consumer.seek(where, 0)  # in the same step: the fetcher never asks for a position
            consumer.pause(where)
            first, end = await bounds(consumer, partition)
    except Exception as error:
        raise TransportError(f"{partition} cannot be read: {reason(error)}; does it exist?") from error
    begin = max(first, offset)
    consumer.seek(where, begin)
    consumer.resume(where)
    return begin, end


async def _next(consumer: AIOKafkaConsumer, partition: TopicPartition, *, open_s: float) -> tuple[Sequence[Any], int]:
    where = KafkaPartition(*partition)
    try:
        found = await consumer.getmany(timeout_ms=WAIT_MS, max_records=RECORDS_MAX)
    except OffsetOutOfRangeError:  # retention was faster than we
        found = {}
        try:
            async with asyncio.timeout(open_s):
                first, end = await bounds(consumer, partition)
        except Exception as error:
            raise TransportError(f"{partition} cannot be read: {reason(error)}") from error
        if not (await consumer.position(where)) < first:
            raise TransportError(f"{partition} ends at {end} now: the topic was made anew or cut off") from None
        consumer.seek(where, first)
    except Exception as error:
        raise TransportError(f"{partition} cannot be read: {reason(error)}") from error
    # The position and not the last record: what ends a log may be a marker, or an aborted transaction.
    return found.get(where, ()), await consumer.position(where)
