"""Events and their causes as spans and records' headers tell them, of services that need not know choreo. No I/O."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from choreo import envelope as cloudevents
from choreo.errors import DecodeError
from choreo.flow.observed import Intake, Sighting
from choreo.record import Record, last_headers

PRODUCER, CONSUMER = "producer", "consumer"
_OPERATIONS: Mapping[str, str] = {
    "send": PRODUCER,
    "publish": PRODUCER,
    "create": PRODUCER,
    "process": CONSUMER,
    "deliver": CONSUMER,
    "receive": CONSUMER,
    "consume": CONSUMER,
}
_SAYING = ("messaging.operation.type", "messaging.operation.name", "messaging.operation")
_TOPIC = ("messaging.destination.template", "messaging.destination.name", "messaging.destination")
"""Names of today's conventions first, then those of instrumentations that have not followed."""
ANCESTORS_MAX = 200


class SpanLike(Protocol):
    """What is needed of a span; see `choreo.flow.spans`."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    attributes: Mapping[str, Any]


def from_spans(spans: Iterable[SpanLike]) -> tuple[list[Sighting], list[Intake]]:
    """A producer span is an event; a consumer span below it takes it in; a producer span below that is its effect."""
    traces = _Traces(spans)
    sightings: list[Sighting] = []
    intakes: list[Intake] = []
    for span in traces.of(PRODUCER):
        if traces.outermost(span) is span:
            cause, handler = traces.cause(span)
            at_ms = span.start_ns / 1e6
            sightings.append(Sighting(_sent(span), _event(span), span.service, at_ms, cause, handler=handler))
    sent = {each.id for each in sightings}
    for span in traces.consumers():
        taken, at_ms = traces.taken(span), span.start_ns / 1e6
        if taken is None and _only_receives(span):
            continue  # the poll of a batch, which says nothing of any one event
        id_ = taken or _id(span)
        intakes.append(Intake(id_, span.service, at_ms, _handler(span)))
        if id_ not in sent:  # its producer is not traced: the event is known by those who took it in
            sightings.append(Sighting(id_, _event(span), "", at_ms))
    return sightings, intakes


class _Traces:
    """Spans by their ids, and what those that send or take in events have to do with each other."""

    def __init__(self, spans: Iterable[SpanLike]) -> None:
        self._spans = {(span.trace_id, span.span_id): span for span in spans}
        self._roles = {id_: role for id_, span in self._spans.items() if (role := _role(span)) and _topic(span)}

    def of(self, role: str) -> Iterator[SpanLike]:
        return (self._spans[id_] for id_, each in self._roles.items() if each == role)

    def consumers(self) -> list[SpanLike]:
        """Of a receive and the process below it, in one service, the lower one: it is of one event."""
        told_below = {_id(above) for span in self.of(CONSUMER) for above in self._same_intake(span)}
        return [span for span in self.of(CONSUMER) if _id(span) not in told_below]

    def _same_intake(self, consumer: SpanLike) -> Iterator[SpanLike]:
        for above, role in self._above(consumer):
            if role == PRODUCER or above.service != consumer.service:
                return
            if role == CONSUMER:
                yield above

    def outermost(self, producer: SpanLike) -> SpanLike:
        """Of a `create` and the `send` below it, about one event, the `create`."""
        found = producer
        for above, role in self._above(producer):
            if role == PRODUCER and (above.service, _topic(above)) == (producer.service, _topic(producer)):
                found = above
            elif role is not None:
                break
        return found

    def cause(self, producer: SpanLike) -> tuple[str | None, str]:
        """The event that made a service send another one, and the handler that did."""
        for above, role in self._above(producer):
            if role == CONSUMER:
                return self.taken(above) or _id(above), _handler(above)
            if role == PRODUCER:
                return _sent(self.outermost(above)), ""  # a service without consumer spans
        return None, ""

    def taken(self, consumer: SpanLike) -> str | None:
        """Id of the event a consumer span is about, None if neither it nor anything above tells."""
        if message := _message(consumer):
            return message
        last = consumer
        for above, role in self._above(consumer):
            if role == PRODUCER:
                return _sent(self.outermost(above))
            last = above
        # What lies above was not exported: those who took in the same event name the same missing span.
        return f"{last.trace_id}/{last.parent_id}" if last.parent_id else None

    def _above(self, span: SpanLike) -> Iterator[tuple[SpanLike, str | None]]:
        at = self._spans.get((span.trace_id, span.parent_id))
        for _ in range(ANCESTORS_MAX):
            if at is None:
                return
            yield at, self._roles.get((at.trace_id, at.span_id))
            at = self._spans.get((at.trace_id, at.parent_id))


def _id(span: SpanLike) -> str:
    return f"{span.trace_id}/{span.span_id}"


def _sent(producer: SpanLike) -> str:
    return _message(producer) or _id(producer)


def _message(span: SpanLike) -> str | None:
    """The event's own id: it joins what links and broken traces leave apart, and duplicates share it."""
    id_ = span.attributes.get("messaging.message.id")
    return f"{span.attributes.get('cloudevents.event_source', '')} {id_}" if id_ else None


def _only_receives(span: SpanLike) -> bool:
    return "process" not in {str(span.attributes.get(name)) for name in _SAYING}


def _role(span: SpanLike) -> str | None:
    said = [str(span.attributes[name]) for name in _SAYING if name in span.attributes]
    for word in said:
        if word in _OPERATIONS:
            return _OPERATIONS[word]
    kind = str(span.attributes.get("span.kind", "")).lower()
    if kind in (PRODUCER, CONSUMER):
        return kind
    # Jaeger's v3 answers have the kind outside of the attributes; span names hold the operation by convention.
    words = [_OPERATIONS[word] for word in span.name.split() if word in _OPERATIONS]
    return words[0] if words else None


def _topic(span: SpanLike) -> str:
    return next((str(span.attributes[name]) for name in _TOPIC if span.attributes.get(name)), "")


def _event(span: SpanLike) -> str:
    return str(span.attributes.get("cloudevents.event_type") or _topic(span))


def _handler(span: SpanLike) -> str:
    return str(span.attributes.get("choreo.handler") or "")


def from_records(records: Sequence[Record]) -> list[Sighting]:
    """From headers alone: `ce_causationid` names the cause; else the order within a trace is taken for it.

    Who took an event in without sending another is not on the log.
    """
    found: list[Sighting] = []
    last_of_trace: dict[str, Sighting] = {}
    ids: dict[str, str] = {}
    for record in sorted(records, key=lambda each: each.timestamp_ms):
        if record.value is None:
            continue
        trace = _trace_of(record)
        sighting = _from_cloudevent(record, ids) or Sighting(_place(record), record.topic, "", record.timestamp_ms)
        before = last_of_trace.get(trace)
        if sighting.cause is None and before is not None and before.event != sighting.event:
            sighting = sighting._replace(cause=before.id, guessed=True)
        if trace:
            last_of_trace[trace] = sighting
        found.append(sighting)
    # A cause is named by its id alone, and known by source and id.
    return [each._replace(cause=ids.get(each.cause, each.cause)) if each.cause else each for each in found]


def _from_cloudevent(record: Record, ids: dict[str, str]) -> Sighting | None:
    assert record.value is not None
    try:
        envelope, _ = cloudevents.read(record.headers, record.value)
    except DecodeError:
        return None
    if any(name.startswith("choreo-dlq-") for name, _ in record.headers):
        # A dead letter is a copy of its event; here it is what became of it.
        return Sighting(_place(record), record.topic, "", record.timestamp_ms, envelope.id)
    key = f"{envelope.source} {envelope.id}"
    ids.setdefault(envelope.id, key)
    emitter = envelope.source.strip("/")
    return Sighting(key, envelope.type, emitter, record.timestamp_ms, envelope.causationid)


def _place(record: Record) -> str:
    return f"{record.topic}/{record.partition}@{record.offset}"


def _trace_of(record: Record) -> str:
    """The trace id; "" where there is none, or the one of zeros that W3C calls invalid."""
    parts = (last_headers(record.headers).get("traceparent") or b"").split(b"-")
    return parts[1].decode("ascii", "replace") if len(parts) == 4 and parts[1].strip(b"0") else ""
