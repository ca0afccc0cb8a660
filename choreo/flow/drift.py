"""The declared flow against what was seen of it: findings with ids and levels, fitness and precision. No I/O.

`choreo.flow.drift_log` and `choreo.flow.drift_traces` say what was seen, `drift_presence`, `drift_absence` and
`drift_outliers` what follows from it.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from choreo.flow.drift_absence import broken, never, observed_edges, overdue, runs, silence
from choreo.flow.drift_edges import Declared, Sighted, seen_as, sighted
from choreo.flow.drift_findings import DRIFT_LEVELS, DriftFinding
from choreo.flow.drift_hand import interventions, unforced
from choreo.flow.drift_outliers import outliers
from choreo.flow.drift_presence import cardinality, circles, edges, late, letters
from choreo.flow.drift_seen import DEAD_LETTER, Seen
from choreo.flow.model import Capability

TIMEOUT_S = 900.0
"""How long what must come of an event is waited for: longer than five attempts with backoff take."""


class FlowSample(NamedTuple):
    """Flows of one kind that began in the window; `oldest_open_s` is 0 where none is open."""

    name: str
    started: int
    ended: int
    oldest_open_s: float


@dataclass(frozen=True, slots=True)
class Drift:
    """What came of a comparison.

    Attributes:
        fitness: Share of the edges seen that are declared, None if none was seen. 1.0: nothing runs undeclared.
        precision: Share of the declared edges that were seen, None if none is declared. Low: dead or rare paths.
        sample: How many events, units, edges and correlation ids were looked at.
    """

    findings: Sequence[DriftFinding]
    fitness: float | None
    precision: float | None
    sample: Mapping[str, int]
    flows: Sequence[FlowSample]
    seen: Seen
    notes: Sequence[str]
    silenced: int = 0

    @property
    def violated(self) -> bool:
        """Whether a violation stands."""
        return any(each.level == "violation" for each in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        seen = self.seen
        return {
            "ok": not self.violated,
            "basis": seen.basis,
            "window": {"from_ms": round(seen.from_ms), "to_ms": round(seen.to_ms)},
            "sampled": seen.sampled,
            "absence": "inconclusive" if seen.doubt else "evidence",
            "doubt": seen.doubt,
            "fitness": self.fitness,
            "precision": self.precision,
            "sample": dict(self.sample),
            "flows": [each._asdict() for each in self.flows],
            "findings": [each.as_dict() for each in self.findings],
            "silenced": self.silenced,
            "notes": list(self.notes),
        }


def compare(
    capability: Capability, seen: Seen, *, timeout_s: float = TIMEOUT_S, services: Collection[str] = ()
) -> Drift:
    """Everything that differs.

    Args:
        capability: What is declared, of all services that take part.
        timeout_s: An event younger than this is not judged for what did not come of it.
        services: Only edges of these are looked at; of all if empty.
    """
    judged = capability.of(*services) if services else capability
    declared = Declared(judged)
    sightings = [each for each in sighted(seen) if not services or each.edge.service in services]
    ordinary = unforced(sightings, seen)
    timeout_ms = timeout_s * 1000
    findings = [
        *edges(declared, sightings),
        *letters(declared, seen),
        *cardinality(declared, seen),
        *circles(Declared(capability), seen, services),
        *late(ordinary, seen, timeout_ms),
        *silence(declared, seen, timeout_ms),
        *never(declared, sightings, seen),
        *broken(seen, services),
        *overdue(declared, seen),
        *outliers(ordinary, seen),
        *interventions(seen, services),
    ]
    fitness, precision = _measures(declared, sightings, seen)
    sample = {
        "correlation_ids": len(seen.flows),
        "events": len(seen.events),
        "units": len(seen.units),
        "edges": len({each.edge for each in sightings}),
    }
    notes = [*seen.notes, *_dead_letters(seen)]
    return Drift(_ordered(findings), fitness, precision, sample, list(_flows(declared, seen)), seen, notes)


def _measures(declared: Declared, sightings: Sequence[Sighted], seen: Seen) -> tuple[float | None, float | None]:
    """Of the log alone, what it cannot show is no part of the measure."""
    found = {each.edge for each in sightings}
    fits = sum(declared.verdict(edge) == "declared" for edge in found)
    provable = [edge for edge in declared.edges if edge.emitted is not None or edge.service in seen.told]
    there = observed_edges(sightings)
    shown = sum(seen_as(edge, there) for edge in provable)
    return (
        round(fits / len(found), 4) if found else None,
        round(shown / len(provable), 4) if provable else None,
    )


def _flows(declared: Declared, seen: Seen) -> Iterator[FlowSample]:
    for flow in declared.capability.flows:
        found = list(runs(declared, flow, seen))
        open_ms = [seen.to_ms - begun.at_ms for begun, ended_ms, _ in found if ended_ms is None]
        yield FlowSample(flow.name, len(found), len(found) - len(open_ms), round(max(open_ms, default=0.0) / 1000, 3))


def _dead_letters(seen: Seen) -> Iterator[str]:
    reasons = Counter(unit.reason for unit in seen.units.values() if unit.outcome == DEAD_LETTER)
    if reasons:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        yield f"Dead letters ({told}) explain what did not come of their events; that is not counted as missing."


def _ordered(findings: Sequence[DriftFinding]) -> list[DriftFinding]:
    return sorted(findings, key=lambda each: (DRIFT_LEVELS.index(each.level), each.id, each.where))
