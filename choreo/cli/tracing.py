"""Looks for flows wherever `choreo trace` was told to: on the log, in stores, in Jaeger."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from choreo.cli.console import embedded_path
from choreo.cli.histories import Asked, by_hand, history, known_keys, opened, timers
from choreo.errors import ConfigurationError
from choreo.flow import finding, jaeger
from choreo.flow.drawing import moment
from choreo.flow.joining import build, by_flow
from choreo.flow.model import Capability
from choreo.flow.spans import Span
from choreo.flow.timeline import Timeline
from choreo.flow.waiting import expect, unanswered
from choreo.opening import open_transport
from choreo.ports import Transport
from choreo.record import Record
from choreo.runtime.clock import SystemClock

FLOWS_MAX = 20
SLACK_MS = 60_000
"""Clocks of producers differ: a flow's second event may be stamped before its first."""


@dataclass(frozen=True, slots=True)
class Where:
    """What to ask: any of a broker, a store and a Jaeger; `topics` are actual names, all that is known if empty."""

    broker: str | None = None
    store: str | None = None
    jaeger: str | None = None
    capability: Capability | None = None
    topics: tuple[str, ...] = ()
    topic_prefix: str = ""

    @property
    def services(self) -> tuple[str, ...]:
        """Declared ones."""
        return tuple(each.name for each in self.capability.services) if self.capability else ()


@dataclass(slots=True)
class Found:
    """The newest FLOWS_MAX flows in order of time, how many more there are, and what was read for it."""

    timelines: list[Timeline] = field(default_factory=list)
    more: int = 0
    read: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        flows = [each.as_dict() for each in self.timelines]
        return {"flows": flows, "more": self.more, "read": self.read, "remarks": self.remarks}


async def look(where: Where, name: str, *, by_key: bool, since_ms: int) -> Found:
    """Every flow that a name stands for, with all that the sources tell of each.

    Args:
        name: Correlation id, event id or trace id; a record key with `by_key`.
        since_ms: Nothing older is looked at, neither on the log nor in Jaeger.
    """
    found, now_ms = Found(), int(SystemClock().now_s() * 1000)
    since_s = (now_ms - since_ms) / 1000
    records, flows = await _on_log(where, name, by_key, since_ms, found)
    if where.jaeger is not None:
        ask = jaeger.identify
        named = await asyncio.to_thread(ask, where.jaeger, name, where.services, by_key=by_key, since_s=since_s)
        flows = list(dict.fromkeys([*flows, *named]))
    async with opened(where.broker, where.store, where.services, found.remarks) as stores:
        found.read["stores"] = [{"kind": each.kind, "services": list(each.services)} for each in stores]
        guesses = flows or ([] if by_key else [name])
        told = await history(stores, guesses)
        flows = [flow for flow in guesses if flow in flows or told[flow]]
        found.remarks += await by_hand(stores, flows)
        found.read["keys"] = sum(len(told[flow]) for flow in flows)
        spans = await _spans(where, flows, since_s, found)
        of_flow = await asyncio.to_thread(by_flow, records, flows)
        timelines = [build(of_flow[flow], flow, told[flow], spans) for flow in flows]
        await _expect(where, timelines, stores, now_ms)
        for timeline in timelines:
            timeline.timers = await timers(stores, timeline.correlation_id, now_ms)
    timelines.sort(key=lambda each: each.begun_ms)
    found.timelines, found.more = timelines[-FLOWS_MAX:], max(0, len(timelines) - FLOWS_MAX)
    if where.topics and (left_out := [name for name in declared_topics(where) if name not in where.topics]):
        found.remarks.append(f"not read, so what is there may seem to be missing: {', '.join(left_out)}")
    if not found.read["stores"] and where.jaeger is None:
        found.remarks.append("who handled what without an emit is unknown: neither a store nor Jaeger was asked")
    return found


async def _spans(where: Where, flows: Sequence[str], since_s: float, found: Found) -> list[Span]:
    if where.jaeger is None:
        return []
    spans: list[Span] = []
    for flow in flows:
        spans += await asyncio.to_thread(jaeger.find, where.jaeger, flow, where.services, since_s=since_s)
    found.read["jaeger"] = {"url": where.jaeger, "spans": len(spans)}
    return spans


async def _expect(where: Where, timelines: Sequence[Timeline], stores: Sequence[Asked], now_ms: int) -> None:
    """Note what is declared and not told, after asking the stores for its keys."""
    capability, prefix = where.capability, where.topic_prefix
    if capability is None:
        return
    asked = [each for timeline in timelines for each in unanswered(timeline, capability, topic_prefix=prefix)]
    keys = await known_keys(stores, asked)
    told = {service for each in stores for service in each.services}
    for timeline in timelines:
        expect(timeline, capability, now_ms=now_ms, told=told, keys=keys, topic_prefix=prefix)


async def _on_log(
    where: Where, name: str, by_key: bool, since_ms: int, found: Found
) -> tuple[Sequence[Record], list[str]]:
    """The records that may be of the flows, and the flows' ids."""
    if where.broker is None:
        return [], []
    transport = open_transport(where.broker)
    await transport.open()
    try:
        topics = await _topics(where, transport)
        key = name.encode() if by_key else None
        records = await transport.scan(topics, since_ms=since_ms, key=key)
        flows = await asyncio.to_thread(finding.flows_of, records, name, by_key=by_key)
        if by_key:
            # The flow's other events may have other keys. They are not older than the flow.
            if flows:
                mine = await asyncio.to_thread(by_flow, records, flows)
                oldest_ms = min(each.timestamp_ms for some in mine.values() for each in some)
                since_ms = max(since_ms, oldest_ms - SLACK_MS)
            records = await transport.scan(topics, since_ms=since_ms)
            if not flows:
                flows = await asyncio.to_thread(finding.flows_of, records, name, by_key=True)
                if flows:
                    found.remarks.append("not in the partition that Java's client would choose for this key")
    finally:
        await transport.close()
    read = sorted({f"{each.topic}/{each.partition}" for each in records})
    found.read["log"] = {"topics": topics, "since": moment(since_ms), "records": len(records), "partitions": read}
    return records, flows


async def _topics(where: Where, transport: Transport) -> list[str]:
    """Those asked for, else those declared, else all of an embedded log."""
    wanted = list(where.topics) or declared_topics(where)
    existing = await transport.topics(wanted or None)
    if unknown := [name for name in where.topics if name not in existing]:
        raise ConfigurationError(f"the broker has no topic {', '.join(unknown)}")
    if not wanted and embedded_path(where.broker or "") is None:
        raise ConfigurationError("give MODULE:APP or --topics: all topics of a Kafka are too many to read")
    return [name for name in wanted or existing if name in existing]


def declared_topics(where: Where) -> list[str]:
    """Actual names of the topics that the declared services read or write, those of their own among them."""
    if where.capability is None:
        return []
    services = where.capability.services
    own = [(each.dead_letter_topic, each.replay_topic, *each.delay_topics) for each in services]
    names = [name for each in own for name in each if name]
    names += [each.timers.topic for each in services if each.timers is not None]
    for _, handler in where.capability.handlers():
        names += [each.topic for each in (*handler.consumes, *handler.emits)]
    names += [each.starts.topic for each in where.capability.flows]
    return sorted({where.topic_prefix + name for name in names})
