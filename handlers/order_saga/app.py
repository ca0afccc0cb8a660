"""The saga, the services it commands, and notifications as they are, for `choreo dev handlers.order_saga.app:app`."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from choreo import App, Flow, Saga, Step

from ..order_fulfilment.app import payment_provider
from ..order_fulfilment.events import (
    OrderPlaced,
    OrderShipped,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    ShipmentCancelled,
    StockRejected,
    StockReleased,
    StockReserved,
)
from ..order_fulfilment.notifications.service import notifications
from ..order_fulfilment.payments.provider import PaymentProvider
from .commands import ChargePayment, RefundPayment, ReleaseStock, ReserveStock, ShipOrder
from .services import inventory, payments, shipping


def reservation(data: Mapping[str, Any]) -> ReserveStock:
    """An order has a customer; a command has the customer's id."""
    return ReserveStock.model_validate({**data, "customer_id": data["customer"]["id"]})


checkout = Saga(
    "checkout",
    starts=OrderPlaced,
    by="order_id",
    steps=[
        Step(
            ReserveStock,
            ok=StockReserved,
            failed=StockRejected,
            undo=ReleaseStock,
            undone=StockReleased,
            make=reservation,
        ),
        Step(ChargePayment, ok=PaymentCaptured, failed=PaymentDeclined, undo=RefundPayment, undone=PaymentRefunded),
        Step(ShipOrder, ok=OrderShipped, failed=ShipmentCancelled),
    ],
)
order = Flow(
    "order", starts=OrderPlaced, ends=(OrderShipped, StockRejected, StockReleased), deadline=timedelta(days=2)
)
app = App(
    checkout,
    inventory,
    payments,
    shipping,
    notifications,
    flows=[order],
    resources={PaymentProvider: payment_provider},
)
