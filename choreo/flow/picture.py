"""What is drawn of a flow, whoever draws it: nodes and edges, declared or observed."""

from dataclasses import dataclass
from typing import Literal

from choreo.flow.model import Capability
from choreo.flow.topology import Topology, label

Shape = Literal["event", "command", "handler"]


@dataclass(frozen=True, slots=True)
class Node:
    """An event type, or a handler of the service `group`."""

    id: str
    label: str
    shape: Shape
    group: str = ""
    starts: bool = False
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """From an event to who reads it, or from a handler to what it emits. `sure`: it happens for every event."""

    source: str
    target: str
    label: str = ""
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Picture:
    """Nodes and edges; the order of both is the order they are drawn in."""

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def declared_picture(capability: Capability, title: str) -> Picture:
    """Every handler, and every event type one of them reads or emits."""
    topology = Topology(capability)
    commands = {event.type for each in capability.services for event in each.events if event.kind == "command"}
    nodes = [
        Node(
            f"event:{type_}",
            type_,
            "command" if type_ in commands else "event",
            starts=type_ in topology.starts,
            ends=type_ in topology.ends,
        )
        for type_ in topology.types
    ]
    edges: dict[tuple[str, str], Edge] = {}
    for place in capability.handlers():
        id_ = f"handler:{label(place)}"
        nodes.append(Node(id_, label(place), "handler", group=place[0].name))
        for type_ in sorted({ref.type for ref in place[1].consumes}):
            edges[f"event:{type_}", id_] = Edge(f"event:{type_}", id_)
        for emit in place[1].emits:
            target = f"event:{emit.type}"
            edges.setdefault((id_, target), Edge(id_, target, _count(emit.min, emit.max), emit.min > 0))
    return Picture(title, tuple(nodes), tuple(edges.values()))


def _count(least: int, most: int | None) -> str:
    """Nothing for the ordinary: one, or one of several."""
    if most == 1:
        return ""
    return f"{least}..{'*' if most is None else most}" if most != least else str(least)


def rate_text(per_s: float) -> str:
    """`12/s`, `4.8/min`, `0.5/h`: in the unit that leaves a number one can read."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3_600)):
        if per_s * seconds >= 1 or unit == "h":
            break
    return f"{per_s * seconds:.3g}/{unit}"


def duration_text(milliseconds: float) -> str:
    """`340 ms`, `2.1 s`, `4.0 h`."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if milliseconds >= size:
            return f"{milliseconds / size:.1f} {unit}"
    return f"{milliseconds:.0f} ms"
