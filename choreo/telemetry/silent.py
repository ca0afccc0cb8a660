"""The instrument that records nothing: a trace passes through unchanged, and no tracer is imported."""

from collections.abc import Callable

from choreo.envelope import TRACESTATE_BYTES_MAX, Envelope, TraceContext
from choreo.ports import FlowMark, Span, UnitInfo
from choreo.record import last_headers, new
from choreo.telemetry.traceparent import CHARS_MAX


class NoInstrument:
    """Forwards the context an event came with onto what is emitted for it."""

    silent = True

    def process(self, unit: UnitInfo, *, now_s: float) -> Span:
        """A unit begins; nobody looks."""
        return Forward(*incoming(unit))

    def publish(
        self, topic: str, envelope: Envelope, key: bytes | None = None, *, new_trace: bool = False
    ) -> tuple[Envelope, Callable[[BaseException | None], None]]:
        """The envelope as it is."""
        return envelope, nothing

    def flow(self, mark: FlowMark) -> None:
        """Nobody counts."""

    def breaker(self, handler: str, *, is_open: bool) -> None:
        """Nobody counts."""

    def close(self) -> None:
        """Nothing was recorded."""


class Forward:
    """A unit that is not recorded: its emits carry the headers it came with, byte for byte."""

    __slots__ = ("_traceparent", "_tracestate")
    silent = True

    def __init__(self, traceparent: str | None, tracestate: str | None) -> None:
        self._traceparent = traceparent
        self._tracestate = tracestate

    def attempt_failed(self, attempt: int, error: BaseException) -> None:
        """Nothing to note."""

    def sending(self, topic: str, envelope: Envelope, key: bytes | None = None) -> TraceContext:
        """The context the unit came with, or the envelope's where it came with none."""
        if self._traceparent is None:
            return TraceContext(envelope.traceparent, envelope.tracestate)
        return new(TraceContext, (self._traceparent, self._tracestate))

    def attach(self) -> None:
        """Nothing to nest below."""

    def finish(self, outcome: str, *, attempts: int, error_type: str | None = None) -> None:
        """Nothing to end."""


def incoming(unit: UnitInfo) -> tuple[str | None, str | None]:
    """`traceparent` and `tracestate` a unit came with, unchecked but for their length.

    A record that is no readable event may still have them among its headers, so that its dead letter stays in
    the trace it belongs to.
    """
    envelope = unit.envelope
    if envelope is not None:  # bounded when it was read
        return envelope.traceparent, envelope.tracestate
    headers = last_headers(unit.record.headers)
    traceparent, tracestate = _text(headers.get("traceparent")), _text(headers.get("tracestate"))
    if not traceparent or len(traceparent) > CHARS_MAX:
        return None, None
    return traceparent, tracestate if tracestate and len(tracestate) <= TRACESTATE_BYTES_MAX else None


def _text(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None


def nothing(error: BaseException | None) -> None:
    """End a span that was never begun."""
