"""One JSON Schema as the rules see it: references followed, annotations gone, unions told apart. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Schema = Mapping[str, Any] | bool
Kind = Literal["anything", "nothing", "union", "all", "plain"]

ANNOTATIONS = frozenset(
    "$id $schema $defs $comment $anchor definitions title description default examples deprecated readOnly "
    "writeOnly discriminator x-sensitive".split()
)
"""Keywords that say nothing of which data is valid. `discriminator` is OpenAPI's; the branches' tags decide."""
_TYPE_OF_KEYWORD = {
    **dict.fromkeys(
        ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
        "object",
    ),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"), "array"),
}
_REFERENCES_MAX = 50


@dataclass(frozen=True, slots=True)
class Shape:
    """What a schema is at its top.

    Attributes:
        branches: Of a union (anyOf, oneOf, several types) or of allOf; two at least, none twice.
        exclusive: Whether the union is a oneOf.
        keywords: Of a plain schema, its assertions.
    """

    kind: Kind
    branches: Sequence[Schema] = ()
    exclusive: bool = False
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @property
    def type(self) -> str | None:
        """The JSON type, where it is stated or plain from the other keywords."""
        stated = self.keywords.get("type")
        if stated is not None:
            return str(stated)
        return next((_TYPE_OF_KEYWORD[each] for each in self.keywords if each in _TYPE_OF_KEYWORD), None)


def resolved(schema: Schema, root: Schema) -> Schema:
    """The schema with its `$ref` followed; what stands beside a reference is kept.

    Raises:
        ValueError: A reference leads out of the document, to nothing, or in a circle.
    """
    for _ in range(_REFERENCES_MAX):
        if isinstance(schema, bool) or "$ref" not in schema:
            return schema
        beside = {name: value for name, value in schema.items() if name != "$ref"}
        target = _target(str(schema["$ref"]), root)
        if isinstance(target, bool):
            return target
        schema = {**target, **beside}
    raise ValueError("its references lead in a circle")


def shape(schema: Schema, root: Schema) -> Shape:
    """What `schema`, a part of the document `root`, is at its top.

    Raises:
        ValueError: A reference cannot be followed.
    """
    schema = resolved(schema, root)
    if isinstance(schema, bool):
        return Shape("anything" if schema else "nothing")
    keywords = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
    if not keywords:
        return Shape("anything")
    for combiner in ("anyOf", "oneOf", "allOf"):
        if combiner in keywords:
            beside = {name: value for name, value in keywords.items() if name != combiner}
            branches = [_beside(branch, beside) for branch in keywords[combiner]]
            return _combined("all" if combiner == "allOf" else "union", branches, root, combiner == "oneOf")
    types = keywords.get("type")
    if isinstance(types, list):
        return _combined("union", [{**keywords, "type": each} for each in types], root)
    if "const" in keywords:
        keywords["enum"] = [keywords.pop("const")]
    return Shape("plain", keywords=keywords)


def _combined(kind: Kind, branches: Sequence[Schema], root: Schema, exclusive: bool = False) -> Shape:
    unique = list({canonical(branch): branch for branch in branches}.values())
    return shape(unique[0], root) if len(unique) == 1 else Shape(kind, unique, exclusive)


def _beside(branch: Schema, keywords: Mapping[str, Any]) -> Schema:
    return branch if isinstance(branch, bool) or not keywords else {**keywords, **branch}


def _target(reference: str, root: Schema) -> Schema:
    if not reference.startswith("#"):
        raise ValueError(f"its reference {reference!r} leads out of the document")
    found: Any = root
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            raise ValueError(f"its reference {reference!r} leads to nothing")
        found = found[name]
    return found if isinstance(found, bool) else dict(found)


def canonical(value: object) -> str:
    """Equal for equal JSON, and 1 is not true."""
    return json.dumps(value, sort_keys=True, default=str)
