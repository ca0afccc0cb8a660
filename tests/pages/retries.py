"""docs/retries.md."""

from choreo import Event
from tests.pages.flow_of_the_readme import names

globals().update(names())


class OrderCancelled(Event, type="order.cancelled", version=1, topic="orders", key="order_id"):
    """What must not overtake its order."""

    order_id: str
