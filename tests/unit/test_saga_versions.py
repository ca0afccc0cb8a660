"""Versions of a saga side by side, and one that is being undone moved from version 1 to 2."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from choreo import App, Command, Event, Reject
from choreo.errors import DeclarationError
from choreo.process import Saga, Step
from choreo.process.interpreting import Process
from choreo.process.operating import Hand, Moved, move
from tests.tea_app import choreo
from tests.unit.process_stage import Driven
from tests.unit.test_saga import (
    CARD,
    PLACED,
    SHIP,
    STOCK,
    CardCharged,
    CardRefunded,
    GoodsShipped,
    NotShipped,
    OrderCancelled,
    OrderPlaced,
    RefundCard,
    ReleaseStock,
    ShipGoods,
    StockReleased,
    StockReserved,
    checkout,
)

BY = Hand("ann", "gift wrapping for all")
MINUTE = timedelta(minutes=1)


class WrapGoods(Command, type="shop.wrap", version=1, topic="wrap-commands", key="order_id"):
    """Make it pretty."""

    order_id: str


class GoodsWrapped(Event, type="shop.wrapped", version=1, topic="wrap", key="order_id"):
    """It is pretty."""

    order_id: str


class ReturnStock(Command, type="shop.return", version=1, topic="stock-commands", key="order_id"):
    """Put it back, and say what it was worth."""

    order_id: str
    shelf: str
    cents: int


RETURN = replace(STOCK, undo=ReturnStock)
WRAP = Step(WrapGoods, ok=GoodsWrapped)


def second(stock: Step = STOCK, previous: Saga | None = None) -> Saga:
    """Version 2: goods are wrapped before they are shipped."""
    return Saga(
        "checkout",
        starts=OrderPlaced,
        by="order_id",
        steps=[stock, CARD, WRAP, SHIP],
        compensated=OrderCancelled,
        version=2,
        previous=previous or checkout(),
    )


def refunding() -> Driven:
    """Of version 1: it could not be shipped, so the card is refunded, and was asked for once more."""
    driven = Driven(checkout().manager)
    for event in (PLACED, StockReserved(order_id="o", shelf="s7"), CardCharged(order_id="o")):
        driven.take(event)
    assert driven.take(NotShipped(order_id="o")) == [RefundCard(order_id="o", cents=5)]
    assert driven.wait(MINUTE) == [RefundCard(order_id="o", cents=5)]
    return driven


def moved(driven: Driven, saga: Saga) -> Driven:
    """The build with both versions goes on where the older one was, and has moved the instance."""
    newer = Driven(saga.manager, driven.memory)
    result = move(newer.memory, newer.process, "o", 2, BY)
    assert isinstance(result, Moved), result
    return newer


def test_each_saga_ends_under_the_version_it_began_under() -> None:
    """The newer build undoes one of version 1 as version 1 says, and begins the next under version 2."""
    older = refunding()
    driven = Driven(second().manager, older.memory)
    assert driven.take(CardRefunded(order_id="o")) == [ReleaseStock(order_id="o", shelf="s7")]
    assert driven.take(StockReleased(order_id="o")) == [OrderCancelled(order_id="o")]
    assert driven.memory.kept["checkout", "o"].version == 1
    for event in (OrderPlaced(order_id="p", cents=1), StockReserved(order_id="p", shelf="s1")):
        driven.take(event)
    assert driven.take(CardCharged(order_id="p")) == [WrapGoods(order_id="p")]
    assert driven.take(GoodsWrapped(order_id="p")) == [ShipGoods(order_id="p", shelf="s1")]
    driven.take(GoodsShipped(order_id="p"))
    assert (driven.memory.kept["checkout", "p"].version, driven.at("p")) == (2, "completed")


def test_a_saga_is_moved_in_the_midst_of_being_undone() -> None:
    """It goes on being undone: what was sent again so often, and when the next time is, stays as it was."""
    saga = second()

    @saga.migrate(from_version=1)
    def from_v1(data: dict[str, Any], state: str) -> tuple[dict[str, Any], str]:
        return {**data, "cents": data["cents"] + 1}, state

    older = refunding()
    before = {timer.name: timer.due_ms for timer in older.memory.timers("checkout", "o")}
    driven = moved(older, saga)
    assert {timer.name: timer.due_ms for timer in driven.memory.timers("checkout", "o")} == before
    assert driven.wait(timedelta(0)) == []
    assert driven.wait(MINUTE) == [RefundCard(order_id="o", cents=6)]
    assert json.loads(driven.memory.kept["checkout", "o"].data)["resent"] == 2
    assert driven.take(CardRefunded(order_id="o")) == [ReleaseStock(order_id="o", shelf="s7")]
    driven.wait(timedelta(hours=1))
    assert driven.at("o") == "stuck-release-stock", "no compensation gets lost on the way"
    assert driven.take(StockReleased(order_id="o")) == [OrderCancelled(order_id="o")]
    assert driven.memory.kept["checkout", "o"].version == 2


def test_in_another_state_its_command_is_sent() -> None:
    """The undo has another name in version 2: the service sends it, once, and again until it is answered."""
    saga = second(RETURN)

    @saga.migrate(from_version=1)
    def from_v1(data: dict[str, Any], state: str) -> tuple[dict[str, Any], str]:
        return data, state.replace("release-stock", "return-stock")

    older = refunding()
    older.take(CardRefunded(order_id="o"))
    assert older.at("o") == "release-stock"
    driven = moved(older, saga)
    returned = ReturnStock(order_id="o", shelf="s7", cents=5)
    assert driven.wait(timedelta(0)) == [returned]
    assert driven.wait(MINUTE) == [returned]
    assert driven.take(StockReleased(order_id="o")) == [OrderCancelled(order_id="o")]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("refund", "from_v1 returned something other than a Checkout and a state of v2"),
        ("", "gifts are not for them"),
    ],
)
def test_a_saga_that_cannot_be_moved_stays_as_it_is(state: str, said: str) -> None:
    """A state that is none of version 2; and one that is to end under version 1."""
    saga = second()

    @saga.migrate(from_version=1)
    def from_v1(data: dict[str, Any], _: str) -> tuple[dict[str, Any], str]:
        if not state:
            raise Reject("gifts are not for them")
        return data, state

    driven = refunding()
    before = dict(driven.memory.kept)
    assert move(driven.memory, Process(saga.manager), "o", 2, BY) == said
    assert driven.memory.kept == before


def test_versions_of_a_saga_are_checked_where_they_are_declared() -> None:
    """As those of a process manager: of the same name, older, moved once, by a plain function."""
    saga = second()
    with pytest.raises(DeclarationError, match=r"the versions in its previous= are 1"):
        saga.migrate(from_version=3)

    async def later(data: dict[str, Any], state: str) -> tuple[dict[str, Any], str]:
        return data, state

    with pytest.raises(DeclarationError, match="must be a plain def"):
        saga.migrate(from_version=1)(later)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="and an older version of checkout v2 is to be there"):
        second(previous=saga)
    exported = App(saga).processes["checkout"].versions
    assert {number: len(each.definition.states) for number, each in exported.items()} == {1: 9, 2: 10}


# ---- by the command

MODULE = """
from choreo import App
from tests.unit.test_saga import checkout
from tests.unit.test_saga_versions import second

saga = second()

@saga.migrate(from_version=1)
def from_v1(data, state):
    return data, state

old, new = App(checkout()), App(saga)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both builds, and a saga of version 1 that is being undone."""
    (tmp_path / "checkouts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHOREO_BROKER", "embedded:checkouts.db")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "checkouts", raising=False)
    handle(
        App(checkout()),
        [
            (PLACED, "reserve-stock"),
            (StockReserved(order_id="o", shelf="s7"), "charge-card"),
            (CardCharged(order_id="o"), "ship-goods"),
            (NotShipped(order_id="o"), "refund-card"),
        ],
    )
    return tmp_path


def handle(app: App, events: Sequence[tuple[Event, str]]) -> None:
    """Run the service; each event is published when the one before has led to its state."""

    look = app.instances(app.processes["checkout"].newest.made)

    async def run() -> None:
        async with (
            app.running(broker="embedded:checkouts.db", create_topics=True) as running,
            asyncio.timeout(15),
        ):
            for event, state in events:
                await running.publish(event)
                while (found := await look.get("o")) is None or found.state != state:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    asyncio.run(run())


def test_the_command_tries_it_first_and_then_moves_it(here: Path) -> None:
    """A dry run says what would be done; moved, it is undone to the end by the newer build."""
    said = choreo("instances", "migrate", "checkouts:new", "--dry-run").stdout
    assert said == "1 would go from v1 refund-card to v2 refund-card\n"
    assert shown()["version"] == 1
    said = choreo("instances", "migrate", "checkouts:new", "--reason", "gifts", "--yes").stdout
    assert said == "1 went from v1 refund-card to v2 refund-card\n"
    found = shown()
    assert (found["version"], found["state"]) == (2, "refund-card")
    assert found["by hand"][0]["what"] == "migrate v1 refund-card -> v2 refund-card"
    handle(
        App(second()), [(CardRefunded(order_id="o"), "release-stock"), (StockReleased(order_id="o"), "compensated")]
    )


def shown() -> dict[str, Any]:
    """What `show` says of it."""
    found: dict[str, Any] = json.loads(choreo("instances", "show", "checkouts:new", "o", "--json").stdout)
    return found
