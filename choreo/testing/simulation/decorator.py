"""`@simulate(app, ...)` of a test: what it asserts must hold in the world of every seed, once that has come to rest.

pytest is not needed: the decorated test is a function that raises AssertionError. Where pytest is there it is told.
"""

import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any, Protocol, cast

from choreo.app import App
from choreo.errors import ConfigurationError, DeclarationError
from choreo.testing.simulation.checkers import Checker
from choreo.testing.simulation.faults import KINDS, Faults
from choreo.testing.simulation.seeds import first_difference
from choreo.testing.simulation.shrinking import shrink
from choreo.testing.simulation.simulation import Outcome, Simulation, Workload
from choreo.testing.simulation.story import VIOLATIONS_MAX, tell
from choreo.testing.simulation.world import World

SEEDS, SEED, ALLOWED = "CHOREO_SEEDS", "CHOREO_SEED", "CHOREO_ALLOWED"
"""Variables: how many seeds; this one and no other; of that one these faults and no other."""
SAID_MAX = 500
"""Characters of an assertion's message."""

Test = Callable[..., Iterable[str] | None]


class SimulatedTest(Protocol):
    """A decorated test.

    Attributes:
        simulation: What it runs, with the test as the last checker; for `choreo simulate`, or to run one seed.
    """

    __name__: str
    simulation: Simulation

    def __call__(self, *arguments: Any, **fixtures: Any) -> None:
        """Run the seeds; the first that fails is shortened, told, and fails the test."""


def simulate(
    app: App,
    *,
    publish: Workload,
    seeds: int = 100,
    resources: Mapping[Any, Any] | None = None,
    pair: str = "outbox",
    faults: Faults | None = None,
    members: int = 2,
    partitions: int = 2,
    checkers: Sequence[Checker] = (),
    upgrade: App | None = None,
    metadata: Any = None,
    replays: bool = False,
) -> Callable[[Test], SimulatedTest]:
    """Make a test of a function that takes a `world` and asserts what must hold in it, after every seed.

    Parameters of the function beside `world` are fixtures. `CHOREO_SEEDS` runs another number of seeds,
    `CHOREO_SEED` one of them, with `CHOREO_ALLOWED` only these of its faults.

    Args:
        app: The app, unchanged.
        publish: Makes the events of one run from the randomness it is given.
        seeds: How many, from 1; >= 1.
        resources: Instead of the app's own; an instance is copied for each run. One of the app's own is not.
        pair: `outbox`, `embedded`, `lease` or `changelog`, see `PAIRS`.
        faults: How likely each kind is, if not as by default.
        members: Processes a service.
        partitions: Of each topic.
        checkers: What must hold beside choreo's own promises and the test.
        upgrade: The app of the next version, for `deploy`: out, back, and out in the end; by default the same again.
        metadata: SQLAlchemy's; its tables are in the database of every service.
        replays: Two operators replay all dead letters, again and again, and are interrupted.

    Raises:
        DeclarationError: The function takes no `world`, or is a coroutine function, which nobody would await.
    """
    if seeds < 1:
        raise DeclarationError(f"simulate(seeds={seeds}) would pass without a run; take at least one")
    faults = faults or Faults()
    simulation = Simulation(
        app, publish, resources, pair, members, partitions, faults, checkers, upgrade, metadata, replays
    )

    def decorate(test: Test) -> SimulatedTest:
        signature = _signature(test)

        @wraps(test)
        def simulated(*arguments: Any, **fixtures: Any) -> None:
            mine = _checked(simulation, partial(test, *arguments, **fixtures), test.__name__)
            if report := _run(mine, _seeds(seeds), _allowed(), partial(_replay, test)):
                _fail(report)

        decorated = cast(Any, simulated)
        decorated.__signature__ = signature
        decorated.simulation = _checked(simulation, test, test.__name__)
        return cast(SimulatedTest, decorated)

    return decorate


def _signature(test: Test) -> inspect.Signature:
    """Of the decorated test: without `world`, which pytest would look for among its fixtures."""
    if inspect.iscoroutinefunction(test):
        raise DeclarationError(f"{test.__name__} looks at a world that has come to rest: make it a plain def")
    signature = inspect.signature(test)
    parameters = dict(signature.parameters)
    if parameters.pop("world", None) is None:
        raise DeclarationError(f"{test.__name__} does not take the world: def {test.__name__}(world: World) -> None")
    return signature.replace(parameters=list(parameters.values()))


def _checked(simulation: Simulation, test: Callable[..., Iterable[str] | None], name: str) -> Simulation:
    """With the test as the last checker; what it asserts in vain is a violation."""

    def checker(world: World) -> Iterator[str]:
        try:
            yield from map(str, test(world=world) or ())
        except AssertionError as error:
            yield _said(error)

    checker.__name__ = name
    return replace(simulation, checkers=(*simulation.checkers, checker))


def _said(error: AssertionError) -> str:
    """In one line: its message without what pytest adds to it, or else the line of code."""
    text, *added = str(error).split("\nassert ")
    if not added and text.startswith("assert "):
        text = text.partition("\n")[0]
    if not text:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = frame.line or f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return " ".join(text.split())[:SAID_MAX]


# ---- running


def _run(
    simulation: Simulation,
    seeds: Sequence[int],
    allowed: list[str] | None,
    replay: Callable[[int, Iterable[str] | None], str],
) -> str | None:
    """Run seeds until one fails, and say how and why it does; None if none does."""
    for number, seed in enumerate(seeds):
        outcome = _one(simulation, seed, allowed)
        missed = [each for each in allowed or () if each not in outcome.faults]
        remark = f"allowed, and did not happen: {', '.join(missed)}\n" if missed else ""
        if not outcome.ok:
            shortest = shrink(simulation.run, outcome) if allowed is None else outcome
            fine = f", after {number} that were fine" if number else ""
            return f"{remark}seed {seed}{fine}: {_told(outcome, shortest, replay(seed, shortest.faults))}"
        if len(seeds) == 1:
            print(f"{remark}{tell(outcome).text().plain}", end="")
        elif not number and (difference := _difference(simulation, outcome)):
            return f"not deterministic: seed {seed} twice: {difference}"
    return None


def _one(simulation: Simulation, seed: int, allowed: Iterable[str] | None) -> Outcome:
    try:
        return simulation.run(seed, allowed=allowed)
    except Exception as error:
        error.add_note(f"in seed {seed} of a simulation; run it alone with {SEED}={seed}")
        raise


def _difference(simulation: Simulation, outcome: Outcome) -> str | None:
    """Where the same seed in the same process differs; in another one, with other hashes, `choreo simulate` looks."""
    again = _one(simulation, outcome.seed, None)
    return first_difference(outcome.text.splitlines(), again.text.splitlines())


def _seeds(seeds: int) -> Sequence[int]:
    if (seed := _number(SEED)) is not None:
        return [seed]
    wanted = _number(SEEDS)
    if wanted is not None and wanted < 1:
        raise ConfigurationError(f"{SEEDS}={wanted} would let every simulation pass; it is at least 1")
    return range(1, 1 + (wanted or seeds))


def _allowed() -> list[str] | None:
    text = os.environ.get(ALLOWED)
    if text is None:
        return None
    if SEED not in os.environ:
        raise ConfigurationError(f"{ALLOWED} names faults of one seed: set {SEED}, too")
    return [each.strip() for each in text.split(",") if each.strip()]


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ConfigurationError(f"{variable} is {text!r}, and is to be a whole number") from None


# ---- telling


def _told(found: Outcome, shortest: Outcome, command: str) -> str:
    count = len(found.violations)
    lines = [f"{count} violation{'s' * (count > 1)}", *(f"    {each}" for each in found.violations[:VIOLATIONS_MAX])]
    lines.append(f"replay it: {command}")
    if not shortest.faults:
        lines.append("it needs no fault")
    else:
        lines.append(f"the shortest schedule, of {len(found.faults)} faults:")
        lines += [f"    {id_}: {KINDS[id_.partition('@')[0]]}" for id_ in shortest.faults]
    return "\n".join([*lines, tell(shortest).text().plain])


def _replay(test: Test, seed: int, allowed: Iterable[str] | None) -> str:
    """What to type to see the shortest schedule of a seed again."""
    node, _, _ = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")
    code = f"from {test.__module__} import {test.__name__}; {test.__name__}()"
    command = ["pytest", node] if node else ["python", "-c", code]
    return f"{SEED}={seed} {ALLOWED}={shlex.quote(','.join(allowed or ()))} {shlex.join(command)}"


def _fail(report: str) -> None:
    """Without a traceback, which would be of choreo's own code."""
    if "pytest" in sys.modules:
        sys.modules["pytest"].fail(report, pytrace=False)
    raise AssertionError(report)
