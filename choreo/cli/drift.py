"""`choreo drift`: what is declared against what the log, the stores or the traces show."""

import os
from dataclasses import replace
from typing import Annotated

import typer

from choreo.cli.capabilities import TARGETS_HELP, load_capability
from choreo.cli.console import (
    FAILED,
    MISUSED,
    AsJson,
    Store,
    err,
    fail,
    out,
    print_json,
    reported,
    run_async,
    seconds,
)
from choreo.cli.drifting import Look, from_broker, from_jaeger
from choreo.errors import ChoreoError, ConfigurationError
from choreo.flow.drift import Drift, compare
from choreo.flow.drift_findings import DRIFT_LEVEL_OF
from choreo.flow.drift_report import report
from choreo.flow.findings import silence


@reported
def drift(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="MODULE:APP | FILE.json ...", help=TARGETS_HELP)
    ] = None,
    broker: Annotated[
        str | None, typer.Option(envvar="CHOREO_BROKER", help="Look at its log: embedded:PATH or kafka://host:port.")
    ] = None,
    store: Store = None,
    jaeger: Annotated[str | None, typer.Option(metavar="URL", help="Look at its traces, and not at the log.")] = None,
    sampled: Annotated[
        float | None, typer.Option(help="Share of flows in the traces: 1 for all, 0.1 for a tenth.")
    ] = None,
    since: Annotated[str, typer.Option(help="How far to look back: 90s, 30m, 12h, 7d.")] = "24h",
    timeout: Annotated[str, typer.Option(help="What has not come of an event after this is missing.")] = "15m",
    topics: Annotated[str | None, typer.Option(help="More topics than those declared, with commas.")] = None,
    service: Annotated[list[str] | None, typer.Option(help="Judge these services only; may be repeated.")] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="ID[:EDGE]", help="Silence this finding; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what runs with what is declared. Exit 1 while a violation stands, 2 if it could not be evaluated."""
    try:
        look = Look(
            load_capability(targets or []), seconds(since), os.environ.get("CHOREO_TOPIC_PREFIX", ""), sampled
        )
        if sampled is not None and (jaeger is None or not 0.0 < sampled <= 1.0):
            raise ConfigurationError(
                "--sampled is of traces, a share above 0 and at most 1: --jaeger URL --sampled 0.1"
            )
        silence([], ignore or [], DRIFT_LEVEL_OF)  # a typing error is said before a long look
        look.capability.of(*service or ())
        if jaeger is not None:
            seen = from_jaeger(look, jaeger)
        elif broker is not None:
            seen = run_async(from_broker(look, broker, store, [name for name in (topics or "").split(",") if name]))
        else:
            raise ConfigurationError("say where to look: --broker URL [--store URL], or --jaeger URL")
        if not seen.events:
            raise ConfigurationError(f"nothing was seen in the last {since}; look back further with --since")
        found = compare(look.capability, seen, timeout_s=seconds(timeout), services=service or ())
        stand, idle = silence(found.findings, ignore or [], DRIFT_LEVEL_OF)
    except ChoreoError as error:
        fail(str(error), MISUSED)  # 1 is for drift alone: whoever asks in CI must not take an outage for it
    for entry in idle:
        err().print(f"--ignore {entry} silences nothing; it can go", markup=False, highlight=False)
    _print(replace(found, findings=stand, silenced=len(found.findings) - len(stand)), as_json)


def _print(found: Drift, as_json: bool) -> None:
    if as_json:
        print_json(found.as_dict())
    else:
        out().print(report(found), highlight=False)
    if found.violated:
        raise typer.Exit(FAILED)
