"""What drift is measured on: events, what caused them and who handled them, each once however often it was sent.

No I/O and no clock: `choreo.flow.drift_log` and `choreo.flow.drift_traces` make it out of what a window holds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from choreo.flow.model import Capability
from choreo.flow.waiting import DECODE

Basis = Literal["log", "log and store", "traces"]
HANDLED, DEAD_LETTER, DONE, DUPLICATE, DELAYED = "handled", "dead_letter", "done", "duplicate", "delayed"
UNFINISHED = ""
_RANK = (HANDLED, DEAD_LETTER, DONE, DUPLICATE, DELAYED, UNFINISHED)
"""What counts of several deliveries: an event that was replayed from the dead letters is handled."""
SKIPPED = "skipped"
"""Reason of an event that an operator took out of the queue of its key: it is told as a dead letter is."""
UNKNOWN_VERSION = "unknown_version"
"""Reason of a dead letter: a handler has no class for the version of its event."""


class SeenEvent(NamedTuple):
    """One event.

    Attributes:
        key: Source and id, which together name it.
        version: None where nobody told it.
        topic: Without the environment's prefix.
        service: That emitted it; for a source that no declared service has, the source.
        at_ms: Since the epoch.
        cause: `key` of the event that caused it; its bare id where that event was not seen; None at the beginning.
        handler: That emitted it, "" where it is not known.
        flow: Correlation id.
        record_key: Of the record, "" for none or where nobody told it.
        replay: Base of the id, where it was emitted for a replay under an id of its own; else "".
    """

    key: str
    type: str
    version: int | None
    topic: str
    service: str
    at_ms: float
    cause: str | None = None
    handler: str = ""
    flow: str = ""
    trace_id: str = ""
    record_key: str = ""
    replay: str = ""


class SeenUnit(NamedTuple):
    """One event handled by one handler, all deliveries of it together.

    Attributes:
        event: `key` of a seen event.
        at_ms: When it began, or where only a store tells it, when it was done.
        outcome: handled, dead_letter, done (one of these two), duplicate (it was handled before), delayed (to be
            tried again, or parked until then), or empty while it is not finished.
        reason: Of a dead letter.
        attempts: None where nobody told.
        duration_s: None where nobody told.
    """

    event: str
    service: str
    handler: str
    at_ms: float
    outcome: str
    reason: str = ""
    attempts: int | None = None
    duration_s: float | None = None
    trace_id: str = ""


class ByHand(NamedTuple):
    """What somebody did to a flow by hand.

    Attributes:
        service: Whose instance, or whose dead letter or handler it was.
        kind: set-state, fire-timer, migrate; replay, or drop of a dead letter.
        what: In words, with the kind; such as `set-state waiting -> ended`.
        flow: Correlation id, "" where it is not known.
        event: `key` of the event that was replayed or given up.
    """

    service: str
    kind: str
    what: str
    who: str
    why: str
    at_ms: float
    flow: str = ""
    event: str = ""


class Broken(NamedTuple):
    """An event, or the handling of one, whose cause should have been seen and was not."""

    service: str
    at_ms: float
    flow: str
    trace_id: str


@dataclass(frozen=True)
class Seen:
    """All that was seen in a window, from `from_ms` to `to_ms` since the epoch.

    Attributes:
        told: Services of which it is known what they handled, also where they emitted nothing.
        doubt: Why what was not seen may have happened all the same; empty if it would have been seen.
        sampled: Share of flows in the traces: None if unknown, 1.0 on the log.
        notes: For people: what was read and what it cannot tell.
        by_hand: What somebody did in the window, in order of time.
    """

    basis: Basis
    from_ms: float
    to_ms: float
    events: Mapping[str, SeenEvent]
    units: Mapping[tuple[str, str, str], SeenUnit]
    told: frozenset[str]
    sampled: float | None = 1.0
    doubt: str = ""
    broken: Sequence[Broken] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    by_hand: Sequence[ByHand] = ()

    @cached_property
    def effects(self) -> Mapping[str, Sequence[SeenEvent]]:
        """Key of an event -> those it caused."""
        found: dict[str, list[SeenEvent]] = {}
        for event in self.events.values():
            if event.cause is not None and event.cause in self.events:
                found.setdefault(event.cause, []).append(event)
        return found

    @cached_property
    def flows(self) -> Mapping[str, Sequence[SeenEvent]]:
        """Correlation id -> its events."""
        found: dict[str, list[SeenEvent]] = {}
        for event in self.events.values():
            if event.flow:
                found.setdefault(event.flow, []).append(event)
        return found

    @cached_property
    def alike(self) -> Mapping[tuple[str, str], int]:
        """How many events there are of a type and a record key."""
        return Counter((event.type, event.record_key) for event in self.events.values())

    def unit(self, event: str, service: str, handler: str) -> SeenUnit | None:
        """What a handler made of an event; a record that its service could not read counts for all its handlers."""
        return self.units.get((event, service, handler)) or self.units.get((event, service, DECODE))


def outcome_of(said: str) -> tuple[str, str] | None:
    """Outcome and reason, as a store or a span tells them; None where no handler had to do with it."""
    outcome, _, reason = said.partition(":")
    if outcome == "parked":
        return DELAYED, reason
    if outcome == "unparked":
        return (DEAD_LETTER, SKIPPED) if reason == "drop" else None
    return outcome, reason


def earliest(events: Iterable[SeenEvent]) -> dict[str, SeenEvent]:
    """Each event once, as it was first seen, in order of time."""
    found: dict[str, SeenEvent] = {}
    for event in sorted(events, key=lambda each: each.at_ms):
        found.setdefault(event.key, event)
    return found


def grouped(units: Iterable[SeenUnit]) -> dict[tuple[str, str, str], SeenUnit]:
    """Deliveries of one event to one handler as one: what it came to in the end, and the most attempts of any."""
    found: dict[tuple[str, str, str], SeenUnit] = {}
    for unit in sorted(units, key=lambda each: (_RANK.index(each.outcome), each.at_ms)):
        key = (unit.event, unit.service, unit.handler)
        first = found.setdefault(key, unit)
        if first is not unit and (unit.attempts or 0) > (first.attempts or 0):
            found[key] = first._replace(attempts=unit.attempts)
    return found


def service_names(capability: Capability) -> dict[str, str]:
    """Source of events -> the declared service that has it."""
    return {service.source: service.name for service in capability.services}


def ref_label(type_: str, version: int | None) -> str:
    """`order.placed v1`, and no version where none is known."""
    return type_ if version is None else f"{type_} v{version}"
