"""Spans recorded the quick way are, to a receiver, those of the SDK: message by message, as protobuf."""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from choreo.envelope import Envelope
from choreo.ports import Peer, Span, UnitInfo
from choreo.record import Record
from choreo.telemetry import pipeline
from choreo.telemetry.encoding import varint
from choreo.telemetry.exporting import ENCODED, Request
from choreo.telemetry.kinds import KINDS_MAX, Kinds
from choreo.telemetry.quick import Quick, QuickUnit
from choreo.telemetry.spans import OtelInstrument
from tests.integration.tracing import SAMPLED, unset_otel

OTHER = SpanContext(7, 8, True, TraceFlags(1))
Play = Callable[[Span], Awaitable[None]]


class Kept:
    """A queue."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def put(self, span: Any) -> None:
        self.spans.append(span)


def unit(*, key: bytes | None = b"order-1", offset: int = 42, traceparent: str = SAMPLED, **about: Any) -> UnitInfo:
    given = {"version": 2, "correlationid": "flow-1", "traceparent": traceparent, **about}
    envelope = Envelope(given.pop("id", "o-1"), "/web", "order.placed", **given)
    return UnitInfo("inventory", "inventory", "reserve", Record("orders", 3, offset, key, b"{}", (), 0), envelope)


def instrument(quick: bool) -> tuple[OtelInstrument, Callable[[], ExportTraceServiceRequest]]:
    """One that records in either way, and the request that its spans go in."""
    provider = TracerProvider(resource=Resource.create({"service.name": "inventory"}), shutdown_on_exit=False)
    kept, exporter = Kept(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = OtelInstrument(
        "inventory",
        tracer_provider=provider,
        system="kafka",
        peer=Peer("choreo-1", "broker", 9092, "cluster"),
        quick=(lambda always: Quick(always, provider, [kept.put])) if quick else None,
    )

    def request() -> ExportTraceServiceRequest:
        spans: list[Any] = kept.spans + list(exporter.get_finished_spans())
        assert bool(kept.spans) is quick
        return parsed(spans)

    return made, request


def parsed(spans: list[Any]) -> ExportTraceServiceRequest:
    """What a receiver makes of them."""
    request = ExportTraceServiceRequest()
    request.MergeFromString(Request(spans).SerializePartialToString())
    return request


def normal(request: ExportTraceServiceRequest) -> str:
    """The request as text, ids by the order they come in, times gone, attributes sorted."""
    ids: dict[bytes, bytes] = {}
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
                assert len(span.span_id) == 8
                assert len(span.trace_id) == 16
                span.start_time_unix_nano = span.end_time_unix_nano = 1
                if not span.status.code:
                    span.ClearField("status")  # an empty one says the same
                for event in span.events:
                    event.time_unix_nano = 1
                    event.attributes.sort(key=lambda each: each.key)
                span.attributes.sort(key=lambda each: each.key)
            for span in sorted(scope_spans.spans, key=lambda each: each.name):
                ids.setdefault(span.span_id, b"%08d" % len(ids))
            for span in scope_spans.spans:
                span.span_id = ids[span.span_id]
                span.parent_span_id = ids.get(span.parent_span_id, span.parent_span_id)
    return str(request)


async def handled(span: Span) -> None:
    async def handler() -> None:
        assert trace.get_current_span().is_recording()

    span.attach()
    await handler()
    span.sending("stock", Envelope("s-1", "/inventory", "stock.reserved", version=1, correlationid="flow-1"), b"k")
    span.sending("a", Envelope("s-2", "/inventory", "stock.reserved"))
    span.finish("handled", attempts=1)
    span.finish("handled", attempts=2)


async def dropped(span: Span) -> None:
    span.sending("stock", Envelope("s-1", "/inventory", "stock.reserved", correlationid="flow-1"), b"\xff")
    span.finish("dropped", attempts=1)


async def dead(span: Span) -> None:
    span.sending("inventory.dlq", Envelope("o-1", "/web", "order.placed"), b"order-1")
    span.finish("dead_letter", attempts=1, error_type="invalid_data")


async def tried_again(span: Span) -> None:
    span.sending("lost", Envelope("s-1", "/inventory", "stock.reserved"), b"k")
    span.attempt_failed(1, ValueError("not told"))
    await handled(span)


async def annotated(span: Span) -> None:
    async def handler() -> None:
        own = trace.get_current_span()
        own.set_attribute("messaging.kafka.offset", 7)
        own.set_attributes({"text": "t", "yes": True, "number": -3, "part": 0.5, "many": ["a", "b"], "raw": b"\xff"})
        own.set_attribute("choreo.outcome", "overwritten at the end")
        own.add_event("looked", {"where": "shelf"})
        own.add_event("bare")
        own.add_link(OTHER, {"why": "because"})
        own.set_status(Status(StatusCode.ERROR, "told"))
        own.set_status(StatusCode.UNSET)

    span.attach()
    await handler()
    span.finish("handled", attempts=1)
    trace.get_current_span().set_attribute("late", "lost")


async def settled_and_renamed(span: Span) -> None:
    async def handler() -> None:
        own = trace.get_current_span()
        own.update_name("another name")
        own.set_status(StatusCode.OK)
        own.set_status(StatusCode.ERROR, "not any more")

    span.attach()
    await handler()
    span.finish("dead_letter", attempts=1, error_type="handler_failed")


async def failed_with_a_status(span: Span) -> None:
    async def handler() -> None:
        trace.get_current_span().set_status(StatusCode.ERROR, "told by the handler")
        for number in range(200):
            trace.get_current_span().add_event(f"e{number}")
            trace.get_current_span().set_attribute(f"a{number}", number)

    span.attach()
    await handler()
    span.finish("dead_letter", attempts=1, error_type=None)


async def fanned_out(span: Span) -> None:
    for number in range(10):
        span.sending(f"{number}", Envelope("s-1", "/inventory", "stock.reserved", correlationid="flow-1"), b"k")
    span.finish("dropped", attempts=1)


async def sent_twice(span: Span) -> None:
    for version in (1, 2):
        span.sending("stock", Envelope("s-1", "/inventory", "stock.reserved", version), b"k")
    span.finish("handled", attempts=1)


PLAYS: list[Play] = [handled, sent_twice, fanned_out, dropped, dead, tried_again, annotated, settled_and_renamed]
UNITS = {
    "usual": unit(),
    "no key": unit(key=None),
    "a key that is no text": unit(key=b"\xff\xfe"),
    "a key beyond ASCII": unit(key="Größe".encode()),
    "long": unit(id="i" * 1024, correlationid="c" * 124, key=b"k" * 1024),
    "longer than kept": unit(key=b"k" * 1025, correlationid="c" * 125),
    "of lengths that take two bytes": unit(key=b"k" * 126, correlationid="c" * 128),
    "far in the log": unit(offset=2**62),
    "no version, no flow": unit(version=None, correlationid=""),
    "of a random trace": unit(traceparent=f"{SAMPLED[:-2]}03"),
}


async def both(play: Play, about: UnitInfo) -> list[ExportTraceServiceRequest]:
    requests = []
    for quick in (True, False):
        made, request = instrument(quick)
        span = made.process(about, now_s=0.0)
        assert isinstance(span, QuickUnit) is quick
        await play(span)
        requests.append(request())
    return requests


@pytest.mark.parametrize("play", PLAYS, ids=lambda play: play.__name__)
async def test_a_unit_is_told_as_the_sdk_tells_it(play: Play) -> None:
    """Whatever became of it, and whatever its handler added."""
    quick, slow = await both(play, unit())
    assert normal(quick) == normal(slow)


@pytest.mark.parametrize("name", UNITS)
async def test_an_event_is_told_as_the_sdk_tells_it(name: str) -> None:
    """Short ids and long ones, with a key and without."""
    quick, slow = await both(handled, UNITS[name])
    assert normal(quick) == normal(slow)


async def test_limits_are_those_of_the_sdk() -> None:
    """128 of a kind, the latest; how many attributes went is not compared, as ours count for none there."""
    requests = await both(failed_with_a_status, unit())
    quick, slow = (request.resource_spans[0].scope_spans[0].spans[0] for request in requests)
    assert [event.name for event in quick.events] == [event.name for event in slow.events]
    assert (quick.dropped_events_count, quick.status) == (slow.dropped_events_count, slow.status)
    assert quick.dropped_attributes_count == 200 - 128


async def test_what_is_sent_names_its_span() -> None:
    """The next service's parent is the `send` span, in the same trace, sampled."""
    made, request = instrument(True)
    span = made.process(unit(), now_s=0.0)
    sent = span.sending("stock", Envelope("s-1", "/inventory", "stock.reserved"), b"k")
    span.finish("handled", attempts=1)
    late = span.sending("stock", Envelope("s-2", "/inventory", "stock.reserved"), b"k")
    send, process = request().resource_spans[0].scope_spans[0].spans
    assert sent.traceparent == f"00-{send.trace_id.hex()}-{send.span_id.hex()}-01"
    assert late.traceparent == f"00-{send.trace_id.hex()}-{process.span_id.hex()}-01"
    assert SAMPLED.startswith(f"00-{send.trace_id.hex()}-{process.parent_span_id.hex()}")


@pytest.mark.parametrize(
    "about",
    [
        unit(tracestate="vendor=1"),
        UnitInfo("s", "g", "h", Record("orders", 0, 1, None, None, (), 0), unit().envelope),
        unit()._replace(new_trace=True),
        UnitInfo("s", "g", "h", unit().record._replace(timestamp_ms=1), unit().envelope),
    ],
    ids=["tracestate", "tombstone", "new trace", "old"],
)
def test_what_is_unusual_is_left_to_the_sdk(about: UnitInfo) -> None:
    """And leaves in the same request."""
    made, _ = instrument(True)
    assert not isinstance(made.process(about, now_s=1e9), QuickUnit)


@pytest.mark.parametrize("state", [None, "vendor=1"])
@pytest.mark.parametrize("flags", ["00", "02"])
async def test_what_is_not_sampled_is_no_span_and_its_handler_sees_its_sender(flags: str, state: str | None) -> None:
    """What the handler sends goes on with the header that came, byte for byte."""
    made, _ = instrument(True)
    traceparent = f"{SAMPLED[:-2]}{flags}"
    span = made.process(unit(traceparent=traceparent, tracestate=state), now_s=0.0)
    assert not isinstance(span, QuickUnit)

    async def handler() -> SpanContext:
        own = trace.get_current_span()
        assert not own.is_recording()
        assert traceparent[36:52] in repr(own)
        return own.get_span_context()

    seen = await asyncio.create_task(invoked(span, handler))
    assert f"00-{seen.trace_id:032x}-{seen.span_id:016x}-{seen.trace_flags:02x}" == traceparent
    assert seen.is_remote
    assert dict(seen.trace_state) == ({"vendor": "1"} if state else {})
    sent = span.sending("stock", Envelope("s-1", "/inventory", "stock.reserved"))
    assert (sent.traceparent, sent.tracestate) == (traceparent, state)


async def invoked(span: Span, handler: Callable[[], Awaitable[Any]]) -> Any:
    """As a worker does it: in a context of its own."""
    span.attach()
    return await handler()


def test_spans_of_both_kinds_and_of_two_services_leave_together() -> None:
    """Each service's below its own resource."""
    spans: list[Any] = []
    for service in ("a", "b"):
        provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        kept = Kept()
        unit_of = Quick({}, provider, [kept.put]).begin(unit(), SAMPLED)
        assert unit_of is not None
        unit_of.finish("handled", attempts=1)
        spans += kept.spans
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("own").start_span("own").end()
    spans += exporter.get_finished_spans()
    request = parsed(spans)
    found = [
        (each.resource.attributes[-1].value.string_value, scope.scope.name, [span.name for span in scope.spans])
        for each in request.resource_spans
        for scope in each.scope_spans
    ]
    assert [each[1:] for each in found] == [("choreo", ["process orders"])] * 2 + [("own", ["own"])]
    assert {each[0] for each in found} == {"a", "b"}


def test_the_exporters_still_call_what_is_replaced() -> None:
    """Else every span is the SDK's: slower, and as right."""
    assert ENCODED
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

    assert "_translate_data" in vars(Grpc)


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_SAMPLER": "always_on"},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "10"},
        {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "10"},
        {"OTEL_TRACES_EXPORTER": "otlp,console"},
    ],
    ids=str,
)
def test_where_more_is_asked_for_all_spans_are_the_sdks(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits, samplers that look at every span, an exporter of another kind."""
    unset_otel(monkeypatch)
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **variables}.items():
        monkeypatch.setenv(name, value)
    names = variables.get("OTEL_TRACES_EXPORTER", "otlp").split(",")
    made = pipeline.Pipeline([pipeline.exporter(name, "http/protobuf", "there") for name in names])
    provider = TracerProvider(shutdown_on_exit=False)
    assert pipeline.quick(provider, made, {}) is None
    monkeypatch.delenv(next(iter(variables)))
    alone = pipeline.Pipeline(made.exporters[:1])
    assert pipeline.quick(provider, alone, {}) is not None
    for each in (made, alone):
        each.close()


def test_kinds_are_bounded() -> None:
    """A sender that makes up a type for every event fills no memory."""
    kinds = Kinds({})
    for number in range(KINDS_MAX + 10):
        kinds.send(("stock", number), "stock", Envelope("i", "/s", f"type.{number}"), None)
    assert len(kinds.known) <= KINDS_MAX


def test_varints_are_those_of_protobuf() -> None:
    """By the protobuf library's own reading of them."""
    chance = random.Random(7)
    for number in [0, 1, 127, 128, 16_383, 16_384, 2**63 - 1, *(chance.getrandbits(63) for _ in range(200))]:
        span = ExportTraceServiceRequest.FromString(b"").resource_spans.add().scope_spans.add().spans.add()
        span.MergeFromString(b"\x50" + varint(number % 2**32))  # dropped_attributes_count
        assert span.dropped_attributes_count == number % 2**32


def test_what_waits_for_its_export_holds_no_record() -> None:
    """Nor its payload, of which a queue of spans would hold thousands."""
    provider, kept = TracerProvider(shutdown_on_exit=False), Kept()
    payload = bytes(bytearray(100))
    held = sys.getrefcount(payload)
    about = unit()
    about = about._replace(record=about.record._replace(value=payload))
    begun = Quick({}, provider, [kept.put]).begin(about, SAMPLED)
    assert begun is not None
    assert sys.getrefcount(payload) == held + 1
    del about
    begun.finish("handled", attempts=1)
    assert sys.getrefcount(payload) == held
    assert kept.spans == [begun]


@pytest.mark.parametrize(
    ("sends_max", "sends", "counts"),
    [(0, 8, [1] * 9), (1, 8, [2, 2, 2, 2, 1]), (8, 8, [9]), (0, 1, [1, 1]), (1, 1, [2]), (0, 0, [1])],
)
def test_the_sends_of_one_unit_wait_in_parts(sends_max: int, sends: int, counts: list[int]) -> None:
    """Each counted, none told twice: a queue that is bounded by its length is so by its spans."""
    provider, kept = TracerProvider(shutdown_on_exit=False), Kept()
    begun = Quick({}, provider, [kept.put], sends_max).begin(unit(), SAMPLED)
    assert begun is not None
    for number in range(sends):
        begun.sending("stock", Envelope(f"s-{number}", "/inventory", "stock.reserved"), b"k")
    begun.finish("handled", attempts=1)
    assert [spans.count for spans in kept.spans] == counts
    found = [span for each in parsed(kept.spans).resource_spans for span in each.scope_spans[0].spans]
    assert len({span.span_id for span in found}) == len(found) == sends + 1
    assert [span.name for span in found] == ["send stock"] * sends + ["process orders"]
    assert all(span.parent_span_id == found[-1].span_id for span in found[:-1])


def test_spans_that_cannot_be_told_cost_no_others() -> None:
    """Those of its batch are sent."""
    provider, kept = TracerProvider(shutdown_on_exit=False), Kept()
    quick = Quick({}, provider, [kept.put])
    for id_ in ("o-1", "\udc00", "o-2"):
        begun = quick.begin(unit(id=id_), SAMPLED)
        assert begun is not None
        begun.finish("handled", attempts=1)
    (found,) = parsed(kept.spans).resource_spans
    ids = [each.value.string_value for span in found.scope_spans[0].spans for each in span.attributes]
    assert [id_ for id_ in ids if id_.startswith("o-")] == ["o-1", "o-2"]
