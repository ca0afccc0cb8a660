"""An observed flow as one HTML page. What services called themselves and their topics is escaped."""

from collections.abc import Sequence
from html import escape

from choreo.flow.html import framed, table
from choreo.flow.observed import ObservedFlow
from choreo.flow.picture import duration_text, rate_text
from choreo.flow.svg import svg


def observed_page(flow: ObservedFlow, title: str, notes: Sequence[str]) -> str:
    """The picture, and the numbers of every event and edge.

    Args:
        notes: What the observation cannot know, in sentences.
    """
    picture = flow.picture(title)
    labels = {node.id: node.label for node in picture.nodes}
    events = (
        (
            f"<code>{escape(each.name)}</code>",
            *map(str, (each.seen, each.began, each.went_on)),
            _stopped(each.stopped),
        )
        for each in flow.events
    )
    edges = (
        (
            f"<code>{escape(labels[each.source])}</code>",
            f"<code>{escape(labels[each.target])}</code>",
            f"{each.count}{' (guessed)' if each.guessed else ''}",
            rate_text(each.count / flow.window_s) if flow.window_s else "",
            *("" if wait is None else duration_text(wait) for wait in (each.wait_ms(0.5), each.wait_ms(0.95))),
        )
        for each in flow.edges
    )
    return framed(
        title,
        [
            *(f"<p>{escape(note)}</p>" for note in notes),
            f"<figure>{svg(picture)}</figure>",
            "<p>On an arrow: how many, how often, and the wait in the middle (p50) / of the slowest twentieth (p95). "
            "Dashed: the cause is guessed from the order in time.</p>",
            "<h2>Events</h2>",
            table(("event", "seen", "began a flow", "led to another", "stopped"), events),
            "<h2>Arrows</h2>",
            table(("from", "to", "count", "rate", "p50", "p95"), edges),
        ],
    )


def _stopped(count: int) -> str:
    return f'<b class="violation">{count}</b>' if count else "0"
