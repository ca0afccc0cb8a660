"""Which instrument the environment gives, and what becomes of a service when its tracing is in trouble."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from opentelemetry import trace

from choreo.telemetry.setup import instrument_from_environment
from choreo.telemetry.silent import NoInstrument
from choreo.telemetry.spans import OtelInstrument
from choreo.testing.otlp import OtlpReceiver
from tests.integration.tracing import SAMPLED, event, hop, instruments, trace_one, unit, unset_otel, warnings_of


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the surroundings' own tracing."""
    unset_otel(monkeypatch)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """A collector, with the environment pointing at it."""
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    ],
)
def test_tracing_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Without a word about traces, or with one against them, headers pass through and nothing is recorded."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with instruments("inventory") as (inventory,):
        assert isinstance(inventory, NoInstrument)
        placed = event("o-1", "order.placed", traceparent="as it was", tracestate="so it stays")
        emitted = hop(inventory, unit("inventory", "orders", placed), "stock", "stock.reserved")
        published, end = inventory.publish("orders", placed)
        end(None)
    assert (emitted.traceparent, emitted.tracestate) == ("as it was", "so it stays")
    assert published is placed


def test_tracing_that_is_off_imports_no_tracer() -> None:
    """A process that is not traced pays nothing for OpenTelemetry, neither SDK nor API."""
    program = (
        "import sys; from choreo.telemetry.setup import instrument_from_environment as make;"
        "make('inventory', system='kafka').close();"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_service_name_wins_only_where_a_service_is_alone(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_SERVICE_NAME renames the only service of a process, and cannot give two of them one name."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,team=red")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "stock-keeping")
    with instruments("inventory", alone=True) as (inventory,):
        trace_one(inventory)
    with instruments("inventory") as (inventory,):
        trace_one(inventory)
    spans = receiver.spans()
    assert [span.service for span in spans] == ["stock-keeping"] * 2 + ["inventory"] * 2
    assert [span.attributes.get("choreo.service") for span in spans] == ["inventory"] * 2 + [None] * 2
    assert {span.resource["team"] for span in spans} == {"red"}


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_spans_arrive(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    """The SDK's compression is honoured."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    with instruments("inventory") as (inventory,):
        trace_one(inventory)
    assert len(receiver.spans()) == 2


async def test_spans_arrive_while_the_service_runs(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_BSP_* is honoured, and one instrument's end is not the end of the others."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with instruments("inventory", "shipping") as (inventory, shipping):
        shipping.close()
        shipping.close()
        trace_one(inventory)
        assert len(await receiver.wait_for(2)) == 2
        with pytest.raises(TimeoutError, match="inventory: send stock"):
            await receiver.wait_for(lambda spans: len(spans) == 3, timeout_s=0.05)


def test_console_prints_spans(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """OTEL_TRACES_EXPORTER=console writes to the standard output."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with instruments("inventory") as (inventory,):
        trace_one(inventory)
    assert "process orders" in capsys.readouterr().out


def test_failures_of_the_tracer_are_contained(caplog: pytest.LogCaptureFixture) -> None:
    """A tracer that raises at every turn costs the spans and nothing else, and is said once a moment."""

    class Broken(trace.NoOpTracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return BrokenTracer()

    class BrokenTracer(trace.NoOpTracer):
        def start_span(self, *args: Any, **kwargs: Any) -> NoReturn:
            raise RuntimeError("no span today")

    instrument = OtelInstrument("inventory", tracer_provider=Broken(), system="kafka")
    for _ in range(3):
        placed = event("o-1", "order.placed", traceparent=SAMPLED)
        emitted = hop(instrument, unit("inventory", "orders", placed), "stock", "stock.reserved")
        published, end = instrument.publish("orders", placed)
        end(None)
        assert emitted.traceparent == published.traceparent == SAMPLED
    instrument.close()
    assert warnings_of(caplog) == [
        f"tracing failed at {moment} and the service goes on: RuntimeError" for moment in ("process", "publish")
    ]


def test_provider_that_records_nothing_forwards(caplog: pytest.LogCaptureFixture) -> None:
    """With OpenTelemetry's own no-op provider an instrument is one that forwards."""
    instrument = OtelInstrument("inventory", tracer_provider=trace.NoOpTracerProvider(), system="kafka")
    for header in (SAMPLED, None):
        placed = event("o-1", "order.placed", traceparent=header)
        emitted = hop(instrument, unit("inventory", "orders", placed), "stock", "stock.reserved")
        assert emitted.traceparent == header
        assert instrument.publish("orders", placed)[0].traceparent == header
    assert warnings_of(caplog) == []


def test_setup_that_fails_costs_only_the_spans(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable the SDK chokes on is one warning."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    assert isinstance(instrument_from_environment("inventory", system="kafka"), NoInstrument)
    (warning,) = warnings_of(caplog)
    assert warning.startswith("tracing of inventory cannot be set up and is off: ValueError")
