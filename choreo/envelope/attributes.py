"""What is known of an event beside its data: CloudEvents' attributes, checked, and the trace it belongs to."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from choreo.errors import DecodeError

ID_BYTES_MAX = 1024
"""Longest id, source or type read. An id is copied into every follow-on event; a megabyte of it is an attack."""
TRACESTATE_BYTES_MAX = 512
"""W3C asks to propagate at least 512 characters; what is longer, a traceparent too, is dropped whole."""
CORE = ("specversion", "id", "source", "type", "time", "subject", "dataschema")
NO_EXTENSIONS: Mapping[str, str] = {}
_EXTENSION = re.compile(r"[a-z0-9]{1,64}\Z")
_SCHEMA_PREFIX = "urn:choreo:"


class TraceContext(NamedTuple):
    """The headers of W3C Trace Context that an event is sent with."""

    traceparent: str | None
    tracestate: str | None


class Envelope(NamedTuple):
    """What is known of an event beside its data. A named tuple as records are, and for the same reason.

    Attributes:
        id: Unique within `source`; two events with one `source` and `id` are the same event.
        source: URI-reference of who emitted it; choreo writes `/<service>`.
        type: The event's type, such as `order.placed`.
        version: The version its producer stated, or None where it stated none.
        time: RFC 3339 text as it was sent, never interpreted by choreo.
        correlationid: Id of the event that began the flow.
        causationid: Id of the event that caused this one, None at the beginning of a flow.
        traceparent: W3C header of the span that sent it, unchecked but for its length.
        extensions: Further CloudEvents extensions by name.
    """

    id: str
    source: str
    type: str
    version: int | None = None
    time: str | None = None
    subject: str | None = None
    dataschema: str | None = None
    correlationid: str = ""
    causationid: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    extensions: Mapping[str, str] = NO_EXTENSIONS

    def traced(self, traceparent: str | None, tracestate: str | None) -> "Envelope":
        """The same envelope sent from another span."""
        return Envelope(*self[:9], traceparent, tracestate, self.extensions)


def checked(attributes: Mapping[str, str], by_name: Mapping[str, bytes | None]) -> Envelope:
    """The envelope of these attributes and the trace headers of `by_name`.

    Raises:
        DecodeError: `missing_attribute`, `bad_attribute`, `unsupported_specversion`.
    """
    specversion = attributes.get("specversion", "1.0")
    if specversion != "1.0":
        raise DecodeError("unsupported_specversion", "specversion is not 1.0")
    for name in ("id", "source", "type"):
        text = attributes.get(name)
        if not text:
            raise DecodeError("missing_attribute", f"the CloudEvents attribute {name} is missing or empty")
        if len(text.encode()) > ID_BYTES_MAX:
            raise DecodeError("bad_attribute", f"{name} is longer than {ID_BYTES_MAX} bytes")
    id_, dataschema = attributes["id"], attributes.get("dataschema")
    extensions = {
        name: text
        for name, text in attributes.items()
        if name not in CORE and name not in ("correlationid", "causationid") and _EXTENSION.match(name)
    }
    traceparent, tracestate = by_name.get("traceparent"), by_name.get("tracestate")
    return Envelope(
        id=id_,
        source=attributes["source"],
        type=attributes["type"],
        version=version_of(attributes["type"], dataschema),
        time=attributes.get("time"),
        subject=attributes.get("subject"),
        dataschema=dataschema,
        correlationid=_short(attributes.get("correlationid")) or id_,
        causationid=_short(attributes.get("causationid")),
        traceparent=text_of(traceparent) if traceparent and len(traceparent) <= TRACESTATE_BYTES_MAX else None,
        tracestate=text_of(tracestate) if tracestate and len(tracestate) <= TRACESTATE_BYTES_MAX else None,
        extensions=extensions or NO_EXTENSIONS,
    )


def schema_urn(type_: str, version: int) -> str:
    """The `dataschema` of an event type's version."""
    return f"{_SCHEMA_PREFIX}{type_}:{version}"


def version_of(type_: str, dataschema: str | None) -> int | None:
    """The version that a `dataschema` states: None where it is none of ours, -1 where it is no number."""
    start = f"{_SCHEMA_PREFIX}{type_}:"
    if dataschema is None or not dataschema.startswith(start):
        return None
    digits = dataschema[len(start) :]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else -1


def require_json(content_type: str | None) -> None:
    """Let pass what is stated to be JSON, or nothing.

    Raises:
        DecodeError: `unsupported_content_type`.
    """
    if not content_type:
        return
    media_type = content_type.split(";")[0].strip().lower()
    if media_type not in ("application/json", "text/json") and not media_type.endswith("+json"):
        raise DecodeError("unsupported_content_type", "the content type is not JSON")


def text_of(raw: bytes | None) -> str | None:
    """A header's value; None if it is null or no UTF-8."""
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None


def _short(text: str | None) -> str | None:
    return text if text and len(text.encode()) <= ID_BYTES_MAX else None
