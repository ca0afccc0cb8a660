"""Inventory with its rows in PostgreSQL: goods are held, released or issued in the transaction of the event's key."""

import json
from importlib.resources import files
from typing import Any

import psycopg

from choreo import Service

from ..order_fulfilment.events import (
    OrderPlaced,
    OrderShipped,
    PaymentDeclined,
    ShipmentCancelled,
    StockRejected,
    StockReleased,
    StockReserved,
)
from ..order_fulfilment.inventory import service as shelf

Db = psycopg.Connection[Any]

inventory = Service("inventory")

TABLES = """
CREATE TABLE IF NOT EXISTS inventory_stock (
    sku text PRIMARY KEY, available integer NOT NULL CHECK (available >= 0),
    held integer NOT NULL DEFAULT 0 CHECK (held >= 0), issued integer NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS inventory_hold (
    order_id text NOT NULL, sku text NOT NULL, quantity integer NOT NULL, PRIMARY KEY (order_id, sku));
"""


@inventory.on_start
def tables(db: Db) -> None:
    """Tables, and the catalogue's articles on the shelf, each once, however many processes start at once.

    Others handle orders meanwhile, and nothing here waits for their locks, as CREATE INDEX would, even IF NOT EXISTS,
    and ON CONFLICT does for an article that is being moved.
    """
    db.execute("SELECT pg_advisory_xact_lock(hashtext('inventory tables'))")
    db.execute(TABLES)
    articles = json.loads(files(shelf.__package__).joinpath("catalogue.json").read_bytes())["articles"]
    with db.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO inventory_stock (sku, available) SELECT %(sku)s, %(opening)s "
            "WHERE NOT EXISTS (SELECT FROM inventory_stock WHERE sku = %(sku)s)",
            articles,
        )


# A customer who pressed the button twice has two events with two ids and one order.
@inventory.handler(OrderPlaced, idempotency_key="order_id")
def reserve(order: OrderPlaced, db: Db) -> StockReserved | StockRejected:
    """Hold all lines of an order, or none. Articles are locked by their numbers, so that two orders wait in no ring.

    Two commits of several orders each may; PostgreSQL ends one of them, which is an attempt.
    """
    wanted = shelf.quantities(order.lines)
    rows = db.execute(
        "SELECT sku, available FROM inventory_stock WHERE sku = ANY(%s) ORDER BY sku FOR UPDATE", (list(wanted),)
    )
    available: dict[str, int] = dict(rows.fetchall())
    for sku, quantity in wanted.items():
        if quantity > available.get(sku, -1):
            reason: shelf.Rejected = "out_of_stock" if sku in available else "unknown_sku"
            return StockRejected(order_id=order.order_id, customer_id=order.customer.id, reason=reason, sku=sku)
    for sku, quantity in wanted.items():
        _move(db, sku, available=-quantity, held=quantity)
        db.execute("INSERT INTO inventory_hold VALUES (%s, %s, %s)", (str(order.order_id), sku, quantity))
    return shelf.reserved(order)


@inventory.handler(PaymentDeclined, ShipmentCancelled)
def release(event: PaymentDeclined | ShipmentCancelled, db: Db) -> StockReleased | None:
    """Put back what is held, if anything is."""
    held = _taken(db, str(event.order_id))
    for sku, quantity in held:
        _move(db, sku, available=quantity, held=-quantity)
    reason: shelf.Released = "payment_declined" if isinstance(event, PaymentDeclined) else "shipment_cancelled"
    return StockReleased(order_id=event.order_id, customer_id=event.customer_id, reason=reason) if held else None


@inventory.handler(OrderShipped)
def issue(shipped: OrderShipped, db: Db) -> None:
    """What was held has left the house."""
    for sku, quantity in _taken(db, str(shipped.order_id)):
        _move(db, sku, held=-quantity, issued=quantity)


def _taken(db: Db, order_id: str) -> list[tuple[str, int]]:
    """The lines held for an order, which are no longer."""
    rows = db.execute("DELETE FROM inventory_hold WHERE order_id = %s RETURNING sku, quantity", (order_id,))
    return sorted(rows.fetchall())


def _move(db: Db, sku: str, *, available: int = 0, held: int = 0, issued: int = 0) -> None:
    db.execute(
        "UPDATE inventory_stock SET available = available + %s, held = held + %s, issued = issued + %s "
        "WHERE sku = %s",
        (available, held, issued, sku),
    )
