"""The trace context of what is running, for what is sent later on its behalf."""

import sys

from choreo.telemetry.traceparent import render


def current_context() -> tuple[str | None, str | None]:
    """`traceparent` and `tracestate` of the current span, sampled or not; None where there is none.

    Where nobody has imported OpenTelemetry there is no span, and it is not imported to find out.
    """
    trace = sys.modules.get("opentelemetry.trace")
    span = None if trace is None else trace.get_current_span().get_span_context()
    if span is None or not span.is_valid:
        return None, None
    return render(span.trace_id, span.span_id, span.trace_flags), span.trace_state.to_header() or None
