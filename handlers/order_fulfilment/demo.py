"""The report at the end of `choreo demo`: what went in, what came of it, and whether it adds up."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich.table import Table

from .ledger import LedgerRow, Reconciliation, StockRow, reconcile

PROBLEMS_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class DemoReport:
    """One run of the flow, in numbers. Made by `report`.

    Attributes:
        published: Orders that were published, repeated ones included.
        repeated: How many of them had been published before.
        refused: Lines that are no order, by reason.
        duplicates_dropped: Deliveries the services recognised and dropped.
        dead_letters: By reason.
        reconciliation: The ledgers compared, order by order.
        events: Events on the log.
        elapsed_s: From the first event published to the last one handled; > 0.
    """

    published: int
    repeated: int
    refused: Mapping[str, int]
    duplicates_dropped: int
    dead_letters: Mapping[str, int]
    reconciliation: Reconciliation
    events: int
    elapsed_s: float

    @property
    def ok(self) -> bool:
        """Whether there was something to do, all of it was done, and the ledgers reconcile."""
        return self.published > 0 and self.reconciliation.ok and not self.dead_letters

    @property
    def events_per_s(self) -> float:
        """Events on the log by second."""
        return self.events / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def table(self) -> Table:
        """For people; give it to `rich.print`."""
        table = Table(title="Order fulfilment", show_header=False, title_justify="left")
        table.add_column()
        table.add_column(justify="right")
        table.add_column(style="dim")
        for section in (self._orders(), self._ledgers(), self._run()):
            for label, value, remark in section:
                table.add_row(label, value, remark)
            table.add_section()
        verdict = "[bold green]reconciled[/]" if self.ok else "[bold red]NOT reconciled[/]"
        table.add_row("ledgers", verdict, "" if self.ok else f"{len(self.reconciliation.problems)} with problems")
        for key, found in list(self.reconciliation.problems.items())[:PROBLEMS_SHOWN_MAX]:
            table.add_row(f"  [red]{key}[/]", "", "; ".join(found))
        return table

    def as_dict(self) -> dict[str, Any]:
        """For programs: plain JSON values, sums of money as text."""
        ledgers = self.reconciliation
        return {
            "ok": self.ok,
            "orders": {"published": self.published, "repeated": self.repeated, "distinct": ledgers.orders},
            "refused": dict(self.refused),
            "outcomes": dict(ledgers.outcomes),
            "rejected": dict(ledgers.rejected),
            "declined": dict(ledgers.declined),
            "duplicates_dropped": self.duplicates_dropped,
            "dead_letters": dict(self.dead_letters),
            "effects": dict(ledgers.effects),
            "charged": {currency: str(amount) for currency, amount in ledgers.charged.items()},
            "refunded": {currency: str(amount) for currency, amount in ledgers.refunded.items()},
            "problems": {key: list(found) for key, found in ledgers.problems.items()},
            "events": self.events,
            "elapsed_s": round(self.elapsed_s, 3),
            "events_per_s": round(self.events_per_s, 1),
        }

    def _orders(self) -> list[tuple[str, str, str]]:
        ledgers, outcomes = self.reconciliation, self.reconciliation.outcomes
        rows = [
            ("orders in", _number(self.published), f"{ledgers.orders:,} distinct, {self.repeated:,} repeated"),
            ("lines refused", _number(sum(self.refused.values())), _counts(self.refused)),
            ("shipped", _number(outcomes.get("shipped", 0)), ""),
            ("rejected", _number(outcomes.get("rejected", 0)), _counts(ledgers.rejected)),
            ("payment declined", _number(outcomes.get("declined", 0)), _counts(ledgers.declined)),
            ("cancelled, refunded", _number(outcomes.get("cancelled", 0)), ""),
        ]
        if outcomes.get("open"):
            rows.append(("[red]not at an end[/]", _number(outcomes["open"]), ""))
        return rows

    def _ledgers(self) -> list[tuple[str, str, str]]:
        effects, ledgers = self.reconciliation.effects, self.reconciliation
        held, charged = effects.get("inventory.hold", 0), effects.get("provider.charge", 0)
        released, issued = effects.get("inventory.release", 0), effects.get("inventory.issue", 0)
        shipped, refunded = effects.get("shipping.shipment", 0), effects.get("provider.refund", 0)
        return [
            ("goods held", _number(held), f"{issued:,} issued, {released:,} released"),
            ("customers charged", _number(charged), f"{shipped:,} shipped, {refunded:,} refunded"),
            ("money taken", _money(ledgers.charged), ""),
            ("money given back", _money(ledgers.refunded), ""),
        ]

    def _run(self) -> list[tuple[str, str, str]]:
        return [
            ("duplicates dropped", _number(self.duplicates_dropped), "deliveries, over all services"),
            ("dead letters", _number(sum(self.dead_letters.values())), _counts(self.dead_letters)),
            ("events", _number(self.events), f"{self.events_per_s:,.0f} a second, {self.elapsed_s:.1f} s"),
        ]


def report(
    rows: Iterable[LedgerRow],
    stock: Iterable[StockRow],
    *,
    published: Sequence[str],
    refused: Iterable[str],
    duplicates_dropped: int,
    dead_letters: Iterable[str],
    events: int,
    elapsed_s: float,
) -> DemoReport:
    """Compute the report from what a run left behind.

    Args:
        rows: The services' ledgers (`ledger.read_rows`) and the provider's statement (`ledger.row_of`).
        stock: Inventory's articles (`ledger.read_stock`).
        published: Order id of each published line, repeated ones included.
        refused: Reason of each line that was refused.
        duplicates_dropped: Deliveries dropped as duplicates.
        dead_letters: Reason of each dead letter.
        events: Events on the log.
        elapsed_s: Seconds from first to last.
    """
    placed = set(published)
    return DemoReport(
        published=len(published),
        repeated=len(published) - len(placed),
        refused=Counter(refused),
        duplicates_dropped=duplicates_dropped,
        dead_letters=Counter(dead_letters),
        reconciliation=reconcile(rows, orders=placed, stock=stock),
        events=events,
        elapsed_s=elapsed_s,
    )


def _number(count: int) -> str:
    return f"{count:,}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda each: -each[1]))


def _money(sums: Mapping[str, Decimal]) -> str:
    return "\n".join(f"{amount:,} {currency}" for currency, amount in sums.items()) or "0"
