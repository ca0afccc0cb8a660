"""Delayed retries as records: what a service's delay topics hold, which it writes and reads itself.

A retry is the event's record, key and value byte for byte, with headers that name the one handler that failed and
count what it has tried. It is an emit of the unit that failed, so it commits with its key, or not at all. There is
one topic a delay, so the records of one become due in their order, and none waits behind one that is due later.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from choreo.record import Header, Headers
from choreo.runtime.replaying import ORIGINAL

RETRY_PREFIX = "choreo-retry-"
COUNT_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class Retried:
    """An event on its way to one handler again.

    Attributes:
        handler: The handler's name.
        number: Which delayed retry of it this is, from 1; part of its key, so that its duplicates are dropped.
        attempts: Invocations so far.
        original: Where the event lay first: topic, partition, offset, timestamp-ms.
    """

    handler: str
    number: int
    attempts: int
    original: Mapping[str, str]


def retried_headers(retried: Retried) -> list[Header]:
    """What a record of a delay topic says of itself."""
    said = {"handler": retried.handler, "number": str(retried.number), "attempts": str(retried.attempts)}
    said |= {f"original-{name}": text for name, text in retried.original.items()}
    return [(RETRY_PREFIX + name, text.encode("utf-8", "replace")) for name, text in said.items()]


def read_retried(headers: Headers) -> Retried | None:
    """What a record of a delay topic says of itself, or None if it is none of ours."""
    said = {
        name.removeprefix(RETRY_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(RETRY_PREFIX)
    }
    number, attempts = _count(said.get("number", "")), _count(said.get("attempts", ""))
    if not said.get("handler") or not number or attempts is None:
        return None
    original = {name: said.get(f"original-{name}", "") for name in ORIGINAL}
    return Retried(said["handler"], number, attempts, original)


def _count(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 7):
        return None
    return int(text) if int(text) <= COUNT_MAX else None
