"""A span as the current one while a handler runs, so that spans of the handler's own nest below it."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from choreo.telemetry.watching import contain

(_SPAN,) = trace.set_span_in_context(trace.INVALID_SPAN, Context())
"""The key that the API keeps the current span by; asking it to set one each time costs three times as much."""


def _accessors() -> tuple[Callable[[], Context], Callable[[Context], Any]]:
    """What gets and sets the current context: of the variable itself, where the API keeps it in one."""
    variable = getattr(getattr(otel_context, "_RUNTIME_CONTEXT", None), "_current_context", None)
    if isinstance(variable, ContextVar) and variable.get() is otel_context.get_current():
        return variable.get, variable.set
    return otel_context.get_current, otel_context.attach


_current, _attach = _accessors()


def attach(span: trace.Span) -> None:
    """In the current context from here on, which is the invocation's alone."""
    try:
        around = _current()
        _attach(Context({**around, _SPAN: span}) if around else Context({_SPAN: span}))
    except Exception as error:
        contain("attach", error)
