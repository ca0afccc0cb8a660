"""Advice where declarations show a known anti-pattern of choreography. Nothing here is wrong by itself."""

from collections.abc import Callable, Iterator

from choreo.flow.findings import Finding, ordered
from choreo.flow.model import Capability, DeclaredService
from choreo.flow.topology import Place, Topology, label

GOD_SHARE, GOD_TYPES_MIN, GOD_SERVICES_MIN = 0.5, 6, 3
"""More than this share of what drives the flow on, at least so many types, among at least so many services."""
CHAIN_HANDLERS_MAX = 9
FAN_OUT_HANDLERS_MAX = 8


def advice(capability: Capability) -> list[Finding]:
    """Improvements and information; never a violation."""
    topology = Topology(capability)
    return ordered(finding for rule in RULES for finding in rule(topology))


def _drives(service: DeclaredService) -> set[str]:
    """Types whose handlers here emit something. Who only listens directs nobody."""
    return {ref.type for handler in service.handlers if handler.emits for ref in handler.consumes}


def _god_service(topology: Topology) -> Iterator[Finding]:
    services = topology.capability.services
    driven = {service.name: _drives(service) for service in services}
    everything = set().union(*driven.values())
    for name, types in driven.items():
        large = len(types) >= GOD_TYPES_MIN and len(types) > GOD_SHARE * len(everything)
        if large and len(services) >= GOD_SERVICES_MIN:
            message = (
                f"{name} answers {len(types)} of the {len(everything)} event types that drive the flow: it has "
                "become the coordinator that choreography does without; give parts to those whose data they need"
            )
            yield Finding("god_service", name, message)


def _twins(topology: Topology) -> Iterator[Finding]:
    """Two services that take and give the same can hardly be independent: one change has to be made in both."""
    seen: dict[tuple[frozenset[str], frozenset[str]], str] = {}
    for service in topology.capability.services:
        takes = frozenset(ref.type for handler in service.handlers for ref in handler.consumes)
        gives = frozenset(emit.type for handler in service.handlers for emit in handler.emits)
        if not gives:
            continue
        first = seen.setdefault((takes, gives), service.name)
        if first != service.name:
            message = (
                f"{first} and {service.name} take exactly {', '.join(sorted(takes))} and both emit "
                f"{', '.join(sorted(gives))}: every event is answered twice; "
                "are they one service on one set of tables?"
            )
            yield Finding("twin_services", f"{first},{service.name}", message)


def _long_chains(topology: Topology) -> Iterator[Finding]:
    after = {label(place): _only_successor(topology, place) for place in topology.capability.handlers()}
    inside = {label(each) for each in after.values() if each is not None}
    for place in topology.capability.handlers():
        if label(place) in inside:
            continue
        chain = [label(place)]
        following = after[chain[0]]
        while following is not None and label(following) not in chain:
            chain.append(label(following))
            following = after[chain[-1]]
        if len(chain) > CHAIN_HANDLERS_MAX:
            message = (
                f"{len(chain)} handlers follow one another with no branch, from {chain[0]} to {chain[-1]}: nothing "
                "is gained by events between them; call what belongs together in one handler, or make it a saga"
            )
            yield Finding("long_chain", chain[0], message)


def _only_successor(topology: Topology, place: Place) -> Place | None:
    """The one handler of the one type this one emits, itself fed by nobody else."""
    types = {emit.type for emit in place[1].emits}
    if len(types) != 1:
        return None
    (type_,) = types
    readers = topology.readers.get(type_, [])
    alone = len(readers) == 1 and len(topology.emitters[type_]) == 1
    return readers[0] if alone and {ref.type for ref in readers[0][1].consumes} == types else None


def _fan_out(topology: Topology) -> Iterator[Finding]:
    for type_, places in sorted(topology.readers.items()):
        if len(places) > FAN_OUT_HANDLERS_MAX:
            message = (
                f"{len(places)} handlers read {type_}: a change of it is a change for all of them; see that it tells "
                "one fact only, and raise its version rather than bend it"
            )
            yield Finding("wide_fan_out", type_, message)


RULES: tuple[Callable[[Topology], Iterator[Finding]], ...] = (_god_service, _twins, _long_chains, _fan_out)
