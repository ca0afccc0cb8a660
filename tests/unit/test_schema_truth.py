"""What the lenient rule lets through, pydantic reads: models made at random, changed at random, and their data."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, create_model

from choreo.errors import DecodeError
from choreo.event import Event
from choreo.schemas.checking import Direction, changed
from choreo.schemas.exporting import accepted, contracts
from choreo.schemas.keywords import Difference
from tests.unit.schema_handlers import emitting


class Part(BaseModel):
    """A nested model."""

    name: str
    note: str | None = None


class PartWithMore(BaseModel):
    """The same, and an optional field."""

    name: str
    note: str | None = None
    count: int = 0


class PartWithNeed(BaseModel):
    """The same, and a required field."""

    name: str
    note: str | None = None
    count: int


PARTS = st.builds(Part, name=st.text(max_size=3), note=st.none() | st.text(max_size=3))
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "str": (str, st.text(max_size=4)),
    "short str": (Annotated[str, Field(max_length=3)], st.text(max_size=3)),
    "shorter str": (Annotated[str, Field(max_length=2)], st.text(max_size=2)),
    "int": (int, st.integers(-50, 50)),
    "int 1-5": (Annotated[int, Field(ge=1, le=5)], st.integers(1, 5)),
    "int 1-9": (Annotated[int, Field(ge=1, le=9)], st.integers(1, 9)),
    "even int": (Annotated[int, Field(multiple_of=2)], st.integers(-9, 9).map(lambda n: n * 2)),
    "float": (float, st.floats(-1e6, 1e6)),
    "bool": (bool, st.booleans()),
    "uuid": (UUID, st.uuids()),
    "date": (date, st.dates()),
    "datetime": (datetime, st.datetimes(timezones=st.just(UTC))),
    "decimal": (Decimal, st.decimals(-100, 100, places=2)),
    "decimal from 1": (Annotated[Decimal, Field(ge=1)], st.decimals(1, 100, places=2)),
    "money": (Annotated[Decimal, Field(decimal_places=2, max_digits=9)], st.decimals(0, 100, places=2)),
    "a or b": (Literal["a", "b"], st.sampled_from(["a", "b"])),
    "a, b or c": (Literal["a", "b", "c"], st.sampled_from(["a", "b", "c"])),
    "c": (Literal["c"], st.just("c")),
    "str or none": (str | None, st.none() | st.text(max_size=4)),
    "int or str": (int | str, st.integers(-9, 9) | st.text(max_size=3)),
    "ints": (list[int], st.lists(st.integers(-9, 9), max_size=3)),
    "two ints": (Annotated[list[int], Field(max_length=2)], st.lists(st.integers(-9, 9), max_size=2)),
    "pair": (tuple[int, str], st.tuples(st.integers(-9, 9), st.text(max_size=3))),
    "set": (set[int], st.sets(st.integers(-9, 9), max_size=3)),
    "mapping": (dict[str, int], st.dictionaries(st.text(max_size=3), st.integers(-9, 9), max_size=2)),
    "any": (Any, st.none() | st.integers(-9, 9) | st.text(max_size=3)),
    "part": (Part, PARTS),
    "part with more": (PartWithMore, st.builds(PartWithMore, name=st.text(max_size=3), count=st.integers(-9, 9))),
    "part with need": (PartWithNeed, st.builds(PartWithNeed, name=st.text(max_size=3), count=st.integers(-9, 9))),
    "parts": (list[Part], st.lists(PARTS, max_size=2)),
}


@dataclass(frozen=True)
class Made:
    """What an event class is made of: a kind a field, and whether it has a default."""

    fields: tuple[tuple[str, str, bool], ...]
    closed: bool = False

    def event_class(self) -> type[Event]:
        """The class."""

        class Thing(Event, type="thing", version=1, topic="things"):
            model_config = ConfigDict(extra="forbid" if self.closed else "ignore")

        return create_model(
            "Thing",
            __base__=Thing,
            __cls_kwargs__={"type": "thing", "version": 1, "topic": "things"},
            **{name: self.field(kind, default) for name, kind, default in self.fields},
        )

    def field(self, kind: str, default: bool) -> Any:
        """As `create_model` takes it; a default that is valid for whoever has it."""
        if not default:
            return (KINDS[kind][0], ...)
        return (KINDS[kind][0] | None, None)

    def data(self) -> st.SearchStrategy[dict[str, Any]]:
        """Values of all fields; None among those with a default."""
        return st.fixed_dictionaries(
            {name: st.none() | KINDS[kind][1] if default else KINDS[kind][1] for name, kind, default in self.fields}
        )


names, kinds = st.sampled_from("abc"), st.sampled_from(sorted(KINDS))
one_field = st.tuples(names, kinds, st.booleans())
made = st.builds(
    Made,
    st.lists(one_field, min_size=1, max_size=3, unique_by=lambda field: field[0]).map(tuple),
    st.sampled_from([False, False, False, True]),
)


@st.composite
def changes(draw: Callable[..., Any]) -> tuple[Made, Made]:
    """A class, and the same with one thing or two done to it."""
    old = draw(made)
    new = old
    for _ in range(draw(st.integers(1, 2))):
        what = draw(st.sampled_from(["add", "add", "remove", "kind", "kind", "default", "closed"]))
        fields = dict((name, (kind, default)) for name, kind, default in new.fields)
        name, kind, default = draw(one_field)
        if what == "add":
            fields.setdefault(name, (kind, default))
        elif what == "remove":
            fields.pop(name, None)
        elif name in fields and what == "kind":
            fields[name] = (kind, fields[name][1])
        elif name in fields and what == "default":
            fields[name] = (fields[name][0], not fields[name][1])
        closed = new.closed != (what == "closed")
        new = replace(new, fields=tuple((name, *rest) for name, rest in fields.items()), closed=closed)
    return old, new


def found(old: type[Event], new: type[Event]) -> dict[Direction, list[Difference]]:
    """What the lenient rule says of a change, as `choreo schemas check` asks it."""
    before, after = (contracts([emitting(each)])["thing", 1] for each in (old, new))
    return changed(before.document, after.document, "lenient", taken=accepted(after))


@settings(max_examples=300, deadline=None)
@given(changes(), st.data())
def test_what_the_lenient_rule_lets_through_is_read(pair: tuple[Made, Made], data: st.DataObject) -> None:
    """The new class's data by the old one if `forward` has nothing to say, the old one's by the new if `backward`."""
    old, new = pair
    assume(old != new)
    old_class, new_class = old.event_class(), new.event_class()
    differences = found(old_class, new_class)
    sides: list[tuple[Direction, Made, type[Event], type[Event]]] = [
        ("backward", old, old_class, new_class),
        ("forward", new, new_class, old_class),
    ]
    for direction, writer, writer_class, reader_class in sides:
        event(f"{direction} {'differs' if differences[direction] else 'is fine'}")
        if not differences[direction]:
            reader_class.from_payload(writer_class(**data.draw(writer.data())).payload())


BREAKING: list[tuple[str, Made, Made, dict[str, Any]]] = [
    ("required removed", Made((("a", "str", False), ("b", "int", False))), Made((("a", "str", False),)), {"a": "x"}),
    ("made nullable", Made((("a", "str", False),)), Made((("a", "str or none", False),)), {"a": None}),
    ("literal added", Made((("a", "a or b", False),)), Made((("a", "a, b or c", False),)), {"a": "c"}),
    ("bound loosened", Made((("a", "int 1-5", False),)), Made((("a", "int 1-9", False),)), {"a": 9}),
    ("longer text", Made((("a", "short str", False),)), Made((("a", "str", False),)), {"a": "four"}),
    ("decimal to text", Made((("a", "decimal", False),)), Made((("a", "str", False),)), {"a": "four"}),
    ("decimal's bound", Made((("a", "decimal from 1", False),)), Made((("a", "decimal", False),)), {"a": Decimal(0)}),
    ("decimal's places", Made((("a", "money", False),)), Made((("a", "decimal", False),)), {"a": Decimal("0.001")}),
    ("uuid to text", Made((("a", "uuid", False),)), Made((("a", "str", False),)), {"a": "four"}),
    ("int to float", Made((("a", "int", False),)), Made((("a", "float", False),)), {"a": 0.5}),
    ("more items", Made((("a", "two ints", False),)), Made((("a", "ints", False),)), {"a": [1, 2, 3]}),
    (
        "nested required",
        Made((("a", "part with need", False),)),
        Made((("a", "part", False),)),
        {"a": Part(name="x")},
    ),
    (
        "unknown to a closed one",
        Made((("a", "str", False),), closed=True),
        Made((("a", "str", False), ("b", "str", True)), closed=True),
        {"a": "x", "b": "y"},
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "values"), [each[1:] for each in BREAKING], ids=[each[0] for each in BREAKING]
)
def test_what_the_lenient_rule_refuses_is_not_read(old: Made, new: Made, values: dict[str, Any]) -> None:
    """A verdict that is no false alarm: here is data of the new class that the old one does not take."""
    old_class, new_class = old.event_class(), new.event_class()
    assert found(old_class, new_class)["forward"]
    with pytest.raises(DecodeError):
        old_class.from_payload(new_class(**values).payload())
