"""What a saga or a process manager asks of the services. What they answer are the events of order fulfilment."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from choreo import Command
from choreo.sensitive import Sensitive

from ..order_fulfilment.events import Money, Name, OrderLine, Region


class _OfOrder(Command):
    order_id: UUID
    customer_id: Name


class ReserveStock(_OfOrder, type="stock.reserve", version=1, topic="stock-commands", key="order_id"):
    """Hold all of these lines, or none."""

    lines: Annotated[tuple[OrderLine, ...], Field(min_length=1, max_length=100)]
    total: Money
    payment_token: Annotated[Name, Sensitive]
    region: Region


class ReleaseStock(_OfOrder, type="stock.release", version=1, topic="stock-commands", key="order_id"):
    """Put back what is held; `reason` as the event has it that made it necessary."""

    reason: str = ""


class ChargePayment(_OfOrder, type="payment.charge", version=1, topic="payment-commands", key="order_id"):
    """Take the money."""

    total: Money
    payment_token: Annotated[Name, Sensitive]
    region: Region


class RefundPayment(_OfOrder, type="payment.refund", version=1, topic="payment-commands", key="order_id"):
    """Give it all back."""

    payment_id: Name
    total: Money


class ShipOrder(_OfOrder, type="order.ship", version=1, topic="shipment-commands", key="order_id"):
    """Hand the goods to the carrier; how often it is tried is shipping's own affair."""

    payment_id: Name
    total: Money
    region: Region
