"""The order flow as a real Jaeger tells it, of services that are treated as somebody else's."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from choreo.cli import main
from choreo.flow.topology import Topology, label
from handlers.order_fulfilment.app import app
from handlers.order_fulfilment.orders import shipped_lines
from tests.integration.tracing import unset_otel
from tests.jaeger_server import jaeger_server
from tests.tea_app import choreo

ORDERS = 120
SEEN_S = 30.0


def test_estate_is_drawn_from_a_real_jaeger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts agree with the log's, and every edge that is seen is one that is declared."""
    unset_otel(monkeypatch)
    orders, folder = tmp_path / "orders.jsonl", tmp_path / "demo"
    orders.write_bytes(b"\n".join(shipped_lines()[:ORDERS]) + b"\n")
    folder.mkdir()
    with jaeger_server(tmp_path) as jaeger:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", jaeger.otlp)
        choreo("demo", "--orders", str(orders), "--dir", str(folder))
        of_log = counts("--broker", f"embedded:{folder}/demo.db")
        until_s = time.monotonic() + SEEN_S
        while (of_jaeger := counts("--jaeger", jaeger.query)) != of_log and time.monotonic() < until_s:
            time.sleep(0.2)
        edges = observed("--jaeger", jaeger.query)["edges"]
    assert of_jaeger == of_log
    seen = {(short(each["source"]), short(each["target"])) for each in edges}
    topology = Topology(app.capability())
    declared = {(type_, label(place)) for type_, places in topology.readers.items() for place in places}
    declared |= {(label(place), type_) for type_, places in topology.emitters.items() for place, _ in places}
    assert {pair for pair in seen if "app" not in pair} <= declared
    assert ("inventory.reserve", "stock.reserved") in seen


def observed(*where: str) -> dict[str, Any]:
    """What the command says, for programs; nothing while a Jaeger has nothing yet, which is exit code 1."""
    result = CliRunner().invoke(main, ["graph", "--observed", *where, "--since", "1h", "--format", "json"])
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout) if result.exit_code == 0 else {"events": [], "edges": []}


def counts(*where: str) -> dict[str, int]:
    """How many of each type."""
    return {each["name"]: each["seen"] for each in observed(*where)["events"]}


def short(node: str) -> str:
    """`event:a` -> `a`, `handler:s.h a` -> `s.h`."""
    return node.partition(":")[2].partition(" ")[0]
