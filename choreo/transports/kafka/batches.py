"""Records handed over to an aiokafka producer in one step, and waited for by the batch: a future for each costs 8 us.

Private API like kafka/client.py, and held by the same contract test.
"""

import asyncio
import copy
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import RecordTooLarge, TransportError
from choreo.record import ProducerRecord
from choreo.transports.kafka.records import RawBatch

_TOPIC = itemgetter(0)
VARINTS_BYTES = 16
"""How much longer a record may be in another batch: by its place in it, and its time since the first one's."""


class Filled:
    """A batch that is filled and not handed over. `indices`: which of the call's records are in it, in order."""

    __slots__ = ("append", "builder", "indices", "place")

    def __init__(self, place: KafkaPartition, builder: Any) -> None:
        self.place, self.builder = place, builder
        self.append = builder._builder.append  # 0.14's BatchBuilder.append, which numbers them, takes twice as long
        self.indices: list[int] = []


async def fill(
    producer: AIOKafkaProducer, records: Sequence[ProducerRecord], *, bytes_max: int, raw: type[RawBatch] = RawBatch
) -> list[Filled]:
    """Put the records into batches of their own, in order; nothing is handed over yet.

    Raises:
        RecordTooLarge: One of them takes more than `bytes_max`.
    """
    numbers = {topic: sorted(await producer.partitions_for(topic)) for topic in set(map(_TOPIC, records))}
    accumulator, metadata, choose = producer._message_accumulator, producer._metadata, producer._partitioner
    available = {topic: sorted(metadata.available_partitions_for_topic(topic)) for topic in numbers}
    filled: list[Filled] = []
    last: dict[str, dict[int, Filled]] = {topic: {} for topic in numbers}
    for index, (topic, key, value, headers, partition) in enumerate(records):
        if partition is None:
            partition = choose(key, numbers[topic], available[topic])
        batch = last[topic].get(partition)
        try:
            if batch is None or batch.append(len(batch.indices), None, key, value, list(headers)) is None:  # full
                batch = Filled(_place(topic, partition, numbers), accumulator.create_builder())
                found = batch.append(0, None, key, value, list(headers))
                if found.size > bytes_max:  # nowhere else: only the first may be larger than a batch
                    raise _too_large(topic, found.size, bytes_max, index)
                last[topic][partition] = batch
                filled.append(batch)
            batch.indices.append(index)
        except UnicodeEncodeError:  # of a header's key, before anything was written
            filled.append(_alone(_place(topic, partition, numbers), raw(), records[index], index, bytes_max))
            last[topic].pop(partition, None)
    for batch in filled:
        batch.builder._relative_offset = len(batch.indices)
    return filled


def _place(topic: str, partition: int, numbers: dict[str, list[int]]) -> KafkaPartition:
    if partition not in numbers[topic]:
        raise TransportError(f"{topic}: there is no partition {partition}")
    return KafkaPartition(topic, partition)


def _alone(place: KafkaPartition, builder: RawBatch, record: ProducerRecord, index: int, bytes_max: int) -> Filled:
    """A record whose header keys only a RawBatch takes."""
    builder.add(record)
    builder.close()
    if builder.size() > bytes_max:
        raise _too_large(record.topic, builder.size(), bytes_max, index)
    batch = Filled(place, builder)
    batch.indices.append(index)
    return batch


def _too_large(topic: str, size: int, bytes_max: int, index: int) -> RecordTooLarge:
    return RecordTooLarge(
        f"{topic}: a record of {size} bytes is larger than the {bytes_max} that are sent", index=index
    )


async def deliver(
    producer: AIOKafkaProducer, records: Sequence[ProducerRecord], filled: Iterable[Filled]
) -> dict[int, Exception]:
    """Hand all over in order, wait until each is acknowledged or has failed; returns the failures by index."""
    batches = _hand_over(producer, records, filled)
    if batches:
        # Not awaited themselves: a batch may be shared with another call, which our cancellation must not reach.
        await asyncio.wait([batch.future for batch in batches])
    failed: dict[int, Exception] = {}
    for batch, indices in batches.items():
        error = batch.future.exception()
        if error is None:
            continue
        if not isinstance(error, kafka_errors.KafkaError):
            raise error
        failed.update(dict.fromkeys(indices, error))
    return dict(sorted(failed.items()))


def _hand_over(
    producer: AIOKafkaProducer, records: Sequence[ProducerRecord], filled: Iterable[Filled]
) -> dict[Any, list[int]]:
    """Queue what is filled, in one step; by the producer's batch the indices of ours in it.

    Where another call's batch waits that has room, our records join it: one batch a partition is on its way at once.
    """
    accumulator = producer._message_accumulator
    batches: dict[Any, list[int]] = {}
    for each in filled:
        pending = accumulator._batches.get(each.place)
        if pending and _joined(each, pending[-1]._builder, records, accumulator._batch_size):
            batch = pending[-1]
        else:
            batch = _begin(accumulator, each.builder, each.place)
        batches.setdefault(batch, []).extend(each.indices)
    return batches


def _joined(each: Filled, waiting: Any, records: Sequence[ProducerRecord], batch_size: int) -> bool:
    if waiting.closed() or each.builder.closed():
        return False
    if waiting.size() + each.builder.size() + VARINTS_BYTES * len(each.indices) > batch_size:
        return False
    for index in each.indices:
        _, key, value, headers, _ = records[index]
        waiting.append(timestamp=None, key=key, value=value, headers=list(headers))
    return True


def _begin(accumulator: Any, builder: Any, place: KafkaPartition) -> Any:
    """A new batch behind those of its partition that wait; 0.14's `add_batch` lets whoever comes later go first."""
    if accumulator._closed:
        raise kafka_errors.ProducerClosed()
    if accumulator._exception is not None:
        raise copy.copy(accumulator._exception)
    batch = accumulator._append_batch(builder, place)
    for future in (batch.future, batch._drain_waiter):
        future.add_done_callback(_seen)
    return batch


def _seen(future: asyncio.Future[Any]) -> None:
    """What it failed with is told by who waits for it; where nobody does any more, asyncio need not log it."""
    if not future.cancelled():
        future.exception()
