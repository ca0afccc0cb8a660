"""Declarations against those of a release: what a deploy would break for keys, offsets and records that are there."""

from collections.abc import Iterator

from choreo.flow.findings import Finding, ordered
from choreo.flow.model import Capability, DeclaredEvent, DeclaredHandler, DeclaredService, Direction, EventRef


def against(now: Capability, released: Capability) -> list[Finding]:
    """What is gone or changed since the release, and what is new where the release cannot take it.

    Builds of both run at once while a deploy is under way.
    """
    services = {service.name: service for service in now.services}
    sent = _all(now, "send")
    found: list[Finding] = []
    for before in released.services:
        after = services.get(before.name)
        if after is None:
            message = (
                f"the service {before.name} is gone: its name is part of every key of its handlers, and what its "
                "group has not read stays unread; a renamed one handles everything again"
            )
            found.append(Finding("vanished_service", before.name, message))
        else:
            found += [*_service(before, after), *_handlers(before, after), *_events(before, after)]
            found += _narrowed(before, after, sent)
    found += [*_types(now, released), *_early(now, released)]
    return ordered(found)


def _service(before: DeclaredService, after: DeclaredService) -> Iterator[Finding]:
    if before.group != after.group:
        message = (
            f"the consumer group was {before.group} and is {after.group}, which has no offsets: it would begin where "
            f"Service(start=) says; write group={before.group!r}"
        )
        yield Finding("changed_group", before.name, message)
    if before.source != after.source:
        message = (
            f"the source was {before.source} and is {after.source}: source and id are what duplicates are known by, "
            f"so what is sent again after the deploy is handled again; write source={before.source!r}"
        )
        yield Finding("changed_source", before.name, message)


def _handlers(before: DeclaredService, after: DeclaredService) -> Iterator[Finding]:
    handlers = {handler.name: handler for handler in after.handlers}
    new = [handler for handler in after.handlers if handler.name not in {each.name for each in before.handlers}]
    for handler in before.handlers:
        where = f"{before.name}.{handler.name}"
        there = handlers.get(handler.name)
        if there is None:
            yield Finding("vanished_handler", where, _vanished(handler, new))
            continue
        if handler.idempotency_key != there.idempotency_key:
            was, is_ = (
                key or "the event's source and id" for key in (handler.idempotency_key, there.idempotency_key)
            )
            message = f"its idempotency key was {was} and is {is_}: what was handled before is not known as handled"
            yield Finding("changed_idempotency_key", where, message)
        for type_ in sorted({ref.type for ref in there.consumes}):
            gone = before.reads_versions(handler, type_) - after.reads_versions(there, type_)
            if gone:
                said = ", ".join(f"v{version}" for version in sorted(gone))
                message = (
                    f"{where} no longer reads {said} of {type_}: what is on the log of it would be dead-lettered as "
                    "unknown_version; upcast it, or keep reading it until retention has taken it"
                )
                yield Finding("dropped_version", where, message)


def _vanished(handler: DeclaredHandler, new: list[DeclaredHandler]) -> str:
    alike = [
        each.name for each in new if {ref.type for ref in each.consumes} & {ref.type for ref in handler.consumes}
    ]
    hint = f'; if it is {alike[0]} now, write name="{handler.name}" in its decorator' if alike else ""
    return (
        f"the handler {handler.name} is gone: its name is part of its idempotency keys and of the ids it derives, so "
        f"under another name it would do again what is done{hint}"
    )


def _events(before: DeclaredService, after: DeclaredService) -> Iterator[Finding]:
    for type_ in sorted({event.type for event in before.events}):
        where = f"{before.name}.{type_}"
        was, is_ = _topics(before, type_, "receive"), _topics(after, type_, "receive")
        if is_ and (left := sorted(was - after.reads_topics)):
            message = f"{before.name} no longer reads {type_} from {', '.join(left)}: what is left there stays unread"
            yield Finding("changed_topic", where, message)
        was, is_ = _topics(before, type_, "send"), _topics(after, type_, "send")
        if is_ and (left := sorted(was - is_)):
            message = f"{before.name} no longer sends {type_} to {', '.join(left)}: who reads there waits for ever"
            yield Finding("changed_topic", where, message)
        keys = [
            {event.key for event in service.events if event.type == type_ and event.direction == "send"}
            for service in (before, after)
        ]
        if all(keys) and keys[0] != keys[1]:
            was_key, is_key = (" and ".join(sorted(key or "none" for key in each)) for each in keys)
            message = (
                f"the record key of {type_} was {was_key} and is {is_key}: events of one key before and after the "
                "deploy lie in different partitions, and in no order"
            )
            yield Finding("changed_key", where, message)


def _topics(service: DeclaredService, type_: str, direction: Direction) -> set[str]:
    return {event.topic for event in service.events if event.type == type_ and event.direction == direction}


def _types(now: Capability, released: Capability) -> Iterator[Finding]:
    """Types that no service reads or emits any more; a service that left another one to it breaks nothing."""
    for type_ in sorted(_all(released, "receive") - _all(now, "receive")):
        message = f"nobody reads {type_} any more: its records are skipped from the deploy on, without a word"
        yield Finding("dropped_type", type_, message)
    for type_ in sorted(_all(released, "send") - _all(now, "send")):
        message = f"nobody emits {type_} any more: who waits for it, in this repository or another, waits for ever"
        yield Finding("dropped_emission", type_, message)


def _narrowed(before: DeclaredService, after: DeclaredService, sent: set[str]) -> Iterator[Finding]:
    """Types that one handler emits no more and others do; those of nobody are `dropped_emission`."""
    handlers = {handler.name: handler for handler in after.handlers}
    for handler in before.handlers:
        if (there := handlers.get(handler.name)) is None:
            continue
        gone = {emit.type for emit in handler.emits} - {emit.type for emit in there.emits}
        for type_ in sorted(gone & sent):
            after_types = " or ".join(sorted({ref.type for ref in handler.consumes}))
            message = (
                f"{before.name}.{handler.name} no longer emits {type_}, and others do: what waits for it after "
                f"{after_types}, a process or a person, waits for ever unless it takes what is emitted instead"
            )
            yield Finding("narrowed_handler", f"{before.name}.{handler.name}", message)


def _early(now: Capability, released: Capability) -> Iterator[Finding]:
    """Versions and types that are new on the log, for services that as released would lose them."""
    known = {(event.type, event.version) for each in released.services for event in each.events if _sent(event)}
    readers = {service.name: service for service in now.services}
    new = {event for each in now.services for event in map(_ref, filter(_sent, each.events))}
    for ref in sorted(new, key=str):
        if (ref.type, ref.version) in known:
            continue
        lost = []
        for service in released.services:
            handlers = [each for each in service.handlers if ref.type in {one.type for one in each.consumes}]
            taken = _reads(readers.get(service.name), ref)
            if any(ref.version not in service.reads_versions(each, ref.type) for each in handlers):
                lost.append(f"{service.name} dead-letters it as unknown_version")
            elif not handlers and taken and ref.topic in service.reads_topics:
                lost.append(f"{service.name} reads {ref.topic} and passes it over")
        if lost:
            message = (
                f"{ref} is emitted, and the release that still runs meanwhile does not take it: {'; '.join(lost)}. "
                "Deploy who reads it first, and what emits it when that has been done"
            )
            yield Finding("early_emission", ref.type, message)


def _sent(event: DeclaredEvent) -> bool:
    return event.direction == "send"


def _ref(event: DeclaredEvent) -> EventRef:
    return EventRef(type=event.type, version=event.version, topic=event.topic)


def _reads(service: DeclaredService | None, ref: EventRef) -> bool:
    return service is not None and any(ref.type == one.type for each in service.handlers for one in each.consumes)


def _all(capability: Capability, direction: Direction) -> set[str]:
    return {event.type for service in capability.services for event in service.events if event.direction == direction}
