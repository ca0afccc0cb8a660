"""The `process` span as a handler sees it, by OpenTelemetry's interface; what is added is kept for the encoding."""

import traceback
from collections.abc import Mapping, Sequence
from time import time_ns
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.trace import Span, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes

from choreo.telemetry.attributes import type_name

ATTRIBUTES_MAX = EVENTS_MAX = LINKS_MAX = 128
"""The SDK's own limits; where others are asked for, all spans are the SDK's."""


class LiveSpan(Span):
    """What is added to one span, until it has ended.

    Attributes:
        changed: Something was.
    """

    __slots__ = ("_end_ns", "_sender", "_span_id")  # the rest of it is not made for most

    _sender: str
    """`traceparent` of its parent."""
    _span_id: bytes
    _end_ns: int
    """0 while it is open."""
    changed = False
    _attributes: BoundedAttributes | None = None
    _events: tuple[trace_pb2.Span.Event, ...] = ()
    _links: tuple[trace_pb2.Span.Link, ...] = ()
    _dropped_events = _dropped_links = 0
    _name: str | None = None
    _status: Status | None = None

    def get_span_context(self) -> SpanContext:
        """What spans below it have for a parent."""
        trace_id, flags = int(self._sender[3:35], 16), int(self._sender[53:], 16)
        return SpanContext(trace_id, int.from_bytes(self._span_id, "big"), False, TraceFlags(flags))

    def is_recording(self) -> bool:
        """Until its unit is durable."""
        return not self._end_ns

    def end(self, end_time: int | None = None) -> None:
        """Not the handler's to do: its unit is not durable yet."""

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """As OpenTelemetry says."""
        for name, value in attributes.items():
            self.set_attribute(name, value)

    def set_attribute(self, key: str, value: Any) -> None:
        """As OpenTelemetry says."""
        if self._change():
            if self._attributes is None:
                self._attributes = BoundedAttributes(ATTRIBUTES_MAX, immutable=False)
            self._attributes[key] = value

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """As OpenTelemetry says."""
        if self._change():
            kept = BoundedAttributes(ATTRIBUTES_MAX, attributes)
            event = trace_pb2.Span.Event(name=name, time_unix_nano=timestamp or time_ns(), attributes=_encoded(kept))
            self._dropped_events += len(self._events) == EVENTS_MAX
            self._events = (*self._events[1 - EVENTS_MAX :], event)  # the SDK keeps the latest, too

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """As OpenTelemetry says."""
        if context.is_valid and self._change():
            flags = 0x300 if context.is_remote else 0x100
            link = trace_pb2.Span.Link(
                trace_id=context.trace_id.to_bytes(16, "big"),
                span_id=context.span_id.to_bytes(8, "big"),
                attributes=_encoded(BoundedAttributes(ATTRIBUTES_MAX, attributes)),
                flags=flags,
            )
            self._dropped_links += len(self._links) == LINKS_MAX
            self._links = (*self._links[1 - LINKS_MAX :], link)

    def update_name(self, name: str) -> None:
        """As OpenTelemetry says."""
        if self._change():
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """As OpenTelemetry says: what is OK stays so, and nothing becomes unset."""
        new = status if isinstance(status, Status) else Status(status, description)
        settled = self._status is not None and self._status.status_code is StatusCode.OK
        if not settled and not new.is_unset and self._change():
            self._status = new

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """As OpenTelemetry says: an event with type, message and stack."""
        told = {
            "exception.type": type_name(exception),
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**told, **(attributes or {})}, timestamp)

    def _change(self) -> bool:
        if self._end_ns:
            return False
        self.changed = True
        return True

    def completed(self, known: bytes, ending: bytes) -> bytes:
        """The span with what was added, as a field of its scope; what its unit says at its `ending` comes last.

        `known`: such a field without that ending.
        """
        (span,), last = trace_pb2.ScopeSpans.FromString(known).spans, trace_pb2.Span.FromString(ending)
        added = self._attributes or BoundedAttributes()
        attributes = {each.key: each for each in (*span.attributes, *_encoded(added), *last.attributes)}
        del span.attributes[:], last.attributes[:]
        span.attributes.extend(attributes.values())
        span.events.extend(self._events)
        span.links.extend(self._links)
        if self._name is not None:
            span.name = self._name
        if self._status is not None and self._status.status_code is StatusCode.OK:
            last.ClearField("status")
        if self._status is not None and not last.HasField("status"):
            span.status.code = self._status.status_code.value
            span.status.message = self._status.description or ""
        span.dropped_attributes_count = added.dropped
        span.dropped_events_count, span.dropped_links_count = self._dropped_events, self._dropped_links
        span.MergeFrom(last)
        return bytes(trace_pb2.ScopeSpans(spans=[span]).SerializeToString())


def _encoded(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in attributes.items()]


def _value(value: Any) -> AnyValue:
    match value:
        case str():
            return AnyValue(string_value=value)
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case Sequence():
            return AnyValue(array_value=ArrayValue(values=[_value(each) for each in value]))
        case _:
            return AnyValue()
