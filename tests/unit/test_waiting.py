"""What was declared and has not happened yet, from the log alone and with a store; and how far the flow is."""

from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest

from choreo import App, Event, Flow, Service
from choreo.core.emission import business_digest, derived_id
from choreo.flow import waiting
from choreo.flow.finding import flows_of
from choreo.flow.joining import build
from choreo.flow.timeline import Expected, Node, Progress, Timeline
from choreo.flow.waiting import expect, unanswered
from choreo.record import Record
from choreo.runtime import replaying
from tests.unit.test_timeline import drawn, record


class Placed(Event, type="placed", version=1, topic="orders"): ...


class Reserved(Event, type="reserved", version=1, topic="stock"): ...


class Captured(Event, type="captured", version=1, topic="payments"): ...


class Declined(Event, type="declined", version=1, topic="payments"): ...


class Once(Event, type="once", version=1, topic="orders"):
    order_id: str


class Size(StrEnum):
    """What JSON has as "big"."""

    BIG = "big"


class Sized(Event, type="sized", version=1, topic="orders"):
    order_id: Size


class Unique(Event, type="unique", version=1, topic="orders"):
    order_id: UUID


inventory, payments, bell = Service("inventory"), Service("payments"), Service("bell")


@inventory.handler(Placed)
def reserve(placed: Placed) -> Reserved:
    """Always emits."""
    return Reserved()


@payments.handler(Reserved)
def charge(reserved: Reserved) -> Captured | Declined:
    """One or the other."""
    return Captured()


@bell.handler(Placed)
def ring(placed: Placed) -> None:
    """Emits nothing."""


@bell.handler(Once, idempotency_key="order_id")
def ring_once(once: Once) -> None:
    """A key of the business."""


@bell.handler(Sized, idempotency_key="order_id")
def ring_sized(sized: Sized) -> None:
    """A key whose text is not its JSON."""


@bell.handler(Unique, idempotency_key="order_id")
def ring_unique(unique: Unique) -> None:
    """A key with a text of its own."""


flow = Flow("order", starts=Placed, ends=(Captured, Declined), deadline=timedelta(minutes=10))
capability = App(inventory, payments, bell, flows=[flow]).capability()
ALL = ("inventory", "payments", "bell")
RESERVED = derived_id("inventory", "reserve", "/shop", "1", "reserved", 0)


def row(handler: str, *, done: int = 1, topic: str = "orders", outcome: str = "handled") -> dict[str, Any]:
    """What a store says of the record at offset 0."""
    told = {"topic": topic, "partition": 0, "offset": 0, "done": done, "outcome": outcome if done else ""}
    return {**told, "handler": handler, "attempts": 1, "deliveries": 1, "duration_s": 0.0, "done_ms": 1}


def looked(
    *records: Record, rows: tuple[dict[str, Any], ...] = (), told: tuple[str, ...] = (), now_s: float = 751.0
) -> Timeline:
    """The flow `f`, with what is expected of it."""
    found = build(records, "f", rows)
    expect(found, capability, now_ms=int(now_s * 1000), told=told)
    return found


def first(found: Timeline) -> Node:
    """The event that began it."""
    return next(found.nodes())


def placed(**more: Any) -> Record:
    """What begins the flow."""
    return record("1", type_="placed", **more)


def reserved(id_: str = RESERVED) -> Record:
    """What inventory makes of it."""
    return record(id_, type_="reserved", source="/inventory", topic="stock", cause="1", at_ms=1)


def test_what_a_store_has_no_key_of_is_waited_for() -> None:
    """With what may come of it, from whom, and since when."""
    found = looked(placed(), reserved(), rows=(row("inventory.reserve"), row("bell.ring")), told=ALL)
    assert first(found).expected == []
    assert "waiting for captured | declined from payments, 00:12:30" in drawn(found)
    assert "flow order open for 00:12:31, late by 00:02:31" in drawn(found)


def test_handler_that_emits_nothing_is_waited_for_by_name() -> None:
    """There is no event to name."""
    found = looked(placed(), rows=(row("inventory.reserve"),), told=ALL)
    assert "waiting for bell.ring, 00:12:31" in drawn(found)


def test_what_is_in_flight_is_said_to_be_and_waited_for() -> None:
    """A claim without a result."""
    found = looked(placed(), rows=(row("inventory.reserve", done=0), row("bell.ring", done=0)), told=ALL)
    assert "inventory.reserve not finished" in drawn(found)
    assert [each.handler for each in first(found).expected] == ["inventory.reserve"]


def test_log_alone_does_not_know_what_emits_nothing() -> None:
    """It may have been consumed: that is not guessed. What has to emit is waited for all the same."""
    found = looked(placed())
    states = {each.handler: each.state for each in first(found).expected}
    assert states == {"inventory.reserve": "waiting", "bell.ring": "unknown"}
    assert "unknown whether bell.ring has handled it, 00:12:31 (neither its store" in drawn(found)


def test_one_of_several_emits_is_unknown_from_the_log_alone() -> None:
    """`A | B` may be `A | B | None`."""
    assert "unknown whether payments.charge has handled it; no captured | declined yet" in drawn(looked(reserved()))


def test_emit_with_the_handlers_own_id_says_that_it_was_handled() -> None:
    """Seen on the log, without a store; how long it took is not."""
    (handling,) = first(looked(placed(), reserved())).handlings
    assert (handling.handler, handling.outcome, handling.told_by) == ("inventory.reserve", "handled", "log")
    assert "inventory.reserve handled by its emit" in drawn(looked(placed(), reserved()))


def test_emit_of_another_does_not_say_that_it_was_handled() -> None:
    """The type alone is no proof: another service may emit it too."""
    found = looked(placed(), reserved("somebody else's"))
    assert "inventory.reserve" in [each.handler for each in first(found).expected]


@pytest.mark.parametrize("handler", ["reserve", waiting.DECODE])
def test_dead_letter_is_not_waited_for(handler: str) -> None:
    """Of the handler, or of the whole service that could not read the record."""
    names = {"service": "inventory", "handler": handler, "reason": "unknown_version"}
    told = tuple((f"choreo-dlq-{name}", text.encode()) for name, text in names.items())
    found = looked(placed(), placed(topic="inventory.dlq", extra=told))
    assert "inventory.reserve" not in [each.handler for each in first(found).expected]


def test_decode_is_the_routers() -> None:
    """What stands for a handler where none could be given the record."""
    assert waiting.DECODE == replaying.DECODE


def test_key_that_may_be_forgotten_is_unknown() -> None:
    """After the retention of keys the lack of one says nothing."""
    expected = first(looked(placed(), told=ALL, now_s=8 * 86_400)).expected
    assert {each.state for each in expected} == {"unknown"}


def once(order_id: str, type_: str = "once") -> Record:
    """An event whose key is of the business."""
    return record("1", type_=type_)._replace(value=f'{{"order_id": "{order_id}"}}'.encode())


def asked(found: Timeline, keys: dict[bytes, bool]) -> Timeline:
    """The same flow, after a store was asked for keys."""
    expect(found, capability, now_ms=751_000, told=ALL, keys=keys)
    return found


def test_business_key_is_asked_for_by_its_value() -> None:
    """Handled under another event of the same key leaves no row at this one; the key itself is there."""
    found = build([once("o-1")], "f")
    assert unanswered(found, capability) == [("bell", business_digest("bell", "ring_once", "o-1"))]
    assert "bell.ring_once done by its idempotency key" in drawn(
        asked(found, {business_digest("bell", "ring_once", "o-1"): True})
    )
    assert "waiting for bell.ring_once, 00:12:31\n" in drawn(asked(build([once("o-2")], "f"), {}))


def test_business_key_that_is_a_uuid_is_written_as_python_does() -> None:
    """Producers may write it in capitals."""
    text = "0D9F2E1A-7B1C-4B6E-9C55-3C1D2E4F5A6B"
    (asked_for,) = unanswered(build([once(text, "unique")], "f"), capability)
    assert asked_for.digest == business_digest("bell", "ring_unique", text.lower())


def test_business_key_of_uncertain_text_is_another_reason() -> None:
    """The text of an enumeration in a key is not what its JSON is, so a key that is not found proves nothing."""
    found = build([once("big", "sized")], "f")
    assert unanswered(found, capability) == []
    (expected,) = first(asked(found, {})).expected
    assert expected == Expected(
        "bell", "bell.ring_sized", "waiting", (), 751.0, "unless another event with this order_id was handled before"
    )


def test_keys_alone_say_done_or_not_finished() -> None:
    """As a store has them that keeps neither flows nor attempts; what has no key is waited for."""
    found = build([placed()], "f")
    keys = {digest: group == "bell" for group, digest in unanswered(found, capability)}
    assert len(keys) == 2
    text = drawn(asked(found, keys))
    assert "bell.ring done by its idempotency key" in text
    assert "inventory.reserve not finished by its idempotency key" in text
    assert [each.state for each in first(asked(build([placed()], "f"), {})).expected] == ["waiting", "waiting"]


def test_what_is_told_is_not_asked_for() -> None:
    """Neither what a row tells of nor what is a dead letter."""
    found = build([placed()], "f", [row("inventory.reserve")])
    assert [group for group, _ in unanswered(found, capability)] == ["bell"]


def test_same_type_in_another_topic_is_not_waited_for() -> None:
    """Nobody reads it there; a prefix of the environment is no other topic."""
    assert first(looked(placed(topic="elsewhere"), told=ALL)).expected == []
    found = build([placed(topic="t1.orders")], "f")
    expect(found, capability, now_ms=0, told=ALL, topic_prefix="t1.")
    assert len(first(found).expected) == 2


def test_flow_ends_with_its_first_terminal_event() -> None:
    """And is late only beyond its deadline."""
    captured = record("3", type_="captured", source="/payments", topic="payments", cause=RESERVED, at_ms=90_000)
    assert looked(placed(), reserved(), captured).progress == Progress("order", "captured", 90.0, 600.0, 0.0)
    late = looked(placed(), captured._replace(timestamp_ms=700_000)).progress
    assert late is not None
    assert late.late_s == 100.0
    assert looked(reserved()).progress is None


def test_flow_is_found_by_any_of_its_names() -> None:
    """Correlation id, event id, record key, trace id; an id that is two of them is the narrower."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    header = ("traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode())
    records = [record("1", flow="f", extra=(header,)), record("2", flow="g", at_ms=5)._replace(key=b"order-7")]
    assert flows_of(records, "f") == flows_of(records, "1") == flows_of(records, trace) == ["f"]
    assert flows_of(records, "order-7", by_key=True) == ["g"]
    assert flows_of(records, "order-7") == flows_of(records, "g", by_key=True) == []
    assert flows_of([*records, record("g", flow="h")], "g") == ["g"]
