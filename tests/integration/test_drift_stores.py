"""What drift reads back from real stores: PostgreSQL tells the history of a flow, Redis only which keys it has."""

import asyncio
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from choreo import App, Event, Flow, Service
from choreo.flow.model import to_json
from tests.shop_releases import Placed, run, shop
from tests.tea_app import choreo

ORDERS = [Placed(order=name) for name in ("ada", "bea", "refused", "rejected")]


class Asked(Event, type="price.asked", version=1, topic="asks", key="who"):
    who: str


class Told(Event, type="price.told", version=1, topic="prices", key="who"):
    who: str


def prices() -> App:
    """A handler that knows its events by a business key."""
    sales = Service("sales")

    @sales.handler(Asked, idempotency_key="who")
    def tell(asked: Asked) -> Told:
        return Told(who=asked.who)

    return App(sales, flows=[Flow("price", starts=Asked, ends=Told)], name="web")


@pytest.fixture(params=["postgres", "redis"])
def store(request: pytest.FixtureRequest) -> str:
    """A store that nothing else is in."""
    url, name = request.getfixturevalue(request.param), f"drift_{uuid.uuid4().hex[:12]}"
    option = f"choreo_schema={name}" if request.param == "postgres" else f"choreo_prefix={name}"
    return f"{url}{'&' if '?' in url else '?'}{option}"


def drift(folder: Path, app: App, store: str, code: int = 0) -> dict[str, Any]:
    """By log and store alone."""
    (folder / "released.json").write_text(to_json(app.capability()))
    where = ("--broker", f"embedded:{folder}/flow.db", "--store", store)
    ignored = ("--ignore", "late_hop", "--ignore", "never_observed_edge")
    arguments = ("drift", str(folder / "released.json"), "--timeout", "0s", *where, *ignored, "--json")
    found: dict[str, Any] = json.loads(choreo(*arguments, code=code).stdout)
    assert found["basis"] == "log and store"
    return found


def ran(folder: Path, app: App, events: list[Event], store: str) -> None:
    """On an embedded broker with this store."""
    asyncio.run(run(app, folder / "flow.db", events, store=store, create_schema=True))


def counts(found: dict[str, Any]) -> dict[tuple[str, str, str], int]:
    """How often."""
    return {(each["level"], each["id"], each["edge"]): each["count"] for each in found["findings"]}


@pytest.mark.parametrize(
    ("deployment", "expected"),
    [
        ("released", {}),
        ("missing", {("improvement", "missing_emission", "stock.reserved v1 -> billing.charge"): 2}),
        (
            "renamed",
            {
                ("improvement", "unconsumed_event", "order.paid v2 -> mail.confirm"): 2,
                ("violation", "undeclared_edge", "order.paid v2 -> mail.thank"): 2,
            },
        ),
    ],
)
def test_deployment_is_found_by_what_a_store_has(
    tmp_path: Path, store: str, deployment: str, expected: dict[tuple[str, str, str], int]
) -> None:
    """Who handled without an emit is told by a key; of handlers that nobody declares, by a history alone."""
    ran(tmp_path, shop(deployment), [*ORDERS], store)
    if store.startswith("redis"):
        expected = {where: count for where, count in expected.items() if where[1] != "undeclared_edge"}
    violated = any(level == "violation" for level, _, _ in expected)
    assert counts(drift(tmp_path, shop(), store, code=int(violated))) == expected


def test_price_asked_for_twice_is_told_once(tmp_path: Path, store: str) -> None:
    """The second event is known by its business key: it is neither unconsumed nor without an answer."""
    ran(tmp_path, prices(), [Asked(who="ada"), Asked(who="ada"), Asked(who="bea")], store)
    found = drift(tmp_path, prices(), store)
    assert counts(found) == {}
    assert (found["sample"]["events"], found["flows"][0]["started"]) == (5, 2)


def test_extra_emission_on_kafka_is_found(tmp_path: Path, kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a topic that nobody declares once it is named; topics have a prefix, and each service a store of its own."""
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", prefix := f"{uuid.uuid4().hex[:12]}.")
    monkeypatch.chdir(tmp_path)
    broker, store = f"kafka://{kafka}", "sqlite:{service}.db"

    async def serve() -> None:
        async with shop("extra").running(broker=broker, store=store, create_topics=True) as running:
            for order in ORDERS:
                await running.publish(order)
            until_s = time.monotonic() + 60.0
            while sum(each.counts["handled"] + each.counts["dead_letters"] for each in running.workers.values()) < 10:
                assert time.monotonic() < until_s, "the orders are not handled"
                await asyncio.sleep(0.05)

    asyncio.run(serve())
    (tmp_path / "released.json").write_text(to_json(shop().capability()))
    arguments = ("drift", "released.json", "--broker", broker, "--store", store, "--timeout", "0s", "--json")
    found = json.loads(choreo(*arguments, "--ignore", "late_hop").stdout)
    assert (found["findings"], found["fitness"], found["precision"]) == ([], 1.0, 1.0)
    assert "Topics that nobody declares were not read; --topics adds some." in found["notes"]
    found = json.loads(choreo(*arguments, "--ignore", "late_hop", "--topics", f"{prefix}points", code=1).stdout)
    edge = "stock.reserved v1 -> billing.charge -> points.earned v1"
    assert counts(found) == {("violation", "undeclared_edge", edge): 2}
