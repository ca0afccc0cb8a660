"""docs/processes.md: its events, in few words, and its services."""

from datetime import datetime, timedelta

from choreo import App, Command, Event, Flow, ProcessManager, Saga, Service, Step
from choreo.process import FlowOverdue, join, overdue

__all__ = ["App", "Flow", "FlowOverdue", "ProcessManager", "Saga", "Step", "join", "overdue", "timedelta"]


class ApprovalRequested(Event, type="approval.requested", version=1, topic="approvals", key="request_id"):
    """Somebody asks."""

    request_id: str
    manager: str


class OfRequest(Event):
    """What is said of a request."""

    request_id: str


class AskManager(OfRequest, Command, type="manager.ask", version=1, topic="letters", key="request_id"):
    """A letter."""

    manager: str


class ReminderDue(OfRequest, type="reminder.due", version=1, topic="letters", key="request_id"):
    """Another."""

    reminders: int


class Escalated(OfRequest, type="approval.escalated", version=1, topic="approvals", key="request_id"):
    """Nobody answered."""


class Approved(OfRequest, type="request.approved", version=1, topic="decisions", key="request_id"):
    """Yes."""


class Rejected(OfRequest, type="request.rejected", version=1, topic="decisions", key="request_id"):
    """No."""


class Decided(OfRequest, type="approval.decided", version=1, topic="approvals", key="request_id"):
    """How it ended."""

    approved: bool


class OfOrder(Event):
    """What is said of an order."""

    order_id: str


class OrderPlaced(OfOrder, type="order.placed", version=1, topic="orders", key="order_id"):
    """It begins."""


class ReserveStock(OfOrder, Command, type="stock.reserve", version=1, topic="stock", key="order_id"):
    """A step."""


class StockReserved(OfOrder, type="stock.reserved", version=1, topic="stock", key="order_id"):
    """Done."""


class StockRejected(OfOrder, type="stock.rejected", version=1, topic="stock", key="order_id"):
    """Not done."""


class ReleaseStock(OfOrder, Command, type="stock.release", version=1, topic="stock", key="order_id"):
    """What undoes it."""


class StockReleased(OfOrder, type="stock.released", version=1, topic="stock", key="order_id"):
    """Undone."""


class ChargeCard(OfOrder, Command, type="card.charge", version=1, topic="cards", key="order_id"):
    """A step."""


class CardCharged(OfOrder, type="card.charged", version=1, topic="cards", key="order_id"):
    """Done."""


class CardDeclined(OfOrder, type="card.declined", version=1, topic="cards", key="order_id"):
    """Not done."""


class RefundCard(OfOrder, Command, type="card.refund", version=1, topic="cards", key="order_id"):
    """What undoes it."""


class CardRefunded(OfOrder, type="card.refunded", version=1, topic="cards", key="order_id"):
    """Undone."""


class ShipGoods(OfOrder, Command, type="goods.ship", version=1, topic="parcels", key="order_id"):
    """A step."""


class GoodsShipped(OfOrder, type="goods.shipped", version=1, topic="parcels", key="order_id"):
    """Done."""


class NotShipped(OfOrder, type="goods.not-shipped", version=1, topic="parcels", key="order_id"):
    """Not done."""


class OrderFulfilled(OfOrder, type="order.fulfilled", version=1, topic="orders", key="order_id"):
    """One end."""


class OrderCancelled(OfOrder, type="order.cancelled", version=1, topic="orders", key="order_id"):
    """The other."""


class OrderShipped(OfOrder, type="order.shipped", version=1, topic="parcels", key="order_id"):
    """Of the flow with a deadline."""


class OrderDelayed(OfOrder, type="order.delayed", version=1, topic="orders", key="order_id"):
    """Somebody is told."""

    since: datetime


class OfLead(Event):
    """What is said of a lead."""

    lead_id: str


class LeadReceived(OfLead, type="lead.received", version=1, topic="leads", key="lead_id"):
    """It begins."""


class GeoFound(OfLead, type="geo.found", version=1, topic="geo", key="lead_id"):
    """One answer."""

    country: str


class CreditScored(OfLead, type="credit.scored", version=1, topic="credit", key="lead_id"):
    """Another."""

    score: int


class LeadEnriched(OfLead, type="lead.enriched", version=1, topic="enriched", key="lead_id"):
    """Both, or what there is."""

    country: str | None
    score: int | None


mailbox, stock, cards, shipping = (Service(name) for name in ("mailbox", "stock", "cards", "shipping"))
geo, credit, inventory, payments = (Service(name) for name in ("geo", "credit", "inventory", "payments"))


@mailbox.handler(AskManager, ReminderDue)
def send(letter: AskManager | ReminderDue) -> None:
    """By post."""


@stock.handler(ReserveStock)
def reserve(asked: ReserveStock) -> StockReserved | StockRejected:
    """It is there."""
    return StockReserved(order_id=asked.order_id)


@stock.handler(ReleaseStock)
def release(asked: ReleaseStock) -> StockReleased:
    """It is back."""
    return StockReleased(order_id=asked.order_id)


@cards.handler(ChargeCard)
def charge(asked: ChargeCard) -> CardCharged | CardDeclined:
    """It is paid."""
    return CardCharged(order_id=asked.order_id)


@cards.handler(RefundCard)
def refund(asked: RefundCard) -> CardRefunded:
    """It is paid back."""
    return CardRefunded(order_id=asked.order_id)


@shipping.handler(ShipGoods)
def ship(asked: ShipGoods) -> GoodsShipped | NotShipped:
    """It is on its way."""
    return GoodsShipped(order_id=asked.order_id)


@geo.handler(LeadReceived)
def locate(lead: LeadReceived) -> GeoFound:
    """Where it is."""
    return GeoFound(lead_id=lead.lead_id, country="IS")


@credit.handler(LeadReceived)
def score(lead: LeadReceived) -> CreditScored:
    """How good it is."""
    return CreditScored(lead_id=lead.lead_id, score=7)


@inventory.handler(OrderPlaced)
def hold(placed: OrderPlaced) -> StockReleased:
    """Nothing is left."""
    return StockReleased(order_id=placed.order_id)


@payments.handler(StockReserved)
def take(reserved: StockReserved) -> OrderShipped:
    """Paid, and gone."""
    return OrderShipped(order_id=reserved.order_id)
