"""The declared flow as data: what services consume and emit, exported as a *capability* and put together from files.

A capability is written when a service is built and read where the service's code is not. This module knows nothing of
apps, brokers or drawings; `choreo.flow.declared` makes a capability out of declarations.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from choreo.errors import ConfigurationError

FORMAT: Final = 1
"""Raised when a reader of the old shape could not read the new one."""

Direction = Literal["receive", "send"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class EventRef(_Part):
    """One version of one event type, and the topic it is found in.

    Attributes:
        topic: As `App(topics=...)` maps it, without `CHOREO_TOPIC_PREFIX`, which belongs to an environment.
    """

    type: str
    version: int = Field(ge=1)
    topic: str

    def __str__(self) -> str:
        return f"{self.type} v{self.version}"


class Emit(EventRef):
    """What a handler may emit for one event it handles: at least `min`, at most `max` of them (None: no bound)."""

    min: int = Field(ge=0)
    max: int | None = Field(ge=0)


class DeclaredHandler(_Part):
    """One handler.

    Attributes:
        emits_min: How many events it emits for one at least, whichever: of `A | B` either may be missing, not both.
        idempotency_key: The field that stands for the event, None for its source and id.
    """

    name: str
    consumes: tuple[EventRef, ...]
    emits: tuple[Emit, ...]
    emits_min: int = Field(default=0, ge=0)
    idempotency_key: str | None = None
    attempts_max: int = Field(ge=1)


class DeclaredEvent(EventRef):
    """One event class as one service receives or sends it; two services may have two classes of one type.

    Attributes:
        direction: The service's own view. A class that is both received and sent is here twice.
        name: The class's.
        key: Field whose value is the record key, None for no key.
        json_schema: JSON Schema of the data, complete in itself (`$defs` inside). For "send" it is what is written,
            for "receive" what is accepted.
        upcasts_from: Older versions that are read as this one.
    """

    direction: Direction
    name: str
    key: str | None
    kind: Literal["event", "command"]
    doc: str
    json_schema: dict[str, Any]
    upcasts_from: tuple[int, ...] = ()


class DeclaredService(_Part):
    """One service: a consumer group and its handlers.

    `replay_topic` and `delay_topics`, of what it is to handle again later, are empty in what an older choreo wrote.
    `timers`: what wakes the instances of its process, if it runs one; that is its own affair, and not drawn.
    """

    name: str
    group: str
    source: str
    dead_letter_topic: str
    replay_topic: str = ""
    handlers: tuple[DeclaredHandler, ...]
    events: tuple[DeclaredEvent, ...]
    delay_topics: tuple[str, ...] = ()
    timers: EventRef | None = None

    @property
    def reads_topics(self) -> set[str]:
        """What it subscribes to. A type is taken from any of them: handlers are found by type alone."""
        return {ref.topic for handler in self.handlers for ref in handler.consumes}

    def reads_versions(self, handler: DeclaredHandler, type_: str) -> set[int]:
        """Versions of a type that one of its handlers takes, upcast ones among them; any other is dead-lettered."""
        own = () if self.timers is None else (self.timers,)
        found = {ref.version for ref in (*handler.consumes, *own) if ref.type == type_}
        received = (each for each in self.events if each.direction == "receive" and each.type == type_)
        return found.union(*(each.upcasts_from for each in received if each.version in found))


class DeclaredFlow(_Part):
    """A business process: what begins it, what ends it, and within how many seconds (None: no promise)."""

    name: str
    starts: EventRef
    ends: tuple[EventRef, ...]
    deadline_s: float | None = None


class Capability(_Part):
    """Services and flows, ordered by name; equal declarations give equal capabilities."""

    format: Literal[1] = FORMAT
    services: tuple[DeclaredService, ...]
    flows: tuple[DeclaredFlow, ...] = ()

    def handlers(self) -> Iterator[tuple[DeclaredService, DeclaredHandler]]:
        """Every handler, with its service."""
        for service in self.services:
            for handler in service.handlers:
                yield service, handler

    def of(self, *services: str) -> "Capability":
        """The named services alone, and every flow.

        Raises:
            ConfigurationError: There is no such service.
        """
        there = [service.name for service in self.services]
        if unknown := [name for name in services if name not in there]:
            raise ConfigurationError(f"there is no service {unknown[0]!r}; there are: {', '.join(there)}")
        return Capability(services=tuple(each for each in self.services if each.name in services), flows=self.flows)


def merge(capabilities: Mapping[str, Capability]) -> Capability:
    """Capabilities of several origins as one; what is the same in two of them is there once.

    Args:
        capabilities: By origin, such as the name of a file; clashes are reported by it.

    Raises:
        ConfigurationError: Two origins declare one service or one flow differently.
    """
    services: dict[str, tuple[str, DeclaredService]] = {}
    flows: dict[str, tuple[str, DeclaredFlow]] = {}
    clashes: list[str] = []
    for origin, capability in capabilities.items():
        for service in capability.services:
            there = services.setdefault(service.name, (origin, service))
            if there[1] != service:
                clashes.append(f"service {service.name!r} in {there[0]} and in {origin}")
        for flow in capability.flows:
            known = flows.setdefault(flow.name, (origin, flow))
            if known[1] != flow:
                clashes.append(f"flow {flow.name!r} in {known[0]} and in {origin}")
    if clashes:
        raise ConfigurationError(
            f"declared differently: {'; '.join(clashes)}; give one file of each service, all from one release"
        )
    return Capability(
        services=tuple(services[name][1] for name in sorted(services)),
        flows=tuple(flows[name][1] for name in sorted(flows)),
    )


def to_json(capability: Capability, findings: Sequence[Mapping[str, Any]] = ()) -> str:
    """The capability file: JSON, indented, the same text for the same declarations.

    Args:
        findings: What was found in it, for programs; not read back, since it follows from the rest.
    """
    document = capability.model_dump(mode="json")
    if findings:
        document["findings"] = list(findings)
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def from_json(text: str | bytes, origin: str) -> Capability:
    """Read a capability file.

    Raises:
        ConfigurationError: It is none; the message names `origin`, the place in it and the reason.
    """
    try:
        return Capability.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    if where == "format":
        raise ConfigurationError(f"{origin}: its format is not {FORMAT}, which this choreo reads; export it again")
    raise ConfigurationError(
        f"{origin} is no capability file: {where + ': ' if where else ''}{first['msg']}; "
        "write one with: choreo graph MODULE:APP --format json -o FILE.json"
    )
