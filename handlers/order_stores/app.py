"""Order fulfilment as it is deployed, for `choreo run handlers.order_stores.app:app --service NAME`."""

from datetime import timedelta

from choreo import App, Flow

from ..order_fulfilment.app import payment_provider
from ..order_fulfilment.events import OrderPlaced, OrderShipped, PaymentRefunded, StockRejected, StockReleased
from ..order_fulfilment.payments.provider import PaymentProvider
from .inventory import inventory
from .services import notifications, payments, shipping

order = Flow(
    "order",
    starts=OrderPlaced,
    ends=(OrderShipped, StockRejected, StockReleased, PaymentRefunded),
    deadline=timedelta(days=2),
)
app = App(
    inventory,
    payments,
    shipping,
    notifications,
    flows=[order],
    resources={PaymentProvider: payment_provider},
)
