"""What an event costs, counted in calls: of Python functions and of C ones, from the record to its commit.

Times depend on the machine and its other work; how many calls are made for a fixed input does not. A change that adds
a call here and there is seen at once, and whoever means it writes the new figure down. See docs/performance.md.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, cast

import pytest
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from choreo import App, Event, Service
from choreo.envelope import Envelope, write
from choreo.ports import Claimed, ClaimRequest, CommitRequest, CommitResult, Instrument, Lease, Peer
from choreo.record import Record, TopicPartition
from choreo.runtime.emitting import Emitter
from choreo.runtime.invoking import Invoker
from choreo.runtime.worker import Ports, Worker
from choreo.telemetry import aggregating
from choreo.telemetry.metering import meters
from choreo.telemetry.quick import Quick
from choreo.telemetry.silent import NoInstrument
from choreo.telemetry.spans import OtelInstrument
from choreo.testing.clock import VirtualClock
from tests.integration.tracing import TRACE

EVENTS, BATCH, KEYS, PARTITIONS = 2_000, 500, 97, 4
GROWTH_MAX = 1.10
CALLS = {"off": 137.1, "unsampled": 146.0, "traced": 197.7, "metrics": 166.0}
"""Calls an event on Python 3.11; later versions make fewer, as they call no function for a comprehension."""

service = Service("payments")


class OrderPlaced(Event, type="order.placed", version=1, topic="orders", key="customer"):
    order_id: str
    customer: str
    cents: int


class PaymentTaken(Event, type="payment.taken", version=1, topic="payments", key="customer"):
    order_id: str
    customer: str
    cents: int


@service.handler(OrderPlaced)
async def take(order: OrderPlaced) -> PaymentTaken:
    return PaymentTaken(order_id=order.order_id, customer=order.customer, cents=order.cents)


class OneTopic:
    """A transport, its consumer and a store, each of which does nothing that costs."""

    name = system = "none"
    peer = Peer()
    member = "one"
    joined = True
    carries = frozenset({"offset", "emits"})
    dedupe_scope = "partition"
    transaction_types = frozenset[str]()
    transactions_max = 0

    def __init__(self, records: Sequence[Record]) -> None:
        self._batches = [list(records[at : at + BATCH]) for at in range(0, len(records), BATCH)]
        self.emitted = 0
        self.offsets: dict[TopicPartition, int] = {}

    async def consumer(self, group: str, topics: Sequence[str], assignment: Any) -> "OneTopic":
        self._assignment = assignment
        return self

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        if self._batches:
            return self._batches.pop(0)
        await asyncio.sleep(3600)
        return []

    async def acquire(self, group: str, partitions: Sequence[TopicPartition], owner: str) -> Sequence[Lease]:
        return [Lease(group, each, 1, owner) for each in partitions]

    async def claim(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        return [Claimed("fresh")] * len(requests)

    async def commit(self, request: Any) -> CommitResult:
        if isinstance(request, CommitRequest):
            self.emitted += sum(len(each.emits) for each in request.finished)
            self.offsets.update(request.offsets)
        return CommitResult()

    async def position(self, partition: TopicPartition, start: object) -> int:
        return 0

    async def release(self, leases: Sequence[Lease]) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Nothing."""

    pause = resume = seek  # nor here


def records(sampled: int) -> list[Record]:
    """Orders as choreo writes them; a batch is of one partition after the other."""
    made = []
    for number in range(EVENTS):
        partition, offset = number // (BATCH // PARTITIONS) % PARTITIONS, number
        id_, customer = f"{number:08d}-0000-4000-8000-000000000000", f"c-{number % KEYS}"
        headers = write(
            Envelope(
                id_,
                "/shop",
                "order.placed",
                1,
                "2026-11-22T10:00:00.000Z",
                correlationid=id_,
                traceparent=f"00-{TRACE}-{number + 1:016x}-0{sampled}",
            )
        )
        value = OrderPlaced(order_id=id_, customer=customer, cents=12_990).payload()
        made.append(Record("orders", partition, offset, customer.encode(), value, headers, 0))
    return made


async def calls(instrument: Instrument, sampled: int) -> float:
    """Calls made for each event by a worker, from its start to its last commit."""
    topic, app = OneTopic(records(sampled)), App(service)
    ports = Ports(cast(Any, topic), cast(Any, topic), instrument, VirtualClock())
    router, emitter = app.router(service.name), Emitter(service, app.topic)
    worker = Worker(service, ["orders"], ports, router, emitter, Invoker({}, (), ports.clock))
    found = 0

    def count(_: FrameType, kind: str, __: Any) -> None:
        nonlocal found
        found += kind in ("call", "c_call")

    await worker.start()
    await worker.holder.assigned([TopicPartition("orders", number) for number in range(PARTITIONS)])
    sys.setprofile(count)
    try:
        while worker.counts["handled"] < EVENTS:  # noqa: ASYNC110  # an event would cost calls of its own
            await asyncio.sleep(0)
    finally:
        sys.setprofile(None)
        await worker.stop()
    assert topic.emitted == EVENTS
    assert sorted(topic.offsets.values())[-1] == EVENTS
    return found / EVENTS


class Encoded:
    """A queue that keeps nothing, of what costs as much as if it were exported."""

    def put(self, span: Any) -> None:
        assert span.encoded()


def quick() -> Instrument:
    """One that records in the quick way."""
    provider = TracerProvider(shutdown_on_exit=False)
    puts = [Encoded().put]
    return OtelInstrument(
        "payments", tracer_provider=provider, system="kafka", quick=lambda always: Quick(always, provider, puts)
    )


def metered() -> Instrument:
    """One that counts, and traces nothing."""
    counting = MeterProvider(
        [InMemoryMetricReader()],
        exemplar_filter=AlwaysOffExemplarFilter(),
        shutdown_on_exit=False,
        views=aggregating.views(),
    )
    return meters(counting, system="kafka", many=True).instrument("payments", NoInstrument())


@pytest.mark.parametrize(
    ("what", "make", "sampled"),
    [("off", NoInstrument, 1), ("unsampled", quick, 0), ("traced", quick, 1), ("metrics", metered, 1)],
)
async def test_an_event_costs_no_more_calls_than_it_did(
    what: str, make: Callable[[], Instrument], sampled: int
) -> None:
    """If this fails and the calls are worth it, write the new figure into CALLS."""
    found = await calls(make(), sampled)
    assert found <= CALLS[what] * GROWTH_MAX, f"{what}: {found:.1f} calls an event, and it was {CALLS[what]}"
    if sys.version_info[:2] == (3, 11):  # a figure nobody reaches guards nothing
        assert found >= CALLS[what] / GROWTH_MAX, f"{what}: only {found:.1f} calls an event; write that into CALLS"
