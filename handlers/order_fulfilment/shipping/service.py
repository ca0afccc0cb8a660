"""Shipping: a delayed shipment is an event like any other, and its next attempt is the handling of that event.

Attempts are counted in the event and not in a table, so that the count is the same however often it is delivered.
"""

import sqlite3
from uuid import UUID

from choreo import Context, Service

from ..events import OrderShipped, PaymentCaptured, Region, ShipmentCancelled, ShipmentDelayed

ATTEMPTS_MAX = 3
CARRIER_ATTEMPTS: dict[Region, int] = {"domestic": 1, "europe": 1, "remote": 2}
"""The attempt at which the carrier takes a parcel for the region. No carrier goes where none is listed."""

shipping = Service("shipping")

# No unique keys: an order shipped twice must be there twice, to be counted.
TABLES = (
    """CREATE TABLE IF NOT EXISTS shipping_attempt (
        order_id TEXT NOT NULL, attempt INTEGER NOT NULL, region TEXT NOT NULL, taken INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS shipping_ledger (
        order_id TEXT NOT NULL, effect TEXT NOT NULL, event_id TEXT NOT NULL, at TEXT NOT NULL,
        amount TEXT, currency TEXT, reason TEXT)""",
)


@shipping.on_start
def tables(db: sqlite3.Connection) -> None:
    """Create the tables."""
    for statement in TABLES:
        db.execute(statement)


@shipping.handler(PaymentCaptured)
def ship(captured: PaymentCaptured, ctx: Context, db: sqlite3.Connection) -> OrderShipped | ShipmentDelayed:
    """Offer a paid order to the carrier for the first time."""
    return _offer(captured, ctx, db, attempt=1) or _delayed(captured, attempt=1)


@shipping.handler(ShipmentDelayed)
def ship_again(
    delayed: ShipmentDelayed, ctx: Context, db: sqlite3.Connection
) -> OrderShipped | ShipmentDelayed | ShipmentCancelled:
    """Offer a delayed order again; if the carrier does not take it the last time, give it up."""
    attempt = delayed.attempt + 1
    if (shipped := _offer(delayed, ctx, db, attempt=attempt)) is not None:
        return shipped
    if attempt < ATTEMPTS_MAX:
        return _delayed(delayed, attempt=attempt)
    _enter(db, ctx, delayed.order_id, "cancellation", "no_carrier")
    return ShipmentCancelled(
        order_id=delayed.order_id,
        customer_id=delayed.customer_id,
        payment_id=delayed.payment_id,
        total=delayed.total,
        reason="no_carrier",
    )


def _offer(
    event: PaymentCaptured | ShipmentDelayed, ctx: Context, db: sqlite3.Connection, *, attempt: int
) -> OrderShipped | None:
    taken = attempt >= CARRIER_ATTEMPTS.get(event.region, ATTEMPTS_MAX + 1)
    db.execute(
        "INSERT INTO shipping_attempt (order_id, attempt, region, taken) VALUES (?, ?, ?, ?)",
        (str(event.order_id), attempt, event.region, taken),
    )
    if not taken:
        return None
    _enter(db, ctx, event.order_id, "shipment", None)
    return OrderShipped(order_id=event.order_id, customer_id=event.customer_id, attempt=attempt, shipped_at=ctx.now())


def _delayed(event: PaymentCaptured | ShipmentDelayed, *, attempt: int) -> ShipmentDelayed:
    return ShipmentDelayed(
        order_id=event.order_id,
        customer_id=event.customer_id,
        attempt=attempt,
        payment_id=event.payment_id,
        total=event.total,
        region=event.region,
    )


def _enter(db: sqlite3.Connection, ctx: Context, order_id: UUID, effect: str, reason: str | None) -> None:
    db.execute(
        "INSERT INTO shipping_ledger (order_id, effect, event_id, at, reason) VALUES (?, ?, ?, ?, ?)",
        (str(order_id), effect, ctx.envelope.id, ctx.now().isoformat(), reason),
    )
