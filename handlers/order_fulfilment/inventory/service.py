"""Inventory: an order's goods are held, then released or issued. All of it inside the handler's transaction."""

import json
import sqlite3
from collections import Counter
from importlib.resources import files
from typing import Literal
from uuid import UUID

from choreo import Context, Service

from ..events import (
    OrderLine,
    OrderPlaced,
    OrderShipped,
    PaymentDeclined,
    ShipmentCancelled,
    StockRejected,
    StockReleased,
    StockReserved,
)

Rejected = Literal["out_of_stock", "unknown_sku"]
Released = Literal["payment_declined", "shipment_cancelled"]

inventory = Service("inventory")

# Neither the holds nor the ledger have a unique key: should an event ever be handled twice, its rows are there
# twice to be counted, and no constraint makes it look as if nothing had happened.
TABLES = (
    """CREATE TABLE IF NOT EXISTS inventory_stock (
        sku TEXT PRIMARY KEY, opening INTEGER NOT NULL, available INTEGER NOT NULL CHECK (available >= 0),
        held INTEGER NOT NULL DEFAULT 0 CHECK (held >= 0), issued INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE IF NOT EXISTS inventory_hold (
        order_id TEXT NOT NULL, sku TEXT NOT NULL, quantity INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('held', 'released', 'issued')))""",
    "CREATE INDEX IF NOT EXISTS inventory_hold_order ON inventory_hold (order_id)",
    """CREATE TABLE IF NOT EXISTS inventory_ledger (
        order_id TEXT NOT NULL, effect TEXT NOT NULL, event_id TEXT NOT NULL, at TEXT NOT NULL,
        amount TEXT, currency TEXT, reason TEXT)""",
)


@inventory.on_start
def tables(db: sqlite3.Connection) -> None:
    """Create the tables; put the catalogue's articles on the shelf, each once however often we start."""
    for statement in TABLES:
        db.execute(statement)
    catalogue = json.loads(files(__package__).joinpath("catalogue.json").read_bytes())
    db.executemany(
        "INSERT OR IGNORE INTO inventory_stock (sku, opening, available) VALUES (:sku, :opening, :opening)",
        catalogue["articles"],
    )


# A customer who pressed the button twice has two events with two ids and one order.
@inventory.handler(OrderPlaced, idempotency_key="order_id")
def reserve(order: OrderPlaced, ctx: Context, db: sqlite3.Connection) -> StockReserved | StockRejected:
    """Hold all lines of an order, or none."""
    if (refused := hold(order.order_id, order.lines, ctx, db)) is not None:
        reason, sku = refused
        return StockRejected(order_id=order.order_id, customer_id=order.customer.id, reason=reason, sku=sku)
    return reserved(order)


@inventory.handler(PaymentDeclined, ShipmentCancelled)
def release(event: PaymentDeclined | ShipmentCancelled, ctx: Context, db: sqlite3.Connection) -> StockReleased | None:
    """Put back what was held; nothing, if nothing is held for this order."""
    reason: Released = "payment_declined" if isinstance(event, PaymentDeclined) else "shipment_cancelled"
    if not put_back(event.order_id, reason, ctx, db):
        return None
    return StockReleased(order_id=event.order_id, customer_id=event.customer_id, reason=reason)


@inventory.handler(OrderShipped)
def issue(shipped: OrderShipped, ctx: Context, db: sqlite3.Connection) -> None:
    """What was held has left the house."""
    held = _held(db, shipped.order_id)
    if not held:
        return
    for sku, quantity in held:
        _move(db, sku, held=-quantity, issued=quantity)
    _settle(db, shipped.order_id, "issued")
    _enter(db, ctx, shipped.order_id, "issue")


def hold(
    order_id: UUID, lines: tuple[OrderLine, ...], ctx: Context, db: sqlite3.Connection
) -> tuple[Rejected, str] | None:
    """Hold all lines or none; why not, and the first article that could not be."""
    wanted = quantities(lines)
    for sku, quantity in wanted.items():
        if reason := _why_not(db, sku, quantity):
            _enter(db, ctx, order_id, "reject", reason)
            return reason, sku
    for sku, quantity in wanted.items():
        _move(db, sku, available=-quantity, held=quantity)
        db.execute(
            "INSERT INTO inventory_hold (order_id, sku, quantity, state) VALUES (?, ?, ?, 'held')",
            (str(order_id), sku, quantity),
        )
    _enter(db, ctx, order_id, "hold")
    return None


def put_back(order_id: UUID, reason: Released, ctx: Context, db: sqlite3.Connection) -> bool:
    """Put back what is held for an order; whether there was anything."""
    held = _held(db, order_id)
    for sku, quantity in held:
        _move(db, sku, available=quantity, held=-quantity)
    if held:
        _settle(db, order_id, "released")
        _enter(db, ctx, order_id, "release", reason)
    return bool(held)


def reserved(order: OrderPlaced) -> StockReserved:
    """What others are told of an order whose goods are on hold."""
    return StockReserved(
        order_id=order.order_id,
        customer_id=order.customer.id,
        total=order.total,
        payment_token=order.payment_token,
        region=order.region,
    )


def quantities(lines: tuple[OrderLine, ...]) -> Counter[str]:
    """Pieces by article: customers do order one article on two lines."""
    wanted: Counter[str] = Counter()
    for line in lines:
        wanted[line.sku] += line.quantity
    return wanted


def _why_not(db: sqlite3.Connection, sku: str, quantity: int) -> Rejected | None:
    row = db.execute("SELECT available FROM inventory_stock WHERE sku = ?", (sku,)).fetchone()
    if row is None:
        return "unknown_sku"
    return "out_of_stock" if row[0] < quantity else None


def _held(db: sqlite3.Connection, order_id: UUID) -> list[tuple[str, int]]:
    return db.execute(
        "SELECT sku, quantity FROM inventory_hold WHERE order_id = ? AND state = 'held'", (str(order_id),)
    ).fetchall()


def _move(db: sqlite3.Connection, sku: str, *, available: int = 0, held: int = 0, issued: int = 0) -> None:
    db.execute(
        "UPDATE inventory_stock SET available = available + ?, held = held + ?, issued = issued + ? WHERE sku = ?",
        (available, held, issued, sku),
    )


def _settle(db: sqlite3.Connection, order_id: UUID, state: str) -> None:
    db.execute("UPDATE inventory_hold SET state = ? WHERE order_id = ? AND state = 'held'", (state, str(order_id)))


def _enter(db: sqlite3.Connection, ctx: Context, order_id: UUID, effect: str, reason: str | None = None) -> None:
    db.execute(
        "INSERT INTO inventory_ledger (order_id, effect, event_id, at, reason) VALUES (?, ?, ?, ?, ?)",
        (str(order_id), effect, ctx.envelope.id, ctx.now().isoformat(), reason),
    )
