"""What `choreo simulate` runs and prints: many seeds, or one, its shortest fault schedule and its story."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from choreo.cli.console import err, out, print_json
from choreo.core.units import TRANSITIONS, Signal, State
from choreo.errors import ConfigurationError
from choreo.testing.simulation.faults import KINDS, Faults
from choreo.testing.simulation.pairs import PAIRS
from choreo.testing.simulation.seeds import FAILING_MAX, Tally, check_twice, find, run_seeds, unreachable
from choreo.testing.simulation.shrinking import RUNS_MAX, checker_of, shrink
from choreo.testing.simulation.simulation import Outcome, Simulation
from choreo.testing.simulation.story import VIOLATIONS_MAX, Story, tell

TOLD_MAX = 3
"""Failing seeds that are told in full: the first of each checker."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failing seed, what is left of its faults, and how to see it again."""

    found: Outcome
    shortest: Outcome
    command: str

    @property
    def story(self) -> Story:
        """Of the shortest schedule."""
        return tell(self.shortest)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "seed": self.found.seed,
            "violations": list(self.found.violations),
            "faults": len(self.found.faults),
            "shortest": list(self.shortest.faults),
            "replay": self.command,
            "story": self.story.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was given."""

    target: str
    simulation: Simulation
    changes: Mapping[str, Any]
    faults: str | None
    as_json: bool

    def command(self, seed: int, schedule: Iterable[str] | None) -> str:
        """What to type to see a seed again, with all its faults or these."""
        words = ["choreo", "simulate", self.target, "--seed", str(seed)]
        words += ["--faults", self.faults] if self.faults is not None else []
        words += ["--pair", self.changes["pair"]] if "pair" in self.changes else []
        return shlex.join([*words, *(["--allowed", ",".join(schedule)] if schedule is not None else [])])

    def failure(self, found: Outcome, shortest: Outcome) -> Failure:
        """Of two outcomes of one seed."""
        return Failure(found, shortest, self.command(found.seed, shortest.faults))


def run(
    target: str,
    seeds: range,
    *,
    minutes: float | None,
    faults: str | None,
    pair: str | None,
    processes: int,
    seed: int | None,
    allowed: str | None,
    as_json: bool,
) -> bool:
    """Run one seed or many; whether none violates a promise.

    Raises:
        ConfigurationError: There is no such simulation, kind of fault or pair.
    """
    changes: dict[str, Any] = {}
    if faults is not None:
        changes["faults"] = _faults(faults)
    if pair is not None:
        if pair not in PAIRS:
            raise ConfigurationError(f"--pair {pair}: there are {', '.join(PAIRS)}")
        changes["pair"] = pair
    asked = Asked(target, replace(find(target), **changes), changes, faults, as_json)
    if seed is not None:
        return _one(asked, seed, None if allowed is None else _listed(allowed))
    return _many(asked, seeds, minutes, processes)


def _one(asked: Asked, seed: int, allowed: list[str] | None) -> bool:
    """Run one seed and tell its story; of a failing one that was not shortened before, the shortest."""
    outcome = asked.simulation.run(seed, allowed=allowed)
    if missed := [each for each in allowed or () if each not in outcome.faults]:
        err().print(f"[yellow]allowed, and did not happen:[/] {escape(', '.join(missed))}", highlight=False)
    failure = None
    if not outcome.ok:
        failure = _shortened(asked, outcome) if allowed is None else asked.failure(outcome, outcome)
    if asked.as_json:
        told = tell(outcome).as_dict() if failure is None else failure.as_dict()
        print_json({"ok": outcome.ok, "seed": seed, "virtual_s": round(outcome.virtual_s, 3), "told": told})
    elif failure is not None:
        _print_failure(failure)
    else:
        out().print(tell(outcome).text(), end="")
        out().print(f"[green]seed {seed}: no violation[/], {len(outcome.faults)} faults, {outcome.events} events")
    return outcome.ok


def _many(asked: Asked, seeds: range, minutes: float | None, processes: int) -> bool:
    """Run them all, say what came of them, and tell the first failing seed of each checker."""
    difference = check_twice(asked.target, seeds[0], changes=asked.changes)
    columns = TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err()) as progress:
        task = progress.add_task("seeds", total=len(seeds))

        def show(tally: Tally) -> None:
            failing = f", {len(tally.violations)} failing" if tally.violations else ""
            progress.update(task, completed=tally.seeds, description=f"seeds{failing}")

        tally = run_seeds(
            asked.target, seeds, changes=asked.changes, processes=processes, minutes_max=minutes, progress=show
        )
    told: dict[str | None, Outcome] = {}
    for _, outcome in sorted(tally.violations.items()):
        told.setdefault(checker_of(outcome), outcome)
    failures = [_shortened(asked, outcome) for outcome in list(told.values())[:TOLD_MAX]]
    if asked.as_json:
        print_json(_as_dict(asked, seeds[0], tally, failures, difference))
    else:
        _print_tally(asked, tally, difference)
        for failure in failures:
            _print_failure(failure)
    return tally.seeds > 0 and not tally.violations and difference is None


def _shortened(asked: Asked, outcome: Outcome) -> Failure:
    """Without a thread that draws: the simulation would give it virtual time."""
    columns = TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err(), auto_refresh=False) as progress:
        task = progress.add_task(f"shortening seed {outcome.seed}", total=RUNS_MAX)

        def show(runs: int, faults: int) -> None:
            progress.update(task, completed=runs, description=f"shortening seed {outcome.seed}, {faults} faults left")
            progress.refresh()

        return asked.failure(outcome, shrink(asked.simulation.run, outcome, progress=show))


def _print_tally(asked: Asked, tally: Tally, difference: str | None) -> None:
    if tally.faults:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in tally.faults.most_common())
        out().print(f"[dim]faults: {counts}[/]", highlight=False)
    for said, rows in _unreached(asked, tally).items():
        out().print(f"[dim]{said}: {', '.join(rows)}[/]", highlight=False)
    used = len(TRANSITIONS) - len(tally.unreached())
    hours = f"{tally.virtual_hours:,.1f} virtual hours in {tally.elapsed_s:,.0f} s"
    faults = f"{tally.faults.total():,} faults, {tally.events:,} events"
    stopped = f"; stopped after {len(tally.violations)} failing seeds" if len(tally.violations) >= FAILING_MAX else ""
    out().print(
        f"{tally.seeds:,} seeds, {hours}, {faults}, {used} of the core's {len(TRANSITIONS)} rows{stopped}",
        highlight=False,
    )
    if difference is not None:
        out().print(f"[bold red]not deterministic:[/] the same seed twice: {escape(difference)}", highlight=False)
    if tally.seeds and not tally.violations:
        bound = f"; at 95 % certainty less than 1 seed in {tally.seeds // 3:,} has one" if tally.seeds >= 30 else ""
        out().print(f"[green]no violation[/]{bound}", highlight=False)
    for seed, outcome in sorted(tally.violations.items()):
        out().print(f"[bold red]seed {seed}:[/] {escape(outcome.violations[0])}", highlight=False)
        out().print(f"    {escape(asked.command(seed, None))}", highlight=False)


def _unreached(asked: Asked, tally: Tally) -> dict[str, list[str]]:
    """What no seed has proved: rows of the core's table, and which of them the app has no use for."""
    reasons = unreachable(asked.simulation.app)
    found: dict[str, list[str]] = {}
    for state, signal, _ in tally.unreached():
        reason = reasons.get((State(state), Signal(signal)))
        said = f"not for this app's: {reason}" if reason else "of the core's table no seed used"
        found.setdefault(said, []).append(f"{state} + {signal}")
    return found


def _print_failure(failure: Failure) -> None:
    found, shortest = failure.found, failure.shortest
    out().print(f"\n[bold red]seed {found.seed}[/], {len(found.violations)} violations:", highlight=False)
    for each in found.violations[:VIOLATIONS_MAX]:
        out().print(f"    {escape(each)}", highlight=False)
    out().print(f"replay it: [bold]{escape(failure.command)}[/]", highlight=False)
    said = "it needs no fault" if not shortest.faults else f"the shortest schedule, of {len(found.faults)} faults:"
    out().print(said)
    for id_ in shortest.faults:
        out().print(f"    {escape(id_)}: {KINDS[id_.partition('@')[0]]}", highlight=False)
    out().print(failure.story.text(), end="")


def _as_dict(
    asked: Asked, first: int, tally: Tally, failures: Iterable[Failure], difference: str | None
) -> dict[str, Any]:
    return {
        "ok": tally.seeds > 0 and not tally.violations and difference is None,
        "from": first,
        "seeds": tally.seeds,
        "virtual_hours": round(tally.virtual_hours, 3),
        "elapsed_s": round(tally.elapsed_s, 3),
        "events": tally.events,
        "faults": dict(tally.faults.most_common()),
        "rows": {"core": len(TRANSITIONS), "used": len(TRANSITIONS) - len(tally.unreached())},
        "unreached": [list(map(str, row)) for row in tally.unreached()],
        "unreachable": {
            f"{state} + {signal}": why for (state, signal), why in unreachable(asked.simulation.app).items()
        },
        "not_deterministic": difference,
        "violations": {
            str(seed): {"violations": list(outcome.violations), "replay": asked.command(seed, None)}
            for seed, outcome in sorted(tally.violations.items())
        },
        "told": [failure.as_dict() for failure in failures],
    }


def _faults(text: str) -> Faults:
    if text == "all":
        return Faults()
    try:
        return Faults.none() if text == "none" else Faults.only(*_listed(text))
    except ValueError as error:
        raise ConfigurationError(f"--faults: {error}; or all, or none") from None


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]
