"""What a JSON Schema says to a reader: fields with their types in words, and an example made of nothing else."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

DEPTH_MAX = 6
"""How deep an example goes; a schema that holds itself ends there."""
_FORMATS: Mapping[str, str] = {
    "uuid": "00000000-0000-4000-8000-000000000000",
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "name@example.org",
    "uri": "https://example.org/",
    "binary": "AA==",
}
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength", "pattern")


class Field(NamedTuple):
    """One field of an event: its type and bounds in words."""

    name: str
    type: str
    required: bool
    doc: str


def fields(schema: Mapping[str, Any]) -> list[Field]:
    """The fields of an object's schema, in the order they are declared."""
    top = _named(schema, schema) if "$ref" in schema else schema
    required = top.get("required", ())
    return [
        Field(name, type_text(each, schema), name in required, _doc(each, schema))
        for name, each in top.get("properties", {}).items()
    ]


def type_text(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A type as one would say it: `Money`, `OrderLine[]`, `uuid`, `"a" | "b"`, `integer or null`."""
    if "$ref" in part:
        named = _named(part, schema)
        return " | ".join(_plain(each) for each in named["enum"]) if "enum" in named else part["$ref"].split("/")[-1]
    if "const" in part:
        return _plain(part["const"])
    if "enum" in part:
        return " | ".join(_plain(each) for each in part["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in part:
            return " or ".join(dict.fromkeys(type_text(each, schema) for each in part[several]))
    if part.get("type") == "array":
        items = part.get("items") or {}
        inner = type_text(items, schema) if isinstance(items, Mapping) else "any"
        return f"({inner})[]" if " " in inner else f"{inner}[]"
    if part.get("type") == "object" and isinstance(part.get("additionalProperties"), Mapping):
        return f"map of {type_text(part['additionalProperties'], schema)}"
    words = str(part.get("format") or part.get("type") or "any")
    bounds = [f"{name} {part[name]}" for name in _BOUNDS if name in part]
    return f"{words} ({', '.join(bounds)})" if bounds else words


def example(schema: Mapping[str, Any]) -> Any:
    """A value of the schema's shape: its own examples and defaults where it has some, else made up."""
    return _example(schema, schema, 0)


def _example(part: Mapping[str, Any], schema: Mapping[str, Any], depth: int) -> Any:
    if part.get("examples"):
        return part["examples"][0]
    if "const" in part or "default" in part:
        return part.get("const", part.get("default"))
    if "enum" in part:
        return part["enum"][0]
    if depth > DEPTH_MAX:
        return None
    if "$ref" in part:
        return _example(_named(part, schema), schema, depth + 1)
    for several in ("anyOf", "oneOf", "allOf"):
        if part.get(several):
            return _example(part[several][0], schema, depth + 1)
    match part.get("type", "object" if "properties" in part else None):
        case "object":
            return {name: _example(each, schema, depth + 1) for name, each in part.get("properties", {}).items()}
        case "array":
            items = part.get("prefixItems") or [part.get("items") or {}] * max(1, part.get("minItems", 1))
            return [_example(each, schema, depth + 1) for each in items[:3]]
        case "string":
            return _text(part)
        case "integer" | "number":
            return _number(part)
        case "boolean":
            return True
    return None


def _text(part: Mapping[str, Any]) -> str:
    if part.get("format") in _FORMATS:
        return _FORMATS[part["format"]]
    if "pattern" in part:
        return f"matches {part['pattern']}"
    return "text"[: part.get("maxLength", 4)].ljust(part.get("minLength", 0), "t")


def _number(part: Mapping[str, Any]) -> float:
    least = part.get("minimum", part.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in part))
    most = part.get("maximum", part.get("exclusiveMaximum", least + 2) - ("exclusiveMaximum" in part))
    chosen: float = max(least, min(1, most))
    return chosen


def _named(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = schema.get("$defs", {}).get(part["$ref"].split("/")[-1], {})
    return found


def _doc(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    return str(part.get("description") or (_named(part, schema).get("description", "") if "$ref" in part else ""))


def _plain(value: Any) -> str:
    return orjson.dumps(value).decode()
