"""A deployment with an extra emission, as a real Jaeger tells it."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from choreo.cli import main
from choreo.flow.model import to_json
from tests.integration.tracing import unset_otel
from tests.jaeger_server import jaeger_server
from tests.shop_releases import Placed, run, shop

SEEN_S = 30.0
WHOLE = {"correlation_ids": 4, "events": 13, "units": 10, "edges": 9}


def test_extra_emission_is_found_by_a_real_jaeger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever dialect it answers, versions and counts among it."""
    unset_otel(monkeypatch)
    (tmp_path / "released.json").write_text(to_json(shop().capability()))
    with jaeger_server(tmp_path) as jaeger:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", jaeger.otlp)
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
        orders = [Placed(order=name) for name in ("ada", "bea", "refused", "rejected")]
        asyncio.run(run(shop("extra"), tmp_path / "shop.db", orders))
        until_s = time.monotonic() + SEEN_S
        while (found := drift(tmp_path, jaeger.query)).get("sample") != WHOLE:
            assert time.monotonic() < until_s, f"Jaeger has not all of it: {found}"
            time.sleep(0.2)
    (extra,) = found["findings"]
    assert (extra["id"], extra["count"]) == ("undeclared_edge", 2)
    assert extra["edge"] == "stock.reserved v1 -> billing.charge -> points.earned v1"
    assert found["precision"] == 1.0
    assert (found["doubt"], found["notes"][0]) == ("", "From 4 traces: 13 events, 10 of them handled by somebody.")


def drift(folder: Path, url: str) -> dict[str, Any]:
    """What the command says, empty while Jaeger has nothing."""
    arguments = ["drift", str(folder / "released.json"), "--jaeger", url, "--sampled", "1", "--timeout", "0s"]
    result = CliRunner().invoke(main, [*arguments, "--ignore", "late_hop", "--json"])
    return {} if result.exit_code == 2 else dict(json.loads(result.stdout))
