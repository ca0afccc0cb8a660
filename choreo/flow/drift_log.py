"""What a log, and the idempotency stores beside it, show of a flow: complete, whatever was sampled. No I/O."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from choreo import envelope as cloudevents
from choreo.core.emission import derived_id, is_derived
from choreo.envelope import Envelope
from choreo.errors import DecodeError
from choreo.flow.drift_seen import (
    DEAD_LETTER,
    UNFINISHED,
    Broken,
    Seen,
    SeenEvent,
    SeenUnit,
    earliest,
    grouped,
    service_names,
)
from choreo.flow.model import Capability
from choreo.flow.timeline import DLQ_PREFIX, Place
from choreo.record import Record

ORDINALS_MAX = 100
"""Of one type for one cause: beyond, who of a service emitted them is not worked out."""

_NO_STORE = "The log does not show who took an event in without emitting another; --store does."


class Window(NamedTuple):
    """What was looked at, in milliseconds since the epoch, and how long a cause may be before its effect."""

    from_ms: float
    to_ms: float
    slack_ms: float = 60_000


def from_log(
    records: Sequence[Record],
    history: Iterable[Mapping[str, Any]] = (),
    *,
    capability: Capability,
    window: Window,
    told: Collection[str] = (),
    topic_prefix: str = "",
) -> Seen:
    """Read records and rows of stores.

    Args:
        records: Of the flow's topics, dead letters among them; other records are counted and passed over.
        history: Rows of a store's `history`, of every flow and of the empty correlation id.
        told: Services whose store was asked.
        topic_prefix: Of actual topics, before the declared ones.
    """
    reading = _Reading(capability, topic_prefix)
    for record in records:
        reading.take(record)
    events = reading.linked()
    units = [*reading.letters, *_of_rows(history, reading.places)]
    letters = {letter.event for letter in reading.letters if letter.event not in events}
    notes = [f"From {len(records)} records: {len(events)} events."]
    if reading.strange:
        notes.append(f"{reading.strange} records are no CloudEvents and were passed over.")
    if letters:
        notes.append(f"{len(letters)} dead letters are of events that are not in the window.")
    if not told:
        notes.append(_NO_STORE)
    return Seen(
        "log and store" if told else "log",
        *window[:2],
        events,
        {key: unit for key, unit in grouped(units).items() if key[0] in events},
        frozenset(told),
        broken=list(_broken(events, window)),
        notes=notes,
    )


class _Reading:
    """Records taken in one by one; causes are known by their id alone, and so are linked at the end."""

    def __init__(self, capability: Capability, topic_prefix: str) -> None:
        self.letters: list[SeenUnit] = []
        self.places: dict[Place, str] = {}
        self.strange = 0
        self._prefix = topic_prefix
        self._names = service_names(capability)
        self._handlers = {each.name: [handler.name for handler in each.handlers] for each in capability.services}
        self._found: list[tuple[SeenEvent, Envelope]] = []
        self._by_id: dict[str, SeenEvent] = {}
        self._sources: dict[str, str] = {}

    def take(self, record: Record) -> None:
        """One record, whatever it is."""
        envelope = _envelope(record)
        if envelope is None:
            self.strange += record.value is not None
            return
        key = event_key(envelope.source, envelope.id)
        if (letter := _letter(record, key)) is not None:
            self.letters.append(letter)
            return
        self.places[Place(record.topic, record.partition, record.offset)] = key
        event = SeenEvent(
            key,
            envelope.type,
            envelope.version,
            record.topic.removeprefix(self._prefix),
            self._names.get(envelope.source, envelope.source.strip("/")),
            record.timestamp_ms,
            envelope.causationid,
            flow=envelope.correlationid,
            trace_id=_trace_id(envelope.traceparent),
        )
        self._found.append((event, envelope))

    def linked(self) -> dict[str, SeenEvent]:
        """Every event once, with its cause and, where its id tells, the handler that made it."""
        for event, envelope in self._found:
            self._by_id.setdefault(envelope.id, event)
            self._sources.setdefault(event.key, envelope.source)
        ids = {event.key: envelope.id for event, envelope in self._found}
        alike: dict[tuple[str | None, str, str], int] = {}
        for event in earliest(event for event, _ in self._found).values():
            group = (event.cause, event.service, event.type)
            alike[group] = alike.get(group, 0) + 1
        linked = []
        for event, _ in self._found:
            cause = self._by_id.get(event.cause or "")
            if cause is not None:
                count = alike[event.cause, event.service, event.type]
                handler = self._handler(event, ids[event.key], cause, ids[cause.key], count)
                event = event._replace(cause=cause.key, handler=handler)
            linked.append(event)
        return earliest(linked)

    def _handler(self, event: SeenEvent, id_: str, cause: SeenEvent, cause_id: str, count: int) -> str:
        if not is_derived(id_, cause_id):
            return ""
        source = self._sources[cause.key]
        for ordinal in range(min(count, ORDINALS_MAX)):
            for handler in self._handlers.get(event.service, ()):
                if derived_id(event.service, handler, source, cause_id, event.type, ordinal) == id_:
                    return handler
        return ""


def event_key(source: str, id_: str) -> str:
    """The name of an event among all that is seen."""
    return f"{source} {id_}"


def _of_rows(history: Iterable[Mapping[str, Any]], places: Mapping[Place, str]) -> Iterator[SeenUnit]:
    for row in history:
        event = places.get(Place(str(row["topic"]), int(row["partition"]), int(row["offset"])))
        if event is None:
            continue  # older than the window
        service, _, handler = str(row["handler"]).rpartition(".")
        outcome, _, reason = str(row["outcome"]).partition(":") if row["done"] else (UNFINISHED, "", "")
        duration_s = float(row["duration_s"])
        at_ms = float(row["done_ms"] or 0) - duration_s * 1000
        yield SeenUnit(event, service, handler, at_ms, outcome, reason, int(row["attempts"]), duration_s)


def _broken(events: Mapping[str, SeenEvent], window: Window) -> Iterator[Broken]:
    """Early in the window a cause may lie before it."""
    for event in events.values():
        if event.cause is not None and event.cause not in events and event.at_ms > window.from_ms + window.slack_ms:
            yield Broken(event.service, event.at_ms, event.flow, event.trace_id)


def _envelope(record: Record) -> Envelope | None:
    if record.value is None:
        return None
    try:
        return cloudevents.read(record.headers, record.value)[0]
    except DecodeError:
        return None


def _letter(record: Record, event: str) -> SeenUnit | None:
    told = {
        name.removeprefix(DLQ_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith(DLQ_PREFIX)
    }
    if "reason" not in told:
        return None
    attempts = told.get("attempts", "")
    return SeenUnit(
        event,
        told.get("service", ""),
        told.get("handler", ""),
        record.timestamp_ms,
        DEAD_LETTER,
        told["reason"],
        int(attempts) if attempts.isascii() and attempts.isdigit() and len(attempts) < 9 else None,
    )


def _trace_id(traceparent: str | None) -> str:
    parts = (traceparent or "").split("-")
    return parts[1] if len(parts) >= 4 else ""
