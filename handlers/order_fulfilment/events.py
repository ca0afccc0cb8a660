"""The events of order fulfilment: the only thing its services share.

Every event carries what the next service needs, since no service may ask another one for it. Name and address of
the customer stay in `OrderPlaced`; the others carry an id.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from choreo import Event
from choreo.sensitive import Sensitive

Region = Literal["domestic", "europe", "remote", "unserved"]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


class Money(_Part):
    """An amount in the currency's own units: never a float, never without its currency."""

    amount: Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=2)]
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class OrderLine(_Part):
    """So many pieces of one article."""

    sku: Annotated[str, Field(min_length=1, max_length=40)]
    quantity: Annotated[int, Field(ge=1, le=10_000)]


class Customer(_Part):
    """Who ordered."""

    id: Name
    name: Name
    email: Name


class OrderPlaced(Event, type="order.placed", version=1, topic="orders", key="order_id"):
    """A customer wants these goods. `payment_token` stands for a card; card numbers never come this far."""

    order_id: UUID
    customer: Customer
    lines: Annotated[tuple[OrderLine, ...], Field(min_length=1, max_length=100)]
    total: Money
    payment_token: Annotated[Name, Sensitive]
    region: Region
    placed_at: AwareDatetime


class _OfOrder(Event):
    order_id: UUID
    customer_id: Name


class StockReserved(_OfOrder, type="stock.reserved", version=1, topic="stock", key="order_id"):
    """All lines are held for this order."""

    total: Money
    payment_token: Annotated[Name, Sensitive]
    region: Region


class StockRejected(_OfOrder, type="stock.rejected", version=1, topic="stock", key="order_id"):
    """Nothing is held for this order; `sku` is the first article that could not be."""

    reason: Literal["out_of_stock", "unknown_sku"]
    sku: str


class StockReleased(_OfOrder, type="stock.released", version=1, topic="stock", key="order_id"):
    """What was held for this order can be sold again."""

    reason: Literal["payment_declined", "shipment_cancelled"]


class PaymentCaptured(_OfOrder, type="payment.captured", version=1, topic="payments", key="order_id"):
    """The customer has paid."""

    payment_id: Name
    total: Money
    region: Region


class PaymentDeclined(_OfOrder, type="payment.declined", version=1, topic="payments", key="order_id"):
    """The customer has not paid; `reason` in the payment provider's words."""

    reason: Name


class PaymentRefunded(_OfOrder, type="payment.refunded", version=1, topic="payments", key="order_id"):
    """The customer has all the money back."""

    payment_id: Name
    total: Money


class OrderShipped(_OfOrder, type="order.shipped", version=1, topic="shipments", key="order_id"):
    """The carrier has the goods; `attempt` 1 means at once."""

    attempt: int
    shipped_at: datetime


class ShipmentDelayed(_OfOrder, type="shipment.delayed", version=1, topic="shipments", key="order_id"):
    """The carrier did not take the goods at `attempt` (from 1); shipping tries again."""

    attempt: int
    payment_id: Name
    total: Money
    region: Region


class ShipmentCancelled(_OfOrder, type="shipment.cancelled", version=1, topic="shipments", key="order_id"):
    """The goods will not be shipped: the money goes back to the customer and the goods to the shelf."""

    payment_id: Name
    total: Money
    reason: Literal["no_carrier"]
