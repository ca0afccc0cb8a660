"""Declarations turned into a capability. Nothing is run: classes and annotations say it all."""

import inspect
from collections.abc import Callable, Iterable, Sequence

from choreo.binding import BoundHandler
from choreo.event import Command, Event
from choreo.flow.model import (
    Capability,
    DeclaredEvent,
    DeclaredFlow,
    DeclaredHandler,
    DeclaredService,
    Direction,
    Emit,
    EventRef,
)
from choreo.process.timing import TimerDue, from_others
from choreo.service import Flow, Service

Topic = Callable[[str], str]
"""Logical topic -> the one it is mapped to."""


def declared(
    services: Iterable[tuple[Service, Sequence[BoundHandler]]], flows: Iterable[Flow], topic: Topic
) -> Capability:
    """The capability of services whose handlers are bound."""
    found = [_service(service, handlers, topic) for service, handlers in services]
    return Capability(
        services=tuple(sorted(found, key=lambda each: each.name)),
        flows=tuple(sorted((_flow(flow, topic) for flow in flows), key=lambda each: each.name)),
    )


def _service(service: Service, handlers: Sequence[BoundHandler], topic: Topic) -> DeclaredService:
    received = [event for bound in handlers for event in from_others(bound.handler.events)]
    sent = [event for bound in handlers for event in bound.emits]
    events = [_event(each, "receive", topic) for each in dict.fromkeys(received)]
    events += [_event(each, "send", topic) for each in dict.fromkeys(sent)]
    timers = [event for bound in handlers for event in bound.handler.events if issubclass(event, TimerDue)]
    return DeclaredService(
        name=service.name,
        group=service.group,
        source=service.source,
        dead_letter_topic=topic(service.dlq_topic),
        replay_topic=topic(service.replay_topic),
        delay_topics=tuple(topic(service.delay_topic(delay_s)) for delay_s in service.delays_s),
        timers=_ref(timers[0], topic) if timers else None,
        handlers=tuple(sorted((_handler(bound, topic) for bound in handlers), key=lambda each: each.name)),
        events=tuple(sorted(events, key=lambda each: (each.type, each.version, each.direction, each.name))),
    )


def _handler(bound: BoundHandler, topic: Topic) -> DeclaredHandler:
    handler = bound.handler
    emits = [
        Emit(**_ref(event, topic).model_dump(), min=least, max=most) for event, (least, most) in bound.counts.items()
    ]
    return DeclaredHandler(
        name=handler.name,
        consumes=tuple(sorted((_ref(event, topic) for event in from_others(bound.handler.events)), key=_order)),
        emits=tuple(sorted(emits, key=_order)),
        emits_min=bound.emits_min,
        idempotency_key=handler.idempotency_key,
        attempts_max=handler.retry.attempts_total,
    )


def _event(event: type[Event], direction: Direction, topic: Topic) -> DeclaredEvent:
    mode = "serialization" if direction == "send" else "validation"
    return DeclaredEvent(
        **_ref(event, topic).model_dump(),
        direction=direction,
        name=event.__name__,
        key=event.event_key,
        kind="command" if issubclass(event, Command) else "event",
        doc=inspect.cleandoc(event.__doc__ or ""),
        upcasts_from=tuple(sorted(event.event_upcasters)) if direction == "receive" else (),
        json_schema=event.model_json_schema(by_alias=True, mode=mode),  # type: ignore[arg-type]
    )


def _flow(flow: Flow, topic: Topic) -> DeclaredFlow:
    ends = dict.fromkeys(_ref(event, topic) for event in flow.ends)
    return DeclaredFlow(
        name=flow.name,
        starts=_ref(flow.starts, topic),
        ends=tuple(sorted(ends, key=_order)),
        deadline_s=None if flow.deadline is None else flow.deadline.total_seconds(),
    )


def _ref(event: type[Event], topic: Topic) -> EventRef:
    return EventRef(type=event.event_type, version=event.event_version, topic=topic(event.event_topic))


def _order(ref: EventRef) -> tuple[str, int, str]:
    return ref.type, ref.version, ref.topic
