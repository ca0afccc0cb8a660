"""Each kind of change, and whether each mode lets it through.

The verdicts of `backward` and `forward` are those of Confluent's rules for JSON Schema: what its checker lists as a
compatible change of the old schema into the new one, and of the new one into the old one. `full` is both of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from choreo.schemas.checking import POLICIES, changed

STRING, INTEGER, NUMBER, NULL = ({"type": each} for each in ("string", "integer", "number", "null"))
LIST = {"type": "array"}


def of(schema: Any, *required: str, **more: Any) -> dict[str, Any]:
    """An object with `foo`, a string, and `bar`; open unless `more` says otherwise."""
    return {"type": "object", "properties": {"foo": STRING, "bar": schema}, "required": list(required), **more}


def without(*required: str, **more: Any) -> dict[str, Any]:
    """The same without `bar`."""
    return {"type": "object", "properties": {"foo": STRING}, "required": list(required), **more}


def given(schema: Mapping[str, Any], **keywords: Any) -> dict[str, Any]:
    """A schema with more keywords."""
    return {**schema, **keywords}


CLOSED: dict[str, Any] = {"additionalProperties": False}
INTEGERS, NUMBERS, TEXTS = ({"additionalProperties": each} for each in (INTEGER, NUMBER, STRING))
ANY: dict[str, Any] = {"additionalProperties": True}
STRINGS: dict[str, Any] = {"additionalProperties": STRING}
NAMED: dict[str, Any] = {"additionalProperties": False, "patternProperties": {"^b": INTEGER}}
DEFAULT = given(STRING, default="x")


class Change(NamedTuple):
    """A change, and whether it is let through; `full` follows from `backward` and `forward`."""

    name: str
    old: Any
    new: Any
    lenient: bool
    backward: bool
    forward: bool


YES, NO = True, False
CHANGES = [
    # ---- annotations
    Change("title changed", given(STRING, title="a"), given(STRING, title="b"), YES, YES, YES),
    Change("description changed", given(STRING, description="a"), STRING, YES, YES, YES),
    Change("default changed", given(STRING, default="a"), given(STRING, default="b"), YES, YES, YES),
    Change("id changed", given(STRING, **{"$id": "a"}), given(STRING, **{"$id": "b"}), YES, YES, YES),
    # ---- properties, open
    Change("optional property added, open", without("foo"), of(NUMBER, "foo"), YES, NO, YES),
    Change("required property added, open", without("foo"), of(NUMBER, "foo", "bar"), NO, NO, YES),
    Change("required property with default added, open", without("foo"), of(DEFAULT, "foo", "bar"), YES, NO, YES),
    Change("property of any value added, open", without(), of(True), YES, YES, YES),
    Change("optional property removed, open", of(NUMBER, "foo"), without("foo"), YES, YES, NO),
    Change("required property removed, open", of(NUMBER, "bar"), without(), NO, YES, NO),
    Change("optional property renamed, open", of(STRING), {"properties": {"baz": STRING}}, YES, NO, NO),
    # ---- properties, closed
    Change("optional property added, closed", without(**CLOSED), of(NUMBER, **CLOSED), NO, YES, NO),
    Change("required property added, closed", without(**CLOSED), of(NUMBER, "bar", **CLOSED), NO, NO, NO),
    Change("required with default added, closed", without(**CLOSED), of(DEFAULT, "bar", **CLOSED), NO, YES, NO),
    Change("optional property removed, closed", of(NUMBER, **CLOSED), without(**CLOSED), NO, NO, YES),
    Change("required property removed, closed", of(NUMBER, "bar", **CLOSED), without(**CLOSED), NO, NO, NO),
    Change("property that is never there removed, closed", of(False, **CLOSED), without(**CLOSED), YES, YES, YES),
    # ---- properties, partially open
    Change("added, covered by additionalProperties", without(**STRINGS), of(STRING, **STRINGS), YES, YES, YES),
    Change("added, not covered by additionalProperties", without(**STRINGS), of(NUMBER, **STRINGS), NO, NO, NO),
    Change("required added, covered", without(**STRINGS), of(STRING, "bar", **STRINGS), NO, NO, YES),
    Change("added, covered by a narrower pattern", without(**NAMED), of(NUMBER, **NAMED), NO, YES, NO),
    Change("removed, now covered by additionalProperties", of(STRING, **CLOSED), without(**STRINGS), NO, YES, NO),
    Change("removed, not covered", of(NUMBER, **CLOSED), without(**STRINGS), NO, NO, NO),
    # ---- required
    Change("made optional", of(STRING, "bar"), of(STRING), NO, YES, NO),
    Change("made required", of(STRING), of(STRING, "bar"), NO, NO, YES),
    Change("made required with a default", of(STRING), of(DEFAULT, "bar"), YES, YES, YES),
    # ---- closing and opening
    Change("model closed", of(STRING), of(STRING, **CLOSED), NO, NO, YES),
    Change("model opened", of(STRING, **CLOSED), of(STRING), YES, YES, NO),
    Change("unknown fields sent, then forbidden", of(STRING, **ANY), of(STRING, **CLOSED), NO, NO, YES),
    Change("values of a mapping widened", INTEGERS, NUMBERS, NO, YES, NO),
    Change("values of a mapping changed", TEXTS, NUMBERS, NO, NO, NO),
    Change("values of a mapping given a type", ANY, NUMBERS, NO, NO, YES),
    # ---- types
    Change("integer to number", INTEGER, NUMBER, NO, YES, NO),
    Change("number to integer", NUMBER, INTEGER, NO, NO, YES),
    Change("string to number", STRING, NUMBER, NO, NO, NO),
    Change("object to array", {"type": "object"}, LIST, NO, NO, NO),
    Change("to anything", STRING, {}, NO, YES, NO),
    Change("format added", STRING, given(STRING, format="uuid"), NO, YES, YES),
    Change("format that takes any text added", STRING, given(STRING, format="password"), YES, YES, YES),
    Change("format changed", given(STRING, format="date"), given(STRING, format="uuid"), NO, YES, YES),
    Change("property's type changed, deep", of(of(STRING)), of(of(NUMBER)), NO, NO, NO),
    # ---- unions
    Change("made nullable", STRING, {"anyOf": [STRING, NULL]}, NO, YES, NO),
    Change("made not nullable", {"anyOf": [STRING, NULL]}, STRING, NO, NO, YES),
    Change("type array extended", {"type": ["string"]}, {"type": ["string", "integer"]}, NO, YES, NO),
    Change("alternative added", {"anyOf": [STRING, NULL]}, {"anyOf": [STRING, NULL, NUMBER]}, NO, YES, NO),
    Change("alternative removed", {"oneOf": [STRING, NULL, NUMBER]}, {"oneOf": [STRING, NULL]}, NO, NO, YES),
    Change("alternative changed", {"oneOf": [STRING, NULL]}, {"oneOf": [NUMBER, NULL]}, NO, NO, NO),
    Change("alternatives reordered", {"anyOf": [STRING, NULL]}, {"anyOf": [NULL, STRING]}, YES, YES, YES),
    Change("overlapping ones reordered", {"anyOf": [INTEGER, NUMBER]}, {"anyOf": [NUMBER, INTEGER]}, YES, YES, YES),
    Change("oneOf to anyOf", {"oneOf": [STRING, NULL]}, {"anyOf": [STRING, NULL]}, YES, YES, NO),
    Change("two alternatives that one takes", {"anyOf": [INTEGER, NUMBER]}, {"anyOf": [NUMBER, NULL]}, NO, NO, NO),
    Change("union of one", STRING, {"oneOf": [STRING]}, YES, YES, YES),
    Change("allOf extended", {"allOf": [STRING]}, {"allOf": [STRING, {"enum": ["a", "b"]}]}, NO, NO, YES),
    Change("to an allOf that says less", given(STRING, maxLength=5), {"allOf": [STRING, given(STRING, maxLength=8)]},
           NO, NO, NO),
    Change("not narrowed", {"not": NUMBER}, {"not": INTEGER}, NO, YES, NO),
    Change("not narrowed, by reference", {"not": {"$ref": "#/$defs/A"}, "$defs": {"A": NUMBER}}, {"not": INTEGER},
           NO, YES, NO),
    Change("keyword beside a union", {"anyOf": [STRING, NULL], "maxLength": 5},
           {"anyOf": [STRING, NULL], "maxLength": 3}, NO, NO, YES),
    # ---- values
    Change("enum extended", given(STRING, enum=["a"]), given(STRING, enum=["a", "b"]), NO, YES, NO),
    Change("enum narrowed", given(STRING, enum=["a", "b"]), given(STRING, enum=["a"]), NO, NO, YES),
    Change("enum changed", given(STRING, enum=["a"]), given(STRING, enum=["b"]), NO, NO, NO),
    Change("pattern removed", given(STRING, pattern="^a"), STRING, NO, YES, NO),
    Change("pattern changed", given(STRING, pattern="^a"), given(STRING, pattern="^b"), NO, NO, NO),
    Change("maxLength raised", given(STRING, maxLength=10), given(STRING, maxLength=12), NO, YES, NO),
    Change("maxLength lowered", given(STRING, maxLength=12), given(STRING, maxLength=10), NO, NO, YES),
    Change("minLength raised", given(STRING, minLength=1), given(STRING, minLength=2), NO, NO, YES),
    Change("maximum removed", given(NUMBER, maximum=10), NUMBER, NO, YES, NO),
    Change("maximum lowered", given(NUMBER, maximum=11), given(NUMBER, maximum=10), NO, NO, YES),
    Change("minimum lowered", given(NUMBER, minimum=11), given(NUMBER, minimum=10), NO, YES, NO),
    Change("exclusiveMinimum added", NUMBER, given(NUMBER, exclusiveMinimum=0), NO, NO, YES),
    Change("multipleOf added", INTEGER, given(INTEGER, multipleOf=2), NO, NO, YES),
    Change("multipleOf reduced", given(NUMBER, multipleOf=10), given(NUMBER, multipleOf=2), NO, YES, NO),
    Change("multipleOf changed", given(NUMBER, multipleOf=10), given(NUMBER, multipleOf=11), NO, NO, NO),
    # ---- arrays and the rest of objects
    Change("items given a type", LIST, given(LIST, items=STRING), NO, NO, YES),
    Change("items changed", given(LIST, items=STRING), given(LIST, items=NUMBER), NO, NO, NO),
    Change("maxItems lowered", given(LIST, maxItems=2), given(LIST, maxItems=1), NO, NO, YES),
    Change("minItems removed", given(LIST, minItems=1), LIST, NO, YES, NO),
    Change("uniqueItems removed", given(LIST, uniqueItems=True), LIST, NO, YES, NO),
    Change("item added, open", {"prefixItems": [STRING]}, {"prefixItems": [STRING, NUMBER]}, NO, NO, YES),
    Change("item added, closed", {"prefixItems": [STRING], "items": False},
           {"prefixItems": [STRING, NUMBER], "items": False}, NO, YES, NO),
    Change("maxProperties raised", {"maxProperties": 1}, {"maxProperties": 2}, NO, YES, NO),
    Change("minProperties raised", {"minProperties": 1}, {"minProperties": 2}, NO, NO, YES),
    Change("dependency removed", of(STRING, dependentRequired={"foo": ["bar"]}), of(STRING), NO, YES, NO),
    Change("dependent schema changed", {"dependentSchemas": {"a": STRING}}, {"dependentSchemas": {"a": NUMBER}},
           NO, NO, NO),
    # ---- references
    Change("moved to a reference", STRING, {"$ref": "#/$defs/a~1b~0", "$defs": {"a/b~": STRING}}, YES, YES, YES),
    Change("what is referred to changed", {"$ref": "#/$defs/A", "$defs": {"A": STRING}},
           {"$ref": "#/$defs/A", "$defs": {"A": NUMBER}}, NO, NO, NO),
]  # fmt: skip


def test_the_table_has_at_least_forty_changes_and_none_twice() -> None:
    """A name is a test's id."""
    assert len({each.name for each in CHANGES}) == len(CHANGES) >= 40


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_change_gets_its_verdict_in_every_mode(change: Change) -> None:
    """Lenient, backward, forward and full; and no change is let through by all."""
    wanted = {**change._asdict(), "full": change.backward and change.forward}
    for policy in POLICIES:
        found = changed(change.old, change.new, policy)
        assert not any(found.values()) == wanted[policy], (policy, found)
        assert not any(changed(change.old, change.old, policy).values())


def test_a_recursive_schema_is_compared() -> None:
    """A tree whose leaf changes: the circle ends, and the change is found."""
    tree = {"$ref": "#/$defs/T", "$defs": {"T": {"properties": {"v": STRING, "l": {"$ref": "#/$defs/T"}}}}}
    other = {"$ref": "#/$defs/T", "$defs": {"T": {"properties": {"v": NUMBER, "l": {"$ref": "#/$defs/T"}}}}}
    assert not any(changed(tree, tree, "full").values())
    assert [each.path for each in changed(tree, other, "backward")["backward"]] == ["v"]


@pytest.mark.parametrize("reference", ["#/$defs/Gone", "https://example.com/schema", "#/$defs/Me"])
def test_a_reference_that_leads_nowhere_is_said_so(reference: str) -> None:
    """To nothing, out of the document, in a circle."""
    broken = {"$ref": reference, "$defs": {"Me": {"$ref": "#/$defs/Me"}}}
    with pytest.raises(ValueError, match="reference"):
        changed(broken, STRING, "backward")


def test_a_difference_says_where_and_what() -> None:
    """The path leads through objects, arrays, tuples and mappings."""
    old = of({"type": "array", "items": of({"additionalProperties": INTEGER})})
    new = of({"type": "array", "items": of({"additionalProperties": STRING})})
    (found,) = changed(old, new, "backward")["backward"]
    assert (found.path, found.rule) == ("bar[].bar{}", "type_changed")
    assert found.message == "is integer, and string is expected"


def test_a_difference_inside_of_a_union_is_that_of_the_nearest_alternative() -> None:
    """Who narrows an optional enum is not told that null is no string."""
    old = {"anyOf": [given(STRING, enum=["a", "b"]), NULL]}
    (found,) = changed(old, {"anyOf": [NULL, given(STRING, enum=["a"])]}, "lenient")["backward"]
    assert (found.rule, found.message) == ("enum_narrowed", 'may be "b", which is not expected')
    (found,) = changed(old, {"anyOf": [NULL, NUMBER]}, "lenient")["backward"]
    assert found.rule == "type_changed"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"patternProperties": {"^a": INTEGER}}, {"patternProperties": {"^a": STRING}}),
        ({"propertyNames": {"maxLength": 5}}, {"propertyNames": {"maxLength": 3}}),
        ({}, {"propertyNames": {"maxLength": 3}}),
    ],
)
def test_keywords_that_confluent_does_not_compare_are_compared(old: Any, new: Any) -> None:
    """Pydantic writes them for mappings, and data that breaks them is not read."""
    assert changed({"type": "object", **old}, {"type": "object", **new}, "lenient")["backward"]


def test_a_keyword_without_a_rule_has_to_stay() -> None:
    """Rather a false alarm than a silent break."""
    found = changed({"contains": STRING}, {"contains": NUMBER}, "backward")["backward"]
    assert [each.rule for each in found] == ["keyword_changed"]
    assert not changed({"contains": STRING}, {"contains": STRING}, "full")["forward"]


def test_a_const_is_an_enum_of_one() -> None:
    """Pydantic writes `Literal["a"]` as a const and `Literal["a", "b"]` as an enum; Confluent tells them apart."""
    one, two = given(STRING, const="a"), given(STRING, enum=["a", "b"])
    assert {direction: bool(found) for direction, found in changed(one, two, "lenient").items()} == {
        "backward": False,
        "forward": True,
    }


def test_a_default_beside_a_reference_counts() -> None:
    """So pydantic writes a field whose default is a model."""
    part: dict[str, Any] = {"$defs": {"Part": {"type": "object"}}}
    field = {"$ref": "#/$defs/Part", "default": {}}
    assert not any(changed(without(), of(field, "bar", **part), "lenient").values())
    assert changed(without(), of({"$ref": "#/$defs/Part"}, "bar", **part), "lenient")["backward"]
