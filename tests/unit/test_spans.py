"""How spans hang together, which flows are sampled, what an unsampled one costs; by the SDK's in-memory exporter."""

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler

import choreo
from choreo import App, ConfigurationError, Event, Service
from choreo.envelope import Envelope
from choreo.ports import Instrument, Peer
from choreo.telemetry import pipeline, spans
from choreo.telemetry.sampling import FlowRatio
from choreo.telemetry.setup import TraceMode, configured, instrument_from_environment
from choreo.telemetry.spans import OtelInstrument
from choreo.testing import TestApp
from tests.integration.tracing import SAMPLED, SPAN, TRACE, UNSAMPLED, event, hop, unit, unset_otel, warnings_of

Recorded = Callable[[], tuple[ReadableSpan, ...]]
FLOWS = 2_000
SAMPLE = Decision.RECORD_AND_SAMPLE


def recording(**settings: Any) -> tuple[OtelInstrument, Recorded]:
    """An instrument, and the spans it has recorded."""
    exporter, sampler = InMemorySpanExporter(), settings.pop("sampler", None)
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument = OtelInstrument("inventory", tracer_provider=provider, system="kafka", **settings)
    return instrument, exporter.get_finished_spans


def placed(traceparent: str | None = SAMPLED, *, flow: str = "o-1") -> Envelope:
    """The event that begins a flow."""
    return Envelope(f"{flow}-id", "/web", "order.placed", correlationid=flow, traceparent=traceparent)


def process_of(found: tuple[ReadableSpan, ...]) -> ReadableSpan:
    """The one `process` span."""
    (process,) = [span for span in found if span.name.startswith("process ")]
    return process


def ends_of(span: ReadableSpan) -> tuple[str | None, list[tuple[str, dict[str, Any]]]]:
    """The parent's span id, and each link's with its attributes."""
    links = [(f"{link.context.span_id:016x}", dict(link.attributes or {})) for link in span.links]
    return f"{span.parent.span_id:016x}" if span.parent else None, links


@pytest.mark.parametrize(
    ("mode", "parent", "links"),
    [
        ("parent", SPAN, []),
        ("link", None, [(SPAN, {})]),
        ("both", SPAN, [(SPAN, {"opentracing.ref_type": "child_of"})]),
    ],
)
def test_trace_mode_decides_how_a_process_span_hangs(
    mode: TraceMode, parent: str | None, links: list[tuple[str, dict[str, Any]]]
) -> None:
    """Below its sender, linked to it, or both; what the handler sends is below it in every mode."""
    instrument, recorded = recording(mode=mode)
    hop(instrument, unit("inventory", "orders", placed()), "stock", "stock.reserved")
    process = process_of(recorded())
    assert ends_of(process) == (parent, links)
    (send,) = [span for span in recorded() if span.name == "send stock"]
    assert send.parent is not None
    assert process.context is not None
    assert send.parent.span_id == process.context.span_id


@pytest.mark.parametrize("mode", ["parent", "link", "both"])
@pytest.mark.parametrize("why", ["old", "told"])
def test_what_is_old_or_told_to_begins_a_trace_of_its_own(mode: TraceMode, why: str) -> None:
    """A hop older than `split_after_s`, a timer and a replay are roots with one plain link to their cause."""
    instrument, recorded = recording(mode=mode, split_after_s=60.0)
    work = unit("inventory", "orders", placed(), age_s=61.0 if why == "old" else 0.0)
    work = work._replace(new_trace=why == "told")
    hop(instrument, work, "stock", "stock.reserved")
    assert ends_of(process_of(recorded())) == (None, [(SPAN, {})])


def test_a_young_hop_does_not_split() -> None:
    """Below the age it stays in the trace of its sender."""
    instrument, recorded = recording(split_after_s=60.0)
    hop(instrument, unit("inventory", "orders", placed(), age_s=58.0), "stock", "stock.reserved")
    assert ends_of(process_of(recorded())) == (SPAN, [])


def test_a_replay_is_published_into_a_trace_of_its_own() -> None:
    """`publish(new_trace=True)` leaves the header of the new trace, whatever runs around it."""
    instrument, recorded = recording()
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(7, 7, False, trace.TraceFlags(1)))):
        again, end = instrument.publish("orders", placed(), b"A-1", new_trace=True)
    end(None)
    (send,) = recorded()
    assert ends_of(send) == (None, [(SPAN, {})])
    assert again.traceparent is not None
    assert TRACE not in again.traceparent
    assert send.attributes is not None
    assert send.attributes["messaging.kafka.message.key"] == "A-1"


def test_a_publish_that_fails_says_the_error_by_its_full_name() -> None:
    """`error.type` and the status, and nothing of the message."""
    instrument, recorded = recording()
    _, end = instrument.publish("orders", placed(None))
    end(choreo.errors.TransportError("password hunter2"))
    (send,) = recorded()
    assert send.attributes is not None
    assert send.attributes["error.type"] == "choreo.errors.TransportError"
    assert send.status.status_code is trace.StatusCode.ERROR
    assert "hunter2" not in send.to_json()


def test_spans_say_whom_the_client_talks_to() -> None:
    """Client id, cluster and address are on every span, at creation: a sampler sees them."""
    seen: list[dict[str, Any]] = []

    class Looks(FlowRatio):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(dict(args[4] if len(args) > 4 else kwargs["attributes"]))
            return super().should_sample(*args, **kwargs)

    peer = Peer("choreo", "kafka.example", 9092, "5L6g3nShT-eMCtK--X86sw")
    instrument, _ = recording(peer=peer, sampler=Looks(1.0))
    hop(instrument, unit("inventory", "orders", placed()), "stock", "stock.reserved")
    told = {
        "messaging.client.id": "choreo",
        "messaging.kafka.cluster.id": "5L6g3nShT-eMCtK--X86sw",
        "server.address": "kafka.example",
        "server.port": 9092,
    }
    assert [told.items() <= each.items() for each in seen] == [True, True]
    assert {"messaging.system", "messaging.operation.name", "messaging.destination.name"} <= set(seen[1])


def test_dead_attribute_names_do_not_occur() -> None:
    """Names that the conventions have dropped are in no module of choreo's but for those that read others' spans."""
    dead = re.compile(
        r"""["']messaging\.(operation|kafka\.consumer\.group|kafka\.message\.offset|"""
        r"""kafka\.destination\.partition)["']|\.record_exception\("""
    )
    assert dead.search('"messaging.operation"'), "the expression finds what it is for"
    root = Path(choreo.__file__).parent
    modules = [path for path in root.rglob("*.py") if path.relative_to(root).parts[0] != "flow"]
    assert root / "telemetry" / "spans.py" in modules
    assert [path.name for path in modules if dead.search(path.read_text())] == []


# ---- sampling


def sampled_flows(sampler: Sampler) -> set[str]:
    """Flows whose root is sampled, each in a trace of its own."""
    instrument, recorded = recording(sampler=sampler)
    for number in range(FLOWS):
        hop(instrument, unit("inventory", "orders", placed(None, flow=f"o-{number}")), "stock", "stock.reserved")
    processes = [span for span in recorded() if span.name == "process orders"]
    return {str((span.attributes or {})["messaging.message.conversation_id"]) for span in processes}


def test_every_root_of_a_flow_is_sampled_or_none() -> None:
    """Two services that know nothing of each other choose the same flows, about as many as asked for."""
    first, second = (sampled_flows(ParentBased(FlowRatio(0.25))) for _ in range(2))
    assert first == second
    assert 0.2 * FLOWS < len(first) < 0.3 * FLOWS
    assert first < sampled_flows(FlowRatio(0.5)), "a larger share holds the smaller one"


def test_the_ends_of_the_ratio_and_roots_without_a_flow() -> None:
    """All, none, and by the trace id where there is no correlation id; no ratio beyond 1."""
    always, half, never = FlowRatio(1.0), FlowRatio(0.5), FlowRatio(0.0)
    for attributes in ({"messaging.message.conversation_id": "o-1"}, None):
        assert always.should_sample(None, 2**64 - 1, "x", attributes=attributes).decision is SAMPLE
        assert never.should_sample(None, 0, "x", attributes=attributes).decision is Decision.DROP
    assert half.should_sample(None, 2**63 - 1, "x").decision is SAMPLE
    assert half.should_sample(None, 2**63, "x").decision is Decision.DROP
    with pytest.raises(ValueError, match=r"1\.5"):
        FlowRatio(1.5)


def test_a_split_agrees_with_its_flow() -> None:
    """Hops that begin traces of their own are recorded for all of a flow's events or for none."""
    instrument, recorded = recording(sampler=ParentBased(FlowRatio(0.5)), mode="link")
    for number in range(50):
        emitted, end = instrument.publish("orders", placed(None, flow=f"o-{number}"))
        end(None)
        for topic in ("stock", "payments"):
            sent = hop(instrument, unit("inventory", "orders", emitted), topic, f"{topic}.done")
            emitted = emitted._replace(traceparent=sent.traceparent)
    ours = [span for span in recorded() if span.name in ("send orders", "process orders")]
    numbers = Counter((span.attributes or {})["messaging.message.conversation_id"] for span in ours)
    assert set(numbers.values()) == {3}, "the send that began it, and two process spans"
    assert 10 < len(numbers) < 40


@pytest.mark.parametrize(
    ("sampler", "argument", "description"),
    [
        ("parentbased_traceidratio", "0.25", "ParentBased{root:FlowRatio{0.25}"),
        ("traceidratio", "0.5", "FlowRatio{0.5}"),
        ("parentbased_traceidratio", "many", "ParentBased{root:FlowRatio{1.0}"),
        ("parentbased_always_off", "", "ParentBased{root:AlwaysOffSampler"),
    ],
)
def test_the_standard_variables_choose_the_sampler(
    monkeypatch: pytest.MonkeyPatch, sampler: str, argument: str, description: str
) -> None:
    """A ratio is one of flows; every other sampler is the SDK's own."""
    unset_otel(monkeypatch)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    provider = pipeline.provider("inventory", pipeline.Pipeline([]), alone=True)
    assert provider.sampler.get_description().startswith(description)


# ---- unsampled


class Counts(trace.TracerProvider):
    """A provider that counts what is asked of it."""

    def __init__(self) -> None:
        self.calls = 0

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        """The one tracer."""
        counts = self

        class Tracer(trace.NoOpTracer):
            def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
                counts.calls += 1
                return super().start_span(*args, **kwargs)

        return Tracer()


@pytest.mark.parametrize("mode", ["parent", "link", "both"])
async def test_an_unsampled_unit_asks_nothing_of_the_tracer(monkeypatch: pytest.MonkeyPatch, mode: TraceMode) -> None:
    """No span and no attributes, not for an old hop and not for a publish; the headers leave byte for byte."""
    provider, dicts = Counts(), 0

    def counted(*args: Any) -> dict[str, Any]:
        nonlocal dicts
        dicts += 1
        return {}

    monkeypatch.setattr(spans, "of_process", counted)
    monkeypatch.setattr(spans, "of_send", counted)
    instrument = OtelInstrument("inventory", tracer_provider=provider, system="kafka", mode=mode)

    async def handler() -> None: ...

    for age_s in (0.0, 86_400.0):
        come = event("o-1", "order.placed", traceparent=UNSAMPLED, tracestate="a=1, b=2")
        span = instrument.process(unit("inventory", "orders", come, age_s=age_s), now_s=time.time())
        span.attach()
        await handler()
        span.attempt_failed(1, ValueError())
        emitted = span.sending("stock", event("s-1", "stock.reserved"), b"A-1")
        span.finish("handled", attempts=2)
        assert (emitted.traceparent, emitted.tracestate) == (UNSAMPLED, "a=1, b=2")
        published, end = instrument.publish("orders", come, new_trace=True)
        end(None)
        assert published is come
    assert (provider.calls, dicts) == (0, 0)
    hop(instrument, unit("inventory", "orders", placed()), "stock", "stock.reserved")
    assert (provider.calls, dicts) == (1, 1), "the counters count"


# ---- the application's own provider


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """A provider that the application has set for its process."""
    unset_otel(monkeypatch)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def spans_of(instrument: Instrument, own: InMemorySpanExporter) -> list[str]:
    """Names of what one hop and the instrument's end leave in the application's exporter."""
    hop(instrument, unit("inventory", "orders", placed()), "stock", "stock.reserved")
    instrument.close()
    return [span.name for span in own.get_finished_spans()]


def test_the_applications_provider_is_used(own: InMemorySpanExporter, caplog: pytest.LogCaptureFixture) -> None:
    """Without a word in OTEL_*: spans go where the application's own go, and closing leaves its provider alone."""
    instrument = instrument_from_environment("inventory", system="kafka")
    assert spans_of(instrument, own) == ["send stock", "process orders"]
    trace.get_tracer("application").start_span("still there").end()
    assert own.get_finished_spans()[-1].name == "still there"
    assert warnings_of(caplog) == []


def test_the_applications_provider_wins_over_the_variables(
    own: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not exported twice where OTEL_* ask for an exporter too."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert len(spans_of(instrument_from_environment("inventory", system="kafka"), own)) == 2
    assert pipeline._shared is None, "no exporter of choreo's own was made"


def test_a_provider_that_was_not_set_is_none() -> None:
    """OpenTelemetry's stand-ins record nothing, and count for nothing."""
    assert trace.get_tracer_provider() is not None
    assert configured("traces") is None


# ---- a whole app


class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    """Somebody wants tea."""

    who: str


kitchen = Service("kitchen")


@kitchen.handler(Asked)
async def pour(asked: Asked) -> None:
    """Pour."""


async def processed(own: InMemorySpanExporter, *, after_s: float, **settings: Any) -> ReadableSpan:
    """The `process` span of an event that lies on the log for `after_s` before it is fetched."""
    async with TestApp(App(kitchen), **settings) as t:
        await t.settle()
        worker = t.running.workers["kitchen"]
        for partition in worker.engine.partitions:
            worker.consumer.pause(partition)
        await t.publish(Asked(who="Ann"))
        t.clock.move_to(t.clock.now_s() + after_s)
        for partition in worker.engine.partitions:
            worker.consumer.resume(partition)
        await t.settle()
    return process_of(own.get_finished_spans())


@pytest.mark.parametrize(
    ("settings", "after_s", "parent", "links"),
    [
        ({}, 3500.0, True, 0),
        ({}, 3700.0, False, 1),
        ({"trace_split_after_s": 60.0}, 61.0, False, 1),
        ({"trace_mode": "link"}, 0.0, False, 1),
        ({"trace_mode": "both"}, 0.0, True, 1),
    ],
)
async def test_an_app_is_told_how_its_spans_hang(
    own: InMemorySpanExporter, settings: dict[str, Any], after_s: float, parent: bool, links: int
) -> None:
    """`trace_mode` and `trace_split_after_s` are settings of a run; by default it is the parent, and an hour."""
    span = await processed(own, after_s=after_s, **settings)
    assert ((span.parent is not None), len(span.links)) == (parent, links)


async def test_an_unknown_trace_mode_is_refused() -> None:
    """With those there are."""
    with pytest.raises(ConfigurationError, match="'child' is none of parent, link, both"):
        async with TestApp(App(kitchen), trace_mode="child"):
            pass
