"""Fields that nobody is to read over somebody's shoulder: marked once, left out of whatever is shown to people.

    class PaymentAsked(Event, type="payment.asked", version=1, topic="payments", key="order_id"):
        order_id: UUID
        card: Annotated[str, Sensitive]

It is left out of `repr()`, and so of what is logged; `choreo dlq show` and `choreo instances show` put `***` in its
place; the exported JSON Schema says `"x-sensitive": true`. On the topic, in the store and to handlers it is plain: a
mark is no encryption. Mark the field, not an item of it: `Annotated[list[str], Sensitive]`. Models within are looked
into. Pydantic's `SecretStr` is refused, for JSON of it is `**********`, which is all that the next service would get.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, Field, PydanticUserError, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic.functional_serializers import PlainSerializer, WrapSerializer

from choreo.errors import DeclarationError

KEYWORD = "x-sensitive"
REDACTED = "***"
Sensitive: Any = Field(repr=False, json_schema_extra={KEYWORD: True})
"""The mark: `Annotated[str, Sensitive]`."""


def is_sensitive(model: type[BaseModel], field: str) -> bool:
    """Whether the field itself is marked."""
    return _marks(model.model_fields[field])


def refuse_secret_types(model: type[BaseModel]) -> None:
    """Called when a class is defined whose JSON is sent or stored.

    Raises:
        DeclarationError: A field is a SecretStr or SecretBytes without a serializer: its value would be lost.
    """
    serializers = model.__pydantic_decorators__.field_serializers.values()
    serialized = {name for each in serializers for name in each.info.fields}
    for name, field in model.model_fields.items():
        if name in serialized or any(isinstance(each, PlainSerializer | WrapSerializer) for each in field.metadata):
            continue
        secret = next((each for each in _types(field.annotation) if each in (SecretStr, SecretBytes)), None)
        if secret is not None:
            plain = "str" if secret is SecretStr else "bytes"
            raise DeclarationError(
                f"{model.__name__}.{name}: the JSON of a {secret.__name__} is '**********', which is all that would "
                f"be sent; write Annotated[{plain}, Sensitive], of choreo.sensitive"
            )


def redacted(model: type[BaseModel], data: Any) -> Any:
    """JSON data of the model, valid or not, with REDACTED for what is marked; None stays None.

    All of it is REDACTED where it cannot be told what is marked.
    """
    if not has_sensitive(model):
        return data
    try:
        for schema in _schemas(model):
            data = _redacted(data, schema, schema.get("$defs", {}))
    except (PydanticUserError, RecursionError):
        return REDACTED
    return data


@functools.cache
def has_sensitive(model: type[BaseModel]) -> bool:
    """Whether anything in it is marked."""
    return any(map(_marks, _types(model)))


@functools.cache
def _schemas(model: type[BaseModel]) -> tuple[dict[str, Any], ...]:
    """As it is read, by either name of a field, and as it is written."""
    return (
        model.model_json_schema(),
        model.model_json_schema(by_alias=False),
        model.model_json_schema(mode="serialization"),
    )


def _redacted(data: Any, schema: Any, definitions: Mapping[str, Any]) -> Any:
    if not isinstance(schema, dict) or data is None:
        return data
    if schema.get(KEYWORD):
        return REDACTED
    if "$ref" in schema:
        data = _redacted(data, definitions.get(schema["$ref"].rpartition("/")[2]), definitions)
    for word in ("anyOf", "oneOf", "allOf"):
        for branch in schema.get(word, ()):
            data = _redacted(data, branch, definitions)
    if isinstance(data, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        return {name: _redacted(value, known.get(name, others), definitions) for name, value in data.items()}
    if isinstance(data, list):
        first, others = schema.get("prefixItems", ()), schema.get("items")
        return [
            _redacted(value, first[place] if place < len(first) else others, definitions)
            for place, value in enumerate(data)
        ]
    return data


def _types(annotation: Any, seen: frozenset[Any] = frozenset()) -> Iterator[Any]:
    """All that an annotation is made of, fields of models included, and what they are annotated with."""
    yield annotation
    for each in get_args(annotation):
        yield from _types(each, seen)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
        for field in annotation.model_fields.values():
            yield field
            yield from _types(field.annotation, seen | {annotation})


def _marks(found: Any) -> bool:
    extra = found.json_schema_extra if isinstance(found, FieldInfo) else None
    return isinstance(extra, dict) and bool(extra.get(KEYWORD))
