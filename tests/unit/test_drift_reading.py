"""What is read off records, rows of stores and spans: events, causes, units, and what is missing of them."""

from typing import Any

import pytest

from choreo import envelope as cloudevents
from choreo.core.emission import derived_id
from choreo.envelope import Envelope
from choreo.flow.drift_log import LogReading, Window
from choreo.flow.drift_seen import Broken, ByHand, Seen
from choreo.flow.drift_traces import from_traces
from choreo.flow.spans import Span
from choreo.record import Record
from tests.declared import declared

SHOP = declared("stock.reserve: placed -> reserved", "stock.count: placed -> counted?", "mail.tell: reserved -> ")
WINDOW = Window(0.0, 1_000_000.0, slack_ms=10_000.0)
RESERVED = derived_id("stock", "reserve", "/web", "1", "reserved", 0)


def record(
    id_: str, type_: str, *, source: str = "/stock", cause: str | None = None, offset: int = 0, **more: Any
) -> Record:
    """One event on the log."""
    headers = cloudevents.write(Envelope(id_, source, type_, version=1, correlationid="f", causationid=cause))
    made = Record("events", 0, offset, b"k", b"{}", headers, 20_000 + offset)
    return made._replace(**more)


def read(*records: Record, history: tuple[dict[str, Any], ...] = (), **more: Any) -> Seen:
    """As the command reads them."""
    return LogReading(records, capability=SHOP, **more).seen(history, window=WINDOW, told=("stock", "mail"))


def row(handler: str, offset: int, **more: Any) -> dict[str, Any]:
    """Of a store's history."""
    made = {"handler": handler, "topic": "events", "partition": 0, "offset": offset, "done": 1, "outcome": "handled"}
    return made | {"attempts": 1, "deliveries": 1, "duration_s": 0.5, "done_ms": 30_000} | more


PLACED = record("1", "placed", source="/web")


def test_id_of_an_event_tells_its_handler() -> None:
    """Choreo derives it from the handler's name; another's id tells nothing."""
    seen = read(
        PLACED, record(RESERVED, "reserved", cause="1", offset=1), record("x", "counted", cause="1", offset=2)
    )
    assert {each.type: each.handler for each in seen.events.values()} == {
        "placed": "",
        "reserved": "reserve",
        "counted": "",
    }
    assert [each.type for each in seen.effects["/web 1"]] == ["reserved", "counted"]


def test_record_that_was_sent_twice_is_one_event() -> None:
    """The earliest; who handled either has handled it, and its attempts are the most of any delivery."""
    seen = read(
        PLACED,
        PLACED._replace(offset=7, timestamp_ms=19_000),
        history=(row("stock.reserve", 0, attempts=2), row("stock.reserve", 7, done=0, attempts=1)),
    )
    assert [each.at_ms for each in seen.events.values()] == [19_000]
    (unit,) = seen.units.values()
    assert (unit.outcome, unit.attempts, unit.at_ms) == ("handled", 2, 29_500.0)


def test_event_of_a_parked_key_is_one_that_is_still_to_come() -> None:
    """Until it was handled, from its queue, or skipped; how a queue ends is no handler's. Only orders are by hand."""
    headers = (("choreo-replay-handler", b"reserve"), ("choreo-replay-mode", b"if-not-done"))
    queue, released, skipped = (
        PLACED._replace(topic="stock.replay", offset=n, headers=(*PLACED.headers, *headers, *more))
        for n, more in enumerate(
            (
                (("choreo-replay-parked", b"head"),),
                (("choreo-replay-parked", b"head"), ("choreo-replay-by", b"me")),
                (("choreo-replay-parked", b"drop"), ("choreo-replay-by", b"me")),
            )
        )
    )
    parked = row("stock.reserve", 0, outcome="parked:handler_failed")
    for more, outcome in (
        ((), ("delayed", "handler_failed")),
        ((row("stock.reserve", 0, topic="stock.replay"),), ("handled", "")),
        ((row("stock.reserve", 0, topic="stock.replay", outcome="unparked"),), ("delayed", "handler_failed")),
        ((row("stock.reserve", 2, topic="stock.replay", outcome="unparked:drop"),), ("dead_letter", "skipped")),
    ):
        seen = read(PLACED, queue, released, skipped, history=(parked, *more))
        (unit,) = seen.units.values()
        assert (unit.outcome, unit.reason) == outcome
        assert [each.what for each in seen.by_hand] == ["release reserve", "skip reserve"]


def test_record_that_waited_to_be_tried_again_is_one_event() -> None:
    """What it came to in the end counts, whichever topics it waited on, with all its attempts."""
    waited = PLACED._replace(topic="stock.retry.60", timestamp_ms=PLACED.timestamp_ms + 1)
    delayed = row("stock.reserve", 0, outcome="delayed", attempts=1)
    handled = {**row("stock.reserve", 0, attempts=2), "topic": "stock.retry.60"}
    (unit,) = read(PLACED, waited, history=(delayed, handled)).units.values()
    assert (unit.outcome, unit.attempts) == ("handled", 2)
    (unit,) = read(PLACED, waited, history=(delayed,)).units.values()
    assert unit.outcome == "delayed"


def test_dead_letter_is_no_event_but_what_became_of_one() -> None:
    """Its headers tell who gave it up and why; one of an event before the window is counted."""
    told = {"reason": "rejected", "service": "stock", "handler": "reserve", "attempts": "5"}
    headers = tuple((f"choreo-dlq-{name}", text.encode()) for name, text in told.items())
    letter = PLACED._replace(topic="stock.dlq", headers=(*PLACED.headers, *headers))
    (unit,) = read(PLACED, letter).units.values()
    assert (unit.outcome, unit.reason, unit.attempts, unit.service) == ("dead_letter", "rejected", 5, "stock")
    alone = read(letter)
    assert (len(alone.events), len(alone.units)) == (0, 0)
    assert "1 dead letters are of events before the window." in alone.notes


def test_replay_is_no_event_but_who_handled_it_counts() -> None:
    """A copy in a topic of replays, which is none that the event is sent to, also where the event is long gone."""
    replay = PLACED._replace(topic="stock.replay", headers=(*PLACED.headers, ("choreo-replay-mode", b"force")))
    seen = read(PLACED, replay, history=(row("stock.reserve", 0, topic="stock.replay"),))
    assert [each.topic for each in seen.events.values()] == ["events"]
    assert [(unit.handler, unit.outcome) for unit in seen.units.values()] == [("reserve", "handled")]
    assert read(replay).events == {}


def replayed(mode: str, base: str = "", **more: str) -> tuple[tuple[str, bytes], ...]:
    """Headers of an order, or of a mark."""
    said = {"id": "r", "handler": "reserve", "mode": mode, "key": "replay", "by": "ann", "base": base} | more
    return tuple((f"choreo-replay-{name}", text.encode()) for name, text in said.items())


def test_what_a_forced_replay_emits_is_told_apart() -> None:
    """By the base its id is made of, and the handler too. One that waits to be tried again is one order."""
    own = derived_id("stock", "reserve", "/web", "base", "reserved", 0)
    order = PLACED._replace(topic="stock.replay", headers=(*PLACED.headers, *replayed("force", "base")))
    waits = order._replace(topic="stock.retry.60", headers=(*order.headers, ("choreo-retry-handler", b"reserve")))
    records = [PLACED, order, waits, record(RESERVED, "reserved", cause="1"), record(own, "reserved", cause="1")]
    seen = read(*records)
    assert [(each.handler, each.replay) for each in seen.effects["/web 1"]] == [("reserve", ""), ("reserve", "base")]
    assert seen.by_hand == [ByHand("stock", "replay", "replay reserve, forced", "ann", "", 20_000, "f", "/web 1")]


def test_what_came_of_an_event_replayed_from_before_the_window_is_not_broken() -> None:
    """Its cause is named, and the order has it; without one it hangs in the air."""
    effect = record(RESERVED, "reserved", cause="1")
    order = PLACED._replace(topic="stock.replay", headers=(*PLACED.headers, *replayed("if-not-done")))
    assert read(effect, order).broken == []
    assert [each.flow for each in read(effect).broken] == ["f"]


def test_a_mark_is_of_the_flow_whose_dead_letter_it_names() -> None:
    """It has no value and no envelope; of a letter before the window the flow is not known."""
    told = {"reason": "rejected", "service": "stock", "handler": "reserve", "attempts": "5"}
    headers = tuple((f"choreo-dlq-{name}", text.encode()) for name, text in told.items())
    letter = PLACED._replace(topic="stock.dlq", offset=4, headers=(*PLACED.headers, *headers))
    mark = Record("stock.replay", 0, 0, b"k", None, replayed("drop", letter="stock.dlq/0@4", note="left"), 21_000)
    (dropped,) = read(PLACED, letter, mark).by_hand
    assert dropped == ByHand("stock", "drop", "drop reserve", "ann", "left", 21_000, "f", "/web 1")
    (unknown,) = read(mark).by_hand
    assert (unknown.flow, unknown.event, unknown.who) == ("", "", "ann")


def test_records_of_others_are_counted() -> None:
    """No CloudEvents; a tombstone is nothing at all."""
    seen = read(PLACED, PLACED._replace(headers=(), offset=1), PLACED._replace(value=None, offset=2))
    assert "1 records are no CloudEvents and were passed over." in seen.notes


def test_topic_is_known_without_the_prefix_of_its_environment() -> None:
    """As it was declared."""
    (event,) = read(PLACED._replace(topic="test-events"), topic_prefix="test-").events.values()
    assert event.topic == "events"


def test_cause_before_the_window_is_not_missed() -> None:
    """Early in it; later the cause should be there."""
    early = record("2", "reserved", cause="gone", timestamp_ms=5_000)
    late = record("3", "reserved", cause="gone", offset=1, timestamp_ms=20_000)
    assert read(early).broken == []
    assert read(late).broken == [Broken("stock", 20_000, "f", "")]


def span(
    id_: str, operation: str, event: str, type_: str, *, parent: str = "", service: str = "stock", **more: Any
) -> Span:
    """One of choreo's."""
    attributes: dict[str, Any] = {
        "messaging.operation.name": operation,
        "messaging.destination.name": "events",
        "messaging.message.id": event,
        "messaging.message.conversation_id": "f",
        "cloudevents.event_type": type_,
        "cloudevents.event_source": "/web" if type_ == "placed" else "/stock",
        "choreo.event_version": 1,
    }
    if operation == "process":
        attributes |= {"choreo.handler": "reserve", "choreo.outcome": "handled", "choreo.attempts": 1}
    attributes |= more.pop("said", {})
    made = Span("t" * 32, id_, parent, f"{operation} events", service, int(id_) * 1_000_000, 500_000, attributes)
    for name, value in more.items():
        setattr(made, name, value)
    return made


SENT = span("1", "send", "1", "placed", service="web")
DONE = span("2", "process", "1", "placed", parent="1")
EMITTED = span("4", "send", "2", "reserved", parent="3")
QUERY = Span("t" * 32, "3", "2", "SELECT", "stock", 3_000_000, 1000, {})


def traced(*spans: Span, sampled: float | None = 1.0, **more: Any) -> Seen:
    """As the command reads them."""
    return from_traces(spans, capability=SHOP, window=WINDOW, sampled=sampled, **more)


def test_emission_is_of_the_handler_above_it() -> None:
    """A span of the handler's own may be between."""
    seen = traced(EMITTED, QUERY, DONE, SENT)
    assert [(each.type, each.cause, each.handler) for each in seen.events.values()] == [
        ("placed", None, ""),
        ("reserved", "/web 1", "reserve"),
    ]
    (unit,) = seen.units.values()
    assert (unit.service, unit.handler, unit.outcome, unit.duration_s) == ("stock", "reserve", "handled", 0.0005)
    assert (seen.broken, seen.doubt) == ([], "")


def test_hop_in_a_trace_of_its_own_is_joined_by_its_event() -> None:
    """As with links, or after an hour: what is one trace and what are two makes no difference."""
    apart = {"trace_id": "u" * 32}
    done = span("2", "process", "1", "placed", **apart)
    emitted = span("4", "send", "2", "reserved", parent="2", **apart)
    assert traced(SENT, done, emitted).events == {
        key: event._replace(trace_id="u" * 32 if event.type == "reserved" else event.trace_id)
        for key, event in traced(SENT, DONE, QUERY, EMITTED).events.items()
    }


def test_record_that_nobody_could_read_is_known_by_what_sent_it() -> None:
    """Its span has no event's ids."""
    refused = span(
        "2",
        "process",
        "",
        "",
        parent="1",
        said={"choreo.handler": "(decode)", "choreo.outcome": "dead_letter", "error.type": "not_json"},
    )
    (unit,) = traced(SENT, refused).units.values()
    assert (unit.event, unit.handler, unit.outcome, unit.reason) == ("/web 1", "(decode)", "dead_letter", "not_json")


@pytest.mark.parametrize(
    "said",
    [
        {"choreo.outcome": "dropped"},
        {"messaging.destination.name": "stock.dlq"},
    ],
)
def test_what_was_not_sent_to_the_flow_is_no_event(said: dict[str, str]) -> None:
    """Results of a lost lease, and the copy in a dead-letter topic."""
    assert "/stock 2" not in traced(SENT, DONE, span("4", "send", "2", "reserved", parent="2", said=said)).events


def test_process_of_a_replay_says_nothing_of_where_the_event_was_sent() -> None:
    """Its topic is the handler's own."""
    said = {"choreo.handler": "reserve", "choreo.outcome": "handled", "messaging.destination.name": "stock.replay"}
    assert traced(span("2", "process", "1", "placed", said=said)).events == {}


def test_service_is_told_by_the_span_where_its_resource_is_another() -> None:
    """As in a process with a provider of its own."""
    (unit,) = traced(
        SENT, span("2", "process", "1", "placed", parent="1", said={"choreo.service": "depot"})
    ).units.values()
    assert unit.service == "depot"


@pytest.mark.parametrize(
    ("spans", "more", "doubt"),
    [
        ((SENT, DONE), {"sampled": None}, "nobody said what share"),
        ((SENT, DONE), {"sampled": 0.25}, "25% of flows are sampled"),
        ((SENT, DONE), {"cut_short": ["stock"]}, "not all traces of stock were read"),
        ((SENT, DONE, span("5", "send", "3", "counted", parent="9")), {}, "1 spans of declared services are missing"),
        ((span("2", "process", "1", "placed", parent="9"),), {}, ""),
    ],
)
def test_doubt_says_why_absence_is_no_evidence(spans: tuple[Span, ...], more: dict[str, Any], doubt: str) -> None:
    """A publisher that exports nowhere is no reason to doubt: it is no declared service."""
    found = traced(*spans, **more).doubt
    assert found.startswith(doubt)
    assert bool(found) is bool(doubt)


def test_parent_that_was_not_exported_breaks_the_trace() -> None:
    """The service whose span hangs in the air; spans of the handler's own are not choreo's."""
    seen = traced(SENT, span("2", "process", "1", "placed", parent="9"), Span("t" * 32, "7", "8", "GET", "x", 1, 1))
    assert [(each.service, each.flow) for each in seen.broken] == [("stock", "f")]
