"""A span as the current one while a handler runs, so that spans of the handler's own nest below it."""

from opentelemetry import context as otel_context
from opentelemetry import trace

from choreo.telemetry.watching import contain

(_SPAN,) = trace.set_span_in_context(trace.INVALID_SPAN, otel_context.Context())
"""The key that the API keeps the current span by; asking it to set one each time costs four times as much."""


def attach(span: trace.Span) -> None:
    """In the current context from here on, which is the invocation's alone."""
    try:
        otel_context.attach(otel_context.Context({**otel_context.get_current(), _SPAN: span}))
    except Exception as error:
        contain("attach", error)
