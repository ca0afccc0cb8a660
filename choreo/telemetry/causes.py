"""How a `process` span hangs on the `send` span that caused it: below it, linked to it, or both; or apart.

The messaging conventions would have links only. The default here is the parent, a documented deviation: with links
only, a flow is one trace a hop, and Jaeger draws no edge between services.
"""

from collections.abc import Sequence

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext

from choreo.telemetry.setup import TraceMode

EMPTY = otel_context.Context()
"""Holds no span: what begins in it is a root."""
_CHILD_OF = {"opentracing.ref_type": "child_of"}
"""Without it Jaeger shows a parent that is linked to as well as FOLLOWS_FROM only."""

Hung = tuple[otel_context.Context, Sequence[Link]]


def below(cause: SpanContext, mode: TraceMode) -> Hung:
    """The context and the links to begin a span with that goes on where `cause` left off."""
    links = () if mode == "parent" else (Link(cause, _CHILD_OF if mode == "both" else None),)
    return EMPTY if mode == "link" else trace.set_span_in_context(NonRecordingSpan(cause), EMPTY), links


def apart(cause: SpanContext) -> Hung:
    """The same for a span that begins a trace of its own, linked to `cause`, in every mode.

    For whatever comes long after its cause: a trace a day long is found by no search. The one way to split, of an
    old hop (`split_after_s`), and of timers and replays (`UnitInfo.new_trace`, `Instrument.publish(new_trace=True)`).
    """
    return EMPTY, (Link(cause),)
