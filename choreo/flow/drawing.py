"""A flow's timeline for a terminal, as a Rich tree; and the words that its page uses too."""

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.markup import escape
from rich.tree import Tree

from choreo.flow.timeline import Expected, Handling, Node, Progress, Replayed, Timeline, TimerWaiting

GOOD, OPEN, BAD = "green", "yellow", "red"


def tree(timeline: Timeline) -> Tree:
    """For people; give it to a Rich console."""
    top = Tree(_title(timeline))
    begun_ms = timeline.begun_ms
    waiting = [(top, node) for node in reversed(timeline.roots)]
    while waiting:
        parent, node = waiting.pop()
        branch = parent.add(_label(node, begun_ms))
        for handling in node.handlings:
            below = branch.add(_of_handling(handling))
            for name, ms in handling.within:
                below.add(f"[dim]{_safe(name)} {ms:.1f} ms[/]")
        for text in _remarks(node):
            branch.add(text)
        waiting += [(branch, child) for child in reversed(node.children)]
    for place, handling in timeline.unplaced:
        top.add(f"[dim]not on the log any more: {_safe(str(place))}[/] {_of_handling(handling)}")
    for timer in timeline.timers:
        top.add(f"[{OPEN}]{_safe(waiting_timer(timer))}[/]")
    return top


def waiting_timer(timer: TimerWaiting) -> str:
    """In words."""
    when = f"due in {length(timer.due_s)}" if timer.due_s >= 0 else f"{length(-timer.due_s)} late"
    return f"timer {timer.process}.{timer.name} of {timer.key}: {when}"


def printable(text: str) -> str:
    """Text of somebody else without control characters, which would move a cursor or turn the reading direction."""
    return "".join(char if char.isprintable() else "?" for char in text)


def length(seconds: float) -> str:
    """`00:12:31`, or `3 d 00:12:31`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour:02}:{minute:02}:{second:02}"


def moment(ms: float) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def outcome(handling: Handling) -> tuple[str, str]:
    """What became of it in words, and the colour they have."""
    kind, _, reason = handling.outcome.partition(":")
    if not kind:
        return "not finished", OPEN
    if kind == "duplicate":
        return "dropped a duplicate", OPEN
    if kind == "dropped":
        return "dropped: its partition went to another process", OPEN
    if kind == "dead_letter":
        return "dead letter" + (f": {reason}" if reason else ""), BAD
    if kind == "delayed":
        return "failed, to be tried again later", OPEN
    if kind == "parked":
        return (f"parked: {reason}", BAD) if reason else ("waits: its key is parked", OPEN)
    if kind == "unparked":
        return ("dropped from its queue", OPEN) if reason == "drop" else ("its key is parked no more", GOOD)
    return kind, GOOD if kind in ("handled", "done") else BAD


def details(handling: Handling) -> str:
    """How long, how often, and who says so where it is not the store."""
    said = []
    if handling.duration_s is not None and handling.outcome:
        said.append(f"{handling.duration_s * 1000:.1f} ms")
    if handling.attempts is not None and handling.attempts > 1:
        said.append(f"{handling.attempts} attempts")
    if handling.deliveries > 1:
        said.append(f"delivered {handling.deliveries} times")
    if handling.told_by in ("log", "key"):
        said.append({"log": "by its emit", "key": "by its idempotency key"}[handling.told_by])
    return ", ".join(said)


def expectation(expected: Expected) -> str:
    """`waiting for A | B from payments, 00:12:31`."""
    since, why = length(expected.for_s), f" ({expected.why})" if expected.why else ""
    if expected.state == "unknown":
        what = f"; no {' | '.join(expected.emits)} yet" if expected.emits else ""
        return f"unknown whether {expected.handler} has handled it{what}, {since}{why}"
    if not expected.emits:
        return f"waiting for {expected.handler}, {since}{why}"
    return f"waiting for {' | '.join(expected.emits)} from {expected.service}, {since}{why}"


def progress(found: Progress) -> tuple[str, str]:
    """How far the flow has come in words, and the colour they have."""
    after = length(found.took_s) if found.took_s >= 60 or not found.ended else f"{found.took_s:.3f} s"
    said = f"ended with {found.ended} after {after}" if found.ended else f"open for {after}"
    if found.late_s:
        said += f", late by {length(found.late_s)}"
    return f"flow {found.name} {said}", BAD if found.late_s else GOOD if found.ended else OPEN


def _title(timeline: Timeline) -> str:
    title = f"[bold]{_safe(timeline.correlation_id)}[/]"
    if timeline.progress is None:
        return title
    said, colour = progress(timeline.progress)
    return f"{title} [{colour}]{_safe(said)}[/]"


def _label(node: Node, begun_ms: int) -> str:
    envelope, after_s = node.envelope, (node.timestamp_ms - begun_ms) / 1000
    kind, source = _safe(envelope.type), _safe(envelope.source)
    return f"[bold cyan]{kind}[/] from {source} [dim]+{after_s:.3f} s {_safe(where(node))}[/]"


def replayed(order: Replayed) -> str:
    """That somebody ordered it once more, or dropped its dead letter; or that it came from the queue of its key."""
    if order.mode == "queue":
        return f"came from the queue of its key to {order.handler}"
    ways = {"drop": "dead letter of {} dropped", "release": "released to {}", "skip": "skipped for {}"}
    what = ways.get(order.mode, "replayed to {}").format(order.handler)
    note = f" ({order.note})" if order.note else ""
    return f"{what} by {order.by or 'somebody'}" + (", forced" if order.mode == "force" else "") + note


def where(node: Node) -> str:
    """Where the event lies, as far as it is known."""
    if node.place is not None:
        return str(node.place)
    return "no longer on the log" if node.dead_letters else "place unknown"


def _of_handling(handling: Handling) -> str:
    said, colour = outcome(handling)
    more = details(handling)
    return f"[{colour}]{_safe(handling.handler)} {_safe(said)}[/]" + (f" [dim]{more}[/]" if more else "")


def _remarks(node: Node) -> Iterator[str]:
    for place in node.repeats:
        yield f"[yellow]the same event again, a duplicate[/] [dim]{_safe(str(place))}[/]"
    for letter in node.dead_letters:
        why = _safe(letter.detail or letter.reason)
        whose = _safe(f"{letter.service}.{letter.handler}")
        tries = f", {_safe(letter.attempts)} attempts" if letter.attempts not in ("", "0", "1") else ""
        yield f"[bold red]dead letter[/] of {whose}: {why}{tries} [dim]{_safe(str(letter.place))}[/]"
    for each in node.replays:
        yield f"[yellow]{_safe(replayed(each))}[/] [dim]{_safe(str(each.place))}[/]"
    for expected in node.expected:
        yield f"[{OPEN}]{_safe(expectation(expected))}[/]"


def _safe(text: str) -> str:
    """Text of somebody else, for a terminal: no markup, no control characters."""
    return escape(printable(text))
