"""The flow of services that know nothing of choreo, from their spans and from headers of their records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from choreo.flow.observed import ObservedFlow, Sighting, observed
from choreo.flow.sightings import from_records, from_spans
from choreo.record import Record

Edges = dict[tuple[str, str], int]


@dataclass
class Span:
    """What is needed of a span."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)


def span(place: str, service: str, topic: str, at_ms: int, operation: str, **attributes: Any) -> Span:
    """`place` is TRACE/ID or TRACE/ID<PARENT."""
    trace, _, rest = place.partition("/")
    id_, _, parent = rest.partition("<")
    said = {"messaging.operation.type": operation, "messaging.destination.name": topic, **attributes}
    return Span(trace, id_, parent, f"{operation} {topic}", service, at_ms * 1_000_000, said)


def old_span(place: str, service: str, topic: str, at_ms: int, word: str) -> Span:
    """As instrumentations of 2022 have it: an operation in the name, and the topic under a dead name."""
    found = span(place, service, topic, at_ms, word)
    found.name, found.attributes = f"{topic} {word}", {"messaging.destination": topic}
    return found


def inner(place: str, service: str) -> Span:
    """A span between, such as one of a database."""
    found = span(place, service, "", 0, "")
    found.attributes = {}
    return found


def counted(flow: ObservedFlow) -> Edges:
    """How often each edge was taken, with short names."""
    return {(short(each.source), short(each.target)): each.count for each in flow.edges}


def short(name: str) -> str:
    """`event:a` -> `a`, `handler:x b` -> `x(b)`."""
    kind, _, rest = name.partition(":")
    service, _, event = rest.partition(" ")
    return rest if kind == "event" else f"{service}({event})"


def seen(*spans: Span, window_s: float = 60.0) -> ObservedFlow:
    """The flow of spans."""
    return observed(*from_spans(spans), window_s=window_s)


SHOP: Edges = {
    ("shop()", "orders"): 1,
    ("orders", "stock(orders)"): 1,
    ("stock(orders)", "held"): 1,
    ("held", "pay(held)"): 1,
}


def test_spans_are_a_flow() -> None:
    """Producer, consumer, a span of theirs between, producer, consumer; with how long each step took."""
    flow = seen(
        span("t/1", "shop", "orders", 0, "send"),
        span("t/2<1", "stock", "orders", 10, "process"),
        inner("t/x<2", "stock"),
        span("t/3<x", "stock", "held", 30, "send"),
        span("t/4<3", "pay", "held", 100, "process"),
    )
    assert counted(flow) == SHOP
    assert {short(each.target): each.wait_ms(0.5) for each in flow.edges} == {
        "orders": None,
        "stock(orders)": 10.0,
        "held": 20.0,
        "pay(held)": 70.0,
    }
    assert [(each.name, each.seen, each.began, each.went_on) for each in flow.events] == [
        ("held", 1, 0, 0),
        ("orders", 1, 1, 1),
    ]


def test_names_of_former_conventions_are_understood() -> None:
    """Nothing but `orders publish` and `messaging.destination`."""
    flow = seen(
        old_span("t/1", "shop", "orders", 0, "publish"),
        old_span("t/2<1", "stock", "orders", 10, "receive"),
        old_span("t/3<2", "stock", "held", 30, "publish"),
        old_span("t/4<3", "pay", "held", 100, "process"),
    )
    assert counted(flow) == SHOP


def test_receive_and_process_of_one_event_count_once() -> None:
    """The process span is the one that knows its event."""
    flow = seen(
        span("t/1", "shop", "orders", 0, "send"),
        span("t/2<1", "stock", "orders", 5, "receive"),
        span("t/3<2", "stock", "orders", 10, "process"),
        span("t/4<3", "stock", "held", 30, "send"),
        span("t/5<4", "pay", "held", 100, "process"),
    )
    assert counted(flow) == SHOP


def test_create_and_send_of_one_event_count_once() -> None:
    """A batch has both."""
    flow = seen(
        span("t/0", "shop", "orders", 0, "create"),
        span("t/1<0", "shop", "orders", 1, "send"),
        span("t/2<0", "stock", "orders", 10, "process"),
    )
    assert counted(flow) == {("shop()", "orders"): 1, ("orders", "stock(orders)"): 1}


def test_poll_of_a_batch_says_nothing() -> None:
    """A receive span without a parent is of no one event."""
    flow = seen(span("t/1", "shop", "orders", 0, "send"), span("u/2", "stock", "orders", 5, "receive"))
    assert counted(flow) == {("shop()", "orders"): 1}


def test_traces_joined_by_links_are_joined_by_the_event_id() -> None:
    """`messaging.message.id` on both sides, and a trace of its own for each hop."""
    a, b = ({"messaging.message.id": id_} for id_ in "ab")
    flow = seen(
        span("t/1", "shop", "orders", 0, "send", **a),
        span("u/2", "stock", "orders", 10, "process", **a),
        span("u/3<2", "stock", "held", 30, "send", **b),
        span("v/4", "pay", "held", 100, "process", **b),
    )
    assert counted(flow) == SHOP


def test_duplicates_and_redeliveries_count_once() -> None:
    """One event id sent twice and taken in twice."""
    a = {"messaging.message.id": "a"}
    flow = seen(
        span("t/1", "shop", "orders", 0, "send", **a),
        span("t/2<1", "stock", "orders", 10, "process", **a),
        span("u/1", "shop", "orders", 50, "send", **a),
        span("u/2<1", "stock", "orders", 60, "process", **a),
    )
    assert counted(flow) == {("shop()", "orders"): 1, ("orders", "stock(orders)"): 1}


def test_event_of_an_untraced_producer_is_seen_by_its_consumers() -> None:
    """Two services below one missing span took in one event."""
    flow = seen(span("t/2<1", "stock", "orders", 10, "process"), span("t/3<1", "mail", "orders", 11, "process"))
    assert counted(flow) == {("orders", "stock(orders)"): 1, ("orders", "mail(orders)"): 1}
    assert flow.events[0].seen == 1


def test_service_without_consumer_spans_is_in_the_flow() -> None:
    """Its producer span hangs below the one of the event that caused it."""
    flow = seen(span("t/1", "shop", "orders", 0, "send"), span("t/2<1", "stock", "held", 30, "send"))
    assert counted(flow) == {
        ("shop()", "orders"): 1,
        ("orders", "stock(orders)"): 1,
        ("stock(orders)", "held"): 1,
    }


def test_spans_in_a_circle_end() -> None:
    """Forged parents."""
    assert seen(
        span("t/1<2", "shop", "orders", 0, "send"),
        span("t/2<1", "shop", "orders", 0, "send"),
        span("t/3<3", "shop", "orders", 0, "process"),
    ).events


def record(
    topic: str, at_ms: int, cloudevent: dict[str, str] | None = None, *, offset: int = 0, trace: str = ""
) -> Record:
    """One record, with headers as any producer writes them and a value nobody looks at."""
    headers: list[tuple[str, bytes | None]] = [
        (f"ce_{name}", value.encode()) for name, value in (cloudevent or {}).items()
    ]
    if trace:
        headers.append(("traceparent", f"00-{trace:0>32}-00000000000000aa-01".encode()))
    return Record(topic, 0, offset, None, b"{}", tuple(headers), at_ms)


def event(id_: str, type_: str, source: str, cause: str = "") -> dict[str, str]:
    """CloudEvents attributes."""
    found = {"specversion": "1.0", "id": id_, "type": type_, "source": source}
    return {**found, "causationid": cause} if cause else found


def test_causation_ids_are_a_flow() -> None:
    """Types and sources, the cause by its id; a copy on the log is no second event."""
    records = [
        record("orders", 0, event("1", "order.placed", "/shop")),
        record("stock", 40, event("2", "stock.held", "/stock", cause="1")),
        record("stock", 45, event("2", "stock.held", "/stock", cause="1"), offset=1),
    ]
    flow = observed(from_records(records), (), window_s=10.0)
    assert counted(flow) == {
        ("shop()", "order.placed"): 1,
        ("order.placed", "stock(order.placed)"): 1,
        ("stock(order.placed)", "stock.held"): 1,
    }
    assert {each.wait_ms(0.5) for each in flow.edges} == {None, 40.0}
    assert not any(each.guessed for each in flow.edges)


def test_trace_of_zeros_joins_nothing() -> None:
    """W3C calls it invalid, and some clients send it where they have none."""
    records = [record("orders", 0, trace="0"), record("stock", 40, trace="0")]
    assert observed(from_records(records), (), window_s=10.0).edges == []


def test_dead_letter_is_what_became_of_its_event() -> None:
    """A copy in another topic, under its own event's id."""
    first = record("orders", 0, event("1", "order.placed", "/shop"))
    letter = first._replace(
        topic="stock.dlq", headers=(*first.headers, ("choreo-dlq-reason", b"rejected")), timestamp_ms=9
    )
    flow = observed(from_records([first, letter]), (), window_s=10.0)
    assert counted(flow) == {("shop()", "order.placed"): 1, ("order.placed", "stock.dlq"): 1}


def test_order_within_a_trace_is_a_guess() -> None:
    """No CloudEvents anywhere: topics, and the record before in the same trace."""
    records = [
        record("stock", 40, trace="a"),
        record("orders", 0, trace="a"),
        record("orders", 1, offset=1, trace="b"),
    ]
    flow = observed(from_records(records), (), window_s=10.0)
    (edge,) = flow.edges
    assert (short(edge.source), short(edge.target), edge.count, edge.guessed) == ("orders", "stock", 1, True)
    assert [edge.sure for edge in flow.picture("t").edges] == [False]


@pytest.mark.parametrize(
    "bad",
    [
        Record("orders", 0, 0, None, None, (), 0),
        Record("orders", 0, 0, None, b"\xff", (("traceparent", b"no"), ("ce_id", b"\xff")), 0),
        Record("orders", 0, 0, b"k", b"{", (("content-type", b"application/cloudevents+json"),), 0),
    ],
)
def test_records_of_any_kind_are_no_error(bad: Record) -> None:
    """What cannot be read is a record of its topic; a tombstone is none."""
    flow = observed(from_records([bad]), (), window_s=10.0)
    assert [each.name for each in flow.events] == ([] if bad.value is None else ["orders"])


def chains(quiet_at_ms: list[int]) -> ObservedFlow:
    """Ten events that led to another within 100 ms, and some that led to nothing; the log ends at 100 s."""
    found = [Sighting("end", "clock", "", 100_000.0)]
    for number in range(10):
        found.append(Sighting(f"a{number}", "asked", "web", number * 10.0))
        found.append(Sighting(f"b{number}", "answered", "desk", number * 10.0 + 100, cause=f"a{number}"))
    found += [Sighting(f"q{at_ms}", "asked", "web", float(at_ms)) for at_ms in quiet_at_ms]
    return observed(found, (), window_s=100.0)


def test_what_never_ended_is_counted() -> None:
    """Two that had time to go on, as their like did; one that still may; ends are no stops."""
    events = {each.name: each for each in chains([500, 600, 99_900]).events}
    assert (events["asked"].seen, events["asked"].went_on, events["asked"].stopped) == (13, 10, 2)
    assert events["asked"].under_way == 1
    assert (events["answered"].stopped, events["clock"].stopped) == (0, 0)


def test_numbers_of_an_edge_are_told() -> None:
    """Counts, rates and waits, for programs and on the picture."""
    flow = chains([])
    edge = next(each for each in flow.as_dict()["edges"] if each["target"] == "event:answered")
    assert (edge["count"], edge["rate_per_s"], edge["p50_ms"], edge["p95_ms"]) == (10, 0.1, 100.0, 100.0)
    assert "10, 6/min, 100 ms / 100 ms" in {each.label for each in flow.picture("t").edges}
