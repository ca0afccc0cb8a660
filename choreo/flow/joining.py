"""A flow's timeline out of what log, store and Jaeger tell of it, each of which may lack what another has. No I/O."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.errors import DecodeError
from choreo.flow.spans import Span, of_flow
from choreo.flow.timeline import DeadLetter, Handling, Node, Place, Replayed, Timeline
from choreo.record import Record

DLQ_PREFIX = "choreo-dlq-"
REPLAY_PREFIX = "choreo-replay-"
RETRY_PREFIX = "choreo-retry-"
"""As in `choreo.runtime`, which this layer may not import; a test holds them together."""

WITHIN_MAX = 20
"""Spans of a handler's own that are kept; a loop over a database may have made thousands."""

_Key = tuple[str, str]


def build(
    records: Iterable[Record],
    correlation_id: str,
    history: Iterable[Mapping[str, Any]] = (),
    spans: Sequence[Span] = (),
) -> Timeline:
    """The tree of one flow.

    Args:
        records: Of any flow; those of another, and those that are no events, are passed over.
        correlation_id: The flow's, which is the id of the event that began it unless somebody chose another.
        history: Rows of a store's `history`.
        spans: Of any flow.
    """
    nodes = _of_records(records, correlation_id)
    _join_spans(nodes, correlation_id, of_flow(spans, correlation_id))
    unplaced = _join_history(nodes.values(), history)
    ordered = sorted(nodes.values(), key=lambda node: node.timestamp_ms)
    return Timeline(correlation_id, _linked(ordered), unplaced)


def by_flow(records: Iterable[Record], correlation_ids: Collection[str]) -> dict[str, list[Record]]:
    """The records of each of these flows, each envelope read once; with them the marks of dead letters dropped."""
    found: dict[str, list[Record]] = {flow: [] for flow in correlation_ids}
    places: dict[str, str] = {}
    marks: list[tuple[str, Record]] = []
    for record in records:
        envelope = envelope_of(record)
        if envelope is not None and envelope.correlationid in found:
            found[envelope.correlationid].append(record)
            places[str(Place(*record[:3]))] = envelope.correlationid
        elif record.value is None and (mark := replay_of(record, Place(*record[:3]))) is not None:
            marks.append((mark.letter, record))
    for letter, record in marks:
        if letter in places:
            found[places[letter]].append(record)
    return found


def envelope_of(record: Record) -> Envelope | None:
    """What is said of the event in a record; None for a record that is no event."""
    read = _read(record)
    return None if read is None else read[0]


def _read(record: Record) -> tuple[Envelope, bytes] | None:
    if record.value is None:
        return None
    try:
        return cloudevents.read(record.headers, record.value)
    except DecodeError:
        return None


def _of_records(records: Iterable[Record], correlation_id: str) -> dict[_Key, Node]:
    nodes: dict[_Key, Node] = {}
    letters: list[tuple[Envelope, DeadLetter | Replayed, int]] = []
    again: list[tuple[Envelope, Place, int]] = []
    marks: dict[str, Replayed] = {}
    for record in sorted(records, key=lambda each: each.timestamp_ms):
        if record.value is None and (mark := replay_of(record, Place(*record[:3]))) is not None:
            marks[mark.letter] = mark
        read = _read(record)
        if read is None or read[0].correlationid != correlation_id:
            continue
        envelope, data = read
        place = Place(record.topic, record.partition, record.offset)
        if is_retry(record):  # a replay may be delayed, too
            again.append((envelope, place, record.timestamp_ms))
            continue
        letter = dead_letter_of(record, place) or replay_of(record, place)
        if letter is not None:
            letters.append((envelope, letter, record.timestamp_ms))
        elif (known := nodes.get((envelope.source, envelope.id))) is not None:
            known.repeats.append(place)
        else:
            nodes[envelope.source, envelope.id] = Node(envelope, place, record.timestamp_ms, data)
    for envelope, letter, timestamp_ms in letters:
        # The original may be gone from the log (retention) when its dead letter is still there.
        node = nodes.setdefault((envelope.source, envelope.id), Node(envelope, None, timestamp_ms))
        if isinstance(letter, Replayed):
            node.replays.append(letter)
        else:
            node.dead_letters.append(letter)
            node.replays += [marks[str(letter.place)]] if str(letter.place) in marks else []
    for envelope, place, timestamp_ms in again:
        nodes.setdefault((envelope.source, envelope.id), Node(envelope, None, timestamp_ms)).retries.append(place)
    return nodes


def is_retry(record: Record) -> bool:
    """Whether it waits in a topic of delays, be it an event or a replay of one."""
    return any(name.startswith(RETRY_PREFIX) for name, _ in record.headers)


def dead_letter_of(record: Record, place: Place) -> DeadLetter | None:
    """What a record in a dead-letter topic says of itself; None for any other record."""
    told = _told(record, DLQ_PREFIX)
    names = ("service", "handler", "reason", "detail", "attempts")
    return DeadLetter(place, *(told.get(name, "") for name in names)) if "reason" in told else None


def replay_of(record: Record, place: Place) -> Replayed | None:
    """What a record in a topic of replays says of itself; None for any other record. A mark is no event."""
    told = _told(record, REPLAY_PREFIX)
    if "mode" not in told:
        return None
    if "parked" in told:
        told["mode"] = "skip" if told["parked"] == "drop" else "release" if told.get("by") else "queue"
    return Replayed(place, *(told.get(name, "") for name in ("handler", "mode", "by", "note", "letter", "base")))


def _told(record: Record, prefix: str) -> dict[str, str]:
    return {
        name.removeprefix(prefix): (value or b"").decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith(prefix)
    }


def _join_history(nodes: Iterable[Node], history: Iterable[Mapping[str, Any]]) -> list[tuple[Place, Handling]]:
    """Note what a store tells at its event; returns what it tells of events that are not there."""
    by_place: dict[Place, list[Handling]] = {}
    for row in history:
        duration_s, done_ms = float(row["duration_s"]), int(row["done_ms"] or 0)
        handling = Handling(
            str(row["handler"]),
            str(row["outcome"]) if row["done"] else "",
            int(row["attempts"]),
            duration_s,
            int(row["deliveries"]),
            done_ms - duration_s * 1000 if row["done"] and done_ms else None,
        )
        by_place.setdefault(Place(str(row["topic"]), int(row["partition"]), int(row["offset"])), []).append(handling)
    for node in nodes:
        places = [*([] if node.place is None else [node.place]), *node.repeats, *node.retries]
        for place in [*places, *(each.place for each in node.replays)]:
            for handling in by_place.pop(place, ()):
                _note(node, handling)
    return [(place, handling) for place, found in by_place.items() for handling in found]


def _note(node: Node, told: Handling) -> None:
    """Add what a store tells of a handling; where a span tells of the same one, both know something."""
    for at, known in enumerate(node.handlings):
        if (known.handler, known.told_by) == (told.handler, "trace") and known.outcome not in (
            "duplicate",
            "dropped",
        ):
            node.handlings[at] = told._replace(
                begun_ms=known.begun_ms, within=known.within, outcome=told.outcome or known.outcome
            )
            return
    node.handlings.append(told)


def _join_spans(nodes: dict[_Key, Node], correlation_id: str, spans: Sequence[Span]) -> None:
    """Note what spans tell: events that the log does not show, who handled them, and when."""
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    within: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for span in spans:
        if span.message_id is None and (above := _handling_above(span, by_id)) is not None:
            within.setdefault((above.trace_id, above.span_id), []).append((span.name, span.duration_ns / 1e6))
    # Sends first, whatever the clocks of two hosts say: they know the cause.
    for span in sorted(spans, key=lambda each: (each.processes, each.start_ns)):
        if span.message_id is None:
            continue
        key = (span.event_source, span.message_id)
        node = nodes.get(key)
        if node is None:
            above = None if span.processes else _handling_above(span, by_id)
            cause = None if above is None else above.message_id
            envelope = Envelope(
                span.message_id, span.event_source, span.event_type, correlationid=correlation_id, causationid=cause
            )
            node = nodes[key] = Node(envelope, None, span.start_ns // 1_000_000)
        if span.processes:
            _note_process(node, span, within.get((span.trace_id, span.span_id), ()))


def _note_process(node: Node, span: Span, within: Sequence[tuple[str, float]]) -> None:
    place = span.place
    if place is not None and node.place is None and not node.dead_letters:
        node.place = Place(*place)
    node.handlings.append(
        Handling(
            f"{span.service}.{span.handler}",
            span.outcome,
            span.attempts,
            span.duration_ns / 1e9,
            begun_ms=span.start_ns / 1e6,
            told_by="trace",
            within=tuple(within[:WITHIN_MAX]),
        )
    )


def _handling_above(span: Span, by_id: Mapping[tuple[str, str], Span]) -> Span | None:
    """The `process` span that a span is somewhere below of, without another message between them."""
    seen = {span.span_id}
    above = by_id.get((span.trace_id, span.parent_id))
    while above is not None and above.message_id is None and above.span_id not in seen:
        seen.add(above.span_id)
        above = by_id.get((above.trace_id, above.parent_id))
    return above if above is not None and above.processes else None


def _linked(nodes: Sequence[Node]) -> list[Node]:
    """Hang every event below its cause; returns those that have none."""
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
