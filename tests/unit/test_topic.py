"""Topics that are not choreo's: read into events, written from them, and what of them cannot be read."""

from decimal import Decimal
from typing import Any

import orjson
import pytest

from choreo import App, DeclarationError, Delayed, Event, Service
from choreo.record import ProducerRecord, Record
from choreo.runtime.replaying import Replay, replay_headers
from choreo.testing import TestApp
from choreo.topic import Topic

BIG = "12345678901234567.89"


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    """What others write."""

    order_id: str
    total: Decimal


class OrderTaken(Event, type="order.taken", topic="taken", key="order_id"):
    """What others read."""

    order_id: str
    total: Decimal


def wrapped(event: str, message_id: str = "m-1", **payload: Any) -> bytes:
    """A message as the others have it."""
    return orjson.dumps({"event": event, "message_id": message_id, "payload": payload})


LEGACY = Topic(
    "orders-v0",
    read=lambda r: (r.json["event"], r.json["payload"]) if r.headers.get("kind") != "ping" else None,
    id=lambda r: r.json["message_id"],
    correlation=lambda r: r.headers.get("correlation_id"),
)
ANSWERS = Topic(
    "taken-v0",
    read=lambda r: (r.json["event"], r.json["payload"]),
    write=lambda e: {"event": e.type, "message_id": e.id, "payload": e.data},
)


def make_app(**topics: str) -> tuple[App, list[OrderPlaced]]:
    """A desk between the two."""
    desk, seen = Service("desk"), list[OrderPlaced]()

    @desk.handler(OrderPlaced)
    async def take(order: OrderPlaced) -> OrderTaken:
        seen.append(order)
        return OrderTaken(order_id=order.order_id, total=order.total)

    audit = Service("audit")

    @audit.handler(OrderTaken)
    async def note(taken: OrderTaken) -> None:
        """Reads what the desk wrote, in the same app."""

    return App(desk, audit, topics={"orders": LEGACY, "taken": ANSWERS, **topics}), seen


async def test_others_messages_are_events_and_events_their_messages() -> None:
    """Every digit is kept, a second message of one id is a duplicate, and the flow has the others' correlation id."""
    app, seen = make_app()
    value = f'{{"event":"order.placed","message_id":"m-1","payload":{{"order_id":"o-1","total":"{BIG}"}}}}'.encode()
    headers = (("correlation_id", b"c-1"), ("content-type", b"application/json"))
    async with TestApp(app) as t:
        for _ in range(2):
            await t.send(ProducerRecord("orders-v0", b"o-1", value, headers))
        await t.settle()
        assert seen == [OrderPlaced(order_id="o-1", total=Decimal(BIG))]
        (written,) = await t.running.transport.scan(["taken-v0"], since_ms=0)
        counts = {name: worker.counts for name, worker in t.running.workers.items()}
    assert counts["desk"]["duplicates"] == 1
    assert counts["audit"]["handled"] == 1
    named = dict(written.headers)
    data = orjson.loads(written.value or b"")
    assert data == {
        "event": "order.taken",
        "message_id": (named["ce_id"] or b"").decode(),
        "payload": {"order_id": "o-1", "total": BIG},
    }
    assert named["ce_correlationid"] == b"c-1"
    assert named["ce_causationid"] == b"m-1"
    assert "ce_specversion" not in named


async def test_what_is_no_event_of_theirs_is_skipped_and_what_cannot_be_read_is_a_dead_letter() -> None:
    """The reason names the function and the error's type, and never the message."""
    app, _ = make_app()
    async with TestApp(app) as t:
        await t.send(ProducerRecord("orders-v0", None, b"ping", (("kind", b"ping"),)))
        await t.send(ProducerRecord("orders-v0", None, wrapped("order.cancelled"), ()))
        await t.send(ProducerRecord("orders-v0", None, b'{"event":"s3cret"}', ()))
        await t.send(ProducerRecord("orders-v0", None, b"{", ()))
        await t.send(ProducerRecord("orders-v0", None, wrapped("order.placed", order_id="o-1"), ()))
        await t.settle()
        counts = t.running.workers["desk"].counts
        letters = {(each.reason, each.detail) for each in t.dead_letters}
    assert counts["skipped_no_event"] == 1
    assert counts["skipped_unhandled_type"] == 1
    assert ("unreadable", "unreadable: read of the topic orders-v0 raised KeyError") in letters
    assert {reason for reason, _ in letters} == {"unreadable", "not_json", "invalid_data"}
    assert "s3cret" not in str(letters)


async def test_without_an_id_of_theirs_a_record_is_known_by_where_it_lies() -> None:
    """Two equal messages are two events; what choreo wrote there in CloudEvents is read as such."""
    app, seen = make_app(orders=Topic("orders-v1", read=lambda r: ("order.placed", r.json)))
    value = orjson.dumps({"order_id": "o-1", "total": 1})
    async with TestApp(app) as t:
        for _ in range(2):
            await t.send(ProducerRecord("orders-v1", b"o-1", value, ()))
        await t.publish(OrderPlaced(order_id="o-2", total=Decimal(2)))
        await t.settle()
        orders, taken = [await t.running.transport.scan([name], since_ms=0) for name in ("orders-v1", "taken-v0")]
    lies = [f"{each.partition}/{each.offset}" for each in orders]
    assert sorted(each.order_id for each in seen) == ["o-1", "o-1", "o-2"]  # of two keys, in whichever order
    causes = [dict(each.headers)["ce_causationid"] or b"" for each in taken]
    theirs = [each.rpartition(b"/")[0] for each in causes if each.startswith(b"orders-v1/")]
    assert theirs == [f"orders-v1/{lay}".encode() for lay in lies[:2]]


async def test_a_retry_by_a_delay_topic_keeps_the_event() -> None:
    """It is read once; what comes again is a CloudEvent of the same id."""
    desk, tried = Service("desk"), list[str]()

    @desk.handler(OrderPlaced, retry=Delayed(5, 60))
    async def take(order: OrderPlaced) -> None:
        tried.append(order.order_id)
        if len(tried) < 3:
            raise OSError("down")

    async with TestApp(App(desk, topics={"orders": LEGACY})) as t:
        await t.send(ProducerRecord("orders-v0", b"o", wrapped("order.placed", order_id="o-1", total=1), ()))
        await t.settle()
        await t.advance(minutes=5)
        assert not t.dead_letters
        assert t.running.workers["desk"].counts["handled"] == 1


def test_a_record_that_could_not_be_read_is_read_again_by_its_replay() -> None:
    """The topic it lay in first says how; its id is still that of where it lay."""
    desk = Service("desk")

    @desk.handler(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        """Nothing."""

    app = App(desk, topics={"orders": Topic("orders-v1", read=lambda r: ("order.placed", r.json))})
    lay = {"topic": "orders-v1", "partition": "3", "offset": "7", "timestamp-ms": "9"}
    ordered = replay_headers(Replay("r-1", "(decode)", "if-not-done", "replay", original=lay))
    record = Record("desk.replay", 0, 0, None, orjson.dumps({"order_id": "o", "total": 1}), tuple(ordered), 11)
    (work,) = app.router("desk").route(record).work
    assert work.event == OrderPlaced(order_id="o", total=Decimal(1))
    assert work.envelope is not None
    assert work.envelope.id == "orders-v1/3/7/9"


async def test_what_write_raises_fails_the_publication_that_asked_for_it() -> None:
    """The caller sees the error of its own function."""
    app, _ = make_app(orders=Topic("orders-v0", write=lambda e: {"no": e.data["there"]}))
    async with TestApp(app) as t:
        with pytest.raises(KeyError, match="there"):
            await t.publish(OrderPlaced(order_id="o-1", total=Decimal(1)))


def test_a_prefix_is_put_before_the_name_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the outbox and of a Publisher, which take the same mapping."""
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", "eu.")
    app, _ = make_app()
    found = app.topic("orders")
    assert found == "eu.orders-v0"
    assert isinstance(found, Topic)
    assert found.read is LEGACY.read
    assert [type(name) for name in app.input_topics("desk")] == [str]
    assert all(type(spec.name) is str for spec in app.topic_specs())


def test_a_topic_declared_wrongly_says_so() -> None:
    """At import, with what to write."""
    with pytest.raises(DeclarationError, match="must be a function"):
        Topic("orders-v0", read="json")  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="give it read= too"):
        Topic("orders-v0", id=lambda r: r.topic)
