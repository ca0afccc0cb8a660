"""What was declared and has not happened yet, and how far the flow has come. No I/O, no clock."""

from collections.abc import Collection, Iterable

from choreo.core.emission import derived_id
from choreo.flow.model import Capability, DeclaredFlow, DeclaredHandler, DeclaredService
from choreo.flow.timeline import UNKNOWN, WAITING, Expected, Handling, Node, Progress, Timeline

DECODE = "(decode)"
"""As in `choreo.runtime.routing`, for a record that no handler could be given; a test holds the two together."""

KEY_KEPT_S = 7 * 86_400
"""How long a key is kept at least, unless somebody set `--key-ttl` lower: without one later, nothing is known."""


def expect(
    timeline: Timeline,
    capability: Capability,
    *,
    now_ms: int,
    told: Collection[str],
    topic_prefix: str = "",
) -> None:
    """Note at each event the declared handlers of which nothing is told, and the flow's progress.

    What a handler consumed without an emit leaves nothing on the log. So without a key of the store or a span it is
    `unknown`, unless it must emit something. That it was done is said on the log only by an id that it alone makes.

    Args:
        now_ms: Milliseconds since the epoch.
        told: Services whose store was asked: what it has no key of was not handled.
        topic_prefix: Of actual topics, before the declared ones.
    """
    consumers: dict[str, list[tuple[DeclaredService, DeclaredHandler]]] = {}
    for service, handler in capability.handlers():
        for type_ in dict.fromkeys(each.type for each in handler.consumes):
            consumers.setdefault(type_, []).append((service, handler))
    for node in timeline.nodes():
        for service, handler in consumers.get(node.envelope.type, ()):
            topics = {topic_prefix + each.topic for each in handler.consumes if each.type == node.envelope.type}
            if node.place is None or node.place.topic in topics:
                _expect_of(node, service, handler, now_ms, service.name in told)
    timeline.progress = _progress(timeline, capability.flows, now_ms)


def _expect_of(node: Node, service: DeclaredService, handler: DeclaredHandler, now_ms: int, told: bool) -> None:
    label = f"{service.name}.{handler.name}"
    known = [each for each in node.handlings if each.handler in (label, f"{service.name}.{DECODE}")]
    finished = any(each.outcome for each in known)
    its = (service.name, handler.name), (service.name, DECODE)
    if finished or any((each.service, each.handler) in its for each in node.dead_letters):
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
    elif not known and handler.idempotency_key:
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
