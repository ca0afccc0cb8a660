"""The flows of handlers/ on bad days: each comes to its end, once, and as its input says."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from choreo.core import process as core
from choreo.testing.simulation import Faults, Simulation, World
from choreo.testing.simulation.seeds import check_twice
from handlers.ci_pipeline.simulation import simulation as ci_pipeline
from handlers.enrichment.events import LeadEnriched, LeadReceived
from handlers.enrichment.providers import is_down, is_slow
from handlers.enrichment.simulation import simulation as enrichment
from handlers.order_process.simulation import simulation as order_process
from handlers.order_saga.simulation import simulation as order_saga

SEEDS = {"outbox": 10, "embedded": 3}


def missing_as_expected(world: World) -> Iterator[str]:
    """On a day without faults a lookup is missing if and only if it takes too long."""
    for record in world.records("leads-enriched"):
        lead = LeadEnriched.from_payload(record.value or b"")
        late = ["credit"] * is_slow(lead.company) + ["news"] * is_down(lead.company)
        if list(lead.missing) != late:
            yield f"{lead.lead_id} is without {lead.missing}, and {late} came late"


@pytest.mark.parametrize("pair", SEEDS)
@pytest.mark.parametrize("orders", [order_saga, order_process], ids=["saga", "process"])
def test_orders_reconcile_whoever_is_in_charge(orders: Simulation, pair: str) -> None:
    """With all faults, and a provider that charges and does not answer: the ledgers of the mesh agree."""
    for seed in range(1, SEEDS[pair] + 1):
        assert replace(orders, pair=pair).run(seed).violations == (), seed


def test_a_saga_stands_where_it_is_until_a_dead_letter_is_replayed() -> None:
    """Commands, answers and timers: with operators each saga ends, and as its order says; without them some never."""
    fails = replace(order_saga, faults=Faults.only("handler_fails", chance=0.5))
    assert [fails.run(seed).violations for seed in (1, 2)] == [(), ()]
    alone = replace(fails, replays=False).run(1).violations
    assert any(said.startswith("unended: checkout") and said.endswith("for ever") for said in alone)


@pytest.mark.parametrize("seed", [2957, 3878])
def test_seeds_of_the_saga_that_failed_once(seed: int) -> None:
    """2957: a charge fails five times, and the command is a dead letter. 3878: what was slow to take a partition
    tells its offset when the partition was revoked and has come back."""
    assert order_saga.run(seed).violations == ()


@pytest.mark.parametrize("pair", SEEDS)
def test_commits_are_deployed_only_when_they_may(pair: str) -> None:
    """With all faults; decisions that overtake the steps, or never come."""
    for seed in range(1, SEEDS[pair] + 1):
        assert replace(ci_pipeline, pair=pair).run(seed).violations == (), seed


@pytest.mark.parametrize("pair", SEEDS)
def test_leads_are_enriched_once(pair: str) -> None:
    """With all faults; partial only when the time was up."""
    for seed in range(1, SEEDS[pair] + 1):
        assert replace(enrichment, pair=pair).run(seed).violations == (), seed


def test_leads_are_partial_if_and_only_if_a_lookup_is_late() -> None:
    """On good days."""
    good = replace(enrichment, faults=Faults.none(), checkers=[*enrichment.checkers, missing_as_expected])
    for seed in range(1, 4):
        outcome = good.run(seed)
        assert outcome.violations == ()


def test_a_seed_is_the_same_in_every_interpreter() -> None:
    """Text has another hash in each. In this one a newer owner has five partitions of a process at once."""
    assert check_twice("handlers.ci_pipeline.simulation:simulation", 6) is None


def test_a_join_without_its_timer_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leads whose lookups are slow or down are never heard of again."""
    monkeypatch.setattr(core, "on_timer", lambda *_: iter(()))
    assert any("enriched 0 times" in each for each in enrichment.run(1).violations)


def test_leads_of_the_simulation_are_of_every_kind() -> None:
    """Else nothing would be seen."""
    leads = [lead for seed in range(10) for lead in enrichment.publish(random.Random(seed))]
    companies = [lead.company for lead in leads if isinstance(lead, LeadReceived)]
    assert any(map(is_slow, companies))
    assert any(map(is_down, companies))
