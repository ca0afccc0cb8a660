"""What commands that order replays share: who orders, asking first, sending with a bar, and saying what was done."""

import getpass
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from choreo.cli.console import FAILED, err, fail, out, print_json, require_log, run_async
from choreo.errors import ChoreoError, ConfigurationError
from choreo.opening import open_transport
from choreo.ports import Transport
from choreo.runtime.clock import SystemClock
from choreo.runtime.ordering import Operator, Orders, send
from choreo.runtime.replaying import Mode

MODES = ("if-not-done", "force")
DONE = {"replay": "replayed", "drop": "dropped", "release": "released", "skip": "skipped"}
"""What is said of an order when it is given."""

ModeOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(MODES), help="Once, whatever happens; or again, with ids of its own for what is emitted."
    ),
]
Rate = Annotated[float | None, typer.Option(min=0.001, help="Events a second at most.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
By = Annotated[str | None, typer.Option(help="Who orders it, for the record; your login and this host unless given.")]
Note = Annotated[str, typer.Option(help="Why, for the record.")]
Run = Annotated[
    str | None, typer.Option(help="Go on with the --mode force of this id, and repeat nothing it has sent.")
]


@asynccontextmanager
async def opened(broker: str) -> AsyncIterator[Transport]:
    """The broker, which must have a log already."""
    require_log(broker)
    transport = open_transport(broker)
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()


def mode_of(text: str) -> Mode:
    """The mode that was asked for.

    Raises:
        ConfigurationError: There is none such.
    """
    if text == "if-not-done":
        return "if-not-done"
    if text == "force":
        return "force"
    raise ConfigurationError(f"--mode {text}: write {' or '.join(MODES)}")


def operator(by: str | None, note: str, run: str | None, mode: str) -> Operator:
    """Who orders.

    Raises:
        ConfigurationError: `run` is given without a `force` to go on with.
    """
    if run is not None and mode != "force":
        raise ConfigurationError("--run goes on with a --mode force; --mode if-not-done repeats nothing anyway")
    name = by or f"{_login()}@{socket.gethostname()}"
    return Operator(name, note) if run is None else Operator(name, note, run)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this uid, as in many containers
        return "unknown"


def carry_out(
    broker: str,
    orders: Orders,
    who: Operator,
    *,
    mode: Mode | Literal["release", "skip"],
    rate: float | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Say what is to be done, ask, do it, and say what was done. Exit 1 if something that was meant cannot be."""
    count, verb = len(orders.records), mode if mode in DONE else "replay"
    if not as_json:
        _say(orders, verb, dry_run)
        if mode == "force" and count and not dry_run:
            err().print(f"if it is interrupted, go on with --run {escape(who.run)}", highlight=False)
    took_s = 0.0
    if count and not dry_run:
        _ask(f"{verb} {count:,}?", yes)
        begun_s = time.monotonic()
        try:
            run_async(_send(broker, orders, rate))
        except ChoreoError as error:
            again = "--mode force --run " + who.run if mode == "force" else "the same command"
            fail(f"{error}; nothing is repeated if you go on with {again}")
        took_s = time.monotonic() - begun_s
    done = 0 if dry_run else count
    if as_json:
        print_json(_told(orders, who, mode, done, took_s))
    elif done:
        speed = f" in {took_s:.1f} s, {done / max(took_s, 0.001):,.0f} a second" if verb == "replay" else ""
        out().print(f"[green]{done:,} {DONE[verb]}[/]{speed}", highlight=False)
    if orders.impossible:
        raise typer.Exit(FAILED)


def _told(orders: Orders, who: Operator, mode: str, done: int, took_s: float) -> dict[str, Any]:
    return {
        "mode": mode,
        "by": who.by,
        "run": who.run if mode == "force" else None,
        "selected": len(orders.records),
        "done": done,
        "handlers": dict(orders.handlers),
        "left_out": dict(orders.left_out),
        "impossible": dict(orders.impossible),
        "elapsed_s": round(took_s, 3),
    }


def _say(orders: Orders, verb: str, dry_run: bool) -> None:
    would = f"would {verb}" if dry_run else f"to {verb}"
    for handler, count in orders.handlers.items():
        out().print(f"{would}: {count:,} of {escape(handler)}", highlight=False)
    for why, count in orders.left_out.items():
        out().print(f"[dim]left out: {count:,}, {escape(why)}[/]", highlight=False)
    for why, count in orders.impossible.items():
        out().print(f"[red]not possible: {count:,}, {escape(why)}[/]", highlight=False)
    if not orders.records:
        out().print(f"nothing to {verb}", highlight=False)


def _ask(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError("there is no terminal to ask at: say --yes, or look first with --dry-run")
    if not typer.confirm(question, err=True):
        raise typer.Exit(FAILED)


async def _send(broker: str, orders: Orders, rate: float | None) -> None:
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(TextColumn("sent"), *columns, console=err(), transient=True) as progress:
        task = progress.add_task("", total=len(orders.records))
        async with opened(broker) as transport:
            await send(
                transport, orders.records, SystemClock(), rate=rate, sent=lambda count: progress.advance(task, count)
            )
