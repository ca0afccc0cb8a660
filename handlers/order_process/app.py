"""The process manager and the services of the saga, for `choreo dev handlers.order_process.app:app`."""

from datetime import timedelta

from choreo import App, Flow

from ..order_fulfilment.app import payment_provider
from ..order_fulfilment.events import OrderPlaced, OrderShipped, StockRejected, StockReleased
from ..order_fulfilment.notifications.service import notifications
from ..order_fulfilment.payments.provider import PaymentProvider
from ..order_saga.services import inventory, payments, shipping
from .process import Order

order = Flow(
    "order", starts=OrderPlaced, ends=(OrderShipped, StockRejected, StockReleased), deadline=timedelta(days=2)
)
app = App(
    Order,
    inventory,
    payments,
    shipping,
    notifications,
    flows=[order],
    resources={PaymentProvider: payment_provider},
)
