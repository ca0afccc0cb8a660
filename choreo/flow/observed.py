"""The flow of an estate as it ran, whoever wrote its services: events seen, who caused them, how often, how late.

What was seen (`Sighting`, `Intake`) comes from spans or from records' headers: `choreo.flow.sightings` reads both.
No I/O and no clock here: the window is what was looked at.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any, NamedTuple

from choreo.flow.picture import Edge, Node, Picture, duration_text, rate_text

PATIENCE = 10
"""An event that led to nothing yet counts as under way for so many times the usual wait (p95) of its like."""
PATIENCE_S_MIN = 1.0


class Sighting(NamedTuple):
    """One event on the log, seen once however often it was sent.

    Attributes:
        id: Unique among all sightings; duplicates share it.
        event: Its type, or its topic where nobody told the type.
        emitter: The service that sent it, "" if unknown.
        at_ms: Since the epoch.
        cause: `id` of the event that caused it, None if it began a flow or nothing is known.
        guessed: The cause is inferred from order in time within one trace.
    """

    id: str
    event: str
    emitter: str
    at_ms: float
    cause: str | None = None
    guessed: bool = False
    handler: str = ""


class Intake(NamedTuple):
    """One event taken in by one service; `handler` where the trace says it."""

    id: str
    service: str
    at_ms: float
    handler: str = ""


@dataclass(slots=True)
class ObservedEdge:
    """From an event to who takes it in, or from there to what it sends. Waits in milliseconds, None if unknown."""

    source: str
    target: str
    count: int = 0
    guessed: bool = False
    waits_ms: list[float] = field(default_factory=list)

    def wait_ms(self, share: float) -> float | None:
        """The wait that `share` of them did not exceed: 0.5 and 0.95, by nearest rank."""
        if not self.waits_ms:
            return None
        return sorted(self.waits_ms)[max(0, ceil(share * len(self.waits_ms)) - 1)]


@dataclass(frozen=True, slots=True)
class ObservedEvent:
    """One type, or one topic.

    Attributes:
        seen: How many different ones.
        began: How many of them had no cause that was seen.
        went_on: How many caused another event.
        stopped: Led to nothing, though its like do, and had time to.
        under_way: Led to nothing yet.
    """

    name: str
    seen: int
    began: int
    went_on: int
    stopped: int
    under_way: int


@dataclass(frozen=True, slots=True)
class ObservedFlow:
    """Everything seen in a window. Keys of nodes: `event:NAME` and `handler:SERVICE[.HANDLER] EVENT`."""

    window_s: float
    events: Sequence[ObservedEvent]
    edges: Sequence[ObservedEdge]

    def as_dict(self) -> dict[str, Any]:
        """For programs; rates are per second of the window."""
        return {
            "window_s": self.window_s,
            "events": [{**asdict(each), "rate_per_s": self._rate(each.seen)} for each in self.events],
            "edges": [
                {
                    "source": each.source,
                    "target": each.target,
                    "count": each.count,
                    "rate_per_s": self._rate(each.count),
                    "p50_ms": each.wait_ms(0.5),
                    "p95_ms": each.wait_ms(0.95),
                    "guessed": each.guessed,
                }
                for each in self.edges
            ],
        }

    def picture(self, title: str) -> Picture:
        """Events and services with counts and waits on the edges; a guess is dashed."""
        nodes = [
            Node(f"event:{each.name}", _event_label(each), "event", starts=each.began > 0, ends=each.went_on == 0)
            for each in self.events
        ]
        handlers = dict.fromkeys(
            name for each in self.edges for name in (each.source, each.target) if name.startswith("handler:")
        )
        for name in handlers:
            label = name.removeprefix("handler:").partition(" ")[0]
            nodes.append(Node(name, label, "handler", group=label.partition(".")[0]))
        edges = [Edge(each.source, each.target, self._edge_label(each), not each.guessed) for each in self.edges]
        return Picture(title, tuple(nodes), tuple(edges))

    def _rate(self, count: int) -> float:
        return round(count / self.window_s, 6) if self.window_s > 0 else 0.0

    def _edge_label(self, edge: ObservedEdge) -> str:
        p50, p95 = edge.wait_ms(0.5), edge.wait_ms(0.95)
        waits = "" if p50 is None or p95 is None else f", {duration_text(p50)} / {duration_text(p95)}"
        return f"{edge.count}, {rate_text(self._rate(edge.count))}{waits}"


def observed(sightings: Iterable[Sighting], intakes: Iterable[Intake], *, window_s: float) -> ObservedFlow:
    """Put together what was seen.

    Args:
        sightings: In any order; of one id the earliest counts.
        intakes: Known from spans only; without them an event that led to nothing was taken in by nobody we know.
        window_s: Length of what was looked at, for rates.
    """
    events: dict[str, Sighting] = {}
    for sighting in sorted(sightings, key=lambda each: each.at_ms):
        events.setdefault(sighting.id, sighting)
    edges: dict[tuple[str, str], ObservedEdge] = {}
    taken: dict[tuple[str, str], Intake] = {}
    for intake in sorted(intakes, key=lambda each: each.at_ms):
        event = events.get(intake.id)
        unit = None if event is None else _unit(intake.service, intake.handler, event.event)
        if event is None or unit is None or (intake.id, unit) in taken:
            continue  # of retries and redeliveries the first one counts
        taken[intake.id, unit] = intake
        _count(edges, f"event:{event.event}", unit, intake.at_ms - event.at_ms)
    caused: dict[str, list[float]] = {}
    without_intake: set[tuple[str, str]] = set()
    for event in events.values():
        cause = events.get(event.cause or "")
        if cause is None:
            if event.emitter:
                _count(edges, f"handler:{event.emitter} ", f"event:{event.event}", None)
            continue
        caused.setdefault(cause.id, []).append(event.at_ms - cause.at_ms)
        if not event.emitter:
            _count(edges, f"event:{cause.event}", f"event:{event.event}", event.at_ms - cause.at_ms, event.guessed)
            continue
        unit = _unit(event.emitter, event.handler, cause.event)
        since = taken.get((cause.id, unit))
        if since is None and (cause.id, unit) not in without_intake:
            without_intake.add((cause.id, unit))
            _count(edges, f"event:{cause.event}", unit, None, event.guessed)
        _count(edges, unit, f"event:{event.event}", event.at_ms - (since or cause).at_ms, event.guessed)
    return ObservedFlow(window_s, _events(events, caused), sorted(edges.values(), key=_order))


def _events(events: dict[str, Sighting], caused: dict[str, list[float]]) -> list[ObservedEvent]:
    by_name: dict[str, list[Sighting]] = {}
    for event in events.values():
        by_name.setdefault(event.event, []).append(event)
    last_ms = max((event.at_ms for event in events.values()), default=0.0)
    found = []
    for name, alike in sorted(by_name.items()):
        waits = ObservedEdge("", "", waits_ms=[min(caused[each.id]) for each in alike if each.id in caused])
        usual_ms = waits.wait_ms(0.95)
        quiet = [] if usual_ms is None else [each for each in alike if each.id not in caused]
        patience_ms = max(PATIENCE_S_MIN * 1000, PATIENCE * (usual_ms or 0.0))
        stopped = sum(last_ms - each.at_ms > patience_ms for each in quiet)
        began = sum(each.cause is None or each.cause not in events for each in alike)
        found.append(ObservedEvent(name, len(alike), began, len(waits.waits_ms), stopped, len(quiet) - stopped))
    return found


def _count(
    edges: dict[tuple[str, str], ObservedEdge],
    source: str,
    target: str,
    wait_ms: float | None,
    guessed: bool = False,
) -> None:
    edge = edges.setdefault((source, target), ObservedEdge(source, target, guessed=guessed))
    edge.count += 1
    edge.guessed = edge.guessed and guessed
    if wait_ms is not None:
        edge.waits_ms.append(max(0.0, wait_ms))  # clocks of two hosts


def _unit(service: str, handler: str, event: str) -> str:
    """What takes in one kind of event: a service may answer two kinds differently."""
    return f"handler:{service}{'.' if handler else ''}{handler} {event}"


def _order(edge: ObservedEdge) -> tuple[str, str]:
    return edge.source, edge.target


def _event_label(event: ObservedEvent) -> str:
    stopped = f", {event.stopped} stopped" if event.stopped else ""
    return f"{event.name} ({event.seen}{stopped})"
