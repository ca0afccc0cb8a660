"""docs/architectures.md."""

import sqlite3

from choreo import Context, ProcessManager, Service, Step
from handlers.order_fulfilment.events import (
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    ShipmentCancelled,
    StockRejected,
    StockReleased,
    StockReserved,
)
from handlers.order_saga.commands import ChargePayment, RefundPayment, ReleaseStock, ReserveStock

__all__ = [
    "ChargePayment",
    "Context",
    "PaymentCaptured",
    "PaymentDeclined",
    "PaymentRefunded",
    "RefundPayment",
    "ReleaseStock",
    "ReserveStock",
    "ShipmentCancelled",
    "Step",
    "StockRejected",
    "StockReleased",
    "StockReserved",
    "sqlite3",
]
inventory = Service("inventory")


class Order(ProcessManager, version=1, by="order_id"):
    """As far as the page shows it."""

    order_id: str
    reason: str = ""
    to_undo: tuple[str, ...] = ()


charging, undoing = Order.state("charging"), Order.state("undoing")
