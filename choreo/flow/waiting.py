"""What was declared and has not happened yet, and how far the flow has come. No I/O, no clock."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple
from uuid import UUID

import orjson

from choreo.core.emission import business_digest, derived_id, key_digest
from choreo.flow.model import Capability, DeclaredFlow, DeclaredHandler, DeclaredService
from choreo.flow.timeline import UNKNOWN, WAITING, Expected, Handling, Node, Progress, Timeline

DECODE = "(decode)"
"""As in `choreo.runtime.replaying`, for a record that no handler could be given; a test holds the two together."""

KEY_KEPT_S = 7 * 86_400
"""How long a key is kept at least, unless somebody set `--key-ttl` lower: without one later, nothing is known."""


Consumer = tuple[DeclaredService, DeclaredHandler]


class Unanswered(NamedTuple):
    """A handler and an event of which nothing is told, and the idempotency key that a store may have of them."""

    group: str
    digest: bytes


def unanswered(timeline: Timeline, capability: Capability, *, topic_prefix: str = "") -> list[Unanswered]:
    """What to ask stores for: who keeps keys without correlation ids can still say which of these it has."""
    return [
        Unanswered(service.group, digest)
        for node, service, handler in _consumers(timeline, capability, topic_prefix)
        if not _told(node, service, handler) and not _dead(node, service, handler)
        if (digest := _digest(node, service, handler)) is not None
    ]


def expect(
    timeline: Timeline,
    capability: Capability,
    *,
    now_ms: int,
    told: Collection[str],
    keys: Mapping[bytes, bool] | None = None,
    topic_prefix: str = "",
) -> None:
    """Note at each event the declared handlers of which nothing is told, and the flow's progress.

    What a handler consumed without an emit leaves nothing on the log. So without a key of the store or a span it is
    `unknown`, unless it must emit something. That it was done is said on the log only by an id that it alone makes.

    Args:
        now_ms: Milliseconds since the epoch.
        told: Services whose store was asked: what it has no key of was not handled.
        keys: Of what is `unanswered`, the digests that a store has: True is done, False is claimed.
        topic_prefix: Of actual topics, before the declared ones.
    """
    for node, service, handler in _consumers(timeline, capability, topic_prefix):
        done = (keys or {}).get(_digest(node, service, handler) or b"")
        if done is not None and not _told(node, service, handler):
            label = f"{service.name}.{handler.name}"
            node.handlings.append(Handling(label, "done" if done else "", None, None, told_by="key"))
        _expect_of(node, service, handler, now_ms, service.name in told)
    timeline.progress = _progress(timeline, capability.flows, now_ms)


def _consumers(
    timeline: Timeline, capability: Capability, topic_prefix: str
) -> Iterator[tuple[Node, DeclaredService, DeclaredHandler]]:
    """Every event with each handler that is declared to take it from where it lies."""
    by_type: dict[str, list[Consumer]] = {}
    for service, handler in capability.handlers():
        for type_ in dict.fromkeys(each.type for each in handler.consumes):
            by_type.setdefault(type_, []).append((service, handler))
    for node in timeline.nodes():
        for service, handler in by_type.get(node.envelope.type, ()):
            topics = {topic_prefix + each.topic for each in handler.consumes if each.type == node.envelope.type}
            if node.place is None or node.place.topic in topics:
                yield node, service, handler


def _told(node: Node, service: DeclaredService, handler: DeclaredHandler) -> list[Handling]:
    labels = (f"{service.name}.{handler.name}", f"{service.name}.{DECODE}")
    return [each for each in node.handlings if each.handler in labels]


def _dead(node: Node, service: DeclaredService, handler: DeclaredHandler) -> bool:
    its = (service.name, handler.name), (service.name, DECODE)
    return any((each.service, each.handler) in its for each in node.dead_letters)


def _digest(node: Node, service: DeclaredService, handler: DeclaredHandler) -> bytes | None:
    """The unit's idempotency key; None for one of the business whose text is not certain from here."""
    field = handler.idempotency_key
    if field is None:
        return key_digest(service.name, handler.name, node.envelope.source, node.envelope.id)
    schema = next((each.json_schema for each in service.events if each.type == node.envelope.type), {})
    declared = schema.get("properties", {}).get(field, {})
    try:
        value = orjson.loads(node.data)[field]
        if declared.get("type") == "integer" or (declared.get("type"), declared.get("format")) == ("string", None):
            text = str(value)
        elif declared.get("format") == "uuid":
            text = str(UUID(value))
        else:
            return None  # `str` of a time or an enumeration is not what its JSON is
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return business_digest(service.name, handler.name, text)


def _expect_of(node: Node, service: DeclaredService, handler: DeclaredHandler, now_ms: int, told: bool) -> None:
    label, known = f"{service.name}.{handler.name}", _told(node, service, handler)
    if any(each.outcome for each in known) or _dead(node, service, handler):
        return
    if not known and _emitted(node, service.name, handler.name):
        node.handlings.append(Handling(label, "handled", None, None, told_by="log"))
        return
    emits = tuple(dict.fromkeys(each.type for each in handler.emits))
    if known and not emits:
        return  # it is shown as not finished, and nothing comes after it
    for_s, state, why = max(0.0, (now_ms - node.timestamp_ms) / 1000), WAITING, ""
    if not known and not told and not any(each.min for each in handler.emits):
        state, why = UNKNOWN, "neither its store nor a span tells, and what emits nothing leaves nothing on the log"
    elif not known and told and for_s > KEY_KEPT_S:
        state, why = UNKNOWN, "its idempotency key may have been forgotten by now"
    elif not known and handler.idempotency_key and not (told and _digest(node, service, handler)):
        why = f"unless another event with this {handler.idempotency_key} was handled before"
    node.expected.append(Expected(service.name, label, state, emits, for_s, why))


def _emitted(node: Node, service: str, handler: str) -> bool:
    """Whether one of the event's effects has an id that this handler alone makes: several may emit one type."""
    cause = node.envelope
    return any(
        child.envelope.id == derived_id(service, handler, cause.source, cause.id, child.envelope.type, 0)
        for child in node.children
    )


def _progress(timeline: Timeline, flows: Iterable[DeclaredFlow], now_ms: int) -> Progress | None:
    begun = {node.envelope.type: node.timestamp_ms for node in reversed(list(timeline.nodes()))}
    for flow in flows:
        if flow.starts.type not in begun:
            continue
        ends = {each.type for each in flow.ends}
        ended = min(
            ((node.timestamp_ms, node.envelope.type) for node in timeline.nodes() if node.envelope.type in ends),
            default=(now_ms, ""),
        )
        took_s = max(0.0, (ended[0] - begun[flow.starts.type]) / 1000)
        late_s = max(0.0, took_s - flow.deadline_s) if flow.deadline_s is not None else 0.0
        return Progress(flow.name, ended[1], took_s, flow.deadline_s, late_s)
    return None
