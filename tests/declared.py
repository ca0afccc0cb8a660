"""Capabilities written in a line a handler, for tests of what is said about them.

    declared("inventory.reserve: placed -> reserved? rejected?", starts="placed", ends="reserved rejected")

`?` is 0..1, `*` any number, `@2` a version, `!` a Command.
"""

import re

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

_COUNTS: dict[str, tuple[int, int | None]] = {"": (1, 1), "?": (0, 1), "*": (0, None)}


def ref(word: str) -> EventRef:
    """`paid@2!` as a reference; the topic is `events`."""
    found = re.fullmatch(r"([a-z._]+)(?:@(\d+))?!?", word)
    assert found, word
    return EventRef(type=found[1], version=int(found[2] or 1), topic="events")


def declared(*lines: str, starts: str = "", ends: str = "") -> Capability:
    """The capability of handlers; with `starts` a flow of it."""
    handlers: dict[str, list[DeclaredHandler]] = {}
    events: dict[str, dict[tuple[str, Direction], DeclaredEvent]] = {}
    for line in lines:
        name, _, rest = line.partition(": ")
        service, _, handler = name.partition(".")
        consumed, _, emitted = rest.partition(" -> ")
        known = events.setdefault(service, {})
        emits = []
        for word in emitted.split():
            least, most = _COUNTS[word[-1] if word[-1] in "?*" else ""]
            word = word.rstrip("?*")
            emits.append(Emit(**ref(word).model_dump(), min=least, max=most))
            known[word, "send"] = _event(word, "send")
        for word in consumed.split():
            known[word, "receive"] = _event(word, "receive")
        consumes = tuple(ref(word) for word in consumed.split())
        made = DeclaredHandler(name=handler, consumes=consumes, emits=tuple(emits), attempts_max=5)
        handlers.setdefault(service, []).append(made)
    flows: tuple[DeclaredFlow, ...] = ()
    if starts:
        flows = (DeclaredFlow(name="flow", starts=ref(starts), ends=tuple(map(ref, ends.split()))),)
    services = tuple(
        DeclaredService(
            name=service,
            group=service,
            source=f"/{service}",
            dead_letter_topic=f"{service}.dlq",
            replay_topic=f"{service}.replay",
            handlers=tuple(handlers[service]),
            events=tuple(events[service].values()),
        )
        for service in sorted(handlers)
    )
    return Capability(services=services, flows=flows)


def _event(word: str, direction: Direction) -> DeclaredEvent:
    return DeclaredEvent(
        **ref(word).model_dump(),
        direction=direction,
        name=word.title(),
        key="id",
        kind="command" if word.endswith("!") else "event",
        doc="",
        json_schema={"type": "object", "properties": {"id": {"type": "string"}}},
    )
