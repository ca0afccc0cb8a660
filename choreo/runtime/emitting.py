"""From what a handler returned, or failed with, to records: derived ids, envelopes, dead letters."""

from collections.abc import Callable, Mapping, Sequence

from choreo import envelope as cloudevents
from choreo.core.emission import derived_id
from choreo.core.retry import Delayed
from choreo.envelope import Envelope, TraceContext, binary, constant_headers
from choreo.errors import Reject
from choreo.event import Event
from choreo.record import Header, ProducerRecord, Record, new
from choreo.runtime.replaying import DLQ_PREFIX, REPLAY_PREFIX, origin, replay_headers
from choreo.runtime.retrying import RETRY_PREFIX, Retried, retried_headers
from choreo.runtime.work import Work
from choreo.service import Service
from choreo.topic import wire_record, wire_value

TRACE = ("traceparent", "tracestate")
TRUNCATED = DLQ_PREFIX + "truncated"
"""On a dead letter too large for its topic: bytes of the original's key, value and headers, not all of them here."""
KEPT_VALUE_BYTES = 65_536
EMIT_BYTES_MAX = 900_000
"""Largest payload of a follow-on event: with its headers it fits the 1 MiB a Kafka topic takes by default."""
COPY_BYTES_MAX = 1_000_000
"""Largest copy of an event that is to be handled again, headers and all, for the same reason; what is larger is
dead-lettered."""
KEPT_HEADER_BYTES = 1_024
KEPT_HEADERS = 32

_NOTHING: Mapping[str, str] = {}
Sending = Callable[[str, Envelope, bytes | None], TraceContext]


class _Outlet:
    """What is the same for all events of a class; `plain`: their topic has them as choreo writes them."""

    __slots__ = ("constant", "plain", "topic", "type", "version")

    def __init__(self, source: str, class_: type[Event], topic: str) -> None:
        self.topic = topic
        self.plain = type(topic) is str
        self.type = class_.event_type
        self.version = class_.event_version
        self.constant = constant_headers(source, self.type, None, self.version)


class Emitter:
    """Makes the records one service emits.

    Args:
        topic: Logical to actual topic name.
        propagate: CloudEvents extensions copied from the cause to its follow-on events.
    """

    def __init__(self, service: Service, topic: Callable[[str], str], propagate: Sequence[str] = ()) -> None:
        self.service = service
        self.topic = topic
        self._outlets: dict[type[Event], _Outlet] = {}
        self._propagate = tuple(propagate)

    def emits(
        self,
        work: Work,
        handler: str,
        events: Sequence[Event],
        now_s: float,
        sending: Sending | None,
        correlation_id: str | None = None,
    ) -> tuple[ProducerRecord, ...]:
        """Records of follow-on events; `sending` gives each the context of its own `send` span.

        None: nobody looks, and the context is that of their cause.

        `correlation_id`: of the flow they belong to, if that is another one than their cause's.
        """
        cause = work.envelope
        assert cause is not None
        caused_by, cause_source, _, _, _, _, _, flow, _, traceparent, tracestate, caused_with = cause
        # Emits of a forced replay are new events: they must not die as duplicates of the first ones.
        cause_id = (work.replay.base if work.replay is not None else "") or caused_by
        flow = correlation_id or flow
        counts: dict[str, int] = {}
        records = []
        name, source, time, extensions = self.service.name, self.service.source, cloudevents.rfc3339(now_s), _NOTHING
        if self._propagate and caused_with:
            extensions = self._propagated(caused_with)
        for event in events:
            outlet = self._outlets.get(type(event)) or self._outlet(type(event))
            topic, type_ = outlet.topic, outlet.type
            ordinal = counts[type_] = counts.get(type_, -1) + 1
            id_ = derived_id(name, handler, cause_source, cause_id, type_, ordinal)
            key, value = event.record_key(), event.payload()
            parent, state = traceparent, tracestate
            if sending is not None or not outlet.plain:
                said = id_, source, type_, outlet.version, time, None, None, flow, caused_by
                envelope = new(Envelope, (*said, parent, state, extensions))
                value = value if outlet.plain else wire_value(topic, envelope, value)
            if len(value) > EMIT_BYTES_MAX:
                # Found out only after its commit, a topic's refusal would stop the service for ever.
                raise Reject(f"the {type_} it emits has {len(value)} bytes, the limit is {EMIT_BYTES_MAX}")
            if sending is not None:
                parent, state = sending(topic, envelope, key)
            if outlet.plain:
                headers = binary(outlet.constant, id_, flow, time, None, caused_by, parent, state, extensions)
                records.append(new(ProducerRecord, (topic, key, value, headers, None)))
            else:
                records.append(wire_record(topic, envelope.traced(parent, state), key, value))
        return tuple(records)

    def dead_letter(
        self, work: Work, handler: str, reason: str, detail: str, attempts: int, now_s: float, sending: Sending
    ) -> ProducerRecord:
        """The original record, byte for byte, with why and whence; its event id is kept for a replay."""
        record, topic, replay = work.record, self.topic(self.service.dlq_topic), work.replay
        lay = where(work)
        context = sending(topic, work.envelope or Envelope("", "", ""), record.key)
        told = {
            "reason": reason,
            "detail": detail[:1000],
            "service": self.service.name,
            "handler": handler,
            "attempts": str(attempts),
            "time": cloudevents.rfc3339(now_s),
            **{f"original-{name}": text for name, text in lay.items()},
        }
        if replay is not None:
            told["replay-id"] = replay.id
            told |= {"replay-base": replay.base} if replay.base else {}
        headers = [(DLQ_PREFIX + name, text.encode("utf-8", "replace")) for name, text in told.items()]
        return again(record, topic, headers, context)

    def delayed(self, work: Work, handler: str, attempts: int, sending: Sending) -> ProducerRecord | None:
        """The event for the handler's next delay topic, byte for byte; None if it is too large for one."""
        assert work.bound is not None
        assert work.envelope is not None
        number, retry = work.retried.number if work.retried else 0, work.bound.handler.retry
        delay_s = retry.next_s(number) if isinstance(retry, Delayed) else None
        assert delay_s is not None
        topic = self.topic(self.service.delay_topic(delay_s))
        headers = retried_headers(Retried(handler, number + 1, attempts, where(work)))
        if work.replay is not None:
            headers += replay_headers(work.replay)
        found = again(work.record, topic, headers, sending(topic, work.envelope, work.record.key))
        return found if size_of(found) <= COPY_BYTES_MAX else None

    def _outlet(self, class_: type[Event]) -> "_Outlet":
        found = self._outlets[class_] = _Outlet(self.service.source, class_, self.topic(class_.event_topic))
        return found

    def _propagated(self, extensions: Mapping[str, str]) -> Mapping[str, str]:
        found = {name: extensions[name] for name in self._propagate if name in extensions}
        return {name: text for name, text in found.items() if len(text.encode()) <= cloudevents.ID_BYTES_MAX}


def where(work: Work) -> Mapping[str, str]:
    """Where the event lay first, whichever ways it came since."""
    sent = work.retried or work.replay
    return origin(work.record) if sent is None else sent.original


def again(record: Record, topic: str, said: Sequence[Header], context: TraceContext) -> ProducerRecord:
    """The record for another topic: what is said of it is replaced, and `context` is that of the new send."""
    headers = [
        (name, value)
        for name, value in record.headers
        if not name.startswith((DLQ_PREFIX, REPLAY_PREFIX, RETRY_PREFIX)) and name not in TRACE
    ]
    headers += said
    headers += [(name, text.encode()) for name, text in zip(TRACE, context, strict=True) if text]
    return ProducerRecord(topic, record.key, record.value, tuple(headers))


def size_of(record: ProducerRecord) -> int:
    """Bytes that it takes on the log, or a few more."""
    size = len(record.key or b"") + len(record.value or b"")
    return size + sum(len(name) * 4 + len(value or b"") + 8 for name, value in record.headers)


def truncated(letter: ProducerRecord) -> ProducerRecord | None:
    """A dead letter that its topic refused as too large, made smaller; None where there is nothing left to cut.

    First the value is cut and long headers are dropped, then all of the original is: its coordinates remain.
    """
    names = {name for name, _ in letter.headers if name.startswith(DLQ_PREFIX)}
    if not names:
        return None
    told = [header for header in letter.headers if header[0] in names or header[0] in TRACE]
    rest = [header for header in letter.headers if header[0] not in names and header[0] not in TRACE]
    value = letter.value or b""
    if TRUNCATED in names:
        if not (rest or value or letter.key):
            return None
        return ProducerRecord(letter.topic, None, b"", tuple(told), letter.partition)
    key_bytes = len(letter.key or b"")
    size = key_bytes + len(value) + sum(len(name.encode("utf-8", "replace")) + len(raw or b"") for name, raw in rest)
    told.append((TRUNCATED, f"{size}".encode()))
    key = letter.key if key_bytes <= KEPT_HEADER_BYTES else None
    short = [header for header in rest if len(header[0]) + len(header[1] or b"") <= KEPT_HEADER_BYTES]
    headers = (*short[:KEPT_HEADERS], *told)
    return ProducerRecord(letter.topic, key, value[:KEPT_VALUE_BYTES], headers, letter.partition)


def original(record: Record) -> dict[str, str]:
    """What a dead letter says of itself, by name without the prefix."""
    return {
        name.removeprefix(DLQ_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith(DLQ_PREFIX)
    }
