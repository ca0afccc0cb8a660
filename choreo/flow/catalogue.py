"""A declared flow as one HTML page: the picture, what was found, and the catalogue of events.

Complete in itself: no script, nothing fetched; what declarations say is escaped wherever it stands.
"""

from collections.abc import Sequence
from html import escape

import orjson

from choreo.flow.fields import example, fields
from choreo.flow.findings import Finding
from choreo.flow.html import framed, table
from choreo.flow.model import Capability, DeclaredEvent, DeclaredFlow
from choreo.flow.picture import Picture, declared_picture, duration_text
from choreo.flow.svg import colours_of, svg
from choreo.flow.topology import Topology, label


def page(capability: Capability, findings: Sequence[Finding], title: str) -> str:
    """The whole page."""
    picture = declared_picture(capability, title)
    topology = Topology(capability)
    events = _events(capability)
    return framed(
        title,
        [
            f"<p>{len(capability.services)} services, {len(list(capability.handlers()))} handlers, "
            f"{len(events)} event types.</p>",
            f"<figure>{svg(picture)}</figure>",
            _legend(picture),
            "<h2>Flows</h2>",
            table(("flow", "starts with", "ends with", "deadline"), map(_flow_row, capability.flows)),
            "<h2>Findings</h2>",
            _findings(findings),
            "<h2>Events</h2>",
            *(_event(type_, classes, topology) for type_, classes in sorted(events.items())),
        ],
    )


def _legend(picture: Picture) -> str:
    swatches = "".join(
        f'<span class="swatch" style="background:{colour}">{escape(group)}</span>'
        for group, colour in colours_of(picture).items()
    )
    return (
        f"<p>{swatches}</p><p>Round: an event. Thick: it begins a flow. Thick and dashed: it ends one. "
        "A dashed arrow: not for every event.</p>"
    )


def _flow_row(flow: DeclaredFlow) -> tuple[str, ...]:
    ends = ", ".join(f"<code>{escape(end.type)}</code>" for end in flow.ends)
    deadline = "none" if flow.deadline_s is None else duration_text(flow.deadline_s * 1000)
    return escape(flow.name), f"<code>{escape(flow.starts.type)}</code>", ends, deadline


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>None.</p>"
    items = (
        f'<li class="{each.level}"><b>{escape(each.id)}</b> {escape(each.where)}: {escape(each.message)}</li>'
        for each in findings
    )
    return f"<ul>{''.join(items)}</ul>"


def _events(capability: Capability) -> dict[str, list[tuple[str, DeclaredEvent]]]:
    """Classes by type, what is sent before what is received, each with its service."""
    found: dict[str, list[tuple[str, DeclaredEvent]]] = {}
    for service in capability.services:
        for event in service.events:
            found.setdefault(event.type, []).append((service.name, event))
    for classes in found.values():
        classes.sort(key=lambda each: (-each[1].version, each[1].direction != "send"))
    return found


def _event(type_: str, classes: Sequence[tuple[str, DeclaredEvent]], topology: Topology) -> str:
    first = classes[0][1]
    emitted = [label(place) for place, _ in topology.emitters.get(type_, ())]
    read = [label(place) for place in topology.readers.get(type_, ())]
    doc = next((event.doc for _, event in classes if event.doc), "")
    key = f"key <code>{escape(first.key)}</code>" if first.key else "no key: no order"
    parts = [
        f'<article id="{escape(type_)}"><h3><code>{escape(type_)}</code> '
        f"<small>{escape(first.kind)}, topic <code>{escape(first.topic)}</code>, {key}</small></h3>",
        f"<p>{escape(doc)}</p>",
        f"<p>Emitted by {_names(emitted, 'nobody here')}. Read by {_names(read, 'nobody')}.</p>",
    ]
    shown: dict[tuple[int, str], str] = {}
    for service, event in classes:
        listed = _fields(event)
        if (event.version, listed) in shown:
            continue
        verb = "sends" if event.direction == "send" else "reads"
        said = f"<p>Version {event.version}, as {escape(service)} {verb} it:</p>{listed}"
        shown[event.version, listed] = said + ("" if shown else _example(event))
    return "\n".join([*parts, *shown.values(), "</article>"])


def _names(names: Sequence[str], otherwise: str) -> str:
    return ", ".join(f"<code>{escape(name)}</code>" for name in names) or otherwise


def _fields(event: DeclaredEvent) -> str:
    rows = (
        (
            f"<code>{escape(field.name)}</code>",
            escape(field.type),
            "required" if field.required else "optional",
            escape(field.doc),
        )
        for field in fields(event.json_schema)
    )
    return table(("field", "type", "", ""), rows)


def _example(event: DeclaredEvent) -> str:
    text = orjson.dumps(example(event.json_schema), option=orjson.OPT_INDENT_2).decode()
    return f"<details open><summary>Example</summary><pre>{escape(text)}</pre></details>"
