"""The shortest fault schedule: of made-up runs that fail for a known reason, and of a real one."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from choreo.testing.simulation.shrinking import RUNS_MAX, checker_of, shrink
from choreo.testing.simulation.simulation import Outcome
from handlers.order_fulfilment.payments.provider import Captured, Declined, PaymentProvider
from handlers.order_fulfilment.simulation import SimulatedProvider, simulation

Fails = Callable[[frozenset[str]], tuple[str, ...]]


class MadeUp:
    """Runs of one seed: all that is allowed happens, but for what is `idle`, and `fails` says what is wrong."""

    def __init__(self, fails: Fails, idle: Iterable[str] = ()) -> None:
        self.runs: list[frozenset[str]] = []
        self._fails = fails
        self._idle = frozenset(idle)

    def __call__(self, seed: int, *, allowed: Iterable[str] | None = None) -> Outcome:
        """As `Simulation.run`."""
        schedule = list(allowed or ())
        self.runs.append(frozenset(schedule))
        happened = tuple(each for each in schedule if each not in self._idle)
        return Outcome(seed, self._fails(frozenset(happened)), happened, (), 0.0, 0, {}, {})


def failing(count: int, *violations: str) -> Outcome:
    """An outcome with so many faults."""
    return Outcome(1, violations, tuple(f"f{n}" for n in range(count)), (), 0.0, 0, {}, {})


def needs(*faults: str) -> Fails:
    """Lost, if all these happen."""
    return lambda happened: ("lost: it",) if happened.issuperset(faults) else ()


@pytest.mark.parametrize("seed", range(30))
def test_no_fault_of_the_schedule_can_be_left_out(seed: int) -> None:
    """Whatever few of many faults it needs are all that is left, in their order, and no schedule is run twice."""
    chance = random.Random(seed)
    count = chance.randint(1, 60)
    needed = [f"f{n}" for n in sorted(chance.sample(range(count), chance.randint(1, min(4, count))))]
    run = MadeUp(needs(*needed))
    found = shrink(run, failing(count, "lost: it"))
    assert (found.faults, found.violations) == (tuple(needed), ("lost: it",))
    assert len(run.runs) == len(set(run.runs)) <= RUNS_MAX


def test_one_of_several_ways_to_fail_is_enough() -> None:
    """Two faults that each do it: one of them is left."""
    run = MadeUp(lambda happened: ("lost: it",) if happened & {"f3", "f17"} else ())
    assert shrink(run, failing(20, "lost: it")).faults in (("f3",), ("f17",))


def test_what_fails_without_faults_is_told_at_once() -> None:
    """One run, and nothing is left."""
    run = MadeUp(needs())
    assert shrink(run, failing(50, "lost: it")).faults == ()
    assert len(run.runs) == 1


def test_another_checkers_violation_is_another_failure() -> None:
    """A schedule that breaks something else is not what was looked for."""
    run = MadeUp(lambda happened: ("lost: it",) if {"f1", "f2"} <= happened else ("liveness: not at rest",))
    found = shrink(run, failing(10, "lost: it", "twice: that"))
    assert found.faults == ("f1", "f2")


def test_faults_that_no_longer_come_to_happen_are_dropped() -> None:
    """What is allowed and does not happen is no part of the schedule."""
    idle = [f"f{n}" for n in range(40) if n != 5]
    run = MadeUp(needs("f5"), idle=idle)
    assert shrink(run, failing(40, "lost: it")).faults == ("f5",)
    assert len(run.runs) < 6


def test_runs_are_bounded_and_each_is_reported() -> None:
    """After `runs_max` runs the shortest so far is returned; never a longer one than before."""
    seen: list[tuple[int, int]] = []
    run = MadeUp(needs("f1", "f30", "f59"))
    found = shrink(run, failing(60, "lost: it"), runs_max=12, progress=lambda *each: seen.append(each))
    assert len(run.runs) == 12
    assert [runs for runs, _ in seen] == list(range(1, 13))
    assert [left for _, left in seen] == sorted((left for _, left in seen), reverse=True)
    assert len(found.faults) == seen[-1][1] < 60


def test_a_good_outcome_stays_as_it_is() -> None:
    """There is nothing to look for."""
    run, good = MadeUp(needs("f1")), failing(5)
    assert shrink(run, good) is good
    assert run.runs == []


def test_a_bug_is_what_an_outcome_is_about() -> None:
    """A service that stopped for good violates everything else, too."""
    assert checker_of(failing(0, "lost: a", "twice: b", "bug: KeyError: c")) == "bug"
    assert checker_of(failing(0, "twice: b", "lost: a")) == "twice"
    assert checker_of(failing(0)) is None


class ForgetfulProvider(SimulatedProvider):
    """Charges again when it is asked again."""

    async def charge(self, **asked: Any) -> Captured | Declined:
        """Under a key of its own each time."""
        asked["idempotency_key"] = f"{asked['idempotency_key']} {len(self.statement)}"
        return await super().charge(**asked)


def test_a_charge_done_twice_is_found_and_shortened() -> None:
    """A provider without idempotency keys: of dozens of faults one does it, and the same one each time."""
    broken = replace(
        simulation,
        publish=lambda chance: simulation.publish(chance)[:6],
        resources={PaymentProvider: ForgetfulProvider()},
    )
    failing = [found for seed in range(1, 4) if not (found := broken.run(seed)).ok and len(found.faults) > 10]
    shortest = min((shrink(broken.run, each) for each in failing), key=lambda each: len(each.faults))
    outcome = next(each for each in failing if each.seed == shortest.seed)
    assert checker_of(shortest) == "reconciled"
    assert len(shortest.faults) <= 3
    again = broken.run(outcome.seed, allowed=shortest.faults)
    assert (again.text, again.violations) == (shortest.text, shortest.violations)
    for each in shortest.faults:
        left = [other for other in shortest.faults if other != each]
        assert "reconciled" not in {
            said.partition(":")[0] for said in broken.run(outcome.seed, allowed=left).violations
        }
