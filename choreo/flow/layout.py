"""Where nodes of a directed graph go: in layers from left to right, with few crossings. No I/O, no randomness.

Layers by longest path with cycles cut open, then sweeps by the mean place of neighbours.
Source: Sugiyama, Tagawa, Toda, "Methods for Visual Understanding of Hierarchical System Structures", 1981.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP_X, GAP_Y = 48.0, 22.0
WAYPOINT_HEIGHT = 10.0
PAIR_GAP = 9.0
SWEEPS = 8
Point = tuple[float, float]
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Layout:
    """Centre of each node, the points each edge passes from left to right, and the size of it all; in pixels.

    An edge that goes back has its points from its target to its source: the drawing turns the arrow.
    """

    places: Mapping[str, Point]
    routes: Mapping[Pair, Sequence[Point]]
    backward: frozenset[Pair]
    width: float
    height: float


def layered(
    sizes: Mapping[str, Point], edges: Sequence[Pair], first: Sequence[str] = (), *, gap_x: float = GAP_X
) -> Layout:
    """Lay out a graph.

    Args:
        sizes: Width and height of each node, in pixels.
        edges: Pairs of nodes of `sizes`; a node may lead to itself.
        first: Nodes to begin with, where cycles leave the choice.
        gap_x: Between two layers, in pixels; room for the labels of edges.
    """
    backward = _backward(list(sizes), edges, first)
    forward = [(b, a) if (a, b) in backward else (a, b) for a, b in edges if a != b]
    layer = _layers(list(sizes), forward)
    layers, chains = _with_waypoints(layer, forward)
    _sweep(layers, chains)
    places, width, height = _place(layers, sizes, gap_x)
    drawn = set(edges)
    routes: dict[Pair, list[Point]] = {}
    for source, target in edges:
        if source == target:
            continue
        left, right = (target, source) if (source, target) in backward else (source, target)
        # An edge and the one that goes back the same way lie side by side.
        aside = PAIR_GAP if (left, right) != (source, target) and (left, right) in drawn else 0.0
        points = [(x, y + aside) for x, y in (places[node] for node in chains[left, right])]
        points[0] = (points[0][0] + sizes[left][0] / 2, points[0][1])
        points[-1] = (points[-1][0] - sizes[right][0] / 2, points[-1][1])
        routes[source, target] = points
    return Layout({node: places[node] for node in sizes}, routes, frozenset(backward), width, height)


def _backward(nodes: Sequence[str], edges: Sequence[Pair], first: Sequence[str]) -> set[Pair]:
    """Edges that close a cycle when the graph is walked from `first` in depth; without them there is none."""
    after: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in edges:
        after[source].append(target)
    found: set[Pair] = set()
    done: set[str] = set()
    entered = {target for _, target in edges}
    for root in [*first, *(node for node in nodes if node not in entered), *nodes]:
        if root in done:
            continue
        path = {root}
        waiting = [(root, iter(after[root]))]
        while waiting:
            node, targets = waiting[-1]
            for target in targets:
                if target in path:
                    found.add((node, target))
                elif target not in done:
                    path.add(target)
                    waiting.append((target, iter(after[target])))
                    break
            else:
                done.add(node)
                path.discard(node)
                waiting.pop()
    return found


def _layers(nodes: Sequence[str], edges: Sequence[Pair]) -> dict[str, int]:
    """Longest path from any source; `edges` has no cycle."""
    before: dict[str, set[str]] = {node: set() for node in nodes}
    for source, target in edges:
        before[target].add(source)
    layer: dict[str, int] = {}
    left = list(nodes)
    while left:
        ready = [node for node in left if before[node] <= layer.keys()]
        assert ready, "a cycle was left"
        layer.update({node: max((layer[each] + 1 for each in before[node]), default=0) for node in ready})
        left = [node for node in left if node not in layer]
    return layer


def _with_waypoints(
    layer: Mapping[str, int], edges: Sequence[Pair]
) -> tuple[list[list[str]], dict[Pair, tuple[str, ...]]]:
    """Nodes by layer, and each edge as a chain with a waypoint in every layer that it crosses."""
    layers: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node, number in layer.items():
        layers[number].append(node)
    chains: dict[Pair, tuple[str, ...]] = {}
    for source, target in dict.fromkeys(edges):
        waypoints = [f"\0{number}\0{source}\0{target}" for number in range(layer[source] + 1, layer[target])]
        for offset, waypoint in enumerate(waypoints, start=1):
            layers[layer[source] + offset].append(waypoint)
        chains[source, target] = (source, *waypoints, target)
    return layers, chains


def _sweep(layers: list[list[str]], chains: Mapping[Pair, Sequence[str]]) -> None:
    """Order each layer by where its neighbours are, from left to right and back."""
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for chain in chains.values():
        for left, right in pairwise(chain):
            after.setdefault(left, []).append(right)
            before.setdefault(right, []).append(left)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        for number in range(1, len(layers)) if forward else range(len(layers) - 2, -1, -1):
            beside = layers[number - 1 if forward else number + 1]
            at = {node: place / max(len(beside) - 1, 1) for place, node in enumerate(beside)}
            own = {node: place / max(len(layers[number]) - 1, 1) for place, node in enumerate(layers[number])}
            layers[number].sort(key=lambda node: _mean([at[each] for each in neighbours.get(node, ())], own[node]))


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _place(
    layers: Sequence[Sequence[str]], sizes: Mapping[str, Point], gap_x: float
) -> tuple[dict[str, Point], float, float]:
    """Columns one after the other, each in the middle of the height."""
    heights = [sum(sizes.get(node, (0.0, WAYPOINT_HEIGHT))[1] + GAP_Y for node in layer) for layer in layers]
    height = max(heights, default=0.0) + GAP_Y
    places: dict[str, Point] = {}
    x = GAP_Y
    for layer, tall in zip(layers, heights, strict=True):
        wide = max(sizes.get(node, (0.0, 0.0))[0] for node in layer)
        y = (height - tall + GAP_Y) / 2
        for node in layer:
            node_height = sizes.get(node, (0.0, WAYPOINT_HEIGHT))[1]
            places[node] = (x + wide / 2, y + node_height / 2)
            y += node_height + GAP_Y
        x += wide + gap_x
    return places, x - gap_x + GAP_Y, height
