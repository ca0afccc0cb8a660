"""Findings that something not seen is evidence of, where it would have been seen; else `inconclusive`. No I/O."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from math import inf

from choreo.flow.drift_edges import Declared, Edge, Ref, Sighted, ref, seen_as
from choreo.flow.drift_findings import DriftFinding, Evidence
from choreo.flow.drift_hand import decisions
from choreo.flow.drift_seen import DEAD_LETTER, DELAYED, DONE, DUPLICATE, HANDLED, Seen, SeenEvent
from choreo.flow.model import DeclaredFlow, DeclaredHandler, DeclaredService
from choreo.flow.waiting import KEY_KEPT_S

_LOG_ALONE = "the log alone does not tell whether it was taken in; ask the store too, with --store"


class _Lacking:
    """Evidence of one handler's silence on one kind of event."""

    def __init__(self) -> None:
        self.missing, self.unconsumed, self.unknown = Evidence(), Evidence(), Evidence()
        self.explained: Counter[str] = Counter()


def silence(declared: Declared, seen: Seen, timeout_ms: float) -> Iterator[DriftFinding]:
    """`missing_emission` and `unconsumed_event`, of events that are older than the timeout.

    A dead letter explains why nothing came of an event, and is told but not counted.
    """
    alike: dict[tuple[Ref, str], list[SeenEvent]] = {}
    for event in seen.events.values():
        if seen.to_ms - event.at_ms >= timeout_ms:
            alike.setdefault((ref(event), event.topic), []).append(event)
    found: dict[tuple[Edge, str], _Lacking] = {}
    for (consumed, _), events in alike.items():
        for service, handler in declared.consumers(events[0]):
            edge = Edge(consumed, service.name, handler.name)
            lacking = found.setdefault((edge, _wanted(handler)), _Lacking())
            for event in events:
                if declared.repeated(event, service, handler, seen) is False:
                    _judge(lacking, event, service, handler, seen)
    for (edge, wanted), lacking in found.items():
        yield from _silences(edge, wanted, lacking, seen)


def _judge(
    lacking: _Lacking, event: SeenEvent, service: DeclaredService, handler: DeclaredHandler, seen: Seen
) -> None:
    unit = seen.unit(event.key, service.name, handler.name)
    if unit is not None and unit.outcome == DEAD_LETTER:
        lacking.explained[unit.reason] += 1
        return
    if unit is not None and unit.outcome in (DUPLICATE, DELAYED):
        return  # what it emitted is older, or is still to come
    effects = [
        each
        for each in seen.effects.get(event.key, ())
        if each.service == service.name and each.handler in ("", handler.name)
    ]
    counts = Counter(each.type for each in effects)
    lacks = any(counts[emit.type] < emit.min for emit in handler.emits) or len(effects) < handler.emits_min
    if effects or (unit is not None and unit.outcome in (HANDLED, DONE)):
        bucket = lacking.missing if lacks else None
    elif seen.basis != "traces" and seen.to_ms - event.at_ms > KEY_KEPT_S * 1000:
        bucket = None
    elif service.name in seen.told:
        bucket = lacking.unconsumed
    else:
        bucket = lacking.unknown
    if bucket is not None:
        bucket.add(event.at_ms, event.trace_id, event.flow)


def _silences(edge: Edge, wanted: str, lacking: _Lacking, seen: Seen) -> Iterator[DriftFinding]:
    label = f"{edge.service}.{edge.handler}"
    aside = "".join(
        f"; {count} others are dead letters ({reason}), which explains those"
        for reason, count in sorted(lacking.explained.items())
    )
    if lacking.missing.count:
        message = f"{label} handled {lacking.missing.count} of {edge.consumed} without {wanted}{aside}"
        yield lacking.missing.finding("missing_emission", str(edge), message, seen.doubt)
    if lacking.unconsumed.count:
        message = (
            f"{lacking.unconsumed.count} of {edge.consumed} were not handled by {label} in time{aside}; is it "
            "deployed, and does it keep up?"
        )
        yield lacking.unconsumed.finding("unconsumed_event", str(edge), message, seen.doubt)
    if lacking.unknown.count:
        id_ = "missing_emission" if wanted else "unconsumed_event"
        nothing = f"no {wanted} came of" if wanted else "nothing shows that it handled"
        message = f"{label}: {nothing} {lacking.unknown.count} of {edge.consumed}{aside}"
        yield lacking.unknown.finding(id_, str(edge), message, _LOG_ALONE)


def never(declared: Declared, sightings: Iterable[Sighted], seen: Seen) -> Iterator[DriftFinding]:
    """`never_observed_edge`, but for what the log alone cannot show."""
    found = observed_edges(sightings)
    events = Counter(ref(event) for event in seen.events.values())
    missing = set()
    for edge in declared.edges:
        silent = edge.emitted is None and edge.service not in seen.told
        if silent or edge._replace(emitted=None) in missing or seen_as(edge, found):
            continue
        missing.add(edge)
        consumed = edge.consumed
        count = 0 if consumed is None else events[consumed] + events[Ref(consumed.type, None)]
        message = f"declared and not seen, though {count} of {consumed} were" if count else "declared and not seen"
        yield Evidence().finding("never_observed_edge", str(edge), message, seen.doubt)


def observed_edges(sightings: Iterable[Sighted]) -> frozenset[Edge]:
    """Edges seen; who emitted something for an event has taken it in, and has emitted it for whichever."""
    edges = {each.edge for each in sightings}
    taken = {edge._replace(emitted=None) for edge in edges if edge.consumed is not None}
    return frozenset(edges | taken | {edge._replace(consumed=None) for edge in edges if edge.emitted is not None})


def broken(seen: Seen, services: Collection[str]) -> Iterator[DriftFinding]:
    """`broken_trace`: a cause that is named and was not seen; of these services, of all if empty."""
    found: dict[str, Evidence] = {}
    for each in seen.broken:
        if services and each.service not in services:
            continue
        found.setdefault(each.service, Evidence()).add(each.at_ms, each.trace_id, each.flow)
    doubt = seen.doubt if seen.sampled != 1.0 else ""
    what = "their parent spans were not exported" if seen.basis == "traces" else "their causes are not on the log"
    for service, evidence in found.items():
        message = f"{evidence.count} of {service or 'an unknown service'} hang in the air: {what}"
        yield evidence.finding("broken_trace", service or "unknown service", message, doubt)


def overdue(declared: Declared, seen: Seen) -> Iterator[DriftFinding]:
    """`overdue_flow`: begun in the window, and not at an end within the deadline that its `Flow` declares.

    Nor had anybody decided by then, by hand, how it goes on.
    """
    decided_ms = decisions(seen)
    for flow in declared.capability.flows:
        if flow.deadline_s is None:
            continue
        never, late = Evidence(), Evidence()
        letters = 0
        for begun, ended_ms, dead in runs(declared, flow, seen):
            due_ms = begun.at_ms + flow.deadline_s * 1000
            if (seen.to_ms if ended_ms is None else ended_ms) > due_ms < decided_ms.get(begun.flow, inf):
                (never if ended_ms is None else late).add(begun.at_ms, begun.trace_id, begun.flow)
                letters += dead and ended_ms is None
        where, within = f"flow {flow.name}", f"within the {flow.deadline_s:g} s it declares"
        if never.count:
            aside = f"; {letters} of them have a dead letter, which explains those" if letters else ""
            message = f"{never.count} came to no end {within}{aside}; look at one with choreo trace"
            yield never.finding("overdue_flow", where, message, seen.doubt)
        if late.count:
            yield late.finding("overdue_flow", where, f"{late.count} came to an end, but not {within}")


def runs(declared: Declared, flow: DeclaredFlow, seen: Seen) -> Iterator[tuple[SeenEvent, float | None, bool]]:
    """Each flow of this kind that began in the window: first event, when it ended, whether it has a dead letter."""
    ends = {end.type for end in flow.ends}
    dead = {seen.events[unit.event].flow for unit in seen.units.values() if unit.outcome == DEAD_LETTER}
    for correlation_id, events in seen.flows.items():
        begun = min((each for each in events if each.type == flow.starts.type), key=_at, default=None)
        if begun is not None and not _dropped(declared, begun, seen):
            ended = min((each.at_ms for each in events if each.type in ends), default=None)
            yield begun, ended, correlation_id in dead


def _dropped(declared: Declared, begun: SeenEvent, seen: Seen) -> bool:
    """Whether a flow is none: its only event was sent again under another id, and known by its business key."""
    return begun.key not in seen.effects and any(
        declared.repeated(begun, service, handler, seen) for service, handler in declared.consumers(begun)
    )


def _wanted(handler: DeclaredHandler) -> str:
    """What must come of an event, empty if nothing must."""
    must = [f"{emit.type} v{emit.version}" for emit in handler.emits if emit.min]
    if not must and handler.emits_min:
        return " or ".join(f"{emit.type} v{emit.version}" for emit in handler.emits)
    return " and ".join(must)


def _at(event: SeenEvent) -> float:
    return event.at_ms
