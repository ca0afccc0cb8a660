"""Declarations against each other: what is emitted and not read, read and not emitted, and what contradicts."""

from collections.abc import Callable, Iterable, Iterator

from choreo.flow.findings import Finding, ordered
from choreo.flow.model import Capability, DeclaredEvent, EventRef
from choreo.flow.topology import Topology, backwards, cycles, label, reached

Rule = Callable[[Topology], Iterator[Finding]]


def shape(capability: Capability) -> list[Finding]:
    """What a picture of the flow shows to who looks for it: ends, sources, cycles, islands."""
    return _found(capability, SHAPE)


def consistency(capability: Capability) -> list[Finding]:
    """`shape`, and where two declarations contradict each other."""
    return _found(capability, (*SHAPE, *CONTRADICTIONS))


def _found(capability: Capability, rules: Iterable[Rule]) -> list[Finding]:
    topology = Topology(capability)
    return ordered(finding for rule in rules for finding in rule(topology))


def _unemitted(topology: Topology) -> Iterator[Finding]:
    for type_ in topology.unemitted():
        waiting = ", ".join(map(label, topology.readers[type_]))
        message = (
            f"nobody emits {type_}, which {waiting} waits for; if it comes from outside, declare a Flow that starts "
            "with it, or give the other service's capability file too"
        )
        yield Finding("unemitted_event", type_, message)


def _unread(topology: Topology) -> Iterator[Finding]:
    for type_ in sorted(set(topology.emitters) - set(topology.readers) - topology.ends):
        emitters = ", ".join(label(place) for place, _ in topology.emitters[type_])
        message = (
            f"nobody reads {type_}, which {emitters} emits, and it ends no flow; read it, name it in Flow(ends=...), "
            "or emit it no more"
        )
        yield Finding("unread_event", type_, message)


def _dead_ends(topology: Topology) -> Iterator[Finding]:
    """Of types that are read: what nobody reads is `unread_event`."""
    lead = reached(backwards(topology.follows), topology.ends)
    for type_ in sorted(reached(topology.follows, topology.starts) & set(topology.readers) - lead):
        readers = ", ".join(map(label, topology.readers[type_]))
        message = (
            f"a flow stops at {type_}: from {readers} no event leads to an end; name {type_} in Flow(ends=...), or "
            "emit what tells how the flow went on"
        )
        yield Finding("dead_end", type_, message)


def _unreachable(topology: Topology) -> Iterator[Finding]:
    sources = topology.starts | set(topology.unemitted())
    there = reached(topology.follows, sources)
    for place in topology.capability.handlers():
        types = [ref.type for ref in place[1].consumes]
        if not there.intersection(types):
            message = f"{label(place)} is never reached: no flow's start leads to {' or '.join(types)}"
            yield Finding("unreachable_handler", label(place), message)


def _unreachable_ends(topology: Topology) -> Iterator[Finding]:
    for flow in topology.capability.flows:
        there = reached(topology.follows, [flow.starts.type])
        for end in flow.ends:
            if end.type not in there:
                message = (
                    f"no chain of handlers leads from {flow.starts.type} to {end.type}, which is to end the flow"
                )
                yield Finding("unreachable_end", flow.name, message)


def _cycles(topology: Topology) -> Iterator[Finding]:
    endless = list(cycles(topology.surely_follows))
    for types in endless:
        message = (
            f"{_round(types)} never ends: each of them always causes the next; let a handler return None at some "
            "point, and count the rounds in the event"
        )
        yield Finding("endless_cycle", types[0], message)
    for types in cycles(topology.follows):
        if not any(set(types) & set(each) for each in endless):
            message = (
                f"{_round(types)} can go round; what bounds it must be in the event, such as a count of attempts"
            )
            yield Finding("cycle", types[0], message)


def _round(types: list[str]) -> str:
    return " -> ".join([*types, types[0]]) if len(types) < 3 else f"the cycle of {', '.join(types)}"


def _no_flow(topology: Topology) -> Iterator[Finding]:
    if not topology.capability.flows:
        message = "no Flow is declared, so nobody can say what is an end and what a dead end; write App(flows=[...])"
        yield Finding("no_flow", "flows", message)


def _versions(topology: Topology) -> Iterator[Finding]:
    """A version a handler of the type does not take goes to dead letters, also where another handler takes it."""
    for type_, places in topology.readers.items():
        sent = {emit.version for _, emit in topology.emitters.get(type_, ())}
        for place in places:
            read = place[0].reads_versions(place[1], type_)
            if unknown := sorted(sent - read):
                message = (
                    f"{label(place)} reads {_versions_text(sorted(read))} of {type_}, and {_versions_text(unknown)} "
                    "is emitted: it would be dead-lettered as unknown_version; let it take that version too, first"
                )
                yield Finding("version_mismatch", label(place), message)


def _versions_text(versions: list[int]) -> str:
    return ", ".join(f"v{version}" for version in versions)


def _topics(topology: Topology) -> Iterator[Finding]:
    for type_, places in topology.readers.items():
        sent = {emit.topic for _, emit in topology.emitters.get(type_, ())}
        for place in places:
            read = {ref.topic for ref in place[1].consumes if ref.type == type_}
            if sent and not place[0].reads_topics & sent:
                message = (
                    f"{label(place)} reads {type_} from {', '.join(sorted(read))}, and it is emitted to "
                    f"{', '.join(sorted(sent))}; map the topics alike with App(topics=...)"
                )
                yield Finding("topic_mismatch", label(place), message)


def _keys(topology: Topology) -> Iterator[Finding]:
    """A reader's class without a key says nothing of it; a sender's sends without one."""
    for ref, classes in _by_ref(topology.capability).items():
        keys: dict[str, list[str]] = {}
        for service, event in classes:
            if event.direction == "send" or event.key is not None:
                keys.setdefault(event.key or "no key", []).append(service)
        if len(keys) > 1:
            said = "; ".join(f"{key} in {', '.join(dict.fromkeys(names))}" for key, names in sorted(keys.items()))
            message = f"classes of {ref} have different keys ({said}): order holds within one key only; give them one"
            yield Finding("key_mismatch", ref.type, message)


def _by_ref(capability: Capability) -> dict[EventRef, list[tuple[str, DeclaredEvent]]]:
    found: dict[EventRef, list[tuple[str, DeclaredEvent]]] = {}
    for service in capability.services:
        for event in service.events:
            ref = EventRef(type=event.type, version=event.version, topic=event.topic)
            found.setdefault(ref, []).append((service.name, event))
    return found


def _groups(topology: Topology) -> Iterator[Finding]:
    by_group: dict[str, list[str]] = {}
    for service in topology.capability.services:
        by_group.setdefault(service.group, []).append(service.name)
    for group, services in sorted(by_group.items()):
        if len(services) > 1:
            message = (
                f"{' and '.join(services)} share the consumer group {group}: each would get some partitions and miss "
                "the others; give each Service a group of its own"
            )
            yield Finding("shared_group", group, message)


def _commands(topology: Topology) -> Iterator[Finding]:
    commands = {
        event.type for service in topology.capability.services for event in service.events if event.kind == "command"
    }
    for type_ in sorted(commands):
        services = list(dict.fromkeys(service.name for service, _ in topology.readers.get(type_, ())))
        if len(services) > 1:
            message = f"{type_} is a Command and {' and '.join(services)} obey it; an instruction is for one service"
            yield Finding("command_for_several", type_, message)


SHAPE: tuple[Rule, ...] = (_unemitted, _unread, _dead_ends, _unreachable, _unreachable_ends, _cycles, _no_flow)
CONTRADICTIONS: tuple[Rule, ...] = (_versions, _topics, _keys, _groups, _commands)
