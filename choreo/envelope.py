"""CloudEvents 1.0 attributes to and from Kafka record headers.

Binary mode is written (`ce_id`, `ce_source`, ..., `content-type`); binary and structured mode are read. The
attribute names are CloudEvents' own; `correlationid` and `causationid` are its Correlation extension. The
version of an event travels in `dataschema` as `urn:choreo:<type>:<version>`: CloudEvents gives the shape of
the data no other place, and a `dataschema` of somebody else's is left alone.

Source: CloudEvents 1.0.2, "Kafka Protocol Binding" and "JSON Event Format"; W3C Trace Context.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import orjson

from choreo.errors import DecodeError
from choreo.record import Header, Headers, last_headers, new

ID_BYTES_MAX = 1024
"""Longest id, source or type read. An id is copied into every follow-on event; a megabyte of it is an attack."""
TRACESTATE_BYTES_MAX = 512
"""W3C asks to propagate at least 512 characters; what is longer, a traceparent too, is dropped whole."""
SCHEMA_PREFIX = "urn:choreo:"
CORE = ("specversion", "id", "source", "type", "time", "subject", "dataschema")
_PREFIX = "ce_"
_WANTED = (
    *("ce_specversion", "content-type", "ce_source", "ce_type", "ce_dataschema", "ce_id"),
    *("ce_time", "ce_subject", "ce_correlationid", "ce_causationid", "traceparent", "tracestate"),
)
"""What choreo writes where no extension is propagated."""
USUAL_BYTES_MAX = 512
LAYOUTS_MAX = 64
_USUAL = frozenset(_WANTED)
_LAYOUTS: dict[tuple[str, ...], Callable[[Sequence[bytes | None]], Sequence[Any]]] = {}
_EXTENSION = re.compile(r"[a-z0-9]{1,64}\Z")
Constant = tuple[tuple[Header, ...], Header | None]
"""Those of source, type and content type, and that of the schema, if any."""
_NO_EXTENSIONS: Mapping[str, str] = {}


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
    extensions: Mapping[str, str] = _NO_EXTENSIONS

    def traced(self, traceparent: str | None, tracestate: str | None) -> "Envelope":
        """The same envelope sent from another span."""
        return Envelope(*self[:9], traceparent, tracestate, self.extensions)


def event_type(headers: Mapping[str, bytes | None]) -> str | None:
    """The `ce_type` of a record in binary mode, without reading anything else; None if there is none."""
    return _text(headers.get("ce_type"))


def is_structured(headers: Mapping[str, bytes | None]) -> bool:
    """Whether the record holds the whole event, attributes included, in its value."""
    return (headers.get("content-type") or b"")[:23].lower() == b"application/cloudevents"


def read(headers: Headers, value: bytes) -> tuple[Envelope, bytes]:
    """The envelope and data (JSON bytes) of a record that is not a tombstone.

    Raises:
        DecodeError: `not_cloudevents`, `missing_attribute`, `bad_attribute`, `unsupported_specversion`,
            `unsupported_content_type`, `not_json`.
    """
    envelope = usual(headers)
    if envelope is not None:
        return envelope, value
    by_name = last_headers(headers)
    if is_structured(by_name):
        return _read_structured(by_name, value)
    attributes = {
        name[3:].lower(): text
        for name, raw in by_name.items()
        if name[:3].lower() == _PREFIX and (text := _text(raw)) is not None
    }
    for name in ("id", "source", "type"):
        if f"ce_{name}" in by_name and name not in attributes:
            raise DecodeError("bad_attribute", f"the header ce_{name} is not UTF-8")
    if not attributes:
        if b'"specversion"' in value:
            # CloudEvents' SDK for Python writes structured mode under the content type of the data, or under none.
            return _read_event(by_name, value)
        raise DecodeError("not_cloudevents", "the record has no ce_ headers and is not in structured mode")
    _require_json(_text(by_name.get("content-type")))
    return _envelope(attributes, by_name), value


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
        headers += [(_PREFIX + name, text.encode()) for name, text in extensions.items()]
    return tuple(headers)


@lru_cache(maxsize=256)
def constant_headers(source: str, type_: str, dataschema: str | None, version: int | None) -> Constant:
    """Headers that are the same for every event of a type from one source."""
    schema = dataschema
    if schema is None and version is not None:
        schema = f"{SCHEMA_PREFIX}{type_}:{version}"
    first = ("ce_source", source.encode()), ("ce_type", type_.encode()), ("content-type", b"application/json")
    return first, ("ce_dataschema", schema.encode()) if schema else None


def rfc3339(now_s: float) -> str:
    """A time as CloudEvents wants it."""
    return _rfc3339(round(now_s * 1e6) // 1000)


@lru_cache(maxsize=64)
def _rfc3339(now_ms: int) -> str:
    moment = datetime.fromtimestamp(now_ms // 1000, UTC).replace(microsecond=now_ms % 1000 * 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _envelope(attributes: Mapping[str, str], by_name: Mapping[str, bytes | None]) -> Envelope:
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
        version=_version(attributes["type"], dataschema),
        time=attributes.get("time"),
        subject=attributes.get("subject"),
        dataschema=dataschema,
        correlationid=_short(attributes.get("correlationid")) or id_,
        causationid=_short(attributes.get("causationid")),
        traceparent=_text(traceparent) if traceparent and len(traceparent) <= TRACESTATE_BYTES_MAX else None,
        tracestate=_text(tracestate) if tracestate and len(tracestate) <= TRACESTATE_BYTES_MAX else None,
        extensions=extensions or _NO_EXTENSIONS,
    )


def usual(headers: Headers) -> Envelope | None:
    """The envelope of a record as choreo writes it, at a quarter of the price of `read`; None: look more closely."""
    if not headers:
        return None
    names, values = zip(*headers)  # noqa: B905  # each is a pair
    pick = _LAYOUTS.get(names) or _layout(names)
    if pick is None:
        return None
    try:
        if len(b"".join(values)) > USUAL_BYTES_MAX:
            return None
    except TypeError:  # one is null
        return None
    version, content_type, source, type_, schema, raw_id, time, subject, correlation, causation, parent, state = pick(
        (*values, None)
    )
    if version != b"1.0" or content_type != b"application/json" or not (raw_id and source and type_):
        return None
    try:
        id_, (source_, type_name, stated, dataschema) = raw_id.decode(), _texts(source, type_, schema)
        return new(
            Envelope,
            (
                id_,
                source_,
                type_name,
                stated,
                None if time is None else time.decode(),
                None if subject is None else subject.decode(),
                dataschema,
                correlation.decode() if correlation else id_,
                causation.decode() if causation else None,
                parent.decode() if parent else None,
                state.decode() if state else None,
                _NO_EXTENSIONS,
            ),
        )
    except UnicodeDecodeError:
        return None


def _layout(names: tuple[str, ...]) -> Callable[[Sequence[bytes | None]], Sequence[Any]] | None:
    """What picks the values of `_WANTED` out of those of headers so called, and a None behind them."""
    if len(names) > len(_WANTED) or len(set(names)) < len(names) or not _USUAL.issuperset(names):
        return None
    pick = itemgetter(*(names.index(name) if name in names else len(names) for name in _WANTED))
    if len(_LAYOUTS) < LAYOUTS_MAX:
        _LAYOUTS[names] = pick
    return pick


@lru_cache(maxsize=256)
def _texts(source: bytes, type_: bytes, schema: bytes | None) -> tuple[str, str, int | None, str | None]:
    """What is the same for all events of one type from one source."""
    text = None if schema is None else schema.decode()
    return source.decode(), type_.decode(), _version(type_.decode(), text), text


def _read_structured(by_name: Mapping[str, bytes | None], value: bytes) -> tuple[Envelope, bytes]:
    content_type = (_text(by_name.get("content-type")) or "").split(";")[0].strip().lower()
    if content_type != "application/cloudevents+json":
        # The Kafka binding has no batch mode, and other formats than JSON (Avro, Protobuf) are not read.
        raise DecodeError("unsupported_content_type", "only application/cloudevents+json is read")
    return _read_event(by_name, value)


def _read_event(by_name: Mapping[str, bytes | None], value: bytes) -> tuple[Envelope, bytes]:
    event = _loads_exactly(value)
    if not isinstance(event, dict):
        raise DecodeError("not_cloudevents", "the structured event is not a JSON object")
    attributes = {
        name: text if isinstance(text, str) else orjson.dumps(text).decode()
        for name, text in event.items()
        if name not in ("data", "data_base64") and isinstance(text, (str, int, bool))
    }
    for name in ("id", "source", "type"):
        if name in event and not isinstance(event[name], str):
            raise DecodeError("bad_attribute", f"{name} is not a string")
    envelope = _envelope(attributes, {**by_name, **_trace_headers(attributes, by_name)})
    if "data_base64" in event:
        try:
            data = base64.b64decode(event["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise DecodeError("bad_attribute", "data_base64 is not base64") from None
    else:
        try:
            data = orjson.dumps(event.get("data"))
        except (TypeError, ValueError):
            raise DecodeError(
                "not_json", "the structured event holds text that is no Unicode, or nests deep"
            ) from None
    _require_json(attributes.get("datacontenttype"))
    return envelope, data


def _loads_exactly(value: bytes) -> object:
    """JSON whose long numbers keep every digit when they are written again."""
    try:
        orjson.loads(value)  # stricter: no lone surrogates, no NaN, a bound on depth
        return json.loads(
            value.decode(),
            parse_float=lambda text: orjson.Fragment(text.encode()),
            parse_int=lambda text: int(text) if len(text) < 16 else orjson.Fragment(text.encode()),
        )
    except (ValueError, RecursionError):
        raise DecodeError("not_json", "the structured event cannot be read as JSON") from None


def _trace_headers(attributes: Mapping[str, str], by_name: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
    """The Distributed Tracing extension, where a producer in structured mode sends no plain header."""
    names = ("traceparent", "tracestate") if by_name.get("traceparent") is None else ()
    return {name: attributes[name].encode() for name in names if name in attributes}


def _require_json(content_type: str | None) -> None:
    if not content_type:
        return
    media_type = content_type.split(";")[0].strip().lower()
    if media_type not in ("application/json", "text/json") and not media_type.endswith("+json"):
        raise DecodeError("unsupported_content_type", "the content type is not JSON")


def _version(type_: str, dataschema: str | None) -> int | None:
    start = f"{SCHEMA_PREFIX}{type_}:"
    if dataschema is None or not dataschema.startswith(start):
        return None
    digits = dataschema[len(start) :]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else -1


def _short(text: str | None) -> str | None:
    return text if text and len(text.encode()) <= ID_BYTES_MAX else None


def _text(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None
