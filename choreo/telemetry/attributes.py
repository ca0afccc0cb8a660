"""What spans say, by OpenTelemetry's messaging conventions 1.44 and CloudEvents'; all of them still in development.

The strings are copied: the conventions' own package keeps them under `_incubating` and may rename them.
"""

from opentelemetry.util.types import AttributeValue

from choreo.envelope import ID_BYTES_MAX, Envelope
from choreo.ports import Peer, UnitInfo

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
Attributes = dict[str, AttributeValue]


def of_client(system: str, peer: Peer) -> Attributes:
    """What all spans of a client say: the system, and whom it talks to, as far as that is known."""
    found: dict[str, AttributeValue | None] = {
        "messaging.system": system,
        "messaging.client.id": peer.client_id,
        "messaging.kafka.cluster.id": peer.cluster_id,
        "server.address": peer.address,
        "server.port": peer.port,
    }
    return {name: value for name, value in found.items() if value is not None}


def of_process(always: Attributes, unit: UnitInfo) -> Attributes:
    """A `process` span's attributes: `always`, the record's place, its event's ids."""
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
    _of_key(attributes, record.key)
    if record.value is None:
        attributes["messaging.kafka.message.tombstone"] = True
    return attributes


def of_send(always: Attributes, topic: str, envelope: Envelope, key: bytes | None) -> Attributes:
    """A `send` span's attributes; where in the topic the event ends up is not known yet."""
    attributes: Attributes = {
        **always,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
    }
    _of_event(attributes, envelope)
    _of_key(attributes, key)
    return attributes


def type_name(error: BaseException) -> str:
    """`error.type`: the class by its full name, never the message, which may hold secrets."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _of_key(attributes: Attributes, key: bytes | None) -> None:
    if key is not None and len(key) <= ID_BYTES_MAX:
        try:
            attributes["messaging.kafka.message.key"] = key.decode()
        except UnicodeDecodeError:
            pass


def _of_event(attributes: Attributes, envelope: Envelope) -> None:
    if not envelope.id:
        return  # the dead letter of a record that is no event
    attributes["messaging.message.id"] = envelope.id
    attributes["cloudevents.event_type"] = envelope.type
    attributes["cloudevents.event_source"] = envelope.source
    if envelope.version is not None:
        attributes["choreo.event_version"] = envelope.version
    if envelope.correlationid:
        attributes["messaging.message.conversation_id"] = envelope.correlationid
