"""One problem, three architectures: the same orders come to the same ends in the mesh, the saga and the process."""

from collections.abc import Mapping
from decimal import Decimal

import pytest

from choreo import App
from choreo.testing import TestApp
from handlers.order_fulfilment.app import app as mesh
from handlers.order_fulfilment.events import OrderPlaced
from handlers.order_fulfilment.orders import read, shipped_lines
from handlers.order_fulfilment.payments.fake_provider import FakePaymentProvider
from handlers.order_fulfilment.payments.provider import Captured, Declined, PaymentProvider
from handlers.order_process.app import app as process
from handlers.order_saga.app import app as saga
from tests.unit.test_order_flow import Declines, books, placed

LINES = 200
APPS: Mapping[str, App] = {"mesh": mesh, "saga": saga, "process": process}

each_app = pytest.mark.parametrize("app", APPS.values(), ids=APPS.keys())


class Away(FakePaymentProvider):
    """A provider that cannot be reached until it is back."""

    back = False

    async def charge(
        self, *, idempotency_key: str, order_id: str, amount: Decimal, currency: str, token: str
    ) -> Captured | Declined:
        """See `PaymentProvider.charge`."""
        if not self.back:
            raise ConnectionError("the provider is down")
        return await super().charge(
            idempotency_key=idempotency_key, order_id=order_id, amount=amount, currency=currency, token=token
        )


async def ends(app: App, orders: list[OrderPlaced]) -> dict[str, int]:
    """How many orders end how; the ledgers agree with each other."""
    with FakePaymentProvider() as provider:
        async with TestApp(app, resources={PaymentProvider: provider}) as t:
            for order in orders:
                await t.publish(order)
            await t.settle()
            found = books(t, provider)
            assert found.problems == {}
            assert not t.dead_letters
            return {**found.outcomes, **found.rejected, **found.declined}


async def test_the_same_orders_come_to_the_same_ends() -> None:
    """The first orders of the shipped file, some of them twice, at a provider that times out now and then."""
    orders = [order for _, order in read(shipped_lines()[:LINES]) if isinstance(order, OrderPlaced)]
    assert len({order.order_id for order in orders}) < len(orders)
    found = {name: await ends(app, orders) for name, app in APPS.items()}
    assert found["mesh"].keys() >= {"shipped", "cancelled", "declined", "rejected"}
    assert found["saga"] == found["process"] == found["mesh"]


@each_app
async def test_a_declined_payment_leaves_no_dangling_hold(app: App) -> None:
    """Whoever has to see to it."""
    async with TestApp(app, resources={PaymentProvider: Declines()}) as t:
        flow = await t.publish(placed())
        await flow.settled()
        assert flow.types[-1] == "stock.released"
        assert t.rows("SELECT state FROM inventory_hold") == [("released",)]
        assert not t.dead_letters


async def test_what_is_undone_at_once_and_what_in_order() -> None:
    """No carrier: the saga refunds, then puts back; the process asks for both, and the mesh never asked anybody."""
    with FakePaymentProvider(timeouts=0) as provider:
        for name, types in (
            ("saga", ["payment.refund", "payment.refunded", "stock.release", "stock.released"]),
            ("process", ["stock.release", "payment.refund"]),
        ):
            async with TestApp(APPS[name], resources={PaymentProvider: provider}) as t:
                flow = await t.publish(placed(region="unserved"))
                await flow.settled()
                after = flow.types[flow.types.index("shipment.cancelled") + 1 :]
                assert after[: len(types)] == types
                assert {"stock.released", "payment.refunded"} <= set(after)


@pytest.mark.parametrize(("name", "state"), [("mesh", None), ("saga", "charge-payment"), ("process", "charging")])
async def test_a_provider_that_is_away_for_an_hour(name: str, state: str | None) -> None:
    """Its orders are dead letters. The mesh and the saga wait for a replay, the process asks again by itself."""
    with Away(timeouts=0) as provider:
        async with TestApp(APPS[name], resources={PaymentProvider: provider}) as t:
            flow = await t.publish(placed())
            await t.advance(minutes=60)
            assert {each.service for each in t.dead_letters} == {"payments"}
            assert t.rows("SELECT state FROM inventory_hold") == [("held",)]
            if state is not None:
                assert t.rows("SELECT state FROM choreo_instance") == [(state,)]
            provider.back = True
            await t.advance(minutes=60)
            assert ("order.shipped" in flow.types) == (name == "process")
            assert len(provider.statement()) == (name == "process")
