"""Reconciliation finds every planted fault and nothing in books that are right; the report says so."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from handlers.order_fulfilment.demo import DemoReport, report
from handlers.order_fulfilment.ledger import (
    LedgerRow,
    StockRow,
    read_rows,
    read_stock,
    reconcile,
    row_of,
)

HISTORIES = {
    "rejected": ["inventory.reject"],
    "declined": ["inventory.hold", "provider.decline", "payments.decline", "inventory.release"],
    "shipped": ["inventory.hold", "provider.charge", "payments.charge", "shipping.shipment", "inventory.issue"],
    "cancelled": [
        *("inventory.hold", "provider.charge", "payments.charge", "shipping.cancellation"),
        *("provider.refund", "payments.refund", "inventory.release"),
    ],
}
STOCK = [StockRow("BK-1001", opening=10, available=6, held=0, issued=4)]

outcomes = st.lists(st.sampled_from(sorted(HISTORIES)), min_size=1, max_size=8)


def row(order_id: str, path: str, amount: str = "9.90") -> LedgerRow:
    """One row of one ledger, with an amount where money moves."""
    ledger, effect = path.split(".")
    at = "2026-01-05T08:00:00Z"
    if effect in ("charge", "refund"):
        return row_of(ledger, order_id, effect, "event", at, amount, "EUR")
    return row_of(ledger, order_id, effect, "event", at, reason="why")


def history(order_id: str, *outcomes: str) -> list[LedgerRow]:
    """All rows of one order that went through `outcomes`."""
    return [row(order_id, path) for outcome in outcomes for path in HISTORIES[outcome]]


def histories(outcomes: Sequence[str]) -> list[LedgerRow]:
    """Rows of one order an outcome; its number is its id."""
    return [each for number, outcome in enumerate(outcomes) for each in history(str(number), outcome)]


@given(outcomes, st.data())
def test_reconcile_accepts_right_books_in_any_order(outcomes: list[str], data: st.DataObject) -> None:
    """Orders that ended properly reconcile, whatever the order of the rows."""
    rows = data.draw(st.permutations(histories(outcomes)))
    found = reconcile(rows, orders={str(number) for number in range(len(outcomes))}, stock=STOCK)
    assert found.ok
    assert {name: outcomes.count(name) for name in outcomes} == found.outcomes
    assert found.orders == len(outcomes)


@given(outcomes, st.data())
def test_reconcile_misses_no_lost_effect(outcomes: list[str], data: st.DataObject) -> None:
    """Whichever row is taken away, its order is found and no other."""
    rows = histories(outcomes)
    lost = rows.pop(data.draw(st.integers(0, len(rows) - 1)))
    found = reconcile(rows, orders={str(number) for number in range(len(outcomes))})
    assert set(found.problems) == {lost.order_id}


@given(outcomes, st.data())
def test_reconcile_misses_no_effect_done_twice(outcomes: list[str], data: st.DataObject) -> None:
    """Whichever row is there twice, its order is found and no other."""
    rows = histories(outcomes)
    rows.append(twice := data.draw(st.sampled_from(rows)))
    found = reconcile(rows)
    assert set(found.problems) == {twice.order_id}
    assert f"{twice.ledger}.{twice.effect} 2 times" in found.problems[twice.order_id]


@given(outcomes, st.sampled_from(sorted({path for paths in HISTORIES.values() for path in paths})), st.data())
def test_reconcile_misses_no_effect_of_another_outcome(outcomes: list[str], path: str, data: st.DataObject) -> None:
    """An effect that does not belong to how the order ended is found."""
    number = data.draw(st.integers(0, len(outcomes) - 1))
    if path in HISTORIES[outcomes[number]]:
        return
    found = reconcile([*histories(outcomes), row(str(number), path)])
    assert set(found.problems) == {str(number)}


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["inventory.hold"], "goods held, neither released nor issued"),
        ([*HISTORIES["shipped"], "inventory.release"], "goods released and issued"),
        (["inventory.release", "payments.decline"], "goods released or issued that were never held"),
        (["shipping.shipment"], "shipped, but the goods were never issued"),
        (["shipping.shipment"], "shipped, but never charged"),
        (["inventory.hold", "inventory.issue"], "goods issued, but never shipped"),
        (
            ["inventory.hold", "inventory.release"],
            "goods released, though payment was not declined and shipping not cancelled",
        ),
        (["inventory.hold", "provider.charge"], "charged, neither shipped nor refunded"),
        (["provider.charge"], "payment asked for goods that were never held"),
        ([*HISTORIES["shipped"], "provider.refund"], "shipped and refunded"),
        (["provider.refund"], "refunded, but never charged"),
        (["shipping.cancellation"], "shipment cancelled that was never charged"),
        (["provider.charge"], "charge: the provider has 9.90 EUR, our books have none"),
        (["payments.decline"], "decline: the provider has none, our books have one"),
        ([*HISTORIES["shipped"], "shipping.cancellation"], "shipped and cancelled"),
        ([*HISTORIES["rejected"], "inventory.hold"], "rejected, and yet something was done for it"),
        (["inventory.hold"], "not at an end: neither shipped, cancelled, declined nor rejected"),
        ([*HISTORIES["rejected"], "inventory.theft"], "inventory.theft is an effect nobody knows"),
    ],
)
def test_reconcile_names_the_fault(paths: list[str], problem: str) -> None:
    """Each kind of fault has words of its own, under the order's id."""
    found = reconcile([*histories(["shipped", "declined"]), *(row("faulty", path) for path in paths)])
    assert not found.ok
    assert list(found.problems) == ["faulty"]
    assert problem in found.problems["faulty"]


def test_reconcile_accepts_a_decline_before_a_charge_that_was_refunded() -> None:
    """An order declined first and charged later reconciles if the money went back."""
    paths = [*HISTORIES["cancelled"], "provider.decline", "payments.decline"]
    assert reconcile([row("1", path) for path in paths]).ok


def test_reconcile_compares_amounts() -> None:
    """A refund of less than was charged, and books that differ from the statement, are found."""
    rows = [row("1", path) for path in HISTORIES["cancelled"] if "refund" not in path]
    short = reconcile([*rows, row("1", "provider.refund", "9.00"), row("1", "payments.refund", "9.00")])
    assert short.problems == {"1": ("charged 9.90 EUR, refunded 9.00 EUR",)}
    differs = reconcile([*rows, row("1", "provider.refund"), row("1", "payments.refund", "9.00")])
    assert differs.problems == {"1": ("refund: the provider has 9.90 EUR, our books have 9.00 EUR",)}
    assert differs.charged == differs.refunded == {"EUR": Decimal("9.90")}


def test_reconcile_compares_with_the_orders_that_were_placed() -> None:
    """An order nothing became of, and one that nobody placed, are found."""
    found = reconcile(history("ghost", "shipped"), orders=["lost"])
    assert found.problems == {
        "lost": ("not at an end: neither shipped, cancelled, declined nor rejected",),
        "ghost": ("never placed, and yet in a ledger",),
    }


@pytest.mark.parametrize(
    ("article", "problem"),
    [
        (StockRow("X", 10, 6, 0, 5), "10 pieces at the beginning, now 6 available, 0 held, 5 issued"),
        (StockRow("X", 10, 12, -2, 0), "10 pieces at the beginning, now 12 available, -2 held, 0 issued"),
        (StockRow("X", 10, 6, 1, 3), "1 pieces held, and no order is open"),
    ],
)
def test_reconcile_counts_the_pieces(article: StockRow, problem: str) -> None:
    """Pieces that appeared, vanished or stayed held are found under their article."""
    assert reconcile(history("1", "shipped"), stock=[article]).problems == {"X": (problem,)}
    assert reconcile([row("1", "inventory.hold")], stock=[StockRow("X", 10, 9, 1, 0)]).problems.keys() == {"1"}


def test_read_rows_reads_the_ledgers_that_are_there() -> None:
    """A database with one service's tables gives that service's rows."""
    with closing(sqlite3.connect(":memory:")) as db:
        assert read_rows(db.execute) == []
        db.execute("CREATE TABLE payments_ledger (order_id, effect, event_id, at, amount, currency, reason)")
        db.execute("INSERT INTO payments_ledger VALUES ('1', 'charge', 'e', 'now', '9.90', 'EUR', NULL)")
        assert read_rows(db.execute) == [
            LedgerRow("payments", "1", "charge", "e", "now", Decimal("9.90"), "EUR", None)
        ]
        db.execute("CREATE TABLE inventory_stock (sku, opening, available, held, issued)")
        db.execute("INSERT INTO inventory_stock VALUES ('BK-1001', 10, 6, 0, 4)")
        assert read_stock(db.execute) == STOCK


def made(rows: Sequence[LedgerRow], published: Sequence[str], dead_letters: Sequence[str] = ()) -> DemoReport:
    """A report of a short run."""
    return report(
        rows,
        STOCK,
        published=published,
        refused=["not_json", "not_json", "invalid_data"],
        duplicates_dropped=2,
        dead_letters=dead_letters,
        events=1500,
        elapsed_s=1.5,
    )


def test_report_is_told_to_people_and_programs() -> None:
    """The table and the JSON value hold the run's numbers."""
    run = made(histories(["shipped", "cancelled"]), ["0", "1", "1"])
    assert run.ok
    console = Console(width=120)
    with console.capture() as capture:
        console.print(run.table())
    for text in ("2 distinct, 1 repeated", "2 not_json, 1 invalid_data", "19.80 EUR", "1,000 a second", "reconciled"):
        assert text in capture.get()
    told = json.loads(json.dumps(run.as_dict()))
    assert told["outcomes"] == {"shipped": 1, "cancelled": 1}
    assert told["orders"] == {"published": 3, "repeated": 1, "distinct": 2}
    assert (told["ok"], told["charged"], told["events_per_s"]) == (True, {"EUR": "19.80"}, 1000.0)


def test_report_is_not_ok_when_something_is_wrong() -> None:
    """A problem, a dead letter and a run without orders each make it fail, and the table names the order."""
    assert not made(histories(["shipped"]), ["0"], dead_letters=["crashed"]).ok
    assert not made([], []).ok
    run = made([row("0", "inventory.hold")], ["0"])
    assert not run.ok
    console = Console(width=160)
    with console.capture() as capture:
        console.print(run.table())
    assert "NOT reconciled" in capture.get()
    assert "goods held, neither released nor issued" in capture.get()
