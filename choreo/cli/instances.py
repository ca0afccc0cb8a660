"""`choreo instances list | show | fire-timer | set-state | migrate`: instances of processes, for their operator."""

from functools import partial
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from choreo.cli.console import AsJson, Target, err, out, print_json, reported
from choreo.cli.intervening import (
    as_dict,
    asked,
    confirm,
    hand_of,
    intervene,
    process_of,
    processes_of,
    shown,
    tell,
    tell_moved,
)
from choreo.errors import ChoreoError
from choreo.flow.drawing import moment
from choreo.instances import OperatedStore
from choreo.looking import status
from choreo.process.interpreting import Process
from choreo.process.operating import fire_timer, set_state
from choreo.runtime.migrating import Migrated, waiting
from choreo.runtime.migrating import migrate as move_all

instances = typer.Typer(help="Look at instances of processes, and change them by hand.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(metavar="KEY", help="The instance's, such as E-1.")]
Which = Annotated[str | None, typer.Option("--process", help="Which one; not needed where the app has one.")]
Store = Annotated[str | None, typer.Option(envvar="CHOREO_STORE", help="postgresql://... or sqlite:PATH.")]
Broker = Annotated[str | None, typer.Option(envvar="CHOREO_BROKER", help="embedded:PATH, whose file holds them.")]
Reason = Annotated[str | None, typer.Option(help="Why: it is kept with what was done.")]
By = Annotated[str | None, typer.Option(help="Who: the system's user unless given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, and say what would be done.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@instances.command("list")
@reported
def list_(
    target: Target,
    which: Which = None,
    state: Annotated[str | None, typer.Option(help="The instances in this state, one by one.")] = None,
    keys: Annotated[bool, typer.Option("--keys", help="The instances one by one, in any state.")] = False,
    after: Annotated[str, typer.Option(help="Of those one by one, the ones above this key.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="And at most so many.")] = 100,
    store: Store = None,
    broker: Broker = None,
    as_json: AsJson = False,
) -> None:
    """How many instances there are by version and state; or, with --state or --keys, which."""
    if state is not None or keys:
        process = process_of(target, which)

        async def listed(opened: OperatedStore) -> list[dict[str, Any]]:
            found = await opened.instances(process.name, state=state, after=after, limit=limit)
            return [as_dict(status(process, each)) for each in found]

        tell(asked(process, store, broker, listed), ("key", "version", "state", "ended", "updated"), as_json)
        return
    rows: list[dict[str, Any]] = []
    for process in [process_of(target, which)] if which is not None else processes_of(target):

        async def counted(opened: OperatedStore, process: Process = process) -> None:
            for each in await opened.census(process.name):
                if each.timer is None:
                    version = process.versions.get(each.version)
                    known = version is not None and (not each.state or version.has(each.state))
                    rows.append(
                        {
                            "process": process.name,
                            "version": each.version,
                            "state": each.state,
                            "ended": each.ended,
                            "instances": each.number,
                            "in this build": known or each.ended,
                        }
                    )

        asked(process, store, broker, counted)
    tell(rows, ("process", "version", "state", "ended", "instances", "in this build"), as_json)


@instances.command()
@reported
def show(
    target: Target,
    key: Key,
    which: Which = None,
    store: Store = None,
    broker: Broker = None,
    as_json: AsJson = False,
) -> None:
    """One instance: its state, fields, timers, events that wait, and what was done to it by hand."""
    process = process_of(target, which)

    async def looked(opened: OperatedStore) -> dict[str, Any] | None:
        found = await opened.instance(process.name, key)
        if found is None:
            return None
        done = await opened.interventions(process.name, key)
        return as_dict(status(process, *found)) | {"by hand": [each._asdict() for each in done]}

    found = asked(process, store, broker, looked)
    if found is None:
        raise ChoreoError(f"there is no instance {key} of {process.name}; `choreo instances list` counts those there")
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None)
    for name in ("key", "version", "state", "updated", "correlation_id"):
        table.add_row(name, shown(found[name] or ("(not begun)" if name == "state" else "")))
    for name, value in found["fields"].items():
        table.add_row(f"  {shown(name)}", shown(value))
    for name, due in found["timers"].items():
        table.add_row(f"timer {shown(name)}", f"due {shown(due)}")
    for type_ in found["deferred"]:
        table.add_row("waits", shown(type_))
    for each in found["by hand"]:
        when = moment(each["at_ms"])
        table.add_row("by hand", f"{when} {shown(each['who'])}: {shown(each['what'])} ({shown(each['why'])})")
    out().print(table)


@instances.command("fire-timer")
@reported
def fire(
    target: Target,
    key: Key,
    timer: Annotated[str, typer.Argument(metavar="TIMER", help="Its name, as `show` tells it.")],
    which: Which = None,
    store: Store = None,
    broker: Broker = None,
    reason: Reason = None,
    by: By = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let a timer be due now: the service fires it, within a second or so."""
    process, hand = process_of(target, which), hand_of(reason, by, dry_run=dry_run)
    intervene(
        partial(asked, process, store, broker),
        lambda held: fire_timer(held, process, key, timer, hand),
        f"Let the timer {timer} of {process.name} {key} be due now?",
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )


@instances.command("set-state")
@reported
def put_in_state(
    target: Target,
    key: Key,
    state: Annotated[str, typer.Argument(metavar="STATE", help="One of the definition the instance runs under.")],
    entry: Annotated[bool, typer.Option("--entry", help="The service also calls the state's entry.")] = False,
    which: Which = None,
    store: Store = None,
    broker: Broker = None,
    reason: Reason = None,
    by: By = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put an instance in a state: its timers are cancelled, and those of that state set, from now on."""
    process, hand = process_of(target, which), hand_of(reason, by, dry_run=dry_run)
    intervene(
        partial(asked, process, store, broker),
        lambda held: set_state(held, process, key, state, hand, entry=entry),
        f"Put {process.name} {key} in the state {state}?",
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )


@instances.command()
@reported
def migrate(
    target: Target,
    to: Annotated[int | None, typer.Option(help="The version; this build's newest unless given.")] = None,
    which: Which = None,
    store: Store = None,
    broker: Broker = None,
    reason: Reason = None,
    by: By = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Move instances in flight to a version, by its @migrate functions; exit 1 if some cannot be moved."""
    process, hand = process_of(target, which), hand_of(reason, by, dry_run=dry_run)
    version = to or process.newest.definition.version
    if not dry_run:
        confirm(f"Move the instances of {process.name} to v{version}?", yes=yes, as_json=as_json)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    async def moving(opened: OperatedStore) -> Migrated:
        total = waiting(await opened.census(process.name), version)
        with Progress(*columns, console=err(), disable=as_json) as progress:
            task = progress.add_task(f"{process.name} to v{version}", total=total)
            return await move_all(
                opened,
                process,
                version,
                None if dry_run else hand,
                lambda seen: progress.update(task, completed=seen),
            )

    tell_moved(asked(process, store, broker, moving), dry_run=dry_run, as_json=as_json)
