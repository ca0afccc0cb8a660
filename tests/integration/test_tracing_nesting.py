"""Spans of a handler's own, with the application's own provider and, under `choreo run`, without."""

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from choreo.ports import Span
from choreo.telemetry.spans import OtelInstrument
from choreo.testing.otlp import OtlpReceiver, tree
from tests.integration.tracing import SAMPLED, event, unit, unset_otel


async def invoked(span: Span, handler: Callable[[], Awaitable[Any]]) -> Any:
    """As a worker does it: in a context of its own."""
    span.attach()
    return await handler()


async def test_spans_of_a_handler_nest_in_coroutines_and_threads() -> None:
    """Whatever a handler traces itself hangs below its process span, nothing is left behind where it began."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("application")
    instrument = OtelInstrument("inventory", tracer_provider=provider, system="kafka")

    def plain() -> str:
        with tracer.start_as_current_span("in a thread"):
            return "done"

    async def handler() -> str:
        assert baggage.get_baggage("tenant") == "tea", "what is around is there, too"
        with tracer.start_as_current_span("in a task"):
            return await asyncio.to_thread(plain)

    async def fails() -> None:
        raise LookupError

    with tracer.start_as_current_span("ambient") as ambient:
        otel_context.attach(baggage.set_baggage("tenant", "tea"))
        span = instrument.process(unit("inventory", "orders", event("o-1", "order.placed")), now_s=time.time())
        assert await asyncio.create_task(invoked(span, handler)) == "done"
        with pytest.raises(LookupError):
            await asyncio.create_task(invoked(span, fails))
        span.finish("handled", attempts=1)
        assert trace.get_current_span() is ambient
        published, end = instrument.publish("orders", event("o-2", "order.placed")._replace(traceparent=SAMPLED))
        end(TimeoutError("card 4111"))
        end(None)
    instrument.close()
    parents = {made.name: made.parent.span_id if made.parent else None for made in exporter.get_finished_spans()}
    ids = {made.name: made.context.span_id for made in exporter.get_finished_spans() if made.context}
    assert parents["process orders"] is None, "the true cause counts, not what runs around it"
    assert parents["in a task"] == ids["process orders"]
    assert parents["in a thread"] == ids["in a task"]
    assert parents["send orders"] == ids["ambient"]
    send = exporter.get_finished_spans()[-2]
    assert send.attributes is not None
    assert send.attributes["error.type"] == "TimeoutError"
    assert send.attributes["choreo.service"] == "inventory", "the provider's resource does not say it"
    assert published.traceparent is not None


def test_handler_that_is_abandoned_leaves_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    """A coroutine that is closed outside the task it ran in, as a dying loop does, is closed without a word."""
    instrument = OtelInstrument("inventory", tracer_provider=TracerProvider(shutdown_on_exit=False), system="kafka")
    span = instrument.process(unit("inventory", "orders", event("o-1", "order.placed")), now_s=time.time())
    call = invoked(span, _Forever)
    contextvars.copy_context().run(call.send, None)
    call.close()
    assert caplog.records == []


class _Forever:
    """Awaitable that never comes to an end."""

    def __await__(self) -> Generator[None, None, None]:
        while True:
            yield


TEA = """
from opentelemetry import trace

from choreo import App, Event, Service

tracer = trace.get_tracer("application")  # before there is a provider

class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    who: str

class Poured(Event, type="tea.poured", version=1, topic="pours", key="who"):
    who: str

kitchen, bell = Service("kitchen"), Service("bell")

@kitchen.handler(Asked)
def pour(asked: Asked) -> Poured:
    with tracer.start_as_current_span("pouring"):
        return Poured(who=asked.who)

@bell.handler(Poured)
async def ring(poured: Poured) -> None:
    tracer.start_span("ringing").end()

app = App(kitchen, bell)
"""


def test_spans_of_handlers_go_with_their_service_under_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, two services, no provider of the application's: each span is its service's, below its process."""
    unset_otel(monkeypatch)
    (tmp_path / "tea.py").write_text(TEA)
    monkeypatch.chdir(tmp_path)
    choreo = [sys.executable, "-m", "choreo"]
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        monkeypatch.setenv("CHOREO_BROKER", "embedded:tea.db")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
        for command in (["topics", "apply", "tea:app"], ["publish", "tea:app", "tea.asked", "who=Ann"]):
            subprocess.run([*choreo, *command], check=True, capture_output=True)
        process = subprocess.Popen([*choreo, "run", "tea:app"], stderr=subprocess.PIPE)
        try:
            spans = asyncio.run(receiver.wait_for(6, timeout_s=20.0))
            process.send_signal(signal.SIGTERM)
            _, logs = process.communicate(timeout=20)
        finally:
            process.kill()
    assert b"WARN" not in logs
    ringing: tuple[Any, ...] = ("bell", "process pours", "CONSUMER", [("bell", "ringing", "INTERNAL", [])])
    pouring: tuple[Any, ...] = ("kitchen", "pouring", "INTERNAL", [])
    assert tree(spans) == [
        (
            "app",
            "send asks",
            "PRODUCER",
            [("kitchen", "process asks", "CONSUMER", [pouring, ("kitchen", "send pours", "PRODUCER", [ringing])])],
        )
    ]
