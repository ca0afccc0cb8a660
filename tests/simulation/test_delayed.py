"""Delayed retries on bad days, on every pair of broker and store: bounded, nothing lost, all dead letters there."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import pytest

from choreo import App, Context, Delayed, Event, Service
from choreo.runtime.emitting import original
from choreo.testing.simulation import Simulation, World

PARCELS = 24
DELAYS_S = (2, 5)


class Sent(Event, type="parcel.sent", version=1, topic="parcels", key="street"):
    """A parcel came in."""

    street: str
    number: int

    @property
    def fails(self) -> int:
        """How many attempts at it fail: of four parcels one never fails, two do for a while, one for ever."""
        return (0, 1, 2, 99)[self.number % 4]


class Sorted(Event, type="parcel.sorted", version=1, topic="sorted", key="street"):
    """It is in the van."""

    street: str
    number: int


hub = Service("hub")


@hub.handler(Sent, retry=Delayed(*DELAYS_S))
async def sort(sent: Sent, ctx: Context) -> Sorted:
    """Into the van, sooner or later."""
    if ctx.attempt <= sent.fails:
        raise ConnectionError
    return Sorted(street=sent.street, number=sent.number)


@hub.handler(Sent)
async def greet(sent: Sent) -> None:
    """Another handler of the same events, which is bothered by no retry."""


app = App(hub)


def parcels(chance: random.Random) -> Sequence[Event]:
    """For three streets."""
    return [Sent(street=f"street {chance.randrange(3)}", number=number) for number in range(PARCELS)]


def complete(world: World) -> Iterator[str]:
    """Each parcel is sorted, or else a dead letter with all its attempts; the hopeless ones are always that.

    Where emits are sent before their key is done, who is cut off between the two leaves an event that was handled to
    be handled again, and that may fail.
    """
    emitted: dict[int, set[str]] = defaultdict(set)
    for record, envelope in world.events():
        if envelope is not None and envelope.type == "parcel.sorted":
            emitted[Sorted.from_payload(record.value or b"").number].add(envelope.id)
    letters: dict[int, list[dict[str, str]]] = defaultdict(list)
    places = {(str(each.partition), str(each.offset)): each for each in world.records("parcels")}
    for record in world.records("hub.dlq"):  # one may have been cut: its coordinates are always there
        told = original(record)
        if told["reason"] != "handler_failed":  # a stranger's record, which cannot be read
            continue
        sent = places[told["original-partition"], told["original-offset"]]
        letters[Sent.from_payload(sent.value or b"").number].append(told)
    for event in world.published.values():
        number, hopeless = event.number, event.fails > len(DELAYS_S)
        given_up = bool(letters[number])
        both = bool(emitted[number]) and given_up and not world.emits_once
        if len(emitted[number]) != (not given_up or both) or (hopeless and not given_up):
            yield f"parcel {number} was sorted {len(emitted[number])} times, {len(letters[number])} dead letters"
        if world.emits_once and len(letters[number]) > 1:
            yield f"parcel {number} has {len(letters[number])} dead letters"
        for told in letters[number]:
            if (told["attempts"], told["original-topic"]) != (str(1 + len(DELAYS_S)), "parcels"):
                yield f"parcel {number} was given up after {told['attempts']} attempts, from {told['original-topic']}"


def only_the_one_that_failed(world: World) -> Iterator[str]:
    """No retry reached the handler that had not failed: its keys are those of the first records alone."""
    router = world.app.router("hub")
    for topic in world.app.input_topics("hub")[1:]:
        for record in world.records(topic):
            if record.key == b"poison":
                continue
            handlers = [work.bound and work.bound.handler.name for work in router.route(record).work]
            if handlers != ["sort"]:
                yield f"{record.topic}@{record.offset} is for {handlers}"


@pytest.mark.parametrize("pair", ["embedded", "outbox", "lease", "changelog"])
def test_delayed_retries_keep_every_promise(pair: str) -> None:
    """Crashes, stale owners and all: choreo's own checkers hold, and no parcel is lost or given up early."""
    simulation = Simulation(app, parcels, pair=pair, checkers=(complete, only_the_one_that_failed))
    reached, faults = Counter[tuple[str, str]](), 0
    for seed in range(1, 9):
        outcome = simulation.run(seed)
        assert outcome.violations == (), f"{pair}, seed {seed}"
        reached.update(outcome.transitions)
        faults += len(outcome.faults)
    assert faults >= 40
    assert {("following", "early"), ("waiting", "due"), ("waiting", "revoked")} <= set(reached)
