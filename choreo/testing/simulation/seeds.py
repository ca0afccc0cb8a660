"""Many seeds over several processes, and what came of them together; one seed twice, to find what is not its seed's.

Each process is a fresh interpreter that finds the Simulation by its name, as a replay of a seed will.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

from choreo.app import App
from choreo.core.retry import Delayed
from choreo.core.units import TRANSITIONS, Signal, State
from choreo.errors import ChoreoError, ConfigurationError
from choreo.testing.simulation.errors import Unsimulated
from choreo.testing.simulation.simulation import Outcome, Simulation
from choreo.testing.simulation.world import World

SEED_S_MAX = 300.0
"""How long one seed may take in real seconds: a handler that never awaits stops virtual time for ever."""
FAILING_MAX, _SHOWN = 10, 60


@dataclass(slots=True)
class Tally:
    """What came of the seeds so far.

    Attributes:
        faults: How often each kind happened.
        transitions: How often each row of the core's table was used.
        violations: Outcomes of the failing seeds, by seed.
    """

    seeds: int = 0
    virtual_s: float = 0.0
    events: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: dict[int, Outcome] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def virtual_hours(self) -> float:
        """Of all worlds together."""
        return self.virtual_s / 3600

    def add(self, outcome: Outcome) -> None:
        """Count one seed."""
        self.seeds += 1
        self.virtual_s += outcome.virtual_s
        self.events += outcome.events
        self.faults.update(outcome.counts)
        self.transitions.update(outcome.transitions)
        if not outcome.ok:
            self.violations[outcome.seed] = outcome

    def unreached(self) -> list[tuple[str, str, str]]:
        """Rows of the core's table that no seed used: state, signal, next state."""
        return [(*row, state) for row, state in TRANSITIONS.items() if not self.transitions[row]]


def unreachable(app: App) -> dict[tuple[State, Signal], str]:
    """Rows of the core's table that no seed of this app can use, each with the reason."""
    bound = [each for name in app.services for each in app.bound(name)]
    found = {}
    for row, next_ in TRANSITIONS.items():
        state, signal = row
        if State.WAITING in (state, next_) and not any(isinstance(each.handler.retry, Delayed) for each in bound):
            found[row] = "no handler has retry=Delayed(...)"
        elif (signal is Signal.SKIPPED or row == (State.RUNNING, Signal.COMMITTED)) and not any(
            each.transacts for each in bound
        ):
            found[row] = "no handler takes a transaction"
    return found


def find(target: str) -> Simulation:
    """The Simulation at MODULE:NAME, modules of the current folder included.

    Raises:
        ConfigurationError: There is none; the message says what is missing.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConfigurationError(f"{target!r} is no MODULE:NAME; write for example shop.simulation:simulation")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ChoreoError:
        raise
    except Exception as error:
        said = f"{error}; is it below this folder?" if isinstance(error, ModuleNotFoundError) else _told(error)
        raise ConfigurationError(f"importing {module_name} failed: {said}") from error
    found = getattr(module, name, None)
    if not isinstance(found, Simulation):
        said = "has no such name" if found is None else f"is a {type(found).__name__} and no Simulation"
        others = [f"{module_name}:{each}" for each, value in vars(module).items() if isinstance(value, Simulation)]
        raise ConfigurationError(f"{target} {said}; " + (f"there is {', '.join(others)}" if others else "name one"))
    return found


def run_seeds(
    target: str,
    seeds: Iterable[int],
    *,
    changes: Mapping[str, Any] | None = None,
    processes: int = 1,
    minutes_max: float | None = None,
    failing_max: int = FAILING_MAX,
    progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """Run seeds until there are no more, the time is over or `failing_max` of them have failed.

    Args:
        target: MODULE:NAME of the Simulation; the processes import it.
        changes: Fields of it to be replaced, such as `faults` and `pair`.
        processes: How many at once; >= 1.
        minutes_max: No seed is begun later than this.
        progress: Called after each seed.

    Raises:
        Unsimulated: A handler reached for the real world.
        ChoreoError: A seed could not be run: its checker or its process failed.
    """
    tally, begun_s, waiting = Tally(), time.monotonic(), iter(seeds)
    until_s = begun_s + 60 * minutes_max if minutes_max is not None else float("inf")
    children: list[_Child] = []
    try:
        for seed in islice(waiting, processes):
            children.append(_Child(target, changes or {}))
            children[-1].give(seed)
        while busy := [each for each in children if each.seed is not None]:
            ready = wait([each.pipe for each in busy], SEED_S_MAX)
            for child in [each for each in busy if each.pipe in ready] or busy:
                tally.add(child.take())
                tally.elapsed_s = time.monotonic() - begun_s
                if progress is not None:
                    progress(tally)
                more = time.monotonic() < until_s and len(tally.violations) < failing_max
                for next_ in islice(waiting, int(more)):
                    child.give(next_)
    finally:
        for child in children:
            child.end()
    return tally


def check_twice(target: str, seed: int, *, changes: Mapping[str, Any] | None = None) -> str | None:
    """Run a seed in two processes: None if their histories and logs are the same bytes, else where they first differ.

    What differs did not come of the seed: `datetime.now()` or `uuid4()` in a handler, or the order of a set.
    """
    children = [_Child(target, changes or {}) for _ in range(2)]
    try:
        for child in children:
            child.give(seed, in_full=True)
        first, second = (child.take() for child in children)
    finally:
        for child in children:
            child.end()
    return first_difference(first, second)


def first_difference(first: Sequence[str], second: Sequence[str]) -> str | None:
    """Number and text of the first line that differs, about where it does; None if none does."""
    for number in range(max(len(first), len(second))):
        one, other = (each[number] if number < len(each) else "(no more lines)" for each in (first, second))
        if one != other:
            at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
            shown = [each[max(0, at - _SHOWN) : at + _SHOWN] for each in (one, other)]
            return f"line {number + 1} was {shown[0]!r} and then {shown[1]!r}"
    return None


class _Child:
    """A process that runs one seed at a time."""

    def __init__(self, target: str, changes: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")  # no threads, no imports and no hash seed of ours
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, changes), daemon=True)
        self._process.start()
        theirs.close()
        self.seed: int | None = None

    def give(self, seed: int, *, in_full: bool = False) -> None:
        """Let it run a seed; with `in_full` the answer is lines, else an Outcome."""
        self.seed = seed
        self.pipe.send((seed, in_full))

    def take(self) -> Any:
        """The answer, waited for; an error in it is raised."""
        try:
            if not self.pipe.poll(SEED_S_MAX):
                raise ChoreoError(f"seed {self.seed} takes more than {SEED_S_MAX:g} s: does a handler loop for ever?")
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(1.0)
            raise ChoreoError(
                f"the process that ran seed {self.seed} ended with exit code {self._process.exitcode}"
            ) from None
        self.seed = None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """An idle one ends when nobody asks any more, a busy one is killed."""
        self.pipe.close()
        if self.seed is None:
            self._process.join(1.0)
        self._process.kill()
        self._process.join()


def _serve(pipe: "Connection[Any, Any]", target: str, changes: Mapping[str, Any]) -> None:
    """Run what is asked for until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    while True:
        try:
            seed, in_full = pipe.recv()
        except EOFError:
            return
        try:
            simulation = replace(find(target), **changes)
            pipe.send(_lines(simulation, seed) if in_full else _brief(simulation.run(seed)))
        except (Unsimulated, ConfigurationError) as error:
            pipe.send(error)
        except Exception as error:
            pipe.send(ChoreoError(f"seed {seed}: {_told(error)}"))


def _brief(outcome: Outcome) -> Outcome:
    """Without the history, if all went well: nobody reads it."""
    return replace(outcome, history=(), text="") if outcome.ok else outcome


def _lines(simulation: Simulation, seed: int) -> list[str]:
    """All that is on the log in the end, where a difference can be read, and the history."""
    log: list[str] = []

    def contents(world: World) -> None:
        for topic, partition, offset, key, value, headers, _ in world.log.scan(world.log.specs):
            log.append(f"{topic}/{partition}@{offset} {key!r} {value!r} {headers!r}")

    outcome = replace(simulation, checkers=(*simulation.checkers, contents)).run(seed)
    return [*log, *outcome.text.splitlines()]


def _told(error: Exception) -> str:
    """In one line, with the last line of code it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
