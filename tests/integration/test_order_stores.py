"""Order fulfilment with inventory's rows in a real PostgreSQL: the shelf adds up, whatever became of orders."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from choreo.testing import TestApp
from handlers.order_fulfilment.events import OrderPlaced
from handlers.order_fulfilment.orders import read, shipped_lines
from handlers.order_fulfilment.payments.fake_provider import FakePaymentProvider
from handlers.order_fulfilment.payments.provider import PaymentProvider
from handlers.order_stores.app import app

ENDS = {"order.shipped", "stock.rejected", "payment.declined", "payment.refunded"}
OF_EACH = 2


@pytest.fixture
def store(postgres: str) -> Iterator[str]:
    """URL of a schema of the test's own, of the handlers' tables too."""
    schema = f"stores_{uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {schema}")
        yield f"{postgres}{'&' if '?' in postgres else '?'}choreo_schema={schema}&options=-csearch_path%3D{schema}"
        db.execute(f"DROP SCHEMA {schema} CASCADE")


def orders() -> list[OrderPlaced]:
    """Some of each kind: domestic, remote, unserved, declined, too much, unknown."""
    kinds: dict[Any, list[OrderPlaced]] = {}
    for _, order in read(shipped_lines()):
        if isinstance(order, OrderPlaced):
            token = order.payment_token.rpartition("_")[0]
            bulky = max(line.quantity for line in order.lines) > 99
            odd = any(line.sku.startswith("XX") for line in order.lines)
            kinds.setdefault((order.region, token, bulky, odd), []).append(order)
    return [order for found in kinds.values() for order in found[:OF_EACH]]


async def test_every_order_ends_and_the_shelf_adds_up(store: str, tmp_path: Path) -> None:
    """Placed twice under two ids: served once."""
    with FakePaymentProvider(tmp_path / "provider.db") as provider:
        async with TestApp(app, store=store, resources={PaymentProvider: provider}) as t:
            ends: Counter[str] = Counter()
            for order in orders():
                flow, again = await t.publish(order), await t.publish(order)
                await t.settle()
                assert again.types == ["order.placed"]
                (end,) = [type_ for type_ in flow.types if type_ in ENDS]
                ends[end] += 1
                released = "stock.released" in flow.types
                assert released == (end in ("payment.declined", "payment.refunded"))
            assert not t.dead_letters
    assert set(ends) == ENDS
    with psycopg.connect(store.replace("choreo_schema=", "application_name=")) as db:
        assert db.execute("SELECT count(*) FROM inventory_hold").fetchone() == (0,)
        shelf = db.execute("SELECT sum(held), sum(issued) > 0 FROM inventory_stock").fetchone()
        assert shelf == (0, True)
