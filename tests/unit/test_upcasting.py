"""Old records and newer classes: what an upcaster may be, who gets what, and what becomes of one that fails."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo import App, Context, Service
from choreo.cli.explain import explained
from choreo.core.emission import fingerprint
from choreo.envelope import Envelope, write
from choreo.errors import DeclarationError, DecodeError
from choreo.event import Event
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.runtime.routing import Router
from choreo.testing import TestApp

SECRET = "4929-1234"


class Paid1(Event, type="order.paid", version=1, topic="payments", key="order"):
    """As it was at first."""

    order: str
    cents: int


class Paid3(Event, type="order.paid", version=3, topic="payments", key="order"):
    """As it is."""

    order: str
    amount: Decimal
    currency: str


@Paid3.upcast(from_version=1)
def with_amount(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 had an amount in place of the cents."""
    data["amount"] = Decimal(data.pop("cents")) / 100
    return data


@Paid3.upcast(from_version=2)
def with_currency(data: dict[str, Any]) -> dict[str, Any]:
    """Version 3 has a currency beside it."""
    return {**data, "currency": "EUR"}


def record(value: bytes, version: int | None, *, type_: str = "order.paid", topic: str = "payments") -> Record:
    """A record of an event version."""
    envelope = Envelope("e-1", "/shop", type_, version, correlationid="flow-1")
    return Record(topic, 0, 7, b"o-1", value, write(envelope), 0)


def app(*events: type[Event], seen: list[Any]) -> App:
    """A service `books` with a handler `book` of these events."""
    books = Service("books")

    def book(event: Event, ctx: Context) -> None:
        seen.append((event, ctx.envelope))

    books.handler(*events)(book)
    return App(books)


def router(*events: type[Event]) -> Router:
    """What `books` makes of a record."""
    return app(*events, seen=[]).router("books")


def refused(declare: Callable[[], object]) -> str:
    """What is said of a declaration."""
    with pytest.raises(DeclarationError) as caught:
        declare()
    return str(caught.value)


def identity(data: dict[str, Any]) -> dict[str, Any]:
    """Nothing to do."""
    return data


def test_an_old_record_goes_through_the_chain() -> None:
    """From 1 by 2 to 3, from 2 to 3, and a function can be called by itself."""
    for value, version in ((b'{"order":"o-1","cents":1250}', 1), (b'{"order":"o-1","amount":"12.5"}', 2)):
        (work,) = router(Paid3).route(record(value, version)).work
        assert work.event == Paid3(order="o-1", amount=Decimal("12.5"), currency="EUR")
    assert with_amount({"cents": 100}) == {"amount": Decimal(1)}


def test_a_handler_of_both_versions_gets_each_as_it_is() -> None:
    """Upcasters are for versions a handler has no class for."""
    (work,) = router(Paid1, Paid3).route(record(b'{"order":"o-1","cents":1250}', 1)).work
    assert work.event == Paid1(order="o-1", cents=1250)
    (work,) = router(Paid1, Paid3).route(record(b'{"order":"o-1","amount":"12.5"}', 2)).work
    assert isinstance(work.event, Paid3)


def test_the_newest_class_that_can_takes_an_old_record() -> None:
    """As a record without a version goes to the newest class."""

    class Paid4(Event, type="order.paid", version=4, topic="payments"):
        order: str

    class Paid5(Event, type="order.paid", version=5, topic="payments"):
        order: str

    for class_ in (Paid4, Paid5):
        for version in range(2, class_.event_version):
            class_.upcast(from_version=version)(identity)
    (work,) = router(Paid5, Paid4, Paid3).route(record(b'{"order":"o-1"}', 2)).work
    assert type(work.event) is Paid5
    (work,) = router(Paid5, Paid4, Paid3).route(record(b'{"order":"o-1","cents":1}', 1)).work
    assert type(work.event) is Paid3


@pytest.mark.parametrize("version", [0, 4, 99, -1])
def test_a_version_no_upcaster_starts_from_stays_unknown(version: int) -> None:
    """A newer one too: there is no way back."""
    (work,) = router(Paid3).route(record(b'{"order":"o-1","cents":1}', version)).work
    assert work.error is not None
    assert work.error.reason == "unknown_version"


def test_key_envelope_and_fingerprint_are_those_of_the_record() -> None:
    """So a duplicate that another release handled as version 1 is known to one that upcasts it."""
    old = record(b'{"order":"o-1","cents":1250}', 1)
    (as_1,), (as_3,) = router(Paid1).route(old).work, router(Paid3).route(old).work
    assert router(Paid1).units.key(as_1) == router(Paid3).units.key(as_3)
    assert as_3.envelope == as_1.envelope
    deliveries, _ = router(Paid3).deliveries(TopicPartition(old.topic, old.partition), [old])
    assert deliveries[0].units[0].fingerprint == fingerprint(old.value or b"")


def test_an_upcaster_that_raises_is_named_and_its_words_are_not_told() -> None:
    """The words of an exception may hold the payload."""

    class Broken(Event, type="order.paid", version=2, topic="payments"):
        order: str

    @Broken.upcast(from_version=1)
    def fails(data: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(data["card"])

    value = f'{{"card":"{SECRET}"}}'.encode()
    (work,) = router(Broken).route(record(value, 1)).work
    assert work.error is not None
    assert work.error.reason == "upcast_failed"
    assert work.error.detail.endswith("fails of order.paid from version 1 raised ValueError")
    assert SECRET not in str(work.error)
    assert work.error.__suppress_context__
    assert work.bound is not None


@pytest.mark.parametrize(
    ("returned", "reason", "said"),
    [
        (None, "upcast_failed", "returned a NoneType and no dict"),
        ([1], "upcast_failed", "returned a list and no dict"),
        ({"order": object()}, "upcast_failed", "is no JSON"),
        ({"order": Decimal("NaN")}, "upcast_failed", "is no JSON"),
        ({"order": "\ud800"}, "upcast_failed", "is no JSON"),
        ({1: 2}, "upcast_failed", "is no JSON"),
        ({"order": 7}, "invalid_data", "no valid order.paid v2: order string_type, upcast from version 1"),
    ],
)
def test_what_an_upcaster_returns_is_judged(returned: Any, reason: str, said: str) -> None:
    """A dict that is JSON and valid, or a dead letter."""

    class Odd(Event, type="order.paid", version=2, topic="payments"):
        order: str

    Odd.upcast(from_version=1)(lambda data: returned)
    (work,) = router(Odd).route(record(b"{}", 1)).work
    assert work.error is not None
    assert work.error.reason == reason
    assert said in work.error.detail


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "not_json"),
        (b"nope", "not_json"),
        (b'{"cents":NaN}', "not_json"),
        (b"[1]", "invalid_data"),
        (b'{"a":' * 200_000, "not_json"),
        (b'{"order":"o","cents":' + b"1" * 5000 + b"}", "not_json"),
        (b'{"order":"o","cents":1e-9999999999999999999}', "not_json"),
    ],
)
def test_an_old_record_that_is_no_json_object_reaches_no_upcaster(value: bytes, reason: str) -> None:
    """Bad input is a dead letter of an old version too."""
    (work,) = router(Paid3).route(record(value, 1)).work
    assert work.error is not None
    assert work.error.reason == reason


def test_a_failing_upcaster_is_its_handlers_own_trouble() -> None:
    """A handler of the same service that has a class for the record gets it."""

    class Broken(Event, type="order.paid", version=2, topic="payments"):
        order: str

    Broken.upcast(from_version=1)(lambda data: data.pop("gone"))
    books = Service("books")

    @books.handler(Broken)
    def new(event: Broken) -> None: ...

    @books.handler(Paid1)
    def old(event: Paid1) -> None: ...

    works = App(books).router("books").route(record(b'{"order":"o-1","cents":1}', 1)).work
    assert [(each.error.reason if each.error else type(each.event)) for each in works] == ["upcast_failed", Paid1]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (3, "from_version=3 is not below Paid3's own version 3"),
        (9, "from_version=9 is not below"),
        (0, "from_version=0 must be a whole number from 1 up"),
        (True, "from_version=True must be"),
        ("1", "from_version='1' must be"),
        (1, "with_amount upcasts from version 1 already; keep one of them"),
    ],
)
def test_a_wrong_upcaster_is_refused_when_it_is_declared(version: Any, said: str) -> None:
    """The message names the class and what is wrong."""
    assert said in refused(lambda: Paid3.upcast(from_version=version)(identity))


def test_only_a_plain_function_of_an_event_with_a_type_is_an_upcaster() -> None:
    """A coroutine would never be awaited, and a mix-in has no versions."""

    class Mixin(Event):
        order: str

    class New(Event, type="order.paid", version=2, topic="payments"):
        order: str

    async def coroutine(data: dict[str, Any]) -> dict[str, Any]:
        return data

    assert "has no type" in refused(lambda: Mixin.upcast(from_version=1))
    assert "a plain function" in refused(lambda: New.upcast(from_version=1)(coroutine))  # type: ignore[type-var]
    assert "a plain function" in refused(lambda: New.upcast(from_version=1)("x"))  # type: ignore[type-var]


def test_a_chain_that_breaks_off_is_refused_when_the_app_is_built() -> None:
    """Upcasters are declared one by one, so a gap is known only then; what no chain starts from is no gap."""

    class Gap(Event, type="order.paid", version=4, topic="payments"):
        order: str

    Gap.upcast(from_version=3)(identity)
    app(Gap, seen=[])
    Gap.upcast(from_version=1)(identity)
    said = refused(lambda: app(Gap, seen=[]))
    assert "nothing leads from version 2 to 3; add @Gap.upcast(from_version=2)" in said
    assert not Gap.upcasts_from(1)
    assert Gap.upcasts_from(3)


def test_a_class_does_not_share_upcasters_with_its_parent() -> None:
    """A child of another version has a chain of its own; one that only adds fields has its parent's."""

    class Next(Paid3, type="order.paid", version=4, topic="payments"):
        note: str = ""

    class Same(Paid3):
        note: str = ""

    assert not Next.event_upcasters
    assert Same.upcasts_from(1)
    Next.upcast(from_version=3)(identity)
    assert 3 not in Paid3.event_upcasters


async def test_an_old_record_is_handled_once_under_its_own_id() -> None:
    """On a broker: as the new class, with its envelope; a second one is dropped; a bad one is a dead letter."""
    seen: list[tuple[Event, Envelope]] = []
    old = record(b'{"order":"o-1","cents":1250}', 1)
    bad = record(b'{"order":"o-1"}', 1)
    async with TestApp(app(Paid3, seen=seen)) as t:
        for each in (old, old):
            await t.send(ProducerRecord(each.topic, each.key, each.value, each.headers))
        await t.settle()
        headers = tuple((name, b"e-2" if name == "ce_id" else value) for name, value in bad.headers)
        await t.send(ProducerRecord(bad.topic, bad.key, bad.value, headers))
        await t.settle()
        ((event, envelope),) = seen
        assert event == Paid3(order="o-1", amount=Decimal("12.5"), currency="EUR")
        assert (envelope.id, envelope.source, envelope.correlationid) == ("e-1", "/shop", "flow-1")
        (letter,) = t.dead_letters
        assert (letter.handler, letter.reason, letter.record.value) == ("book", "upcast_failed", bad.value)
        assert "with_amount of order.paid from version 1 raised KeyError" in letter.detail


class Anything1(Event, type="thing", version=1, topic="things"):
    """Whatever a payload may hold."""

    amount: Decimal
    count: int
    ratio: float
    rest: Any = None


class Anything2(Anything1, type="thing", version=2, topic="things"):
    """The same in version 2."""


Anything2.upcast(from_version=1)(identity)
numbers = st.integers(-(10**30), 10**30) | st.decimals(allow_nan=False, allow_infinity=False)
rests = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.decimals(-(10**15), 10**15, places=9), st.integers(-(2**62), 2**62), st.floats(-1e300, 1e300), rests)
def test_a_way_through_an_upcaster_changes_nothing(amount: Decimal, count: int, ratio: float, rest: Any) -> None:
    """Not a digit of a number, nor anything else of the data it does not touch."""
    written = Anything1(amount=amount, count=count, ratio=ratio, rest=rest).payload()
    bare = written.replace(f'"{amount}"'.encode(), f"{amount:f}".encode(), 1)  # a foreign producer writes a number
    for value in (written, bare):
        through, direct = Anything2.from_old_payload(value, 1), Anything1.from_payload(value)
        assert through.model_dump() == direct.model_dump()


def test_explain_says_that_a_record_is_upcast() -> None:
    """And nothing more of one that is not."""
    for value, version, ends in ((b'{"order":"o","cents":1}', 1, "v3), upcast from v1"), (b"{}", 9, "")):
        (row,) = explained(app(Paid3, seen=[]), record(value, version))
        assert row["does"] == ("handle" if ends else "dead_letter")
        assert row["why"].endswith(ends)


def test_a_payload_that_cannot_be_read_is_a_decode_error() -> None:
    """Outside of a router too."""
    with pytest.raises(DecodeError, match="not_json"):
        Anything2.from_old_payload(b"{", 1)


def test_the_example_of_the_page_runs() -> None:
    """docs/schemas.md: a chain of two."""
    page = (Path(__file__).parents[2] / "docs/schemas.md").read_text()
    scope: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], scope)
    placed = scope["OrderPlaced"].from_old_payload(b'{"id":"A-1","amount":"2500.10"}', 1)
    assert placed.model_dump() == {"order_id": "A-1", "cents": 250010, "currency": "EUR"}
