"""An estate of FastStream: a storefront publishes, inventory reserves, shipping ships; plain JSON all the way.

It knows nothing of choreo. Each service has a broker, a consumer group and a tracer of its own, as three processes
have; each can be stopped and started again, which picks up at its group's offsets.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage
from faststream.kafka.opentelemetry import KafkaTelemetryMiddleware
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from pydantic import BaseModel

WORK_S = 0.01


class Line(BaseModel):
    """What a message says of one line of an order; `number` counts from 0 in each order."""

    order_id: str
    number: int


class Message(BaseModel):
    """A message of this estate: what happened, under which id, and what there is to say of it."""

    event: str
    message_id: str
    payload: Line


@dataclass(frozen=True, slots=True)
class Handled:
    """One line, handled by one implementation of a service."""

    by: str
    order_id: str
    number: int


@dataclass
class Estate:
    """Where the estate's topics are, and what its services have done so far."""

    kafka: str
    collector: str
    orders: str
    stock: str
    inventory_group: str
    shipping_group: str
    reserved: list[Handled] = field(default_factory=list)
    shipped: list[Handled] = field(default_factory=list)
    sent: list[Line] = field(default_factory=list)
    traces: dict[str, str] = field(default_factory=dict)
    """Trace of each message on `stock`, by its id."""

    @asynccontextmanager
    async def service(self, name: str) -> AsyncIterator[KafkaBroker]:
        """A broker that is traced under a name of its own."""
        provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{self.collector}/v1/traces")))
        middleware = KafkaTelemetryMiddleware(tracer_provider=provider)
        broker = KafkaBroker(self.kafka, logger=None, middlewares=(middleware,), enable_idempotence=True)
        try:
            yield broker
        finally:
            await broker.stop()
            await asyncio.to_thread(provider.shutdown)

    @asynccontextmanager
    async def storefront(self) -> AsyncIterator[Callable[[Collection[str]], AsyncIterator[Line]]]:
        """Publishes another line of each order that is named."""
        async with self.service("storefront") as broker:
            await broker.connect()
            await broker.start()

            async def publish(orders: Collection[str]) -> AsyncIterator[Line]:
                for order_id in orders:
                    line = Line(order_id=order_id, number=sum(each.order_id == order_id for each in self.sent))
                    message_id = f"{line.order_id}/{line.number}"
                    message = Message(event="order.placed", message_id=message_id, payload=line)
                    await broker.publish(message, self.orders, key=order_id.encode())
                    self.sent.append(line)
                    yield line

            yield publish

    @asynccontextmanager
    async def inventory(self) -> AsyncIterator[None]:
        """Reserves every line, and says so; at least once, as the offset is committed when it is done."""
        async with self.service("inventory") as broker:

            @broker.subscriber(
                self.orders,
                group_id=self.inventory_group,
                auto_offset_reset="earliest",
                ack_policy=AckPolicy.NACK_ON_ERROR,
            )
            async def reserve(message: Message) -> None:
                line = message.payload
                await asyncio.sleep(WORK_S)
                self.reserved.append(Handled("faststream", line.order_id, line.number))
                answer = Message(event="stock.reserved", message_id=f"r-{message.message_id}", payload=line)
                await broker.publish(answer, self.stock, key=line.order_id.encode())

            await broker.start()
            yield

    @asynccontextmanager
    async def shipping(self) -> AsyncIterator[None]:
        """Ships every line that is reserved."""
        async with self.service("shipping") as broker:

            @broker.subscriber(
                self.stock,
                group_id=self.shipping_group,
                auto_offset_reset="earliest",
                ack_policy=AckPolicy.NACK_ON_ERROR,
            )
            async def ship(message: Message, raw: KafkaMessage) -> None:
                by = "choreo" if "ce_id" in raw.headers else "faststream"
                self.traces[message.message_id] = raw.headers["traceparent"].split("-")[1]
                self.shipped.append(Handled(by, message.payload.order_id, message.payload.number))

            await broker.start()
            yield


def out_of_order(handled: list[Handled]) -> list[tuple[Handled, Handled]]:
    """Neighbours within an order whose numbers do not follow one another: lost, twice, or the wrong way round."""
    orders: dict[str, list[Handled]] = {}
    for each in handled:
        orders.setdefault(each.order_id, [Handled("", each.order_id, -1)]).append(each)
    return [pair for some in orders.values() for pair in pairwise(some) if pair[1].number != pair[0].number + 1]
