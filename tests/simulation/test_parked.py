"""Parked keys on bad days: order within a key through failures, releases and drops, and no key parked for ever."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from choreo import App, Event
from choreo.testing.simulation import Faults, Simulation, simulation
from choreo.testing.simulation.crashes import single
from tests.simulation.mutants.parking import queues_are_slow_to_send
from tests.simulation.parked_parcels import Sent, app, day, late_day, patient

CRASHES = 24


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


def test_nothing_overtakes_the_last_of_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key is parked until what it emitted is on the log, although its commit was long before."""
    queues_are_slow_to_send(monkeypatch)
    for seed in range(1, 6):
        assert late_day().run(seed).violations == ()
