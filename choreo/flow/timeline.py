"""One flow as a tree of events, from records of the log and, where a store tells, who handled them. No I/O."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.markup import escape
from rich.tree import Tree

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.errors import DecodeError
from choreo.record import Record

DLQ_PREFIX = "choreo-dlq-"
"""As in `choreo.runtime.emitting`, which this layer may not import; a test holds the two together."""


class Place(NamedTuple):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


class Handling(NamedTuple):
    """What one handler made of an event. `outcome` is empty while it is not finished."""

    handler: str
    outcome: str
    attempts: int = 1
    duration_s: float = 0.0
    deliveries: int = 1


class DeadLetter(NamedTuple):
    """A copy of the event in a service's dead-letter topic, and why."""

    place: Place
    service: str
    handler: str
    reason: str
    detail: str
    attempts: str


@dataclass(slots=True)
class Node:
    """One event of the flow. `repeats`: further places of the same event; they are duplicates."""

    envelope: Envelope
    place: Place | None
    timestamp_ms: int
    repeats: list[Place] = field(default_factory=list)
    handlings: list[Handling] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    children: list["Node"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Timeline:
    """A flow. `roots` in order of time: what began it, and whatever names a cause that is not on the log."""

    correlation_id: str
    roots: Sequence[Node]

    def nodes(self) -> Iterator[Node]:
        """Every event, causes before effects."""
        waiting = list(reversed(self.roots))
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    def as_dict(self) -> dict[str, Any]:
        """For programs: a flat list of events, which name their causes; deep flows nest no JSON."""
        return {"correlation_id": self.correlation_id, "events": [_plain(node) for node in self.nodes()]}

    def tree(self) -> Tree:
        """For people; give it to a Rich console."""
        top = Tree(f"[bold]{_safe(self.correlation_id)}[/]")
        begun_ms = min((node.timestamp_ms for node in self.nodes()), default=0)
        waiting = [(top, node) for node in reversed(self.roots)]
        while waiting:
            parent, node = waiting.pop()
            branch = parent.add(_label(node, begun_ms))
            for text in _remarks(node):
                branch.add(text)
            waiting += [(branch, child) for child in reversed(node.children)]
        return top


def build(records: Iterable[Record], correlation_id: str, history: Iterable[Mapping[str, Any]] = ()) -> Timeline:
    """The tree of one flow.

    Args:
        records: Of any flow; those of another, and those that are no events, are passed over.
        correlation_id: The flow's, which is the id of the event that began it unless somebody chose another.
        history: Rows of `SqliteStore.history`.
    """
    nodes: dict[tuple[str, str], Node] = {}
    letters: list[tuple[Envelope, DeadLetter, int]] = []
    for record in sorted(records, key=lambda each: each.timestamp_ms):
        envelope = _envelope(record)
        if envelope is None or envelope.correlationid != correlation_id:
            continue
        letter = _dead_letter(record)
        if letter is not None:
            letters.append((envelope, letter, record.timestamp_ms))
        elif (known := nodes.get((envelope.source, envelope.id))) is not None:
            known.repeats.append(_place(record))
        else:
            nodes[envelope.source, envelope.id] = Node(envelope, _place(record), record.timestamp_ms)
    for envelope, letter, timestamp_ms in letters:
        # The original may be gone from the log (retention) when its dead letter is still there.
        node = nodes.setdefault((envelope.source, envelope.id), Node(envelope, None, timestamp_ms))
        node.dead_letters.append(letter)
    _note_handlings(nodes.values(), history)
    return Timeline(correlation_id, _linked(list(nodes.values())))


def _linked(nodes: Sequence[Node]) -> list[Node]:
    """Hang every event below its cause; returns those that have none on the log."""
    by_id: dict[str, Node] = {}
    for node in nodes:
        by_id.setdefault(node.envelope.id, node)
    causes = {id(node): by_id.get(node.envelope.causationid or "") for node in nodes}
    roots: list[Node] = []
    settled: set[int] = set()
    for node in nodes:
        path: dict[int, Node] = {}
        at: Node | None = node
        while at is not None and id(at) not in settled and id(at) not in path:
            path[id(at)] = at
            at = causes[id(at)]
        if at is not None and id(at) in path:
            causes[id(at)] = None  # causes in a circle: forged ids; cut it open where it was met
        settled.update(path)
    for node in nodes:
        cause = causes[id(node)]
        (roots if cause is None else cause.children).append(node)
    return roots


def _note_handlings(nodes: Iterable[Node], history: Iterable[Mapping[str, Any]]) -> None:
    by_place: dict[Place, list[Handling]] = {}
    for row in history:
        place = Place(str(row["topic"]), int(row["partition"]), int(row["offset"]))
        handling = Handling(
            str(row["handler"]),
            str(row["outcome"]) if row["done"] else "",
            int(row["attempts"]),
            float(row["duration_s"]),
            int(row["deliveries"]),
        )
        by_place.setdefault(place, []).append(handling)
    for node in nodes:
        places = [] if node.place is None else [node.place]
        for place in [*places, *node.repeats]:
            node.handlings += by_place.get(place, ())


def _envelope(record: Record) -> Envelope | None:
    if record.value is None:
        return None
    try:
        return cloudevents.read(record.headers, record.value)[0]
    except DecodeError:
        return None


def _place(record: Record) -> Place:
    return Place(record.topic, record.partition, record.offset)


def _dead_letter(record: Record) -> DeadLetter | None:
    told = {
        name.removeprefix(DLQ_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith(DLQ_PREFIX)
    }
    names = ("service", "handler", "reason", "detail", "attempts")
    return DeadLetter(_place(record), *(told.get(name, "") for name in names)) if "reason" in told else None


def _label(node: Node, begun_ms: int) -> str:
    envelope = node.envelope
    after_s = (node.timestamp_ms - begun_ms) / 1000
    where = "no longer on the log" if node.place is None else str(node.place)
    return (
        f"[bold cyan]{_safe(envelope.type)}[/] from {_safe(envelope.source)} [dim]+{after_s:.3f} s {_safe(where)}[/]"
    )


def _remarks(node: Node) -> Iterator[str]:
    for each in node.handlings:
        if not each.outcome:
            yield f"[yellow]{_safe(each.handler)} not finished[/]"
            continue
        colour = "green" if each.outcome == "handled" else "red"
        tries = f", {each.attempts} attempts" if each.attempts > 1 else ""
        again = f", delivered {each.deliveries} times" if each.deliveries > 1 else ""
        took = f"{each.duration_s * 1000:.1f} ms"
        yield f"[{colour}]{_safe(each.handler)} {_safe(each.outcome)}[/] [dim]{took}{tries}{again}[/]"
    for place in node.repeats:
        yield f"[yellow]the same event again, a duplicate[/] [dim]{_safe(str(place))}[/]"
    for letter in node.dead_letters:
        why = _safe(letter.detail or letter.reason)
        whose = _safe(f"{letter.service}.{letter.handler}")
        yield f"[bold red]dead letter[/] of {whose}: {why} [dim]{_safe(str(letter.place))}[/]"


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
        "handlings": [each._asdict() for each in node.handlings],
        "dead_letters": [{**each._asdict(), "place": each.place._asdict()} for each in node.dead_letters],
    }


def _safe(text: str) -> str:
    """Text of somebody else, for a terminal: no markup, no control characters."""
    return escape("".join(char if char.isprintable() else "?" for char in text))
