"""Thousands of flows that keep to a capability, as records, rows of a store and spans: all three of the same flows.

They are made by choreo's own pure code (envelopes, derived ids, attributes of spans), and are clean but not tidy:
some records are there twice, some units needed several attempts, and some became dead letters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from choreo import envelope as cloudevents
from choreo.core.emission import derived_id
from choreo.envelope import Envelope
from choreo.flow.model import Capability, DeclaredHandler, DeclaredService, EventRef
from choreo.flow.spans import Span
from choreo.ports import UnitInfo
from choreo.record import Record
from choreo.telemetry.attributes import of_process, of_send
from choreo.telemetry.traceparent import render

SENT_TWICE, RETRIED, DEAD = 0.03, 0.02, 0.002
WAIT_MS, WAIT_SIGMA = 40.0, 0.7
"""Median of each hop's wait, and the sigma of its logarithm."""
STEPS_MAX = 60


@dataclass
class Clean:
    """What the flows left behind."""

    records: list[Record] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


@dataclass
class _Sent:
    """An event on the log, to be handled."""

    ref: EventRef
    envelope: Envelope
    record: Record
    span_id: str


class Flows:
    """Makes flows of a capability's only `Flow`, from one seed."""

    def __init__(self, capability: Capability, seed: int) -> None:
        self.made = Clean()
        self._capability = capability
        self._random = Random(seed)
        self._offsets: dict[str, int] = {}
        self._spans = 0

    def make(self, count: int, *, from_ms: float, to_ms: float) -> Clean:
        """So many flows, begun at any time of a window."""
        for number in range(count):
            start = self._capability.flows[0].starts
            trace = f"{self._random.getrandbits(128):032x}"
            envelope = Envelope(f"e-{number}", "/web", start.type, version=start.version, correlationid=f"e-{number}")
            waiting = [self._send(start, envelope, trace, "", "web", self._random.uniform(from_ms, to_ms))]
            for _ in range(STEPS_MAX):
                if not waiting:
                    break
                sent = waiting.pop()
                for service, handler in self._capability.handlers():
                    if any(
                        (each.type, each.version) == (sent.ref.type, sent.ref.version) for each in handler.consumes
                    ):
                        waiting += self._handle(sent, service, handler, trace)
        return self.made

    def _handle(
        self, cause: _Sent, service: DeclaredService, handler: DeclaredHandler, trace: str
    ) -> Iterator[_Sent]:
        at_ms = cause.record.timestamp_ms + self._wait_ms()
        took_ms = self._wait_ms() / 4
        attempts = 1 + (self._random.random() < RETRIED)
        dead = self._random.random() < DEAD
        span = self._process(cause, service, handler, trace, at_ms, took_ms)
        outcome = "dead_letter:handler_failed" if dead else "handled"
        span.attributes = {
            **span.attributes,
            "choreo.attempts": attempts,
            "choreo.outcome": outcome.partition(":")[0],
            **({"error.type": "handler_failed"} if dead else {}),
        }
        place = {"topic": cause.record.topic, "partition": 0, "offset": cause.record.offset}
        self.made.history.append(
            {
                "handler": f"{service.name}.{handler.name}",
                **place,
                "done": 1,
                "outcome": outcome,
                "attempts": attempts,
                "deliveries": 1,
                "duration_s": took_ms / 1000,
                "done_ms": int(at_ms + took_ms),
            }
        )
        if dead:
            told = {"reason": "handler_failed", "service": service.name, "handler": handler.name, "attempts": "5"}
            headers = [(f"choreo-dlq-{name}", text.encode()) for name, text in told.items()]
            self._append(service.dead_letter_topic, (*cause.record.headers, *headers), at_ms)
            return
        source, id_ = cause.envelope.source, cause.envelope.id
        counts: dict[str, int] = {}
        for emit in self._chosen(handler):
            ordinal = counts[emit.type] = counts.get(emit.type, -1) + 1
            envelope = Envelope(
                derived_id(service.name, handler.name, source, id_, emit.type, ordinal),
                service.source,
                emit.type,
                version=emit.version,
                correlationid=cause.envelope.correlationid,
                causationid=id_,
            )
            yield self._send(emit, envelope, trace, span.span_id, service.name, at_ms + took_ms)

    def _chosen(self, handler: DeclaredHandler) -> Sequence[EventRef]:
        must = [emit for emit in handler.emits for _ in range(emit.min)]
        if must or not handler.emits or (not handler.emits_min and self._random.random() < 0.5):
            return must
        return [self._random.choice(handler.emits)]

    def _send(self, ref: EventRef, envelope: Envelope, trace: str, parent: str, service: str, at_ms: float) -> _Sent:
        span_id = self._span_id()
        envelope = envelope.traced(render(int(trace, 16), int(span_id, 16), 1), None)
        attributes = of_send({}, ref.topic, envelope, envelope.correlationid.encode())
        name = f"send {ref.topic}"
        self.made.spans.append(Span(trace, span_id, parent, name, service, int(at_ms * 1e6), 1000, attributes))
        record = self._append(ref.topic, cloudevents.write(envelope), at_ms)
        if self._random.random() < SENT_TWICE:
            self._append(ref.topic, record.headers, at_ms + 5)
        return _Sent(ref, envelope, record, span_id)

    def _process(
        self,
        cause: _Sent,
        service: DeclaredService,
        handler: DeclaredHandler,
        trace: str,
        at_ms: float,
        took_ms: float,
    ) -> Span:
        unit = UnitInfo(service.name, service.group, handler.name, cause.record, cause.envelope)
        span = Span(
            trace,
            self._span_id(),
            cause.span_id,
            f"process {cause.record.topic}",
            service.name,
            int(at_ms * 1e6),
            int(took_ms * 1e6),
            of_process({}, unit),
        )
        self.made.spans.append(span)
        return span

    def _append(self, topic: str, headers: Any, at_ms: float) -> Record:
        offset = self._offsets[topic] = self._offsets.get(topic, -1) + 1
        # Each record has a key of its own: flows of one key would be one order placed twice.
        record = Record(topic, 0, offset, dict(headers)["ce_correlationid"], b"{}", headers, int(at_ms))
        self.made.records.append(record)
        return record

    def _span_id(self) -> str:
        self._spans += 1
        return f"{self._spans:016x}"

    def _wait_ms(self) -> float:
        return WAIT_MS * self._random.lognormvariate(0.0, WAIT_SIGMA)
