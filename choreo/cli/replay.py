"""`choreo replay`: events of the history through one handler, beside the live group."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from choreo.app import App
from choreo.cli.console import AsJson, Broker, Store, Target, load_app, moment_ms, reported, run_async, seconds
from choreo.cli.ordering import By, DryRun, ModeOption, Note, Rate, Run, Yes, carry_out, mode_of, opened, operator
from choreo.errors import ConfigurationError
from choreo.record import Record
from choreo.runtime.ordering import Operator, Orders, partitions_of_replays
from choreo.runtime.redriving import Redrive
from choreo.runtime.replaying import Mode


@reported
def replay(
    target: Target,
    broker: Broker,
    topic: Annotated[str, typer.Option(help="Logical or actual name of a topic the handler reads.")],
    handler: Annotated[str, typer.Option(metavar="SERVICE.HANDLER", help="The one handler that gets the events.")],
    start: Annotated[str, typer.Option("--from", metavar="TIME|OFFSET", help="7d, 2026-07-01T12:00Z, or an offset.")],
    end: Annotated[
        str | None,
        typer.Option("--to", metavar="TIME|OFFSET", help="Not included; the end as it is now by default."),
    ] = None,
    partition: Annotated[
        int | None, typer.Option(min=0, help="Only this one; offsets need it where there are several.")
    ] = None,
    mode: ModeOption = "if-not-done",
    key_ttl: Annotated[
        str, typer.Option(help="How long the service keeps keys, as `choreo run` has it; bounds --mode if-not-done.")
    ] = "7d",
    rate: Rate = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    by: By = None,
    note: Note = "",
    run: Run = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Give events of a topic's history to one handler, beside the live group, which is not held up."""
    app, chosen, who = load_app(target), mode_of(mode), operator(by, note, run, mode)
    service, name = _handler(app, handler)
    actual = {event.event_topic: app.topic(event.event_topic) for event in app.event_classes().values()}
    actual_topic = actual.get(topic, topic)
    if actual_topic not in app.input_topics(service):
        reads = ", ".join(app.input_topics(service))
        raise ConfigurationError(f"{handler} does not read the topic {topic}; its service reads {reads}")
    span = _Span(start, end, partition)
    if chosen == "if-not-done":
        _check_keys_known(span, seconds(key_ttl), store)
    orders = run_async(_orders(app, broker, actual_topic, service, name, span, chosen, who))
    carry_out(broker, orders, who, mode=chosen, rate=rate, dry_run=dry_run, yes=yes, as_json=as_json)


class _Span:
    """A part of a topic: from a time or an offset to another, the end not included."""

    def __init__(self, start: str, end: str | None, partition: int | None) -> None:
        now_s = time.time()
        self.first = int(start) if start.isdecimal() else None
        self.last = int(end) if end is not None and end.isdecimal() else None
        self.since_ms = 0 if self.first is not None else moment_ms(start, now_s)
        self.until_ms = None if end is None or self.last is not None else moment_ms(end, now_s)
        self.partition = partition

    def holds(self, record: Record) -> bool:
        """Whether the record is in it."""
        return (
            self.partition in (None, record.partition)
            and (self.first is None or record.offset >= self.first)
            and (self.last is None or record.offset < self.last)
            and record.timestamp_ms >= self.since_ms
            and (self.until_ms is None or record.timestamp_ms < self.until_ms)
        )

    def check(self, topic: str, partitions: int) -> None:
        """Refuse offsets where it is open whose they are."""
        if (self.first is not None or self.last is not None) and self.partition is None and partitions > 1:
            raise ConfigurationError(f"{topic} has {partitions} partitions: say whose offset it is with --partition")
        if self.partition is not None and self.partition >= partitions:
            raise ConfigurationError(f"{topic} has no partition {self.partition}")


def _handler(app: App, label: str) -> tuple[str, str]:
    for name, service in app.services.items():
        if label.startswith(f"{name}.") and label.removeprefix(f"{name}.") in service.handlers:
            return name, label.removeprefix(f"{name}.")
    labels = [each.label for service in app.services.values() for each in service.handlers.values()]
    raise ConfigurationError(f"there is no handler {label!r}; the app has {', '.join(labels)}")


def _check_keys_known(span: _Span, ttl_s: float, store: str | None) -> None:
    """Whether the service still knows what it has handled: else what is done would be done again.

    Raises:
        ConfigurationError: It may not.
    """
    if store == "changelog":
        raise ConfigurationError(
            "the store changelog knows what was handled within its own partition only, so it cannot tell what is not "
            "done: take --mode force, over a span that you know was not handled"
        )
    if span.first is None and span.since_ms / 1000 < time.time() - ttl_s:
        raise ConfigurationError(
            f"--from is longer ago than keys are kept ({ttl_s / 86_400:g} days): what was handled then may be "
            "forgotten, and would be handled again. Begin later; or give --key-ttl as the service has it; or take "
            "--mode force"
        )


async def _orders(
    app: App, broker: str, topic: str, service: str, handler: str, span: _Span, mode: Mode, who: Operator
) -> Orders:
    async with opened(broker) as transport:
        there = await transport.topics([topic])
        if topic not in there:
            raise ConfigurationError(f"the broker has no topic {topic}")
        span.check(topic, there[topic].partitions)
        partitions = await partitions_of_replays(transport, [app.services[service]], app.topic)
        found: Sequence[Record] = await transport.scan([topic], since_ms=span.since_ms)
    redrive = Redrive(app.services, app.topic, partitions, who, time.time())
    records = [record for record in found if span.holds(record)]
    return redrive.events(service, handler, app.router(service), records, mode)
