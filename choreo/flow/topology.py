"""Who is reached from where in a declared flow: readers and emitters of types, cycles, and what leads to an end."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property

from choreo.flow.model import Capability, DeclaredHandler, DeclaredService, Emit

Place = tuple[DeclaredService, DeclaredHandler]
Edges = Mapping[str, Collection[str]]


def label(place: Place) -> str:
    """`service.handler`."""
    return f"{place[0].name}.{place[1].name}"


class Topology:
    """A capability as a graph whose nodes are event types and handlers. A type is one node whatever its versions."""

    def __init__(self, capability: Capability) -> None:
        self.capability = capability
        self.readers: dict[str, list[Place]] = {}
        self.emitters: dict[str, list[tuple[Place, Emit]]] = {}
        for place in capability.handlers():
            for consumed in dict.fromkeys(ref.type for ref in place[1].consumes):
                self.readers.setdefault(consumed, []).append(place)
            for emit in place[1].emits:
                self.emitters.setdefault(emit.type, []).append((place, emit))
        self.starts = {flow.starts.type for flow in capability.flows}
        self.ends = {end.type for flow in capability.flows for end in flow.ends}

    @property
    def types(self) -> list[str]:
        """Every type that is read or emitted, in order of name."""
        return sorted({*self.readers, *self.emitters})

    @cached_property
    def follows(self) -> Edges:
        """Type -> types that a handler of it may emit."""
        return self._follows(least=0)

    @cached_property
    def surely_follows(self) -> Edges:
        """Type -> types of which a handler of it emits at least one, whatever the event holds."""
        return self._follows(least=1)

    def _follows(self, least: int) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for consumed, places in self.readers.items():
            found[consumed] = {emit.type for _, handler in places for emit in handler.emits if emit.min >= least}
        return found

    def unemitted(self) -> list[str]:
        """Types that are read, that nobody emits and that begin no flow."""
        return sorted(set(self.readers) - set(self.emitters) - self.starts)


def reached(edges: Edges, sources: Iterable[str]) -> set[str]:
    """What can be come to from the sources, themselves included."""
    found: set[str] = set()
    waiting = list(sources)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += edges.get(node, ())
    return found


def backwards(edges: Edges) -> dict[str, set[str]]:
    """Every edge turned round."""
    found: dict[str, set[str]] = {}
    for source, targets in edges.items():
        for target in targets:
            found.setdefault(target, set()).add(source)
    return found


def cycles(edges: Edges) -> Iterator[list[str]]:
    """Sets of nodes each of which leads to each of the others, by name; a node alone only if it leads to itself."""
    back = backwards(edges)
    placed: set[str] = set()
    for node in sorted(edges):
        if node in placed:
            continue
        together = reached(edges, [node]) & reached(back, [node])
        placed |= together
        if len(together) > 1 or node in edges.get(node, ()):
            yield sorted(together)
