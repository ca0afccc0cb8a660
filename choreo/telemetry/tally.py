"""What is counted of one service, and how it reads as metrics. Plain numbers: no lock, no instrument, no clock.

A collector reads on a thread of its own while the event loop counts: dicts are copied whole, which is one step of the
interpreter, and `levels` is exchanged whole.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from choreo.ports import Backlog, Levels
from choreo.telemetry.attributes import Attributes

Points = Iterable[tuple[float, Attributes]]
Key = TypeVar("Key")


class Tally:
    """Counts of one service since its process began.

    Attributes:
        always: Attributes of all its measurements.
        events: By handler, topic, outcome and error type (empty: none).
        attempts: By handler and error type.
        sent: By topic and error type.
        consumed: By group and topic.
        overdue: Flows, by name.
        openings: Of circuit breakers, by handler.
        breakers: Whether that of a handler is open, of those that ever were since the service started.
        levels: How things stood when last looked, None if nobody looks.
        backlog: What waited in the outbox when last looked, None unless this is the relay that leads.
    """

    def __init__(self, always: Attributes) -> None:
        self.always = always
        self.events: dict[tuple[str, str, str, str], int] = {}
        self.attempts: dict[tuple[str, str], int] = {}
        self.sent: dict[tuple[str, str], int] = {}
        self.consumed: dict[tuple[str, str], int] = {}
        self.overdue: dict[str, int] = {}
        self.openings: dict[str, int] = {}
        self.breakers: dict[str, bool] = {}
        self.levels: Levels | None = None
        self.backlog: Backlog | None = None

    @property
    def own(self) -> Attributes:
        """Attributes of choreo's own metrics, which are of no messaging client."""
        return {"choreo.service": self.always["choreo.service"]}


def count(counts: dict[Key, int], key: Key, by: int = 1) -> None:
    """One more."""
    counts[key] = counts.get(key, 0) + by


def of_error(attributes: Attributes, error_type: str) -> Attributes:
    """With `error.type`, where there is one: it is there on failures only."""
    if error_type:
        attributes["error.type"] = error_type
    return attributes


def _sent(tally: Tally) -> Points:
    for (topic, error), number in tally.sent.copy().items():
        yield number, of_error({**tally.always, **of_operation("send", "send", topic)}, error)


def _consumed(tally: Tally) -> Points:
    for (group, topic), number in tally.consumed.copy().items():
        operation = of_operation("poll", "receive", topic)
        yield number, {**tally.always, **operation, "messaging.consumer.group.name": group}


def _events(tally: Tally) -> Points:
    for (handler, topic, outcome, error), number in tally.events.copy().items():
        found = {"choreo.handler": handler, "choreo.outcome": outcome, "messaging.destination.name": topic}
        yield number, of_error({**tally.own, **found}, error)


def _attempts(tally: Tally) -> Points:
    for (handler, error), number in tally.attempts.copy().items():
        yield number, of_error({**tally.own, "choreo.handler": handler}, error)


def _overdue(tally: Tally) -> Points:
    for flow, number in tally.overdue.copy().items():
        yield number, {**tally.own, "choreo.flow": flow}


def _openings(tally: Tally) -> Points:
    for handler, number in tally.openings.copy().items():
        yield number, {**tally.own, "choreo.handler": handler}


def _breakers(tally: Tally) -> Points:
    for handler, is_open in tally.breakers.copy().items():
        yield int(is_open), {**tally.own, "choreo.handler": handler}


def _lag_records(tally: Tally) -> Points:
    levels = tally.levels
    for partition, level in levels.partitions.items() if levels else ():
        if level.lag_records is not None:
            yield level.lag_records, _of_partition(tally, levels, *partition)


def _lag_time(tally: Tally) -> Points:
    levels = tally.levels
    for partition, level in levels.partitions.items() if levels else ():
        yield level.lag_s, _of_partition(tally, levels, *partition)


def _of_partition(tally: Tally, levels: Levels | None, topic: str, number: int) -> Attributes:
    assert levels is not None
    return {
        **tally.own,
        "messaging.consumer.group.name": levels.group,
        "messaging.destination.name": topic,
        "messaging.destination.partition.id": str(number),
    }


def of_operation(name: str, type_: str, topic: str | None = None) -> Attributes:
    """The operation of a client, and its topic where there is one alone."""
    found: Attributes = {"messaging.operation.name": name, "messaging.operation.type": type_}
    if topic is not None:
        found["messaging.destination.name"] = topic
    return found


def _level(read: Callable[[Levels], float | None]) -> Callable[[Tally], Points]:
    def points(tally: Tally) -> Points:
        if tally.levels is not None and (value := read(tally.levels)) is not None:
            yield value, tally.own

    return points


def _backlog(read: Callable[[Backlog], float]) -> Callable[[Tally], Points]:
    def points(tally: Tally) -> Points:
        if tally.backlog is not None:
            yield read(tally.backlog), tally.own

    return points


Read = Callable[[Tally], Points]
Metric = tuple[str, str, str, Read]
"""Name, unit, description, and how it is read."""

COUNTERS: tuple[Metric, ...] = (
    ("messaging.client.sent.messages", "{message}", "Events sent, each counted once.", _sent),
    ("messaging.client.consumed.messages", "{message}", "Records fetched and looked at.", _consumed),
    ("choreo.handler.events", "{event}", "Events a handler is done with, by outcome.", _events),
    ("choreo.handler.attempts", "{attempt}", "Invocations of a handler; failed ones have error.type.", _attempts),
    ("choreo.flow.overdue", "{flow}", "Watched flows past their deadline, each once.", _overdue),
    ("choreo.breaker.openings", "{opening}", "Openings of circuit breakers.", _openings),
)
GAUGES: tuple[Metric, ...] = (
    ("choreo.lag.records", "{record}", "Records of a partition that are not done with.", _lag_records),
    ("choreo.lag.time", "s", "Age of the oldest record of a partition that is not done with.", _lag_time),
    (
        "choreo.unfinished.age",
        "s",
        "Age of the oldest event that was taken up and is not durable.",
        _level(lambda levels: levels.oldest_s),
    ),
    ("choreo.lanes.open", "{lane}", "Keys with unfinished events.", _level(lambda levels: levels.lanes)),
    ("choreo.handlers.running", "{handler}", "Invocations at work.", _level(lambda levels: levels.running)),
    ("choreo.handlers.limit", "{handler}", "The most there can be.", _level(lambda levels: levels.running_max)),
    (
        "choreo.timers.due",
        "{timer}",
        "Timers of processes that are to fire now.",
        _level(lambda levels: levels.timers_due),
    ),
    (
        "choreo.keys.parked",
        "{key}",
        'Keys of handlers with order="key" whose events wait.',
        _level(lambda levels: levels.parked_keys),
    ),
    ("choreo.outbox.rows", "{row}", "Events in an outbox.", _backlog(lambda backlog: backlog.rows)),
    ("choreo.outbox.lag.time", "s", "Age of its oldest event.", _backlog(lambda backlog: backlog.oldest_s)),
    ("choreo.breaker.open", "{breaker}", "1 while a handler is left alone or probed, then 0.", _breakers),
)
