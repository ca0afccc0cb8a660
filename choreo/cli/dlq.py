"""`choreo dlq list | show | replay | drop | export`: dead letters of an app's services, and what to do about them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import orjson
import typer

from choreo.app import App
from choreo.cli.console import AsJson, Broker, Target, err, load_app, moment_ms, out, print_json, reported, run_async
from choreo.cli.ordering import By, DryRun, ModeOption, Note, Rate, Run, Yes, carry_out, mode_of, opened, operator
from choreo.errors import ConfigurationError
from choreo.runtime import letters as dead
from choreo.runtime.exporting import exported, shown, without_sensitive
from choreo.runtime.letters import Fate, Filter, Letter
from choreo.runtime.ordering import Operator, Orders, partitions_of_replays
from choreo.runtime.redriving import Reading, Redrive, read
from choreo.runtime.replaying import Mode

dlq = typer.Typer(
    help="Dead letters and parked keys: look at them, give them to the handler that failed once more, drop them.",
    no_args_is_help=True,
)

Service = Annotated[list[str] | None, typer.Option("--service", help="A service, again for more; all unless given.")]
Handler = Annotated[str | None, typer.Option(help="Of this handler, or service.handler; may hold *.")]
Reason = Annotated[str | None, typer.Option(help="Put aside for this reason, such as handler_failed.")]
Type = Annotated[str | None, typer.Option("--type", help="Events of this type; may hold *.")]
Key = Annotated[str | None, typer.Option(help="With this record key.")]
Since = Annotated[str, typer.Option(metavar="TIME", help="Put aside since then: 12h, 7d, or 2026-07-01T12:00Z.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Put aside before then.")]
StateOption = Annotated[str | None, typer.Option("--state", metavar="|".join(get_args(dead.State)))]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="As `list` prints them; all unless given.")]
SINCE = "30d"
HEADS = ("id", "put aside (UTC)", "handler", "type", "key", "reason", "state")
COLOURS = {"open": "red", "failed_again": "red", "replayed": "green", "dropped": "dim"}


@dlq.command("list")
@reported
def list_(
    target: Target,
    broker: Broker,
    service: Service = None,
    handler: Handler = None,
    reason: Reason = None,
    type_: Type = None,
    key: Key = None,
    since: Since = SINCE,
    until: Until = None,
    state: StateOption = None,
    limit: Annotated[int, typer.Option(min=0, help="Show the newest so many; 0 for all.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest last, with what has become of each."""
    app, wanted = load_app(target), _filter((), handler, reason, type_, key, since, until, state)
    reading = run_async(_read(app, broker, service, wanted))
    found = _matching(reading, wanted)
    if as_json:
        rows = [dead.as_dict(letter, reading.fate(letter)) for letter in found]
        print_json({"range": _range(reading), "missing_topics": reading.missing, "dead_letters": rows})
        return
    _print_range(reading, since)
    visible = found[-limit:] if limit else found
    if len(visible) < len(found):
        out().print(f"the newest {len(visible):,} of {len(found):,}; --limit 0 shows all", highlight=False)
    print_lines(HEADS, [_line(letter, reading.fate(letter)) for letter in visible])
    states = [reading.fate(letter).state for letter in found]
    counts = ", ".join(f"{states.count(each):,} {each.replace('_', ' ')}" for each in COLOURS if each in states)
    out().print(f"{len(found):,} dead letters{': ' if counts else ''}{counts}", highlight=False)


@dlq.command()
@reported
def show(
    target: Target,
    broker: Broker,
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `list` prints it: inventory.dlq/0@17.")],
    payload: Annotated[bool, typer.Option("--payload", help="The value too, *** for what is Sensitive.")] = False,
    reveal: Annotated[bool, typer.Option("--reveal", help="The value as it is, secrets included.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: its event, why it failed, where it came from, its headers, what has become of it."""
    app, wanted = load_app(target), Filter(ids=_ids([id_]))
    reading = run_async(_read(app, broker, None, wanted))
    (letter,) = _matching(reading, wanted)
    told = dead.as_dict(letter, reading.fate(letter))
    record = letter.record if reveal else without_sensitive(letter.record, app.classes_of(letter.type))
    headers = exported(record)["headers"]
    if as_json:
        more = {"headers": headers, **({"record": exported(record)} if payload or reveal else {})}
        print_json(told | more)
        return
    rows = [(name.replace("_", " "), str(told[name])) for name in told if name not in ("original", "orders")]
    rows.append(("original", letter.came_from))
    for header in headers:
        text = header.get("value", header.get("value_base64"))
        rows.append(("header", f"{header.get('name', header.get('name_base64'))}: {text}"))
    for each in told["orders"]:
        note = f": {each['note']}" if each["note"] else ""
        rows.append(("order", f"{each['mode']} by {each['by']} at {each['time']}{note}"))
    value = record.value or b""
    hidden = f"{len(letter.record.value or b''):,} bytes, shown with --payload"
    rows.append(("payload", value.decode("utf-8", "backslashreplace") if payload or reveal else hidden))
    for name, said in rows:
        out().print(f"[bold]{name:<15}[/] {shown(said)}", highlight=False)


@dlq.command()
@reported
def replay(
    target: Target,
    broker: Broker,
    ids: Ids = None,
    service: Service = None,
    handler: Handler = None,
    reason: Reason = None,
    type_: Type = None,
    key: Key = None,
    since: Since = SINCE,
    until: Until = None,
    mode: ModeOption = "if-not-done",
    rate: Rate = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    by: By = None,
    note: Note = "",
    run: Run = None,
    as_json: AsJson = False,
) -> None:
    """Give dead letters to the one handler that failed, once more. Exit 1 if one of them cannot be replayed."""
    app, wanted = load_app(target), _filter(ids or (), handler, reason, type_, key, since, until, None)
    chosen, who = mode_of(mode), operator(by, note, run, mode)
    orders = run_async(_orders(app, broker, service, wanted, chosen, who))
    carry_out(broker, orders, who, mode=chosen, rate=rate, dry_run=dry_run, yes=yes, as_json=as_json)


@dlq.command()
@reported
def drop(
    target: Target,
    broker: Broker,
    ids: Ids = None,
    service: Service = None,
    handler: Handler = None,
    reason: Reason = None,
    type_: Type = None,
    key: Key = None,
    since: Since = SINCE,
    until: Until = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    by: By = None,
    note: Note = "",
    as_json: AsJson = False,
) -> None:
    """Mark dead letters as dealt with. Nothing is deleted."""
    app, wanted = load_app(target), _filter(ids or (), handler, reason, type_, key, since, until, None)
    who = operator(by, note, None, "drop")
    orders = run_async(_orders(app, broker, service, wanted, "drop", who))
    carry_out(broker, orders, who, mode="drop", rate=None, dry_run=dry_run, yes=yes, as_json=as_json)


@dlq.command()
@reported
def export(
    target: Target,
    broker: Broker,
    ids: Ids = None,
    service: Service = None,
    handler: Handler = None,
    reason: Reason = None,
    type_: Type = None,
    key: Key = None,
    since: Since = SINCE,
    until: Until = None,
    state: StateOption = None,
    file: Annotated[Path | None, typer.Option("--out", help="A new file; standard output unless given.")] = None,
) -> None:
    """Write dead letters as JSON lines, byte for byte, payload and all: what is no UTF-8 is in base64."""
    app, wanted = load_app(target), _filter(ids or (), handler, reason, type_, key, since, until, state)
    reading = run_async(_read(app, broker, service, wanted))
    found = _matching(reading, wanted)
    lines = (
        orjson.dumps(dead.as_dict(letter, reading.fate(letter)) | {"record": exported(letter.record)})
        for letter in found
    )
    if file is None:
        for line in lines:
            typer.echo(line)
    else:
        try:
            with open(file, "xb") as stream:  # an export is not written over
                stream.writelines(line + b"\n" for line in lines)
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be written: {error.strerror}") from None
    err().print(f"{len(found):,} dead letters written", highlight=False)


async def _read(app: App, broker: str, services: Sequence[str] | None, wanted: Filter) -> Reading:
    plans = app.plans(services or list(app.services))
    async with opened(broker) as transport:
        return await read(transport, [plan.service for plan in plans], app.topic, since_ms=wanted.since_ms)


async def _orders(
    app: App, broker: str, services: Sequence[str] | None, wanted: Filter, mode: Mode, who: Operator
) -> Orders:
    reading = await _read(app, broker, services, wanted)
    letters = [each for each in _matching(reading, wanted) if each.service in app.services]
    concerned = [service for name, service in app.services.items() if any(name == each.service for each in letters)]
    async with opened(broker) as transport:
        partitions = await partitions_of_replays(transport, concerned, app.topic)
    return Redrive(app.services, app.topic, partitions, who, time.time()).letters(reading, letters, mode)


def _filter(
    ids: Sequence[str],
    handler: str | None,
    reason: str | None,
    type_: str | None,
    key: str | None,
    since: str,
    until: str | None,
    state: str | None,
) -> Filter:
    now_s = time.time()
    known = next((each for each in get_args(dead.State) if each == state), None)
    if state is not None and known is None:
        raise ConfigurationError(f"--state {state}: write {', '.join(get_args(dead.State))}")
    since_ms, until_ms = moment_ms(since, now_s), None if until is None else moment_ms(until, now_s)
    return Filter(_ids(ids), handler, reason, type_, key, known, 0 if ids else since_ms, until_ms)


def _ids(ids: Sequence[str]) -> frozenset[str]:
    for each in ids:
        if not dead.PLACE.match(each):
            raise ConfigurationError(f"{each!r} is no dead letter's id; `choreo dlq list` prints them: x.dlq/0@17")
    return frozenset(ids)


def _matching(reading: Reading, wanted: Filter) -> list[Letter]:
    found = [letter for letter in reading.letters if wanted.takes(letter, reading.fate(letter))]
    if missing := sorted(wanted.ids - {letter.id for letter in reading.letters}):
        raise ConfigurationError(
            f"there is no dead letter {', '.join(missing)}: see `choreo dlq list`; retention may have deleted it"
        )
    return found


def _range(reading: Reading) -> list[dict[str, Any]]:
    return [
        {"partition": name, "records": count, "first_offset": first, "last_offset": last}
        for name, (count, first, last) in reading.spans.items()
    ]


def _print_range(reading: Reading, since: str) -> None:
    spans = ", ".join(f"{name}@{first}..{last}" for name, (_, first, last) in sorted(reading.spans.items()))
    out().print(f"[dim]read since {shown(since)}: {shown(spans) or 'no record'}[/]", highlight=False)
    if reading.missing:
        missing = ", ".join(map(shown, reading.missing))
        err().print(f"the broker has no topic {missing}", style="yellow", highlight=False)


def _line(letter: Letter, fate: Fate) -> tuple[str, ...]:
    """What is said of one: id, when, handler, type, key, reason, state."""
    said = fate.state.replace("_", " ")
    if fate.orders:
        last = fate.orders[-1]
        said += f" by {last.by} {last.time[:16].replace('T', ' ')}"
    if fate.failed_as:
        said += f", now {fate.failed_as}"
    at = letter.told.get("time", "")[:19].replace("T", " ")
    name = f"{letter.service}.{letter.handler}"
    cells = (letter.id, at, name, letter.type, letter.key or "", letter.reason)
    return (*map(shown, cells), f"[{COLOURS[fate.state]}]{shown(said)}[/]")


def print_lines(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """In columns, and each on one line however narrow the terminal: ids are there to be copied."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows) if rows else ():
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        out().print("  ".join(cells).rstrip(), highlight=False, style="bold" if row is heads else None)
