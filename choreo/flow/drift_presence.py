"""Findings that something seen is evidence of: one sighting is enough, whatever was sampled. No I/O."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from choreo.flow.drift_edges import Declared, Edge, Sighted, ref
from choreo.flow.drift_findings import DriftFinding, Evidence
from choreo.flow.drift_seen import DEAD_LETTER, UNKNOWN_VERSION, Seen, SeenEvent
from choreo.flow.model import DeclaredHandler
from choreo.flow.topology import Topology, cycles
from choreo.flow.waiting import DECODE

UNREADABLE = frozenset({"invalid_data", "not_json"})
"""Reasons of dead letters that say: the data is not of the schema that its type and version declare."""


def edges(declared: Declared, sightings: Sequence[Sighted]) -> Iterator[DriftFinding]:
    """`undeclared_service`, `undeclared_edge`, and of `unknown_version` what was taken in or emitted."""
    services: dict[str, Evidence] = {}
    undeclared: dict[Edge, Evidence] = {}
    other: dict[Edge, Evidence] = {}
    verdicts = {edge: declared.verdict(edge) for edge in {each.edge for each in sightings}}
    for each in sightings:
        edge, event = each.edge, each.event
        if edge.service not in declared.services:
            if edge.service:
                services.setdefault(edge.service, Evidence()).add(each.at_ms, each.trace_id, event.flow)
            continue
        verdict = verdicts[edge]
        if verdict == "declared":
            continue
        found = undeclared if verdict == "undeclared" else other
        found.setdefault(edge, Evidence()).add(each.at_ms, each.trace_id, event.flow)
    for service, evidence in services.items():
        message = (
            f"{service} takes part {evidence.count} times and is not declared; give its capability file too, or find "
            "out who deployed it"
        )
        yield evidence.finding("undeclared_service", service, message)
    for edge, evidence in undeclared.items():
        yield evidence.finding("undeclared_edge", str(edge), _undeclared(edge, evidence.count))
    for edge, evidence in other.items():
        message = (
            f"seen {evidence.count} times; {edge.service} declares {_versions(declared, edge)}: another release "
            "of it runs than the one declared"
        )
        yield evidence.finding("unknown_version", str(edge), message)


def letters(declared: Declared, seen: Seen) -> Iterator[DriftFinding]:
    """`schema_violation` and `unknown_version`, as services say it by dead letters."""
    found: dict[tuple[str, Edge, str], Evidence] = {}
    for unit in seen.units.values():
        event = seen.events[unit.event]
        if unit.outcome != DEAD_LETTER or not {unit.service, event.service} & declared.services.keys():
            continue
        if unit.reason in UNREADABLE or unit.reason == UNKNOWN_VERSION:
            id_ = UNKNOWN_VERSION if unit.reason == UNKNOWN_VERSION else "schema_violation"
            edge = Edge(ref(event), unit.service, "" if unit.handler == DECODE else unit.handler)
            evidence = found.setdefault((id_, edge, event.service), Evidence())
            evidence.add(unit.at_ms, unit.trace_id or event.trace_id, event.flow)
    for (id_, edge, sender), evidence in found.items():
        what = f"{evidence.count} of {edge.consumed} from {sender or 'an unknown sender'} are dead letters of"
        if id_ == "schema_violation":
            message = f"{what} {edge.service}: not of the schema that it declares; compare the schemas of both"
        elif declared.verdict(edge) == "declared":
            message = f"{what} {edge.service}, of which an older release runs than the one declared; deploy it"
        else:
            message = f"{what} {edge.service}, which declares no such version; another release of the sender runs"
        yield evidence.finding(id_, str(edge), message)


def cardinality(declared: Declared, seen: Seen) -> Iterator[DriftFinding]:
    """`cardinality_exceeded`: more different events of one type for one cause than the handler may emit.

    For each time it was handled: one that was forced to be handled again emits under ids of its own.
    """
    found: dict[tuple[Edge, int], Evidence] = {}
    for key, effects in seen.effects.items():
        cause = seen.events[key]
        for (service, handler, type_, _), alike in _alike(effects).items():
            most = _most(declared.handlers(service, handler, cause.type), type_)
            if most is not None and len(alike) > most:
                edge = Edge(ref(cause), service, handler, ref(alike[0]))
                found.setdefault((edge, most), Evidence()).add(alike[-1].at_ms, alike[0].trace_id, cause.flow)
    for (edge, most), evidence in found.items():
        message = f"{evidence.count} times more than the {most} that are declared for one {edge.consumed} came of it"
        yield evidence.finding("cardinality_exceeded", str(edge), message)


def circles(declared: Declared, seen: Seen, services: Collection[str]) -> Iterator[DriftFinding]:
    """`cycle`: types that cause each other, all round, and by declaration do not; closed by one of these services."""
    follows: dict[str, set[str]] = {}
    for key, effects in seen.effects.items():
        follows.setdefault(seen.events[key].type, set()).update(effect.type for effect in effects)
    topology = Topology(declared.capability)
    for types in cycles(follows):
        evidence = Evidence()
        for key, effects in seen.effects.items():
            above = seen.events[key].type
            for effect in effects:
                new = effect.type not in topology.follows.get(above, ())
                if new and {above, effect.type} <= set(types) and (not services or effect.service in services):
                    evidence.add(effect.at_ms, effect.trace_id, effect.flow)
        if not evidence.count:
            continue  # the cycle is declared
        message = (
            f"{' and '.join(types)} cause each other, and by declaration they do not: {evidence.count} undeclared "
            "steps close the circle; it may never end"
        )
        yield evidence.finding("cycle", " -> ".join([*types, types[0]]), message)


def late(sightings: Iterable[Sighted], seen: Seen, timeout_ms: float) -> Iterator[DriftFinding]:
    """`late_hop`: what did come, but later after its cause than a missing event is waited for."""
    found: dict[Edge, Evidence] = {}
    for each in sightings:
        cause = seen.events.get(each.event.cause or "")
        if each.edge.emitted is not None and cause is not None and each.event.at_ms - cause.at_ms > timeout_ms:
            found.setdefault(each.edge, Evidence()).add(each.at_ms, each.trace_id, each.event.flow)
    for edge, evidence in found.items():
        message = f"{evidence.count} times later than {timeout_ms / 1000:g} s after its cause; a queue, or retries"
        yield evidence.finding("late_hop", str(edge), message)


def _undeclared(edge: Edge, count: int) -> str:
    if edge.emitted is None:
        return (
            f"{edge.service}.{edge.handler} took {edge.consumed} in {count} times and declares no such handler; "
            "export the capability of the release that runs, or deploy the one that is declared"
        )
    cause = "" if edge.consumed is None else f" for {edge.consumed}"
    return (
        f"{edge.service} emitted {edge.emitted}{cause} {count} times and does not declare it; export the capability "
        "of the release that runs, or deploy the one that is declared"
    )


def _versions(declared: Declared, edge: Edge) -> str:
    types = {each.type for each in (edge.consumed, edge.emitted) if each is not None}
    known = {
        f"{one.type} v{one.version}"
        for handler in declared.handlers(edge.service, edge.handler)
        for one in (*handler.consumes, *handler.emits)
        if one.type in types
    }
    return " and ".join(sorted(known))


def _alike(effects: Sequence[SeenEvent]) -> dict[tuple[str, str, str, str], list[SeenEvent]]:
    found: dict[tuple[str, str, str, str], list[SeenEvent]] = {}
    for effect in effects:
        found.setdefault((effect.service, effect.handler, effect.type, effect.replay), []).append(effect)
    return found


def _most(handlers: Sequence[DeclaredHandler], type_: str) -> int | None:
    """How many events of a type these handlers may emit together for one; None for no bound, or not at all."""
    counts = [emit.max for handler in handlers for emit in handler.emits if emit.type == type_]
    return None if not counts or None in counts else sum(filter(None, counts))
