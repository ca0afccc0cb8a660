"""The order flow as a whole: each test is what a user would write for a flow of their own."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest

from choreo.testing import TestApp
from handlers.order_fulfilment.app import app
from handlers.order_fulfilment.events import Customer, Money, OrderLine, OrderPlaced, Region
from handlers.order_fulfilment.ledger import Reconciliation, read_rows, read_stock, reconcile, row_of
from handlers.order_fulfilment.orders import EXPECTED, read, shipped_lines
from handlers.order_fulfilment.payments.fake_provider import FakePaymentProvider
from handlers.order_fulfilment.payments.provider import Declined, PaymentProvider


def placed(*, sku: str = "BK-1001", token: str = "tok_visa", region: Region = "domestic") -> OrderPlaced:
    """An order that is shipped at once unless something is said against it."""
    return OrderPlaced(
        order_id=uuid4(),
        customer=Customer(id="c-1", name="Ada", email="ada@example.com"),
        lines=(OrderLine(sku=sku, quantity=2),),
        total=Money(amount=Decimal("25.80"), currency="EUR"),
        payment_token=token,
        region=region,
        placed_at=datetime(2026, 1, 5, 8, 0, tzinfo=UTC),
    )


class Declines:
    """A provider that declines every card."""

    async def charge(
        self, *, idempotency_key: str, order_id: str, amount: Decimal, currency: str, token: str
    ) -> Declined:
        """Decline."""
        return Declined("no_money")

    async def refund(self, *, idempotency_key: str, payment_id: str, amount: Decimal, currency: str) -> None:
        """Never asked for."""
        raise AssertionError("nothing was charged")


@pytest.fixture
def provider() -> Iterator[FakePaymentProvider]:
    """A provider that always answers."""
    with FakePaymentProvider(timeouts=0) as fake:
        yield fake


def books(t: TestApp, provider: FakePaymentProvider) -> Reconciliation:
    """All ledgers, compared."""
    statement = [row_of("provider", *entry) for entry in provider.statement()]
    return reconcile([*read_rows(t.rows), *statement], stock=read_stock(t.rows))


async def test_order_is_shipped(provider: FakePaymentProvider) -> None:
    """A paid order with goods on the shelf is shipped, and its goods are issued."""
    async with TestApp(app, resources={PaymentProvider: provider}) as t:
        flow = await t.publish(placed())
        await flow.settled()
        assert flow.types == ["order.placed", "stock.reserved", "payment.captured", "order.shipped"]
        assert books(t, provider).outcomes == {"shipped": 1}
        assert books(t, provider).ok


async def test_order_without_stock_is_rejected(provider: FakePaymentProvider) -> None:
    """An order of a sold-out article ends at once, and nobody is charged."""
    async with TestApp(app, resources={PaymentProvider: provider}) as t:
        flow = await t.publish(placed(sku="BK-1099"))
        await flow.settled()
        assert flow.types == ["order.placed", "stock.rejected"]
        assert not provider.statement()


async def test_declined_payment_leaves_no_dangling_hold() -> None:
    """What was held for a customer who cannot pay can be sold again."""
    async with TestApp(app, resources={PaymentProvider: Declines()}) as t:
        flow = await t.publish(placed())
        await flow.settled()
        assert flow.types == ["order.placed", "stock.reserved", "payment.declined", "stock.released"]
        assert [tuple(row) for row in t.rows("SELECT state FROM inventory_hold")] == [("released",)]
        assert not t.dead_letters


async def test_delayed_shipment_is_shipped_at_the_second_attempt(provider: FakePaymentProvider) -> None:
    """A remote region is a detour, not an end."""
    async with TestApp(app, resources={PaymentProvider: provider}) as t:
        flow = await t.publish(placed(region="remote"))
        await flow.settled()
        assert flow.types[-2:] == ["shipment.delayed", "order.shipped"]
        assert books(t, provider).ok


async def test_cancelled_shipment_gives_back_money_and_goods(provider: FakePaymentProvider) -> None:
    """Where no carrier goes, the customer is refunded and the hold is released."""
    async with TestApp(app, resources={PaymentProvider: provider}) as t:
        flow = await t.publish(placed(region="unserved"))
        await flow.settled()
        assert {"shipment.cancelled", "payment.refunded", "stock.released"} < set(flow.types)
        assert books(t, provider).outcomes == {"cancelled": 1}
        assert books(t, provider).ok


async def test_time_out_after_charging_charges_once() -> None:
    """A provider that charges and does not answer is asked again with the same key, and charges no second time."""
    with FakePaymentProvider(timeouts=1) as provider:
        async with TestApp(app, resources={PaymentProvider: provider}) as t:
            flow = await t.publish(placed())
            await flow.settled()
            assert flow.types[-1] == "order.shipped"
            assert [entry.effect for entry in provider.statement()] == ["charge"]


async def test_order_placed_twice_is_handled_once(provider: FakePaymentProvider) -> None:
    """The same order under two event ids is one order, thanked for, charged and shipped once."""
    order = placed()
    async with TestApp(app, resources={PaymentProvider: provider}) as t:
        for flow in [await t.publish(order), await t.publish(order)]:
            await flow.settled()
        assert books(t, provider).ok
        assert len(t.rows("SELECT * FROM notifications_message WHERE text LIKE 'Thank you%'")) == 1


@pytest.mark.slow
async def test_shipped_file_comes_out_as_expected() -> None:
    """All orders of the shipped file, at once, with a provider that times out now and then: all of it adds up."""
    lines = [content for _, content in read(shipped_lines())]
    orders = [line for line in lines if isinstance(line, OrderPlaced)]
    with FakePaymentProvider() as provider:
        async with TestApp(app, resources={PaymentProvider: provider}) as t:
            for order in orders:
                await t.publish(order)
            await t.settle()
            assert not t.dead_letters
            found = books(t, provider)
    assert found.problems == {}
    assert (found.outcomes["shipped"], found.outcomes["cancelled"]) == (EXPECTED.shipped, EXPECTED.cancelled)
    assert (found.rejected, found.declined) == (EXPECTED.rejected, EXPECTED.declined)
