"""Records handed over to an aiokafka producer in one step, and waited for by the batch: a future for each costs 8 us.

Private API like kafka/client.py, and held by the same contract test.
"""

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import TransportError
from choreo.record import ProducerRecord
from choreo.transports.kafka.records import RawBatch, is_raw


async def deliver(
    producer: AIOKafkaProducer, records: Sequence[ProducerRecord], raw: type[RawBatch] = RawBatch
) -> dict[int, Exception]:
    """Hand all over in order, wait until each is acknowledged or has failed; returns the failures by index."""
    numbers = {topic: sorted(await producer.partitions_for(topic)) for topic in {record.topic for record in records}}
    batches = _hand_over(producer, records, numbers, raw)
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
    producer: AIOKafkaProducer,
    records: Sequence[ProducerRecord],
    numbers: dict[str, list[int]],
    raw: type[RawBatch],
) -> dict[Any, list[int]]:
    """Put the records into the producer's batches, which may be open already; by batch the indices of ours."""
    accumulator, metadata = producer._message_accumulator, producer._metadata
    available = {topic: sorted(metadata.available_partitions_for_topic(topic)) for topic in numbers}
    places: dict[tuple[str, int], KafkaPartition] = {}
    batches: dict[Any, list[int]] = {}
    for index, record in enumerate(records):
        topic, key, value, headers, partition = record
        if partition is None:
            partition = producer._partitioner(key, numbers[topic], available[topic])
        place = places.get((topic, partition))
        if place is None:
            if partition not in numbers[topic]:
                raise TransportError(f"{topic}: there is no partition {partition}")
            place = places[topic, partition] = KafkaPartition(topic, partition)
        if is_raw(record):
            builder = raw()
            builder.add(record)
            builder.close()
            batch = _begin(accumulator, builder, place)
        else:
            pending = accumulator._batches.get(place)
            batch = pending[-1] if pending else _begin(accumulator, accumulator.create_builder(), place)
            append = batch._builder.append
            if append(timestamp=None, key=key, value=value, headers=list(headers)) is None:  # full, or closed
                batch = _begin(accumulator, accumulator.create_builder(), place)
                batch._builder.append(timestamp=None, key=key, value=value, headers=list(headers))
        indices = batches.get(batch)
        if indices is None:
            indices = batches[batch] = []
        indices.append(index)
    return batches


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
