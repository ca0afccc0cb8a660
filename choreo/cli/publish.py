"""`choreo publish`: one event from arguments, or many from JSON lines."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, BinaryIO

import orjson
import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from choreo.app import App
from choreo.cli.console import FAILED, AsJson, Broker, Target, err, load_app, out, print_json, reported, run_async
from choreo.errors import ChoreoError, ConfigurationError, DecodeError
from choreo.event import Event
from choreo.publisher import Publisher, Reference
from choreo.runtime.routing import PAYLOAD_BYTES_MAX

BATCH = 500
LINES_KEPT_MAX = 1000
LINES_SHOWN_MAX = 20

Line = tuple[int, Event | DecodeError]


@dataclass(slots=True)
class Outcome:
    """What became of a file. Of refused lines the first ones are kept, and all are counted by reason."""

    published: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    lines: list[tuple[int, DecodeError]] = field(default_factory=list)

    def refuse(self, number: int, error: DecodeError) -> None:
        """Note a line that is no event."""
        self.refused[error.reason] += 1
        if len(self.lines) < LINES_KEPT_MAX:
            self.lines.append((number, error))

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        lines = [{"line": number, "reason": each.reason, "detail": each.detail} for number, each in self.lines]
        refused = {"count": self.refused.total(), "by_reason": dict(self.refused), "lines": lines}
        return {"published": self.published, "refused": refused}

    def print(self) -> None:
        """For people: which lines were refused and why, never what is in them."""
        console = err()
        for number, error in self.lines[:LINES_SHOWN_MAX]:
            console.print(f"line {number} refused: {escape(str(error))}", highlight=False, style="yellow")
        if (more := self.refused.total() - LINES_SHOWN_MAX) > 0:
            console.print(f"and {more:,} more lines refused", style="yellow", highlight=False)


@reported
def publish(
    target: Target,
    broker: Broker,
    type_: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="Event type; with --file the start of the app's one flow.")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="FIELD=text, or FIELD:=JSON for what is no text."),
    ] = None,
    file: Annotated[str | None, typer.Option(metavar="FILE", help="JSON lines; - is standard input.")] = None,
    id_field: Annotated[
        str | None, typer.Option("--id", metavar="FIELD", help="Field that is the event's id.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish one event from arguments, or one for each JSON line. Exit 1 if any line was refused."""
    app = load_app(target)
    class_ = _class(app, type_, file)
    if id_field is not None and id_field not in class_.model_fields:
        raise ConfigurationError(
            f"--id {id_field}: {class_.event_type} has no such field; it has {', '.join(class_.model_fields)}"
        )
    if file is None:
        reference = run_async(_publish_one(app, broker, _event(class_, fields or ()), id_field))
        if as_json:
            print_json(reference._asdict())
        else:
            out().print(f"{class_.event_type} to {reference.topic}, correlation id {reference.correlation_id}")
        return
    if fields:
        raise ConfigurationError(f"give either --file or fields, not both: {fields[0]}")
    outcome = Outcome()
    try:
        run_async(_publish_file(app, broker, class_, file, id_field, outcome))
    except ChoreoError:
        outcome.print()
        err().print(f"{outcome.published:,} published before it failed", highlight=False)
        raise
    if as_json:
        print_json(outcome.as_dict())
    else:
        outcome.print()
        out().print(f"{outcome.published:,} published, {outcome.refused.total():,} lines refused", highlight=False)
    if outcome.refused:
        raise typer.Exit(FAILED)


def read_lines(stream: BinaryIO, class_: type[Event]) -> Iterator[Line]:
    """Each line's number, from 1, and its event or why it is none. No line is held that is longer than a payload."""
    number = 0
    while line := stream.readline(PAYLOAD_BYTES_MAX + 2):
        number += 1
        long = len(line.rstrip(b"\r\n")) > PAYLOAD_BYTES_MAX
        while long and line and not line.endswith(b"\n"):
            line = stream.readline(PAYLOAD_BYTES_MAX)
        try:
            if long:
                raise DecodeError("payload_too_large", f"the line has more than {PAYLOAD_BYTES_MAX} bytes")
            yield number, class_.from_payload(line.rstrip(b"\r\n"))
        except DecodeError as error:
            yield number, error


async def publish_batch(
    publisher: Publisher, lines: Sequence[Line], outcome: Outcome, id_field: str | None
) -> list[Reference]:
    """Publish what is an event and count what is none."""
    events: list[tuple[Event, str | None]] = []
    for number, found in lines:
        if isinstance(found, DecodeError):
            outcome.refuse(number, found)
        else:
            events.append((found, _id(found, id_field)))
    references = await publisher.publish_many(events) if events else []
    outcome.published += len(events)
    return references


async def _publish_one(app: App, broker: str, event: Event, id_field: str | None) -> Reference:
    async with _publisher(app, broker) as publisher:
        return await publisher.publish(event, id=_id(event, id_field))


async def _publish_file(
    app: App, broker: str, class_: type[Event], file: str, id_field: str | None, outcome: Outcome
) -> None:
    try:
        stream = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: ASYNC230
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    columns = TextColumn("{task.completed:,} lines"), BarColumn(), TextColumn("{task.percentage:.0f}%")
    with stream, Progress(*columns, TimeElapsedColumn(), console=err(), transient=True) as progress:
        size = os.fstat(stream.fileno()).st_size if file != "-" else 0
        lines, task, read = read_lines(stream, class_), progress.add_task("", total=None), 0
        async with _publisher(app, broker) as publisher:
            while batch := await asyncio.to_thread(lambda: list(islice(lines, BATCH))):
                await publish_batch(publisher, batch, outcome, id_field)
                read += len(batch)
                expected = size / max(1, stream.tell()) * read if size else None
                progress.update(task, completed=read, total=expected)


def _publisher(app: App, broker: str) -> Publisher:
    return Publisher(broker, topic=app.topic, source=f"/{app.name}")


def _class(app: App, type_: str | None, file: str | None) -> type[Event]:
    classes = app.event_classes()
    if type_ is None and file is not None and len(app.flows) == 1:
        return app.flows[0].starts
    if type_ is None or type_ not in classes:
        said = "name the TYPE to publish" if type_ is None else f"there is no event type {type_!r}"
        raise ConfigurationError(f"{said}; the app has {', '.join(sorted(classes))}")
    return classes[type_]


def _event(class_: type[Event], fields: Sequence[str]) -> Event:
    """One event from `FIELD=text` and `FIELD:=JSON`; a field it has not is refused and not ignored."""
    names = {info.alias or name for name, info in class_.model_fields.items()}
    values: dict[str, Any] = {}
    for each in fields:
        name, equals, text = each.partition("=")
        raw = name.endswith(":")
        name = name.removesuffix(":")
        if not equals or name not in names:
            raise ConfigurationError(f"{name!r} is no FIELD=VALUE of {class_.event_type}; it has {', '.join(names)}")
        try:
            values[name] = orjson.loads(text) if raw else text
        except ValueError:
            raise ConfigurationError(f"{name}:= wants JSON; write {name}=TEXT for text") from None
    try:
        return class_.from_payload(orjson.dumps(values))
    except DecodeError as error:
        raise ConfigurationError(error.detail) from None


def _id(event: Event, field_: str | None) -> str | None:
    return None if field_ is None else str(getattr(event, field_))
