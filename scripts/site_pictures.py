"""Mermaid blocks of the pages as SVG, drawn when the site is built: a reader fetches and runs nothing.

Of Mermaid it knows what the pages have: flowcharts as `choreo graph` writes them, and the engine's state diagram.
"""

import re
from html import escape
from itertools import pairwise
from typing import Any

from pymdownx.superfences import SuperFencesException

from choreo.flow.picture import Edge, Node, Picture
from choreo.flow.svg import svg

EDGE = re.compile(r'\s*(-->|-\.->)(?:\|"(.*?)"\|)?\s*')
NODE = re.compile(r'(\w+)(?:(\(\[|\[\[|\[)"?(.*?)"?(?:\]\)|\]\]|\]))?(?::::(\w+))?')
SHAPES = {"([": "event", "[[": "command", "[": "handler"}
MARKS = {"starts": "starts", "ends": "ends", "last": "ends"}


def fence(source: str, *_: Any, **__: Any) -> str:
    """A formatter of pymdownx.superfences.

    Raises:
        SuperFencesException: A line is none of those it knows. Any other exception would leave the block as text.
    """
    read = _State() if source.startswith("stateDiagram") else _Flowchart()
    for line in source.splitlines()[1:]:
        try:
            read.line(line.strip())
        except (KeyError, TypeError, ValueError) as error:
            raise SuperFencesException(f"scripts/site_pictures.py does not know the line {line!r}") from error
    said = "".join(f"<figcaption>{escape(note)}</figcaption>" for note in read.notes)
    return f'<figure class="diagram"><div>{svg(read.picture())}</div>{said}</figure>'


class _Diagram:
    """Nodes in order of appearance, and edges."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.edges: dict[tuple[str, str], Edge] = {}
        self.notes: list[str] = []

    def node(self, id_: str, **found: Any) -> str:
        self.nodes.setdefault(id_, {"label": id_, "shape": "event"}).update(found)
        return id_

    def edge(self, source: str, target: str, label: str, *, sure: bool = True) -> None:
        before = self.edges.get((source, target))
        label = f"{before.label}, {label}" if before and before.label else label
        self.edges[source, target] = Edge(source, target, label, sure)

    def picture(self) -> Picture:
        return Picture(
            "a diagram", tuple(Node(id_, **found) for id_, found in self.nodes.items()), tuple(self.edges.values())
        )

    def line(self, line: str) -> None:
        raise NotImplementedError


class _Flowchart(_Diagram):
    group = ""

    def line(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in ("classDef", "end"):
            self.group = self.group if word == "classDef" else ""
        elif word == "subgraph":
            self.group = NODE.fullmatch(rest)[3]
        elif word == "class":
            ids, mark = rest.split()
            for id_ in ids.split(","):
                self.node(id_, **{MARKS[mark]: True})
        else:
            parts = EDGE.split(line)
            ids = [self._read(part) for part in parts[::3]]
            for number, (source, target) in enumerate(pairwise(ids)):
                arrow, label = parts[number * 3 + 1 : number * 3 + 3]
                self.edge(source, target, _plain(label or ""), sure=arrow == "-->")

    def _read(self, text: str) -> str:
        found = NODE.fullmatch(text)
        if not found:
            raise ValueError(text)
        id_, bracket, label, mark = found.groups()
        marks = {MARKS[mark]: True} if mark else {}
        if not bracket:
            return self.node(id_, **marks)
        group = (self.group or _plain(label).split(".")[0]) if bracket == "[" else ""
        return self.node(id_, label=_plain(label), shape=SHAPES[bracket], group=group, **marks)


class _State(_Diagram):
    def line(self, line: str) -> None:
        if note := re.fullmatch(r"note \w+ of (\w+): (.*)", line):
            self.notes.append(f"{note[1]}: {note[2]}")
            return
        found = re.fullmatch(r"(\S+) --> ([^\s:]+)(?:: (.*))?", line)
        if not found:
            raise ValueError(line)
        source, target, label = found.groups()
        if source == "[*]":
            self.node(target, starts=True)
        elif target == "[*]":
            self.node(source, ends=True)
        else:
            self.edge(self.node(source), self.node(target), label or "")


def _plain(text: str) -> str:
    """Without Mermaid's entities."""
    return re.sub(r"#(\d+);", lambda found: chr(int(found[1])), text)
