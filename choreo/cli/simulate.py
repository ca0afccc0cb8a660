"""`choreo simulate`: an app through many bad days, each from its seed; of one that went wrong, how and why."""

import os
from typing import Annotated

import typer

from choreo.cli.console import FAILED, AsJson, reported
from choreo.errors import ConfigurationError


@reported
def simulate(
    target: Annotated[str, typer.Argument(metavar="MODULE:NAME", help="Where the Simulation is.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 100,
    first: Annotated[int, typer.Option("--from", help="The first of them.")] = 1,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Begin no seed later than this.")] = None,
    faults: Annotated[
        str | None, typer.Option(metavar="KIND,...", help="Instead of its own: all, none, or such as crash,pause.")
    ] = None,
    pair: Annotated[
        str | None, typer.Option(metavar="PAIR", help="Instead of its own: embedded, outbox, lease or changelog.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="At once; one a processor unless given.")] = None,
    seed: Annotated[int | None, typer.Option(help="Run this one and tell its story.")] = None,
    allowed: Annotated[
        str | None, typer.Option(metavar="ID,...", help="With --seed: these of its faults and no other.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run seeds of a Simulation; exit 1 if one violates a promise, with its shortest fault schedule and its story."""
    from choreo.cli.simulating import run  # only now: the other commands do not wait for it to be imported

    if allowed is not None and seed is None:
        raise ConfigurationError("--allowed names faults of one seed: give --seed, too")
    try:
        ok = run(
            target,
            range(first, first + seeds),
            minutes=minutes,
            faults=faults,
            pair=pair,
            processes=min(processes or os.cpu_count() or 1, seeds),
            seed=seed,
            allowed=allowed,
            as_json=as_json,
        )
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if not ok:
        raise typer.Exit(FAILED)
