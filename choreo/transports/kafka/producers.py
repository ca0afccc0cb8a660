"""The transactional producers of a group's input partitions: fenced, kept while they are sound, discarded.

The transactional id is one an input partition, so InitProducerId of the next owner fences a producer that is still
there and ends its transaction.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer

from choreo.errors import TransportError
from choreo.record import TopicPartition
from choreo.transports.kafka import closing as kafka_closing
from choreo.transports.kafka.fencing import (
    CONNECT_BACKOFF_S,
    NAMESPACE,
    PartitionLimit,
    can_start_again,
    epoch_of,
    fenced_producer,
    not_taken,
    older_than_4_0,
    transactional_id,
)
from choreo.transports.kafka.security import principal_of

log = logging.getLogger(__name__)

FENCES_AT_ONCE = 8
"""Each connects three or four times and asks until its predecessor's transaction has ended."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """The producer of a partition that is ours, and the largest batch it makes."""

    producer: AIOKafkaProducer
    batch_size: int


class FencedProducers:
    """One a partition, from its fence until it is discarded.

    Args:
        arguments: aiokafka's, complete but for id and timeout of transactions.
        timeout_ms: After which a broker ends a transaction.
        limit: Shared by all groups of a process.
        ask_s: Deadline of one `fence`.

    Attributes:
        fenced: Those that are sound.
        lost: Partitions of which a newer owner was met since their fence.
    """

    def __init__(
        self, group: str, arguments: Mapping[str, Any], *, timeout_ms: int, limit: PartitionLimit, ask_s: float
    ) -> None:
        self.fenced: dict[TopicPartition, Fenced] = {}
        self.lost: set[TopicPartition] = set()
        self._group = group
        self._arguments = arguments
        self._timeout_ms, self._limit, self._ask_s = timeout_ms, limit, ask_s
        self._batch_sizes: dict[TopicPartition, int] = {}
        self._held: set[TopicPartition] = set()
        self._fencing = asyncio.Lock()
        self._discarding: set[asyncio.Task[None]] = set()
        self._closed = self._warned = False

    async def fence(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Take each with a newer epoch. Some may be taken although one could not be.

        Raises:
            ConfigurationError: They are too many, or what is set is not what the broker allows.
            TransportError: One could not be taken.
        """
        async with self._fencing:
            if self._closed:
                raise TransportError(f"the transactions of group {self._group!r} are closed")
            wanted = list(dict.fromkeys(partitions))
            self._limit.take(len(set(wanted) - self._held))
            self._held.update(wanted)
            for partition in wanted:  # not waited for: what its requests would still do is fenced as well
                self.discard(partition)
                self.lost.discard(partition)
            gate = asyncio.Semaphore(FENCES_AT_ONCE)
            deadline = asyncio.get_running_loop().time() + self._ask_s
            answers = await asyncio.gather(
                *(self._fence(partition, gate, deadline) for partition in wanted), return_exceptions=True
            )
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in failed:
            if not isinstance(error, TransportError):
                raise error
        if failed:
            more = f" ({len(failed) - 1} more)" if len(failed) > 1 else ""
            raise TransportError(f"{failed[0]}{more}")
        return {
            partition: answer for partition, answer in zip(wanted, answers, strict=True) if isinstance(answer, int)
        }

    def discard(self, partition: TopicPartition, *, lost: bool = False) -> asyncio.Task[None] | None:
        """Its producer is not sound, or not wanted; disconnects in the background. `lost`: a newer owner was met."""
        if lost:
            self.lost.add(partition)
        fenced = self.fenced.pop(partition, None)
        return None if fenced is None else self._start_discarding(fenced.producer)

    def resize(self, partition: TopicPartition, batch_size: int | None) -> None:
        """The largest batch of the next producer of it; None: as its arguments say."""
        if batch_size is None:
            self._batch_sizes.pop(partition, None)
        else:
            self._batch_sizes[partition] = batch_size

    async def give_up(self, partitions: Sequence[TopicPartition]) -> None:
        """Discard those of them that are held, and count them no more. An idle one has nothing to flush."""
        given = self._held.intersection(partitions)
        self._held -= given
        self._limit.give_back(len(given))
        discarding = [self.discard(partition) for partition in given]
        self.lost -= given
        for partition in given:
            self.resize(partition, None)
        waiting = [task for task in discarding if task is not None]
        if waiting:
            await asyncio.wait(waiting)

    async def close(self) -> None:
        """Give up all, and wait until they are disconnected."""
        self._closed = True
        await self.give_up(list(self._held))
        if self._discarding:
            await asyncio.wait(self._discarding)

    async def _fence(self, partition: TopicPartition, gate: asyncio.Semaphore, deadline: float) -> int:
        try:
            async with asyncio.timeout_at(deadline), gate:
                fenced = await self._start(partition)
        except TimeoutError:
            raise TransportError(
                f"{partition} cannot be taken for group {self._group!r} within {self._ask_s:g} s; are the "
                "coordinators of its transactions up (__transaction_state)?"
            ) from None
        except Exception as error:
            principal = principal_of(self._arguments)
            raise not_taken(
                partition, self._group, error, timeout_ms=self._timeout_ms, principal=principal
            ) from error
        if partition not in self._held:
            self._start_discarding(fenced.producer)
            raise TransportError(f"{partition} was given up while it was taken for group {self._group!r}")
        self.fenced[partition] = fenced
        if not self._warned and older_than_4_0(fenced.producer):
            self._warned = True
            log.warning(
                "group %s: a broker older than Kafka 4.0 may show a new owner an offset from before the last "
                "transaction, whose records are then handled and sent twice",
                self._group,
            )
        return epoch_of(fenced.producer)

    async def _start(self, partition: TopicPartition) -> Fenced:
        """InitProducerId, asked until the deadline; aiokafka repeats it while a transaction is being ended."""
        batch_size = self._batch_sizes.get(partition, self._arguments["max_batch_size"])
        while True:
            producer = fenced_producer(
                {
                    **self._arguments,
                    "max_batch_size": batch_size,
                    "transactional_id": transactional_id(NAMESPACE, self._group, partition),
                    "transaction_timeout_ms": self._timeout_ms,
                }
            )
            try:
                await producer.start()
            except BaseException as error:
                self._start_discarding(producer)
                if not can_start_again(error):
                    raise
                await asyncio.sleep(CONNECT_BACKOFF_S)
            else:
                return Fenced(producer, batch_size)

    def _start_discarding(self, producer: AIOKafkaProducer) -> asyncio.Task[None]:
        task = asyncio.ensure_future(kafka_closing.quietly(kafka_closing.discard(producer)))
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)
        return task
