"""The order flow's spans in a real Jaeger: one trace, the true tree, every edge; and `choreo trace` draws them."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from choreo.flow.spans import Span, read_v1, read_v3
from handlers.order_fulfilment.events import OrderPlaced
from handlers.order_fulfilment.orders import read, shipped_lines
from tests.integration.killing import ROOT, SERVICES, TARGET, Fleet
from tests.integration.test_order_flow_trace import DECLINED, SPANS, Expected
from tests.integration.tracing import unset_otel
from tests.jaeger_server import Jaeger, jaeger_server

Tree = tuple[str, str, list[Any]]
EDGES = {
    ("app", "inventory"),
    ("app", "notifications"),
    ("inventory", "payments"),
    ("payments", "inventory"),
    ("payments", "notifications"),
}
WAIT_S = 20.0


@pytest.fixture
def jaeger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jaeger]:
    """A real one, to which everything started from here exports."""
    with jaeger_server(tmp_path) as found:
        unset_otel(monkeypatch)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.otlp)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield found


def ask(url: str) -> Any:
    """What the query API answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def trees(spans: list[Span]) -> list[Tree]:
    """Spans below their parents, siblings in the order of their words."""

    def below(parent_id: str) -> list[Tree]:
        found = [span for span in spans if (span.parent_id if span.parent_id in ids else "") == parent_id]
        return sorted((span.service, span.name, below(span.span_id)) for span in found)

    ids = {span.span_id for span in spans}
    return below("")


def expected(tree: Expected) -> Tree:
    """The same of what the receiver's test expects, which knows kinds of spans too."""
    service, name, _, children = tree
    return service, name, sorted(expected(child) for child in children)


def publish_declined(fleet: Fleet) -> str:
    """As one would by hand; returns the correlation id."""
    orders = (content for _, content in read(shipped_lines()) if isinstance(content, OrderPlaced))
    order = next(each for each in orders if each.payment_token == "tok_declined_expired_card")
    fields = [f"{name}:={json.dumps(value)}" for name, value in order.model_dump(mode="json").items()]
    said = fleet.run("publish", TARGET, "order.placed", *fields, "--json")
    assert said.returncode == 0, said.stderr
    return str(json.loads(said.stdout)["correlation_id"])


def until_spans(jaeger: Jaeger, fleet: Fleet, flow: str) -> dict[str, Any]:
    """What `choreo trace` finds in Jaeger, once every span has come there."""
    until_s = time.monotonic() + WAIT_S
    command = [*fleet.choreo("trace", flow), "--jaeger", jaeger.query, "--json"]
    while True:
        said = subprocess.run(
            command, cwd=fleet.folder, env=environment(), capture_output=True, text=True, check=False
        )
        found: dict[str, Any] = json.loads(said.stdout) if said.returncode == 0 else {}
        if found and found["read"]["jaeger"]["spans"] >= SPANS:
            return found
        assert time.monotonic() < until_s, (said.stderr, found)
        time.sleep(0.5)


def environment() -> dict[str, str]:
    """That of the commands: no broker is asked unless it is named."""
    return {**{name: text for name, text in os.environ.items() if name != "CHOREO_BROKER"}, "PYTHONPATH": str(ROOT)}


def test_declined_order_is_one_trace_in_jaeger(tmp_path: Path, jaeger: Jaeger) -> None:
    """Four services, the right tree in both dialects, every edge; `choreo trace` draws it from Jaeger alone."""
    fleet = Fleet(tmp_path, f"embedded:{tmp_path}/flow.db")
    assert fleet.run("topics", "apply", TARGET).returncode == 0
    try:
        for service in SERVICES:
            fleet.start(service)
        flow = publish_declined(fleet)
        found = until_spans(jaeger, fleet, flow)
        assert fleet.drain() == dict.fromkeys(SERVICES, 0)
    finally:
        fleet.end()
    query = f"{jaeger.query}/api/traces?service=inventory&limit=100&lookback=1h"
    (trace,) = {span.trace_id for span in read_v1(ask(query))}
    for body in (
        read_v1(ask(f"{jaeger.query}/api/traces/{trace}")),
        read_v3(ask(f"{jaeger.query}/api/v3/traces/{trace}")),
    ):
        assert trees(body) == [expected(DECLINED)]
    now_ms = int(time.time() * 1000)
    edges = ask(f"{jaeger.query}/api/dependencies?endTs={now_ms}&lookback=3600000")["data"]
    between = {(each["parent"], each["child"]) for each in edges if each["parent"] != each["child"]}
    assert between == EDGES
    events = found["flows"][0]["events"]
    assert [each["type"] for each in events] == [
        "order.placed",
        "stock.reserved",
        "payment.declined",
        "stock.released",
    ]
    handled = {each["handler"] for event in events for each in event["handlings"]}
    assert {each.rpartition(".")[0] for each in handled} == set(SERVICES) - {"shipping"}
    for name in (flow, trace, events[2]["id"]):
        drawn = fleet_trace(fleet, name, "--jaeger", jaeger.query)
        assert "└── stock.released from /inventory" in drawn
        assert "payments.charge handled" in drawn
    joined = fleet_trace(fleet, flow, TARGET, "--jaeger", jaeger.query, "--broker", fleet.broker)
    assert joined.count("payments.charge handled") == 1
    assert "flow order ended with stock.released" in joined


def fleet_trace(fleet: Fleet, *arguments: str) -> str:
    """What a command draws."""
    command = fleet.choreo("trace", *arguments)
    said = subprocess.run(command, cwd=fleet.folder, env=environment(), capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    print(said.stdout)
    return said.stdout


@pytest.mark.parametrize("mode", ["parent", "link", "both"])
def test_commands_of_the_page_bring_up_a_trace(
    tmp_path: Path, jaeger: Jaeger, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/tracing.md has them, but for ports; the same tree where each hop is a trace of its own."""
    monkeypatch.setenv("CHOREO_TRACE_MODE", mode)
    readme = (ROOT / "README.md").read_text()
    flow = re.search(r"^<!-- orders.py -->\n```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    section = (ROOT / "docs" / "tracing.md").read_text().split("## In Jaeger")[1].split("\n## ")[0]
    dev, publish, trace = re.findall(r"^choreo (.*)$", section, re.MULTILINE)
    assert flow
    (tmp_path / "orders.py").write_text(flow[1])

    def command(line: str) -> list[str]:
        words = line.replace("http://127.0.0.1:16686", jaeger.query).split()
        return [sys.executable, "-m", "choreo", *words]

    running = subprocess.Popen(command(dev), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert running.stderr is not None
        while "publish with" not in running.stderr.readline():
            assert running.poll() is None
        said = subprocess.check_output(command(publish), cwd=tmp_path, env=environment(), text=True)
        ask_for = command(trace.replace("CORRELATION_ID", said.split()[-1]))
        drawn, until_s = "", time.monotonic() + WAIT_S
        while "            └── stock.released" not in drawn or drawn.count(" handled ") < 3:
            assert time.monotonic() < until_s, drawn
            time.sleep(0.5)
            drawn = subprocess.run(
                ask_for, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
            ).stdout
        running.terminate()
        running.communicate(timeout=20)
    finally:
        running.kill()
        running.wait(10)
    assert drawn.count(" handled ") == 3
