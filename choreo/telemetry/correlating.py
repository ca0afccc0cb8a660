"""What a log record is about: the trace, the flow, the service and handler that were running when it was made."""

import logging
import sys

from choreo.context import invocation
from choreo.telemetry.traceparent import parse

FIELDS = ("trace_id", "span_id", "correlation_id", "service", "handler", "event_id", "event_type", "attempt")


class CorrelationFilter(logging.Filter):
    """Puts FIELDS on each record, empty where they are not known; drops none.

        handler.addFilter(CorrelationFilter())

    On a logging handler, not on a logger: it is to see the records of every logger, whoever's. What a record has
    already, by `extra=`, is kept. Ids of trace and span are those of the span that is current, in hexadecimal; where
    nothing is traced in this process, the trace id is the one the event came with.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """True, always."""
        found = record.__dict__
        context = invocation.get()
        if context is not None:
            for name, value in context.about.items():
                found.setdefault(name, value)
        trace = sys.modules.get("opentelemetry.trace")
        span = None if trace is None else trace.get_current_span().get_span_context()
        if span is not None and span.is_valid:
            found.setdefault("trace_id", f"{span.trace_id:032x}")
            found.setdefault("span_id", f"{span.span_id:016x}")
        elif context is not None and (parent := parse(context.envelope.traceparent)) is not None:
            found.setdefault("trace_id", f"{parent.trace_id:032x}")
        for name in FIELDS:
            found.setdefault(name, "")
        return True
