"""Pictures of flows: all that is declared is there, nothing breaks out of its label, and no box lies on another."""

import re
from itertools import combinations, product

import pytest

from choreo.flow.catalogue import page
from choreo.flow.consistency import shape
from choreo.flow.fields import example, fields
from choreo.flow.layout import layered
from choreo.flow.markdown import markdown
from choreo.flow.mermaid import mermaid
from choreo.flow.model import Capability
from choreo.flow.picture import Edge, Node, Picture, declared_picture
from choreo.flow.svg import svg
from tests.declared import declared
from tests.handlers_apps import NAMES, ROOT, handlers_app

EVIL = """"><script>alert(1)</script><img src=x onerror=alert(2)>`|]);\nclick a "javascript:alert(3)" %% '"""
AGAIN = ("handler:shipping.ship_again", "event:shipment.delayed")
LINKS = ["a.x: p -> q? r*", "b.y: q r -> z", "c.w: r! -> p?"]


def evil_capability() -> Capability:
    """Every text of it wants to be markup: a file may come from anywhere."""
    plain = declared("aaa.bbb: ccc -> ddd? eee?", starts="ccc", ends="ddd").model_dump_json()
    text = re.sub(r'"(aaa|bbb|ccc|ddd|eee|id|events|flow)"(?!:)', lambda found: quoted(found[1] + EVIL), plain)
    text = text.replace('"doc":""', f'"doc":{quoted(EVIL)}').replace('"name":"Ccc"', f'"name":{quoted(EVIL)}')
    schema = {"properties": {EVIL: {"type": EVIL, "description": EVIL, "examples": [EVIL]}}}
    capability = Capability.model_validate_json(text)
    services = [
        each.model_copy(
            update={"events": tuple(event.model_copy(update={"json_schema": schema}) for event in each.events)}
        )
        for each in capability.services
    ]
    return capability.model_copy(update={"services": tuple(services)})


def quoted(text: str) -> str:
    """As JSON has it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def test_planted_markup_stays_text_in_the_page() -> None:
    """Names, types, topics, keys, docs, fields and examples of a file are escaped; no script, nothing to fetch."""
    capability = evil_capability()
    assert EVIL in capability.services[0].name
    html = page(capability, shape(capability), EVIL)
    assert "&lt;script&gt;" in html
    tags = set(re.findall(r"<([a-z0-9]+)", html))
    assert not tags & {"script", "img", "iframe", "link", "object", "embed", "a", "form", "base"}
    assert not re.findall(r"<[^<>]*\son\w+=[^<>]*>", re.sub(r'"[^"]*"', '""', html))
    assert "default-src &#x27;none&#x27;" in html


def test_planted_markup_stays_text_in_mermaid() -> None:
    """A label ends where Mermaid was told; every line is one of ours."""
    lines = mermaid(declared_picture(evil_capability(), EVIL)).splitlines()
    shapes = r'\w+(\(\[|\[\[|\[)"[^"<>`\n]*"(\]\)|\]\]|\])'
    ours = rf'flowchart LR| +({shapes}|subgraph \w+\["[^"<>`]*"\]|end|\w+ -\.?->(\|"[^"]*"\|)? \w+|class(Def)? .*)'
    assert [line for line in lines if not re.fullmatch(ours, line)] == []


def test_planted_markup_stays_text_in_markdown() -> None:
    """No tag begins, and no cell or fence ends before its time."""
    text = markdown(evil_capability(), EVIL)
    assert "<script" not in text.split("```")[2] + text.split("```")[0]
    assert text.count("```") == 2
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {7}


def test_picture_has_everything_that_is_declared() -> None:
    """Each handler and type once, each subscription and emit as an edge, with how many."""
    picture = declared_picture(declared(*LINKS, starts="p", ends="z"), "t")
    assert {node.id for node in picture.nodes} == {
        *("event:p", "event:q", "event:r", "event:z"),
        *("handler:a.x", "handler:b.y", "handler:c.w"),
    }
    assert Edge("handler:a.x", "event:q", "", False) in picture.edges
    assert Edge("handler:a.x", "event:r", "0..*", False) in picture.edges
    assert Edge("handler:b.y", "event:z", "", True) in picture.edges
    assert {node.id: node.shape for node in picture.nodes}["event:r"] == "command"
    assert [node.id for node in picture.nodes if node.starts] == ["event:p"]
    assert [node.id for node in picture.nodes if node.ends] == ["event:z"]


def test_mermaid_names_differ_where_words_do_not() -> None:
    """Two ids that are one word to Mermaid are two nodes."""
    nodes = tuple(Node(id_, id_, "event") for id_ in ("a.b", "a-b", "a_b"))
    lines = mermaid(Picture("t", nodes, (Edge("a.b", "a-b"), Edge("a-b", "a_b")))).splitlines()
    assert lines[1:] == [
        '    a_b(["a.b"])',
        '    a_b2(["a-b"])',
        '    a_b3(["a_b"])',
        "    a_b --> a_b2",
        "    a_b2 --> a_b3",
    ]


def test_boxes_do_not_overlap_and_edges_lead_to_the_right() -> None:
    """Of a flow with cycles, pairs that go back and forth, and long edges."""
    picture = declared_picture(handlers_app("order_fulfilment").capability(), "t")
    sizes = {node.id: (float(10 * len(node.label)), 30.0) for node in picture.nodes}
    pairs = [(edge.source, edge.target) for edge in picture.edges]
    layout = layered(sizes, pairs, ["event:order.placed"])
    assert layout.backward == {AGAIN}
    for one, other in combinations(sizes, 2):
        (x, y), (x2, y2) = layout.places[one], layout.places[other]
        apart_x = abs(x - x2) >= (sizes[one][0] + sizes[other][0]) / 2
        assert apart_x or abs(y - y2) >= (sizes[one][1] + sizes[other][1]) / 2, (one, other)
    there, back = (layout.routes[pair] for pair in (AGAIN[::-1], AGAIN))
    assert [y for _, y in there] != [y for _, y in back]  # side by side, not one on the other
    for pair in pairs:
        places = [x for x, _ in layout.routes[pair]]
        assert places == sorted(places), pair
    for (x, y), (width, height) in ((layout.places[node], sizes[node]) for node in sizes):
        assert width / 2 <= x <= layout.width - width / 2
        assert height / 2 <= y <= layout.height - height / 2


def test_any_graph_has_a_layout() -> None:
    """All graphs of three nodes, loops and all; each edge that is no loop has a way."""
    nodes = {name: (20.0, 10.0) for name in "abc"}
    possible = list(product("abc", "abc"))
    for mask in range(1 << len(possible)):
        edges = [pair for number, pair in enumerate(possible) if mask >> number & 1]
        layout = layered(nodes, edges)
        assert set(layout.routes) == {pair for pair in edges if pair[0] != pair[1]}
    assert layered({}, []).routes == {}


def test_picture_without_edges_is_drawn() -> None:
    """A service that only listens, and nothing at all."""
    assert "<svg" in svg(declared_picture(Capability(services=()), "t"))


@pytest.mark.parametrize("name", NAMES)
def test_kept_page_is_what_the_code_declares(name: str) -> None:
    """docs/flows/ is current; else: make flows."""
    kept = (ROOT / "docs" / "flows" / f"{name}.md").read_text()
    assert kept == markdown(handlers_app(name).capability(), f"handlers.{name}.app:app"), "run: make flows"


def test_fields_are_in_words() -> None:
    """Types, bounds, choices and what must be there."""
    schema = {
        "$defs": {"Money": {"description": "An amount.", "type": "object", "properties": {}}},
        "required": ["total"],
        "properties": {
            "total": {"$ref": "#/$defs/Money"},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/Money"}},
            "note": {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]},
            "kind": {"enum": ["a", "b"]},
            "prices": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
            "mixed": {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        },
    }
    assert [(each.name, each.type) for each in fields(schema)] == [
        ("total", "Money"),
        ("lines", "Money[]"),
        ("note", "string (maxLength 9) or null"),
        ("kind", '"a" | "b"'),
        ("prices", "map of number (minimum 0)"),
        ("mixed", "(integer or null)[]"),
    ]
    assert fields(schema)[0].required
    assert fields(schema)[0].doc == "An amount."


@pytest.mark.parametrize("name", NAMES)
def test_example_has_every_field(name: str) -> None:
    """Of every event of handlers/, as it is sent and as it is received."""
    app = handlers_app(name)
    classes = app.event_classes()
    for service in app.capability().services:
        for event in service.events:
            made = example(event.json_schema)
            assert set(made) == set(classes[event.type].model_fields)


def test_example_of_a_schema_that_holds_itself_ends() -> None:
    """A tree has no last leaf."""
    schema = {"$defs": {"T": {"type": "object", "properties": {"t": {"$ref": "#/$defs/T"}}}}, "$ref": "#/$defs/T"}
    assert "t" in example(schema)
    assert [each.type for each in fields(schema)] == ["T"]
