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
from choreo.telemetry.nesting import attach
from choreo.telemetry.traceparent import SAMPLED
from choreo.telemetry.watching import contain

KINDS_MAX = 10_000
LAYOUTS_MAX = 1_000
TOGETHER_MAX = 4
"""Spans of one unit that wait for their export as one: what puts them into the queue costs more than they do."""
_ID = "messaging.message.id"
_FLOW = "messaging.message.conversation_id"
_KEY = "messaging.kafka.message.key"
_OFFSET = "messaging.kafka.offset"
_ID_NAME, _FLOW_NAME, _KEY_NAME, _OFFSET_NAME = map(encoding.name_of, (_ID, _FLOW, _KEY, _OFFSET))


class Encoded:
    """Spans that have ended, as the exporter of `choreo.telemetry.pipeline` takes them.

    Attributes:
        context: Sampled; all that the SDK's processor asks for.
        service: Whose they are.
        data: Fields of `ScopeSpans`.
        count: How many they are.
    """

    __slots__ = ("count", "data", "service")
    context = SpanContext(1, 1, False, TraceFlags(SAMPLED))

    def __init__(self, service: "Quick", data: bytes, count: int) -> None:
        self.service = service
        self.data = data
        self.count = count


class Kind:
    """What the spans of one name, service and type of event have in common: `template`."""

    def __init__(self, template: bytes) -> None:
        self.template = template
        self._layouts: dict[tuple[int, int, int], tuple[bytes, bytes, bytes]] = {}

    def about(self, envelope: Envelope, key: bytes | None) -> bytes:
        """The template and the attributes that name the event."""
        id_, flow, text = envelope.id.encode(), envelope.correlationid.encode(), key
        if text is None or not _is_text(text):
            text = b""
        sizes = len(id_), len(flow), -1 if text is not key else len(text)
        before_id, before_flow, before_key = self._layouts.get(sizes) or self._laid_out(*sizes)
        return b"%b%b%b%b%b%b" % (before_id, id_, before_flow, flow, before_key, text)

    def _laid_out(self, id_: int, flow: int, key: int) -> tuple[bytes, bytes, bytes]:
        if len(self._layouts) >= LAYOUTS_MAX:
            self._layouts.clear()
        before = encoding.before_text
        found = self._layouts[id_, flow, key] = (
            self.template + before(_ID_NAME, id_),
            before(_FLOW_NAME, flow) if flow else b"",
            before(_KEY_NAME, key) if key >= 0 else b"",
        )
        return found


class Quick:
    """Makes the spans of one service.

    Args:
        always: Attributes of all its spans.
        provider: Whose resource they have.
        processors: Where they go.
        together_max: Spans of one unit that go there as one.
    """

    def __init__(
        self,
        always: Attributes,
        provider: TracerProvider,
        processors: Sequence[SpanProcessor],
        together_max: int = TOGETHER_MAX,
    ) -> None:
        self.provider = provider
        self.together_max = together_max
        self._processors = processors
        self._always = always
        self._kinds: dict[Hashable, Kind] = {}

    def takes(self, unit: UnitInfo) -> bool:
        """Whether the unit is one of the usual ones."""
        envelope = unit.envelope
        return envelope is not None and envelope.id != "" and not unit.attributes and unit.record.value is not None

    def process(self, unit: UnitInfo) -> bytes:
        """What is known of a `process` span as it begins, but for its ids and times."""
        record, envelope = unit.record, unit.envelope
        assert envelope is not None
        name = record.topic, record.partition, unit.handler, envelope.type, envelope.source, envelope.version
        kind = self._kinds.get(name)
        if kind is None:
            attributes = of_process(self._always, unit)
            kind = self._made(name, f"process {record.topic}", encoding.CONSUMER, encoding.REMOTE, attributes)
        return kind.about(envelope, record.key) + encoding.of_number(_OFFSET_NAME, record.offset)

    def send(self, topic: str, envelope: Envelope, key: bytes | None) -> bytes:
        """The same of a `send` span."""
        name = topic, envelope.type, envelope.source, envelope.version
        kind = self._kinds.get(name)
        if kind is None:
            attributes = of_send(self._always, topic, envelope, key)
            kind = self._made(name, f"send {topic}", encoding.PRODUCER, encoding.LOCAL, attributes)
        return kind.about(envelope, key)

    def _made(self, name: Hashable, title: str, number: int, flags: int, attributes: Attributes) -> Kind:
        if len(self._kinds) >= KINDS_MAX:  # types and sources are the senders' to choose
            self._kinds.clear()
        constant = {key: value for key, value in attributes.items() if key not in (_ID, _FLOW, _KEY, _OFFSET)}
        made = self._kinds[name] = Kind(encoding.template(title, number, flags, constant))
        return made

    def end(self, spans: Sequence[bytes]) -> None:
        """They go to whoever exports them."""
        most = self.together_max
        for at in range(0, len(spans), most):
            some = spans[at : at + most]
            encoded: Any = Encoded(self, b"".join(some), len(some))
            for processor in self._processors:
                processor.on_end(encoded)


def _is_text(key: bytes) -> bool:
    """Whether a key can be told: it is UTF-8, and not too long."""
    if len(key) > ID_BYTES_MAX:
        return False
    if not key.isascii():
        try:
            key.decode()
        except UnicodeDecodeError:
            return False
    return True


class QuickUnit:
    """One `process` span that is open, and the `send` spans below it, as `choreo.ports.Span`.

    Args:
        quick: Makes its spans.
        unit: What it is about.
        sender: `traceparent` of the span that sent the event: sampled, and a usual one.
    """

    __slots__ = ("_finished", "_live", "_sender", "_sends", "_unit", "quick", "span_id", "start_ns")

    def __init__(self, quick: Quick, unit: UnitInfo, sender: str) -> None:
        self.quick = quick
        self.span_id = (getrandbits(64) or 1).to_bytes(8, "big")
        self.start_ns = time_ns()
        self._sender = sender
        self._unit = unit
        self._live: LiveSpan | None = None  # what a handler sees of it
        self._sends: list[tuple[str, str, bytes, int, bytes]] = []
        self._finished = False

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
                span_id = (getrandbits(64) or 1).to_bytes(8, "big")
                self._sends.append((topic, envelope.id, span_id, time_ns(), known))
        sender = self._sender
        return envelope.traced(f"{sender[:36]}{span_id.hex()}{sender[52:]}", None)

    def call(self, function: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        """With the span as the current one."""
        self.attach()
        return function()

    def attach(self) -> None:
        """What runs in this context sees it."""
        if self._sends:
            self._sends.clear()
        attach(self._live or self._seen())

    def _seen(self) -> LiveSpan:
        if self._live is None:
            self._live = LiveSpan(self._sender, self.span_id)
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
        sender, own_id, now_ns, sends = self._sender, self.span_id, time_ns(), self._sends
        trace_id = bytes.fromhex(sender[3:35])
        dropped = encoding.ending("dropped", None, None) if outcome == "dropped" else b""
        if len(sends) > 1:  # what was to be sent twice is sent once
            sends = list({(send[0], send[1]): send for send in sends}.values())
        ended = [
            encoding.span(trace_id, span_id, own_id, start_ns, now_ns, known, dropped)
            for _, _, span_id, start_ns, known in sends
        ]
        known = self.quick.process(self._unit)
        failed = (error_type or "_OTHER") if outcome == "dead_letter" else None
        live, ending = self._live, encoding.ending(outcome, attempts, failed)
        if live is not None:
            live.ended = True
            if live.changed:
                known, ending = live.encoded(known, ending)
        parent_id = bytes.fromhex(sender[36:52])
        ended.append(encoding.span(trace_id, own_id, parent_id, self.start_ns, now_ns, known, ending))
        self.quick.end(ended)
