"""Appending through librdkafka: one idempotent producer, thrown away with whatever went wrong in it."""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from choreo.errors import TransportError
from choreo.record import ProducerRecord
from choreo.transports.confluent.client import (
    TOO_LARGE,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    error_of,
    made,
    reason,
)
from choreo.transports.confluent.delivery import failed_delivery, failure_of, produce, refuse_oversized, too_large
from choreo.transports.confluent.settings import PRODUCER_DEFAULTS
from choreo.transports.kafka.producer import unacknowledged
from choreo.transports.kafka.security import principal_of

log = logging.getLogger(__name__)

POLL_S = 0.1
HAND_OVER_RECORDS = 200
"""Handed over at a time, some 1 ms, before the event loop is given its turn."""

FULL_S = 0.01
REPORTS_S = 5.0
"""For the delivery reports of a producer that was discarded: whoever still waits for one is told at once."""

REFRESH_S = 5.0


class _Call:
    """One `send`, waiting for its delivery reports; they come on the thread that polls."""

    def __init__(self, records: int) -> None:
        self.failed: dict[int, KafkaError] = {}
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._left = records

    def report(self, index: int, error: KafkaError | None, _: Message) -> None:
        """As librdkafka calls it, once a record."""
        if error is not None:
            self.failed[index] = error
        self._left -= 1
        if self._left == 0:
            try:
                self._loop.call_soon_threadsafe(self._finish)
            except RuntimeError:
                log.warning("a Kafka producer outlived its event loop; close the transport before the loop ends")

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class PolledProducer:
    """librdkafka's producer and the thread that takes its delivery reports."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.trouble: str | None = None
        self._principal = principal_of(arguments)
        self._stopping = threading.Event()
        self._producer: Producer = made(Producer, {**arguments, "error_cb": self._warn})
        self._thread = threading.Thread(target=self._poll, name="choreo-kafka-producer", daemon=True)
        self._thread.start()

    async def deliver(self, records: Sequence[ProducerRecord]) -> dict[int, KafkaError]:
        """Hand all over in order, wait until each is acknowledged or has failed; returns the failures by index."""
        call = _Call(len(records))
        for index, record in enumerate(records):
            if index and index % HAND_OVER_RECORDS == 0:
                await self._pause(0)
            while True:
                try:
                    produce(self._producer, record, functools.partial(call.report, index))
                    break
                except BufferError:  # queue.buffering.max.messages
                    await self._pause(FULL_S)
                except Exception as error:
                    if not await self._learnt_of(record, error):
                        raise failure_of(record, index, error, self._principal) from error
        await call.done
        return call.failed

    async def _pause(self, seconds: float) -> None:
        """Give others their turn; TransportError if one of them has discarded the producer."""
        await asyncio.sleep(seconds)
        if self._stopping.is_set():
            raise TransportError("a send beside this one failed, and their producer was discarded; send it again")

    async def _learnt_of(self, record: ProducerRecord, error: Exception) -> bool:
        """Whether the partition it names is one that came since librdkafka last looked; if so, it is known now."""
        told, number = error_of(error), record.partition
        if told is None or told.code() != KafkaError._UNKNOWN_PARTITION or number is None or number < 0:
            return False
        try:
            found = await asyncio.to_thread(self._producer.list_topics, record.topic, REFRESH_S)
        except KafkaException as failed:
            raise TransportError(f"{record.topic}: partition {number} is not known: {reason(failed)}") from failed
        await self._pause(FULL_S)
        return number in found.topics[record.topic].partitions

    def discard(self) -> None:
        """Drop what is queued and disconnect, in the background; delivery reports still waited for say so."""
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        self._stopping.set()

    def flush(self, timeout_s: float) -> int:
        """Wait until nothing is on its way; returns how many still are. Blocks."""
        return self._producer.flush(timeout_s)

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(POLL_S)
        until_s = time.monotonic() + REPORTS_S  # they are purged in the background
        while len(self._producer) and time.monotonic() < until_s:
            self._producer.poll(POLL_S)
        del self._producer  # the last reference: librdkafka disconnects here, which may take a while

    def _warn(self, error: KafkaError) -> None:
        self.trouble = reason(error)
        log.warning("producing: %s", self.trouble)


class ConfluentProducer:
    """Sends calls of records, each under one deadline of `timeout_s`.

    After any failure the producer is discarded and never used on, as with aiokafka's: what it still holds must not
    reach the log after the same records were sent again.
    """

    def __init__(self, arguments: Mapping[str, Any], *, timeout_s: float) -> None:
        deadline_ms = int(timeout_s * 1000)
        self._arguments = {**PRODUCER_DEFAULTS, "message.timeout.ms": deadline_ms, **arguments}
        self._principal = principal_of(arguments)
        self._timeout_s = timeout_s
        self._producer: PolledProducer | None = None

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """As `Transport.send`; RecordTooLarge if one of them alone is the reason."""
        refuse_oversized(records)
        producer = self._producer
        if producer is None:
            producer = self._producer = PolledProducer(self._arguments)
        try:
            async with asyncio.timeout(self._timeout_s):
                failed = await producer.deliver(records)
                if failed:
                    self._discard(producer)
                    await self._send_alone(records, failed)
        except TimeoutError:
            self._discard(producer)
            last = f" Last: {producer.trouble}" if producer.trouble else ""
            raise TransportError(f"{unacknowledged(records, self._timeout_s)}{last}") from None
        except BaseException:  # a cancelled call too: the rest of it must not follow later
            self._discard(producer)
            raise

    async def close(self) -> None:
        """Flush what other tasks still await, within the deadline of a send, and disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                left = await asyncio.to_thread(producer.flush, self._timeout_s)
                if left:
                    log.warning("%d records were not acknowledged when the transport was closed", left)
            finally:
                producer.discard()

    async def _send_alone(self, records: Sequence[ProducerRecord], failed: Mapping[int, KafkaError]) -> None:
        """Send what failed one record a batch if a batch was too large; librdkafka never splits one."""
        oversized = sorted(index for index, error in failed.items() if error.code() in TOO_LARGE)
        if not oversized or len(oversized) < len(failed):
            index = next(
                (index for index in sorted(failed) if index not in oversized), oversized[0] if oversized else 0
            )
            raise failed_delivery(records[index], index, failed[index], self._principal)
        if len(oversized) == 1:
            raise too_large(records[oversized[0]], oversized[0])
        log.warning("%s takes no batch of this size; sending its records one by one", records[oversized[0]].topic)
        producer = PolledProducer({**self._arguments, "batch.num.messages": 1})
        try:
            again = await producer.deliver([records[index] for index in oversized])
        finally:
            producer.discard()
        if again:
            first = min(again)
            raise failed_delivery(records[oversized[first]], oversized[first], again[first], self._principal)

    def _discard(self, producer: PolledProducer) -> None:
        if self._producer is producer:  # another call may have done it, and have made a new one
            self._producer = None
            producer.discard()
