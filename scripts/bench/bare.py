"""Loops that somebody would write by hand, and FastStream: read, validate, emit one follow-on event each, commit."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from scripts.bench.orders import Order, Payment, passed_on, taken, transform
from scripts.bench.running import FOR_EVER, Meter, Result, Run

BATCH_RECORDS = 500


def _work(run: Run) -> Callable[[bytes], bytes]:
    return passed_on if run.work == "parcel" else transform


async def aiokafka_loop(run: Run, *, transaction: bool) -> Result:
    """aiokafka: with `transaction` one a batch, offsets in it; else at least once."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    group, meter, work, done, batches = f"bare-{uuid.uuid4()}", Meter(), _work(run), 0, 0
    options = {"transactional_id": group} if transaction else {"enable_idempotence": True, "linger_ms": 5}
    consumer = AIOKafkaConsumer(
        run.topic,
        bootstrap_servers=run.servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    async with consumer, AIOKafkaProducer(bootstrap_servers=run.servers, **options) as producer:
        while done < run.events:
            fetched = await consumer.getmany(timeout_ms=1000, max_records=run.batch or BATCH_RECORDS)
            if not fetched:
                continue
            meter.start()
            if transaction:
                await producer.begin_transaction()
            acks = []
            for records in fetched.values():
                for record in records:
                    headers = list(record.headers)
                    acks.append(await producer.send(run.out, work(record.value), key=record.key, headers=headers))
                done += len(records)
            offsets = {partition: records[-1].offset + 1 for partition, records in fetched.items()}
            if transaction:
                await producer.send_offsets_to_transaction(offsets, group)
                await producer.commit_transaction()
            else:
                await producer.flush()
                await asyncio.gather(*acks)
                await consumer.commit(offsets)
            batches += 1
        return meter.stop(batches)


async def postgres_loop(run: Run) -> Result:
    """aiokafka at least once, and a row an event in PostgreSQL, committed before the offsets; never a second."""
    import psycopg
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    group, meter, done, batches = f"bare-{uuid.uuid4()}", Meter(), 0, 0
    consumer = AIOKafkaConsumer(
        run.topic,
        bootstrap_servers=run.servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(bootstrap_servers=run.servers, enable_idempotence=True, linger_ms=5)
    async with consumer, producer, await psycopg.AsyncConnection.connect(run.store) as connection:
        table = run.group.replace("-", "_")
        await connection.execute(f"CREATE TABLE {table} (order_id uuid PRIMARY KEY, amount numeric)")
        await connection.commit()
        insert = f"INSERT INTO {table} VALUES (%s, %s) ON CONFLICT DO NOTHING"
        while done < run.events:
            fetched = await consumer.getmany(timeout_ms=1000, max_records=run.batch or BATCH_RECORDS)
            if not fetched:
                continue
            meter.start()
            rows, acks = [], []
            for records in fetched.values():
                for record in records:
                    order = Order.model_validate_json(record.value)
                    rows.append((order.order_id, order.amount))
                    value = Payment(**taken(order)).model_dump_json().encode()
                    acks.append(await producer.send(run.out, value, key=record.key, headers=list(record.headers)))
                done += len(records)
            async with connection.cursor() as cursor:
                await cursor.executemany(insert, rows)
            await connection.commit()
            await producer.flush()
            await asyncio.gather(*acks)
            await consumer.commit({partition: records[-1].offset + 1 for partition, records in fetched.items()})
            batches += 1
        result = meter.stop(batches)
        await connection.execute(f"DROP TABLE {table}")
        await connection.commit()
        return result


def confluent_loop(run: Run, *, transaction: bool) -> Result:
    """confluent-kafka: with `transaction` one a batch, offsets in it; else at least once."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    group, meter, work, done, batches = f"bare-{uuid.uuid4()}", Meter(), _work(run), 0, 0
    consumer = Consumer(
        {
            "bootstrap.servers": run.servers,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    options = {"transactional.id": group} if transaction else {"enable.idempotence": True}
    producer = Producer({"bootstrap.servers": run.servers, "linger.ms": 5, **options})
    if transaction:
        producer.init_transactions(30)
    consumer.subscribe([run.topic])
    # It waits for the whole batch so long: with few events that is what each of them waits.
    wait_s = 0.005 if run.events == FOR_EVER else 0.1
    while done < run.events:
        records = consumer.consume(run.batch or BATCH_RECORDS, wait_s)
        if not records:
            continue
        meter.start()
        if transaction:
            producer.begin_transaction()
        offsets = {}
        for record in records:
            if record.error():
                raise SystemExit(record.error())
            producer.produce(run.out, work(record.value()), record.key(), headers=record.headers())
            offsets[record.partition()] = record.offset() + 1
        done += len(records)
        producer.poll(0)
        positions = [TopicPartition(run.topic, partition, offset) for partition, offset in offsets.items()]
        if transaction:
            producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
            producer.commit_transaction()
        else:
            producer.flush()
            consumer.commit(offsets=positions, asynchronous=False)
        batches += 1
    result = meter.stop(batches)
    consumer.close()
    return result


async def faststream_loop(run: Run, *, traced: bool) -> Result:
    """FastStream on aiokafka, as its first page shows it: acknowledged before handled. `traced`: spans dropped."""
    from faststream.kafka import KafkaBroker
    from faststream.kafka.opentelemetry import KafkaTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Drop(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Drop(), max_queue_size=20_000))
    middlewares = [KafkaTelemetryMiddleware(tracer_provider=provider)] if traced else []
    broker = KafkaBroker(run.servers, middlewares=middlewares, logger=None)
    meter, done, finished = Meter(), 0, asyncio.Event()

    async def take_payment(order: Order) -> Payment:
        nonlocal done
        meter.start()
        done += 1
        if done == run.events:
            finished.set()
        return Payment(**taken(order))

    # The types are read when they are declared, and annotations are texts here.
    take_payment.__annotations__ = {"order": Order, "return": Payment}
    subscribed = broker.subscriber(run.topic, group_id=f"bench-{uuid.uuid4()}", auto_offset_reset="earliest")
    subscribed(broker.publisher(run.out)(take_payment))
    async with broker:
        await broker.start()
        await finished.wait()
        result = meter.stop(done)
    provider.shutdown()
    return result


Loop = Callable[[Run], Result | Coroutine[Any, Any, Result]]
LOOPS: dict[str, Loop] = {
    "aiokafka-txn": lambda run: aiokafka_loop(run, transaction=True),
    "aiokafka-alo": lambda run: aiokafka_loop(run, transaction=False),
    "aiokafka-postgres": postgres_loop,
    "confluent-txn": lambda run: confluent_loop(run, transaction=True),
    "confluent-alo": lambda run: confluent_loop(run, transaction=False),
    "faststream": lambda run: faststream_loop(run, traced=False),
    "faststream-otel": lambda run: faststream_loop(run, traced=True),
}
