"""`choreo instances list | show | fire-timer | set-state | migrate`: instances of processes, for their operator."""

import getpass
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from choreo.cli.console import FAILED, AsJson, Target, err, load_app, out, print_json, reported, run_async
from choreo.errors import ChoreoError, ConfigurationError
from choreo.flow.drawing import moment, printable
from choreo.instances import Instances, Intervention, OperatedStore
from choreo.looking import connected, status
from choreo.process.interpreting import Process
from choreo.process.operating import Hand, fire_timer, set_state
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
        process = _process(target, which)

        async def listed(opened: OperatedStore) -> list[dict[str, Any]]:
            found = await opened.instances(process.name, state=state, after=after, limit=limit)
            return [_as_dict(status(process, each)) for each in found]

        _tell(_asked(process, store, broker, listed), ("key", "version", "state", "ended", "updated"), as_json)
        return
    rows: list[dict[str, Any]] = []
    for process in [_process(target, which)] if which is not None else _processes(target):

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

        _asked(process, store, broker, counted)
    _tell(rows, ("process", "version", "state", "ended", "instances", "in this build"), as_json)


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
    process = _process(target, which)

    async def looked(opened: OperatedStore) -> dict[str, Any] | None:
        found = await opened.instance(process.name, key)
        if found is None:
            return None
        done = await opened.interventions(process.name, key)
        return _as_dict(status(process, *found)) | {"by hand": [each._asdict() for each in done]}

    found = _asked(process, store, broker, looked)
    if found is None:
        raise ChoreoError(f"there is no instance {key} of {process.name}; `choreo instances list` counts those there")
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None)
    for name in ("key", "version", "state", "updated", "correlation_id"):
        table.add_row(name, _shown(found[name] or ("(not begun)" if name == "state" else "")))
    for name, value in found["fields"].items():
        table.add_row(f"  {_shown(name)}", _shown(value))
    for name, due in found["timers"].items():
        table.add_row(f"timer {_shown(name)}", f"due {_shown(due)}")
    for type_ in found["deferred"]:
        table.add_row("waits", _shown(type_))
    for each in found["by hand"]:
        when = moment(each["at_ms"])
        table.add_row("by hand", f"{when} {_shown(each['who'])}: {_shown(each['what'])} ({_shown(each['why'])})")
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
    process, hand = _process(target, which), _hand(reason, by, dry_run=dry_run)
    _intervene(
        partial(_asked, process, store, broker),
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
    process, hand = _process(target, which), _hand(reason, by, dry_run=dry_run)
    _intervene(
        partial(_asked, process, store, broker),
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
    process, hand = _process(target, which), _hand(reason, by, dry_run=dry_run)
    version = to or process.newest.definition.version
    if not dry_run:
        _confirm(f"Move the instances of {process.name} to v{version}?", yes=yes, as_json=as_json)
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

    _tell_moved(_asked(process, store, broker, moving), dry_run=dry_run, as_json=as_json)


def _tell_moved(done: Migrated, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        ways = [
            {"from": {"version": v, "state": state}, "to": {"version": to, "state": new}, "instances": number}
            for (v, state, to, new), number in sorted(done.ways.items())
        ]
        left = [{"key": key, "reason": reason} for key, reason in done.left]
        print_json(
            {
                "ok": not done.left_count,
                "dry_run": dry_run,
                "moved": ways,
                "left": left,
                "left_count": done.left_count,
            }
        )
    else:
        for (v, state, to_, new), number in sorted(done.ways.items()):
            said = "would go" if dry_run else "went"
            out().print(f"{number:,} {said} from v{v} {_shown(state)} to v{to_} {_shown(new)}", highlight=False)
        for key, reason in done.left:
            err().print(f"[yellow]stays[/] {_shown(key)}: {_shown(reason)}", highlight=False)
        if done.left_count > len(done.left):
            err().print(f"and {done.left_count - len(done.left):,} more stay as they are", highlight=False)
        if not done.count and not done.left_count:
            out().print("there is nothing to move", highlight=False)
    if done.left_count:
        raise typer.Exit(FAILED)


class _Undone(ChoreoError):
    """A dry run is rolled back."""


def _intervene(
    ask: Callable[[Callable[[OperatedStore], Awaitable[Any]]], Any],
    change: Callable[[Instances], Intervention],
    question: str,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Do it once as a dry run, which finds what is wrong before anybody is asked; then do it."""
    tried: list[Intervention] = []

    def trying(held: Instances) -> NoReturn:
        tried.append(change(held))
        raise _Undone

    async def dry(opened: OperatedStore) -> None:
        try:
            await opened.intervene(trying)
        except _Undone:
            pass

    ask(dry)
    done = tried[-1]
    if not dry_run:
        _confirm(question, yes=yes, as_json=as_json)
        (done,) = ask(lambda opened: opened.intervene(lambda held: [change(held)]))
    if as_json:
        print_json({"dry_run": dry_run, "what": done.what, "key": done.key, "process": done.process, "who": done.who})
    else:
        out().print(f"{'would do' if dry_run else 'done'}: {_shown(done.what)}", highlight=False)


def _asked(
    process: Process, store: str | None, broker: str | None, ask: Callable[[OperatedStore], Awaitable[Any]]
) -> Any:
    async def opened() -> Any:
        async with connected(process, store=store, broker=broker) as found:
            return await ask(found)

    return run_async(opened())


def _processes(target: str) -> list[Process]:
    found = list(load_app(target).processes.values())
    if not found:
        raise ConfigurationError(f"{target} has no process manager and no saga")
    return found


def _process(target: str, name: str | None) -> Process:
    found = {each.name: each for each in _processes(target)}
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        said = "say which" if name is None else f"there is no process {name!r}"
        raise ConfigurationError(f"{said}: --process {' or '.join(found)}")
    return found[name]


def _hand(reason: str | None, by: str | None, *, dry_run: bool) -> Hand:
    if not reason and not dry_run:
        raise ConfigurationError("say why: --reason TEXT; it is kept with what was done")
    return Hand(by or getpass.getuser(), reason or "")


def _confirm(question: str, *, yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json:
        raise ConfigurationError("with --json nobody is asked: give --yes, or --dry-run")
    typer.confirm(question, abort=True, err=True)


def _as_dict(found: Any) -> dict[str, Any]:
    names = ("key", "version", "state", "ended", "fields", "timers", "deferred", "correlation_id", "updated")
    return {name: getattr(found, name) for name in names}


def _tell(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json([{name.replace(" ", "_"): value for name, value in row.items()} for row in rows])
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_shown(row[name]) for name in columns))
    out().print(table)


def _shown(value: Any) -> str:
    """For a terminal: what a key or a field holds is neither markup nor a control sequence."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return moment(value.timestamp() * 1000)
    return escape(printable(str(value)))
