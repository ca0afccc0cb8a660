"""`process` and `send` spans through OpenTelemetry's API, named by its messaging conventions 1.44.

The true causal tree: a `process` span is the child of the `send` span of the event that caused it (or linked to it,
see `choreo.telemetry.causes`), whatever is running around it. A unit whose event was not sampled costs no span: its
header is read by hand and forwarded. Attributes go in one dict at creation, so that samplers see them; exceptions
leave their type behind, never their message or stack, which hold secrets and cost twenty spans.

Nothing here knows exporters or the environment: see `choreo.telemetry.setup`.
"""

from collections.abc import Callable, Sequence

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from choreo import ports
from choreo.envelope import Envelope, TraceContext
from choreo.ports import FlowMark, Peer, UnitInfo
from choreo.telemetry.attributes import SCHEMA_URL, Attributes, of_client, of_process, of_send, type_name
from choreo.telemetry.causes import EMPTY, apart, below
from choreo.telemetry.nesting import attach
from choreo.telemetry.quick import Quick
from choreo.telemetry.setup import SPLIT_AFTER_S, TraceMode
from choreo.telemetry.silent import Forward, incoming, nothing
from choreo.telemetry.traceparent import Parent, is_usual, parse, parse_state, render
from choreo.telemetry.watching import contain


class OtelInstrument:
    """Records the units of one service.

    Args:
        service: The service's name. Where the provider's resource has another, each span says it.
        tracer_provider: Where spans go: yours, or what `instrument_from_environment` made.
        system: `messaging.system`, such as `kafka`.
        peer: Whom the transport talks to.
        mode: How a `process` span hangs on the `send` span that caused it.
        split_after_s: Age of a record beyond which its unit begins a trace of its own, linked to the sender.
        quick: Makes what records the usual spans, from the attributes of all; without it they are the provider's.
        on_close: Flushes; without it the provider's spans are left to its owner.
    """

    silent = False

    def __init__(
        self,
        service: str,
        *,
        tracer_provider: trace.TracerProvider,
        system: str,
        peer: Peer | None = None,
        mode: TraceMode = "parent",
        split_after_s: float = SPLIT_AFTER_S,
        quick: Callable[[Attributes], Quick | None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._tracer = tracer_provider.get_tracer("choreo", schema_url=SCHEMA_URL)
        self._mode = mode
        self._split_after_s = split_after_s
        self._on_close = on_close
        self._always: Attributes = of_client(system, peer or Peer())
        resource = getattr(tracer_provider, "resource", None)
        if resource is None or resource.attributes.get("service.name") != service:
            self._always["choreo.service"] = service
        self._quick = quick(self._always) if quick is not None and mode == "parent" else None

    def process(self, unit: UnitInfo, *, now_s: float) -> ports.Span:
        """A unit begins: a span below the one that sent its event, or nothing where that was not sampled."""
        traceparent, tracestate = incoming(unit)
        try:
            if traceparent is not None and is_usual(traceparent):
                if traceparent[54] in "02":
                    return _Unrecorded(traceparent, tracestate)
                if self._quick is not None and not tracestate and not self._apart(unit, now_s):
                    begun = self._quick.begin(unit, traceparent)
                    if begun is not None:
                        return begun
            return self._begin(unit, now_s, traceparent, tracestate)
        except Exception as error:
            contain("process", error)
            return Forward(traceparent, tracestate)

    def _apart(self, unit: UnitInfo, now_s: float) -> bool:
        """Whether it begins a trace of its own, whatever it came with."""
        sent_ms = unit.record.timestamp_ms
        return unit.new_trace or (sent_ms > 0 and now_s - sent_ms / 1000 > self._split_after_s)

    def _begin(self, unit: UnitInfo, now_s: float, traceparent: str | None, tracestate: str | None) -> ports.Span:
        context, links = EMPTY, ()  # type: tuple[otel_context.Context, Sequence[Link]]
        parent = parse(traceparent)
        if parent is not None:
            if not parent.sampled:
                return _Unrecorded(traceparent, tracestate)
            cause = _remote(parent, tracestate)
            context, links = apart(cause) if self._apart(unit, now_s) else below(cause, self._mode)
        record = unit.record
        span = self._tracer.start_span(
            f"process {record.topic}", context, SpanKind.CONSUMER, of_process(self._always, unit), links
        )
        if not span.is_recording():
            own = span.get_span_context()
            if not own.is_valid:
                return Forward(*incoming(unit))
            return _Refused(*_context(own))
        return _Recorded(self, span)

    def begin_send(
        self,
        topic: str,
        envelope: Envelope,
        key: bytes | None,
        context: otel_context.Context | None,
        links: Sequence[Link] = (),
    ) -> trace.Span:
        """A `send` span below what `context` holds, or below what is running where it is None."""
        attributes = of_send(self._always, topic, envelope, key)
        return self._tracer.start_span(f"send {topic}", context, SpanKind.PRODUCER, attributes, links)

    def publish(
        self, topic: str, envelope: Envelope, key: bytes | None = None, *, new_trace: bool = False
    ) -> tuple[Envelope, Callable[[BaseException | None], None]]:
        """A `send` span below what is running, else below the context the envelope has, else a new root."""
        try:
            context, links = None, ()  # type: tuple[otel_context.Context | None, Sequence[Link]]
            if new_trace or not trace.get_current_span().get_span_context().is_valid:
                parent = parse(envelope.traceparent)
                if parent is not None and not parent.sampled:
                    return envelope, nothing
                context = EMPTY
                if parent is not None:
                    cause = _remote(parent, envelope.tracestate)
                    context, links = apart(cause) if new_trace else below(cause, "parent")
            span = self.begin_send(topic, envelope, key, context, links)
            own = span.get_span_context()
            if not own.is_valid:
                return envelope, nothing
            ended = False

            def end(error: BaseException | None) -> None:
                nonlocal ended
                if not ended:
                    ended = True
                    _end(span, None, None if error is None else type_name(error))

            return envelope.traced(*_context(own)), end
        except Exception as error:
            contain("publish", error)
            return envelope, nothing

    def flow(self, mark: FlowMark) -> None:
        """That is a metric's."""

    def breaker(self, handler: str, *, is_open: bool) -> None:
        """That is a metric's."""

    def close(self) -> None:
        """Flush what was recorded, in bounded time; a provider that was passed in is its owner's to flush."""
        on_close, self._on_close = self._on_close, None
        try:
            if on_close is not None:
                on_close()
        except Exception as error:
            contain("close", error)


class _Recorded:
    """One `process` span that is open, and the `send` spans below it by topic and event id.

    What an attempt began to send is forgotten when the next one begins: a result that was never committed was
    never sent.
    """

    __slots__ = ("_context", "_finished", "_instrument", "_sends", "_span")
    silent = False

    def __init__(self, instrument: OtelInstrument, span: trace.Span) -> None:
        self._instrument = instrument
        self._span = span
        self._context: otel_context.Context | None = None
        self._sends: dict[tuple[str, str], trace.Span] = {}
        self._finished = False

    def attempt_failed(self, attempt: int, error: BaseException) -> None:
        self._sends.clear()
        try:
            attributes: Attributes = {"choreo.attempt": attempt, "error.type": type_name(error)}
            self._span.add_event("choreo.attempt_failed", attributes)
        except Exception as failure:
            contain("attempt_failed", failure)

    def sending(self, topic: str, envelope: Envelope, key: bytes | None = None) -> TraceContext:
        try:
            if self._finished:
                return _context(self._span.get_span_context())
            if self._context is None:
                self._context = trace.set_span_in_context(self._span, EMPTY)
            send = self._instrument.begin_send(topic, envelope, key, self._context)
            self._sends[topic, envelope.id] = send
            return _context(send.get_span_context())
        except Exception as error:
            contain("sending", error)
            return TraceContext(envelope.traceparent, envelope.tracestate)

    def attach(self) -> None:
        self._sends.clear()
        attach(self._span)

    def finish(self, outcome: str, *, attempts: int, error_type: str | None = None) -> None:
        if self._finished:
            return
        self._finished = True
        dropped: Attributes | None = {"choreo.outcome": outcome} if outcome == "dropped" else None
        for send in self._sends.values():
            _end(send, dropped, None)
        failed = (error_type or "_OTHER") if outcome == "dead_letter" else None
        _end(self._span, {"choreo.outcome": outcome, "choreo.attempts": attempts}, failed)


class _Unrecorded(Forward, NonRecordingSpan):
    """A unit that is not sampled: its emits and its handler's own spans belong to the same unsampled trace.

    It is the current span of its handler, its sender's; whose context is made when somebody asks for it, as few do.
    """

    attach = attach

    def get_span_context(self) -> SpanContext:
        parent = parse(self._traceparent)
        return trace.INVALID_SPAN_CONTEXT if parent is None else _remote(parent, self._tracestate)

    def __repr__(self) -> str:
        return f"NonRecordingSpan({self.get_span_context()!r})"


class _Refused(_Unrecorded):
    """One that a sampler refused: what it emits goes with the context that was made for it, not its event's."""

    silent = False


def _remote(parent: Parent, tracestate: str | None) -> SpanContext:
    state = TraceState(parse_state(tracestate)) if tracestate else None
    return SpanContext(parent.trace_id, parent.span_id, True, TraceFlags(parent.flags), state)


def _context(own: SpanContext) -> TraceContext:
    state = own.trace_state.to_header() if own.trace_state else None
    return TraceContext(render(own.trace_id, own.span_id, own.trace_flags), state)


def _end(span: trace.Span, attributes: Attributes | None, error_type: str | None) -> None:
    try:
        if error_type is not None:
            attributes = {**(attributes or {}), "error.type": error_type}
            span.set_status(StatusCode.ERROR)
        if attributes is not None:
            span.set_attributes(attributes)
        span.end()
    except Exception as error:
        contain("end", error)
