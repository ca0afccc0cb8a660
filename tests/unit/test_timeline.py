"""A flow's tree from records, and from what Jaeger answers."""

import io
from typing import Any

import pytest
from rich.console import Console

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.errors import TransportError
from choreo.flow import jaeger, timeline
from choreo.flow.timeline import DeadLetter, Place, build
from choreo.record import Record
from choreo.runtime import emitting


def record(
    id_: str,
    *,
    cause: str | None = None,
    flow: str = "f",
    offset: int = 0,
    source: str = "/shop",
    type_: str = "a.b",
    topic: str = "orders",
    at_ms: int = 0,
    extra: tuple[tuple[str, bytes], ...] = (),
) -> Record:
    """One event on the log."""
    headers = cloudevents.write(Envelope(id_, source, type_, correlationid=flow, causationid=cause))
    return Record(topic, 0, offset, b"k", b"{}", (*headers, *extra), at_ms)


def drawn(tree: Any) -> str:
    """What a terminal shows."""
    console = Console(file=io.StringIO(), width=200)
    console.print(tree)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_events_hang_below_their_causes() -> None:
    """The tree follows causation ids whatever the order of the records, and leaves other flows out."""
    records = [
        record("3", cause="2", offset=2, at_ms=30),
        record("1", offset=0, at_ms=10),
        record("2", cause="1", offset=1, at_ms=20),
        record("4", cause="1", offset=3, at_ms=40),
        record("9", flow="other", offset=4),
    ]
    found = build(records, "f")
    assert [node.envelope.id for node in found.nodes()] == ["1", "2", "3", "4"]
    assert [child.envelope.id for child in found.roots[0].children] == ["2", "4"]


def test_event_without_its_cause_is_a_root() -> None:
    """What names a cause that is gone from the log is shown all the same."""
    assert [node.envelope.id for node in build([record("2", cause="1")], "f").roots] == ["2"]


def test_causes_in_a_circle_are_cut() -> None:
    """Forged ids that cause each other, or themselves, end neither in a loop nor in an event that is not shown."""
    records = [record("1", cause="2"), record("2", cause="1", offset=1), record("3", cause="3", offset=2)]
    assert sorted(node.envelope.id for node in build(records, "f").nodes()) == ["1", "2", "3"]


def test_deep_flow_is_built_and_drawn() -> None:
    """Two thousand causes in a row meet no limit of recursion."""
    records = [record(str(n), cause=str(n - 1) if n else None, offset=n, at_ms=n) for n in range(2000)]
    found = build(records, "f")
    assert len(list(found.nodes())) == 2000
    assert len(found.as_dict()["events"]) == 2000
    assert found.tree().children


def test_repeated_event_is_one_node() -> None:
    """The same source and id a second time is a duplicate and no second event."""
    found = build([record("1"), record("1", offset=7, at_ms=5)], "f")
    assert [node.repeats for node in found.nodes()] == [[Place("orders", 0, 7)]]
    assert "a duplicate orders/0@7" in drawn(found.tree())


def test_dead_letter_is_noted_at_its_event() -> None:
    """A dead letter keeps its event's id, and is shown there with whose it is and why."""
    names = ("service", "handler", "reason", "detail", "attempts")
    told = tuple((timeline.DLQ_PREFIX + name, name.encode()) for name in names)
    found = build([record("1"), record("1", topic="pay.dlq", at_ms=5, extra=told)], "f")
    (node,) = found.nodes()
    assert node.dead_letters == [DeadLetter(Place("pay.dlq", 0, 0), *names)]
    assert node.repeats == []
    assert "dead letter of service.handler: detail" in drawn(found.tree())


def test_dead_letter_outlives_its_event() -> None:
    """When the original is deleted from the log, its dead letter still shows it."""
    (node,) = build([record("1", extra=((timeline.DLQ_PREFIX + "reason", b"rejected"),))], "f").nodes()
    assert node.place is None
    assert node.dead_letters[0].reason == "rejected"


def test_prefix_is_the_emitters() -> None:
    """The prefix of a dead letter's headers is what the runtime writes."""
    assert timeline.DLQ_PREFIX == emitting.DLQ_PREFIX


def test_history_says_who_handled_it() -> None:
    """Rows of the store are found by coordinates: handler, outcome, attempts and duration."""
    row = {"topic": "orders", "partition": 0, "offset": 0, "done": 1, "deliveries": 2}
    done = {**row, "handler": "pay.charge", "outcome": "handled", "attempts": 3, "duration_s": 0.25}
    open_ = {**row, "handler": "pay.book", "done": 0, "outcome": "", "attempts": 0, "duration_s": 0}
    text = drawn(build([record("1")], "f", [done, open_]).tree())
    assert "pay.charge handled 250.0 ms, 3 attempts, delivered 2 times" in text
    assert "pay.book not finished" in text


def test_markup_and_control_characters_are_not_obeyed() -> None:
    """Names that a stranger chose can neither colour the terminal nor move its cursor."""
    text = drawn(build([record("1", source="/[red]x[/]\x1b[2J")], "f").tree())
    assert "/[red]x[/]?[2J" in text


def test_records_that_are_no_events_are_passed_over() -> None:
    """Tombstones and plain records do not disturb."""
    plain = Record("orders", 0, 1, None, b"x", (), 0)
    assert list(build([plain, plain._replace(value=None)], "f").nodes()) == []


def v3_span(id_: str, parent: str = "", flow: str | None = "f", trace: str = "t") -> dict[str, Any]:
    """A span as Jaeger's v3 API gives it."""
    attributes = [{"key": jaeger.CONVERSATION, "value": {"stringValue": flow}}] if flow else []
    return {
        "traceId": trace,
        "spanId": id_,
        "parentSpanId": parent,
        "name": f"send {id_}",
        "startTimeUnixNano": "1000",
        "endTimeUnixNano": "3000",
        "attributes": attributes,
    }


def v3_body(*spans: dict[str, Any]) -> dict[str, Any]:
    """An answer of Jaeger's v3 API."""
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    return {"result": {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}}


def test_v3_answer_is_read() -> None:
    """Service, parent, times and attributes come out of OTLP's JSON."""
    (span,) = jaeger.read_v3(v3_body(v3_span("b", "a")))
    assert (span.service, span.parent_id, span.duration_ns) == ("shop", "a", 2000)
    assert span.attributes == {jaeger.CONVERSATION: "f"}


def test_v1_answer_is_read() -> None:
    """Service, parent, times and tags come out of Jaeger's own JSON."""
    span = {
        "traceID": "t",
        "spanID": "b",
        "references": [{"refType": "FOLLOWS_FROM", "spanID": "x"}, {"refType": "CHILD_OF", "spanID": "a"}],
        "operationName": "process orders",
        "processID": "p1",
        "startTime": 5,
        "duration": 2,
        "tags": [{"key": jaeger.CONVERSATION, "value": "f"}],
    }
    (found,) = jaeger.read_v1({"data": [{"processes": {"p1": {"serviceName": "shop"}}, "spans": [span]}]})
    assert (found.service, found.parent_id, found.start_ns, found.duration_ns) == ("shop", "a", 5000, 2000)
    assert jaeger.of_flow([found], "f") == [found]


def test_spans_are_filtered_by_flow() -> None:
    """A Jaeger that ignores the filter gives traces of other flows; they are left out, own spans of handlers not."""
    body = v3_body(v3_span("a"), v3_span("b", "a", None), v3_span("c", "a", "g"), v3_span("d", flow="g", trace="u"))
    assert [span.span_id for span in jaeger.of_flow(jaeger.read_v3(body), "f")] == ["a", "b"]


def test_spans_are_drawn_below_their_parents() -> None:
    """A span whose parent is missing is a root."""
    spans = jaeger.read_v3(v3_body(v3_span("b", "a"), v3_span("a"), v3_span("c", "gone")))
    top = jaeger.tree("f", spans)
    assert len(top.children) == 2
    assert "send b shop" in drawn(top)


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_jaeger_is_asked_in_both_dialects(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Where one API is gone or answers with its user interface, the other one is taken."""
    tags = [{"key": jaeger.CONVERSATION, "value": "f"}]
    v1 = {"data": [{"processes": {}, "spans": [{"traceID": "t", "spanID": "a", "tags": tags}]}]}
    by_version: dict[str, dict[str, Any]] = {
        "v1": {"/api/services": {"data": ["shop"]}, "/api/traces": v1},
        "v3": {"/api/v3/services": {"services": ["shop"]}, "/api/v3/traces": v3_body(v3_span("a"))},
    }
    answers = by_version[version]
    monkeypatch.setattr(jaeger, "_get", lambda url: answers.get(url.removeprefix("http://j").split("?")[0]))
    assert [span.span_id for span in jaeger.find("http://j/", "f", since_s=60)] == ["a"]
    assert jaeger.find("http://j/", "g", ["shop"], since_s=60) == []


def test_what_is_no_jaeger_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A web server that answers with pages only is not taken for an empty Jaeger."""
    monkeypatch.setattr(jaeger, "_get", lambda url: None)
    with pytest.raises(TransportError, match="does not answer as a Jaeger"):
        jaeger.find("http://j", "f", ["shop"], since_s=60)
