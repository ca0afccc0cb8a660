"""A picture as one SVG element, complete in itself: it may stand in a page or in a file."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from choreo.flow.layout import GAP_X, Layout, Point, layered
from choreo.flow.picture import Edge, Node, Picture

CHARACTER_WIDTH, NODE_HEIGHT, NODE_MARGIN = 7.3, 32.0, 14.0
READABLE = 0.7
"""A page may shrink the picture to so much of its size; then it scrolls."""
LOOP_HEIGHT, COUNT_WIDTH = 26.0, 6.1
COLOURS = ("#dbeafe", "#dcfce7", "#fef3c7", "#fce7f3", "#e0e7ff", "#ffedd5", "#ccfbf1", "#f3e8ff")
STYLE = (
    "text{font:12px ui-monospace,monospace;fill:#111}.event{fill:#fff;stroke:#334155}"
    ".command{fill:#fff;stroke:#334155;stroke-dasharray:2 2}.handler{stroke:#64748b}"
    ".starts{stroke-width:3}.ends{stroke-width:3;stroke-dasharray:6 3}"
    ".edge{fill:none;stroke:#64748b;stroke-width:1.3}.maybe{stroke-dasharray:4 3}"
    ".count{font-size:10px;fill:#334155;paint-order:stroke;stroke:#fff;stroke-width:3px}"
)


def svg(picture: Picture) -> str:
    """Handlers are boxes in the colour of their service, events round; every text of the picture is escaped."""
    sizes = {node.id: (len(node.label) * CHARACTER_WIDTH + 2 * NODE_MARGIN, NODE_HEIGHT) for node in picture.nodes}
    layout = layered(
        sizes,
        [(edge.source, edge.target) for edge in picture.edges],
        [node.id for node in picture.nodes if node.starts],
        gap_x=max(GAP_X, *(len(edge.label) * COUNT_WIDTH + 2 * NODE_MARGIN for edge in picture.edges), 0),
    )
    colours = colours_of(picture)
    drawn = [_edge(edge, layout, sizes) for edge in picture.edges]
    parts = [path for path, _ in drawn]
    parts += [_node(node, layout.places[node.id], sizes[node.id], colours) for node in picture.nodes]
    parts += [text for _, text in drawn]
    width, height = f"{layout.width:.0f}", f"{layout.height:.0f}"
    style = f"min-width:{layout.width * READABLE:.0f}px"
    size = f'style="{style}" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}><title>{escape(picture.title)}</title>'
        f"<style>{STYLE}</style>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="#64748b"/></marker></defs>'
        + "".join(parts)
        + "</svg>"
    )


def colours_of(picture: Picture) -> dict[str, str]:
    """A colour for each service, in order of appearance; after eight they begin again."""
    groups = dict.fromkeys(node.group for node in picture.nodes if node.group)
    return {group: COLOURS[number % len(COLOURS)] for number, group in enumerate(groups)}


def _node(node: Node, place: Point, size: Point, colours: dict[str, str]) -> str:
    (x, y), (width, height) = place, size
    marks = [node.shape, *(["starts"] if node.starts else []), *(["ends"] if node.ends else [])]
    fill = f' fill="{colours[node.group]}"' if node.shape == "handler" else ""
    radius = height / 2 if node.shape == "event" else 4
    return (
        f'<rect class="{" ".join(marks)}"{fill} x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="{radius:g}"/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{escape(node.label)}</text>'
    )


def _edge(edge: Edge, layout: Layout, sizes: dict[str, Point]) -> tuple[str, str]:
    """The line, and its label, which is drawn above everything."""
    pair = (edge.source, edge.target)
    if edge.source == edge.target:
        x, y = layout.places[edge.source]
        top, side = y - sizes[edge.source][1] / 2, sizes[edge.source][0] / 4
        path = f"M{x + side:.1f} {top:.1f}c0 {-LOOP_HEIGHT:.1f} {-2 * side:.1f} {-LOOP_HEIGHT:.1f} {-2 * side:.1f} 0"
        points: Sequence[Point] = [(x, top - LOOP_HEIGHT / 2)]
    else:
        points = layout.routes[pair]
        path = _curve(points)
    end = "start" if pair in layout.backward and edge.source != edge.target else "end"
    maybe = "" if edge.sure else " maybe"
    drawn = f'<path class="edge{maybe}" marker-{end}="url(#tip)" d="{path}"/>'
    if not edge.label:
        return drawn, ""
    (x, y), (to_x, to_y) = points[0], points[min(1, len(points) - 1)]
    at = f'x="{(x + to_x) / 2:.1f}" y="{(y + to_y) / 2 - 4:.1f}"'
    return drawn, f'<text class="count" {at} text-anchor="middle">{escape(edge.label)}</text>'


def _curve(points: Sequence[Point]) -> str:
    """Through all points, level at each."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (x + to_x) / 2
        path += f"C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
    return path
