"""Spans as Jaeger tells them, in either of its dialects, and which of them belong to a flow. No I/O."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CONVERSATION = "messaging.message.conversation_id"
MESSAGE = "messaging.message.id"
KEY = "messaging.kafka.message.key"


@dataclass(slots=True)
class Span:
    """One span, as far as it is shown."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    duration_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message_id(self) -> str | None:
        """Id of the event that it sends or processes; None for any other span."""
        found = self.attributes.get(MESSAGE)
        return str(found) if found and self.attributes.get("messaging.operation.name") else None

    @property
    def processes(self) -> bool:
        """Whether it is a handler's; else, if it has a message id, it sends."""
        return self.attributes.get("messaging.operation.name") == "process"

    @property
    def event_source(self) -> str:
        """CloudEvents source of its event."""
        return str(self.attributes.get("cloudevents.event_source", ""))

    @property
    def event_type(self) -> str:
        """CloudEvents type of its event."""
        return str(self.attributes.get("cloudevents.event_type", ""))

    @property
    def handler(self) -> str:
        """The handler's name, without its service's."""
        return str(self.attributes.get("choreo.handler", ""))

    @property
    def outcome(self) -> str:
        """What became of the event, as choreo says it; else whether the span ended in an error."""
        told = self.attributes.get("choreo.outcome")
        return str(told) if told else "failed" if self.attributes.get("error.type") else "handled"

    @property
    def attempts(self) -> int | None:
        """None where the span does not say."""
        return _int(self.attributes.get("choreo.attempts"))

    @property
    def place(self) -> tuple[str, int, int] | None:
        """Topic, partition and offset of what it processes, if it says all three."""
        topic = self.attributes.get("messaging.destination.name")
        partition = _int(self.attributes.get("messaging.destination.partition.id"))
        offset = _int(self.attributes.get("messaging.kafka.offset"))
        return None if not topic or partition is None or offset is None else (str(topic), partition, offset)


def of_flow(spans: Iterable[Span], correlation_id: str) -> list[Span]:
    """Spans of the traces that have a span of the flow, but for other flows that share the trace."""
    spans = list(spans)
    traces = {span.trace_id for span in spans if span.attributes.get(CONVERSATION) == correlation_id}
    return [
        span
        for span in spans
        if span.trace_id in traces and span.attributes.get(CONVERSATION, correlation_id) == correlation_id
    ]


def flows_of(spans: Iterable[Span], name: str, attributes: Collection[str], trace_id: str | None = None) -> list[str]:
    """Correlation ids of spans that have `name` in one of `attributes`, or are of the trace; in order of time."""
    found = [
        span
        for span in spans
        if span.trace_id == trace_id or any(str(span.attributes.get(each)) == name for each in attributes)
    ]
    ids = (span.attributes.get(CONVERSATION) for span in sorted(found, key=lambda each: each.start_ns))
    return list(dict.fromkeys(str(each) for each in ids if each))


def read_v1(body: Mapping[str, Any]) -> list[Span]:
    """Spans of an answer of `/api/traces`."""
    spans = []
    for trace in body.get("data") or ():
        services = {key: process.get("serviceName", "") for key, process in (trace.get("processes") or {}).items()}
        for span in trace.get("spans") or ():
            parents = [each for each in span.get("references") or () if each.get("refType") == "CHILD_OF"]
            spans.append(
                Span(
                    span["traceID"],
                    span["spanID"],
                    parents[0]["spanID"] if parents else "",
                    span.get("operationName", ""),
                    services.get(span.get("processID"), ""),
                    int(span.get("startTime", 0)) * 1000,
                    int(span.get("duration", 0)) * 1000,
                    {tag["key"]: tag.get("value") for tag in span.get("tags") or ()},
                )
            )
    return spans


def read_v3(body: Mapping[str, Any]) -> list[Span]:
    """Spans of an answer of `/api/v3/traces`: OTLP's JSON."""
    spans = []
    for of_resource in (body.get("result") or body).get("resourceSpans") or ():
        resource = _attributes((of_resource.get("resource") or {}).get("attributes"))
        for of_scope in of_resource.get("scopeSpans") or ():
            for span in of_scope.get("spans") or ():
                start_ns = int(span.get("startTimeUnixNano", 0))
                spans.append(
                    Span(
                        span["traceId"],
                        span["spanId"],
                        span.get("parentSpanId", ""),
                        span.get("name", ""),
                        str(resource.get("service.name", "")),
                        start_ns,
                        int(span.get("endTimeUnixNano", start_ns)) - start_ns,
                        _attributes(span.get("attributes")),
                    )
                )
    return spans


def _attributes(found: Iterable[Mapping[str, Any]] | None) -> dict[str, Any]:
    values = {}
    for each in found or ():
        value = next(iter((each.get("value") or {}).items()), ("", None))
        values[each["key"]] = int(str(value[1])) if value[0] == "intValue" else value[1]
    return values


def _int(found: object) -> int | None:
    text = str(found)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
