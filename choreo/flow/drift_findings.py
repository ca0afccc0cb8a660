"""What `choreo drift` says: findings with ids and levels, and the evidence they are counted from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

DriftLevel = Literal["violation", "improvement", "information", "inconclusive"]
DRIFT_LEVELS: tuple[DriftLevel, ...] = ("violation", "improvement", "information", "inconclusive")
PAGE = "docs/drift.md"
EXAMPLES_MAX = 5

DRIFT_LEVEL_OF: Mapping[str, DriftLevel] = {
    "undeclared_service": "violation",
    "undeclared_edge": "violation",
    "cardinality_exceeded": "violation",
    "cycle": "violation",
    "schema_violation": "violation",
    "overdue_flow": "violation",
    "missing_emission": "improvement",
    "unconsumed_event": "improvement",
    "unknown_version": "improvement",
    "intervention": "information",
    "never_observed_edge": "information",
    "broken_trace": "information",
    "late_hop": "information",
    "slow_edge": "information",
    "retried_edge": "information",
}
"""Every id there is, each with a section of its own name in `PAGE`."""


@dataclass(frozen=True, slots=True)
class DriftFinding:
    """One difference between what is declared and what was seen.

    Attributes:
        id: Stable word, one of `DRIFT_LEVEL_OF`.
        level: Its id's, or inconclusive where what was looked at cannot decide it.
        where: An edge such as `order.placed v1 -> inventory.reserve -> stock.reserved v1`, or a part of one.
        count: How often; 0 for what was never seen.
        first_seen_ms, last_seen_ms: Since the epoch, None for what was never seen.
        trace_ids, correlation_ids: Examples, at most EXAMPLES_MAX.
        message: What is so, and what to do.
    """

    id: str
    level: DriftLevel
    where: str
    message: str
    count: int = 0
    first_seen_ms: float | None = None
    last_seen_ms: float | None = None
    trace_ids: tuple[str, ...] = ()
    correlation_ids: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        found = asdict(self)
        renamed = {"where": "edge", "trace_ids": "example_trace_ids", "correlation_ids": "example_correlation_ids"}
        return {renamed.get(name, name): value for name, value in found.items()} | {"page": f"{PAGE}#{self.id}"}


@dataclass(slots=True)
class Evidence:
    """Sightings of one and the same thing."""

    count: int = 0
    first_ms: float | None = None
    last_ms: float | None = None
    traces: dict[str, None] = field(default_factory=dict)
    flows: dict[str, None] = field(default_factory=dict)

    def add(self, at_ms: float, trace_id: str, flow: str) -> None:
        """One more."""
        self.count += 1
        self.first_ms = at_ms if self.first_ms is None else min(self.first_ms, at_ms)
        self.last_ms = at_ms if self.last_ms is None else max(self.last_ms, at_ms)
        for examples, example in ((self.traces, trace_id), (self.flows, flow)):
            if example and len(examples) < EXAMPLES_MAX:
                examples.setdefault(example)

    def finding(self, id_: str, where: str, message: str, doubt: str = "") -> DriftFinding:
        """What it comes to; with a `doubt`, which says why, it is inconclusive."""
        return DriftFinding(
            id_,
            "inconclusive" if doubt else DRIFT_LEVEL_OF[id_],
            where,
            f"{message}; inconclusive, since {doubt}" if doubt else message,
            self.count,
            self.first_ms,
            self.last_ms,
            tuple(self.traces),
            tuple(self.flows),
        )
