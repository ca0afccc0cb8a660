"""A picture as a Mermaid flowchart: events round, commands framed, handlers in boxes of their service."""

import re
from collections.abc import Iterator

from choreo.flow.picture import Node, Picture

_OPEN_CLOSE = {"event": ("([", "])"), "command": ("[[", "]]"), "handler": ("[", "]")}


def mermaid(picture: Picture) -> str:
    """The text of the diagram. Dotted: not for every event. Thick: begins or ends a flow."""
    ids = _ids(picture)
    lines = ["flowchart LR"]
    lines += [f"    {_drawn(node, ids)}" for node in picture.nodes if not node.group]
    for number, group in enumerate(dict.fromkeys(node.group for node in picture.nodes if node.group)):
        lines.append(f'    subgraph service_{number}["{_safe(group)}"]')
        lines += [f"        {_drawn(node, ids)}" for node in picture.nodes if node.group == group]
        lines.append("    end")
    for edge in picture.edges:
        line = "-->" if edge.sure else "-.->"
        said = f'|"{_safe(edge.label)}"|' if edge.label else ""
        lines.append(f"    {ids[edge.source]} {line}{said} {ids[edge.target]}")
    lines += _classes(picture, ids)
    return "\n".join(lines) + "\n"


def _drawn(node: Node, ids: dict[str, str]) -> str:
    before, after = _OPEN_CLOSE[node.shape]
    return f'{ids[node.id]}{before}"{_safe(node.label)}"{after}'


def _classes(picture: Picture, ids: dict[str, str]) -> Iterator[str]:
    for name, style, chosen in (
        ("starts", "stroke-width:3px", [node for node in picture.nodes if node.starts]),
        ("ends", "stroke-width:3px,stroke-dasharray:6 3", [node for node in picture.nodes if node.ends]),
    ):
        if chosen:
            yield f"    classDef {name} {style}"
            yield f"    class {','.join(ids[node.id] for node in chosen)} {name}"


def _ids(picture: Picture) -> dict[str, str]:
    """Words that Mermaid takes, the same in each run; a number after those that would be equal."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for node in picture.nodes:
        word = re.sub(r"[^A-Za-z0-9]+", "_", node.id)
        number = 2
        while word in taken:
            word = f"{word.rstrip('0123456789')}{number}"
            number += 1
        taken.add(word)
        found[node.id] = word
    return found


def _safe(text: str) -> str:
    """Entities in Mermaid's own spelling; what is left can end no label and begin no markup."""
    return "".join(each if each.isalnum() or each in " ._-/*,:|()" else f"#{ord(each)};" for each in text)
