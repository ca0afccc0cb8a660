"""`process` and `send` spans the quick way: a few fields are kept of one, and it is encoded as it ends.

For what happens to nearly every event: its sender was sampled, and its spans go by OTLP and nowhere else. All other
spans, and those that a handler adds something to, are the SDK's, and leave in the same requests.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from random import getrandbits
from time import time_ns
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags

from choreo.envelope import ID_BYTES_MAX, Envelope
from choreo.ports import UnitInfo
from choreo.telemetry import encoding
from choreo.telemetry.attributes import Attributes, of_process, of_send, type_name
from choreo.telemetry.live import LiveSpan
from choreo.telemetry.nesting import attach, within
from choreo.telemetry.traceparent import RANDOM, SAMPLED, Parent
from choreo.telemetry.watching import contain

TEMPLATES_MAX = 10_000
_ID = "messaging.message.id"
_FLOW = "messaging.message.conversation_id"
_KEY = "messaging.kafka.message.key"
_OFFSET = "messaging.kafka.offset"
_ID_NAME, _FLOW_NAME, _KEY_NAME, _OFFSET_NAME = map(encoding.name_of, (_ID, _FLOW, _KEY, _OFFSET))


class EncodedSpan:
    """A span that has ended, as the exporter of `choreo.telemetry.pipeline` takes it.

    Attributes:
        context: Sampled; all that the SDK's processor asks for.
        service: Whose it is.
        data: A field of `ScopeSpans`.
    """

    __slots__ = ("data", "service")
    context = SpanContext(1, 1, False, TraceFlags(SAMPLED))

    def __init__(self, service: "Quick", data: bytes) -> None:
        self.service = service
        self.data = data


class Quick:
    """Makes the spans of one service.

    Args:
        always: Attributes of all its spans.
        provider: Whose resource they have.
        processors: Where they go.
    """

    def __init__(self, always: Attributes, provider: TracerProvider, processors: Sequence[SpanProcessor]) -> None:
        self.provider = provider
        self.processors = processors
        self._always = always
        self._templates: dict[Hashable, bytes] = {}

    def takes(self, unit: UnitInfo) -> bool:
        """Whether the unit is one of the usual ones."""
        envelope = unit.envelope
        return envelope is not None and envelope.id != "" and not unit.attributes and unit.record.value is not None

    def process(self, unit: UnitInfo) -> bytes:
        """What is known of a `process` span as it begins, but for its ids and times."""
        record, envelope = unit.record, unit.envelope
        assert envelope is not None
        kind = record.topic, record.partition, unit.handler, envelope.type, envelope.source, envelope.version
        found = self._templates.get(kind)
        if found is None:
            name = f"process {record.topic}"
            found = self._made(kind, name, encoding.CONSUMER, encoding.REMOTE, of_process(self._always, unit))
        return found + encoding.of_number(_OFFSET_NAME, record.offset) + _of_event(envelope, record.key)

    def send(self, topic: str, envelope: Envelope, key: bytes | None) -> bytes:
        """The same of a `send` span."""
        kind = topic, envelope.type, envelope.source, envelope.version
        found = self._templates.get(kind)
        if found is None:
            attributes = of_send(self._always, topic, envelope, key)
            found = self._made(kind, f"send {topic}", encoding.PRODUCER, encoding.LOCAL, attributes)
        return found + _of_event(envelope, key)

    def _made(self, kind: Hashable, name: str, number: int, flags: int, attributes: Attributes) -> bytes:
        if len(self._templates) >= TEMPLATES_MAX:  # types and sources are the senders' to choose
            self._templates.clear()
        constant = {name: value for name, value in attributes.items() if name not in (_ID, _FLOW, _KEY, _OFFSET)}
        made = self._templates[kind] = encoding.template(name, number, flags, constant)
        return made

    def end(self, span: Any) -> None:
        """It goes to whoever exports it."""
        for processor in self.processors:
            processor.on_end(span)


def _of_event(envelope: Envelope, key: bytes | None) -> bytes:
    of_text = encoding.of_text
    found = of_text(_ID_NAME, envelope.id.encode())
    if envelope.correlationid:
        found += of_text(_FLOW_NAME, envelope.correlationid.encode())
    if key is not None and len(key) <= ID_BYTES_MAX:
        if not key.isascii():
            try:
                key.decode()
            except UnicodeDecodeError:
                return found
        found += of_text(_KEY_NAME, key)
    return found


class QuickUnit:
    """One `process` span that is open, and the `send` spans below it, as `choreo.ports.Span`."""

    __slots__ = ("_finished", "_live", "_sends", "_unit", "parent", "quick", "span_id", "start_ns", "trace_id")

    def __init__(self, quick: Quick, unit: UnitInfo, parent: Parent) -> None:
        self.quick = quick
        self.parent = parent
        self.trace_id = parent.trace_id.to_bytes(16, "big")
        self.span_id = getrandbits(64) or 1
        self.start_ns = time_ns()
        self._unit = unit
        self._live: LiveSpan | None = None  # what a handler sees of it
        self._sends: dict[tuple[str, str], tuple[int, int, bytes]] = {}
        self._finished = False

    @property
    def flags(self) -> int:
        """The flags of its context."""
        return SAMPLED | self.parent.flags & RANDOM

    def attempt_failed(self, attempt: int, error: BaseException) -> None:
        """An event of the span; what the attempt began to send was never sent."""
        self._sends.clear()
        told: Attributes = {"choreo.attempt": attempt, "error.type": type_name(error)}
        try:
            self._seen().add_event("choreo.attempt_failed", told)
        except Exception as failure:
            contain("attempt_failed", failure)

    def sending(self, topic: str, envelope: Envelope, key: bytes | None = None) -> Envelope:
        """A `send` span begins."""
        span_id = self.span_id
        if not self._finished:
            try:
                known = self.quick.send(topic, envelope, key)
            except Exception as error:
                contain("sending", error)
            else:
                span_id = getrandbits(64) or 1
                self._sends[topic, envelope.id] = span_id, time_ns(), known
        return envelope.traced(f"00-{self.trace_id.hex()}-{span_id:016x}-{self.flags:02x}", None)

    def call(self, function: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        """With the span as the current one."""
        self._sends.clear()
        return within(self._seen(), function)

    def attach(self) -> None:
        """The same, in a context that is the handler's alone."""
        self._sends.clear()
        attach(self._seen())

    def _seen(self) -> LiveSpan:
        if self._live is None:
            self._live = LiveSpan(self.parent.trace_id, self.span_id, self.flags)
        return self._live

    def finish(self, outcome: str, *, attempts: int, error_type: str | None = None) -> None:
        """Encode it and what was sent below it."""
        if self._finished:
            return
        self._finished = True
        try:
            self._end(outcome, attempts, error_type)
        except Exception as error:
            contain("end", error)

    def _end(self, outcome: str, attempts: int, error_type: str | None) -> None:
        quick, now_ns = self.quick, time_ns()
        dropped = encoding.ending("dropped", None, None) if outcome == "dropped" else b""
        for span_id, start_ns, known in self._sends.values():
            data = encoding.span(self.trace_id, span_id, self.span_id, start_ns, now_ns, known + dropped)
            quick.end(EncodedSpan(quick, data))
        known = quick.process(self._unit)
        failed = (error_type or "_OTHER") if outcome == "dead_letter" else None
        live, ending = self._live, encoding.ending(outcome, attempts, failed)
        if live is not None:
            live.ended = True
            if live.changed:
                known, ending = live.encoded(known, ending)
        data = encoding.span(self.trace_id, self.span_id, self.parent.span_id, self.start_ns, now_ns, known + ending)
        quick.end(EncodedSpan(quick, data))
