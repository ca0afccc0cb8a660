"""Metrics over real HTTP to a receiver, and what becomes of a service whose collector takes none."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from choreo.testing.otlp import OtlpReceiver
from handlers.order_fulfilment.app import app
from handlers.order_fulfilment.events import OrderPlaced
from handlers.order_fulfilment.orders import read, shipped_lines
from tests.integration.killing import SERVICES, TARGET, Fleet
from tests.integration.tracing import unset_otel, warnings_of
from tests.unit.test_metrics import Asked
from tests.unit.test_metrics import app as tea

EMBEDDED: dict[str, Any] = {"broker": "embedded::memory:", "create_topics": True, "create_schema": True}


NAMES = (
    "messaging.client.sent.messages",
    "messaging.client.consumed.messages",
    "messaging.client.operation.duration",
    "choreo.store.operation.duration",
    "choreo.lag.records",
    "choreo.lag.time",
    "choreo.handlers.limit",
)


def missing(receiver: OtlpReceiver) -> list[str]:
    """Metrics that have not come yet from both of the services that consume and send."""
    return [name for name in NAMES if not {"inventory", "payments"} <= {p.service for p in receiver.points(name)}]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """A collector, with the environment pointing at it."""
    unset_otel(monkeypatch)
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


async def test_metrics_of_four_processes_arrive(
    receiver: OtlpReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process says its service's name; the conventions' metrics and choreo's come, though nothing is sampled."""
    orders = [content for _, content in read(shipped_lines()) if isinstance(content, OrderPlaced)][:5]
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    fleet = Fleet(tmp_path, f"embedded:{tmp_path}/flow.db", {"OTEL_METRIC_EXPORT_INTERVAL": "300"})
    assert fleet.run("topics", "apply", TARGET).returncode == 0
    try:
        for service in SERVICES:
            fleet.start(service)
        async with app.running([], broker=f"embedded:{tmp_path}/flow.db") as publishing:
            for order in orders:
                await publishing.publish(order)
        await fleet.at_rest()
        await receiver.wait_for(lambda _: not missing(receiver), timeout_s=20.0)
        assert fleet.drain() == dict.fromkeys(SERVICES, 0)
    finally:
        fleet.end()
    assert receiver.spans() == []
    reserved = [
        point
        for point in receiver.points("choreo.handler.events")
        if point.attributes["choreo.handler"] == "reserve" and point.attributes["choreo.outcome"] == "handled"
    ]
    assert (reserved[-1].service, reserved[-1].kind, reserved[-1].value) == ("inventory", "sum", len(orders))
    durations = [
        p for p in receiver.points("messaging.process.duration") if p.attributes["choreo.handler"] == "reserve"
    ]
    assert (durations[-1].kind, durations[-1].unit, durations[-1].value) == ("histogram", "s", len(orders))
    assert durations[-1].bounds[:3] == (0.005, 0.01, 0.025)
    assert durations[-1].total > 0
    assert durations[-1].schema_url == "https://opentelemetry.io/schemas/1.44.0"


async def test_a_collector_that_takes_no_metrics_is_one_warning(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As Jaeger, which takes traces only: the service does its work, and the end is bounded."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{receiver.endpoint}/v1/nothing")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    async with tea.running(**EMBEDDED) as running:
        await running.publish(Asked(who="Ann"))
        await receiver.wait_for(lambda _: receiver.requests.count(404) > 2)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 6.0
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"metrics cannot be sent to {receiver.endpoint}/v1/nothing and are lost until they can")


@pytest.mark.parametrize(
    ("variable", "value", "wanted"),
    [
        ("OTEL_METRICS_EXPORTER", "none", False),
        ("OTEL_SDK_DISABLED", "true", False),
        ("OTEL_TRACES_EXPORTER", "none", True),
    ],
)
async def test_metrics_are_exported_where_the_variables_ask_for_it(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, wanted: bool
) -> None:
    """Metrics and traces are asked for each by its own variable; what is counted last arrives at the end."""
    monkeypatch.setenv(variable, value)
    async with tea.running(**EMBEDDED) as running:
        await running.publish(Asked(who="Ann"))
    assert bool(receiver.points("messaging.client.sent.messages")) is wanted


async def test_console_prints_metrics(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """OTEL_METRICS_EXPORTER=console writes to the standard output."""
    unset_otel(monkeypatch)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "console")
    async with tea.running(**EMBEDDED) as running:
        await running.publish(Asked(who="Ann"))
    assert "messaging.client.sent.messages" in capsys.readouterr().out
