"""The handlers of order fulfilment, called as the plain functions they are."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from choreo import Context
from choreo.envelope import Envelope
from handlers.order_fulfilment.events import (
    Customer,
    Money,
    OrderLine,
    OrderPlaced,
    OrderShipped,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    Region,
    ShipmentCancelled,
    ShipmentDelayed,
    StockRejected,
    StockReserved,
)
from handlers.order_fulfilment.inventory import service as inventory
from handlers.order_fulfilment.notifications import service as notifications
from handlers.order_fulfilment.payments import service as payments
from handlers.order_fulfilment.payments.fake_provider import FakePaymentProvider
from handlers.order_fulfilment.shipping import service as shipping

ORDER_ID = UUID("00000000-0000-4000-8000-000000000001")
NOW = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
TOTAL = Money(amount=Decimal("25.80"), currency="EUR")
DECLINED = PaymentDeclined(order_id=ORDER_ID, customer_id="c-1", reason="expired_card")
SHIPPED = OrderShipped(order_id=ORDER_ID, customer_id="c-1", attempt=1, shipped_at=NOW)
CANCELLED = ShipmentCancelled(
    order_id=ORDER_ID, customer_id="c-1", payment_id="pay_1", total=TOTAL, reason="no_carrier"
)
REFUNDED = PaymentRefunded(order_id=ORDER_ID, customer_id="c-1", payment_id="pay_1", total=TOTAL)
Rows = list[tuple[object, ...]]


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    """A database with every service's tables, as at the start."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for service in (inventory, payments, shipping, notifications):
            service.tables(connection)
        yield connection


@pytest.fixture
def provider() -> Iterator[FakePaymentProvider]:
    """A provider that always answers."""
    with FakePaymentProvider(timeouts=0) as fake:
        yield fake


def placed(*lines: tuple[str, int]) -> OrderPlaced:
    """An order of these articles."""
    return OrderPlaced(
        order_id=ORDER_ID,
        customer=Customer(id="c-1", name="Ada", email="ada@example.com"),
        lines=tuple(OrderLine(sku=sku, quantity=quantity) for sku, quantity in lines or [("BK-1001", 2)]),
        total=TOTAL,
        payment_token="tok_visa",
        region="domestic",
        placed_at=NOW,
    )


def reserved(token: str = "tok_visa") -> StockReserved:
    """Goods held for an order that is paid with `token`."""
    return StockReserved(order_id=ORDER_ID, customer_id="c-1", total=TOTAL, payment_token=token, region="domestic")


def captured(region: Region) -> PaymentCaptured:
    """A paid order that goes to `region`."""
    return PaymentCaptured(order_id=ORDER_ID, customer_id="c-1", payment_id="pay_1", total=TOTAL, region=region)


def context(key: str = "key", event_id: str = "event") -> Context:
    """A context of one event at a fixed time."""
    return Context.fake(idempotency_key=key, envelope=Envelope(event_id, "/test", "test"), now=NOW)


def stock(db: sqlite3.Connection, sku: str) -> tuple[int, int, int]:
    """Pieces of an article that are available, held and issued."""
    row: tuple[int, int, int] = db.execute(
        "SELECT available, held, issued FROM inventory_stock WHERE sku = ?", (sku,)
    ).fetchone()
    return row


def ledger(db: sqlite3.Connection, service: str) -> Rows:
    """Effects and their reasons in a service's ledger."""
    return db.execute(f"SELECT effect, reason FROM {service}_ledger ORDER BY rowid").fetchall()


def test_reserve_moves_pieces_from_available_to_held(db: sqlite3.Connection) -> None:
    """A reserved order holds its pieces and says so to payments."""
    event = inventory.reserve(placed(("BK-1001", 2), ("IK-3001", 1), ("BK-1001", 1)), context(), db)
    assert event == reserved()
    assert stock(db, "BK-1001") == (1197, 3, 0)
    assert stock(db, "IK-3001") == (1199, 1, 0)
    assert ledger(db, "inventory") == [("hold", None)]


@pytest.mark.parametrize(
    ("sku", "quantity", "reason"),
    [("BK-1099", 1, "out_of_stock"), ("IK-3001", 1201, "out_of_stock"), ("XX-1", 1, "unknown_sku")],
)
def test_reserve_holds_all_lines_or_none(db: sqlite3.Connection, sku: str, quantity: int, reason: str) -> None:
    """One line that cannot be held rejects the order and leaves the other lines on the shelf."""
    event = inventory.reserve(placed(("BK-1001", 2), (sku, quantity)), context(), db)
    assert isinstance(event, StockRejected)
    assert (event.reason, event.sku) == (reason, sku)
    assert stock(db, "BK-1001") == (1200, 0, 0)
    assert ledger(db, "inventory") == [("reject", reason)]


def test_reserve_counts_one_article_on_two_lines_together(db: sqlite3.Connection) -> None:
    """Two lines that fit one by one and not together are rejected."""
    event = inventory.reserve(placed(("LE-9001", 20), ("LE-9001", 11)), context(), db)
    assert isinstance(event, StockRejected)


@pytest.mark.parametrize(("event", "reason"), [(DECLINED, "payment_declined"), (CANCELLED, "shipment_cancelled")])
def test_release_puts_held_pieces_back_once(
    db: sqlite3.Connection, event: PaymentDeclined | ShipmentCancelled, reason: str
) -> None:
    """A release puts the pieces back, and a second one finds nothing to put back."""
    inventory.reserve(placed(), context(), db)
    released = inventory.release(event, context(), db)
    assert released is not None
    assert released.reason == reason
    assert inventory.release(event, context(), db) is None
    assert stock(db, "BK-1001") == (1200, 0, 0)
    assert ledger(db, "inventory") == [("hold", None), ("release", reason)]


def test_issue_ends_the_hold(db: sqlite3.Connection) -> None:
    """Shipped goods are gone: neither held nor available, and not to be released any more."""
    inventory.reserve(placed(), context(), db)
    inventory.issue(SHIPPED, context(), db)
    inventory.issue(SHIPPED, context(), db)
    assert inventory.release(CANCELLED, context(), db) is None
    assert stock(db, "BK-1001") == (1198, 0, 2)
    assert ledger(db, "inventory") == [("hold", None), ("issue", None)]


def test_tables_fill_the_shelf_once(db: sqlite3.Connection) -> None:
    """A restart does not put the catalogue's pieces on the shelf again."""
    inventory.reserve(placed(), context(), db)
    inventory.tables(db)
    assert stock(db, "BK-1001") == (1198, 2, 0)


async def test_charge_captures_or_declines(provider: FakePaymentProvider) -> None:
    """What the provider answers becomes the event."""
    paid = await payments.charge(reserved(), context("a"), provider)
    assert isinstance(paid, PaymentCaptured)
    assert paid.total == TOTAL
    declined = await payments.charge(reserved("tok_declined_expired_card"), context("b"), provider)
    assert declined == DECLINED
    assert [(entry.effect, entry.reason) for entry in provider.statement()] == [
        ("charge", None),
        ("decline", "expired_card"),
    ]


async def test_refund_gives_the_charge_back(provider: FakePaymentProvider) -> None:
    """A cancelled shipment's payment is refunded under the order's id."""
    paid = await payments.charge(reserved(), context("a"), provider)
    assert isinstance(paid, PaymentCaptured)
    cancelled = CANCELLED.model_copy(update={"payment_id": paid.payment_id})
    refunded = await payments.refund(cancelled, context("b"), provider)
    assert refunded.total == TOTAL
    lines = [(entry.order_id, entry.effect, entry.amount) for entry in provider.statement()]
    assert lines == [(str(ORDER_ID), "charge", "25.80"), (str(ORDER_ID), "refund", "25.80")]


def test_book_keeps_books_of_every_payment(db: sqlite3.Connection) -> None:
    """Charge, refund and decline are entered, and the payment's state follows."""
    for event in (captured("remote"), REFUNDED):
        payments.book(event, context(), db)
    assert ledger(db, "payments") == [("charge", None), ("refund", None)]
    assert db.execute("SELECT state, payment_id FROM payments_payment").fetchall() == [("refunded", "pay_1")]
    payments.book(DECLINED, context(), db)
    assert ledger(db, "payments")[-1] == ("decline", "expired_card")


@pytest.mark.parametrize(
    ("region", "types"),
    [
        ("domestic", ["order.shipped"]),
        ("europe", ["order.shipped"]),
        ("remote", ["shipment.delayed", "order.shipped"]),
        ("unserved", ["shipment.delayed", "shipment.delayed", "shipment.cancelled"]),
    ],
)
def test_ship_tries_as_often_as_the_region_needs(db: sqlite3.Connection, region: Region, types: list[str]) -> None:
    """A parcel is offered to the carrier until it is taken, three times at most."""
    events: list[OrderShipped | ShipmentDelayed | ShipmentCancelled] = [
        shipping.ship(captured(region), context(), db)
    ]
    while isinstance(delayed := events[-1], ShipmentDelayed):
        events.append(shipping.ship_again(delayed, context(), db))
    assert [event.event_type for event in events] == types
    assert db.execute("SELECT count(*) FROM shipping_attempt").fetchone() == (len(types),)
    assert len(ledger(db, "shipping")) == 1


def test_notifications_write_one_message_an_event(db: sqlite3.Connection) -> None:
    """Each event the customer cares about is one row, and the same event a second time is refused."""
    delayed = ShipmentDelayed(
        order_id=ORDER_ID, customer_id="c-1", attempt=1, payment_id="pay_1", total=TOTAL, region="remote"
    )
    rejected = StockRejected(order_id=ORDER_ID, customer_id="c-1", reason="unknown_sku", sku="XX-1")
    notifications.thank(placed(), context(event_id="0"), db)
    told: tuple[notifications.Told, ...] = (
        rejected,
        DECLINED,
        REFUNDED,
        SHIPPED,
        delayed,
        delayed.model_copy(update={"attempt": 2}),
    )
    for number, event in enumerate(told, start=1):
        notifications.tell(event, context(event_id=str(number)), db)
    texts = [row[0] for row in db.execute("SELECT text FROM notifications_message ORDER BY event_id")]
    assert len(texts) == 6  # of the second delay the customer is not told
    assert texts[0] == "Thank you, Ada. Your order of 25.80 EUR has arrived."
    with pytest.raises(sqlite3.IntegrityError):
        notifications.tell(SHIPPED, context(event_id="4"), db)
