"""What the tracing tests share: records as a log would hand them over, and one hop of a flow."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from choreo.envelope import Envelope, write
from choreo.ports import Instrument, UnitInfo
from choreo.record import Record
from choreo.telemetry.setup import instrument_from_environment

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"


def unset_otel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the environment of the tests says of tracing."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def event(id_: str, type_: str, *, traceparent: str | None = None, tracestate: str | None = None) -> Envelope:
    """An event of the flow `o-1`."""
    return Envelope(id_, "/web", type_, correlationid="o-1", traceparent=traceparent, tracestate=tracestate)


def unit(service: str, topic: str, envelope: Envelope, *, age_s: float = 0.0) -> UnitInfo:
    """The unit of `service`'s only handler for a record that is `age_s` old."""
    timestamp_ms = int((time.time() - age_s) * 1000)
    record = Record(topic, 3, 42, b"order-1", b"{}", write(envelope), timestamp_ms)
    return UnitInfo(service, f"{service}-group", "handle", record, envelope)


def hop(instrument: Instrument, work: UnitInfo, topic: str, type_: str) -> Envelope:
    """Handle one event and emit one; returns what was emitted."""
    span = instrument.process(work, now_s=time.time())
    emitted = event(f"{type_}-id", type_)
    context = span.sending(topic, emitted)
    span.finish("handled", attempts=1)
    return emitted.traced(*context)


def trace_one(instrument: Instrument) -> None:
    """Record a process and a send span."""
    hop(instrument, unit("inventory", "orders", event("o-1", "order.placed")), "stock", "stock.reserved")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Whatever reached the log at WARNING or above, from anybody."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextmanager
def instruments(*services: str, alone: bool = False) -> Iterator[list[Instrument]]:
    """Instruments from the environment, closed at the end."""
    made = [instrument_from_environment(service, system="kafka", alone=alone) for service in services]
    try:
        yield made
    finally:
        for instrument in made:
            instrument.close()
