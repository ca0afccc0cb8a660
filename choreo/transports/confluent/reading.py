"""Reading a range of a log through librdkafka without a group: scans, and what a store is restored from."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from choreo.errors import TransportError
from choreo.record import Record, TopicPartition
from choreo.transports.confluent.admin import ConfluentAdmin
from choreo.transports.confluent.client import Consumer, KafkaError, made, place, reason, records_of
from choreo.transports.confluent.settings import CONSUMER_DEFAULTS

STEP_S = 0.25
STEP_RECORDS_MAX = 5_000
_NOT_OF_PARTITIONS = frozenset({KafkaError._TRANSPORT, KafkaError.GROUP_AUTHORIZATION_FAILED})
"""The latter of the group it must name and never joins."""


class RangeReader:
    """Reads `spans` (first offset, end) under read_committed; an end may lie behind transactions still open.

    Blocks.
    """

    def __init__(self, arguments: Mapping[str, Any], spans: Mapping[TopicPartition, tuple[int, int]]) -> None:
        group = f"choreo-read-{uuid4()}"  # required, never joined
        options = {**CONSUMER_DEFAULTS, "queued.min.messages": 100_000, "queued.max.messages.kbytes": 65_536}
        self._one_at_a_time = threading.Lock()  # a cancelled reader is closed while its last step still runs
        self._consumer: Consumer = made(Consumer, {**arguments, **options, "group.id": group})
        self.at = {partition: start for partition, (start, end) in spans.items() if start < end}
        self._ends = {partition: spans[partition][1] for partition in self.at}
        self._consumer.assign([place(partition, start) for partition, start in self.at.items()])

    @property
    def done(self) -> bool:
        """Whether every partition was read to its end."""
        return not self.at

    def step(self) -> list[Record]:
        """What has come, after a fraction of a second at most."""
        with self._one_at_a_time:
            return self._step()

    def _step(self) -> list[Record]:
        first = self._consumer.poll(STEP_S)
        if first is None:
            return []
        found: list[Record] = []
        for message in (first, *self._consumer.consume(STEP_RECORDS_MAX, timeout=0)):
            error, offset = message.error(), message.offset()
            partition = TopicPartition(message.topic() or "", message.partition() or 0)
            if error is None and partition in self.at:
                assert offset is not None, "a message of a log has an offset"
                if offset < self._ends[partition]:
                    found += records_of((message,), partition)
                self._moved(partition, offset + 1)
            elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                # Not the last record: what ends a log may be an aborted transaction, or the mark that ends one.
                self._moved(partition, offset or 0)
            elif error is not None and not error.retriable() and error.code() not in _NOT_OF_PARTITIONS:
                raise TransportError(f"{partition}: cannot be read: {reason(error)}")
        return found

    def close(self) -> None:
        """Disconnect."""
        with self._one_at_a_time:
            self._consumer.close()

    def _moved(self, partition: TopicPartition, offset: int) -> None:
        if partition in self.at:
            self.at[partition] = offset
            if offset >= self._ends[partition]:
                del self.at[partition]
                self._consumer.incremental_unassign([place(partition)])


async def read_range(
    arguments: Mapping[str, Any],
    admin: ConfluentAdmin,
    spans: Mapping[TopicPartition, tuple[int, int]],
    *,
    stall_s: float,
) -> AsyncIterator[Sequence[Record]]:
    """Batches as they come, ascending a partition, to the ends of all spans.

    Raises:
        TransportError: Nothing moved for `stall_s` seconds.
    """
    reader = await admin.call(lambda: RangeReader(arguments, spans))
    moved_s, where = time.monotonic(), dict(reader.at)
    try:
        while not reader.done:
            records = await asyncio.shield(admin.call(reader.step))
            if records:
                yield records
            if reader.at != where:
                where, moved_s = dict(reader.at), time.monotonic()
            elif time.monotonic() - moved_s > stall_s:
                stuck = ", ".join(f"{partition} at {offset}" for partition, offset in where.items())
                raise TransportError(f"reading did not move for {stall_s:g} s: {stuck}; are the leaders up?")
    finally:
        admin.soon(reader.close)


async def span(admin: ConfluentAdmin, partition: TopicPartition, offset: int) -> tuple[int, int]:
    """From `offset`, or the first there is, to the end of all that was appended."""
    first, end = await admin.bounds(partition)
    return max(first, offset), end
