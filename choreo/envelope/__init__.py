"""CloudEvents 1.0 attributes to and from Kafka record headers.

Binary mode is written (`ce_id`, `ce_source`, ..., `content-type`); binary and structured mode are read. The
attribute names are CloudEvents' own; `correlationid` and `causationid` are its Correlation extension. The
version of an event travels in `dataschema` as `urn:choreo:<type>:<version>`: CloudEvents gives the shape of
the data no other place, and a `dataschema` of somebody else's is left alone.

Source: CloudEvents 1.0.2, "Kafka Protocol Binding" and "JSON Event Format"; W3C Trace Context.
"""

from choreo.envelope.attributes import CORE, ID_BYTES_MAX, TRACESTATE_BYTES_MAX, Envelope, TraceContext, schema_urn
from choreo.envelope.reading import event_type, read, usual
from choreo.envelope.structured import is_structured
from choreo.envelope.writing import binary, constant_headers, rfc3339, write

__all__ = [
    "CORE",
    "ID_BYTES_MAX",
    "TRACESTATE_BYTES_MAX",
    "Envelope",
    "TraceContext",
    "binary",
    "constant_headers",
    "event_type",
    "is_structured",
    "read",
    "rfc3339",
    "schema_urn",
    "usual",
    "write",
]
