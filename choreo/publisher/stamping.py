"""What an event gets on its way out of an application: id, source, correlation id, topic."""

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple
from uuid import uuid4

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.topic import prefixed, wire_value


class Reference(NamedTuple):
    """Where a published event can be found again; `correlation_id` follows its whole flow."""

    id: str
    correlation_id: str
    topic: str


class Stamped(NamedTuple):
    """An event on its way out; the envelope has no trace context yet."""

    reference: Reference
    envelope: Envelope
    key: bytes | None
    value: bytes


def stamped(
    event: Event,
    *,
    id: str | None,
    correlation_id: str | None,
    topic: Callable[[str], str],
    source: str,
    now_s: float,
) -> Stamped:
    """The event with what is said of it: its `id` or a new one, and the flow it belongs to or begins.

    Raises:
        DeclarationError: Its class has no type and topic, or the id cannot be read by anybody.
    """
    if not event.event_type:
        raise DeclarationError(f"{type(event).__name__} has no type and topic, so it cannot be published")
    id = id or str(uuid4())
    if len(id.encode()) > cloudevents.ID_BYTES_MAX:
        raise DeclarationError(f"an id of {len(id)} characters; {cloudevents.ID_BYTES_MAX} bytes are read: hash it")
    reference = Reference(id, correlation_id or id, topic(event.event_topic))
    envelope = Envelope(
        id,
        source,
        event.event_type,
        version=event.event_version,
        time=cloudevents.rfc3339(now_s),
        correlationid=reference.correlation_id,
    )
    return Stamped(reference, envelope, event.record_key(), wire_value(reference.topic, envelope, event.payload()))


def topic_names(topics: Mapping[str, str] | None) -> Callable[[str], str]:
    """Logical to actual topic name: mapped as `App(topics=...)` does, `CHOREO_TOPIC_PREFIX` before it.

    What is a `Topic` stays one.
    """
    prefix = os.environ.get("CHOREO_TOPIC_PREFIX", "")
    names = {logical: prefixed(prefix, name) for logical, name in (topics or {}).items()}
    return lambda logical: names.get(logical) or prefix + logical
