"""Topics of services that know neither choreo nor CloudEvents, on a real Kafka: their headers are a flow."""

import asyncio
import json
import time
from uuid import uuid4

from choreo.ports import TopicSpec
from choreo.transports.kafka import KafkaTransport
from tests.integration.bare_client import bare_producer
from tests.tea_app import choreo

ORDERS = 5


async def written(servers: str, orders: str, stock: str, start_ms: int) -> None:
    """Each order and, but for the last, what came of it 50 ms later, in a trace of their own."""
    transport = KafkaTransport(servers)
    await transport.open()
    try:
        await transport.create_topics([TopicSpec(orders, 1, 1), TopicSpec(stock, 1, 1)])
    finally:
        await transport.close()
    async with bare_producer(servers) as producer:
        for number in range(ORDERS):
            at_ms = start_ms + number * 100
            headers = [("traceparent", f"00-{number + 1:032x}-00000000000000aa-01".encode())]
            await producer.send_and_wait(orders, b"<order/>", timestamp_ms=at_ms, headers=headers)
            if number < ORDERS - 1:
                await producer.send_and_wait(stock, b"\x00\x01", timestamp_ms=at_ms + 50, headers=headers)
        await producer.send_and_wait(stock, b"without a trace", timestamp_ms=start_ms + 60_000)


def test_headers_on_a_real_kafka_are_a_flow(kafka: str) -> None:
    """Topics as events, the guess from the order within a trace, and the order that led to nothing."""
    orders, stock = (f"{name}-{uuid4()}" for name in ("orders", "stock"))
    start_ms = int(time.time() * 1000) - 600_000
    asyncio.run(written(kafka, orders, stock, start_ms))
    where = ("graph", "--observed", "--broker", f"kafka://{kafka}")
    result = choreo(*where, "--topics", f"{orders},{stock}", "--format", "json")
    found = json.loads(result.stdout)
    (edge,) = found["edges"]
    assert (edge["source"], edge["target"]) == (f"event:{orders}", f"event:{stock}")
    assert (edge["count"], edge["guessed"], edge["p50_ms"], edge["p95_ms"]) == (ORDERS - 1, True, 50.0, 50.0)
    assert f"1 of {ORDERS} {orders} led to nothing, as {ORDERS - 1} others did" in result.stderr
    assert "give --topics" in choreo(*where, code=2).stderr
    assert "the broker has no topic gone" in choreo(*where, "--topics", "gone", code=2).stderr
