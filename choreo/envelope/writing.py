"""An envelope as record headers, in CloudEvents' binary mode."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

from choreo.envelope.attributes import Envelope, schema_urn
from choreo.record import Header, Headers

Constant = tuple[tuple[Header, ...], Header | None]
"""Those of source, type and content type, and that of the schema, if any."""


def write(envelope: Envelope) -> Headers:
    """Record headers of an event in binary mode: UTF-8, none null, no name twice."""
    id_, source, type_, version, time, subject, dataschema, correlation, causation, parent, state, extensions = (
        envelope
    )
    constant = constant_headers(source, type_, dataschema, version)
    return binary(constant, id_, correlation, time, subject, causation, parent, state, extensions)


def binary(
    constant: Constant,
    id_: str,
    correlation: str,
    time: str | None,
    subject: str | None,
    causation: str | None,
    parent: str | None,
    state: str | None,
    extensions: Mapping[str, str],
) -> Headers:
    """What `write` makes of an envelope: the `constant_headers` of its kind, and those of its own."""
    first, schema = constant
    headers: list[Header] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", id_.encode()),
        *first,
        ("ce_correlationid", correlation.encode()),
    ]
    if time:
        headers.append(("ce_time", time.encode()))
    if subject:
        headers.append(("ce_subject", subject.encode()))
    if schema is not None:
        headers.append(schema)
    if causation:
        headers.append(("ce_causationid", causation.encode()))
    if parent:
        headers.append(("traceparent", parent.encode()))
    if state:
        headers.append(("tracestate", state.encode()))
    if extensions:
        headers += [("ce_" + name, text.encode()) for name, text in extensions.items()]
    return tuple(headers)


@lru_cache(maxsize=256)
def constant_headers(source: str, type_: str, dataschema: str | None, version: int | None) -> Constant:
    """Headers that are the same for every event of a type from one source."""
    schema = dataschema
    if schema is None and version is not None:
        schema = schema_urn(type_, version)
    first = ("ce_source", source.encode()), ("ce_type", type_.encode()), ("content-type", b"application/json")
    return first, ("ce_dataschema", schema.encode()) if schema else None


def rfc3339(now_s: float) -> str:
    """A time as CloudEvents wants it."""
    return _rfc3339(round(now_s * 1e6) // 1000)


@lru_cache(maxsize=64)
def _rfc3339(now_ms: int) -> str:
    moment = datetime.fromtimestamp(now_ms // 1000, UTC).replace(microsecond=now_ms % 1000 * 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
