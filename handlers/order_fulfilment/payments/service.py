"""Payments: the provider is called with the unit's idempotency key; what it answered is entered in our books.

Calling out and writing rows are two handlers. The first awaits a company outside, which no transaction of ours can
cover: its idempotency key makes a second call harmless. The second takes the event that came of it and commits rows
with it. Between them there is nothing but the event, so the books can be late but never wrong.
"""

import sqlite3

from choreo import Context, Service

from ..events import PaymentCaptured, PaymentDeclined, PaymentRefunded, ShipmentCancelled, StockReserved
from .provider import Declined, PaymentProvider

payments = Service("payments")

TABLES = (
    """CREATE TABLE IF NOT EXISTS payments_payment (
        order_id TEXT PRIMARY KEY, payment_id TEXT, state TEXT NOT NULL)""",
    # No unique key: what is booked twice must be there twice, to be counted.
    """CREATE TABLE IF NOT EXISTS payments_ledger (
        order_id TEXT NOT NULL, effect TEXT NOT NULL, event_id TEXT NOT NULL, at TEXT NOT NULL,
        amount TEXT, currency TEXT, reason TEXT)""",
)

_BOOKED = {
    PaymentCaptured: ("charge", "captured"),
    PaymentDeclined: ("decline", "declined"),
    PaymentRefunded: ("refund", "refunded"),
}


@payments.on_start
def tables(db: sqlite3.Connection) -> None:
    """Create the tables."""
    for statement in TABLES:
        db.execute(statement)


@payments.handler(StockReserved)
async def charge(
    reserved: StockReserved, ctx: Context, provider: PaymentProvider
) -> PaymentCaptured | PaymentDeclined:
    """Charge the customer. A time-out is raised on: the retry brings the same key and gets the same payment."""
    answer = await provider.charge(
        idempotency_key=ctx.idempotency_key,
        order_id=str(reserved.order_id),
        amount=reserved.total.amount,
        currency=reserved.total.currency,
        token=reserved.payment_token,
    )
    if isinstance(answer, Declined):
        return PaymentDeclined(order_id=reserved.order_id, customer_id=reserved.customer_id, reason=answer.reason)
    return PaymentCaptured(
        order_id=reserved.order_id,
        customer_id=reserved.customer_id,
        payment_id=answer.payment_id,
        total=reserved.total,
        region=reserved.region,
    )


@payments.handler(ShipmentCancelled)
async def refund(cancelled: ShipmentCancelled, ctx: Context, provider: PaymentProvider) -> PaymentRefunded:
    """Give all the money back."""
    await provider.refund(
        idempotency_key=ctx.idempotency_key,
        payment_id=cancelled.payment_id,
        amount=cancelled.total.amount,
        currency=cancelled.total.currency,
    )
    return PaymentRefunded(
        order_id=cancelled.order_id,
        customer_id=cancelled.customer_id,
        payment_id=cancelled.payment_id,
        total=cancelled.total,
    )


@payments.handler(PaymentCaptured, PaymentDeclined, PaymentRefunded)
def book(event: PaymentCaptured | PaymentDeclined | PaymentRefunded, ctx: Context, db: sqlite3.Connection) -> None:
    """Enter what became of a payment. One topic and one key: a refund is never entered before its charge."""
    effect, state = _BOOKED[type(event)]
    row: dict[str, str | None] = dict.fromkeys(("payment_id", "amount", "currency", "reason"))
    row |= {"order_id": str(event.order_id), "effect": effect, "state": state}
    row |= {"event_id": ctx.envelope.id, "at": ctx.now().isoformat()}
    if isinstance(event, PaymentDeclined):
        row["reason"] = event.reason
    else:
        row["payment_id"] = event.payment_id
        row |= {"amount": str(event.total.amount), "currency": event.total.currency}
    db.execute(
        "INSERT INTO payments_ledger (order_id, effect, event_id, at, amount, currency, reason) "
        "VALUES (:order_id, :effect, :event_id, :at, :amount, :currency, :reason)",
        row,
    )
    db.execute(
        "INSERT INTO payments_payment (order_id, payment_id, state) VALUES (:order_id, :payment_id, :state) "
        "ON CONFLICT (order_id) DO UPDATE SET payment_id = excluded.payment_id, state = excluded.state",
        row,
    )
