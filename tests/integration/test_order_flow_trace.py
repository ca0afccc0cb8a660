"""One declined order through four processes is one trace: the true causal tree, span by span."""

from pathlib import Path

import pytest

from choreo.publisher import Publisher
from choreo.runtime.clock import SystemClock
from choreo.telemetry.setup import instrument_from_environment
from choreo.testing.otlp import OtlpReceiver, tree
from handlers.order_fulfilment.app import app
from handlers.order_fulfilment.events import OrderPlaced
from handlers.order_fulfilment.orders import read, shipped_lines
from tests.integration.killing import SERVICES, TARGET, Fleet
from tests.integration.tracing import unset_otel

Expected = tuple[str, str, str, list["Expected"]]


def send(service: str, topic: str, *caused: Expected) -> Expected:
    """A `send` span and the `process` spans it caused."""
    return service, f"send {topic}", "PRODUCER", list(caused)


def process(service: str, topic: str, *sent: Expected) -> Expected:
    """A `process` span and the `send` spans below it."""
    return service, f"process {topic}", "CONSUMER", list(sent)


DECLINED = send(
    "app",
    "orders",
    process(
        "inventory",
        "orders",
        send(
            "inventory",
            "stock",
            process(
                "payments",
                "stock",
                send(
                    "payments",
                    "payments",
                    process("inventory", "payments", send("inventory", "stock")),  # the goods are released
                    process("notifications", "payments"),
                    process("payments", "payments"),  # the books
                ),
            ),
        ),
    ),
    process("notifications", "orders"),
)
SPANS = 10


async def test_declined_order_is_one_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, kinds, parents and services, from the export of four processes and the one that published."""
    unset_otel(monkeypatch)
    orders = (content for _, content in read(shipped_lines()) if isinstance(content, OrderPlaced))
    declined = next(order for order in orders if order.payment_token == "tok_declined_expired_card")
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        fleet = Fleet(tmp_path, f"embedded:{tmp_path}/flow.db", {"OTEL_BSP_SCHEDULE_DELAY": "100"})
        assert fleet.run("topics", "apply", TARGET).returncode == 0
        try:
            for service in SERVICES:
                fleet.start(service)
            async with fleet.transport() as transport:
                instrument = instrument_from_environment(app.name, system=transport.system)
                publisher = Publisher(transport, instrument, SystemClock(), topic=app.topic, source=f"/{app.name}")
                await publisher.publish(declined)
                instrument.close()
            await receiver.wait_for(SPANS, timeout_s=20.0)
            await fleet.at_rest()
            assert fleet.drain() == dict.fromkeys(SERVICES, 0)
        finally:
            fleet.end()
        spans = receiver.spans()
    assert tree(spans) == [DECLINED]
    assert len({span.trace_id for span in spans}) == 1
    assert [span for span in spans if span.status == "ERROR"] == []
