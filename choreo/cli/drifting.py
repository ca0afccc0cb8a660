"""Where `choreo drift` looks: at a log with the stores beside it, or at a Jaeger."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from choreo.cli.console import embedded_path, require_log
from choreo.flow.drift_log import LogReading, Window
from choreo.flow.drift_seen import Seen
from choreo.flow.drift_traces import from_traces
from choreo.flow.estate import read_estate
from choreo.flow.model import Capability
from choreo.opening import open_store, open_transport
from choreo.ports import Transport
from choreo.record import Record
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore

SLACK_S_MAX = 3600.0
DIGESTS_ONLY = ("redis", "rediss", "changelog")
"""Stores that keep each key as a digest: who handled what cannot be read back from them."""


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
    history: list[Mapping[str, Any]] = []
    told: set[str] = set()
    for opened, services in _stores(look.capability, broker, store, notes):
        await opened.open()
        try:
            for flow in ("", *reading.flows):  # records that nobody could read are of no flow
                history += await opened.history(flow)
        finally:
            await opened.close()
        told.update(services)
    return await asyncio.to_thread(reading.seen, history, window=window, told=told, notes=notes)


def _stores(
    capability: Capability, broker: str, url: str | None, notes: list[str]
) -> list[tuple[Any, Sequence[str]]]:
    """Stores that can tell who handled what, and of which services; `notes` is told why others cannot."""
    services = [service.name for service in capability.services]
    path = embedded_path(broker)
    if url is None:
        return [] if path is None else [(SqliteStore(Database(str(path)), SystemClock(), with_log=False), services)]
    kind, _, name = url.partition(":")
    if kind in DIGESTS_ONLY:
        notes.append(f"Who handled what is not told by {kind}, which keeps its keys as digests.")
        return []
    if kind != "sqlite":
        return [(cast(Any, open_store(url, "", "", None, clock=SystemClock())), services)]
    by_file: dict[Path, list[str]] = {}
    for service in services:
        by_file.setdefault(Path(name.replace("{service}", service)), []).append(service)
    found: list[tuple[Any, Sequence[str]]] = []
    for file, whose in by_file.items():
        if file.exists():
            found.append((SqliteStore(Database(str(file)), SystemClock(), with_log=False), whose))
        else:
            notes.append(f"There is no {file} here: the store of {', '.join(whose)} was not asked.")
    return found


async def _records(
    look: Look, broker: str, transport: Transport, topics: Sequence[str], since_ms: int
) -> tuple[Sequence[Record], list[str]]:
    """Of all topics of an embedded log; of a Kafka those declared, since all are too many to read."""
    existing = await transport.topics()
    notes = []
    wanted = list(existing)
    if embedded_path(broker) is None:
        named = {*_topics(look.capability, look.topic_prefix), *topics}
        wanted = [name for name in existing if name in named]
        notes.append("Topics that nobody declares were not read; --topics adds some.")
    if unknown := [name for name in topics if name not in existing]:
        notes.append(f"The broker has no topic {', '.join(unknown)}.")
    return await transport.scan(wanted, since_ms=max(0, since_ms)), notes


def _topics(capability: Capability, prefix: str) -> Collection[str]:
    names = [service.dead_letter_topic for service in capability.services]
    for _, handler in capability.handlers():
        names += [each.topic for each in (*handler.consumes, *handler.emits)]
    for flow in capability.flows:
        names += [each.topic for each in (flow.starts, *flow.ends)]
    return {prefix + name for name in names}
