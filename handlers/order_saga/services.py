"""The services of order fulfilment, obeying commands. Their work and their tables are those of the mesh.

A command may come twice, as two events with two ids, since whoever waits in vain for an answer asks again: so the
provider is given keys made of the order, and the books are kept once an order. The answer is given each time.
"""

import sqlite3

from choreo import Context, Service

from ..order_fulfilment.events import (
    OrderShipped,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    ShipmentDelayed,
    StockRejected,
    StockReleased,
    StockReserved,
)
from ..order_fulfilment.inventory import service as shelf
from ..order_fulfilment.payments import service as books
from ..order_fulfilment.payments.provider import Declined, PaymentProvider
from ..order_fulfilment.shipping import service as carrier
from .commands import ChargePayment, RefundPayment, ReleaseStock, ReserveStock, ShipOrder

inventory, payments, shipping = Service("inventory"), Service("payments"), Service("shipping")
inventory.on_start(shelf.tables)
payments.on_start(books.tables)
shipping.on_start(carrier.tables)


@inventory.handler(ReserveStock)
def reserve(asked: ReserveStock, ctx: Context, db: sqlite3.Connection) -> StockReserved | StockRejected:
    """Hold all lines, or none."""
    order_id, customer_id = asked.order_id, asked.customer_id
    if (refused := shelf.hold(order_id, asked.lines, ctx, db)) is not None:
        reason, sku = refused
        return StockRejected(order_id=order_id, customer_id=customer_id, reason=reason, sku=sku)
    return StockReserved(**asked.model_dump(exclude={"lines"}))


@inventory.handler(ReleaseStock)
def release(asked: ReleaseStock, ctx: Context, db: sqlite3.Connection) -> StockReleased:
    """Put back what is held, and say so also if it was put back before."""
    reason: shelf.Released = "shipment_cancelled" if asked.reason == "no_carrier" else "payment_declined"
    shelf.put_back(asked.order_id, reason, ctx, db)
    return StockReleased(order_id=asked.order_id, customer_id=asked.customer_id, reason=reason)


inventory.handler(OrderShipped)(shelf.issue)


@payments.handler(ChargePayment)
async def charge(asked: ChargePayment, provider: PaymentProvider) -> PaymentCaptured | PaymentDeclined:
    """Charge the customer, once an order."""
    answer = await provider.charge(
        idempotency_key=f"charge-{asked.order_id}",
        order_id=str(asked.order_id),
        amount=asked.total.amount,
        currency=asked.total.currency,
        token=asked.payment_token,
    )
    if isinstance(answer, Declined):
        return PaymentDeclined(order_id=asked.order_id, customer_id=asked.customer_id, reason=answer.reason)
    return PaymentCaptured(payment_id=answer.payment_id, **asked.model_dump(exclude={"payment_token"}))


@payments.handler(RefundPayment)
async def refund(asked: RefundPayment, provider: PaymentProvider) -> PaymentRefunded:
    """Give all the money back, once an order."""
    await provider.refund(
        idempotency_key=f"refund-{asked.order_id}",
        payment_id=asked.payment_id,
        amount=asked.total.amount,
        currency=asked.total.currency,
    )
    return PaymentRefunded(**asked.model_dump())


payments.handler(PaymentCaptured, PaymentDeclined, name="book", idempotency_key="order_id")(books.book)
payments.handler(PaymentRefunded, name="book_refund", idempotency_key="order_id")(books.book)


@shipping.handler(ShipOrder)
def ship(asked: ShipOrder, ctx: Context, db: sqlite3.Connection) -> OrderShipped | ShipmentDelayed:
    """Offer it to the carrier; the further attempts are events that only shipping reads."""
    return carrier.ship(PaymentCaptured(**asked.model_dump()), ctx, db)


shipping.handler(ShipmentDelayed)(carrier.ship_again)
