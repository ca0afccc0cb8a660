"""choreo's promises through hundreds of bad days: no seed of any pair may break one. `SIMULATE_SEEDS`: how many."""

import os
from collections import Counter
from dataclasses import replace

import pytest

from choreo.core.units import TRANSITIONS
from choreo.testing.simulation.faults import KINDS
from handlers.order_fulfilment.simulation import simulation as orders
from tests.simulation.parcels import parcel_flow

SEEDS = int(os.environ.get("SIMULATE_SEEDS", "500"))
FAULTS_MIN = 5


@pytest.mark.parametrize("part", range(4))
def test_orders_add_up_in_every_seed(part: int) -> None:
    """Twenty-four orders, four services of two members each: goods, money and events reconcile."""
    counts: Counter[str] = Counter()
    for seed in range(1 + part, 1 + SEEDS, 4):
        outcome = orders.run(seed)
        assert outcome.violations == (), (
            f"choreo simulate handlers.order_fulfilment.simulation:simulation --seed {seed}"
        )
        assert len(outcome.faults) >= FAULTS_MIN
        counts.update(outcome.counts)
    if SEEDS >= 500:
        assert set(counts) == set(KINDS), "some kind of fault never happened"


@pytest.mark.parametrize("seed", [8153])
def test_seeds_that_failed_once(seed: int) -> None:
    """8153: a member stands still in the middle of its drain, is put out of its group, and goes on draining."""
    assert orders.run(seed).violations == ()


@pytest.mark.parametrize("pair", ["embedded", "outbox", "lease", "changelog"])
def test_every_pair_keeps_its_promise(pair: str) -> None:
    """In a flow without rows, and in the order flow where the pair keeps rows."""
    parcels, reached = parcel_flow(pair), Counter[object]()
    for seed in range(1, 1 + max(5, SEEDS // 10)):
        outcome = parcels.run(seed)
        assert outcome.violations == (), f"{pair}, seed {seed}"
        reached.update(outcome.transitions)
    assert len([row for row in TRANSITIONS if reached[row]]) >= 15


def test_orders_on_the_embedded_broker() -> None:
    """All in one file."""
    embedded = replace(orders, pair="embedded")
    for seed in range(1, 1 + max(5, SEEDS // 25)):
        assert embedded.run(seed).violations == (), f"seed {seed}"
