"""Log records and spans of handlers: whose they are, on whatever thread they are made."""

import asyncio
import io
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from choreo import App, Context, Event, Service
from choreo.cli.logs import JsonLines
from choreo.context import invocation
from choreo.telemetry.correlating import FIELDS, CorrelationFilter
from choreo.testing import TestApp
from tests.integration.tracing import unset_otel

log = logging.getLogger("some.library")
tracer = trace.get_tracer("application")


class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    """Somebody wants tea."""

    who: str


kitchen = Service("kitchen")


def work(where: str) -> None:
    """What a library does that knows nothing of choreo."""
    with tracer.start_as_current_span(where):
        log.info(where)


@kitchen.handler(Asked)
async def in_a_task(asked: Asked) -> None:
    """On the event loop, and from there on a thread."""
    work("in a task")
    await asyncio.to_thread(work, "in its thread")


@kitchen.handler(Asked)
def in_a_thread(asked: Asked) -> None:
    """On a thread of the pool."""
    work("in a thread")


@kitchen.handler(Asked)
def in_the_commit(asked: Asked, db: sqlite3.Connection, ctx: Context) -> None:
    """On SQLite's thread, inside the commit."""
    work("in the commit")
    ctx.log.info("said by the context")


HANDLERS = {
    "in a task": "in_a_task",
    "in its thread": "in_a_task",
    "in a thread": "in_a_thread",
    "in the commit": "in_the_commit",
}


@asynccontextmanager
async def hook(ctx: Context) -> AsyncIterator[None]:
    """A hook with a span of its own, in which the handler's are."""
    with tracer.start_as_current_span(f"hook of {ctx.about['handler']}"):
        yield


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """A provider that the application has set for its process."""
    unset_otel(monkeypatch)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(tracer, "_real_tracer", None, raising=False)  # a proxy remembers whom it stood in for
    return exporter


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a logging handler with the filter writes as JSON."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    handler.addFilter(CorrelationFilter())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


def said(lines: io.StringIO, message: str) -> dict[str, Any]:
    """The one line with that message."""
    (found,) = [each for each in map(json.loads, lines.getvalue().splitlines()) if each["message"] == message]
    return dict(found)


async def tea(app: App, path: Path) -> str:
    """Run the app on a file until one event is handled by all; returns its correlation id."""
    async with app.running(broker=f"embedded:{path}", create_topics=True, create_schema=True) as running:
        reference = await running.publish(Asked(who="Ann"))
        async with asyncio.timeout(20.0):
            while running.workers["kitchen"].counts["handled"] < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    return reference.correlation_id


def by_name(own: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """Spans of the application's own."""
    return {span.name: span for span in own.get_finished_spans() if not span.name.startswith(("process", "send"))}


def parent_of(own: InMemorySpanExporter, span: ReadableSpan) -> ReadableSpan:
    """The span above."""
    (found,) = [
        each
        for each in own.get_finished_spans()
        if each.context and span.parent and each.context.span_id == span.parent.span_id
    ]
    return found


@pytest.mark.parametrize("hooked", [False, True])
async def test_spans_of_handlers_nest_wherever_they_run(
    own: InMemorySpanExporter, tmp_path: Path, hooked: bool
) -> None:
    """On the loop, on a thread, and on SQLite's thread inside the commit; hooks are in between."""
    await tea(App(kitchen, around=[hook] if hooked else []), tmp_path / "tea.db")
    spans = by_name(own)
    for name, handler in HANDLERS.items():
        parent = parent_of(own, spans[name])
        if name == "in its thread" or hooked:
            assert parent.name == f"hook of {handler}" if hooked else True
            parent = parent_of(own, parent) if hooked else parent
        assert parent.name == "process asks", name
        assert parent.attributes is not None
        assert parent.attributes["choreo.handler"] == handler
    assert len({span.context.trace_id for span in own.get_finished_spans() if span.context}) == 1


async def test_log_records_say_whose_they_are(own: InMemorySpanExporter, lines: io.StringIO, tmp_path: Path) -> None:
    """Trace, span, flow, service and handler, on every thread, whoever logs; nothing of it outside of a handler."""
    correlation_id = await tea(App(kitchen), tmp_path / "tea.db")
    spans = by_name(own)
    for name, handler in HANDLERS.items():
        line, context = said(lines, name), spans[name].context
        assert context is not None
        assert line["trace_id"] == f"{context.trace_id:032x}"
        assert line["span_id"] == f"{context.span_id:016x}"
        assert (line["service"], line["handler"]) == ("kitchen", handler)
        assert (line["correlation_id"], line["event_type"], line["attempt"]) == (correlation_id, "tea.asked", 1)
    assert said(lines, "said by the context")["handler"] == "in_the_commit"
    log.info("outside")
    assert not set(said(lines, "outside")) & set(FIELDS)
    assert invocation.get() is None


async def test_without_a_tracer_the_trace_id_is_the_events(
    monkeypatch: pytest.MonkeyPatch, lines: io.StringIO
) -> None:
    """A process that traces nothing still says which trace its logs belong to, and which flow."""
    unset_otel(monkeypatch)
    header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with TestApp(App(kitchen)) as t:
        instrument = t.running.publisher._instrument
        assert instrument is not None
        publish = instrument.publish
        monkeypatch.setattr(
            instrument, "publish", lambda topic, envelope, key: publish(topic, envelope.traced(header, None), key)
        )
        await t.publish(Asked(who="Ann"), id="1")
        await t.settle()
    line = said(lines, "in the commit")
    assert line["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert "span_id" not in line
    assert line["correlation_id"] == "1"


async def test_what_a_handler_sets_off_is_not_about_it(
    monkeypatch: pytest.MonkeyPatch, lines: io.StringIO, own: InMemorySpanExporter
) -> None:
    """A commit that begins where a handler ended holds other units too: its log records name none, and no span."""
    bar = Service("bar")

    @bar.handler(Asked)
    async def pour(asked: Asked) -> None:
        log.info("poured")

    async with TestApp(App(bar)) as t:
        store = t.running.stores["bar"]
        commit = store.commit

        async def logged(request: Any) -> Any:
            log.info("committed" if request.finished else "moved on")
            return await commit(request)

        monkeypatch.setattr(store, "commit", logged)
        await t.publish(Asked(who="Ann"))
        await t.settle()
    assert set(said(lines, "poured")) >= {"trace_id", "handler"}
    assert not set(said(lines, "committed")) & set(FIELDS)


async def test_failures_are_logged_with_their_flow(lines: io.StringIO) -> None:
    """What choreo itself says of an attempt and a dead letter can be found by the correlation id."""
    bar = Service("bar")

    @bar.handler(Asked)
    async def refuse(asked: Asked) -> None:
        raise LookupError

    async with TestApp(App(bar)) as t:
        await t.publish(Asked(who="Ann"), id="1")
        await t.settle()
    ours = [each for each in map(json.loads, lines.getvalue().splitlines()) if each["logger"] == "choreo.worker"]
    assert len(ours) == 6, "five attempts and a dead letter"
    assert {(each["correlation_id"], each["service"], each["handler"]) for each in ours} == {("1", "bar", "refuse")}


def test_what_a_record_says_itself_is_kept() -> None:
    """`extra=` wins, and every field is there for a format string to name."""
    record = logging.makeLogRecord({"msg": "x", "correlation_id": "mine"})
    assert CorrelationFilter().filter(record)
    assert record.__dict__["correlation_id"] == "mine"
    assert [record.__dict__[name] for name in FIELDS if name != "correlation_id"] == [""] * (len(FIELDS) - 1)
