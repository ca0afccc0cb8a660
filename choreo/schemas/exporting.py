"""From declarations to one JSON Schema an event version: the data as it is on the log. Pure; files are another's.

Of a version that somebody here emits (a handler, or whoever begins a flow) the schema is what is sent; of one that is
only consumed here, what its handlers need. Several classes of one version are put together: any of what is sent, all
of what is needed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, unquote

from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from choreo.binding import BoundHandler
from choreo.envelope import schema_urn
from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.process.timing import from_others

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Version = tuple[str, int]
"""Event type and version."""
Mode = Literal["serialization", "validation"]


@dataclass(frozen=True, slots=True)
class Contract:
    """One event version as it is declared today.

    Attributes:
        classes: The classes the document is made of.
        emitted: Whether somebody here sends it.
        document: Its JSON Schema.
        consumers: `service.handler` -> the class that handler reads it as.
    """

    version: Version
    classes: tuple[type[Event], ...]
    emitted: bool
    document: Mapping[str, Any]
    consumers: Mapping[str, type[Event]] = field(default_factory=dict)


def contracts(handlers: Iterable[BoundHandler], starts: Iterable[type[Event]] = ()) -> dict[Version, Contract]:
    """Every event version the handlers take or emit, by type and version, in that order.

    Args:
        starts: Events that begin flows; somebody publishes them with these classes.

    Raises:
        DeclarationError: A field has a type that no JSON Schema can be given for.
    """
    sent: dict[Version, set[type[Event]]] = {}
    read: dict[Version, dict[str, type[Event]]] = {}
    for bound in handlers:
        for event in bound.emits:
            sent.setdefault(_version(event), set()).add(event)
        for event in from_others(bound.handler.events):
            read.setdefault(_version(event), {})[bound.handler.label] = event
    for event in starts:
        sent.setdefault(_version(event), set()).add(event)
    found = {}
    for version in sorted({*sent, *read}):
        emitted = version in sent
        classes = tuple(sorted({*(sent[version] if emitted else read[version].values())}, key=_full_name))
        document = _document(version, classes, emitted, "serialization" if emitted else "validation")
        found[version] = Contract(version, classes, emitted, document, read.get(version, {}))
    return found


def accepted(contract: Contract) -> Mapping[str, Any]:
    """What the classes of a contract take, put together as its document is.

    Raises:
        DeclarationError: A field has a type that no JSON Schema can be given for.
    """
    return _document(contract.version, contract.classes, contract.emitted, "validation")


def needs(event: type[Event]) -> Mapping[str, Any]:
    """What a handler of `event` needs of a record's data.

    Raises:
        DeclarationError: A field has a type that no JSON Schema can be given for.
    """
    (body,), definitions = _schemas((event,), "validation")
    return {**body, "$defs": definitions}


def rendered(document: Mapping[str, Any]) -> bytes:
    """The bytes of a file: the same declarations, the same bytes, with one release of pydantic."""
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def file_name(version: Version) -> str:
    """Where the schema of an event version is, below the folder of them all: `order.placed/1.json`."""
    type_, number = version
    return f"{quote(type_, safe='')}/{number}.json"


def version_of(name: str) -> Version | None:
    """The event version a file is about; None if it is no file of ours."""
    folder, _, file = name.rpartition("/")
    digits = file.removesuffix(".json")
    if not folder or "/" in folder or digits == file or not (digits.isascii() and digits.isdigit()):
        return None
    return unquote(folder), int(digits)


def _version(event: type[Event]) -> Version:
    return event.event_type, event.event_version


def _full_name(event: type[Event]) -> str:
    return f"{event.__qualname__} {event.__module__}"


def _document(version: Version, classes: tuple[type[Event], ...], emitted: bool, mode: Mode) -> dict[str, Any]:
    schemas, definitions = _schemas(classes, mode)
    body = schemas[0] if len(schemas) == 1 else {"anyOf" if emitted else "allOf": schemas}
    document = {"$schema": DIALECT, "$id": schema_urn(*version), **body}
    return {**document, "$defs": definitions} if definitions else document


def _schemas(classes: tuple[type[Event], ...], mode: Mode) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A schema a class, in order, and the definitions they share."""
    try:
        references, shared = models_json_schema([(each, mode) for each in classes], schema_generator=_Generator)
    except PydanticUserError as error:
        names = ", ".join(each.__name__ for each in classes)
        raise DeclarationError(
            f"{names}: there is no JSON Schema of one of its fields ({error.code}); give the field "
            "pydantic.WithJsonSchema({...}) that says how it looks as JSON"
        ) from error
    definitions = shared["$defs"]
    roots = [references[each, mode]["$ref"].rpartition("/")[2] for each in classes]
    used = json.dumps(definitions)
    kept = {name: each for name, each in definitions.items() if name not in roots or f'"#/$defs/{name}"' in used}
    return [definitions[name] for name in roots], kept


class _Generator(GenerateJsonSchema):
    """Pydantic's, without a title a field, and with what it leaves out of decimal numbers in text."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        limits: dict[str, Any] = {
            keyword: _number(schema[name])  # type: ignore[literal-required]
            for name, keyword in _DECIMAL_LIMITS.items()
            if name in schema
        }
        text = {"type": "string", "format": "decimal", **limits}
        return text if self.mode == "serialization" else {"anyOf": [{"type": "number", **limits}, text]}


_DECIMAL_LIMITS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "max_digits": "x-digits-max",
    "decimal_places": "x-decimal-places-max",
}


def _number(value: Any) -> int | float:
    return int(value) if value == int(value) else float(value)
