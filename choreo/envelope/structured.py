"""CloudEvents' structured mode: the whole event, attributes included, in the value of its record."""

import base64
import binascii
import json
from collections.abc import Mapping

import orjson

from choreo.envelope.attributes import Envelope, checked, require_json, text_of
from choreo.errors import DecodeError


def is_structured(headers: Mapping[str, bytes | None]) -> bool:
    """Whether the record holds the whole event, attributes included, in its value."""
    return (headers.get("content-type") or b"")[:23].lower() == b"application/cloudevents"


def read_structured(by_name: Mapping[str, bytes | None], value: bytes) -> tuple[Envelope, bytes]:
    """The envelope and data of a record whose content type says that it holds an event.

    Raises:
        DecodeError: `unsupported_content_type`, where it is in another format than JSON; those of `read_event`.
    """
    content_type = (text_of(by_name.get("content-type")) or "").split(";")[0].strip().lower()
    if content_type != "application/cloudevents+json":
        # The Kafka binding has no batch mode, and other formats than JSON (Avro, Protobuf) are not read.
        raise DecodeError("unsupported_content_type", "only application/cloudevents+json is read")
    return read_event(by_name, value)


def read_event(by_name: Mapping[str, bytes | None], value: bytes) -> tuple[Envelope, bytes]:
    """The envelope and data of an event in CloudEvents' JSON format.

    Raises:
        DecodeError: `not_cloudevents`, `missing_attribute`, `bad_attribute`, `unsupported_specversion`,
            `unsupported_content_type`, `not_json`.
    """
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
    envelope = checked(attributes, {**by_name, **_trace_headers(attributes, by_name)})
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
    require_json(attributes.get("datacontenttype"))
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
