"""What aiokafka has read of the partitions that are ours, on its way to who fetches."""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.record import Record, TopicPartition
from choreo.transports.kafka import client as kafka_client
from choreo.transports.kafka.holds import Holds, culprits

GRACE_S = 0.05
"""Beyond what a poll was given, before it is left to go on in the background."""


class Buffered(Protocol):
    """What of one partition was read and not fetched."""

    buffer: deque[Record]
    paused: bool


def take(flows: Iterable[Buffered], records_max: int) -> list[Record]:
    """Those that are next, of flows that are not paused, up to `records_max`."""
    taken: list[Record] = []
    for flow in flows:
        buffer, left = flow.buffer, records_max - len(taken)
        if flow.paused or not buffer:
            continue
        if len(buffer) <= left:
            taken += buffer
            buffer.clear()
        else:
            taken += [buffer.popleft() for _ in range(left)]
    return taken


@dataclass(slots=True)
class _Flow:
    """A partition that is ours. `next_offset`: what aiokafka reads next; None until `seek`."""

    next_offset: int | None = None
    paused: bool = False
    buffer: deque[Record] = field(default_factory=deque)


class Flows:
    """One flow a partition, from its first seek on; one that cannot be read is held, and asked again later.

    Args:
        consumer: One of `gated_consumer`, whose `getmany` nobody else calls.
        holds: Which partitions are held.
    """

    def __init__(self, consumer: AIOKafkaConsumer, holds: Holds) -> None:
        self._consumer = consumer
        self._holds = holds
        self._ours: dict[TopicPartition, _Flow] = {}
        self._poll: asyncio.Task[None] | None = None

    def begin(self, partitions: Iterable[KafkaPartition]) -> tuple[TopicPartition, ...]:
        """These are ours and no others; nothing flows before `seek`."""
        self._ours = {TopicPartition(*partition): _Flow() for partition in sorted(partitions)}
        self._holds.clear()
        return tuple(self._ours)

    def end(self) -> tuple[TopicPartition, ...]:
        """None is ours any more; those that were."""
        ours, self._ours = tuple(self._ours), {}
        return ours

    def partitions(self) -> Iterable[TopicPartition]:
        """Those that are ours."""
        return self._ours

    # ---- where they stand

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Begin anew at `offset`; nothing happens if it is not ours any more."""
        flow = self._ours.get(partition)
        if flow is None or not self._assigned(partition):
            return
        flow.buffer.clear()
        self._holds.forget(partition)
        flow.next_offset, flow.paused = offset, False
        self._consumer.seek(KafkaPartition(*partition), offset)
        kafka_client.resume(self._consumer, partition)

    def drained(self, partition: TopicPartition) -> bool:
        """Records of a transaction that is still open are not on the log yet."""
        flow = self._ours.get(partition)
        if flow is None or flow.next_offset is None or flow.buffer:
            return False
        return kafka_client.at_end(self._consumer, partition)

    def pause(self, partition: TopicPartition) -> None:
        """What was fetched ahead waits for `resume`."""
        flow = self._ours.get(partition)
        if flow is not None and self._assigned(partition):
            flow.paused = True
            self._consumer.pause(KafkaPartition(*partition))

    def resume(self, partition: TopicPartition) -> None:
        """Before the first `seek` the gate stays shut."""
        flow = self._ours.get(partition)
        if flow is not None and flow.next_offset is not None and self._assigned(partition):
            flow.paused = False
            if partition not in self._holds:
                kafka_client.resume(self._consumer, partition)

    def ask_again(self) -> None:
        """Those that were held for long enough."""
        for partition in self._holds.due():
            flow = self._ours.get(partition)
            if flow is not None and not flow.paused and self._assigned(partition):
                kafka_client.resume(self._consumer, partition)

    # ---- to who fetches

    def ready(self) -> bool:
        """Whether there is something to take."""
        return any(flow.buffer and not flow.paused for flow in self._ours.values())

    async def wait(self, records_max: int, wait_s: float) -> None:
        """Read, for as long at most. A poll that a rebalance holds up goes on in the background, into the next wait.

        Raises:
            Exception: aiokafka's; if it is about partitions, they are held now.
        """
        if self._poll is None:
            self._poll = asyncio.create_task(self._poll_once(records_max, wait_s))
        # Not awaited itself: cancelled, it would lose the records it was about to return.
        await asyncio.wait({self._poll}, timeout=wait_s + GRACE_S)
        if self._poll is not None and self._poll.done():
            poll, self._poll = self._poll, None
            error = None if poll.cancelled() else poll.exception()
            if error is not None:
                self._hold(culprits(error, self._ours))
                raise error

    def take(self, records_max: int) -> list[Record]:
        """What is next of them."""
        return take(self._ours.values(), records_max)

    async def close(self) -> None:
        """End a poll that goes on."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)

    async def _poll_once(self, records_max: int, wait_s: float) -> None:
        try:
            batches = await self._consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=records_max)
        except BaseException:
            # 0.14 drops what it had drained of other partitions, their positions moved on: read it again.
            for partition, flow in self._ours.items():
                if flow.next_offset is not None and self._assigned(partition):
                    self._consumer.seek(KafkaPartition(*partition), flow.next_offset)
            raise
        for partition, records in batches.items():  # in the same step as aiokafka moved its position
            ours = self._ours.get(TopicPartition(*partition))
            if ours is not None and ours.next_offset is not None:
                ours.buffer.extend(records)
                ours.next_offset = records[-1].offset + 1
                self._holds.forget(TopicPartition(*partition))

    def _hold(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in filter(self._assigned, partitions):
            self._holds.add(partition)
            self._consumer.pause(KafkaPartition(*partition))

    def _assigned(self, partition: TopicPartition) -> bool:
        return KafkaPartition(*partition) in self._consumer.assignment()
