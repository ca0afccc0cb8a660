"""A record for programs, byte for byte, and text of somebody else for a terminal."""

import base64
from collections.abc import Sequence
from typing import Any

import orjson
from rich.markup import escape

from choreo import envelope as cloudevents
from choreo.errors import DecodeError
from choreo.event import Event
from choreo.record import Record
from choreo.sensitive import REDACTED, has_sensitive, redacted


def exported(record: Record) -> dict[str, Any]:
    """The record as JSON has it: bytes are text where they are UTF-8, else base64 under `<name>_base64`."""
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        **_bytes("key", record.key),
        **_bytes("value", record.value),
        "headers": [
            {**_bytes("name", name.encode("utf-8", "surrogateescape")), **_bytes("value", value)}
            for name, value in record.headers
        ],
    }


def without_sensitive(record: Record, classes: Sequence[type[Event]]) -> Record:
    """The record with `***` for what any of `classes`, all of its event's type, has marked as Sensitive.

    Its whole value is `***` where something may be marked and cannot be told apart: it is no JSON, or of a version
    that none of the classes has. Of structured mode only the data is left.
    """
    if record.value is None or not any(map(has_sensitive, classes)):
        return record
    hidden = record._replace(value=REDACTED.encode())
    try:
        envelope, value = cloudevents.read(record.headers, record.value)
        data = orjson.loads(value)
    except (DecodeError, ValueError):
        return hidden
    if envelope.type not in {each.event_type for each in classes}:
        return hidden
    if envelope.version not in (None, *(each.event_version for each in classes)):
        return hidden
    for each in classes:
        data = redacted(each, data)
    return record._replace(value=orjson.dumps(data))


def _bytes(name: str, raw: bytes | None) -> dict[str, str | None]:
    if raw is None:
        return {name: None}
    try:
        return {name: raw.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(raw).decode()}


def shown(text: str) -> str:
    """Text of somebody else, for a terminal: no markup, no control characters."""
    return escape("".join(char if char.isprintable() else "?" for char in text))
