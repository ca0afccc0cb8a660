"""Notifications: one row of text an event. Sending it is another service's work, from this table."""

import sqlite3
from uuid import UUID

from choreo import Context, Service

from ..events import (
    OrderPlaced,
    OrderShipped,
    PaymentDeclined,
    PaymentRefunded,
    ShipmentDelayed,
    StockRejected,
)

notifications = Service("notifications")

Told = StockRejected | PaymentDeclined | PaymentRefunded | OrderShipped | ShipmentDelayed


@notifications.on_start
def tables(db: sqlite3.Connection) -> None:
    """Create the table."""
    db.execute(
        """CREATE TABLE IF NOT EXISTS notifications_message (
            event_id TEXT PRIMARY KEY, customer_id TEXT NOT NULL, order_id TEXT NOT NULL, text TEXT NOT NULL,
            at TEXT NOT NULL)"""
    )


# Placed twice, whatever the ids of the two events: the customer is thanked once.
@notifications.handler(OrderPlaced, idempotency_key="order_id")
def thank(order: OrderPlaced, ctx: Context, db: sqlite3.Connection) -> None:
    """Say that the order has arrived."""
    text = f"Thank you, {order.customer.name}. Your order of {order.total.amount} {order.total.currency} has arrived."
    _write(db, ctx, order.customer.id, order.order_id, text)


@notifications.handler(StockRejected, PaymentDeclined, PaymentRefunded, OrderShipped, ShipmentDelayed)
def tell(event: Told, ctx: Context, db: sqlite3.Connection) -> None:
    """Say what became of the order, as far as the customer cares."""
    if (text := _text(event)) is not None:
        _write(db, ctx, event.customer_id, event.order_id, text)


def _text(event: Told) -> str | None:
    match event:
        case StockRejected():
            return f"We are sorry: article {event.sku} cannot be delivered. You have not been charged."
        case PaymentDeclined():
            return f"Your payment was declined ({event.reason}). You have not been charged."
        case PaymentRefunded():
            return f"We could not ship your order. {event.total.amount} {event.total.currency} go back to you."
        case OrderShipped():
            return "Your order is on its way."
        case ShipmentDelayed() if event.attempt == 1:
            return "Your order will be a little later than usual."
        case ShipmentDelayed():
            return None  # the second delay in a row is no news


def _write(db: sqlite3.Connection, ctx: Context, customer_id: str, order_id: UUID, text: str) -> None:
    db.execute(
        "INSERT INTO notifications_message (event_id, customer_id, order_id, text, at) VALUES (?, ?, ?, ?, ?)",
        (ctx.envelope.id, customer_id, str(order_id), text, ctx.now().isoformat()),
    )
