"""What single keywords of two plain schemas let through. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from choreo.schemas.shapes import canonical

_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_UPPER_OF_DECIMALS = ("x-digits-max", "x-decimal-places-max")
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_FORMATS_OF_ANY_TEXT = ("password", "path", "binary")
JUDGED = frozenset(
    (
        *_UPPER,
        *_UPPER_OF_DECIMALS,
        *_LOWER,
        *"type enum pattern format multipleOf not uniqueItems items prefixItems".split(),
        *"properties required additionalProperties patternProperties propertyNames".split(),
        *"dependentRequired dependentSchemas".split(),
    )
)
"""Keywords with a rule; of any other, the reader's must be the writer's."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One reason why the reader cannot read what the writer sends.

    Attributes:
        path: Where, as `total.currency`, `lines[].sku`, `pair[0]`, `labels{}`; empty at the top.
        rule: A stable word for programs.
        message: A sentence about the field, without its name.
    """

    path: str
    rule: str
    message: str


def value_differences(
    sent: Mapping[str, Any], expected: Mapping[str, Any], path: str, lenient: bool
) -> Iterator[Difference]:
    """Which values: enum, pattern and, leniently only, format, which Confluent's rules leave out."""
    if "enum" in expected:
        taken = {canonical(value) for value in expected["enum"]}
        if "enum" not in sent:
            yield Difference(path, "enum_added", "may be any value, and only some are expected")
        elif more := sorted({canonical(value) for value in sent["enum"]} - taken):
            yield Difference(path, "enum_narrowed", f"may be {', '.join(more)}, which is not expected")
    for name in ("pattern", "format") if lenient else ("pattern",):
        wanted = expected.get(name)
        if wanted is not None and wanted not in _FORMATS_OF_ANY_TEXT and wanted != sent.get(name):
            was = f"{name} {sent[name]!r}" if name in sent else f"no {name}"
            yield Difference(path, f"{name}_changed", f"has {was}, and {name} {wanted!r} is expected")


def bound_differences(sent: Mapping[str, Any], expected: Mapping[str, Any], path: str) -> Iterator[Difference]:
    """How large, how long, how many."""
    for names, sign in (((*_UPPER, *_UPPER_OF_DECIMALS), 1), (_LOWER, -1)):
        for name in names:
            wanted, had = expected.get(name), sent.get(name)
            if wanted is not None and (had is None or sign * had > sign * wanted):
                was = "none" if had is None else f"{had}"
                yield Difference(path, "bound_tightened", f"has {name} {was}, and {wanted} is expected")
    wanted, had = expected.get("multipleOf"), sent.get("multipleOf")
    if wanted is not None and (had is None or Decimal(str(had)) % Decimal(str(wanted)) != 0):
        was = "any number" if had is None else f"a multiple of {had}"
        yield Difference(path, "bound_tightened", f"is {was}, and a multiple of {wanted} is expected")
