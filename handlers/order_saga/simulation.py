"""The saga in the simulated world of the mesh: `choreo simulate handlers.order_saga.simulation:simulation`.

A command that fails five times is a dead letter, and its saga stands where it is until somebody replays it: the
simulation has operators who do.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from choreo import Event
from choreo.testing.simulation import World
from choreo.testing.simulation.instances import unended

from ..order_fulfilment.events import (
    OrderPlaced,
    OrderShipped,
    PaymentDeclined,
    PaymentRefunded,
    ShipmentCancelled,
    StockRejected,
    StockReleased,
)
from ..order_fulfilment.payments.fake_provider import DECLINED_TOKEN
from ..order_fulfilment.simulation import simulation as mesh
from .app import app
from .commands import RefundPayment, ReleaseStock

HASTEN = 40.0
"""What is not undone is asked for again every 1.5 s."""
MUST_BE_UNDONE: Mapping[type[Event], frozenset[str]] = {
    OrderShipped: frozenset(),
    StockRejected: frozenset(),
    PaymentDeclined: frozenset({ReleaseStock.event_type}),
    ShipmentCancelled: frozenset({ReleaseStock.event_type, RefundPayment.event_type}),
}
"""What has to be undone where an order ends like this; nothing else may be."""
UNDONE: Mapping[str, type[Event]] = {
    ReleaseStock.event_type: StockReleased,
    RefundPayment.event_type: PaymentRefunded,
}
OUT_OF_STOCK = {"BK-1099", "ZZ-0000"}
"""Of all others there are more than one run asks for."""


def ends_as_ordered(world: World) -> Iterator[str]:
    """What an order asks for says how it ends."""
    ends = _ends(world)
    for order in world.published.values():
        found, wanted = ends.get(str(order.order_id), set()), _wanted(order)
        if found != {wanted}:
            said = ", ".join(sorted(each.event_type for each in found)) or "nothing"
            yield f"{order.order_id} ended at {said}, and is to end at {wanted.event_type}"


def compensated_exactly_when_it_must_be(world: World) -> Iterator[str]:
    """Each step that was done and is to be undone is undone; nobody is asked to undo one that was not done."""
    asked: dict[str, set[str]] = defaultdict(set)
    answered: dict[str, set[str]] = defaultdict(set)
    for record, envelope in world.events():
        if envelope is not None and envelope.type in UNDONE:
            asked[(record.key or b"").decode()].add(envelope.type)
        for command, answer in UNDONE.items():
            if envelope is not None and envelope.type == answer.event_type:
                answered[(record.key or b"").decode()].add(command)
    for order_id, found in _ends(world).items():
        must = frozenset[str]().union(*(MUST_BE_UNDONE[end] for end in found))
        if asked[order_id] != must:
            yield f"{order_id}: {_listed(asked[order_id])} was sent, and {_listed(must)} is to be"
        if answered[order_id] != must:
            yield f"{order_id}: {_listed(must)} is to be undone, and {_listed(answered[order_id])} was"


def last_first(world: World) -> Iterator[str]:
    """The saga refunds before it releases."""
    refunded: dict[bytes, int] = {}
    charged_for_nothing = {
        record.key
        for record, envelope in world.events()
        if envelope and envelope.type == ShipmentCancelled.event_type
    }
    for record, envelope in world.events():  # in order of time
        if envelope is None or record.key not in charged_for_nothing or record.key is None:
            continue
        if envelope.type == PaymentRefunded.event_type:
            refunded.setdefault(record.key, record.timestamp_ms)
        elif envelope.type == ReleaseStock.event_type and record.timestamp_ms < refunded.get(record.key, 1 << 62):
            yield f"{record.key.decode()}: {envelope.type} was sent before the money was given back"


def _ends(world: World) -> dict[str, set[type[Event]]]:
    """What led to its end, by order."""
    types = {event.event_type: event for event in MUST_BE_UNDONE}
    found: dict[str, set[type[Event]]] = defaultdict(set)
    for record, envelope in world.events():
        if envelope is not None and envelope.type in types:
            found[(record.key or b"").decode()].add(types[envelope.type])
    found.pop("poison", None)
    return found


def _wanted(order: OrderPlaced) -> type[Event]:
    if order.lines[0].sku in OUT_OF_STOCK:
        return StockRejected
    if order.payment_token.startswith(DECLINED_TOKEN):
        return PaymentDeclined
    return ShipmentCancelled if order.region == "unserved" else OrderShipped


def _listed(types: set[str] | frozenset[str]) -> str:
    return " and ".join(sorted(types)) or "nothing"


checkers = (*mesh.checkers, ends_as_ordered, compensated_exactly_when_it_must_be, unended)
simulation = replace(mesh, app=app, hasten=HASTEN, checkers=(*checkers, last_first), replays=True)
