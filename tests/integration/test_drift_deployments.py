"""Services deployed otherwise than they were released: found from traces alone, and from log and store alone."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from choreo.flow.drift import compare
from choreo.flow.drift_findings import DriftFinding
from choreo.flow.drift_log import LogReading, Window
from choreo.flow.model import Capability, to_json
from choreo.opening import open_transport
from choreo.record import Record
from choreo.testing.otlp_reading import ReceivedSpan
from handlers.order_fulfilment.app import app as order_fulfilment
from handlers.order_fulfilment.events import OrderPlaced
from handlers.order_fulfilment.orders import read, shipped_lines
from handlers.order_fulfilment.payments.fake_provider import FakePaymentProvider
from handlers.order_fulfilment.payments.provider import PaymentProvider
from tests.shop_releases import DEPLOYMENTS, Placed, jaeger, receiver, run, shop
from tests.tea_app import choreo

ORDERS = ("ada", "bea", "cy", "refused", "rejected")
"""Three are shipped, one is refused, and one is a dead letter."""
FLOWS = 200
LEVELS = ("violation", "improvement", "information", "inconclusive")


class Ran(NamedTuple):
    """What a deployment left behind."""

    log: Path
    spans: Sequence[ReceivedSpan]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """Every deployment, run when it is first asked for."""
    folder = tmp_path_factory.mktemp("deployments")
    done: dict[str, Ran] = {}

    def once(deployment: str) -> Ran:
        if deployment not in done:
            path = folder / f"{deployment.replace(' ', '-')}.db"
            with pytest.MonkeyPatch.context() as patched, receiver(patched) as received:
                asyncio.run(run(shop(deployment), path, [Placed(order=name) for name in ORDERS]))
                done[deployment] = Ran(path, received.spans())
        return done[deployment]

    return once


@pytest.fixture
def released(tmp_path: Path) -> str:
    """The capability file of the release."""
    return written(tmp_path, shop().capability())


def written(folder: Path, capability: Capability) -> str:
    """A capability file."""
    path = folder / "released.json"
    path.write_text(to_json(capability))
    return str(path)


def drift(capability: str, source: str, left: Ran, *more: str, code: int = 0) -> dict[str, Any]:
    """What the command says, from one source alone. Every hop is later than no time at all: that is left out."""
    arguments = ["drift", capability, "--timeout", "0s", "--ignore", "late_hop", "--json", *more]
    if source == "log and store":
        found: dict[str, Any] = json.loads(choreo(*arguments, "--broker", f"embedded:{left.log}", code=code).stdout)
    else:
        with jaeger(lambda: left.spans) as url:
            found = json.loads(choreo(*arguments, "--jaeger", url, code=code).stdout)
    assert found["basis"] == source
    return found


def told(found: dict[str, Any], *levels: str) -> set[tuple[str, str]]:
    """Ids and edges of these levels, of all if none is given."""
    return {(each["id"], each["edge"]) for each in found["findings"] if not levels or each["level"] in levels}


def counts(found: dict[str, Any]) -> dict[tuple[str, str], int]:
    """How often."""
    return {(each["id"], each["edge"]): each["count"] for each in found["findings"]}


VIOLATIONS: dict[str, dict[tuple[str, str], int]] = {
    "extra": {("undeclared_edge", "stock.reserved v1 -> billing.charge -> points.earned v1"): 3},
    "twice": {("cardinality_exceeded", "stock.reserved v1 -> billing.charge -> order.paid v2"): 3},
    "cycle": {
        ("cycle", "order.paid -> stock.reserved -> order.paid"): 3,
        ("undeclared_edge", "order.paid v2 -> shipping.ship -> stock.reserved v1"): 3,
    },
    "renamed": {("undeclared_edge", "order.paid v2 -> mail.thank"): 3},
}
IMPROVEMENTS: dict[str, dict[tuple[str, str], int]] = {
    "missing": {("missing_emission", "stock.reserved v1 -> billing.charge"): 3},
    "missing either": {("missing_emission", "order.placed v1 -> stock.reserve"): 5},
    "cycle": {("missing_emission", "order.paid v2 -> shipping.ship"): 3},
    "old": {
        ("unknown_version", "stock.reserved v1 -> billing.charge -> order.paid v1"): 3,
        ("unknown_version", "order.paid v1 -> shipping.ship"): 3,
        ("unknown_version", "order.paid v1 -> mail.confirm"): 3,
    },
    "old reader": {("unknown_version", "order.paid v2 -> shipping.ship"): 3},
    "renamed": {("unconsumed_event", "order.paid v2 -> mail.confirm"): 3},
}
each_source = pytest.mark.parametrize("source", ["log and store", "traces"])


@each_source
@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_deployment_is_found(ran: Callable[[str], Ran], released: str, source: str, deployment: str) -> None:
    """Each by its id, its edge and how often; and nothing else is said but what was never seen."""
    violations, improvements = VIOLATIONS.get(deployment, {}), IMPROVEMENTS.get(deployment, {})
    more = ("--sampled", "1") if source == "traces" else ()
    found = drift(released, source, ran(deployment), *more, code=1 if violations else 0)
    assert counts(found) | violations | improvements == counts(found)
    assert len(counts(found)) == len(found["findings"])
    assert [each["level"] for each in found["findings"]] == sorted(
        (each["level"] for each in found["findings"]), key=LEVELS.index
    )
    assert told(found, "violation") == violations.keys()
    assert told(found, "improvement") == improvements.keys()
    assert {each["id"] for each in found["findings"] if each["level"] == "information"} <= {"never_observed_edge"}
    assert told(found, "inconclusive") == set()
    assert found["ok"] is not bool(violations)
    if deployment == "released":
        assert (found["fitness"], found["precision"], found["findings"]) == (1.0, 1.0, [])
    assert found["flows"][0]["started"] == 5


@each_source
def test_dead_letter_explains_what_is_missing(ran: Callable[[str], Ran], released: str, source: str) -> None:
    """It is said beside those that are missing, and not counted among them."""
    found = drift(released, source, ran("old"), *(("--sampled", "1") if source == "traces" else ()))
    assert "Dead letters (1 rejected, 6 unknown_version) explain what did not come" in " ".join(found["notes"])
    assert "missing_emission" not in {each["id"] for each in found["findings"]}


@pytest.mark.parametrize("deployment", ["missing", "missing either", "renamed"])
def test_absence_at_ten_percent_is_inconclusive(ran: Callable[[str], Ran], released: str, deployment: str) -> None:
    """What was not seen may not have been sampled; what was seen is a violation all the same."""
    found = drift(released, "traces", ran(deployment), "--sampled", "0.1", code=1 if deployment in VIOLATIONS else 0)
    absent = IMPROVEMENTS[deployment].keys()
    assert absent <= told(found, "inconclusive")
    assert told(found, "improvement", "information") == set()
    assert told(found, "violation") == VIOLATIONS.get(deployment, {}).keys()
    (message, *_) = (each["message"] for each in found["findings"] if (each["id"], each["edge"]) in absent)
    assert message.endswith("; inconclusive, since 10% of flows are sampled")
    assert found["absence"] == "inconclusive"


@pytest.mark.parametrize("mode", ["link", "both"])
def test_deployment_is_found_in_traces_that_are_linked(
    tmp_path: Path, released: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Hops are joined by the ids of their events, whether a trace holds one of them or all."""
    with receiver(monkeypatch) as received:
        orders = [Placed(order=name) for name in ORDERS]
        asyncio.run(run(shop("cycle"), tmp_path / "linked.db", orders, trace_mode=mode))
        left = Ran(tmp_path / "linked.db", received.spans())
    assert (len({span.trace_id for span in left.spans}) > len(ORDERS)) is (mode == "link")
    found = drift(released, "traces", left, "--sampled", "1", code=1)
    assert told(found, "violation") == VIOLATIONS["cycle"].keys()
    assert told(found, "improvement") == IMPROVEMENTS["cycle"].keys()
    assert found["doubt"] == ""


def test_absence_is_inconclusive_until_the_share_is_said(ran: Callable[[str], Ran], released: str) -> None:
    """Five traces look the same whether they are all there were or not."""
    found = drift(released, "traces", ran("missing"))
    assert IMPROVEMENTS["missing"].keys() <= told(found, "inconclusive")
    assert found["sampled"] is None
    assert "say --sampled 1" in found["doubt"]


def test_ids_show_that_flows_are_sampled(tmp_path: Path, released: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler of a ratio leaves low ids: whoever says that all is sampled is contradicted."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    with receiver(monkeypatch) as received:
        path = tmp_path / "sampled.db"
        asyncio.run(run(shop("missing"), path, [Placed(order=f"order-{number}") for number in range(FLOWS)]))
        left = Ran(path, received.spans())
    assert 0 < len({span.trace_id for span in left.spans}) < FLOWS / 2
    found = drift(released, "traces", left, "--sampled", "1")
    assert 0.03 < found["sampled"] < 0.12
    assert "whatever --sampled 1 says" in " ".join(found["notes"])
    assert told(found, "improvement", "information") == set()
    assert IMPROVEMENTS["missing"].keys() <= told(found, "inconclusive")
    # The log is complete whatever was sampled.
    assert counts(drift(released, "log and store", left))[next(iter(IMPROVEMENTS["missing"]))] == FLOWS


def test_log_alone_cannot_tell_who_handled_without_an_emit(ran: Callable[[str], Ran]) -> None:
    """Whether an event was not taken in, or taken in without an emit, is inconclusive; an extra emission is not."""
    silent = {("unconsumed_event", "order.paid v2 -> mail.confirm")}
    assert alone(ran("released")) == {"inconclusive": silent}
    assert alone(ran("missing")) == {
        "inconclusive": {("missing_emission", "stock.reserved v1 -> billing.charge")},
        "information": {
            ("never_observed_edge", "stock.reserved v1 -> billing.charge -> order.paid v2"),
            ("never_observed_edge", "order.paid v2 -> shipping.ship -> order.shipped v1"),
        },
    }
    assert alone(ran("extra")) == {"inconclusive": silent, "violation": VIOLATIONS["extra"].keys()}


def alone(left: Ran) -> dict[str, set[tuple[str, str]]]:
    """Findings by level, of the log without any store, as a Kafka is."""
    reading = LogReading(asyncio.run(_records(left.log)), capability=shop().capability())
    now_ms = time.time() * 1000
    found = compare(shop().capability(), reading.seen(window=Window(now_ms - 86_400_000, now_ms)), timeout_s=0.0)
    by_level: dict[str, set[tuple[str, str]]] = {}
    for each in found.findings:
        if each.id != "late_hop":
            by_level.setdefault(each.level, set()).add(_place(each))
    return by_level


def _place(finding: DriftFinding) -> tuple[str, str]:
    return finding.id, finding.where


async def _records(path: Path) -> Sequence[Record]:
    transport = open_transport(f"embedded:{path}")
    await transport.open()
    try:
        return await transport.scan(list(await transport.topics()), since_ms=0)
    finally:
        await transport.close()


def test_real_flows_of_order_fulfilment_are_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred orders through four services with time-outs, retries and orders sent again: nothing differs."""
    placed = [order for _, order in read(shipped_lines()) if isinstance(order, OrderPlaced)][:FLOWS]
    capability = written(tmp_path, order_fulfilment.capability())
    path = tmp_path / "orders.db"
    with receiver(monkeypatch) as received:
        with FakePaymentProvider(tmp_path / "provider.db") as provider:
            asyncio.run(run(order_fulfilment, path, placed, overrides={PaymentProvider: provider}))
        left = Ran(path, received.spans())
    for source, more in (("log and store", ()), ("traces", ("--sampled", "1"))):
        found = drift(capability, source, left, "--ignore", "never_observed_edge", *more)
        assert found["findings"] == [], source
        assert found["fitness"] == 1.0
        (flow,) = found["flows"]
        assert flow["started"] == flow["ended"] == len({order.order_id for order in placed})
