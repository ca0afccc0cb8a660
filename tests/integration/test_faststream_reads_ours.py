"""Strangers on a real Kafka: FastStream reads what choreo emits, choreo reads what CloudEvents' SDKs write."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import orjson
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.kafka.annotations import KafkaMessage as Message
from pydantic import BaseModel

from choreo import App, Event, Service
from choreo.opening import open_transport
from choreo.ports import TopicSpec
from choreo.record import Header, ProducerRecord

WAIT_S = 20.0
STRUCTURED = b"application/cloudevents+json"


class PlaceOrder(Event, type="order.placed", version=1, topic="orders", key="order_id"):
    """What begins."""

    order_id: str
    amount: Decimal


class OrderTaken(Event, type="order.taken", version=2, topic="taken", key="order_id"):
    """What follows."""

    order_id: str
    amount: Decimal
    note: str | None = None


class Taken(BaseModel):
    """What somebody who never heard of CloudEvents or choreo makes of it."""

    order_id: str
    amount: Decimal
    note: str | None


def make_app() -> tuple[App, list[PlaceOrder]]:
    """Topics and a group of its own, since a Kafka may be shared."""
    unique = uuid4().hex[:12]
    desk, placed = Service(f"desk-{unique}"), list[PlaceOrder]()

    @desk.handler(PlaceOrder)
    async def take(order: PlaceOrder) -> OrderTaken:
        placed.append(order)
        return OrderTaken(order_id=order.order_id, amount=order.amount, note="größer als 1 €")

    return App(desk, topics={"orders": f"orders-{unique}", "taken": f"taken-{unique}"}), placed


async def make_topics(kafka: str, app: App) -> None:
    """Every topic of the app."""
    transport = open_transport(f"kafka://{kafka}")
    await transport.open()
    await transport.create_topics([TopicSpec(spec.name, 2, config=spec.config) for spec in app.topic_specs()])
    await transport.close()


async def test_faststream_reads_what_choreo_emits(kafka: str, tmp_path: Path) -> None:
    """Published and emitted events are a pydantic model to it, and each header is text."""
    app, _ = make_app()
    await make_topics(kafka, app)
    found: asyncio.Queue[tuple[str, object, KafkaMessage]] = asyncio.Queue()
    broker = KafkaBroker(kafka, logger=None)

    @broker.subscriber(app.topic("taken"), auto_offset_reset="earliest")
    async def read_taken(taken: Taken, message: Message) -> None:
        await found.put(("taken", taken, message))

    @broker.subscriber(app.topic("orders"), auto_offset_reset="earliest")
    async def read_order(order_id: str, amount: Decimal, message: Message) -> None:
        await found.put(("order", (order_id, amount), message))

    store = f"sqlite:{tmp_path / 'store.db'}"
    async with broker, app.running(broker=f"kafka://{kafka}", store=store) as running:
        await broker.start()
        amount = Decimal("12345678901234567.89")
        reference = await running.publish(PlaceOrder(order_id="ö-1", amount=amount))
        async with asyncio.timeout(WAIT_S):
            read = {kind: (each, message) for kind, each, message in [await found.get(), await found.get()]}
    assert read["order"][0] == ("ö-1", amount)
    assert read["taken"][0] == Taken(order_id="ö-1", amount=amount, note="größer als 1 €")
    headers = read["taken"][1].headers
    assert headers["content-type"] == "application/json"
    assert headers["ce_type"] == "order.taken"
    assert headers["ce_correlationid"] == headers["ce_causationid"] == reference.id
    raw = read["taken"][1].raw_message
    assert not isinstance(raw, tuple)
    assert raw.key == "ö-1".encode()


def envelope(**more: object) -> dict[str, object]:
    """A structured event, but for its data."""
    return {"specversion": "1.0", "id": str(uuid4()), "source": "urn:shop", "type": "order.placed", **more}


ORDER = {"order_id": "o-1", "amount": "17.50"}
WRITTEN: dict[str, tuple[bytes, tuple[Header, ...]]] = {
    # Go (sarama), Java (kafka-clients): the binding to the letter; Java adds no charset, JavaScript does.
    "go": (orjson.dumps(envelope(datacontenttype="application/json", data=ORDER)), (("content-type", STRUCTURED),)),
    "javascript": (
        json.dumps(envelope(time="2026-11-23T12:00:00.000Z", data=ORDER), indent=2).encode(),
        (("content-type", STRUCTURED + b"; charset=utf-8"),),
    ),
    # Data that is bytes to the sender travels as base64.
    "java": (
        orjson.dumps(
            envelope(
                datacontenttype="application/json",
                subject="o-1",
                data_base64="eyJvcmRlcl9pZCI6Im8tMSIsImFtb3VudCI6IjE3LjUwIn0=",
            )
        ),
        (("content-type", STRUCTURED),),
    ),
    # cloudevents 1.x for Python (kafka.to_structured): the data's content type as the header, or no header at all.
    "python": (json.dumps(envelope(data=ORDER)).encode(), (("content-type", b"application/json"),)),
    "python, bare": (json.dumps(envelope(data=ORDER)).encode(), ()),
    # Attributes of other types than text, an extension, trace context within, a producer's own header beside it.
    "extensions": (
        orjson.dumps(
            envelope(
                sequence=7,
                urgent=True,
                traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                dataschema="https://example.org/order",
                data=ORDER,
            )
        ),
        (("Content-Length", b"17"), ("content-type", b"Application/CloudEvents+JSON")),
    ),
}


async def test_choreo_reads_what_other_sdks_write(kafka: str, tmp_path: Path) -> None:
    """Structured mode in the ways it is found on topics, all in one run."""
    app, placed = make_app()
    await make_topics(kafka, app)
    async with app.running(broker=f"kafka://{kafka}", store=f"sqlite:{tmp_path / 'store.db'}") as running:
        topic = app.topic("orders")
        records = [ProducerRecord(topic, None, value, headers) for value, headers in WRITTEN.values()]
        await running.transport.send(records)
        counts = next(iter(running.workers.values())).counts
        async with asyncio.timeout(WAIT_S):
            while counts["handled"] + counts["dead_letters"] < len(records):  # noqa: ASYNC110  # a count, no event
                await asyncio.sleep(0.02)
        taken = await running.transport.scan([app.topic("taken")], since_ms=0)
    assert counts["dead_letters"] == 0
    assert placed == [PlaceOrder(order_id="o-1", amount=Decimal("17.50"))] * len(records)
    sent = {json.loads(value)["id"] for value, _ in WRITTEN.values()}
    assert {(dict(each.headers)["ce_causationid"] or b"").decode() for each in taken} == sent
    assert sum("traceparent" in dict(each.headers) for each in taken) == 1
