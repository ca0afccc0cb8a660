"""One flow as data: its events below their causes, who handled them, and what is still to come. No I/O."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from choreo.envelope import Envelope

Teller = Literal["store", "trace", "log", "key"]
State = Literal["waiting", "unknown"]
WAITING: State = "waiting"
UNKNOWN: State = "unknown"


class Place(NamedTuple):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


class Handling(NamedTuple):
    """What one handler made of an event, as far as it is told.

    Attributes:
        handler: `service.handler`.
        outcome: handled, dead_letter:REASON, duplicate, dropped, done (one of these); empty while it is not finished.
        attempts, duration_s, begun_ms: None where whoever told it does not know.
        deliveries: How often the record was given out; more than one after a crash.
        told_by: A row of the store, a span, an emit on the log that only this handler makes, or the mere existence
            of the idempotency key.
        within: Names and milliseconds of spans that the handler's own code made.
    """

    handler: str
    outcome: str
    attempts: int | None = 1
    duration_s: float | None = 0.0
    deliveries: int = 1
    begun_ms: float | None = None
    told_by: Teller = "store"
    within: tuple[tuple[str, float], ...] = ()

    @property
    def service(self) -> str:
        """Whose handler it is."""
        return self.handler.rpartition(".")[0]


class DeadLetter(NamedTuple):
    """A copy of the event in a service's dead-letter topic, and why."""

    place: Place
    service: str
    handler: str
    reason: str
    detail: str
    attempts: str


class Replayed(NamedTuple):
    """An order to one handler of a service to handle the event once more, or the mark of a dead letter dropped.

    Attributes:
        mode: if-not-done, force, or drop; of an event in the queue of its key: release, skip, or queue, which nobody
            ordered.
        by, note: Whose, and what they said.
        letter: Where the dead letter lies, `topic/partition@offset`; empty for an event of the history.
        base: What the ids of its emits are made of, where those are their own.
    """

    place: Place
    handler: str
    mode: str
    by: str
    note: str = ""
    letter: str = ""
    base: str = ""


class Expected(NamedTuple):
    """A declared handler of which nothing is told yet.

    Attributes:
        handler: `service.handler`.
        state: waiting: it has not happened; unknown: nobody who was asked would know.
        emits: Types that the handler may emit.
        for_s: Seconds since the event was there.
        why: What makes it unknown, or what else it could be; empty if nothing.
    """

    service: str
    handler: str
    state: State
    emits: tuple[str, ...]
    for_s: float
    why: str = ""


class TimerWaiting(NamedTuple):
    """A timer of a process instance of the flow; `due_s`: in so many seconds, negative if it is late."""

    process: str
    key: str
    name: str
    due_s: float


class Progress(NamedTuple):
    """How far a declared flow has come.

    Attributes:
        ended: Type of the first of its terminal events that is there; empty while it is open.
        took_s: Until that event, or until now.
        late_s: Seconds by which `deadline_s` is passed; 0 if it is not, or if there is none.
    """

    name: str
    ended: str
    took_s: float
    deadline_s: float | None
    late_s: float


@dataclass(slots=True)
class Node:
    """One event of the flow.

    Attributes:
        repeats: Further places of the same event; they are duplicates.
        retries: Where it waited until a handler that had failed was to try again.
        data: JSON, for keys of the business in it; it is never shown.
    """

    envelope: Envelope
    place: Place | None
    timestamp_ms: int
    data: bytes = b""
    repeats: list[Place] = field(default_factory=list)
    retries: list[Place] = field(default_factory=list)
    handlings: list[Handling] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    replays: list[Replayed] = field(default_factory=list)
    expected: list[Expected] = field(default_factory=list)
    children: list["Node"] = field(default_factory=list)


@dataclass(slots=True)
class Timeline:
    """A flow.

    Attributes:
        roots: In order of time: what began it, and whatever names a cause that is nowhere to be seen.
        unplaced: What a store tells of records that are not on the log any more.
        progress: None unless the flow is declared.
        timers: What the stores tell of timers that are set, the next one first.
    """

    correlation_id: str
    roots: Sequence[Node]
    unplaced: Sequence[tuple[Place, Handling]] = ()
    progress: Progress | None = None
    timers: Sequence[TimerWaiting] = ()

    def __bool__(self) -> bool:
        return bool(self.roots or self.unplaced)

    def nodes(self) -> Iterator[Node]:
        """Every event, causes before effects."""
        waiting = list(reversed(self.roots))
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    @property
    def begun_ms(self) -> int:
        """When its first event was there, 0 if there is none."""
        return min((node.timestamp_ms for node in self.nodes()), default=0)

    def as_dict(self) -> dict[str, Any]:
        """For programs: a flat list of events, which name their causes; deep flows nest no JSON."""
        return {
            "correlation_id": self.correlation_id,
            "progress": None if self.progress is None else self.progress._asdict(),
            "events": [_plain(node) for node in self.nodes()],
            "timers": [each._asdict() for each in self.timers],
            "not_on_log": [{"place": place._asdict(), **each._asdict()} for place, each in self.unplaced],
        }


def _plain(node: Node) -> dict[str, Any]:
    envelope = node.envelope
    return {
        "id": envelope.id,
        "type": envelope.type,
        "version": envelope.version,
        "source": envelope.source,
        "causation_id": envelope.causationid,
        "time": envelope.time,
        "timestamp_ms": node.timestamp_ms,
        "place": None if node.place is None else node.place._asdict(),
        "repeats": [place._asdict() for place in node.repeats],
        "retries": [place._asdict() for place in node.retries],
        "handlings": [each._asdict() for each in node.handlings],
        "dead_letters": [{**each._asdict(), "place": each.place._asdict()} for each in node.dead_letters],
        "replays": [{**each._asdict(), "place": each.place._asdict()} for each in node.replays],
        "expected": [each._asdict() for each in node.expected],
    }
