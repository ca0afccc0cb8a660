"""A saga driven event by event: in order, undone from the step that failed, and no compensation gets lost."""

from dataclasses import replace
from datetime import timedelta

import pytest

from choreo import Command, Event
from choreo.core.definition import problems
from choreo.errors import DeclarationError
from choreo.process.operating import Hand, fire_timer, set_state
from choreo.process.saga import Saga, Step
from tests.unit.process_stage import Driven


class OrderPlaced(Event, type="shop.placed", version=1, topic="shop", key="order_id"):
    """Somebody orders."""

    order_id: str
    cents: int


class ReserveStock(Command, type="shop.reserve", version=1, topic="stock-commands", key="order_id"):
    """Put it aside."""

    order_id: str


class StockReserved(Event, type="shop.reserved", version=1, topic="stock", key="order_id"):
    """It is put aside."""

    order_id: str
    shelf: str


class StockRejected(Event, type="shop.rejected", version=1, topic="stock", key="order_id"):
    """There is none."""

    order_id: str


class ReleaseStock(Command, type="shop.release", version=1, topic="stock-commands", key="order_id"):
    """Put it back."""

    order_id: str
    shelf: str


class StockReleased(Event, type="shop.released", version=1, topic="stock", key="order_id"):
    """It is back."""

    order_id: str


class ChargeCard(Command, type="shop.charge", version=1, topic="card-commands", key="order_id"):
    """Take the money."""

    order_id: str
    cents: int


class CardCharged(Event, type="shop.charged", version=1, topic="cards", key="order_id"):
    """It is taken."""

    order_id: str


class CardDeclined(Event, type="shop.declined", version=1, topic="cards", key="order_id"):
    """It is not."""

    order_id: str


class RefundCard(Command, type="shop.refund", version=1, topic="card-commands", key="order_id"):
    """Give it back."""

    order_id: str
    cents: int


class CardRefunded(Event, type="shop.refunded", version=1, topic="cards", key="order_id"):
    """It is given back."""

    order_id: str


class ShipGoods(Command, type="shop.ship", version=1, topic="ship-commands", key="order_id"):
    """Send it."""

    order_id: str
    shelf: str


class GoodsShipped(Event, type="shop.shipped", version=1, topic="ship", key="order_id"):
    """It is on its way."""

    order_id: str


class NotShipped(Event, type="shop.not-shipped", version=1, topic="ship", key="order_id"):
    """It cannot go."""

    order_id: str


class OrderFulfilled(Event, type="shop.fulfilled", version=1, topic="shop", key="order_id"):
    """All is well."""

    order_id: str


class OrderCancelled(Event, type="shop.cancelled", version=1, topic="shop", key="order_id"):
    """All is as it was."""

    order_id: str


STOCK = Step(ReserveStock, ok=StockReserved, failed=StockRejected, undo=ReleaseStock, undone=StockReleased)
CARD = Step(
    ChargeCard,
    ok=CardCharged,
    failed=CardDeclined,
    undo=RefundCard,
    undone=CardRefunded,
    timeout=timedelta(minutes=5),
)
SHIP = Step(ShipGoods, ok=GoodsShipped, failed=NotShipped)
PLACED = OrderPlaced(order_id="o", cents=5)


def checkout() -> Saga:
    """Reserve, charge, ship."""
    return Saga(
        "checkout",
        starts=OrderPlaced,
        by="order_id",
        steps=[STOCK, CARD, SHIP],
        completed=OrderFulfilled,
        compensated=OrderCancelled,
    )


def driven() -> Driven:
    """The saga, its order placed and its goods put aside."""
    driven = Driven(checkout().manager)
    assert driven.take(PLACED) == [ReserveStock(order_id="o")]
    assert driven.take(StockReserved(order_id="o", shelf="s7")) == [ChargeCard(order_id="o", cents=5)]
    return driven


def test_steps_follow_each_other_to_the_end() -> None:
    """Each command's fields come from the events before it."""
    saga = driven()
    assert saga.take(CardCharged(order_id="o")) == [ShipGoods(order_id="o", shelf="s7")]
    assert saga.take(GoodsShipped(order_id="o")) == [OrderFulfilled(order_id="o")]
    assert saga.at("o") == "completed"
    assert not saga.memory.set


def test_a_failed_step_undoes_those_before_it_last_first() -> None:
    """Its own command is not undone: it said itself that it was not done."""
    saga = driven()
    saga.take(CardCharged(order_id="o"))
    assert saga.take(NotShipped(order_id="o")) == [RefundCard(order_id="o", cents=5)]
    assert saga.take(CardRefunded(order_id="o")) == [ReleaseStock(order_id="o", shelf="s7")]
    assert saga.take(StockReleased(order_id="o")) == [OrderCancelled(order_id="o")]
    assert saga.at("o") == "compensated"
    first = Driven(checkout().manager)
    first.take(PLACED)
    assert first.take(StockRejected(order_id="o")) == [OrderCancelled(order_id="o")]


def test_a_step_without_an_answer_is_undone_too() -> None:
    """It may have been done; its answer, should it come late, changes nothing."""
    saga = driven()
    assert saga.wait(timedelta(minutes=5)) == [RefundCard(order_id="o", cents=5)]
    assert saga.take(CardCharged(order_id="o")) == []
    assert saga.take(CardRefunded(order_id="o")) == [ReleaseStock(order_id="o", shelf="s7")]


def test_an_undo_that_cannot_be_made_in_time_is_refused() -> None:
    """Nothing but the answer has the shelf: once the step has timed out its undo could never be sent."""
    late = replace(STOCK, timeout=timedelta(minutes=5))
    with pytest.raises(DeclarationError, match=r"ReleaseStock needs shelf.*ReserveStock has timed out without Stock"):
        Saga("s", starts=OrderPlaced, by="order_id", steps=[late])

    class PutBack(Command, type="shop.put-back", version=1, topic="stock-commands", key="order_id"):
        order_id: str
        shelf: str = ""

    saga = Driven(Saga("s", starts=OrderPlaced, by="order_id", steps=[replace(late, undo=PutBack)]).manager)
    saga.take(PLACED)
    assert saga.wait(timedelta(minutes=5)) == [PutBack(order_id="o")]


def test_an_end_that_cannot_be_made_on_every_way_is_refused() -> None:
    """An order that failed at its first step has no shelf; one that went all the way has."""

    class Cancelled(Event, type="shop.put-back-from", version=1, topic="shop", key="order_id"):
        order_id: str
        shelf: str

    def saga(*steps: Step, completed: type[Event] | None = None, compensated: type[Event] | None = None) -> Saga:
        return Saga("s", starts=OrderPlaced, by="order_id", steps=steps, completed=completed, compensated=compensated)

    saga(STOCK, SHIP, completed=Cancelled)
    with pytest.raises(DeclarationError, match=r"Cancelled needs shelf, .* after StockRejected; give the field a"):
        saga(STOCK, SHIP, compensated=Cancelled)
    saga(replace(STOCK, failed=()), SHIP, compensated=Cancelled)
    with pytest.raises(DeclarationError, match=r"needs shelf, .* after ChargeCard has timed out"):
        saga(replace(CARD, failed=()), compensated=Cancelled)
    with pytest.raises(DeclarationError, match="Cancelled needs shelf, and no event before it has a field of that"):
        saga(CARD, completed=Cancelled)


def test_a_compensation_that_fails_never_vanishes() -> None:
    """Sent every minute for an hour, then said to be stuck and sent on every ten; its answer ends it at any time."""
    saga = driven()
    saga.take(CardDeclined(order_id="o"))
    assert saga.at("o") == "release-stock"
    sent = saga.wait(timedelta(minutes=59))
    assert sent == [ReleaseStock(order_id="o", shelf="s7")] * 59
    saga.wait(timedelta(minutes=1))
    assert saga.at("o") == "stuck-release-stock"
    assert saga.wait(timedelta(days=1)) == [ReleaseStock(order_id="o", shelf="s7")] * 144
    assert saga.take(StockReleased(order_id="o")) == [OrderCancelled(order_id="o")]
    assert saga.at("o") == "compensated"
    assert not saga.memory.set


def test_a_saga_is_a_definition_without_problems() -> None:
    """Every state can be reached and left; ends are completed and compensated."""
    definition = checkout().manager.definition()
    assert list(problems(definition)) == []
    assert [state.name for state in definition.states if state.final] == ["completed", "compensated"]
    assert {state.name for state in definition.states if state.name.startswith("stuck-")} == {
        "stuck-release-stock", "stuck-refund-card"
    }  # fmt: skip


def test_what_does_not_hold_together_is_refused() -> None:
    """Fields from nowhere; an undo nobody confirms; a timeout nobody can undo; no steps."""
    with pytest.raises(DeclarationError, match="ShipGoods needs shelf"):
        Saga("s", starts=OrderPlaced, by="order_id", steps=[SHIP])
    without = replace(STOCK, ok=StockReleased)
    with pytest.raises(DeclarationError, match="ReleaseStock needs shelf, and no event before it has"):
        Saga("s", starts=OrderPlaced, by="order_id", steps=[without])
    with pytest.raises(DeclarationError, match="would not be noticed"):
        Step(ReserveStock, ok=StockReserved, undo=ReleaseStock)
    with pytest.raises(DeclarationError, match="has to be undone"):
        Step(ReserveStock, ok=StockReserved, timeout=timedelta(1))
    with pytest.raises(DeclarationError, match="at least one Step"):
        Saga("s", starts=OrderPlaced, by="order_id", steps=[])
    made = Saga(
        "s",
        starts=OrderPlaced,
        by="order_id",
        steps=[Step(ShipGoods, ok=GoodsShipped, make=lambda data: ShipGoods(order_id=data["order_id"], shelf="s1"))],
    )
    assert Driven(made.manager).take(PLACED) == [ShipGoods(order_id="o", shelf="s1")]


def test_a_stuck_saga_is_mended_by_hand() -> None:
    """Its undo is sent at once, or the operator goes on with the step before; it ends as any other."""
    saga, by = driven(), Hand("ann", "refunded at the bank")
    saga.take(CardCharged(order_id="o"))
    assert saga.take(NotShipped(order_id="o")) == [RefundCard(order_id="o", cents=5)]
    saga.wait(timedelta(hours=1))
    assert saga.at("o") == "stuck-refund-card"
    (timer,) = saga.memory.timers("checkout", "o")
    fire_timer(saga.memory, saga.process, "o", timer.name, by)
    assert saga.wait(timedelta(0)) == [RefundCard(order_id="o", cents=5)]
    set_state(saga.memory, saga.process, "o", "release-stock", by, entry=True)
    assert saga.wait(timedelta(0)) == [ReleaseStock(order_id="o", shelf="s7")]
    assert saga.take(StockReleased(order_id="o")) == [OrderCancelled(order_id="o")]
    assert saga.memory.kept["checkout", "o"].ended


def test_a_command_that_nobody_answers_is_sent_anew_by_hand() -> None:
    """A step without a timeout waits for as long as it takes; its state is entered once more."""
    saga = Driven(checkout().manager)
    saga.take(PLACED)
    assert saga.wait(timedelta(days=400)) == []
    set_state(saga.memory, saga.process, "o", "reserve-stock", Hand("ann", "its letter was dropped"), entry=True)
    assert saga.wait(timedelta(0)) == [ReserveStock(order_id="o")]
    assert saga.take(StockReserved(order_id="o", shelf="s7")) == [ChargeCard(order_id="o", cents=5)]


def test_a_saga_ended_by_hand_says_so() -> None:
    """The entry of a final state is called too, once."""
    saga = driven()
    set_state(saga.memory, saga.process, "o", "compensated", Hand("ann", "agreed"), entry=True)
    assert saga.wait(timedelta(0)) == [OrderCancelled(order_id="o")]
    assert saga.wait(timedelta(days=1)) == []
    assert saga.take(CardCharged(order_id="o")) == []
