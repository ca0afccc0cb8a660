"""Where `choreo graph --observed` looks: a Jaeger, or topics of a broker."""

import time
from collections.abc import Sequence

from choreo.cli.console import embedded_path, require_log, run_async
from choreo.errors import ConfigurationError
from choreo.flow.estate import TRACES_MAX, read_estate
from choreo.flow.observed import ObservedFlow, observed
from choreo.flow.sightings import from_records, from_spans
from choreo.opening import open_transport
from choreo.record import Record

HEADERS_ONLY = "From headers alone: who took an event in without sending another is not on the log."


def observe_jaeger(url: str, since_s: float) -> tuple[ObservedFlow, list[str]]:
    """The flow of all traces of a window, and what it cannot know."""
    estate = read_estate(url, since_s=since_s)
    sightings, intakes = from_spans(estate.spans)
    traces = len({span.trace_id for span in estate.spans})
    notes = [f"From {traces} traces of {url}: what is not sampled is not here."]
    if estate.cut_short:
        names = ", ".join(estate.cut_short)
        notes.append(f"Only the newest {TRACES_MAX} traces of {names} were read: a shorter --since counts all.")
    return observed(sightings, intakes, window_s=since_s), notes


def observe_topics(broker: str, topics: Sequence[str], since_s: float) -> tuple[ObservedFlow, list[str]]:
    """The flow that records' headers tell, and what they cannot."""
    require_log(broker)
    records = run_async(_records(broker, topics, since_s))
    sightings = from_records(records)
    notes = [f"From {len(records)} records.", HEADERS_ONLY]
    if any(each.guessed for each in sightings):
        notes.append("Where no ce_causationid is, the order within a trace was taken for the cause: dashed.")
    return observed(sightings, (), window_s=since_s), notes


def stopped(flow: ObservedFlow) -> list[str]:
    """A sentence for each kind of event of which some led to nothing, though its like do."""
    return [
        f"{each.stopped} of {each.seen} {each.name} led to nothing, as {each.went_on} others did"
        for each in flow.events
        if each.stopped
    ]


async def _records(broker: str, topics: Sequence[str], since_s: float) -> Sequence[Record]:
    transport = open_transport(broker)
    await transport.open()
    try:
        existing = await transport.topics()
        if not topics and embedded_path(broker) is None:
            raise ConfigurationError("give --topics: all topics of a Kafka are too many to read")
        if unknown := [name for name in topics if name not in existing]:
            raise ConfigurationError(f"the broker has no topic {', '.join(unknown)}")
        since_ms = max(0, int((time.time() - since_s) * 1000))
        return await transport.scan(list(topics) or list(existing), since_ms=since_ms)
    finally:
        await transport.close()
