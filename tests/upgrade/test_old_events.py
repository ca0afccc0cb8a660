"""Records as they stood on the log, read by today's code.

`records/` holds one of each event version of handlers/, taken from a log; none is ever changed or deleted. `shop/`
has one event in the versions a shop gave it over the years, of which today's service has the newest class only.
"""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from choreo import App, Context, Event, Service
from choreo.cli.explain import record_from_json
from choreo.core.emission import key_digest
from choreo.record import ProducerRecord, Record
from choreo.runtime.work import Work
from choreo.testing import TestApp
from tests.handlers_apps import NAMES, handlers_app

ROOT = Path(__file__).parents[2]
RECORDS = sorted(Path(__file__).parent.glob("records/*.json"))
UNHANDLED = {"letter.sent.1", "deploy.wanted.1", "pipeline.ended.1"}
SHOP = Path(__file__).parent / "shop"
ORDER = UUID("4c4a36d4-4c0d-4a81-9012-8109a380a3b5")


def stored(path: Path) -> Record:
    """The record in a file."""
    text = path.read_bytes()
    return record_from_json(json.loads(text)["topic"], text)


def works(app: App, record: Record) -> list[Work]:
    """What all services make of it."""
    services = [name for name in app.services if record.topic in app.input_topics(name)]
    return [work for name in services for work in app.router(name).route(record).work]


def test_there_is_a_record_of_every_released_version() -> None:
    """A new event version comes with a record of it; that of an old version stays."""
    schemas = {f"{path.parent.name}.{path.name}" for path in ROOT.glob("schemas/*/*.json")}
    assert schemas
    assert schemas <= {path.name for path in RECORDS}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_of_an_example_is_read_whole(path: Path) -> None:
    """By every handler of its type, and nothing of it is lost on the way."""
    record = stored(path)
    found = [work for name in NAMES for work in works(handlers_app(name), record)]
    assert bool(found) == (path.stem not in UNHANDLED)
    for work in found:
        assert work.error is None
        assert work.event is not None
        assert json.loads(work.event.payload()) == json.loads(record.value or b"")


class OrderPlaced(Event, type="order.placed", version=3, topic="orders", key="order_id"):
    """As the shop has it today: no customer but an id, no money but whole cents."""

    order_id: UUID
    customer_id: str
    cents: int
    currency: str


@OrderPlaced.upcast(from_version=1)
def without_customer(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 kept the customer's id alone."""
    data["customer_id"] = data.pop("customer")["id"]
    return data


@OrderPlaced.upcast(from_version=2)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    """Version 3 counts cents."""
    total = data.pop("total")
    return {**data, "cents": int(Decimal(total["amount"]) * 100), "currency": total["currency"]}


def shop(seen: list[tuple[Event, str]]) -> App:
    """One service that knows version 3 only."""
    billing = Service("billing")

    @billing.handler(OrderPlaced)
    def bill(placed: OrderPlaced, ctx: Context) -> None:
        seen.append((placed, ctx.envelope.id))

    return App(billing)


@pytest.mark.parametrize(
    ("name", "cents"),
    [
        ("order.placed.1", 2580),
        ("order.placed.1.structured", 29),  # as a float it would be 28
        ("order.placed.2", 123456789012),
        ("order.placed.3", 2580),
    ],
)
async def test_every_version_the_shop_ever_sent_is_billed_once(name: str, cents: int) -> None:
    """Under the id it has on the log; the same bytes again are a duplicate."""
    record, seen = stored(SHOP / f"{name}.json"), list[tuple[Event, str]]()
    app = shop(seen)
    (work,) = works(app, record)
    assert work.envelope is not None
    key = app.router("billing").units.key(work)
    assert key == key_digest("billing", "bill", work.envelope.source, work.envelope.id)
    async with TestApp(app) as t:
        for _ in range(2):
            await t.send(ProducerRecord(record.topic, record.key, record.value, record.headers))
        await t.settle()
        assert seen == [
            (OrderPlaced(order_id=ORDER, customer_id="c-1", cents=cents, currency="EUR"), work.envelope.id)
        ]
        assert not t.dead_letters
