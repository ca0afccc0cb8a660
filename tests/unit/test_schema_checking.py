"""What was released against what is declared: which change breaks which handler."""

from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, computed_field, field_serializer

from choreo.binding import BoundHandler
from choreo.errors import ConfigurationError, DeclarationError
from choreo.event import Event
from choreo.schemas.checking import POLICIES, Finding, Policy, check, policy_of
from choreo.schemas.exporting import Contract, Version, contracts, file_name, rendered, version_of
from choreo.sensitive import Sensitive
from tests.unit.schema_handlers import Ticked, consuming, emitting


class Tree(BaseModel):
    """A model that holds itself."""

    name: str
    parts: list["Tree"] = []


class Cat(BaseModel):
    """One kind of pet."""

    kind: Literal["cat"]


class Dog(BaseModel):
    """Another one."""

    kind: Literal["dog"]
    tricks: int = 0


def one_of_everything() -> type[Event]:
    """A class whose fields look one way when they are sent and another way when they are read."""

    class Everything(Event, type="everything", version=1, topic="things"):
        tree: Tree
        pet: Annotated[Cat | Dog, Field(discriminator="kind")]
        renamed: int = Field(alias="theName")
        lasts: timedelta
        raw: bytes
        price: Decimal = Decimal("1.5")
        labels: frozenset[str]
        pair: tuple[int, str]
        row: tuple[int, ...]
        prices: dict[UUID, Decimal]
        at: AnyUrl
        secret: Annotated[str, Sensitive]
        rest: Any
        parent: Tree | None = None

        @computed_field  # type: ignore[prop-decorator]
        @property
        def twice(self) -> int:
            return 2

    return Everything


ORDERS: dict[str, Any] = {"type": "order.placed", "topic": "orders"}


class Old(Event, type="order.placed", version=1, topic="orders"):
    """As it was released."""

    order: str
    note: str = ""


class Needs(Event, type="order.placed", version=1, topic="orders"):
    """Changed in place: old records have no `cents`, released consumers do not miss it."""

    order: str
    note: str = ""
    cents: int


class Lacks(Event, type="order.placed", version=1, topic="orders"):
    """Changed in place: what consumers need is gone."""

    note: str = ""


class Optional(Event, type="order.placed", version=1, topic="orders"):
    """Changed in place as it should be."""

    order: str
    note: str = ""
    cents: int = 0


class Second(Event, type="order.placed", version=2, topic="orders"):
    """Another version."""

    order: str
    cents: int


def released(*handlers: BoundHandler) -> dict[Version, Any]:
    """The schemas that these handlers had."""
    return {version: each.document for version, each in declared(handlers).items()}


def declared(handlers: Iterable[BoundHandler]) -> dict[Version, Contract]:
    """Contracts, without what handlers of no interest consume."""
    return {version: each for version, each in contracts(handlers).items() if version[0] != "clock.ticked"}


def found(before: dict[Version, Any], *handlers: BoundHandler, policy: Policy = "lenient") -> list[Finding]:
    """What is found now."""
    return check(declared(handlers), [before], handlers, policy)


def told(findings: list[Finding]) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Findings in short."""
    return [(each.id, each.direction, each.path, each.handlers) for each in findings]


def test_nothing_changed_is_nothing_to_say() -> None:
    """In any mode."""
    before = released(emitting(Old), consuming(Old))
    for policy in POLICIES:
        assert not found(before, emitting(Old), consuming(Old), policy=policy)


def test_what_was_not_changed_is_no_change_whatever_the_fields() -> None:
    """For the class itself, and for another one that is the same."""
    handlers = [emitting(one_of_everything()), consuming(one_of_everything())]
    for policy in POLICIES:
        assert not found(released(*handlers), *handlers, policy=policy)


def test_what_a_serializer_hides_is_no_change() -> None:
    """The schema cannot say that what this one sends is short enough for what it takes; it was so before."""

    class Hidden(Event, **ORDERS):
        order: Annotated[str, Field(max_length=3)]

        @field_serializer("order")
        def plain(self, order: str) -> str:
            return order

    assert not found(released(emitting(Hidden)), emitting(Hidden), consuming(Hidden))


def test_a_field_that_became_required_breaks_its_consumers_backward() -> None:
    """Records on the log do not have it; released consumers ignore it."""
    before = released(emitting(Old), consuming(Old))
    (each,) = found(before, emitting(Needs), consuming(Needs))
    assert told([each]) == [("required_added", "backward", "cents", ("reader.read",))]
    assert each.level == "violation"
    assert "what was sent as released cannot be read as declared" in each.message


def test_a_field_that_is_gone_breaks_released_consumers_forward() -> None:
    """They are there until all are deployed anew."""
    before = released(emitting(Old), consuming(Old))
    assert told(found(before, emitting(Lacks), consuming(Lacks))) == [
        ("required_added", "forward", "order", ("reader.read",))
    ]


def test_a_handler_with_a_class_of_its_own_is_named_only_if_it_cannot_read() -> None:
    """Two services may hold two classes of one version, each with the fields it needs."""

    class OnlyNote(Event, **ORDERS):
        note: str = ""

    class OnlyOrder(Event, **ORDERS):
        order: str

    note, order = consuming(OnlyNote, service="note"), consuming(OnlyOrder, service="order")
    before = released(emitting(Old), note, order)
    assert told(found(before, emitting(Lacks), note, order)) == [
        ("required_added", "forward", "order", ("order.read",)),
        ("required_added", "now", "order", ("order.read",)),
    ]


def test_todays_consumer_must_read_todays_producer() -> None:
    """Found without a look at what was released: the producer's schema against the consumer's."""

    class Wants(Event, **ORDERS):
        order: int

    before = released(emitting(Old), consuming(Old))
    assert told(found(before, emitting(Old), consuming(Wants))) == [
        ("type_changed", "now", "order", ("reader.read",))
    ]


def test_what_is_only_consumed_may_take_more() -> None:
    """Nobody here sends it; to need more is a break as ever."""

    class Wider(Event, **ORDERS):
        order: str | int
        note: str = ""

    before = released(consuming(Old))
    assert not found(before, consuming(Wider))
    assert told(found(before, consuming(Needs))) == [("required_added", "backward", "cents", ("reader.read",))]
    assert told(found(before, consuming(Wider), policy="forward")) != []


def test_a_closed_consumer_of_known_fields_is_well_until_a_field_is_added() -> None:
    """`extra="forbid"` is against the rule where it is new, and never ignored."""

    class Closed(Event, **ORDERS):
        model_config = ConfigDict(extra="forbid")
        order: str
        note: str = ""

    before = released(emitting(Old), consuming(Closed))
    assert not found(before, emitting(Old), consuming(Closed))
    assert told(found(before, emitting(Optional), consuming(Closed))) == [
        ("removed_from_closed", "now", "cents", ("reader.read",))
    ]
    assert [each.id for each in found(released(emitting(Old)), emitting(Closed), consuming(Closed))] == ["closed"]


def test_a_new_version_beside_the_old_one_is_fine() -> None:
    """In any mode; a handler that is sent what it cannot read is told of, and fails nothing."""
    before = released(emitting(Old), consuming(Old))
    for policy in POLICIES:
        assert not found(before, emitting(Old, Second), consuming(Old, Second), policy=policy)
    (each,) = found(before, emitting(Old, Second), consuming(Old))
    assert (each.id, each.level, each.version, each.handlers) == (
        "unknown_version",
        "improvement",
        2,
        ("reader.read",),
    )


def test_a_version_that_a_consumer_still_has_cannot_be_removed() -> None:
    """Its records are on the log; an upcaster is as good as the class."""
    before = released(emitting(Old), consuming(Old))
    (each,) = found(before, emitting(Second), consuming(Second))
    assert (each.id, each.level, each.version, each.handlers) == ("version_removed", "violation", 1, ("reader.read",))

    class Upcasts(Event, type="order.placed", version=2, topic="orders"):
        order: str
        cents: int

    Upcasts.upcast(from_version=1)(lambda data: {**data, "cents": 0})
    (each,) = found(before, emitting(Upcasts), consuming(Upcasts))
    assert (each.id, each.level) == ("version_removed", "information")


def test_a_type_nobody_here_handles_may_go() -> None:
    """It is told, since others may handle it."""
    (each,) = found(released(emitting(Old)), emitting(Ticked))
    assert (each.id, each.level, each.handlers) == ("version_removed", "information", ())


def test_every_released_state_counts_where_a_mode_is_transitive() -> None:
    """A field added long ago and removed long ago: the newest state alone would not show it."""
    first, last = released(emitting(Needs)), released(emitting(Old))
    handlers = [emitting(Old), consuming(Old)]
    assert not check(declared(handlers), [last], handlers, "forward")
    both = check(declared(handlers), [last, first], handlers, "forward")
    assert told(both) == [("required_added", "forward", "cents", ("reader.read",))]


@pytest.mark.parametrize("mode", ["lenient", "full", "backward_transitive", "lenient_transitive"])
def test_a_mode_is_a_policy_and_how_far_back(mode: str) -> None:
    """Confluent's names in lower case."""
    assert policy_of(mode) == (mode.removesuffix("_transitive"), mode.endswith("_transitive"))


@pytest.mark.parametrize("mode", ["", "none", "BACKWARD", "_transitive", "backward_transitive_transitive"])
def test_an_unknown_mode_is_refused(mode: str) -> None:
    """The message has those there are."""
    with pytest.raises(ConfigurationError, match="take one of lenient, backward, forward, full, lenient_transitive"):
        policy_of(mode)


@pytest.mark.parametrize(
    "document",
    [
        {"$ref": "#/$defs/Gone"},
        {"properties": 5},
        {"type": "object", "properties": {"order": {"type": "string", "maxLength": "x"}}},
        {"type": "object", "patternProperties": {"(": {}}, "additionalProperties": False},
    ],
)
def test_a_released_schema_that_is_none_is_named(document: dict[str, Any]) -> None:
    """Whoever edited it by hand learns which one it is, and not by a traceback."""

    class Short(Event, **ORDERS):
        order: Annotated[str, Field(max_length=3)]

    with pytest.raises(ConfigurationError, match=r"the released schema of order\.placed v1 cannot be understood"):
        found({("order.placed", 1): document}, emitting(Short), policy="full")


def test_several_classes_of_a_version_make_one_document() -> None:
    """Any of what is sent, all of what is needed; the same handlers in another order, the same bytes."""
    sent = contracts([emitting(Old), emitting(Optional, service="other")])["order.placed", 1]
    assert [each["title"] for each in sent.document["anyOf"]] == ["Old", "Optional"]
    needed = contracts([consuming(Old), consuming(Optional, service="other")])["order.placed", 1]
    assert [each["title"] for each in needed.document["allOf"]] == ["Old", "Optional"]
    turned = contracts([consuming(Optional, service="other"), consuming(Old)])["order.placed", 1]
    assert rendered(turned.document) == rendered(needed.document)
    assert not found(released(emitting(Old), emitting(Optional, service="other")), emitting(Old))


def test_what_is_sent_and_what_is_taken_may_differ() -> None:
    """A decimal number is sent as text and taken as a number too; its limits are in both."""

    class Priced(Event, **ORDERS):
        price: Annotated[Decimal, Field(ge=1, decimal_places=2)]

    text = {"type": "string", "format": "decimal", "minimum": 1, "x-decimal-places-max": 2}
    number = {"type": "number", "minimum": 1, "x-decimal-places-max": 2}
    for handler, wanted in ((emitting(Priced), text), (consuming(Priced), {"anyOf": [number, text]})):
        assert contracts([handler])["order.placed", 1].document["properties"] == {"price": wanted}


def test_to_emit_what_was_only_consumed_is_no_change() -> None:
    """Nor to consume what was emitted: what is sent is less than what is taken."""

    class Priced(Event, **ORDERS):
        price: Decimal

    assert not found(released(consuming(Priced)), emitting(Priced), consuming(Priced))
    assert not found(released(emitting(Priced)), consuming(Priced))


@pytest.mark.parametrize("version", [("order.placed", 1), ("a/b", 12), ("x-1/y.z_2", 999)])
def test_a_file_name_is_read_back(version: Version) -> None:
    """Types may hold slashes; a type is one folder."""
    assert version_of(file_name(version)) == version
    assert file_name(version).count("/") == 1


@pytest.mark.parametrize("name", ["README.md", "a/README.md", "1.json", "a/b/1.json", "a/x.json", "a/1.yaml", "a/²."])
def test_other_files_are_no_schemas(name: str) -> None:
    """They are left alone."""
    assert version_of(name) is None


def test_a_field_without_a_json_schema_is_refused_with_a_way_out() -> None:
    """The event is named."""

    class Odd:
        pass

    class Opaque(Event, type="opaque", version=1, topic="t"):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        odd: Odd

    with pytest.raises(DeclarationError, match=r"Opaque: there is no JSON Schema .*WithJsonSchema"):
        contracts([emitting(Opaque)])
