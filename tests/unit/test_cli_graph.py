"""`choreo graph` and `choreo check` as a shell runs them."""

import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from choreo.flow.model import Capability, from_json
from tests.tea_app import MODULE, TARGET, choreo, tea_folder

here = pytest.fixture(tea_folder)


def capability() -> Capability:
    """Of the small app, by way of the command."""
    return from_json(choreo("graph", TARGET, "--format", "json").stdout, "stdout")


def test_flow_is_drawn_on_standard_output(here: Path) -> None:
    """Mermaid unless told otherwise, and nothing else among it."""
    lines = choreo("graph", TARGET).stdout.splitlines()
    assert lines[0] == "flowchart LR"
    assert "    event_tea_asked --> handler_kitchen_pour" in lines


@pytest.mark.parametrize(
    ("format_", "begins"), [("html", "<!doctype html>"), ("markdown", "# tea_for_tests:app"), ("json", "{")]
)
def test_file_is_written(here: Path, format_: str, begins: str) -> None:
    """Standard output stays empty."""
    result = choreo("graph", TARGET, "--format", format_, "-o", "flow.out")
    assert result.stdout == ""
    assert "wrote flow.out" in result.stderr
    assert (here / "flow.out").read_text().startswith(begins)


def test_asyncapi_is_of_one_service(here: Path) -> None:
    """Which one has to be said."""
    assert (
        "--service with one of ['bell', 'kitchen']" in choreo("graph", TARGET, "--format", "asyncapi", code=2).stderr
    )
    document = json.loads(choreo("graph", TARGET, "--format", "asyncapi", "--service", "kitchen").stdout)
    assert document["info"]["title"] == "kitchen"


def test_files_of_several_repositories_are_one_flow(here: Path) -> None:
    """Each service exports its own; together they are what the app is."""
    for service in ("kitchen", "bell"):
        choreo("graph", TARGET, "--format", "json", "--service", service, "-o", f"{service}.json")
    assert choreo("graph", "kitchen.json", "bell.json").stdout == choreo("graph", TARGET).stdout
    assert "kitchen" not in choreo("graph", TARGET, "--service", "bell").stdout


def test_what_does_not_fit_is_said_on_standard_error(here: Path) -> None:
    """And stands in the JSON; the exit code stays 0, since a picture was asked for."""
    choreo("graph", TARGET, "--format", "json", "--service", "kitchen", "-o", "kitchen.json")
    result = choreo("graph", "kitchen.json", "--format", "json")
    assert "unread_event" not in result.stderr  # it ends the flow
    choreo("graph", TARGET, "--format", "json", "--service", "bell", "-o", "bell.json")
    result = choreo("graph", "bell.json", "--format", "json")
    assert "improvement unemitted_event tea.poured: nobody emits tea.poured" in result.stderr
    ids = [each["id"] for each in json.loads(result.stdout)["findings"]]
    assert ids == ["unreachable_end", "unemitted_event"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name at least one MODULE:APP"),
        (["gone.json"], "gone.json cannot be read: No such file"),
        (["bad.json"], "bad.json is no capability file"),
        ([TARGET, "--service", "cellar"], "there is no service 'cellar'; there are: bell, kitchen"),
        ([TARGET, "-o", "no/such/folder"], "no/such/folder cannot be written"),
        ([TARGET, "--observed"], "leave out MODULE:APP"),
        ([TARGET, "--jaeger", "http://x"], "--jaeger and --topics are for --observed"),
        (["--observed", "--broker", "embedded:gone.db"], "there is no embedded log at gone.db"),
        (["--observed", "--broker", "kafka://127.0.0.1:1", "--topics", "a", "--since", "x"], "is no length of time"),
    ],
)
def test_wrong_use_of_graph_is_one_line(here: Path, arguments: list[str], said: str) -> None:
    """Exit code 2 and a sentence."""
    (here / "bad.json").write_text("[]")
    assert said in choreo("graph", *arguments, code=2).stderr


def test_log_without_events_says_so(here: Path) -> None:
    """Exit code 1: it looked, and saw nothing."""
    choreo("topics", "apply", TARGET)
    assert "nothing was seen in the last 24h" in choreo("graph", "--observed", code=1).stderr


def test_topics_that_were_written_are_observed(here: Path) -> None:
    """A published event begins a flow that nobody has answered."""
    choreo("topics", "apply", TARGET)
    choreo("publish", TARGET, "tea.asked", "who=Ada")
    result = choreo("graph", "--observed", "--format", "json")
    assert json.loads(result.stdout)["events"][0]["name"] == "tea.asked"
    assert "who took an event in without sending another is not on the log" in result.stderr
    assert "AsyncAPI" not in choreo("graph", "--observed", "--format", "asyncapi", code=2).stdout
    assert "<svg" in choreo("graph", "--observed", "--format", "html").stdout


def v1_answer(query: dict[str, str]) -> Any:
    """Jaeger's own dialect."""
    return {"data": [{"processes": {"p": {"serviceName": query["service"]}}, "spans": v1_spans(query["service"])}]}


def v1_spans(service: str) -> list[dict[str, Any]]:
    """The web shop's half of a trace, or the warehouse's."""
    ids = [("1", "", "orders send", "producer")] if service == "shop" else [("2", "1", "orders process", "consumer")]
    return [
        {
            "traceID": "t",
            "spanID": id_,
            "references": [{"refType": "CHILD_OF", "spanID": parent}] if parent else [],
            "operationName": name,
            "processID": "p",
            "startTime": int(id_) * 1_000_000,
            "duration": 5,
            "tags": [
                {"key": "span.kind", "value": kind},
                {"key": "messaging.destination.name", "value": "<b>orders"},
            ],
        }
        for id_, parent, name, kind in ids
    ]


def v3_answer(query: dict[str, str]) -> Any:
    """OTLP's JSON; the operation is in the name alone."""
    service = query["query.service_name"]
    spans = [
        {
            "traceId": each["traceID"],
            "spanId": each["spanID"],
            "parentSpanId": "1" if each["references"] else "",
            "name": each["operationName"],
            "startTimeUnixNano": str(each["startTime"] * 1000),
            "endTimeUnixNano": str(each["startTime"] * 1000 + 1),
            "attributes": [{"key": "messaging.destination.name", "value": {"stringValue": "<b>orders"}}],
        }
        for each in v1_spans(service)
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    return {"result": {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}}


@contextmanager
def jaeger(answers: dict[str, Callable[[dict[str, str]], Any]]) -> Iterator[str]:
    """A query API that knows some paths, each answered from the query."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            answer = answers.get(path)
            body = b"<html>" if answer is None else json.dumps(answer(dict(urllib.parse.parse_qsl(query)))).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "answers",
    [
        {"/api/services": lambda _: {"data": ["shop", "store"]}, "/api/traces": v1_answer},
        {"/api/v3/services": lambda _: {"services": ["shop", "store"]}, "/api/v3/traces": v3_answer},
    ],
    ids=["v1", "v3"],
)
def test_estate_is_observed_in_either_dialect(answers: dict[str, Callable[[dict[str, str]], Any]]) -> None:
    """Services and topics of somebody else's, with the wait between; what they are called is escaped."""
    with jaeger(answers) as url:
        found = json.loads(choreo("graph", "--observed", "--jaeger", url, "--format", "json").stdout)
        html = choreo("graph", "--observed", "--jaeger", url, "--format", "html").stdout
    waits = {(each["source"], each["target"]): each["p50_ms"] for each in found["edges"]}
    assert waits == {
        ("handler:shop ", "event:<b>orders"): None,
        ("event:<b>orders", "handler:store <b>orders"): 1000.0,
    }
    assert "&lt;b&gt;orders" in html
    assert "<b>orders" not in html


def test_what_is_no_jaeger_is_said() -> None:
    """A web server that knows nothing of it; exit code 1."""
    with jaeger({}) as url:
        assert "does not answer as a Jaeger" in choreo("graph", "--observed", "--jaeger", url, code=1).stderr


def test_good_declarations_pass(here: Path) -> None:
    """Exit code 0, and a word for people."""
    assert choreo("check", TARGET).stdout == "nothing found\n"
    assert json.loads(choreo("check", TARGET, "--json").stdout) == {"ok": True, "silenced": 0, "findings": []}


def test_renamed_handler_fails_against_the_release(here: Path) -> None:
    """Exit code 1 with the next step; silenced, it passes; at another place, it is not silenced."""
    choreo("graph", TARGET, "--format", "json", "-o", "released.json")
    module = MODULE.replace("def pour(", "def pour_out(")
    (here / "tea_renamed.py").write_text(module)
    arguments = ("check", "tea_renamed:app", "--against", "released.json")
    result = choreo(*arguments, code=1)
    assert "violation vanished_handler kitchen.pour: " in result.stderr
    assert 'write name="pour" in its decorator' in result.stderr
    assert "see docs/check.md#vanished_handler" in result.stdout
    (found,) = json.loads(choreo(*arguments, "--json", code=1).stdout)["findings"]
    assert (found["level"], found["page"]) == ("violation", "docs/check.md#vanished_handler")
    assert choreo(*arguments, "--ignore", "vanished_handler:kitchen.pour").stdout == "nothing found\n"
    idle = choreo(*arguments, "--ignore", "vanished_handler:bell.ring", code=1).stderr
    assert "--ignore vanished_handler:bell.ring silences nothing; it can go" in idle


def test_advice_does_not_fail(here: Path) -> None:
    """An improvement and information are said, and the exit code is 0."""
    (here / "tea_open.py").write_text(re.sub(r", flows=\[.*?\]", "", MODULE))
    result = choreo("check", "tea_open:app")
    assert "improvement unemitted_event tea.asked" in result.stderr
    assert "information no_flow flows" in result.stderr


def test_processes_of_an_app_are_looked_at(here: Path) -> None:
    """A capability file has none."""
    saga = "handlers.order_saga.app:app"
    assert "information endless_wait checkout: it waits in reserve-stock, " in choreo("check", saga).stderr
    choreo("graph", saga, "--format", "json", "-o", "saga.json")
    assert "endless_wait" not in choreo("check", "saga.json").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name at least one MODULE:APP"),
        ([TARGET, "--ignore", "cycel"], "there is no such id"),
        ([TARGET, "--against", "gone.json"], "gone.json cannot be read"),
    ],
)
def test_wrong_use_of_check_is_one_line(here: Path, arguments: list[str], said: str) -> None:
    """Exit code 2 and a sentence."""
    assert said in choreo("check", *arguments, code=2).stderr


def test_terminal_markup_in_a_file_is_no_markup(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of somebody else's colours nothing and links nowhere."""
    monkeypatch.setattr(Console, "is_terminal", True)
    text = choreo("graph", TARGET, "--format", "json", "--service", "bell").stdout
    (here / "evil.json").write_text(text.replace("tea.poured", "[red]x[/]"))
    assert "[red]x[/]" in choreo("check", "evil.json", code=1).stderr
