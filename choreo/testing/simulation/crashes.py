"""Crash points, exhaustively: a run for a crash before and after every call of a process, then for pairs of them.

A crash is one of the simulation's own faults, chosen by id; everything else goes well. So what was tried is a list,
each line of it can be run again by `try_one`, and nothing depends on a draw being lucky.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from choreo.errors import ChoreoError
from choreo.testing.simulation.nemesis import KINDS as AT_ANY_TIME

if TYPE_CHECKING:
    from choreo.testing.simulation.simulation import Simulation
    from choreo.testing.simulation.world import World

BEFORE, AFTER = "crash", "crash_after"
RUNS_MAX = 2_200

Schedule = tuple[str, ...]
"""Ids of the crashes of one run, in the order in which they happen."""
Progress = Callable[[int, int], None]
"""Called after each run with the number of runs so far and of all."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one schedule.

    Attributes:
        violations: As in `Outcome`.
        copies: Emits on the log beyond the first of their id, promised or not.
        again: Calls of a handler beyond the first for the same event; a crash may cost one, on every pair.
        later: Visits after the last crash at which a process could have crashed, with the kinds.
    """

    schedule: Schedule
    violations: tuple[str, ...]
    copies: int
    again: int
    later: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Crashes:
    """All schedules of one or of two crashes, counted: a row of the table.

    Attributes:
        points: Schedules there are.
        trials: Those that were run.
        own: Names of the simulation's own checkers.
    """

    points: int
    trials: tuple[Trial, ...]
    own: frozenset[str]

    @property
    def runs(self) -> int:
        """How many were run."""
        return len(self.trials)

    @property
    def lost(self) -> int:
        """Events a handler never came to."""
        return self._count("lost")

    @property
    def copies(self) -> int:
        """Emits on the log beyond the first of their id."""
        return sum(each.copies for each in self.trials)

    @property
    def effects(self) -> int:
        """What the simulation's own checkers found."""
        return self._count(*self.own)

    @property
    def out_of_order(self) -> int:
        """Emits of a key that came before one of an earlier event."""
        return self._count("out_of_order")

    @property
    def other(self) -> int:
        """What all other checkers found."""
        return sum(len(each.violations) for each in self.trials) - self._count("lost", "out_of_order", *self.own)

    @property
    def again(self) -> int:
        """Calls of a handler beyond the first for the same event."""
        return sum(each.again for each in self.trials)

    @property
    def failing(self) -> list[Trial]:
        """Those in which a promise was broken."""
        return [each for each in self.trials if each.violations]

    def _count(self, *checkers: str) -> int:
        return sum(said.partition(":")[0] in checkers for each in self.trials for said in each.violations)


def crash_points(simulation: "Simulation", seed: int, *, reads: bool = True) -> list[str]:
    """Ids of a crash before and after every call that a process makes in a run in which nothing goes wrong.

    Calls are those of broker and store, and of the handlers. After one that only reads nothing is there that was not
    before, so there is no crash; without `reads` there is none before it, either.

    Raises:
        ChoreoError: The run itself violates something.
    """
    peaceful = try_one(simulation, seed, ())
    if peaceful.violations:
        raise ChoreoError(f"seed {seed} fails without a crash: {peaceful.violations[0]}")
    return [f"{kind}@{visit}" for visit, kinds in peaceful.later if reads or AFTER in kinds for kind in kinds]


def single(
    simulation: "Simulation",
    seed: int = 1,
    *,
    reads: bool = True,
    runs_max: int | None = None,
    progress: Progress | None = None,
) -> Crashes:
    """Run with each crash alone; with at most `runs_max` of them, evenly chosen, if it is given."""
    points = [(id_,) for id_ in crash_points(simulation, seed, reads=reads)]
    trials = _try_all(simulation, seed, evenly(points, runs_max), progress)
    return Crashes(len(points), trials, _own(simulation))


def double(
    simulation: "Simulation",
    seed: int = 1,
    *,
    firsts: Crashes | None = None,
    visits_max: int = 1,
    runs_max: int = RUNS_MAX,
    progress: Progress | None = None,
) -> Crashes:
    """Run with pairs of crashes: after each first one a second at the next visits of every place that comes later.

    Args:
        firsts: What `single` returned for this seed, if it was run.
        visits_max: How many visits of a place; >= 1. The number of pairs grows with it.
        runs_max: More are not run, but as many evenly chosen.
    """
    if firsts is None:
        firsts = single(simulation, seed)
    pairs = [(*trial.schedule, second) for trial in firsts.trials for second in _next(trial, visits_max)]
    trials = _try_all(simulation, seed, evenly(pairs, runs_max), progress)
    return Crashes(len(pairs), trials, _own(simulation))


def try_one(simulation: "Simulation", seed: int, schedule: Schedule) -> Trial:
    """Run one schedule.

    Raises:
        ChoreoError: The crashes did not happen as they were asked for.
    """
    found: list[Trial] = []

    def look(world: "World") -> None:
        last = _visit(schedule[-1]) if schedule else None
        struck = next((at for at, (visit, _) in enumerate(world.dice.visits) if visit == last), -1)
        later = [
            (visit, tuple(kind for kind in kinds if kind in (BEFORE, AFTER)))
            for visit, kinds in world.dice.visits[struck + 1 :]
            if BEFORE in kinds and kinds != AT_ANY_TIME
        ]
        emits = Counter((each.source, each.id) for _, each in world.events() if each is not None and each.causationid)
        calls = Counter((each.handler, each.digest) for each in world.invocations)
        found.append(Trial(schedule, (), emits.total() - len(emits), calls.total() - len(calls), tuple(later)))

    looking = replace(simulation, checkers=(*simulation.checkers, look))
    outcome = looking.run(seed, allowed=schedule)
    if outcome.faults != schedule:
        raise ChoreoError(f"seed {seed}: asked for {schedule}, and there was {outcome.faults}")
    trial = found[0] if found else Trial(schedule, (), 0, 0, ())  # a deadlock is not looked at
    return replace(trial, violations=outcome.violations)


def evenly(items: Sequence[_Item], count_max: int | None) -> Sequence[_Item]:
    """All of them, or `count_max` at equal distances."""
    if count_max is None or len(items) <= count_max:
        return items
    return [items[number * len(items) // count_max] for number in range(count_max)]


def _try_all(
    simulation: "Simulation", seed: int, schedules: Sequence[Schedule], progress: Progress | None
) -> tuple[Trial, ...]:
    trials = []
    for schedule in schedules:
        trials.append(try_one(simulation, seed, schedule))
        if progress is not None:
            progress(len(trials), len(schedules))
    return tuple(trials)


def _next(trial: Trial, visits_max: int) -> Iterable[str]:
    """Crashes at the first later visits of each place: a bounded number, whatever the first crash leads to."""
    seen: Counter[str] = Counter()
    for visit, kinds in trial.later:
        place = visit.rpartition("#")[0]
        seen[place] += 1
        if seen[place] <= visits_max:
            yield from (f"{kind}@{visit}" for kind in kinds)


def _visit(id_: str) -> str:
    return id_.partition("@")[2]


def _own(simulation: "Simulation") -> frozenset[str]:
    return frozenset(each.__name__ for each in simulation.checkers)
