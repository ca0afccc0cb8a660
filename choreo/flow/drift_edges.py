"""What was declared and what was seen in the same words: edges of a flow, compared one by one. No I/O."""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

from choreo.flow.drift_seen import UNKNOWN_VERSION, Seen, SeenEvent, SeenUnit, ref_label
from choreo.flow.model import Capability, DeclaredHandler, DeclaredService
from choreo.flow.waiting import DECODE

Verdict = Literal["declared", "other_version", "undeclared"]
Place = tuple[DeclaredService, DeclaredHandler]


class Ref(NamedTuple):
    """A type and its version; None where nobody told, which fits any."""

    type: str
    version: int | None

    def __str__(self) -> str:
        return ref_label(self.type, self.version)

    def match(self, versions: Collection[int]) -> Literal["", "type", "exact"]:
        """Whether it may be one of these versions of its type; empty where there are none."""
        if not versions:
            return ""
        return "exact" if self.version is None or self.version in versions else "type"


class Edge(NamedTuple):
    """An event that a handler took in (`emitted` None), or what it emitted for it.

    Attributes:
        consumed: None where the cause of an emission was not seen.
        handler: "" where only the service is known.
    """

    consumed: Ref | None
    service: str
    handler: str
    emitted: Ref | None = None

    def __str__(self) -> str:
        label = f"{self.service}.{self.handler}" if self.handler else self.service
        return " -> ".join(str(each) for each in (self.consumed, label, self.emitted) if each is not None)


def ref(event: SeenEvent) -> Ref:
    """An event's."""
    return Ref(event.type, event.version)


class Declared:
    """A capability asked edge by edge."""

    def __init__(self, capability: Capability) -> None:
        self.capability = capability
        self.services = {service.name: service for service in capability.services}
        self._consumers: dict[str, list[Place]] = {}
        for service, handler in capability.handlers():
            for type_ in dict.fromkeys(each.type for each in handler.consumes):
                self._consumers.setdefault(type_, []).append((service, handler))

    def consumers(self, event: SeenEvent) -> Iterator[Place]:
        """Handlers that are to take in this event: its type decides, in any topic that their service reads."""
        for service, handler in self._consumers.get(event.type, ()):
            versions = service.reads_versions(handler, event.type)
            if ref(event).match(versions) == "exact" and event.topic in ("", *service.reads_topics):
                yield service, handler

    def repeated(
        self, event: SeenEvent, service: DeclaredService, handler: DeclaredHandler, seen: Seen
    ) -> bool | None:
        """Whether a handler with a key of its own may have dropped an event as a duplicate; None: cannot be told.

        It can where that key is the record's, as other events then are seen to have it, too.
        """
        if handler.idempotency_key is None:
            return False
        key = self.business_key(event, service, handler)
        return None if key is None else seen.alike[event.type, key] > 1

    def business_key(self, event: SeenEvent, service: DeclaredService, handler: DeclaredHandler) -> str | None:
        """What a handler with a key of its own knows an event by; None where that is not the record's key."""
        keys = {each.key for each in service.events if each.direction == "receive" and each.type == event.type}
        return event.record_key or None if keys == {handler.idempotency_key} else None

    def handlers(self, service: str, name: str, consumed: str | None = None) -> list[DeclaredHandler]:
        """Those of a service that may be meant: by name, all without one; of those that consume a type."""
        there = self.services[service].handlers if service in self.services else ()
        return [
            each
            for each in there
            if name in ("", each.name) and (consumed is None or any(one.type == consumed for one in each.consumes))
        ]

    def verdict(self, edge: Edge) -> Verdict:
        """Whether a service may do this, or might in another version of the events."""
        found: Verdict = "undeclared"
        for handler in self.handlers(edge.service, edge.handler):
            consumed = emitted = "exact"
            if edge.consumed is not None:
                versions = self.services[edge.service].reads_versions(handler, edge.consumed.type)
                consumed = edge.consumed.match(versions)
            if edge.emitted is not None:
                sent = {emit.version for emit in handler.emits if emit.type == edge.emitted.type}
                emitted = edge.emitted.match(sent)
            if consumed and emitted:
                if consumed == emitted == "exact":
                    return "declared"
                found = "other_version"
        return found

    @cached_property
    def edges(self) -> Sequence[Edge]:
        """All of them: each event a handler consumes, and each it may emit for it.

        Of a process it is its instance's state that decides for which event, or timer, it emits what: for whichever.
        """
        found = []
        for service, handler in self.capability.handlers():
            taken = [Edge(Ref(each.type, each.version), service.name, handler.name) for each in handler.consumes]
            found += taken
            for cause in taken if service.timers is None else [Edge(None, service.name, handler.name)]:
                found += [cause._replace(emitted=Ref(emit.type, emit.version)) for emit in handler.emits]
        return list(dict.fromkeys(found))


class Sighted(NamedTuple):
    """One sighting of an edge: the event taken in or sent, and the unit where it was taken in."""

    edge: Edge
    event: SeenEvent
    unit: SeenUnit | None = None

    @property
    def at_ms(self) -> float:
        """When it was."""
        return self.event.at_ms if self.unit is None else self.unit.at_ms

    @property
    def trace_id(self) -> str:
        """Of whichever tells."""
        return self.event.trace_id if self.unit is None or not self.unit.trace_id else self.unit.trace_id


def sighted(seen: Seen) -> Iterator[Sighted]:
    """Every edge that was seen, as often as it was. Who refuses an event unread has not taken it in."""
    for unit in seen.units.values():
        if unit.handler != DECODE and unit.reason != UNKNOWN_VERSION:
            event = seen.events[unit.event]
            yield Sighted(Edge(ref(event), unit.service, unit.handler), event, unit)
    for event in seen.events.values():
        if event.cause is not None:
            cause = seen.events.get(event.cause)
            consumed = None if cause is None else ref(cause)
            yield Sighted(Edge(consumed, event.service, event.handler, ref(event)), event)


def seen_as(edge: Edge, found: frozenset[Edge]) -> bool:
    """Whether a declared edge is among those seen: perhaps without a handler's name, or a version.

    That a handler took an event in is seen, too, where it is what it emitted.
    """
    refs = [None if each is None else (each, Ref(each.type, None)) for each in (edge.consumed, edge.emitted)]
    consumed, emitted = refs
    for handler in (edge.handler, ""):
        for taken in consumed or (None,):
            for sent in emitted or (None,):
                if Edge(taken, edge.service, handler, sent) in found:
                    return True
    return False
