"""What the commands of `choreo instances` share: which process and store, asking before, telling after."""

import getpass
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from choreo.cli.console import FAILED, err, load_app, out, print_json, run_async
from choreo.errors import ChoreoError, ConfigurationError
from choreo.flow.drawing import moment, printable
from choreo.instances import Instances, Intervention, OperatedStore
from choreo.looking import connected
from choreo.process.interpreting import Process
from choreo.process.operating import Hand
from choreo.runtime.migrating import Migrated


def tell_moved(done: Migrated, *, dry_run: bool, as_json: bool) -> None:
    """What was moved, and what stays; exit 1 if anything does."""
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
            out().print(f"{number:,} {said} from v{v} {shown(state)} to v{to_} {shown(new)}", highlight=False)
        for key, reason in done.left:
            err().print(f"[yellow]stays[/] {shown(key)}: {shown(reason)}", highlight=False)
        if done.left_count > len(done.left):
            err().print(f"and {done.left_count - len(done.left):,} more stay as they are", highlight=False)
        if not done.count and not done.left_count:
            out().print("there is nothing to move", highlight=False)
    if done.left_count:
        raise typer.Exit(FAILED)


class _Undone(ChoreoError):
    """A dry run is rolled back."""


def intervene(
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
        confirm(question, yes=yes, as_json=as_json)
        (done,) = ask(lambda opened: opened.intervene(lambda held: [change(held)]))
    if as_json:
        print_json({"dry_run": dry_run, "what": done.what, "key": done.key, "process": done.process, "who": done.who})
    else:
        out().print(f"{'would do' if dry_run else 'done'}: {shown(done.what)}", highlight=False)


def asked(
    process: Process, store: str | None, broker: str | None, ask: Callable[[OperatedStore], Awaitable[Any]]
) -> Any:
    """What `ask` says of the store, which is open meanwhile."""

    async def opened() -> Any:
        async with connected(process, store=store, broker=broker) as found:
            return await ask(found)

    return run_async(opened())


def processes_of(target: str) -> list[Process]:
    """Of the app.

    Raises:
        ConfigurationError: It has none.
    """
    found = list(load_app(target).processes.values())
    if not found:
        raise ConfigurationError(f"{target} has no process manager and no saga")
    return found


def process_of(target: str, name: str | None) -> Process:
    """The one of that name, or the only one.

    Raises:
        ConfigurationError: There is no such process, or one has to be named.
    """
    found = {each.name: each for each in processes_of(target)}
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        said = "say which" if name is None else f"there is no process {name!r}"
        raise ConfigurationError(f"{said}: --process {' or '.join(found)}")
    return found[name]


def hand_of(reason: str | None, by: str | None, *, dry_run: bool) -> Hand:
    """Who does it, and why.

    Raises:
        ConfigurationError: No reason is given, and it is no dry run.
    """
    if not reason and not dry_run:
        raise ConfigurationError("say why: --reason TEXT; it is kept with what was done")
    return Hand(by or getpass.getuser(), reason or "")


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Ask, unless that was answered before; no ends the command."""
    if yes:
        return
    if as_json:
        raise ConfigurationError("with --json nobody is asked: give --yes, or --dry-run")
    typer.confirm(question, abort=True, err=True)


def as_dict(found: Any) -> dict[str, Any]:
    """A status for programs: all but the instance, whose fields it has."""
    names = ("key", "version", "state", "ended", "fields", "timers", "deferred", "correlation_id", "updated")
    return {name: getattr(found, name) for name in names}


def tell(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    """Rows as a table, or as JSON."""
    if as_json:
        print_json([{name.replace(" ", "_"): value for name, value in row.items()} for row in rows])
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(shown(row[name]) for name in columns))
    out().print(table)


def shown(value: Any) -> str:
    """For a terminal: what a key or a field holds is neither markup nor a control sequence."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return moment(value.timestamp() * 1000)
    return escape(printable(str(value)))
