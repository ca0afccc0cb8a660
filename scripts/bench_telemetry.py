"""What telemetry costs a unit: one event handled, one emitted; thread CPU time, the best of several rounds.

off         no instrument that records: header read and forwarded
unsampled   tracing on, the event's header says no
metrics     counted and timed, not traced
traced      a `process` and a `send` span of the SDK's into a processor that drops them
otlp        the same as they are made for OTLP alone: from a template, encoded
both        traced, counted and timed
"""

import time
from collections.abc import Callable

from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from choreo.envelope import Envelope, write
from choreo.ports import Instrument, UnitInfo
from choreo.record import Record
from choreo.telemetry.metering import meters
from choreo.telemetry.quick import Quick
from choreo.telemetry.silent import NoInstrument
from choreo.telemetry.spans import OtelInstrument

UNITS, ROUNDS = 2_000, 7
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"


def unit(traceparent: str) -> UnitInfo:
    """One event for one handler."""
    envelope = Envelope("o-1", "/web", "order.placed", correlationid="o-1", traceparent=traceparent)
    record = Record("orders", 3, 42, b"order-1", b"{}", write(envelope), int(time.time() * 1000))
    return UnitInfo("inventory", "inventory", "reserve", record, envelope)


def cost_us(instrument: Instrument, traceparent: str) -> float:
    """Microseconds of this thread's CPU a unit."""
    work, now_s = unit(traceparent), time.time()
    emitted = Envelope("s-1", "/inventory", "stock.reserved", correlationid="o-1", traceparent=traceparent)
    best = float("inf")
    for _ in range(ROUNDS):
        begin_s = time.thread_time()
        for _ in range(UNITS):
            span = instrument.process(work, now_s=now_s)
            span.sending("stock", emitted, b"order-1")
            span.finish("handled", attempts=1)
        best = min(best, time.thread_time() - begin_s)
    return best / UNITS * 1e6


def main() -> None:
    """Print one line for each instrument."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    counting = MeterProvider(
        [InMemoryMetricReader()], exemplar_filter=AlwaysOffExemplarFilter(), shutdown_on_exit=False
    )
    counts = meters(counting, system="kafka")
    traced = OtelInstrument("inventory", tracer_provider=provider, system="kafka")
    otlp = OtelInstrument(
        "inventory",
        tracer_provider=provider,
        system="kafka",
        quick=lambda always: Quick(always, provider, [SpanProcessor()]),
    )
    rows: dict[str, Callable[[], float]] = {
        "off": lambda: cost_us(NoInstrument(), TRACE + "1"),
        "unsampled": lambda: cost_us(traced, TRACE + "0"),
        "metrics": lambda: cost_us(counts.instrument("inventory", NoInstrument()), TRACE + "1"),
        "traced": lambda: cost_us(traced, TRACE + "1"),
        "otlp": lambda: cost_us(otlp, TRACE + "1"),
        "both": lambda: cost_us(counts.instrument("inventory", traced), TRACE + "1"),
    }
    for name, measure in rows.items():
        print(f"{name:10} {measure():7.2f} us a unit")


if __name__ == "__main__":
    main()
