"""`choreo explain`: what each service would do with a record, and why. Nothing is run."""

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape

from choreo.app import App
from choreo.cli.console import AsJson, Target, load_app, out, print_json, reported
from choreo.errors import ConfigurationError
from choreo.record import Record
from choreo.runtime.work import Work

_SKIPPED = {
    "tombstone": "the record has no value (a tombstone), which is no event",
    "unhandled_type": "no handler of this service is subscribed to the type of the event",
    "no_event": "read= of the topic says that the record holds no event",
    "other_topic": "the service does not read this topic",
}


@reported
def explain(
    target: Target,
    topic: Annotated[str, typer.Argument(help="Logical or actual name.")],
    record: Annotated[
        str, typer.Argument(metavar="RECORD.json", help="key, value, headers, ...; - is standard input.")
    ],
    as_json: AsJson = False,
) -> None:
    """Say for each service which handler gets a record, under which key, or why none."""
    app = load_app(target)
    actual = {event.event_topic: app.topic(event.event_topic) for event in app.event_classes().values()}
    rows = explained(app, _read(actual.get(topic, topic), record))
    if as_json:
        print_json({"topic": actual.get(topic, topic), "services": rows})
        return
    for row in rows:
        said = f"[green]{escape(row['handler'])}[/]" if row["does"] == "handle" else f"[yellow]{row['does']}[/]"
        out().print(f"[bold]{row['service']}[/]: {said} {escape(row['why'])}", highlight=False)
        if row["key"]:
            out().print(f"    [dim]idempotency key {row['key']}[/]", highlight=False)


def explained(app: App, record: Record) -> list[dict[str, Any]]:
    """A row for each unit of each service; `does`: handle, dead_letter, park, skip."""
    rows = []
    for name in app.services:
        if record.topic not in app.input_topics(name):
            rows.append(_row(name, "skip", _SKIPPED["other_topic"]))
            continue
        router = app.router(name)
        routed = router.route(record)
        if routed.skipped is not None:
            rows.append(_row(name, "skip", _SKIPPED.get(routed.skipped, routed.skipped)))
        rows += [_of_work(app, name, work, router.units.key(work).hex()) for work in routed.work]
    return rows


def _of_work(app: App, service: str, work: Work, key: str) -> dict[str, Any]:
    handler = work.bound.handler.label if work.bound else ""
    if work.error is not None:
        if work.bound is not None and work.bound.handler.order is not None and work.record.key is not None:
            why = f"parks its key as {work.error.reason}: {work.error.detail}"
            return _row(service, "park", why, handler=handler, key=key)
        dlq = app.topic(app.services[service].dlq_topic)
        why = f"to {dlq} as {work.error.reason}: {work.error.detail}"
        return _row(service, "dead_letter", why, handler=handler, key=key)
    event = work.event
    assert event is not None
    why = f"as {type(event).__name__} ({event.event_type} v{event.event_version})"
    version = work.envelope.version if work.envelope else None
    if version not in (None, event.event_version):
        why += f", upcast from v{version}"
    return _row(service, "handle", why, handler=handler, key=key)


def _row(service: str, does: str, why: str, *, handler: str = "", key: str = "") -> dict[str, Any]:
    return {"service": service, "does": does, "handler": handler, "key": key, "why": why}


def _read(topic: str, file: str) -> Record:
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return record_from_json(topic, text)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{file} is no record: {error}; it is a JSON object with key, value and headers (name to text)"
        ) from None


def record_from_json(topic: str, text: bytes) -> Record:
    """A record as the command is given one: an object with key, value, headers, partition, offset; all optional.

    Raises:
        ValueError: It is no JSON object.
    """
    found = orjson.loads(text)
    if not isinstance(found, dict):
        raise ValueError("the file holds no JSON object")
    value = found.get("value")
    raw = value.encode() if isinstance(value, str) else None if value is None else orjson.dumps(value)
    key = found.get("key")
    return Record(
        topic,
        int(found.get("partition", 0)),
        int(found.get("offset", 0)),
        None if key is None else str(key).encode(),
        raw,
        tuple((name, str(text).encode()) for name, text in (found.get("headers") or {}).items()),
        int(found.get("timestamp_ms", 0)),
    )
