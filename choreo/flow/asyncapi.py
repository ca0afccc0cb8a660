"""One service of a capability as an AsyncAPI 3.1.0 document with Kafka bindings.

`action` is the service's own view. Messages lie inside their channel and operations refer to them there, as the
specification wants it. What a handler emits for what it receives has no field there, hence `x-choreo-emits`.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from choreo.flow.model import Capability, DeclaredEvent, DeclaredHandler, DeclaredService, Direction, EventRef

VERSION, BINDING = "3.1.0", "0.5.0"
_HEADERS: Mapping[str, Any] = {
    "type": "object",
    "required": ["ce_specversion", "ce_id", "ce_source", "ce_type"],
    "properties": {
        "ce_specversion": {"type": "string", "const": "1.0"},
        "ce_id": {"type": "string", "description": "Unique within ce_source; with it, what duplicates are known by."},
        "ce_source": {"type": "string"},
        "ce_type": {"type": "string"},
        "ce_correlationid": {"type": "string", "description": "Id of the event that began the flow."},
        "ce_causationid": {"type": "string", "description": "Id of the event that caused this one."},
        "ce_dataschema": {"type": "string", "description": "urn:choreo:<type>:<version>"},
        "traceparent": {"type": "string"},
    },
}


def asyncapi(capability: Capability, service: str) -> dict[str, Any]:
    """The document of one service.

    Raises:
        ConfigurationError: There is no such service.
    """
    (declared,) = capability.of(service).services
    schemas = _Schemas()
    channels: dict[str, Any] = {}
    for ref, direction in sorted(_messages(declared), key=lambda each: (each[0].topic, _message_id(*each))):
        channel = channels.setdefault(ref.topic, _channel(ref.topic))
        channel["messages"][_message_id(ref, direction)] = _message(declared, ref, direction, schemas)
    operations: dict[str, Any] = {}
    for handler in declared.handlers:
        operations |= _received(declared, handler)
    for handler in declared.handlers:
        for emit in handler.emits:
            operations[_send_id(emit)] = {
                "action": "send",
                "channel": {"$ref": _pointer("channels", emit.topic)},
                "messages": [{"$ref": _message_pointer(emit, "send")}],
            }
    raw = declared.model_dump_json().encode()
    return {
        "asyncapi": VERSION,
        "info": {
            "title": declared.name,
            # Of what is declared and of nothing else: equal declarations have equal versions.
            "version": blake2b(raw, digest_size=6).hexdigest(),
            "description": f"Generated from the declarations of the service {declared.name}.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": dict(sorted(schemas.found.items()))},
        "x-choreo-source": declared.source,
        "x-choreo-dead-letter-topic": declared.dead_letter_topic,
    }


def _messages(service: DeclaredService) -> set[tuple[EventRef, Direction]]:
    received: set[tuple[EventRef, Direction]] = {
        (ref, "receive") for each in service.handlers for ref in each.consumes
    }
    return received | {(_plain(emit), "send") for each in service.handlers for emit in each.emits}


def _received(service: DeclaredService, handler: DeclaredHandler) -> dict[str, Any]:
    """An operation for each topic the handler reads: an operation has one channel."""
    emits = [
        {"operation": _send_id(emit), "when": "always" if emit.min else "sometimes", "min": emit.min, "max": emit.max}
        for emit in handler.emits
    ]
    found = {}
    for topic in sorted({ref.topic for ref in handler.consumes}):
        messages = [{"$ref": _message_pointer(ref, "receive")} for ref in handler.consumes if ref.topic == topic]
        found[f"receive:{handler.name}:{topic}"] = {
            "action": "receive",
            "channel": {"$ref": _pointer("channels", topic)},
            "messages": messages,
            "bindings": {
                "kafka": {"groupId": {"type": "string", "enum": [service.group]}, "bindingVersion": BINDING}
            },
            "x-choreo-handler": handler.name,
            "x-choreo-emits": emits,
        }
    return found


def _channel(topic: str) -> dict[str, Any]:
    return {
        "address": topic,
        "messages": {},
        "bindings": {"kafka": {"topic": topic, "bindingVersion": BINDING}},
    }


def _message(service: DeclaredService, ref: EventRef, direction: Direction, schemas: "_Schemas") -> dict[str, Any]:
    events = [each for each in service.events if _plain(each) == ref and each.direction == direction]
    first = events[0]
    payloads = [{"$ref": f"#/components/schemas/{schemas.add(each)}"} for each in events]
    key = f"The text of the field {first.key}." if first.key else "No key: no order."
    return {
        "name": ref.type,
        "title": first.name,
        "summary": first.doc,
        "contentType": "application/json",
        "headers": _HEADERS,
        "correlationId": {"location": "$message.header#/ce_correlationid"},
        # Several classes of one event in one service: it accepts what all of them do, and sends what one of them is.
        "payload": payloads[0] if len(payloads) == 1 else {"allOf" if direction == "receive" else "anyOf": payloads},
        "bindings": {"kafka": {"key": {"type": "string", "description": key}, "bindingVersion": BINDING}},
        "x-choreo-version": ref.version,
        "x-choreo-kind": first.kind,
    }


def _plain(ref: EventRef) -> EventRef:
    return EventRef(type=ref.type, version=ref.version, topic=ref.topic)


def _message_id(ref: EventRef, direction: Direction) -> str:
    return f"{ref.type}.v{ref.version}.{direction}"


def _send_id(ref: EventRef) -> str:
    return f"send:{ref.type}.v{ref.version}:{ref.topic}"


def _message_pointer(ref: EventRef, direction: Direction) -> str:
    return _pointer("channels", ref.topic, "messages", _message_id(ref, direction))


def _pointer(*names: str) -> str:
    """RFC 6901: an event type may have a slash in it."""
    return "#/" + "/".join(name.replace("~", "~0").replace("/", "~1") for name in names)


class _Schemas:
    """`components/schemas`: the `$defs` of every event side by side; equal ones once, others of one name numbered."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def add(self, event: DeclaredEvent) -> str:
        """The name of the event's schema."""
        definitions = event.json_schema.get("$defs", {})
        own = {name: each for name, each in event.json_schema.items() if name != "$defs"}
        parts = {event.name: own, **definitions} if event.name not in definitions else dict(definitions)
        number = 1
        while True:
            names = {name: name if number == 1 else f"{name}-{number}" for name in parts}
            renamed = {names[name]: _refer(part, names) for name, part in parts.items()}
            if all(self.found.get(name, part) == part for name, part in renamed.items()):
                self.found |= renamed
                return names[event.name]
            number += 1


def _refer(part: Any, names: Mapping[str, str]) -> Any:
    """The same schema with its references to `$defs` turned to components."""
    if isinstance(part, list):
        return [_refer(each, names) for each in part]
    if not isinstance(part, dict):
        return part
    found = {name: _referred(each, names) if name == "$ref" else _refer(each, names) for name, each in part.items()}
    if "oneOf" in part and isinstance(part.get("discriminator"), dict):
        found["discriminator"] = part["discriminator"].get(
            "propertyName"
        )  # OpenAPI's is an object, AsyncAPI's a name
    return found


def _referred(pointer: Any, names: Mapping[str, str]) -> Any:
    prefix, _, name = str(pointer).rpartition("/")
    return f"#/components/schemas/{names[name]}" if prefix == "#/$defs" and name in names else pointer
