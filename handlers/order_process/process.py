"""One order, from its placing to its end: a state machine that commands the services of `handlers/order_saga`."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from choreo import ProcessManager
from choreo.sensitive import Sensitive

from ..order_fulfilment.events import (
    Money,
    OrderLine,
    OrderPlaced,
    OrderShipped,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    Region,
    ShipmentCancelled,
    StockRejected,
    StockReleased,
    StockReserved,
)
from ..order_saga.commands import ChargePayment, RefundPayment, ReleaseStock, ReserveStock, ShipOrder

CHARGE_AGAIN = timedelta(minutes=10)
UNDO_AGAIN = timedelta(minutes=1)


class Order(ProcessManager, name="order-process", version=1, by="order_id", unexpected="ignore"):
    """What its commands need, and what is still to be undone: the types of the events that will say so."""

    order_id: UUID
    customer_id: str
    lines: tuple[OrderLine, ...]
    total: Money
    payment_token: Annotated[str, Sensitive]
    region: Region
    payment_id: str = ""
    reason: str = ""
    to_undo: tuple[str, ...] = ()


reserving, charging, shipping = Order.state("reserving"), Order.state("charging"), Order.state("shipping")
undoing = Order.state("undoing")
rejected, shipped, undone = Order.final("rejected"), Order.final("shipped"), Order.final("undone")


@Order.starts(OrderPlaced, to=reserving)
def placed(order: OrderPlaced) -> Order:
    """It begins; name and address of the customer stay in the event."""
    return Order(customer_id=order.customer.id, **order.model_dump(exclude={"customer"}))


@reserving.entry
def reserve(self: Order) -> ReserveStock:
    """First the goods."""
    return ReserveStock.model_validate(self.model_dump())


@reserving.on(StockRejected, to=rejected)
def reject(self: Order, answer: StockRejected) -> None:
    """There are none, and nothing to undo."""


@reserving.on(StockReserved, to=charging)
def reserved(self: Order, answer: StockReserved) -> None:
    """They are held."""


@charging.entry
@charging.every(CHARGE_AGAIN)
def charge(self: Order) -> ChargePayment:
    """Then the money; asked for again until there is an answer, also where the command became a dead letter."""
    return ChargePayment.model_validate(self.model_dump())


@charging.on(PaymentDeclined, to=undoing)
def decline(self: Order, answer: PaymentDeclined) -> None:
    """The goods go back."""
    self.reason, self.to_undo = answer.reason, (StockReleased.event_type,)


@charging.on(PaymentCaptured, to=shipping)
def capture(self: Order, answer: PaymentCaptured) -> None:
    """It is paid."""
    self.payment_id = answer.payment_id


@shipping.entry
def ship(self: Order) -> ShipOrder:
    """Then the parcel."""
    return ShipOrder.model_validate(self.model_dump())


@shipping.on(OrderShipped, to=shipped)
def complete(self: Order, answer: OrderShipped) -> None:
    """All is well."""


@shipping.on(ShipmentCancelled, to=undoing)
def cancel(self: Order, answer: ShipmentCancelled) -> None:
    """The goods and the money go back, at once."""
    self.reason, self.to_undo = answer.reason, (StockReleased.event_type, PaymentRefunded.event_type)


@undoing.entry
@undoing.every(UNDO_AGAIN)
def undo(self: Order) -> list[ReleaseStock | RefundPayment]:
    """All that is still to be undone, again and again until it is."""
    data = self.model_dump()
    commands: dict[str, type[ReleaseStock | RefundPayment]] = {
        StockReleased.event_type: ReleaseStock,
        PaymentRefunded.event_type: RefundPayment,
    }
    return [commands[type_].model_validate(data) for type_ in self.to_undo]


def is_last(self: Order, answer: StockReleased | PaymentRefunded) -> bool:
    """Whether nothing else is to be undone."""
    return self.to_undo == (answer.event_type,)


@undoing.on(StockReleased, PaymentRefunded)
@undoing.on(StockReleased, PaymentRefunded, to=undone, guard=is_last)  # the lower one is the first rule
def note(self: Order, answer: StockReleased | PaymentRefunded) -> None:
    """One thing less."""
    self.to_undo = tuple(type_ for type_ in self.to_undo if type_ != answer.event_type)
