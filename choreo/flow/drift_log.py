"""What a log, and the idempotency stores beside it, show of a flow: complete, whatever was sampled. No I/O."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from choreo.core.emission import business_digest, derived_id, is_derived, key_digest
from choreo.envelope import Envelope
from choreo.flow.drift_edges import Declared
from choreo.flow.drift_seen import (
    DEAD_LETTER,
    DONE,
    UNFINISHED,
    Broken,
    ByHand,
    Seen,
    SeenEvent,
    SeenUnit,
    earliest,
    grouped,
    outcome_of,
    service_names,
)
from choreo.flow.joining import dead_letter_of, envelope_of, is_retry, replay_of
from choreo.flow.model import Capability
from choreo.flow.timeline import DeadLetter, Place, Replayed
from choreo.record import Record

ORDINALS_MAX = 100
"""Of one type for one cause: beyond, who of a service emitted them is not worked out."""

_NO_STORE = "The log does not show who took an event in without emitting another; --store does."


class Window(NamedTuple):
    """What was looked at, in milliseconds since the epoch, and how long a cause may be before its effect."""

    from_ms: float
    to_ms: float
    slack_ms: float = 60_000


class LogReading:
    """Records read once: they tell the flows, whose history the stores are then asked for.

    Args:
        records: Of the flow's topics, dead letters among them; other records are counted and passed over.
        topic_prefix: Of actual topics, before the declared ones.
    """

    def __init__(self, records: Sequence[Record], *, capability: Capability, topic_prefix: str = "") -> None:
        self.flows: dict[str, None] = {}
        self._prefix = topic_prefix
        self._declared = Declared(capability)
        self._names = service_names(capability)
        self._handlers = {each.name: [handler.name for handler in each.handlers] for each in capability.services}
        self._replays = {topic_prefix + each.replay_topic: each.name for each in capability.services}
        self._orders: list[ByHand] = []
        self._marks: list[tuple[str, ByHand]] = []
        self._given_up: dict[str, tuple[str, str]] = {}  # where a dead letter lies: its event and flow
        self._bases: dict[str, dict[str, None]] = {}  # event: of the ids of what was emitted for a replay of it
        self._letters: list[SeenUnit] = []
        self._places: dict[Place, str] = {}
        self._found: list[tuple[SeenEvent, Envelope]] = []
        self._strange = 0
        for record in records:
            self._take(record)
        self._events = self._linked()

    def keys(self, services: Collection[str]) -> Iterator[tuple[str, bytes, SeenUnit]]:
        """What to ask a store that has digests alone: group, key, and the unit that is done if it has that key so."""
        for event in self._events.values():
            source, _, id_ = event.key.partition(" ")
            for service, handler in self._declared.consumers(event):
                digest: bytes | None = None
                if handler.idempotency_key is None:
                    digest = key_digest(service.name, handler.name, source, id_)
                elif (known := self._declared.business_key(event, service, handler)) is not None:
                    digest = business_digest(service.name, handler.name, known)
                if digest is not None and service.name in services:
                    unit = SeenUnit(event.key, service.name, handler.name, event.at_ms, DONE)
                    yield service.group, digest, unit

    def seen(
        self,
        history: Iterable[Mapping[str, Any]] = (),
        *,
        known: Iterable[SeenUnit] = (),
        window: Window,
        told: Collection[str] = (),
        notes: Sequence[str] = (),
        by_hand: Iterable[ByHand] = (),
    ) -> Seen:
        """What the log shows, and the rows of stores.

        Args:
            history: Rows of a store's `history`, of each of `flows` and of the empty correlation id.
            known: Of `keys`, those that a store has.
            told: Services whose store was asked.
            notes: For people, before those of what was read.
            by_hand: What the stores know of; orders to replay are on the log.
        """
        events = self._events
        units = grouped([*self._letters, *_of_rows(history, self._places), *known])
        said = [
            *notes,
            f"From {len(self._found) + len(self._letters) + self._strange} records: {len(events)} events.",
        ]
        if self._strange:
            said.append(f"{self._strange} records are no CloudEvents and were passed over.")
        if older := sum(letter.event not in events for letter in self._letters):
            said.append(f"{older} dead letters are of events before the window.")
        if not told:
            said.append(_NO_STORE)
        given_up = ((mark, self._given_up.get(letter, ("", ""))) for letter, mark in self._marks)
        dropped = (mark._replace(event=event, flow=flow) for mark, (event, flow) in given_up)
        return Seen(
            "log and store" if told else "log",
            window.from_ms,
            window.to_ms,
            events,
            {key: unit for key, unit in units.items() if key[0] in events},
            frozenset(told),
            broken=list(_broken(events, window, {each.event for each in self._orders})),
            by_hand=sorted([*by_hand, *self._orders, *dropped], key=lambda each: each.at_ms),
            notes=said,
        )

    def _take(self, record: Record) -> None:
        envelope = envelope_of(record)
        place = Place(record.topic, record.partition, record.offset)
        order = replay_of(record, place)
        if envelope is None:
            if order is not None:
                self._marks.append((order.letter, self._ordered(order, record)))
            self._strange += record.value is not None
            return
        key = event_key(envelope.source, envelope.id)
        if (letter := dead_letter_of(record, place)) is not None:
            self._letters.append(_of_letter(letter, key, record.timestamp_ms))
            self._given_up[str(place)] = key, envelope.correlationid
            return
        self._places[place] = key
        if order is not None:  # a copy of the event, for one handler: who handled it is told by the store
            if order.base:
                self._bases.setdefault(key, {}).setdefault(order.base)
            if not is_retry(record) and order.mode != "queue":
                self._orders.append(self._ordered(order, record)._replace(event=key, flow=envelope.correlationid))
            return
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
            record_key=(record.key or b"").decode("utf-8", "replace"),
        )
        self._found.append((event, envelope))
        self.flows.setdefault(envelope.correlationid)

    def _ordered(self, order: Replayed, record: Record) -> ByHand:
        service = self._replays.get(record.topic, record.topic.removeprefix(self._prefix))
        kind = "drop" if order.mode in ("drop", "skip") else "replay"
        verb = order.mode if order.mode in ("release", "skip") else kind
        what = f"{verb} {order.handler}" + (", forced" if order.mode == "force" else "")
        return ByHand(service, kind, what, order.by, order.note, record.timestamp_ms)

    def _linked(self) -> dict[str, SeenEvent]:
        """Every event once, with its cause, which is known by its id alone, and the handler that its id tells."""
        envelopes: dict[str, Envelope] = {}
        by_id: dict[str, SeenEvent] = {}
        for event, envelope in self._found:
            envelopes.setdefault(event.key, envelope)
            by_id.setdefault(envelope.id, event)
        events = earliest(event for event, _ in self._found)
        alike = Counter((event.cause, event.service, event.type) for event in events.values())
        for key, event in events.items():
            cause = by_id.get(event.cause or "")
            if cause is not None:
                count = alike[event.cause, event.service, event.type]
                handler, replay = self._handler(event, envelopes[key].id, envelopes[cause.key], count)
                events[key] = event._replace(cause=cause.key, handler=handler, replay=replay)
        return events

    def _handler(self, event: SeenEvent, id_: str, cause: Envelope, count: int) -> tuple[str, str]:
        """Who emitted it, and for which replay if its id is made of one's; nothing where the id does not tell."""
        if is_derived(id_, cause.id):
            bases = ("", *self._bases.get(event_key(cause.source, cause.id), ()))
            for ordinal in range(min(count, ORDINALS_MAX)):
                for handler in self._handlers.get(event.service, ()):
                    for base in bases:
                        made_of = base or cause.id
                        if derived_id(event.service, handler, cause.source, made_of, event.type, ordinal) == id_:
                            return handler, base
        return "", ""


def event_key(source: str, id_: str) -> str:
    """The name of an event among all that is seen."""
    return f"{source} {id_}"


def _of_rows(history: Iterable[Mapping[str, Any]], places: Mapping[Place, str]) -> Iterator[SeenUnit]:
    for row in history:
        event = places.get(Place(str(row["topic"]), int(row["partition"]), int(row["offset"])))
        if event is None:
            continue  # older than the window
        service, _, handler = str(row["handler"]).rpartition(".")
        told = outcome_of(str(row["outcome"])) if row["done"] else (UNFINISHED, "")
        if told is None:
            continue
        duration_s = float(row["duration_s"])
        at_ms = float(row["done_ms"] or 0) - duration_s * 1000
        yield SeenUnit(event, service, handler, at_ms, *told, int(row["attempts"]), duration_s)


def _broken(events: Mapping[str, SeenEvent], window: Window, replayed: Collection[str]) -> Iterator[Broken]:
    """Early in the window a cause may lie before it; one that was replayed, at any time."""
    known = {key.rpartition(" ")[2] for key in replayed}
    for event in events.values():
        late = event.at_ms > window.from_ms + window.slack_ms
        if event.cause is not None and event.cause not in events and event.cause not in known and late:
            yield Broken(event.service, event.at_ms, event.flow, event.trace_id)


def _of_letter(letter: DeadLetter, event: str, at_ms: float) -> SeenUnit:
    attempts = letter.attempts
    told = int(attempts) if attempts.isascii() and attempts.isdigit() and len(attempts) < 9 else None
    return SeenUnit(event, letter.service, letter.handler, at_ms, DEAD_LETTER, letter.reason, told)


def _trace_id(traceparent: str | None) -> str:
    parts = (traceparent or "").split("-")
    return parts[1] if len(parts) >= 4 else ""
