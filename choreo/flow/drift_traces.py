"""What traces alone show of a flow: `send` and `process` spans of choreo, joined by the ids of their events. No I/O.

Joined by id and not by the shape of a trace, since a hop may be a child, a link, or in a trace of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from math import log

from choreo.flow.drift_log import Window, event_key
from choreo.flow.drift_seen import Broken, Seen, SeenEvent, SeenUnit, earliest, grouped, outcome_of, service_names
from choreo.flow.model import Capability
from choreo.flow.sightings import ANCESTORS_MAX
from choreo.flow.spans import CONVERSATION, KEY, Span

_UNLIKELY = 1e-6
_64_BITS = 2.0**64


def from_traces(
    spans: Iterable[Span],
    *,
    capability: Capability,
    window: Window,
    sampled: float | None = None,
    cut_short: Sequence[str] = (),
    topic_prefix: str = "",
) -> Seen:
    """Read spans.

    Args:
        sampled: Share of flows that are sampled, as somebody said; None if nobody did.
        cut_short: Services that have more traces than were read.
        topic_prefix: Of actual topics, before the declared ones.
    """
    reading = _Reading(spans, capability, topic_prefix)
    events, units = reading.events(), reading.units()
    broken = list(reading.broken())
    traces = sorted({event.trace_id for event in events.values()})
    flows = {event.flow for event in events.values() if event.flow}
    found = ratio([_share_of_trace(each) for each in traces], [_share_of_flow(each) for each in flows])
    notes = [f"From {len(traces)} traces: {len(events)} events, {len(units)} of them handled by somebody."]
    if found is not None and (sampled is None or sampled > found):
        notes.append(f"The ids show that about {found:.0%} of flows are sampled" + _contradicted(sampled))
        sampled = found
    if any(event.version is None for event in events.values()):
        notes.append("Some spans tell no version of their event, which then fits any.")
    return Seen(
        "traces",
        *window[:2],
        events,
        {key: unit for key, unit in units.items() if key[0] in events},
        frozenset(service.name for service in capability.services),
        sampled,
        _doubt(sampled, cut_short, reading.lost),
        broken,
        notes,
    )


def ratio(*shares: Sequence[float]) -> float | None:
    """The share that a ratio sampler seems to take, None if nothing shows that one is there.

    Samplers of a ratio r take what hashes, or has a trace id, below r. So if of n numbers that should lie anywhere in
    0..1 none exceeds m, and m ** n is below one in a million, r is about m (n + 1) / n.
    """
    for each in shares:
        highest = max(each, default=1.0)
        if 0.0 < highest < 1.0 and len(each) * log(highest) < log(_UNLIKELY):
            return min(1.0, highest * (len(each) + 1) / len(each))
    return None


def _doubt(sampled: float | None, cut_short: Sequence[str], lost: int) -> str:
    if sampled is None:
        return "nobody said what share of flows is sampled; if it is all of them, say --sampled 1"
    if sampled < 1.0:
        return f"{sampled:.0%} of flows are sampled"
    if cut_short:
        return f"not all traces of {', '.join(cut_short)} were read; take a shorter --since"
    if lost:
        return f"{lost} spans of declared services are missing, as where an exporter drops them"
    return ""


def _contradicted(sampled: float | None) -> str:
    return "." if sampled is None else f", whatever --sampled {sampled:g} says."


class _Reading:
    def __init__(self, spans: Iterable[Span], capability: Capability, topic_prefix: str) -> None:
        self._spans = {(span.trace_id, span.span_id): span for span in spans}
        self._names = service_names(capability)
        self._letters = {service.dead_letter_topic for service in capability.services}
        self._replays = {service.replay_topic for service in capability.services}
        self._prefix = topic_prefix
        self.lost = 0

    def events(self) -> dict[str, SeenEvent]:
        """What was sent; and what was handled though nobody who is traced sent it."""
        processes = [span for span in self._spans.values() if span.processes and _key(span)]
        # Not from a topic of replays: that is no place an event is sent to.
        taken = earliest(self._event(span, None, "") for span in processes if self._topic(span) not in self._replays)
        sent = earliest(self._sent())
        for key in taken.keys() & sent.keys():
            if not sent[key].record_key:
                sent[key] = sent[key]._replace(record_key=taken[key].record_key)
        return taken | sent

    def units(self) -> dict[tuple[str, str, str], SeenUnit]:
        """Who handled what, retries and duplicates together."""
        return grouped(self._processed())

    def broken(self) -> Iterator[Broken]:
        """Spans whose parent was never exported; `lost` counts those that a declared service should have."""
        for span in self._spans.values():
            if not span.parent_id or (span.trace_id, span.parent_id) in self._spans:
                continue
            if span.processes or _sends(span):
                self.lost += span.event_source in self._names
                flow = str(span.attributes.get(CONVERSATION) or "")
                yield Broken(_service(span), span.start_ns / 1e6, flow, span.trace_id)

    def _sent(self) -> Iterator[SeenEvent]:
        for span in self._spans.values():
            if not _sends(span) or not _key(span) or span.attributes.get("choreo.outcome") == "dropped":
                continue
            if self._topic(span) in self._letters:
                continue  # a copy of the event: its `process` span tells of it
            above = self._handled_above(span)
            cause = None if above is None else self._event_of(above)
            yield self._event(span, cause or None, "" if above is None else above.handler)

    def _event(self, span: Span, cause: str | None, handler: str) -> SeenEvent:
        version = str(span.attributes.get("choreo.event_version") or "")
        return SeenEvent(
            _key(span),
            span.event_type,
            int(version) if version.isascii() and version.isdigit() and len(version) < 10 else None,
            self._topic(span),
            self._names.get(span.event_source, span.event_source.strip("/")),
            span.start_ns / 1e6,
            cause,
            handler,
            str(span.attributes.get(CONVERSATION) or ""),
            span.trace_id,
            str(span.attributes.get(KEY) or ""),
        )

    def _processed(self) -> Iterator[SeenUnit]:
        for span in self._spans.values():
            event = self._event_of(span) if span.processes else ""
            outcome, _ = outcome_of(str(span.attributes.get("choreo.outcome") or "")) or ("unparked", "")
            if not event or outcome not in ("handled", "dead_letter", "duplicate", "delayed", ""):
                continue
            yield SeenUnit(
                event,
                _service(span),
                span.handler,
                span.start_ns / 1e6,
                outcome,
                str(span.attributes.get("error.type") or ""),
                span.attempts,
                span.duration_ns / 1e9,
                span.trace_id,
            )

    def _event_of(self, process: Span) -> str:
        """Of a record that could not be read, what the span above it sent."""
        above = self._spans.get((process.trace_id, process.parent_id))
        return _key(process) or (_key(above) if above is not None and _sends(above) else "")

    def _handled_above(self, span: Span) -> Span | None:
        """The handler in which something was sent; there may be spans of its own between."""
        for _ in range(ANCESTORS_MAX):
            above = self._spans.get((span.trace_id, span.parent_id))
            if above is None or above.processes:
                return above
            span = above
        return None

    def _topic(self, span: Span) -> str:
        return str(span.attributes.get("messaging.destination.name") or "").removeprefix(self._prefix)


def _sends(span: Span) -> bool:
    return span.attributes.get("messaging.operation.name") == "send"


def _key(span: Span) -> str:
    return event_key(span.event_source, span.message_id) if span.message_id else ""


def _service(span: Span) -> str:
    return str(span.attributes.get("choreo.service") or span.service)


def _share_of_flow(flow: str) -> float:
    """Where choreo's own sampler puts a flow: see `choreo.telemetry`."""
    return int.from_bytes(blake2b(flow.encode("utf-8", "replace"), digest_size=8).digest(), "big") / _64_BITS


def _share_of_trace(trace_id: str) -> float:
    """Where OpenTelemetry's sampler of a ratio puts a trace: by the low 64 bits of its id."""
    try:
        return int(trace_id[-16:], 16) / _64_BITS
    except ValueError:
        return 1.0
