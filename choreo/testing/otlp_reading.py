"""Spans and data points as they came over the wire: OTLP in protobuf, read into plain values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """A span event."""

    name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span as it came over the wire.

    Attributes:
        service: `service.name` of its resource.
        kind: INTERNAL, SERVER, CLIENT, PRODUCER or CONSUMER.
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        parent_id: The same, or None for a root.
        status: UNSET, OK or ERROR.
        links: (trace id, span id) of each.
        resource: All attributes of its resource.
        schema_url: Of its instrumentation scope.
    """

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str | None
    attributes: Mapping[str, Any]
    events: tuple[ReceivedEvent, ...]
    status: str
    links: tuple[tuple[str, str], ...]
    start_ns: int
    end_ns: int
    resource: Mapping[str, Any]
    schema_url: str


@dataclass(frozen=True, slots=True)
class ReceivedPoint:
    """One data point of a metric as it came over the wire.

    Attributes:
        service: `service.name` of its resource.
        kind: `sum`, `gauge` or `histogram`.
        value: Of a histogram, how many were recorded.
        total: Of a histogram, the sum of what was recorded.
        bounds: Of a histogram, where its buckets end.
        schema_url: Of its instrumentation scope.
    """

    service: str
    name: str
    unit: str
    kind: str
    attributes: Mapping[str, Any]
    value: float
    total: float
    bounds: tuple[float, ...]
    schema_url: str


def parse(body: bytes) -> Iterable[ReceivedSpan]:
    """The spans of one OTLP request in protobuf.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    return spans_of(ExportTraceServiceRequest.FromString(body))


def spans_of(request: ExportTraceServiceRequest) -> Iterable[ReceivedSpan]:
    """The same, of a request that is read."""
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _received(span, resource, scope_spans.schema_url)


def parse_metrics(body: bytes) -> Iterable[ReceivedPoint]:
    """The data points of one OTLP request in protobuf.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    for resource_metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        service = str(_attributes(resource_metrics.resource.attributes).get("service.name", ""))
        for scope_metrics in resource_metrics.scope_metrics:
            for metric in scope_metrics.metrics:
                yield from _points(metric, service, scope_metrics.schema_url)


def _points(metric: metrics_pb2.Metric, service: str, schema_url: str) -> Iterable[ReceivedPoint]:
    kind = str(metric.WhichOneof("data"))
    for point in getattr(metric, kind).data_points:
        value, total, bounds = 0.0, 0.0, ()  # type: float, float, tuple[float, ...]
        if kind == "histogram":
            value, total, bounds = point.count, point.sum, tuple(point.explicit_bounds)
        else:
            value = getattr(point, point.WhichOneof("value"))
        found = _attributes(point.attributes)
        yield ReceivedPoint(service, metric.name, metric.unit, kind, found, value, total, bounds, schema_url)


def _received(span: trace_pb2.Span, resource: Mapping[str, Any], schema_url: str) -> ReceivedSpan:
    return ReceivedSpan(
        service=str(resource.get("service.name", "")),
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        attributes=_attributes(span.attributes),
        events=tuple(ReceivedEvent(event.name, _attributes(event.attributes)) for event in span.events),
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        resource=resource,
        schema_url=schema_url,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)
