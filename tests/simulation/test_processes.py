"""Processes on bad days: they end, once, as decided; timers are never early, never lost; compensations come."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from choreo import App, Context, Event, Flow, Service
from choreo.core import process as core
from choreo.core.definition import Definition
from choreo.instances import Timer
from choreo.process.interpreting import Turn
from choreo.runtime import keeping
from choreo.runtime.timers import TimerPoller
from choreo.stores.sqlite import SqliteStore
from choreo.testing.simulation import Faults, Simulation, World
from handlers.approval.events import (
    ApprovalEnded,
    ExpenseApproved,
    ExpenseRejected,
    ExpenseSubmitted,
    ExpenseWithdrawn,
)
from handlers.approval.process import LARGE_CENTS, Approval
from handlers.approval.simulation import DAY_MS
from handlers.approval.simulation import simulation as approval
from tests.unit import test_saga as shop

SEEDS = 40


@pytest.mark.parametrize("pair", ["outbox", "embedded"])
def test_approvals_end_once_and_in_time(pair: str) -> None:
    """With all faults; expenses that overtake their decisions, are delegated, withdrawn or forgotten."""
    counts = 0
    for seed in range(1, (SEEDS if pair == "outbox" else SEEDS // 4) + 1):
        outcome = replace(approval, pair=pair).run(seed)
        assert outcome.violations == (), seed
        counts += len(outcome.faults)
    assert counts > 5 * SEEDS / 4


async def noted_first(self: TimerPoller[Timer]) -> float:
    """Timers are noted as sent before they are."""
    timers, next_s = await self._store.due(self._processes, limit=500, claim_s=5.0)
    await self._store.due_sent(timers, again_s=1e9)
    if timers:
        await self._transport.send([self._record(timer) for timer in timers])
    return next_s


def as_decided(world: World) -> Iterator[str]:
    """What was decided is what it came to, on a day on which nothing delays a decision until after its time."""
    wanted = {
        event.request_id: "expired" for event in world.published.values() if isinstance(event, ExpenseSubmitted)
    }
    large = {
        event.request_id
        for event in world.published.values()
        if isinstance(event, ExpenseSubmitted) and event.cents > LARGE_CENTS
    }
    outcomes: dict[type[Event], str] = {
        ExpenseApproved: "approved",
        ExpenseRejected: "rejected",
        ExpenseWithdrawn: "withdrawn",
    }
    for event in world.published.values():
        if type(event) in outcomes and not (isinstance(event, ExpenseApproved) and event.request_id in large):
            wanted[event.request_id] = outcomes[type(event)]
    for record in world.records("approvals"):
        ended = ApprovalEnded.from_payload(record.value or b"")
        if wanted[ended.request_id] != ended.outcome:
            yield f"{ended.request_id} is {ended.outcome}, and was {wanted[ended.request_id]}"


def chased_as_late(world: World) -> Iterator[str]:
    """On a good day finance hears of an expense if and only if it lasts a week."""
    at_ms: dict[tuple[str, str], int] = {}
    for record, envelope in world.events():
        if envelope is not None and record.key is not None:
            at_ms.setdefault((envelope.type, record.key.decode()), record.timestamp_ms)
            if envelope.source == "/chase":
                at_ms["chase", record.key.decode()] = record.timestamp_ms
    for type_, request in list(at_ms):
        if type_ == ApprovalEnded.event_type:
            took_ms = at_ms[type_, request] - at_ms[ExpenseSubmitted.event_type, request]
            if (took_ms > 7 * DAY_MS) != (("chase", request) in at_ms):
                yield f"{request} took {took_ms / DAY_MS:.2f} days"


def good_days() -> Simulation:
    """Approvals without faults."""
    return replace(approval, faults=Faults.none(), checkers=[*approval.checkers, as_decided, chased_as_late])


def test_what_was_decided_is_what_it_comes_to() -> None:
    """Also where the decision comes before its expense."""
    assert [good_days().run(seed).violations for seed in range(1, 6)] == [()] * 5


def test_who_is_late_is_chased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where timers fire into nothing, finance never hears of those that wait for nobody's decision."""
    fires = core.on_timer

    def silent(definition: Definition, state: str | None, timer: str, number: int) -> Iterator[core.Step]:
        return iter(()) if definition.name == "chase" else fires(definition, state, timer, number)

    monkeypatch.setattr(core, "on_timer", silent)
    assert any("chased_as_late" in each for each in good_days().run(1).violations)


def test_what_is_deferred_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten, decisions that came early are without effect."""
    monkeypatch.setattr(Turn, "_release", lambda self, key: None)
    assert any("and was" in each for each in good_days().run(1).violations)


def test_a_timer_is_sent_until_it_has_fired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noted as sent before it is, one whose record is lost on the way is never heard of again."""
    monkeypatch.setattr(TimerPoller, "send_due", noted_first)
    assert any(approval.run(seed).violations for seed in range(1, 61))


def test_instances_deleted_at_once_come_to_no_second_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all faults, a second after their end: their starts come again, and are known as handled."""
    monkeypatch.setattr(Approval, "process_retention", timedelta(seconds=1))
    monkeypatch.setattr(keeping, "PURGE_S", 1.0)
    deleted: list[int] = []
    purge_ended = SqliteStore.purge_ended

    async def counted(self: SqliteStore, *given: Any) -> int:
        deleted.append(await purge_ended(self, *given))
        return deleted[-1]

    monkeypatch.setattr(SqliteStore, "purge_ended", counted)
    for seed in range(1, SEEDS // 4 + 1):
        assert approval.run(seed).violations == (), seed
    assert sum(deleted) > SEEDS


# ---- a saga


class Tills:
    """What the shop's services have done, outside of any transaction; each order's refund fails for a while."""

    def __init__(self) -> None:
        self.charged: set[str] = set()
        self.refunded: set[str] = set()
        self.tries: dict[str, int] = {}


def shop_app() -> App:
    """The saga of the unit tests, with services that carry it out; one order in three cannot be shipped."""
    saga = shop.checkout()
    stock, cards, shipping = Service("stock"), Service("cards"), Service("shipping")

    @stock.handler(shop.ReserveStock)
    def reserve(asked: shop.ReserveStock) -> shop.StockReserved | shop.StockRejected:
        if asked.order_id.endswith("7"):
            return shop.StockRejected(order_id=asked.order_id)
        return shop.StockReserved(order_id=asked.order_id, shelf="s1")

    @stock.handler(shop.ReleaseStock)
    def release(asked: shop.ReleaseStock) -> shop.StockReleased:
        return shop.StockReleased(order_id=asked.order_id)

    @cards.handler(shop.ChargeCard)
    async def charge(asked: shop.ChargeCard, tills: Tills) -> shop.CardCharged | shop.CardDeclined:
        if asked.cents > 900:
            return shop.CardDeclined(order_id=asked.order_id)
        tills.charged.add(asked.order_id)
        return shop.CardCharged(order_id=asked.order_id)

    @cards.handler(shop.RefundCard)
    async def refund(asked: shop.RefundCard, tills: Tills, ctx: Context) -> shop.CardRefunded:
        tills.tries[asked.order_id] = tills.tries.get(asked.order_id, 0) + 1
        if tills.tries[asked.order_id] <= 12:  # more than the attempts of one command: it comes to be a dead letter
            raise ConnectionError("the bank is closed")
        tills.refunded.add(asked.order_id)
        return shop.CardRefunded(order_id=asked.order_id)

    @shipping.handler(shop.ShipGoods)
    def ship(asked: shop.ShipGoods) -> shop.GoodsShipped | shop.NotShipped:
        if int(asked.order_id[1:]) % 3 == 0:
            return shop.NotShipped(order_id=asked.order_id)
        return shop.GoodsShipped(order_id=asked.order_id)

    ends = (shop.OrderFulfilled, shop.OrderCancelled)
    flow = Flow("checkout", starts=shop.OrderPlaced, ends=ends)
    return App(saga, stock, cards, shipping, flows=[flow], resources={Tills: Tills()})


def orders(chance: random.Random) -> Sequence[Event]:
    """Twenty; some are too dear."""
    return [shop.OrderPlaced(order_id=f"o{number}", cents=chance.randrange(1_000)) for number in range(20)]


def compensated_exactly_when_it_must_be(world: World) -> Iterator[str]:
    """Cancelled or fulfilled, as the order itself says; whoever was charged for nothing has their money back."""
    tills, ends = world.resources[Tills], dict[str, set[str]]()
    for record, envelope in world.events():
        if envelope is not None and envelope.source == "/checkout" and envelope.type.startswith("shop.fulfilled"):
            ends.setdefault((record.key or b"").decode(), set()).add("fulfilled")
        if envelope is not None and envelope.source == "/checkout" and envelope.type.startswith("shop.cancelled"):
            ends.setdefault((record.key or b"").decode(), set()).add("cancelled")
    for order in world.published.values():
        fails = order.order_id.endswith("7") or order.cents > 900 or int(order.order_id[1:]) % 3 == 0
        came = ends.get(order.order_id, set())
        if came != ({"cancelled"} if fails else {"fulfilled"}) and not _timed_out(world, order.order_id):
            yield f"{order.order_id} was {sorted(came)}"
        if "cancelled" in came and order.order_id in tills.charged - tills.refunded:
            yield f"{order.order_id} was charged for nothing"


def _timed_out(world: World, order_id: str) -> bool:
    """Whether its card was not charged in time: then it is cancelled, whatever came later."""
    asked = [
        envelope
        for record, envelope in world.events()
        if envelope is not None and envelope.type == "shop.refund" and record.key == order_id.encode()
    ]
    return bool(asked)


def saga_simulation() -> Simulation:
    """Minutes are fractions of a second: a refund is sent again every 1.5 s, and a saga is stuck after 90."""
    return Simulation(
        shop_app(),
        orders,
        resources={Tills: Tills()},
        checkers=[compensated_exactly_when_it_must_be],
        faults=replace(Faults(), handler_fails=0.01),
        hasten=40.0,
    )


def test_sagas_are_compensated_exactly_when_they_must_be() -> None:
    """Although every refund fails twelve times, and its command becomes a dead letter twice."""
    for seed in range(1, 16):
        outcome = saga_simulation().run(seed)
        assert [each for each in outcome.violations if not each.startswith("unfinished")] == [], seed
        assert outcome.violations == (), seed


def test_a_compensation_that_is_sent_once_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command never sent again, orders are left that were charged for nothing."""
    real = core.on_timer

    def never(definition: object, state: object, timer: str, number: int) -> Iterator[core.Step]:
        if timer.startswith("resend"):
            return iter(())
        return real(definition, state, timer, number)  # type: ignore[arg-type]

    monkeypatch.setattr(core, "on_timer", never)
    assert saga_simulation().run(1).violations
