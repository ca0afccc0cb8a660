"""A span as the current one while a handler runs, so that spans of the handler's own nest below it."""

from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace

from choreo.telemetry.watching import contain


def attach(span: trace.Span) -> None:
    """In the current context from here on, which is the handler's alone."""
    try:
        otel_context.attach(trace.set_span_in_context(span))
    except Exception as error:
        contain("attach", error)


async def within(span: trace.Span, function: Callable[[], Awaitable[Any]]) -> Any:
    """Call the function with it, and return what that returns."""
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        result = await function()
    except GeneratorExit:
        raise  # closed from another context, where the token means nothing
    except BaseException:
        otel_context.detach(token)
        raise
    otel_context.detach(token)
    return result
