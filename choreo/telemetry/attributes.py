"""What spans say, by OpenTelemetry's messaging conventions 1.44 and CloudEvents'; all of them still in development.

The strings are copied: the conventions' own package keeps them under `_incubating` and may rename them.
"""

from opentelemetry.util.types import AttributeValue

from choreo.envelope import ID_BYTES_MAX, Envelope
from choreo.ports import UnitInfo

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
Attributes = dict[str, AttributeValue]


def of_process(always: Attributes, unit: UnitInfo) -> Attributes:
    """A `process` span's attributes: `always`, the record's place, its event's ids, the unit's own."""
    record, envelope = unit.record, unit.envelope
    attributes: Attributes = {
        **always,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": record.topic,
        "messaging.destination.partition.id": str(record.partition),
        "messaging.kafka.offset": record.offset,
        "messaging.consumer.group.name": unit.group,
        "choreo.handler": unit.handler,
    }
    if envelope is not None:
        _of_event(attributes, envelope)
    key = record.key
    if key is not None and len(key) <= ID_BYTES_MAX:
        try:
            attributes["messaging.kafka.message.key"] = key.decode()
        except UnicodeDecodeError:
            pass
    if record.value is None:
        attributes["messaging.kafka.message.tombstone"] = True
    if unit.attributes:
        attributes.update(unit.attributes)
    return attributes


def of_send(always: Attributes, topic: str, envelope: Envelope) -> Attributes:
    """A `send` span's attributes; where in the topic the event ends up is not known yet."""
    attributes: Attributes = {
        **always,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
    }
    _of_event(attributes, envelope)
    return attributes


def type_name(error: BaseException) -> str:
    """`error.type`: the class by its full name, never the message, which may hold secrets."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _of_event(attributes: Attributes, envelope: Envelope) -> None:
    attributes["messaging.message.id"] = envelope.id
    attributes["cloudevents.event_type"] = envelope.type
    attributes["cloudevents.event_source"] = envelope.source
    if envelope.correlationid:
        attributes["messaging.message.conversation_id"] = envelope.correlationid
