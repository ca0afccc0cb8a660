"""`choreo dlq parked | release | skip`: keys whose events wait behind one that failed, and what to do about them."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, cast

import typer

from choreo import envelope as cloudevents
from choreo.app import App
from choreo.cli.console import AsJson, Broker, Store, Target, load_app, out, print_json, reported, run_async
from choreo.cli.dlq import Key, Service, print_lines
from choreo.cli.ordering import By, DryRun, Note, Rate, Yes, carry_out, operator
from choreo.errors import ConfigurationError, DecodeError
from choreo.looking import store_of
from choreo.parked import Parked, ParkedStore
from choreo.runtime.exporting import shown
from choreo.runtime.ordering import Operator, Orders
from choreo.runtime.releasing import What, orders_for, replay_of

Handler = Annotated[str | None, typer.Option(help="Of this handler, or service.handler.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Record keys; all unless given.")]
Some = Annotated[list[str], typer.Argument(metavar="KEY...", help="Record keys.")]


class Found(NamedTuple):
    """A parked key of a service."""

    service: str
    head: Parked


@reported
def parked(
    target: Target,
    broker: Broker,
    store: Store = None,
    service: Service = None,
    handler: Handler = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List parked keys, the longest parked first: the event that failed, and how many wait with it."""
    found = run_async(_found(load_app(target), broker, store, service, handler, None if key is None else [key]))
    if as_json:
        print_json({"parked": [_as_dict(each) for each in found]})
        return
    heads = ("key", "handler", "events", "parked (UTC)", "reason", "attempts", "again", "event")
    print_lines(heads, [_line(each) for each in found])
    out().print(f"{len(found):,} keys are parked", highlight=False)


@reported
def release(
    target: Target,
    broker: Broker,
    keys: Keys = None,
    store: Store = None,
    service: Service = None,
    handler: Handler = None,
    rate: Rate = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    by: By = None,
    note: Note = "",
    as_json: AsJson = False,
) -> None:
    """Give the event that failed to its handler once more; those behind it follow when it is handled."""
    who = operator(by, note, None, "release")
    orders = _orders(load_app(target), broker, store, service, handler, keys or None, "head", who)
    carry_out(broker, orders, who, mode="release", rate=rate, dry_run=dry_run, yes=yes, as_json=as_json)


@reported
def skip(
    target: Target,
    broker: Broker,
    keys: Some,
    store: Store = None,
    service: Service = None,
    handler: Handler = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    by: By = None,
    note: Note = "",
    as_json: AsJson = False,
) -> None:
    """Take the event that failed out of its queue, unhandled and for good; those behind it follow in their order."""
    who = operator(by, note, None, "skip")
    orders = _orders(load_app(target), broker, store, service, handler, keys, "drop", who)
    carry_out(broker, orders, who, mode="skip", rate=None, dry_run=dry_run, yes=yes, as_json=as_json)


def _orders(
    app: App,
    broker: str,
    store: str | None,
    services: Sequence[str] | None,
    handler: str | None,
    keys: Sequence[str] | None,
    what: What,
    who: Operator,
) -> Orders:
    found = run_async(_found(app, broker, store, services, handler, keys))
    if missing := sorted(set(keys or ()) - {_key(each.head) for each in found}):
        raise ConfigurationError(f"no key {', '.join(missing)} is parked: see `choreo dlq parked`")
    every = Orders()
    for name in dict.fromkeys(each.service for each in found):
        service = app.services[name]
        heads = [each.head for each in found if each.service == name]
        some = orders_for(service, app.topic(service.replay_topic), heads, what, who, time.time())
        every.records += some.records
        every.handlers += some.handlers
        every.left_out += some.left_out
        every.impossible += some.impossible
    return every


async def _found(
    app: App,
    broker: str,
    store: str | None,
    services: Sequence[str] | None,
    handler: str | None,
    keys: Sequence[str] | None,
) -> list[Found]:
    """The heads of the queues that are meant."""
    plans = app.plans(services or list(app.services))  # also of those that park no more: something may be left
    name = None if handler is None else handler.rpartition(".")[2]
    of = None if handler is None else handler.rpartition(".")[0]
    found: list[Found] = []
    for plan in plans:
        if of and of != plan.service.name:
            continue
        async with store_of(
            plan.service.name, plan.service.group, store=store, broker=broker, keeps="parked"
        ) as opened:
            heads = await cast(ParkedStore, opened).parked(plan.service.group, handler=name or "")
        found += [Found(plan.service.name, head) for head in heads if keys is None or _key(head) in keys]
    return sorted(found, key=lambda each: each.head.parked_ms)


def _key(head: Parked) -> str:
    return (head.record.key or b"").decode("utf-8", "backslashreplace")


def _as_dict(found: Found) -> dict[str, Any]:
    """For programs: everything but headers and payload."""
    head, replay = found.head, replay_of(found.head)
    try:
        envelope = cloudevents.read(head.record.headers, head.record.value or b"")[0]
    except DecodeError:
        envelope = None
    return {
        "key": _key(head),
        "service": found.service,
        "handler": head.handler,
        "events": 0 if replay.parked == "closing" else 1 + head.behind,
        "parked_ms": head.parked_ms,
        "reason": head.reason,
        "detail": head.detail,
        "attempts": head.attempts,
        "releases": replay.tries,
        "due_ms": head.due_ms,
        "type": envelope.type if envelope else "",
        "event_id": envelope.id if envelope else "",
        "source": envelope.source if envelope else "",
        "correlation_id": head.correlation_id,
        "original": dict(replay.original),
    }


def _line(found: Found) -> tuple[str, ...]:
    told = _as_dict(found)
    place = told["original"]
    where = f"{place.get('topic', '?')}/{place.get('partition', '?')}@{place.get('offset', '?')}"
    cells = (
        told["key"],
        f"{found.service}.{told['handler']}",
        f"{told['events']:,}",
        _moment(told["parked_ms"]),
        told["reason"] or "released",
        f"{told['attempts']:,}",
        "" if told["due_ms"] is None else _moment(told["due_ms"]),
        f"{told['type']} {where}".strip(),
    )
    return tuple(map(shown, cells))


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
