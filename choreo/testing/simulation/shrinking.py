"""The shortest fault schedule that still fails: delta debugging over the faults that happened in a failing seed.

A fault is decided by its seed and place, so the others fall where they fell when one is left out, and every schedule
that is tried is a real run of the same seed.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from choreo.testing.simulation.simulation import Outcome

RUNS_MAX = 200

Progress = Callable[[int, int], None]
"""Called after each run with the number of runs so far and of the faults that are left."""


class Run(Protocol):
    """`Simulation.run`."""

    def __call__(self, seed: int, *, allowed: Iterable[str] | None = None) -> "Outcome":
        """Run one seed with these faults only."""


def checker_of(outcome: "Outcome") -> str | None:
    """Whose violation an outcome is about; None if there is none.

    A bug comes before all others: where a service stopped for good, the rest only follows from it. Else the first.
    """
    names = [each.partition(":")[0] for each in outcome.violations]
    return "bug" if "bug" in names else next(iter(names), None)


def shrink(run: Run, outcome: "Outcome", *, runs_max: int = RUNS_MAX, progress: Progress | None = None) -> "Outcome":
    """The outcome of the shortest schedule found that still violates the same checker.

    With fewer than `runs_max` runs no single fault of it can be left out (ddmin's 1-minimality); another schedule,
    found on another way, may be shorter.

    Args:
        run: `simulation.run` of the simulation that `outcome` is of.
        outcome: A failing one; a good one is returned as it is.
        runs_max: Runs of the seed at most.

    Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002.
    """
    wanted = checker_of(outcome)
    if wanted is None:
        return outcome
    search = _Search(run, outcome, wanted, runs_max, progress)
    if not search.fails(()):  # most failures need a fault; those that need none are told from it at once
        parts = 2
        while len(search.best.faults) > 1 and not search.over():
            faults = search.best.faults
            parts = min(parts, len(faults))
            if search.fails_in_one_of(_split(faults, parts)):
                parts = 2
            elif parts > 2 and search.fails_in_one_of(_complements(faults, parts)):  # of two, each is the other's
                parts -= 1
            elif parts == len(faults):
                break
            else:
                parts *= 2
        if len(search.best.faults) > 2:  # a long way round: one of those left out may do it by itself
            search.fails_in_one_of([each] for each in outcome.faults)
    return search.best


class _Search:
    def __init__(self, run: Run, outcome: "Outcome", wanted: str, runs_max: int, progress: Progress | None) -> None:
        self.best = outcome
        self._run = run
        self._wanted = wanted
        self._runs, self._runs_max = 0, runs_max
        self._progress = progress
        self._good: set[frozenset[str]] = set()

    def over(self) -> bool:
        """Whether no run is left."""
        return self._runs >= self._runs_max

    def fails_in_one_of(self, schedules: Iterable[Sequence[str]]) -> bool:
        """Take the first one that fails."""
        return any(self.fails(each) for each in schedules)

    def fails(self, schedule: Sequence[str]) -> bool:
        """Whether it still fails with these faults; if so it is the best so far."""
        allowed = frozenset(schedule)
        if self.over() or allowed in self._good:
            return False
        self._runs += 1
        outcome = self._run(self.best.seed, allowed=schedule)
        failed = any(each.partition(":")[0] == self._wanted for each in outcome.violations)
        if failed:
            self.best = outcome  # some that are allowed may not have come to happen: they are gone, too
        else:
            self._good.add(allowed)
        if self._progress is not None:
            self._progress(self._runs, len(self.best.faults))
        return failed


def _split(faults: Sequence[str], parts: int) -> list[Sequence[str]]:
    bounds = [len(faults) * number // parts for number in range(parts + 1)]
    return [faults[low:high] for low, high in pairwise(bounds)]


def _complements(faults: Sequence[str], parts: int) -> list[Sequence[str]]:
    bounds = [len(faults) * number // parts for number in range(parts + 1)]
    return [[*faults[:low], *faults[high:]] for low, high in pairwise(bounds)]
