"""Parked keys on bad days: order within a key through failures, releases and drops, and no key parked for ever."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from choreo import App, Delayed, Event, RetryPolicy, Service
from choreo.core import parking
from choreo.runtime.flushing import Flusher
from choreo.runtime.replaying import read_replay
from choreo.stores.sqlite import claim, parked
from choreo.testing.simulation import Faults, Simulation, World, simulation
from choreo.testing.simulation.crashes import single

PARCELS, STREETS, SLOW_S = 60, 2, 0.6
HOPELESS = 24
CRASHES = 24


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


@pytest.mark.parametrize("pair", ["embedded", "outbox"])
@pytest.mark.parametrize("flow", [app, patient], ids=["released", "delayed"])
def test_parked_keys_keep_their_order(pair: str, flow: App) -> None:
    """Crashes, stale owners, hurried operators and all: choreo's own checkers hold, order of a key among them."""
    bad_days = day(flow, pair)
    kinds = Counter[str]()
    for seed in range(1, 9):
        outcome = bad_days.run(seed)
        assert outcome.violations == (), f"{pair}, seed {seed}"
        kinds.update(each.kind for each in outcome.history)
    assert kinds["releases"] >= 8


def few(pair: str) -> Simulation:
    """Eight parcels, one of which fails until it is released, on a good day."""

    def publish(chance: random.Random) -> Sequence[Event]:
        return [Sent(street="street 0", number=number) for number in range(8)]

    return replace(day(app, pair), publish=publish, members=1, partitions=1, faults=Faults.none())


@pytest.mark.parametrize("pair", ["embedded", "outbox"])
def test_no_crash_strands_a_parked_key(pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after writes of the members, evenly chosen: parked, released, closed, each event in its place."""
    monkeypatch.setattr(simulation, "FAULTS_S", simulation.FAULTS_S / 2)
    monkeypatch.setattr(simulation, "PUBLISH_S", 4.0)
    found = single(few(pair), 3, reads=False, runs_max=CRASHES)
    assert [each.violations for each in found.failing] == []
    assert found.runs == CRASHES
    assert found.again > 0


def queues_are_slow_to_send(patch: pytest.MonkeyPatch) -> None:
    """What the last event of a queue emits comes late on the log; the next of its key is there in the meantime."""
    real = Flusher._send_outbox

    async def late(self: Flusher, outbox: Sequence[Any], done: Any, leases: Any) -> None:
        replays = [read_replay(record.headers) for _, record in outbox]
        more = any(each is not None and each.parked == "head" for each in replays)
        if outbox and not more and any(id_.topic.endswith(".replay") for id_ in leases):
            await asyncio.sleep(2.0)
        await real(self, outbox, done, leases)

    patch.setattr(Flusher, "_send_outbox", late)


def late_day() -> Simulation:
    """Partitions of a key with different members, and nothing that goes wrong by itself."""
    return replace(day(app, "outbox"), partitions=3, faults=Faults.none())


def test_nothing_overtakes_the_last_of_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key is parked until what it emitted is on the log, although its commit was long before."""
    queues_are_slow_to_send(monkeypatch)
    for seed in range(1, 6):
        assert late_day().run(seed).violations == ()


def queues_are_not_closed(patch: pytest.MonkeyPatch) -> None:
    """The key is parked no more from the last event's commit on."""
    queues_are_slow_to_send(patch)
    real = parked.leave
    patch.setattr(parked, "leave", lambda db, event, closes: real(db, event, closes=False))


def claims_do_not_ask(patch: pytest.MonkeyPatch) -> None:
    """No claim is told that its key is parked."""
    patch.setattr(claim, "is_parked", lambda db, queue: False)


def those_behind_are_invoked(patch: pytest.MonkeyPatch) -> None:
    """What was claimed before the parking was durable is as its claim says."""
    patch.setattr(parking, "landed", lambda unit: setattr(unit.lane, "parking", None))


def nobody_comes_for_the_one_that_waits_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """An event that finds its queue empty waits all the same."""
    real = parked.wait

    def wait(*given: Any) -> list[Any]:
        real(*given)
        return []

    patch.setattr(parked, "wait", wait)


@pytest.mark.parametrize(
    ("take_out", "checker", "late"),
    [
        (queues_are_not_closed, "out_of_order", True),
        (claims_do_not_ask, "out_of_order", False),
        (those_behind_are_invoked, "out_of_order", False),
        (nobody_comes_for_the_one_that_waits_for_nothing, "still_parked", False),
    ],
)
def test_a_protection_taken_out_is_seen(
    take_out: Callable[[pytest.MonkeyPatch], None], checker: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the checker it is about, in one of a few seeds."""
    take_out(monkeypatch)
    bad_days = late_day() if late else day(app, "outbox")
    assert any(said.startswith(checker) for seed in range(1, 21) for said in bad_days.run(seed).violations)
