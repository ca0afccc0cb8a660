"""A shop that forgets a hold: goods stay on hold for good when a payment times out after charging.

`app` has the bug, `mended` has one handler more.
"""

import random
import sqlite3

from choreo import App, Context, Event, Flow, Service


class Order(Event):
    """What every event of the flow says."""

    order_id: str
    cents: int


class OrderPlaced(Order, type="order.placed", version=1, topic="orders", key="order_id"): ...


class GoodsHeld(Order, type="goods.held", version=1, topic="goods", key="order_id"): ...


class GoodsReleased(Order, type="goods.released", version=1, topic="goods", key="order_id"): ...


class PaymentCaptured(Order, type="payment.captured", version=1, topic="payments", key="order_id"): ...


class PaymentDeclined(Order, type="payment.declined", version=1, topic="payments", key="order_id"): ...


class PaymentTimedOut(Order, type="payment.timed_out", version=1, topic="payments", key="order_id"): ...


class PaymentRefunded(Order, type="payment.refunded", version=1, topic="payments", key="order_id"): ...


class OrderShipped(Order, type="order.shipped", version=1, topic="shipments", key="order_id"): ...


class Bank:
    """On a bad day: it charges, and the first answer about every charge gets lost."""

    def __init__(self) -> None:
        self.paid: dict[str, int] = {}
        self._answers: dict[str, bool] = {}

    async def charge(self, order_id: str, cents: int, *, key: str) -> bool:
        """Whether it was paid; the same key is charged once and gets the same answer."""
        if key not in self._answers:
            self._answers[key] = cents < 90_000
            if self._answers[key]:
                self.paid[order_id] = self.paid.get(order_id, 0) + cents
            raise TimeoutError("the bank did not answer in time")
        return self._answers[key]

    async def refund(self, order_id: str) -> None:
        """Give back what was paid for an order, if anything was."""
        self.paid.pop(order_id, None)


inventory, payments, shipping = Service("inventory"), Service("payments"), Service("shipping")


@inventory.on_start
def tables(db: sqlite3.Connection) -> None:
    """One row an order."""
    db.execute("CREATE TABLE IF NOT EXISTS hold (order_id TEXT, state TEXT)")


@inventory.handler(OrderPlaced)
def hold(order: OrderPlaced, db: sqlite3.Connection) -> GoodsHeld:
    """Put goods on hold."""
    db.execute("INSERT INTO hold VALUES (?, 'held')", (order.order_id,))
    return GoodsHeld(**order.model_dump())


@inventory.handler(PaymentDeclined)
def release(order: Order, db: sqlite3.Connection) -> GoodsReleased:
    """Not paid: put them back."""
    db.execute("UPDATE hold SET state = 'released' WHERE order_id = ?", (order.order_id,))
    return GoodsReleased(**order.model_dump())


@inventory.handler(OrderShipped)
def issue(shipped: OrderShipped, db: sqlite3.Connection) -> None:
    """They have left the house."""
    db.execute("UPDATE hold SET state = 'shipped' WHERE order_id = ?", (shipped.order_id,))


@payments.handler(GoodsHeld)
async def charge(held: GoodsHeld, ctx: Context, bank: Bank) -> PaymentCaptured | PaymentDeclined | PaymentTimedOut:
    """Ask twice: the same key gets the answer of the charge that was not heard of."""
    try:
        paid = await bank.charge(held.order_id, held.cents, key=ctx.idempotency_key)
    except TimeoutError:
        if ctx.attempt < 2:
            raise
        return PaymentTimedOut(**held.model_dump())
    return (PaymentCaptured if paid else PaymentDeclined)(**held.model_dump())


@payments.handler(PaymentTimedOut)
async def refund(timed_out: PaymentTimedOut, bank: Bank) -> PaymentRefunded:
    """Nobody knows whether it was paid."""
    await bank.refund(timed_out.order_id)
    return PaymentRefunded(**timed_out.model_dump())


@shipping.handler(PaymentCaptured)
async def ship(captured: PaymentCaptured) -> OrderShipped:
    """Out of the house."""
    return OrderShipped(**captured.model_dump())


order = Flow("order", starts=OrderPlaced, ends=(OrderShipped, GoodsReleased, PaymentRefunded))
app = App(inventory, payments, shipping, flows=[order], resources=[Bank()])


def orders(chance: random.Random) -> list[OrderPlaced]:
    """What is published in one run: twenty orders, some of more than the bank will pay."""
    return [OrderPlaced(order_id=f"A-{number}", cents=chance.randrange(100_000)) for number in range(20)]


# ---- mended: the money was thought of, now the goods are, too

mended_inventory = Service("inventory")
mended_inventory.on_start(tables)
mended_inventory.handler(OrderPlaced)(hold)
mended_inventory.handler(PaymentDeclined, PaymentRefunded)(release)
mended_inventory.handler(OrderShipped)(issue)
mended_order = Flow("order", starts=OrderPlaced, ends=(OrderShipped, GoodsReleased))
mended = App(mended_inventory, payments, shipping, flows=[mended_order], resources=[Bank()])
