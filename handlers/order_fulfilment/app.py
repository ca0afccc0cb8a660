"""The four services and the flow they make together, for `choreo dev handlers.order_fulfilment.app:app`."""

import os
from collections.abc import AsyncIterator
from datetime import timedelta

from choreo import App, Flow

from .events import OrderPlaced, OrderShipped, PaymentRefunded, StockRejected, StockReleased
from .inventory.service import inventory
from .notifications.service import notifications
from .payments.fake_provider import FakePaymentProvider
from .payments.provider import PaymentProvider
from .payments.service import payments
from .shipping.service import shipping

PROVIDER_DB = "CHOREO_DEMO_PROVIDER_DB"
"""Environment variable: the file of the payment provider's ledger, the same for all processes."""
PROVIDER_DB_DEFAULT = ".choreo/payment-provider.db"


async def payment_provider() -> AsyncIterator[PaymentProvider]:
    """The provider while a process runs. Read at the start and not at import, so that import opens no file."""
    with FakePaymentProvider(os.environ.get(PROVIDER_DB) or PROVIDER_DB_DEFAULT) as provider:
        yield provider


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
