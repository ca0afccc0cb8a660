"""A declared flow as one HTML page: the picture, what was found, and the catalogue of events.

Complete in itself: no script, nothing fetched; what declarations say is escaped wherever it stands.
"""

from collections.abc import Iterable, Sequence
from html import escape

import orjson

from choreo.flow.fields import example, fields
from choreo.flow.finding import Finding
from choreo.flow.model import Capability, DeclaredEvent, DeclaredFlow
from choreo.flow.picture import Picture, declared_picture
from choreo.flow.svg import colours_of, svg
from choreo.flow.topology import Topology, label

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#111;background:#fff}
figure{margin:1rem calc(50% - 48vw);overflow-x:auto;border:1px solid #cbd5e1;border-radius:6px}
figure svg{display:block;margin:auto;min-width:60rem;max-width:100%;height:auto}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
td,th{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #e2e8f0}
code,pre{font:13px ui-monospace,monospace}pre{background:#f8fafc;padding:.75rem;overflow-x:auto;border-radius:6px}
h3 code{font-size:1em}
article{border-top:2px solid #cbd5e1;margin-top:1.5rem}h3 small{font-weight:normal;color:#475569}
.swatch{border:1px solid #64748b;border-radius:4px;padding:.1rem .5rem;margin-right:.5rem}
.violation{color:#b91c1c}.improvement{color:#92400e}.information{color:#475569}
"""


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
            _table(("flow", "starts with", "ends with", "deadline"), map(_flow_row, capability.flows)),
            "<h2>Findings</h2>",
            _findings(findings),
            "<h2>Events</h2>",
            *(_event(type_, classes, topology) for type_, classes in sorted(events.items())),
        ],
    )


def framed(title: str, body: Iterable[str]) -> str:
    """A page about `body`, which is HTML already."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
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
    deadline = "none" if flow.deadline_s is None else f"{flow.deadline_s:,.0f} s"
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
        table = _fields(event)
        if (event.version, table) in shown:
            continue
        verb = "sends" if event.direction == "send" else "reads"
        said = f"<p>Version {event.version}, as {escape(service)} {verb} it:</p>{table}"
        shown[event.version, table] = said + ("" if shown else _example(event))
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
    return _table(("field", "type", "", ""), rows)


def _example(event: DeclaredEvent) -> str:
    text = orjson.dumps(example(event.json_schema), option=orjson.OPT_INDENT_2).decode()
    return f"<details open><summary>Example</summary><pre>{escape(text)}</pre></details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of cells that are HTML already."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{body}</table>"
