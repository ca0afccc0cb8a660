"""One run of one row of bench_kafka.py, in a process of its own whose CPU time is read: `python bench_loops.py JSON`.

Every loop reads orders, validates them with pydantic, emits one follow-on event each and commits. `bare` is what
somebody would write by hand on aiokafka, with one transaction a batch; the others are choreo on one of its stores.
Beside them: what fills the topics, and what receives the spans.
"""

from __future__ import annotations

import asyncio
import cProfile
import datetime
import decimal
import json
import resource
import sys
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from pydantic import BaseModel

from choreo import App, Event, Service, envelope
from choreo.core.messages import Limits
from choreo.ports import CommitRequest, CommitResult
from choreo.runtime.collector import collect_less

SAMPLED_1_PERCENT = "orders-1"
TOPICS = ("orders", SAMPLED_1_PERCENT, "payments")
KEYS = 997
BATCH_RECORDS = 500
RUN_S_MAX = 120.0
POLL_S = 0.02


def sampled_topic(telemetry: str) -> str:
    """The topic of orders whose headers say what `telemetry` asks for."""
    return SAMPLED_1_PERCENT if telemetry == "1" else "orders"


class Run(NamedTuple):
    """What to run.

    `row`: bare, or the kind of the store. `topic`: what is read. `telemetry`: sampled percent of the events,
    `metrics`, or empty. `profile`: a file for cProfile's statistics, or empty.
    """

    row: str
    servers: str
    topic: str
    events: int
    store: str = ""
    telemetry: str = ""
    flush_units: int = 0
    profile: str = ""


class Result(NamedTuple):
    """CPU seconds of the process, and seconds, from the first event on; commits are counted by input partition."""

    cpu_s: float
    wall_s: float
    transactions: int


class Item(BaseModel):
    sku: str
    qty: int


class Order(BaseModel):
    order_id: uuid.UUID
    customer_id: str
    amount: decimal.Decimal
    currency: str
    items: list[Item]
    placed_at: datetime.datetime
    channel: str
    note: str


class Payment(BaseModel):
    order_id: uuid.UUID
    customer_id: str
    amount: decimal.Decimal
    currency: str
    taken_at: datetime.datetime


class OrderPlaced(Event, Order, type="order.placed", version=1, topic="orders", key="customer_id"):
    """What is read."""


class PaymentTaken(Event, Payment, type="payment.taken", version=1, topic="payments", key="customer_id"):
    """What is emitted for it."""


def taken(order: Order) -> dict[str, Any]:
    """What the payment for an order says: the same work in every loop."""
    return {
        "order_id": order.order_id,
        "customer_id": order.customer_id,
        "amount": order.amount,
        "currency": order.currency,
        "taken_at": order.placed_at,
    }


class Meter:
    """Time and this process's CPU time, all threads of it, from the first event on."""

    def __init__(self) -> None:
        self.started = False
        self._cpu_s = self._wall_s = 0.0

    def start(self) -> None:
        self.started = True
        self._cpu_s, self._wall_s = _cpu_s(), time.perf_counter()

    def stop(self, transactions: int) -> Result:
        return Result(_cpu_s() - self._cpu_s, time.perf_counter() - self._wall_s, transactions)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def bare(run: Run) -> Result:
    """aiokafka by hand: a transaction for each batch of BATCH_RECORDS, offsets in it."""
    group, meter, done, transactions = f"bare-{uuid.uuid4()}", Meter(), 0, 0
    consumer = AIOKafkaConsumer(
        run.topic,
        bootstrap_servers=run.servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(bootstrap_servers=run.servers, transactional_id=group)
    async with consumer, producer:
        while done < run.events:
            batches = await consumer.getmany(timeout_ms=1000, max_records=BATCH_RECORDS)
            if not batches:
                continue
            if not meter.started:
                meter.start()
            await producer.begin_transaction()
            for records in batches.values():
                for record in records:
                    order = Order.model_validate_json(record.value)
                    value = Payment(**taken(order)).model_dump_json().encode()
                    await producer.send("payments", value, key=record.key, headers=list(record.headers))
                done += len(records)
            offsets = {partition: records[-1].offset + 1 for partition, records in batches.items()}
            await producer.send_offsets_to_transaction(offsets, group)
            await producer.commit_transaction()
            transactions += 1
        return meter.stop(transactions)


async def by_choreo(run: Run) -> Result:
    """The same on choreo."""
    service, meter, commits = Service(f"bench-{uuid.uuid4().hex[:8]}"), Meter(), 0

    @service.handler(OrderPlaced)
    async def take_payment(order: OrderPlaced) -> PaymentTaken:
        if not meter.started:
            meter.start()
        return PaymentTaken(**taken(order))

    app = App(service, topics={"orders": run.topic})
    collect_less()  # as `choreo run` does
    limits = Limits(flush_units=run.flush_units) if run.flush_units else Limits()
    settings: dict[str, Any] = {"limits": limits, "create_topics": True, "create_schema": True}
    async with app.running(broker=f"kafka://{run.servers}", store=run.store, **settings) as running:
        store, counts = running.workers[service.name].ports.store, running.workers[service.name].counts
        commit = store.commit

        async def counted(request: CommitRequest) -> CommitResult:
            nonlocal commits
            commits += len(request.offsets)
            return await commit(request)

        store.commit = counted  # type: ignore[method-assign]
        deadline_s = time.monotonic() + RUN_S_MAX
        while counts["handled"] < run.events and time.monotonic() < deadline_s:  # noqa: ASYNC110  # nobody tells it
            await asyncio.sleep(POLL_S)
        if counts["handled"] != run.events or counts["emitted"] != run.events:
            raise SystemExit(f"{run.events} events were to be handled within {RUN_S_MAX:g} s: {dict(counts)}")
        if not run.telemetry:
            return meter.stop(commits)
    return meter.stop(commits)  # what was recorded has been sent


async def fill(run: Run) -> None:
    """The same orders into both topics of them, the headers as choreo writes them."""
    async with AIOKafkaProducer(bootstrap_servers=run.servers, linger_ms=5) as producer:
        for topic in TOPICS[:2]:
            for number in range(run.events):
                await producer.send(topic, *_order(number, sampled=topic == "orders" or number % 100 == 0))
        await producer.flush()


def _order(number: int, *, sampled: bool) -> tuple[bytes, bytes | None, None, None, list[Any]]:
    order = OrderPlaced(
        order_id=uuid.UUID(int=number),
        customer_id=f"c-{number % KEYS}",
        amount=decimal.Decimal("129.90"),
        currency="EUR",
        items=[Item(sku="A-1", qty=2), Item(sku="B-7", qty=1)],
        placed_at=datetime.datetime(2026, 11, 22, 10, tzinfo=datetime.UTC),
        channel="web",
        note="please ring twice",
    )
    id_ = str(uuid.UUID(int=number))
    trace = f"00-{uuid.uuid4().hex}-00f067aa0ba902b7-0{sampled:d}"
    about = envelope.Envelope(
        id_, "/shop", order.event_type, 1, "2026-11-22T10:00:00.000Z", correlationid=id_, traceparent=trace
    )
    return order.payload(), order.record_key(), None, None, list(envelope.write(about))


def receive() -> None:
    """Take spans and metrics over OTLP until standard input ends, then say how many spans came."""
    from choreo.testing.otlp import OtlpReceiver

    with OtlpReceiver() as receiver:
        print(receiver.endpoint, flush=True)
        sys.stdin.read()
        print(len(receiver.spans()), flush=True)


def main() -> None:
    """Run what the argument says, and print its result as one line of JSON."""
    if sys.argv[1] == "receive":
        receive()
        return
    run = Run(*json.loads(sys.argv[1]))
    if run.row == "fill":
        asyncio.run(fill(run))
        return
    profile = cProfile.Profile() if run.profile else None
    if profile is not None:
        profile.enable()
    result = asyncio.run(bare(run) if run.row == "bare" else by_choreo(run))
    if profile is not None:
        profile.dump_stats(run.profile)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
