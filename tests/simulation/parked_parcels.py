"""Parcels of which some jam the machine for a while, one for ever: their streets are parked, and operators come."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from choreo import App, Delayed, Event, RetryPolicy, Service
from choreo.runtime.replaying import read_replay
from choreo.testing.simulation import Faults, Simulation, World

PARCELS, STREETS, SLOW_S = 60, 2, 0.6
HOPELESS = 24


class Sent(Event, type="parcel.sent", version=1, topic="parcels", key="street"):
    """A parcel came in."""

    street: str
    number: int


class Sorted(Event, type="parcel.sorted", version=1, topic="sorted", key="street"):
    """It is in the van."""

    street: str
    number: int


class Weighed(Event, type="parcel.weighed", version=1, topic="weighed", key="street"):
    """It is no heavier than it says."""

    street: str
    number: int


class Machine:
    """Jams at some parcels for a while, at one for ever; what it did is remembered whoever asks."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()

    def take(self, number: int) -> None:
        """Raises if it jams."""
        self.calls[number] += 1
        if self.calls[number] <= {2: 3, 7: 2}.get(number % 12, 0) or number == HOPELESS:
            raise ConnectionError


hub = Service("hub")


@hub.handler(Sent, retry=RetryPolicy(2, base_s=0.1, cap_s=0.5), order="key")
async def sort(sent: Sent, machine: Machine) -> Sorted:
    """Into the van, in the order of their coming."""
    machine.take(sent.number)
    return Sorted(street=sent.street, number=sent.number)


@hub.handler(Sent)
async def weigh(sent: Sent) -> Weighed:
    """Another handler of the same events, whose keys nobody parks. It takes its time, and the lane waits for it."""
    await asyncio.sleep(SLOW_S)
    return Weighed(street=sent.street, number=sent.number)


app = App(hub, resources=[Machine()])

later = Service("later")


@later.handler(Sent, retry=Delayed(2, 4), order="key")
async def sort_later(sent: Sent, machine: Machine) -> Sorted:
    """The same; it is tried again by itself, in its place."""
    machine.take(sent.number)
    return Sorted(street=sent.street, number=sent.number)


patient = App(later, resources=[Machine()])


def parcels(chance: random.Random) -> Sequence[Event]:
    """For two streets, and a few for another, in which one is never taken."""
    streets = [f"street {chance.randrange(STREETS)}" for _ in range(PARCELS)]
    streets[HOPELESS : HOPELESS + 4] = ["dead end"] * 4
    return [Sent(street=street, number=number) for number, street in enumerate(streets)]


def dropped(world: World, service: str) -> set[int]:
    """Numbers of the parcels that an operator dropped, or was about to."""
    records = world.log.scan([world.app.topic(world.app.services[service].replay_topic)])
    found = set()
    for record in records:
        replay = read_replay(record.headers)
        if replay is not None and replay.parked == "drop":
            found.add(Sent.from_payload(record.value or b"").number)
    return found


def complete(world: World) -> Iterator[str]:
    """Each parcel was sorted once, in the order of its street, unless it was dropped; nothing is a dead letter."""
    (service,) = world.app.services
    gone = dropped(world, service)
    copies: dict[int, set[str]] = defaultdict(set)
    for record, envelope in world.events():
        if envelope is not None and envelope.type == "parcel.sorted":
            copies[Sorted.from_payload(record.value or b"").number].add(envelope.id)
    for event in world.published.values():
        number = event.number
        if len(copies[number]) > (number != HOPELESS) or (not copies[number] and number not in gone):
            yield f"parcel {number} was sorted {len(copies[number])} times"
    for record in world.records(f"{service}.dlq"):
        if record.key != b"poison":
            yield f"{record.key!r} is a dead letter"


def day(flow: App, pair: str) -> Simulation:
    """All faults there are."""
    return Simulation(flow, parcels, {Machine: Machine()}, pair, checkers=(complete,))


def late_day() -> Simulation:
    """Partitions of a key with different members, and nothing that goes wrong by itself."""
    return replace(day(app, "outbox"), partitions=3, faults=Faults.none())
