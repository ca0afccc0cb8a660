"""Where `choreo drift` looks: at a log with the stores beside it, or at a Jaeger."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from choreo.cli.console import embedded_path, require_log
from choreo.cli.histories import Asked, history, interventions, opened
from choreo.cli.tracing import Where, declared_topics
from choreo.flow.drift_log import LogReading, Window
from choreo.flow.drift_seen import UNFINISHED, ByHand, Seen, SeenUnit
from choreo.flow.drift_traces import from_traces
from choreo.flow.estate import read_estate
from choreo.flow.model import Capability
from choreo.opening import open_transport
from choreo.ports import Transport
from choreo.record import Record

SLACK_S_MAX = 3600.0


class Look(NamedTuple):
    """What to look for, how far back in seconds, and what is known of topics and sampling."""

    capability: Capability
    since_s: float
    topic_prefix: str
    sampled: float | None

    def window(self) -> Window:
        """From `since_s` ago until now; a cause is looked for a tenth of it before its effect."""
        now_ms = time.time() * 1000
        return Window(now_ms - self.since_s * 1000, now_ms, min(SLACK_S_MAX, self.since_s / 10) * 1000)


def from_jaeger(look: Look, url: str) -> Seen:
    """What the traces of a window show."""
    estate = read_estate(url, since_s=look.since_s)
    return from_traces(
        estate.spans,
        capability=look.capability,
        window=look.window(),
        sampled=look.sampled,
        cut_short=estate.cut_short,
        topic_prefix=look.topic_prefix,
    )


async def from_broker(look: Look, broker: str, store: str | None, topics: Sequence[str]) -> Seen:
    """What the log of a window shows, and the stores of the declared services."""
    require_log(broker)
    window = look.window()
    transport = open_transport(broker)
    await transport.open()
    try:
        records, notes = await _records(look, broker, transport, topics, int(window.from_ms))
    finally:
        await transport.close()
    reading = await asyncio.to_thread(LogReading, records, capability=look.capability, topic_prefix=look.topic_prefix)
    services = [service.name for service in look.capability.services]
    rows: list[Mapping[str, Any]] = []
    known: list[SeenUnit] = []
    told: set[str] = set()
    async with opened(broker, store, services, notes) as stores:
        done = await interventions(stores, since_ms=int(window.from_ms))
        by_hand = [
            ByHand(each.process, each.what.split()[0], each.what, each.who, each.why, each.at_ms, each.correlation_id)
            for each in done
        ]
        for each in stores:
            told.update(each.services)
            if each.of_flows:  # records that nobody could read are of no flow
                for of_flow in (await history([each], ["", *reading.flows])).values():
                    rows += of_flow
            else:
                known += await _known(each, reading)
    return await asyncio.to_thread(
        reading.seen, rows, known=known, window=window, told=told, notes=notes, by_hand=by_hand
    )


async def _known(asked: Asked, reading: LogReading) -> list[SeenUnit]:
    """Of a store that has digests alone: it says of each event and handler whether it was handled."""
    by_group: dict[str, dict[bytes, SeenUnit]] = {}
    for group, digest, unit in reading.keys(asked.services):
        by_group.setdefault(group, {})[digest] = unit
    found = []
    for group, units in by_group.items():
        for digest, done in (await asked.store.keys(group, list(units))).items():
            found.append(units[digest] if done else units[digest]._replace(outcome=UNFINISHED))
    return found


async def _records(
    look: Look, broker: str, transport: Transport, topics: Sequence[str], since_ms: int
) -> tuple[Sequence[Record], list[str]]:
    """Of all topics of an embedded log; of a Kafka those declared, since all are too many to read."""
    existing = await transport.topics()
    notes = []
    wanted = list(existing)
    if embedded_path(broker) is None:
        named = {*declared_topics(Where(capability=look.capability, topic_prefix=look.topic_prefix)), *topics}
        wanted = [name for name in existing if name in named]
        notes.append("Topics that nobody declares were not read; --topics adds some.")
    if unknown := [name for name in topics if name not in existing]:
        notes.append(f"The broker has no topic {', '.join(unknown)}.")
    return await transport.scan(wanted, since_ms=max(0, since_ms)), notes
