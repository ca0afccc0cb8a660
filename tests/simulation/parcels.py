"""A flow without rows, for pairs whose store keeps none: parcels are sorted, then delivered, in order."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from choreo import App, Event, Flow, Service
from choreo.testing.simulation import Faults, Simulation, World


class Sent(Event, type="parcel.sent", version=1, topic="parcels", key="street"):
    """A parcel came in."""

    street: str
    number: int


class Sorted(Event, type="parcel.sorted", version=1, topic="sorted", key="street"):
    """It is in the van."""

    street: str
    number: int


class Delivered(Event, type="parcel.delivered", version=1, topic="delivered", key="street"):
    """It is where it was to go."""

    street: str
    number: int


hub, van = Service("hub"), Service("van")


@hub.handler(Sent)
async def sort(sent: Sent) -> Sorted:
    """Into the van."""
    return Sorted(street=sent.street, number=sent.number)


@hub.handler(Delivered)
def file(delivered: Delivered) -> None:
    """Nothing more to do."""


@van.handler(Sorted)
async def deliver(sorted_: Sorted) -> Delivered:
    """Out of the van."""
    return Delivered(street=sorted_.street, number=sorted_.number)


app = App(hub, van, flows=[Flow("parcel", starts=Sent, ends=(Delivered,))])


def parcels(chance: random.Random) -> Sequence[Event]:
    """Forty of them, for four streets."""
    return [Sent(street=f"street {chance.randrange(4)}", number=number) for number in range(40)]


def delivered_once(world: World) -> Iterator[str]:
    """By their numbers: two events of different ids are two deliveries."""
    ids: dict[int, set[str]] = {}
    for record, envelope in world.events():
        if envelope is not None and envelope.type == "parcel.delivered" and envelope.causationid:
            number = Delivered.from_payload(record.value or b"").number
            ids.setdefault(number, set()).add(envelope.id)
    for number, count in Counter({number: len(found) for number, found in ids.items()}).items():
        if count > 1:
            yield f"parcel {number} was delivered {count} times"


def parcel_flow(pair: str, faults: Faults | None = None) -> Simulation:
    """The flow on one of the pairs."""
    return Simulation(app, parcels, pair=pair, faults=faults or Faults(), checkers=(delivered_once,))
