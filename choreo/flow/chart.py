"""A flow's events and handlings on an axis of time, in SVG. No I/O, no clock."""

from choreo.flow.drawing import expectation, outcome
from choreo.flow.sequence import EVENTS_MAX, text
from choreo.flow.timeline import Node, Timeline

LABEL_PX, WIDTH_PX, ROW_PX, HEAD_PX, BAR_PX_MIN = 330, 620, 20, 30, 3
KINDS = {"green": "handled", "yellow": "open", "red": "bad"}


def chart(timeline: Timeline, now_ms: float) -> str:
    """An `svg` element; what is still waited for reaches up to `now_ms`."""
    nodes = list(timeline.nodes())[:EVENTS_MAX]
    begun_ms = timeline.begun_ms
    ends = [now_ms if node.expected else node.timestamp_ms for node in nodes]
    ends += [
        each.begun_ms + (each.duration_s or 0.0) * 1000
        for node in nodes
        for each in node.handlings
        if each.begun_ms is not None
    ]
    span_ms = max(1.0, max(ends, default=begun_ms) - begun_ms)
    rows: list[str] = []
    for node in nodes:
        rows += _rows(node, len(rows), begun_ms, span_ms)
    height = HEAD_PX + ROW_PX * len(rows) + 10
    width = LABEL_PX + WIDTH_PX + 30
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">']
    parts.append("<title>timeline</title>")
    for quarter in range(5):
        x = LABEL_PX + WIDTH_PX * quarter / 4
        parts.append(f'<line class="lane" x1="{x:.1f}" y1="{HEAD_PX - 8}" x2="{x:.1f}" y2="{height - 6}"/>')
        parts.append(text(x, 14, _after(span_ms * quarter / 4), "said over"))
    return "".join([*parts, *rows, "</svg>"])


def _rows(node: Node, first: int, begun_ms: float, span_ms: float) -> list[str]:
    """One row for the event and one for each of its handlers."""

    def x(ms: float) -> float:
        return LABEL_PX + WIDTH_PX * min(max(ms - begun_ms, 0.0), span_ms) / span_ms

    def y(number: int) -> float:
        return HEAD_PX + ROW_PX * (first + number)

    tick = x(node.timestamp_ms)
    rows = [
        text(8, y(0) + 13, node.envelope.type, "event label", chars_max=44)
        + f'<path class="mark" d="M{tick:.1f} {y(0) + 3:.1f} l5 6 l-5 6 l-5 -6 z"/>'
    ]
    for each in node.handlings:
        said, colour = outcome(each)
        label = text(24, y(len(rows)) + 13, f"{each.handler} {said}", "said label", chars_max=44)
        bar = ""
        if each.begun_ms is not None:  # else nobody told when it was
            end = x(each.begun_ms + (each.duration_s or 0.0) * 1000)
            bar = _bar(x(each.begun_ms), end, y(len(rows)), KINDS[colour])
        rows.append(label + bar)
    for letter in node.dead_letters:
        if any(each.handler == f"{letter.service}.{letter.handler}" and each.outcome for each in node.handlings):
            continue
        said = f"{letter.service}.{letter.handler} dead letter: {letter.detail or letter.reason}"
        rows.append(text(24, y(len(rows)) + 13, said, "said label bad", chars_max=44))
    for expected in node.expected:
        label = text(24, y(len(rows)) + 13, expectation(expected), "said label open", chars_max=44)
        until = x(node.timestamp_ms + expected.for_s * 1000)
        rows.append(label + _bar(tick, until, y(len(rows)), "open waiting"))
    return rows


def _bar(begin: float, end: float, y: float, kind: str) -> str:
    width = max(BAR_PX_MIN, end - begin)
    return f'<rect class="bar {kind}" x="{begin:.1f}" y="{y + 4:.1f}" width="{width:.1f}" height="11" rx="2"/>'


def _after(ms: float) -> str:
    if ms < 10_000:
        return f"+{ms:.0f} ms"
    return f"+{ms / 1000:.0f} s" if ms < 600_000 else f"+{ms / 60_000:.0f} min"
