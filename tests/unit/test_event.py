"""Events: what a class may say of itself, and what a payload may do to it."""

from contextlib import suppress
from decimal import Decimal
from types import new_class
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from choreo.errors import DeclarationError, DecodeError
from choreo.event import Command, Event

ORDER = UUID(int=1)


class OrderPlaced(Event, type="order.placed", version=2, topic="orders", key="order_id"):
    """One of everything."""

    order_id: UUID
    note: str = ""
    total: Decimal = Decimal(0)
    weight_kg: float = 0.0
    count: int = 0
    raw: bytes = b""
    labels: dict[str, int] = Field(default_factory=dict)


def refusal(value: bytes) -> str:
    """The reason for which a payload is refused."""
    with pytest.raises(DecodeError) as caught:
        OrderPlaced.from_payload(value)
    assert caught.value.__suppress_context__
    return caught.value.reason


def payload(fields: str) -> bytes:
    """A payload with its order id."""
    return f'{{"order_id":"{ORDER}",{fields}}}'.encode("utf-8", "surrogatepass")


def declare(**arguments: Any) -> str:
    """What is said of a class with these arguments."""
    with pytest.raises(DeclarationError) as caught:
        new_class("Made", (Event,), arguments, lambda body: body.update({"__annotations__": {"order_id": str}}))
    return str(caught.value)


def test_a_class_knows_what_it_was_given() -> None:
    """Type, version, topic and key, and none of them as a field."""
    assert (OrderPlaced.event_type, OrderPlaced.event_version) == ("order.placed", 2)
    assert (OrderPlaced.event_topic, OrderPlaced.event_key) == ("orders", "order_id")
    assert "event_type" not in OrderPlaced.model_fields


def test_a_mixin_has_no_type_and_a_command_is_declared_like_an_event() -> None:
    """Fields may be shared by a class that is no event itself."""

    class Money(Event):
        amount: Decimal

    class Charge(Money, Command, type="payment.charge", topic="payments", key="amount"):
        pass

    assert (Money.event_type, Charge.event_type, Charge.event_version) == ("", "payment.charge", 1)
    assert issubclass(Charge, Command)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"topic": "orders"}, "the class argument type= is missing; write for example class Made(Event, type="),
        ({"type": "order.placed"}, "the class argument topic= is missing"),
        ({"key": "order_id"}, "key='order_id' is given without type= and topic="),
        ({"type": "", "topic": "orders"}, "type='' is no event type; use dotted words"),
        ({"type": "order placed", "topic": "orders"}, "is no event type"),
        ({"type": "order..placed", "topic": "orders"}, "is no event type"),
        ({"type": "order.placed\n", "topic": "orders"}, "is no event type"),
        ({"type": "order.placed:1", "topic": "orders"}, "is no event type"),
        ({"type": 7, "topic": "orders"}, "type=7 is no event type"),
        ({"type": "a", "topic": "orders", "version": 0}, "version=0 must be a whole number from 1 up"),
        ({"type": "a", "topic": "orders", "version": True}, "version=True must be a whole number"),
        ({"type": "a", "topic": "orders", "version": "1"}, "version='1' must be a whole number"),
        ({"type": "a", "topic": ""}, "topic='' is no topic name"),
        ({"type": "a", "topic": ".."}, "topic='..' is no topic name"),
        ({"type": "a", "topic": "x" * 250}, "is no topic name; Kafka allows 1 to 249"),
        ({"type": "a", "topic": "orders/eu"}, "is no topic name"),
        (
            {"type": "a", "topic": "orders", "key": "id"},
            "key='id' names no field of the event; its fields are: order_id",
        ),
    ],
)
def test_a_wrong_declaration_is_refused_when_it_is_made(arguments: dict[str, Any], said: str) -> None:
    """The message names the class and says what to write instead."""
    message = declare(**arguments)
    assert message.startswith("Made: ")
    assert said in message


def test_an_event_cannot_be_changed() -> None:
    """A fact stays what it is."""
    with pytest.raises(ValidationError):
        OrderPlaced(order_id=ORDER).note = "x"  # type: ignore[misc]


def test_the_record_key_is_the_text_of_the_key_field() -> None:
    """UTF-8 of what `str` says; no key field, or None in it: no key."""

    class Keyless(Event, type="a", topic="t"):
        pass

    class Optional(Event, type="a", topic="t", key="name"):
        name: str | None = None

    assert OrderPlaced(order_id=ORDER).record_key() == str(ORDER).encode()
    assert Keyless().record_key() is None
    assert Optional().record_key() is None
    assert Optional(name="\u00fc").record_key() == b"\xc3\xbc"


@given(
    st.builds(
        OrderPlaced,
        order_id=st.uuids(),
        note=st.text(),
        total=st.decimals(allow_nan=False, allow_infinity=False),
        weight_kg=st.floats(allow_nan=False, allow_infinity=False),
        count=st.integers(-(10**30), 10**30),
        raw=st.binary(),
        labels=st.dictionaries(st.text(), st.integers(-(2**63), 2**63)),
    )
)
def test_what_is_written_is_read(event: OrderPlaced) -> None:
    """Every event survives its own payload, bytes and big numbers too."""
    assert OrderPlaced.from_payload(event.payload()) == event


def test_unknown_fields_are_ignored() -> None:
    """A producer may add fields before its consumers know them."""
    assert OrderPlaced.from_payload(payload('"later":{"a":[1]}')) == OrderPlaced(order_id=ORDER)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not json",
        b"{",
        b"\xff\xfe\xfd",
        b"\xef\xbb\xbf" + payload('"count":1'),
        payload('"count":1').decode().encode("utf-16"),
        payload('"note":"')[:-1] + b'\xff"}',
        payload('"weight_kg":NaN'),
        payload('"weight_kg":Infinity'),
        payload('"weight_kg":-Infinity'),
        payload('"later":NaN'),
        payload('"note":"\\ud800"'),
        payload('"note":"\ud800"'),
        payload('"count":1') + b"x",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        payload('"later":' + "[" * 200_000 + "]" * 200_000),
    ],
    ids=lambda value: repr(value[-24:]),
)
def test_what_is_no_json_is_refused(value: bytes) -> None:
    """By RFC 8259, with one reason, and whatever it does to a parser."""
    assert refusal(value) == "not_json"


@pytest.mark.parametrize(
    "value",
    [
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{}",
        b'{"order_id":null}',
        b'{"order_id":"x"}',
        payload('"weight_kg":1e999'),
        payload('"weight_kg":"NaN"'),
        payload('"total":"NaN"'),
        payload('"total":"Infinity"'),
        payload('"count":1.5'),
        payload('"raw":"%%%"'),
        payload('"labels":{"a":"b"}'),
    ],
)
def test_what_does_not_fit_is_refused(value: bytes) -> None:
    """It is JSON, and no such event."""
    assert refusal(value) == "invalid_data"


@pytest.mark.parametrize("field", ["count", "weight_kg", "note"])
def test_a_number_of_five_thousand_digits_is_refused_where_it_does_not_fit(field: str) -> None:
    """Python's limit on digits is the sender's fault and no crash."""
    with pytest.raises(DecodeError) as caught:
        OrderPlaced.from_payload(payload(f'"{field}":' + "7" * 5_000))
    assert caught.value.reason in ("not_json", "invalid_data")
    assert "777" not in str(caught.value)


def test_a_number_of_five_thousand_digits_that_nobody_asked_for() -> None:
    """In a field the class does not have it is refused like any other or ignored, and no error of the parser's."""
    with suppress(DecodeError):
        assert OrderPlaced.from_payload(payload('"later":' + "7" * 5_000)).order_id == ORDER


def test_of_duplicate_keys_the_last_counts() -> None:
    """As nearly every parser does it."""
    assert OrderPlaced.from_payload(payload('"count":1,"count":2')).count == 2


def test_the_words_nan_and_infinity_are_text_like_any_other() -> None:
    """In a string they are no number."""
    assert OrderPlaced.from_payload(payload('"note":"NaN, Infinity"')).note == "NaN, Infinity"


def test_a_word_that_is_refused_as_no_number_is_told_by_its_name() -> None:
    """The sender learns what JSON does not have."""
    with pytest.raises(DecodeError, match="not_json: the value holds NaN or Infinity, which JSON has not"):
        OrderPlaced.from_payload(payload('"weight_kg":NaN'))


def test_the_error_names_the_fields_that_are_wrong() -> None:
    """Type and version of the class, and each field with what it should have been."""
    with pytest.raises(DecodeError) as caught:
        OrderPlaced.from_payload(b'{"order_id":"x","count":"y"}')
    assert caught.value.detail == "no valid order.placed v2: order_id uuid_parsing, count int_parsing"


def test_a_long_error_is_cut() -> None:
    """A hundred wrong values are told as five and how many more."""
    labels = ",".join(f'"k{n}":"x"' for n in range(100))
    with pytest.raises(DecodeError) as caught:
        OrderPlaced.from_payload(payload(f'"labels":{{{labels}}}'))
    assert caught.value.detail.endswith(" and 95 more")
    assert "k1" not in caught.value.detail


@pytest.mark.parametrize(
    "value",
    [
        b'{"order_id":"hunter2"}',
        b'{"order_id":["hunter2"],"note":{"hunter2":1}}',
        payload('"labels":{"hunter2":"hunter2"}'),
        payload('"count":"hunter2"'),
        payload('"note":"hunter2", hunter2'),
        payload('"hunter2":NaN'),
        b"hunter2",
        b'"hunter2"',
    ],
)
def test_a_secret_is_never_in_the_error(value: bytes) -> None:
    """Neither values nor the sender's own keys are quoted, in no form the error has."""
    with pytest.raises(DecodeError) as caught:
        OrderPlaced.from_payload(value)
    error = caught.value
    assert "hunter2" not in f"{error} {error!r} {error.args} {error.detail} {error.reason}"
    assert error.__cause__ is None
    assert error.__suppress_context__
