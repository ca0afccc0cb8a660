"""Order fulfilment as it is deployed, for `choreo run handlers.order_stores.app:app --service NAME`."""

from choreo import App

from ..order_fulfilment.app import order, payment_provider
from ..order_fulfilment.payments.provider import PaymentProvider
from .inventory import inventory
from .services import notifications, payments, shipping

app = App(
    inventory,
    payments,
    shipping,
    notifications,
    flows=[order],
    resources={PaymentProvider: payment_provider},
)
