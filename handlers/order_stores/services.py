"""The services without rows of their own, which any store suits: what they need is in the event."""

from choreo import Context, Service

from ..order_fulfilment.events import (
    OrderPlaced,
    OrderShipped,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    ShipmentCancelled,
    ShipmentDelayed,
    StockRejected,
    StockReserved,
)
from ..order_fulfilment.payments import service as books
from ..order_fulfilment.shipping.service import ATTEMPTS_MAX, CARRIER_ATTEMPTS

payments, shipping, notifications = Service("payments"), Service("shipping"), Service("notifications")

# The provider outside is given the unit's idempotency key, and so needs no transaction of ours.
payments.handler(StockReserved)(books.charge)
payments.handler(ShipmentCancelled)(books.refund)


@shipping.handler(PaymentCaptured)
def ship(captured: PaymentCaptured, ctx: Context) -> OrderShipped | ShipmentDelayed | ShipmentCancelled:
    """Offer a paid order to the carrier for the first time."""
    return _offer(captured, ctx, attempt=1)


@shipping.handler(ShipmentDelayed)
def ship_again(delayed: ShipmentDelayed, ctx: Context) -> OrderShipped | ShipmentDelayed | ShipmentCancelled:
    """Offer a delayed order again; the event counts the attempts."""
    return _offer(delayed, ctx, attempt=delayed.attempt + 1)


def _offer(
    order: PaymentCaptured | ShipmentDelayed, ctx: Context, *, attempt: int
) -> OrderShipped | ShipmentDelayed | ShipmentCancelled:
    data = order.model_dump(exclude={"attempt"})
    if attempt >= CARRIER_ATTEMPTS.get(order.region, ATTEMPTS_MAX + 1):
        return OrderShipped(
            order_id=order.order_id, customer_id=order.customer_id, attempt=attempt, shipped_at=ctx.now()
        )
    if attempt < ATTEMPTS_MAX:
        return ShipmentDelayed(attempt=attempt, **data)
    return ShipmentCancelled(reason="no_carrier", **data)


Told = OrderPlaced | StockRejected | PaymentDeclined | PaymentRefunded | OrderShipped


@notifications.handler(OrderPlaced, StockRejected, PaymentDeclined, PaymentRefunded, OrderShipped)
def tell(event: Told, ctx: Context) -> None:
    """Where a letter would be sent, by the idempotency key, is a line in the log."""
    ctx.log.info("order %s: %s", event.order_id, event.event_type)
