"""A declared flow as a Markdown page, for a repository: the picture as Mermaid and a table of events."""

from collections.abc import Iterable

from choreo.flow.mermaid import mermaid
from choreo.flow.model import Capability, DeclaredEvent
from choreo.flow.picture import declared_picture, duration_text
from choreo.flow.topology import Topology, label


def markdown(capability: Capability, title: str) -> str:
    """The page; equal declarations give equal pages, so that a test can hold a kept one to the code."""
    topology = Topology(capability)
    events: dict[str, DeclaredEvent] = {}
    for service in capability.services:
        for event in service.events:
            if event.type not in events or event.version > events[event.type].version:
                events[event.type] = event
    lines = [f"# {_text(title)}", "", "```mermaid", mermaid(declared_picture(capability, title)).rstrip(), "```", ""]
    lines += ["Thick: it begins a flow. Thick and dashed: it ends one. A dotted arrow: not for every event.", ""]
    for flow in capability.flows:
        ends = ", ".join(_code(end.type) for end in flow.ends)
        deadline = "" if flow.deadline_s is None else f", within {duration_text(flow.deadline_s * 1000)}"
        lines += [f"Flow `{_text(flow.name)}`: from {_code(flow.starts.type)} to {ends}{deadline}.", ""]
    lines += ["| event | version | topic | key | emitted by | read by |", "|---|---|---|---|---|---|"]
    for type_, event in sorted(events.items()):
        emitted = _codes(label(place) for place, _ in topology.emitters.get(type_, ()))
        read = _codes(label(place) for place in topology.readers.get(type_, ()))
        key = _code(event.key) if event.key else ""
        lines.append(f"| {_code(type_)} | {event.version} | {_code(event.topic)} | {key} | {emitted} | {read} |")
    return "\n".join(lines) + "\n"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _code(text: str) -> str:
    return f"`{_text(text)}`"


def _text(text: str) -> str:
    """Nothing in it may end a cell, a code span or a line, nor begin a tag."""
    return "".join(" " if each in "\n\r`|" else each for each in text).replace("<", "&lt;")
