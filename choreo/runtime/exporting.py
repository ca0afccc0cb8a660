"""A record for programs, byte for byte, and text of somebody else for a terminal."""

import base64
from typing import Any

from rich.markup import escape

from choreo.record import Record


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
