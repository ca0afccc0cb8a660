"""Appending to Kafka: one idempotent producer, thrown away with whatever went wrong in it."""

import asyncio
import functools
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.partitioner import murmur2

from choreo.errors import RecordTooLarge, TransportError
from choreo.record import ProducerRecord
from choreo.transports.kafka import closing as kafka_closing
from choreo.transports.kafka.batches import deliver, fill
from choreo.transports.kafka.errors import denied, reason
from choreo.transports.kafka.security import principal_of
from choreo.transports.kafka.settings import PRODUCER_DEFAULTS

log = logging.getLogger(__name__)

BATCH_SIZE_MIN = 2048
CONNECT_BACKOFF_S = 0.2

# Broker answers: about a record if it is alone in its batch, else about the batch.
TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)

_murmur2 = functools.lru_cache(maxsize=65_536)(murmur2)  # pure Python, 10 us a key of 36 bytes, and keys come back


def partition_of(key: bytes | None, partitions: Sequence[int], available: Sequence[int]) -> int:
    """The partition Java's client chooses for `key`; any available one without a key. Partitions are 0 to n-1."""
    if key is None:
        return random.choice(available or partitions)
    return int(_murmur2(key) & 0x7FFFFFFF) % len(partitions)


class KafkaProducer:
    """Sends calls of records, each under one deadline of `timeout_s`.

    After any failure the aiokafka producer is discarded and never used on: an idempotent one is wedged by a batch
    that failed, and what it still holds must not reach the log after the same records were sent again.
    """

    def __init__(self, arguments: Mapping[str, Any], *, timeout_s: float) -> None:
        self._arguments = {**PRODUCER_DEFAULTS, "partitioner": partition_of, **arguments}
        self._batch_size: int = self._arguments["max_batch_size"]
        self._bytes_max: int = self._arguments["max_request_size"]
        self._timeout_s = timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._discarding: set[asyncio.Task[None]] = set()

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """As `Transport.send`; RecordTooLarge if one of them alone is the reason."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(records)
        except TransportError:
            raise
        except TimeoutError:
            raise TransportError(unacknowledged(records, self._timeout_s)) from None
        except Exception as error:
            raise TransportError(f"{_topics(records)}: {self._why(error, _topics(records))}") from error

    async def close(self) -> None:
        """Flush what other tasks still await, within the deadline of a send, and disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            flushing = asyncio.ensure_future(producer.flush())
            await asyncio.wait({flushing}, timeout=self._timeout_s)
            flushing.cancel()
            self._start_discarding(producer)
        if self._discarding:
            await asyncio.wait(self._discarding)

    async def _send(self, records: Sequence[ProducerRecord]) -> None:
        producer = await self._current()
        try:
            filled = await fill(producer, records, bytes_max=self._bytes_max)
            failed = await deliver(producer, records, filled)
        except RecordTooLarge:  # nothing was handed over
            raise
        except BaseException:  # a cancelled call too: the rest of it must not follow later
            self._discard(producer)
            raise
        if failed:
            self._discard(producer)
            await self._send_smaller(records, failed)

    async def _send_smaller(self, records: Sequence[ProducerRecord], failed: dict[int, Exception]) -> None:
        """Send what failed in smaller batches if a batch was too large; aiokafka never splits one, as Java's does.

        A record larger than a batch always has one of its own, so this happens only where a topic takes less than
        `_batch_size`; the smaller size is kept, down to BATCH_SIZE_MIN.
        """
        size = self._batch_size
        while True:
            oversized = [index for index, error in failed.items() if isinstance(error, TOO_LARGE)]
            if len(oversized) == 1 or (oversized and size == 1):
                raise too_large(records[oversized[0]], oversized[0], failed[oversized[0]])
            index, error = next(iter(failed.items()))
            if not oversized:
                topic = records[index].topic
                raise TransportError(f"{topic}: {self._why(error, topic)}") from error
            size = size // 8 if size > BATCH_SIZE_MIN else 1
            topic = records[oversized[0]].topic
            log.warning("%s takes no batch of %d bytes; sending smaller ones", topic, self._batch_size)
            self._batch_size = max(size, BATCH_SIZE_MIN)
            left = list(failed)
            remaining = [records[index] for index in left]
            producer = await self._start(max_batch_size=size)
            try:
                filled = await fill(producer, remaining, bytes_max=self._bytes_max)
                again = await deliver(producer, remaining, filled)
            finally:
                self._start_discarding(producer)
            failed = {left[index]: error for index, error in again.items()}
            if not failed:
                return

    def _why(self, error: BaseException, topic: str) -> str:
        return denied(error, principal_of(self._arguments), "Write", topic, "") or reason(error)

    async def _current(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                self._producer = await self._start(max_batch_size=self._batch_size)
            return self._producer

    async def _start(self, *, max_batch_size: int) -> AIOKafkaProducer:
        """Try until the caller's deadline: that no broker listens for a while is what the deadline is for."""
        while True:
            producer = AIOKafkaProducer(**{**self._arguments, "max_batch_size": max_batch_size})
            try:
                await producer.start()
            except BaseException as error:
                self._start_discarding(producer)
                if not isinstance(error, kafka_errors.KafkaConnectionError):
                    raise
                await asyncio.sleep(CONNECT_BACKOFF_S)
            else:
                return producer

    def _discard(self, producer: AIOKafkaProducer) -> None:
        if self._producer is producer:  # another call may have done it, and have made a new one
            self._producer = None
            self._start_discarding(producer)

    def _start_discarding(self, producer: AIOKafkaProducer) -> None:
        # In the background: who sent is to learn of the failure now, not when the sockets are closed.
        task = asyncio.ensure_future(kafka_closing.quietly(kafka_closing.discard(producer)))
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)


def size_of(record: ProducerRecord) -> int:
    """A little more than it takes in a batch."""
    size = len(record.key or b"") + len(record.value or b"") + 100
    return size + sum(4 * len(key) + len(value or b"") + 10 for key, value in record.headers)


def unacknowledged(records: Sequence[ProducerRecord], timeout_s: float) -> str:
    """What is said at the deadline of a send."""
    return (
        f"{_topics(records)}: not acknowledged within {timeout_s:g} s; are its partitions' leaders up, and "
        "min.insync.replicas of them in sync?"
    )


def _topics(records: Sequence[ProducerRecord]) -> str:
    return ", ".join(sorted({record.topic for record in records}))


def too_large(record: ProducerRecord, index: int, error: BaseException) -> RecordTooLarge:
    """What the broker said of one record, and what to do."""
    return RecordTooLarge(
        f"{record.topic}: a record of about {size_of(record)} bytes is larger than the topic takes "
        f"({reason(error)}); raise its max.message.bytes or send less",
        index=index,
    )
