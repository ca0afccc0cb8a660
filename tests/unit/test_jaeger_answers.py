"""What Jaeger answers in either dialect, and the flow that is built of it."""

from typing import Any

import pytest

from choreo.errors import TransportError
from choreo.flow import jaeger, spans
from choreo.flow.joining import build
from choreo.flow.timeline import Handling, Place
from tests.unit.test_timeline import drawn, record


def v3_span(id_: str, parent: str = "", flow: str | None = "f", trace: str = "t") -> dict[str, Any]:
    """A span as Jaeger's v3 API gives it."""
    attributes = [{"key": spans.CONVERSATION, "value": {"stringValue": flow}}] if flow else []
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
    (span,) = spans.read_v3(v3_body(v3_span("b", "a")))
    assert (span.service, span.parent_id, span.duration_ns) == ("shop", "a", 2000)
    assert span.attributes == {spans.CONVERSATION: "f"}


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
        "tags": [{"key": spans.CONVERSATION, "value": "f"}],
    }
    (found,) = spans.read_v1({"data": [{"processes": {"p1": {"serviceName": "shop"}}, "spans": [span]}]})
    assert (found.service, found.parent_id, found.start_ns, found.duration_ns) == ("shop", "a", 5000, 2000)
    assert spans.of_flow([found], "f") == [found]


def test_spans_are_filtered_by_flow() -> None:
    """A Jaeger that ignores the filter gives traces of other flows; they are left out, own spans of handlers not."""
    body = v3_body(
        v3_span("a"),
        v3_span("b", "a", None),
        v3_span("c", "a", "g"),
        v3_span("d", flow="g", trace="u"),
        v3_span("e", "d", None, "u"),
    )
    assert [span.span_id for span in spans.of_flow(spans.read_v3(body), "f")] == ["a", "b"]


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_jaeger_is_asked_in_both_dialects(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Where one API is gone or answers with its user interface, the other one is taken."""
    tags = [{"key": spans.CONVERSATION, "value": "f"}]
    v1 = {"data": [{"processes": {}, "spans": [{"traceID": "t", "spanID": "a", "tags": tags}]}]}
    by_version: dict[str, dict[str, Any]] = {
        "v1": {"/api/services": {"data": ["shop"]}, "/api/traces": v1},
        "v3": {"/api/v3/services": {"services": ["shop"]}, "/api/v3/traces": v3_body(v3_span("a"))},
    }
    answers = by_version[version]
    monkeypatch.setattr(jaeger, "ask", lambda url: answers.get(url.removeprefix("http://j").split("?")[0]))
    assert [span.span_id for span in jaeger.find("http://j/", "f", since_s=60)] == ["a"]
    assert jaeger.find("http://j/", "g", ["shop"], since_s=60) == []


def test_what_is_no_jaeger_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A web server that answers with pages only is not taken for an empty Jaeger."""
    monkeypatch.setattr(jaeger, "ask", lambda url: None)
    with pytest.raises(TransportError, match="does not answer as a Jaeger"):
        jaeger.find("http://j", "f", ["shop"], since_s=60)


def test_jaeger_that_ignores_the_filter_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.13 gives whatever is newest in v3: one of our traces among them does not mean that they are all there."""
    tags = [{"key": spans.CONVERSATION, "value": "f"}]
    more = {"data": [{"processes": {}, "spans": [{"traceID": "u", "spanID": "b", "tags": tags}]}]}
    newest = v3_body(v3_span("a"), v3_span("x", flow="g", trace="v"))
    answers = {"/api/v3/traces": newest, "/api/traces": more}
    monkeypatch.setattr(jaeger, "ask", lambda url: answers.get(url.removeprefix("http://j").split("?")[0]))
    assert [span.trace_id for span in jaeger.find("http://j", "f", ["shop"], since_s=60)] == ["t", "u"]


def test_jaeger_without_any_service_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has just been started is no error."""
    monkeypatch.setattr(jaeger, "ask", lambda url: {"services": []} if url.endswith("services") else None)
    assert jaeger.find("http://j", "f", since_s=60) == []


def test_flow_is_found_by_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event id, a record key and a trace id stand for the flows whose spans have them; other flows do not."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    ours, other = process_span("e1", "reserve", flow="f", trace=trace), process_span("e2", "reserve", flow="g")

    def answer(url: str) -> dict[str, Any] | None:
        path = url.removeprefix("http://j").split("?")[0]
        return v3_body(ours) if path.endswith(trace) else v3_body(ours, other) if path == "/api/v3/traces" else None

    monkeypatch.setattr(jaeger, "ask", answer)
    assert jaeger.identify("http://j", "e1", ["shop"], since_s=60) == ["f"]
    assert jaeger.identify("http://j", "g", ["shop"], since_s=60) == ["g"]
    assert jaeger.identify("http://j", trace, ["shop"], since_s=60) == ["f"]
    assert jaeger.identify("http://j", "key of e2", ["shop"], by_key=True, since_s=60) == ["g"]
    assert jaeger.identify("http://j", "e3", ["shop"], since_s=60) == []


def message_span(id_: str, parent: str, operation: str, event: str, flow: str, trace: str) -> dict[str, Any]:
    """A `send` or `process` span with what choreo says in it."""
    said = {
        "messaging.operation.name": operation,
        "messaging.message.id": event,
        "messaging.kafka.message.key": f"key of {event}",
        "messaging.destination.name": "orders",
        "cloudevents.event_source": "/shop",
        "cloudevents.event_type": f"type.{event}",
    }
    span = v3_span(id_, parent, flow, trace)
    span["attributes"] += [{"key": name, "value": {"stringValue": text}} for name, text in said.items()]
    return span


def process_span(event: str, handler: str, parent: str = "", flow: str = "f", trace: str = "t") -> dict[str, Any]:
    """A handler's span."""
    span = message_span(f"p-{event}-{handler}", parent, "process", event, flow, trace)
    said: dict[str, dict[str, Any]] = {
        "choreo.handler": {"stringValue": handler},
        "choreo.outcome": {"stringValue": "handled"},
        "choreo.attempts": {"intValue": "2"},
        "messaging.destination.partition.id": {"stringValue": "3"},
        "messaging.kafka.offset": {"intValue": "42"},
    }
    span["attributes"] += [{"key": name, "value": value} for name, value in said.items()]
    return span


def send_span(event: str, parent: str = "") -> dict[str, Any]:
    """A span of what was sent."""
    return message_span(f"s-{event}", parent, "send", event, "f", "t")


def test_flow_is_built_of_spans_alone() -> None:
    """Causes, handlers, attempts, places and a handler's own spans, where no log was read."""
    own = {**v3_span("own", "p-e1-reserve", None), "name": "POST /holds"}
    body = v3_body(send_span("e2", "own"), own, process_span("e1", "reserve", "s-e1"), send_span("e1"))
    found = build((), "f", (), spans.read_v3(body))
    first, second = found.nodes()
    assert (first.envelope.id, first.place, first.envelope.causationid) == ("e1", Place("orders", 3, 42), None)
    assert (second.envelope.id, second.place, second.envelope.causationid) == ("e2", None, "e1")
    (handling,) = first.handlings
    assert (handling.handler, handling.outcome, handling.attempts) == ("shop.reserve", "handled", 2)
    text = drawn(found)
    assert text.index("POST /holds") > text.index("shop.reserve handled 0.0 ms, 2 attempts")
    assert "type.e2 from /shop +0.000 s place unknown" in text


def test_log_store_and_spans_are_one_tree() -> None:
    """The same event and the same handling are there once, with what each of the three knows."""
    row = {"topic": "orders", "partition": 0, "offset": 0, "done": 1, "deliveries": 3, "done_ms": 9}
    row |= {"handler": "shop.reserve", "outcome": "handled", "attempts": 2, "duration_s": 0.25}
    body = v3_body(send_span("e1"), process_span("e1", "reserve", "s-e1"), process_span("e1", "thank", "s-e1"))
    found = build([record("e1")], "f", [row], spans.read_v3(body))
    (node,) = found.nodes()
    assert node.place == Place("orders", 0, 0)
    assert [each.handler for each in node.handlings] == ["shop.reserve", "shop.thank"]
    merged = Handling("shop.reserve", "handled", 2, 0.25, 3, begun_ms=0.001, told_by="store")
    assert node.handlings[0] == merged


def test_cause_is_known_whatever_two_clocks_say() -> None:
    """A handler whose clock is behind begins before its event was sent, and does not take its cause away."""
    early = process_span("e2", "charge", "s-e2")
    early["startTimeUnixNano"] = "1"
    body = v3_body(send_span("e2", "p-e1-reserve"), early, process_span("e1", "reserve", "s-e1"), send_span("e1"))
    (root,) = build((), "f", (), spans.read_v3(body)).roots
    assert [child.envelope.id for child in root.children] == ["e2"]


def test_dropped_duplicate_is_no_handling() -> None:
    """A span of a duplicate stands beside the handling that came first, and is said to be dropped."""
    again = process_span("e1", "reserve", "s-e1")
    again["spanId"] = "again"
    for each in again["attributes"]:
        if each["key"] == "choreo.outcome":
            each["value"] = {"stringValue": "duplicate"}
    found = build((), "f", (), spans.read_v3(v3_body(send_span("e1"), process_span("e1", "reserve", "s-e1"), again)))
    assert "shop.reserve dropped a duplicate" in drawn(found)
    assert [each.outcome for node in found.nodes() for each in node.handlings] == ["handled", "duplicate"]
