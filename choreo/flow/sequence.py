"""A flow as a sequence diagram, in SVG: who sent what to whom, in order of time. No I/O.

Every text of it is somebody else's and goes through `text`; numbers are our own.
"""

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from choreo.flow.drawing import details, length, outcome, printable
from choreo.flow.timeline import Node, Timeline

LANE_PX, ROW_PX, HEAD_PX, MARGIN_PX = 190, 46, 44, 100
EVENTS_MAX = 300
"""Of one flow; a page with more of them is not read but scrolled."""


class Arrow(NamedTuple):
    """One line of the diagram. `kind`: handled, open, bad, alone (nobody is known to have taken it)."""

    sender: str
    receiver: str
    event: str
    said: str
    kind: str


def sequence(timeline: Timeline) -> str:
    """An `svg` element; of a longer flow the first EVENTS_MAX events."""
    arrows = list(arrows_of(timeline))
    lanes = list(dict.fromkeys(name for arrow in arrows for name in (arrow.sender, arrow.receiver) if name))
    at = {name: MARGIN_PX + LANE_PX * number for number, name in enumerate(lanes)}
    width, height = 2 * MARGIN_PX + LANE_PX * max(1, len(lanes)), HEAD_PX + ROW_PX * len(arrows) + 20
    parts = [f'<svg class="sequence" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">']
    parts.append("<title>sequence diagram</title>")
    for name, x in at.items():
        parts.append(f'<line class="lane" x1="{x}" y1="{HEAD_PX - 8}" x2="{x}" y2="{height - 8}"/>')
        parts.append(f'<rect class="head" x="{x - 70}" y="6" width="140" height="26" rx="4"/>')
        parts.append(text(x, 24, name, "who", chars_max=20))
    for number, arrow in enumerate(arrows):
        parts += _arrow(arrow, at, HEAD_PX + ROW_PX * number + 22)
    return "".join([*parts, "</svg>"])


def text(x: float, y: float, said: str, kind: str, *, chars_max: int = 34) -> str:
    """An SVG text that holds only text: escaped, without control characters, cut, whole when it is pointed at."""
    plain = printable(said)
    short = plain if len(plain) <= chars_max else plain[: chars_max - 1] + "…"
    whole = f"<title>{escape(plain)}</title>" if short != plain else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{whole}{escape(short)}</text>'


def lane_of(source: str) -> str:
    """The participant a CloudEvents source stands for: choreo's services write `/<name>`."""
    return source.strip("/") or source


def arrows_of(timeline: Timeline) -> Iterator[Arrow]:
    """The lines of the diagram in order of time."""
    ordered = sorted(timeline.nodes(), key=lambda node: node.timestamp_ms)
    for node in ordered[:EVENTS_MAX]:
        found = list(_of_node(node))
        yield from found or [Arrow(lane_of(node.envelope.source), "", node.envelope.type, "", "alone")]


def _of_node(node: Node) -> Iterator[Arrow]:
    sender, event = lane_of(node.envelope.source), node.envelope.type
    for handling in node.handlings:
        said, colour = outcome(handling)
        name = handling.handler.rpartition(".")[2]
        words = ", ".join(filter(None, (f"{name} {said}", details(handling))))
        kind = {"green": "handled", "yellow": "open", "red": "bad"}[colour]
        yield Arrow(sender, handling.service, event, words, kind)
    for letter in node.dead_letters:
        if not any(each.service == letter.service and each.outcome for each in node.handlings):
            yield Arrow(sender, letter.service, event, f"{letter.handler} dead letter: {letter.reason}", "bad")
    for expected in node.expected:
        name = expected.handler.rpartition(".")[2]
        yield Arrow(sender, expected.service, event, f"{name} {expected.state}, {length(expected.for_s)}", "open")


def _arrow(arrow: Arrow, at: dict[str, int], y: int) -> Iterator[str]:
    begin, end = at[arrow.sender], at.get(arrow.receiver)
    if end is None:  # nobody is known to have taken it
        yield f'<path class="arrow {arrow.kind}" d="M{begin} {y} h90"/>'
        yield f'<circle class="tip {arrow.kind}" cx="{begin + 94}" cy="{y}" r="4"/>'
        yield text(begin + 6, y - 5, arrow.event, "event")
        return
    if end == begin:  # a service that takes what it sent itself
        yield f'<path class="arrow {arrow.kind}" d="M{begin} {y - 8} h30 v14 h-23"/>'
        yield f'<path class="tip {arrow.kind}" d="M{begin} {y + 6} l8 -4 v8 z"/>'
        yield text(begin + 38, y - 4, arrow.event, "event")
        yield text(begin + 38, y + 10, arrow.said, f"said {arrow.kind}")
        return
    way = 1 if end > begin else -1
    yield f'<path class="arrow {arrow.kind}" d="M{begin} {y} H{end - 7 * way}"/>'
    yield f'<path class="tip {arrow.kind}" d="M{end} {y} l{-8 * way} -4 v8 z"/>'
    yield text((begin + end) / 2, y - 5, arrow.event, "event over")
    yield text((begin + end) / 2, y + 14, arrow.said, f"said over {arrow.kind}")
