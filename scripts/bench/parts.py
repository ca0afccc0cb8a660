"""What the parts of an event cost without any server: the core's steps, and telemetry. CPU time of one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from choreo.core.engine import Engine
from choreo.core.messages import (
    Assigned,
    Claim,
    Claimed,
    Commit,
    Committed,
    Effect,
    Fetched,
    Invoke,
    Returned,
)
from choreo.core.retry import RetryPolicy
from choreo.core.units import Delivery, Unit
from choreo.envelope import Envelope, write
from choreo.ports import Claimed as Verdict
from choreo.ports import Instrument, UnitInfo
from choreo.record import Record, TopicPartition
from choreo.telemetry import aggregating
from choreo.telemetry.metering import meters
from choreo.telemetry.quick import Quick
from choreo.telemetry.silent import NoInstrument
from choreo.telemetry.spans import OtelInstrument
from scripts.bench.markdown import prose, table
from scripts.bench.stage import Stage

TITLE = "Parts: the core's steps, and telemetry"
CORE_UNITS, BATCH, LANES, CORE_RUNS = 50_000, 500, 1_000, 3
TELEMETRY_UNITS, TELEMETRY_ROUNDS = 2_000, 7
PARTITION = TopicPartition("orders", 0)
FRESH = Verdict("fresh")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"
MEANING = {
    "off": "no instrument that records: header read and forwarded",
    "unsampled": "tracing on, the event's header says no",
    "metrics": "counted and timed, not traced",
    "traced": "a `process` and a `send` span of the SDK's into a processor that drops them",
    "otlp": "the same as they are made for OTLP alone: from a template, encoded",
    "both": "traced, counted and timed",
}


# ---- the core


def units() -> list[Unit]:
    """Units of `LANES` keys in turn, ready to be fetched."""
    retry = RetryPolicy()
    return [
        Unit(
            PARTITION,
            offset,
            offset % LANES,
            "reserve",
            offset.to_bytes(16, "big"),
            b"12345678",
            correlation_id="flow",
            derived=True,
            transacts=False,
            retry=retry,
        )
        for offset in range(CORE_UNITS)
    ]


def engine_loop(work: list[Unit]) -> int:
    """Take every unit from fetch to commit; returns how many were committed."""
    engine, done = Engine(), 0
    engine.step(Assigned(PARTITION, 0), 0.0)
    for start in range(0, CORE_UNITS, BATCH):
        deliveries = [Delivery(unit.offset, 100, 0, (unit,)) for unit in work[start : start + BATCH]]
        queue: list[Effect] = engine.step(Fetched(PARTITION, deliveries, 0), 0.0)
        while queue:
            effects, queue = queue, []
            for effect in effects:
                if isinstance(effect, Invoke):
                    queue += engine.step(Returned(effect.unit, None), 0.0)
                elif isinstance(effect, Claim):
                    queue += engine.step(Claimed(effect.units, [FRESH] * len(effect.units)), 0.0)
                elif isinstance(effect, Commit):
                    done += len(effect.units)
                    queue += engine.step(Committed(effect.flush), 0.0)
    return done


def bare_loop(work: list[Unit]) -> int:
    """The least anybody could do: enter each key into a dict and take it out again."""
    keys: dict[bytes, Unit] = {}
    done = 0
    for unit in work:
        keys[unit.digest] = unit
        if keys.pop(unit.digest) is unit:
            done += 1
    return done


def seconds(loop: Callable[[list[Unit]], int]) -> Iterator[float]:
    """CPU seconds of each run."""
    for _ in range(CORE_RUNS):
        work = units()
        begin_s = time.thread_time()
        done = loop(work)
        yield time.thread_time() - begin_s
        assert done == CORE_UNITS, done


# ---- telemetry


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
    for _ in range(TELEMETRY_ROUNDS):
        begin_s = time.thread_time()
        for _ in range(TELEMETRY_UNITS):
            span = instrument.process(work, now_s=now_s)
            span.sending("stock", emitted, b"order-1")
            span.finish("handled", attempts=1)
        best = min(best, time.thread_time() - begin_s)
    return best / TELEMETRY_UNITS * 1e6


def _encode(spans: Any) -> None:
    """What the exporter does with them, at once."""
    spans.encoded()


def telemetry() -> dict[str, float]:
    """Microseconds a unit of each instrument."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    counting = MeterProvider(
        [InMemoryMetricReader()],
        exemplar_filter=AlwaysOffExemplarFilter(),
        shutdown_on_exit=False,
        views=aggregating.views(),
    )
    counts = meters(counting, system="kafka", many=True)
    traced = OtelInstrument("inventory", tracer_provider=provider, system="kafka")
    otlp = OtelInstrument(
        "inventory",
        tracer_provider=provider,
        system="kafka",
        quick=lambda always: Quick(always, provider, [_encode]),
    )
    rows: dict[str, Callable[[], float]] = {
        "off": lambda: cost_us(NoInstrument(), TRACE + "1"),
        "unsampled": lambda: cost_us(traced, TRACE + "0"),
        "metrics": lambda: cost_us(counts.instrument("inventory", NoInstrument()), TRACE + "1"),
        "traced": lambda: cost_us(traced, TRACE + "1"),
        "otlp": lambda: cost_us(otlp, TRACE + "1"),
        "both": lambda: cost_us(counts.instrument("inventory", traced), TRACE + "1"),
    }
    return {name: cost() for name, cost in rows.items()}


def measure(stage: Stage) -> dict[str, Any]:
    """The best of several runs each, in this process."""
    del stage
    bare_us, engine_us = (min(seconds(loop)) / CORE_UNITS * 1e6 for loop in (bare_loop, engine_loop))
    return {"dict_us": bare_us, "core_us": engine_us, "telemetry": telemetry()}


def lines(found: dict[str, Any]) -> list[str]:
    """What the core takes, and a table of telemetry."""
    text = f"""The core takes a unit from fetch to commit in {found["core_us"]:.1f} us,
    {found["core_us"] / found["dict_us"]:.0f} times a key's way into a dict and out again ({CORE_UNITS:,} units,
    {LANES:,} lanes, batches of {BATCH}, best of {CORE_RUNS} runs). Telemetry of a unit, one event handled and one
    emitted:"""
    rows = [(name, f"{us:.1f}", MEANING[name]) for name, us in found["telemetry"].items()]
    return [*prose(text), *table(("instrument", "us", "what it does"), rows)]
