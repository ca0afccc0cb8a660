"""Flows as one page to attach to an incident: nothing is loaded, nothing is run, every text is escaped. No I/O."""

from collections.abc import Iterator, Sequence
from html import escape

from choreo.flow import drawing
from choreo.flow.chart import chart
from choreo.flow.html import framed, table
from choreo.flow.sequence import EVENTS_MAX, sequence
from choreo.flow.timeline import Node, Timeline

_CLASS = {drawing.GOOD: "handled", drawing.OPEN: "open", drawing.BAD: "bad"}
_STYLE = """
h2{font-size:1.15rem;margin-top:2rem;overflow-wrap:anywhere}h3{font-size:.95rem;margin-bottom:.4rem}
figure{margin:.5rem 0;padding:.5rem}figure svg{max-width:none;margin:0}svg{font:12px system-ui,sans-serif}
svg text{fill:#1c2430}.over,.who{text-anchor:middle}.who,svg .event{font-weight:600}
svg .said{fill:#566173;font-size:11px}
.lane{stroke:#d5dbe3}.head{fill:#eef2f7;stroke:#b9c3cf}.mark{fill:#1f5fa8}
.arrow{fill:none;stroke:#2b7a46;stroke-width:1.5}.tip,.bar{fill:#2b7a46}
.arrow.open{stroke:#a06400;stroke-dasharray:5 4}.tip.open,.bar.open{fill:#a06400}.bar.waiting{opacity:.35}
.arrow.bad{stroke:#b3261e}.tip.bad,.bar.bad{fill:#b3261e}
.arrow.alone{stroke:#7b8696}.tip.alone{fill:#fff;stroke:#7b8696}
svg .said.open{fill:#a06400}svg .said.bad{fill:#b3261e}
p.handled,li.handled{color:#2b7a46}p.open,li.open{color:#8a5600}p.bad,li.bad{color:#b3261e}
td{overflow-wrap:anywhere}td:nth-child(-n+3){overflow-wrap:normal;white-space:nowrap}
td ul{margin:0;padding-left:1rem}footer{margin-top:2rem;color:#566173}
"""
_HEAD = ("event", "from", "at", "id", "where", "what became of it")


def render(timelines: Sequence[Timeline], *, now_ms: int, read: Sequence[str] = ()) -> str:
    """The page, an HTML document.

    It holds what envelopes say, and why something failed; never the data of an event.

    Args:
        now_ms: Milliseconds since the epoch, as the page's own time.
        read: What was read, a line each.
    """
    lines = "".join(f"<p>{_text(line)}</p>" for line in read)
    flows = (_flow(each, now_ms) for each in timelines)
    body = (f"<p>as of {drawing.moment(now_ms)}</p>", *flows, f"<footer>{lines}</footer>")
    return framed("choreo trace", body, _STYLE)


def _flow(timeline: Timeline, now_ms: int) -> str:
    nodes = list(timeline.nodes())
    parts = [f"<section><h2>{_text(timeline.correlation_id)}</h2>"]
    if timeline.progress is not None:
        said, colour = drawing.progress(timeline.progress)
        parts.append(f'<p class="{_CLASS[colour]}">{_text(said)}</p>')
    if len(nodes) > EVENTS_MAX:
        parts.append(f"<p>The pictures and the table show {EVENTS_MAX} of {len(nodes):,} events.</p>")
    if nodes:
        parts.append(f"<h3>Who sent what to whom</h3><figure>{sequence(timeline)}</figure>")
        parts.append(f"<h3>When</h3><figure>{chart(timeline, now_ms)}</figure>")
        rows = (_row(node, timeline.begun_ms) for node in nodes[:EVENTS_MAX])
        parts.append(f"<h3>Events</h3>{table(_HEAD, rows)}")
    if timeline.timers:
        waiting = [_item(drawing.waiting_timer(each), "") for each in timeline.timers]
        parts.append(f"<h3>Timers</h3><ul>{''.join(waiting)}</ul>")
    if timeline.unplaced:
        items = [
            _item(f"{place}: {each.handler} {drawing.outcome(each)[0]}", "") for place, each in timeline.unplaced
        ]
        parts.append(f"<h3>Not on the log any more</h3><ul>{''.join(items)}</ul>")
    return "".join([*parts, "</section>"])


def _row(node: Node, begun_ms: int) -> list[str]:
    envelope = node.envelope
    kind = envelope.type if envelope.version is None else f"{envelope.type} v{envelope.version}"
    after = f"+{(node.timestamp_ms - begun_ms) / 1000:.3f} s"
    cells = (kind, envelope.source, after, envelope.id, drawing.where(node))
    return [*map(_text, cells), f"<ul>{''.join(_became(node))}</ul>"]


def _became(node: Node) -> Iterator[str]:
    for each in node.handlings:
        said, colour = drawing.outcome(each)
        more = drawing.details(each)
        yield _item(f"{each.handler} {said}" + (f", {more}" if more else ""), _CLASS[colour])
    for place in node.repeats:
        yield _item(f"the same event again, a duplicate: {place}", "open")
    for letter in node.dead_letters:
        why = letter.detail or letter.reason
        yield _item(f"dead letter of {letter.service}.{letter.handler}: {why} ({letter.place})", "bad")
    for order in node.replays:
        yield _item(f"{drawing.replayed(order)}: {order.place}", "open")
    for expected in node.expected:
        yield _item(drawing.expectation(expected), "open")


def _item(said: str, kind: str) -> str:
    return f'<li class="{kind}">{_text(said)}</li>'


def _text(said: str) -> str:
    """Text of somebody else, for a page."""
    return escape(drawing.printable(said))
