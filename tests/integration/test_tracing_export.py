"""Spans over real HTTP to a receiver: what they are called, whose they are, and below what they hang."""

import time
from collections.abc import Iterator

import pytest
from opentelemetry import trace

from choreo.envelope import Envelope
from choreo.ports import UnitInfo
from choreo.record import Record
from choreo.testing.otlp import MISSING, OtlpReceiver, tree
from choreo.testing.otlp_reading import ReceivedSpan
from tests.integration.tracing import SAMPLED, SPAN, TRACE, UNSAMPLED, event, hop, instruments, unit, unset_otel


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """A collector, with the environment pointing at it."""
    unset_otel(monkeypatch)
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def named(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    """The only span of that name."""
    (found,) = [span for span in spans if span.name == name]
    return found


def test_flow_is_one_tree_across_the_services_of_one_process(receiver: OtlpReceiver) -> None:
    """Each hop hangs below the send that caused it, and each service is a resource of its own."""
    with instruments("web", "inventory", "shipping") as (web, inventory, shipping):
        placed, end = web.publish("orders", event("o-1", "order.placed"))
        end(None)
        reserved = hop(inventory, unit("inventory", "orders", placed), "stock", "stock.reserved")
        hop(shipping, unit("shipping", "stock", reserved), "shipments", "order.shipped")
    sent_shipment: tuple[object, ...] = ("shipping", "send shipments", "PRODUCER", [])
    processed_stock = ("shipping", "process stock", "CONSUMER", [sent_shipment])
    sent_stock = ("inventory", "send stock", "PRODUCER", [processed_stock])
    processed_order = ("inventory", "process orders", "CONSUMER", [sent_stock])
    assert tree(receiver.spans()) == [("web", "send orders", "PRODUCER", [processed_order])]
    assert len({span.trace_id for span in receiver.spans()}) == 1
    assert receiver.requests == [200], "one exporter serves the process"


def test_spans_carry_the_conventions_attributes(receiver: OtlpReceiver) -> None:
    """The attributes are exactly those of the messaging conventions, CloudEvents' and choreo's own."""
    with instruments("inventory") as (inventory,):
        placed = event("o-1", "order.placed", traceparent=SAMPLED)
        hop(inventory, unit("inventory", "orders", placed), "stock", "stock.reserved")
    process, send = named(receiver.spans(), "process orders"), named(receiver.spans(), "send stock")
    assert process.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 42,
        "messaging.kafka.message.key": "order-1",
        "messaging.message.id": "o-1",
        "messaging.message.conversation_id": "o-1",
        "messaging.consumer.group.name": "inventory-group",
        "cloudevents.event_type": "order.placed",
        "cloudevents.event_source": "/web",
        "choreo.handler": "handle",
        "choreo.outcome": "handled",
        "choreo.attempts": 1,
    }
    assert send.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "stock",
        "messaging.message.id": "stock.reserved-id",
        "messaging.message.conversation_id": "o-1",
        "cloudevents.event_type": "stock.reserved",
        "cloudevents.event_source": "/web",
    }
    assert process.schema_url == send.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    assert process.status == send.status == "UNSET"
    assert (process.trace_id, process.parent_id) == (TRACE, SPAN)
    assert tree(receiver.spans())[0].name == MISSING, "its sender is not among the spans"


def test_attempts_and_a_dead_letter_are_visible(receiver: OtlpReceiver) -> None:
    """Each failed attempt is an event without its message, and the end is an error."""
    with instruments("inventory") as (inventory,):
        work = unit("inventory", "orders", event("o-1", "order.placed"))
        span = inventory.process(work, now_s=time.time())
        span.attempt_failed(1, ValueError("card 4111"))
        span.attempt_failed(2, TimeoutError("card 4111"))
        span.sending("inventory.dlq", event("o-1", "order.placed", traceparent=SAMPLED))
        span.finish("dead_letter", attempts=3, error_type="OutOfStock")
        span.finish("handled", attempts=3)
    process = named(receiver.spans(), "process orders")
    assert [(said.name, said.attributes) for said in process.events] == [
        ("choreo.attempt_failed", {"choreo.attempt": 1, "error.type": "ValueError"}),
        ("choreo.attempt_failed", {"choreo.attempt": 2, "error.type": "TimeoutError"}),
    ]
    assert process.status == "ERROR"
    assert process.attributes["error.type"] == "OutOfStock"
    assert process.attributes["choreo.outcome"] == "dead_letter"
    assert process.attributes["choreo.attempts"] == 3
    assert named(receiver.spans(), "send inventory.dlq").parent_id == process.span_id


def test_duplicate_is_visible(receiver: OtlpReceiver) -> None:
    """A duplicate has a process span of its own beside the first one, below the same send."""
    with instruments("inventory") as (inventory,):
        for outcome in ("handled", "duplicate"):
            work = unit("inventory", "orders", event("o-1", "order.placed", traceparent=SAMPLED))
            inventory.process(work, now_s=time.time()).finish(outcome, attempts=1)
    spans = receiver.spans()
    assert [span.attributes["choreo.outcome"] for span in spans] == ["handled", "duplicate"]
    assert {span.parent_id for span in spans} == {SPAN}
    assert {span.status for span in spans} == {"UNSET"}


async def test_sends_of_an_earlier_attempt_are_not_exported(receiver: OtlpReceiver) -> None:
    """What an attempt began to send and never committed was never sent."""

    async def handler() -> None: ...

    with instruments("inventory") as (inventory,):
        span = inventory.process(unit("inventory", "orders", event("o-1", "order.placed")), now_s=time.time())
        for topic in ("first", "second"):
            span.attach()
            await handler()
            span.sending(topic, event("s-1", "stock.reserved"))
        span.finish("dropped", attempts=2, error_type="choreo.errors.LeaseLost")
    assert sorted(said.name for said in receiver.spans()) == ["process orders", "send second"]
    assert {said.attributes["choreo.outcome"] for said in receiver.spans()} == {"dropped"}
    assert {said.status for said in receiver.spans()} == {"UNSET"}


async def test_unsampled_flow_is_forwarded_unchanged_and_exports_nothing(receiver: OtlpReceiver) -> None:
    """The header leaves as it came, and spans of the handler's own are not sampled either."""
    seen: list[trace.SpanContext] = []

    async def handler() -> None:
        seen.append(trace.get_current_span().get_span_context())

    with instruments("inventory") as (inventory,):
        placed = event("o-1", "order.placed", traceparent=UNSAMPLED, tracestate="a=1, b=2")
        span = inventory.process(unit("inventory", "orders", placed), now_s=time.time())
        span.attach()
        await handler()
        span.attempt_failed(1, ValueError())
        emitted = span.sending("stock", event("s-1", "stock.reserved"))
        span.finish("handled", attempts=1)
    assert (emitted.traceparent, emitted.tracestate) == (UNSAMPLED, "a=1, b=2")
    assert (f"{seen[0].trace_id:032x}", seen[0].trace_flags) == (TRACE, 0)
    assert receiver.requests == []


def test_unsampled_root_is_forwarded_as_such(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root the sampler refuses begins an unsampled trace that goes through the whole flow."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with instruments("web", "inventory") as (web, inventory):
        placed, end = web.publish("orders", event("o-1", "order.placed"))
        end(None)
        emitted = hop(inventory, unit("inventory", "orders", placed), "stock", "stock.reserved")
        alone = hop(inventory, unit("inventory", "orders", event("o-2", "order.placed")), "stock", "stock.reserved")
    assert placed.traceparent is not None
    assert emitted.traceparent == placed.traceparent
    assert alone.traceparent is not None
    assert int(placed.traceparent[-2:], 16) & 1 == int(alone.traceparent[-2:], 16) & 1 == 0
    assert receiver.requests == []


def test_broken_parent_begins_a_new_root(receiver: OtlpReceiver) -> None:
    """A header that says nothing costs the tree its root, never the event."""
    with instruments("inventory") as (inventory,):
        placed = event("o-1", "order.placed", traceparent=SAMPLED.upper(), tracestate="a=1")
        emitted = hop(inventory, unit("inventory", "orders", placed), "stock", "stock.reserved")
    process = named(receiver.spans(), "process orders")
    assert process.parent_id is None
    assert process.trace_id != TRACE
    assert emitted.tracestate is None


def test_state_of_other_vendors_travels_on(receiver: OtlpReceiver) -> None:
    """A sampled parent's tracestate is on what is emitted below it."""
    with instruments("inventory") as (inventory,):
        placed = event("o-1", "order.placed", traceparent=SAMPLED, tracestate="a=1,b@c=2")
        emitted = hop(inventory, unit("inventory", "orders", placed), "stock", "stock.reserved")
    assert emitted.tracestate == "a=1,b@c=2"
    assert emitted.traceparent == f"00-{TRACE}-{named(receiver.spans(), 'send stock').span_id}-01"


def test_old_hop_is_linked_and_not_a_child(receiver: OtlpReceiver) -> None:
    """A record older than an hour begins a trace of its own with a link to its sender."""
    with instruments("inventory") as (inventory,):
        placed = event("o-1", "order.placed", traceparent=SAMPLED)
        hop(inventory, unit("inventory", "orders", placed, age_s=3700), "stock", "stock.reserved")
    process = named(receiver.spans(), "process orders")
    assert process.parent_id is None
    assert process.links == ((TRACE, SPAN),)


def test_undecodable_record_stays_in_its_trace(receiver: OtlpReceiver) -> None:
    """A record without a readable event is traced by its headers, and its key only if that is text."""
    headers = (("traceparent", SAMPLED.encode()), ("ce_id", b"\xff"))
    work = UnitInfo("inventory", "group", "decode", Record("orders", 0, 1, b"\xff", None, headers, 0), None)
    with instruments("inventory") as (inventory,):
        span = inventory.process(work, now_s=time.time())
        dead = span.sending("inventory.dlq", Envelope("x", "/x", "x"))
        span.finish("dead_letter", attempts=0, error_type="bad_attribute")
    process = named(receiver.spans(), "process orders")
    assert (process.trace_id, process.parent_id) == (TRACE, SPAN)
    assert process.attributes["messaging.kafka.message.tombstone"] is True
    assert "messaging.kafka.message.key" not in process.attributes
    assert "messaging.message.id" not in process.attributes
    assert dead.traceparent is not None
    assert dead.traceparent.startswith(f"00-{TRACE}-")
