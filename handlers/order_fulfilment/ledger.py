"""Does it add up? Every effect is a row of the ledger of whoever did it; this compares the ledgers, order by order.

Pure but for `read_rows` and `read_stock`, which are given a way to query. The services know nothing of it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

EFFECTS: Mapping[str, tuple[str, ...]] = {
    "inventory": ("hold", "reject", "release", "issue"),
    "payments": ("charge", "decline", "refund"),
    "shipping": ("shipment", "cancellation"),
    "provider": ("charge", "decline", "refund"),
}
"""What each ledger may hold. `payments` keeps the books; `provider` is the statement of the company outside."""

OUTCOMES: Mapping[str, str] = {
    "shipped": "shipping.shipment",
    "cancelled": "shipping.cancellation",
    "declined": "payments.decline",
    "rejected": "inventory.reject",
}
"""How an order can end, and the effect that shows it; the first that applies."""

Query = Callable[[str], Iterable[Sequence[Any]]]


class LedgerRow(NamedTuple):
    """One effect. `cause`: id of the event, for the provider the idempotency key. `at`: RFC 3339."""

    ledger: str
    order_id: str
    effect: str
    cause: str
    at: str
    amount: Decimal | None = None
    currency: str | None = None
    reason: str | None = None


class StockRow(NamedTuple):
    """Pieces of one article: what there was at the beginning, and where they are now."""

    sku: str
    opening: int
    available: int
    held: int
    issued: int


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What the ledgers say together.

    Attributes:
        orders: Orders that were placed, or that any ledger knows.
        effects: Rows by `ledger.effect`.
        outcomes: Orders by how they ended.
        rejected, declined: Orders by reason.
        charged, refunded: Sums by currency, from the provider's statement.
        problems: What does not add up, by order id, for stock by article.
    """

    orders: int
    effects: Mapping[str, int]
    outcomes: Mapping[str, int]
    rejected: Mapping[str, int]
    declined: Mapping[str, int]
    charged: Mapping[str, Decimal]
    refunded: Mapping[str, Decimal]
    problems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything adds up."""
        return not self.problems


def reconcile(
    rows: Iterable[LedgerRow], *, orders: Collection[str] | None = None, stock: Iterable[StockRow] = ()
) -> Reconciliation:
    """Compare the ledgers of a flow that has come to rest.

    Args:
        rows: All ledgers, in any order.
        orders: Ids of the orders that were placed, if known: each must have ended, and no other may appear.
        stock: Inventory's articles; their pieces must still be as many as at the beginning.
    """
    rows = list(rows)
    by_order: dict[str, list[LedgerRow]] = {order_id: [] for order_id in orders or ()}
    for row in rows:
        by_order.setdefault(row.order_id, []).append(row)
    problems: defaultdict[str, list[str]] = defaultdict(list)
    outcomes: Counter[str] = Counter()
    for order_id, entries in by_order.items():
        counts = Counter(f"{row.ledger}.{row.effect}" for row in entries)
        outcome = next((name for name, effect in OUTCOMES.items() if counts[effect]), None)
        outcomes[outcome or "open"] += 1
        problems[order_id] += [*_twice(counts), *_goods(counts), *_money(counts), *_amounts(entries)]
        problems[order_id] += _end(outcome, counts, placed=orders is None or order_id in orders)
    for article in stock:
        problems[article.sku] += _stock(article, none_open=not outcomes["open"])
    return Reconciliation(
        orders=len(by_order),
        effects=Counter(f"{row.ledger}.{row.effect}" for row in rows),
        outcomes=outcomes,
        rejected=_reasons(rows, "inventory", "reject"),
        declined=_reasons(rows, "payments", "decline"),
        charged=_sums(rows, "charge"),
        refunded=_sums(rows, "refund"),
        problems={key: tuple(found) for key, found in problems.items() if found},
    )


def read_rows(query: Query) -> list[LedgerRow]:
    """The services' ledgers that are in one database; another service's may be in another."""
    tables = {row[0] for row in query("SELECT name FROM sqlite_master WHERE type = 'table'")}
    rows: list[LedgerRow] = []
    for ledger in EFFECTS:
        if f"{ledger}_ledger" in tables:
            columns = "order_id, effect, event_id, at, amount, currency, reason"
            rows += [row_of(ledger, *row) for row in query(f"SELECT {columns} FROM {ledger}_ledger ORDER BY rowid")]
    return rows


def read_stock(query: Query) -> list[StockRow]:
    """Inventory's articles."""
    return [StockRow(*row) for row in query("SELECT sku, opening, available, held, issued FROM inventory_stock")]


def row_of(
    ledger: str,
    order_id: str,
    effect: str,
    cause: str,
    at: str,
    amount: str | None = None,
    currency: str | None = None,
    reason: str | None = None,
) -> LedgerRow:
    """A row as a ledger keeps it, such as `row_of("provider", *entry)` of the provider's statement."""
    return LedgerRow(
        ledger, order_id, effect, cause, at, None if amount is None else Decimal(amount), currency, reason
    )


def _twice(counts: Counter[str]) -> Iterator[str]:
    for effect, count in counts.items():
        ledger, _, name = effect.partition(".")
        if name not in EFFECTS.get(ledger, ()):
            yield f"{effect} is an effect nobody knows"
        elif count > 1:
            yield f"{effect} {count} times"


def _goods(counts: Counter[str]) -> Iterator[str]:
    """Held goods are released or issued, never both; what is issued is what was shipped."""
    hold, release, issue = (counts[f"inventory.{effect}"] for effect in ("hold", "release", "issue"))
    shipment, cancellation = counts["shipping.shipment"], counts["shipping.cancellation"]
    if hold and not (release or issue):
        yield "goods held, neither released nor issued"
    if release and issue:
        yield "goods released and issued"
    if (release or issue) and not hold:
        yield "goods released or issued that were never held"
    if shipment and not issue:
        yield "shipped, but the goods were never issued"
    if issue and not shipment:
        yield "goods issued, but never shipped"
    if release and not (counts["payments.decline"] or cancellation):
        yield "goods released, though payment was not declined and shipping not cancelled"


def _money(counts: Counter[str]) -> Iterator[str]:
    """Who is charged gets the goods or the money back."""
    charge, refund = counts["provider.charge"], counts["provider.refund"]
    shipment = counts["shipping.shipment"]
    if charge and not (shipment or refund):
        yield "charged, neither shipped nor refunded"
    if shipment and not charge:
        yield "shipped, but never charged"
    if counts["shipping.cancellation"] and not charge:
        yield "shipment cancelled that was never charged"
    if shipment and refund:
        yield "shipped and refunded"
    if refund and not charge:
        yield "refunded, but never charged"
    if (charge or counts["provider.decline"]) and not counts["inventory.hold"]:
        yield "payment asked for goods that were never held"


def _amounts(entries: Sequence[LedgerRow]) -> Iterator[str]:
    """The books agree with the provider's statement; a refund gives back what was charged."""
    money: dict[tuple[str, str], Counter[tuple[Decimal | None, str | None]]] = defaultdict(Counter)
    for row in entries:
        money[row.ledger, row.effect][row.amount, row.currency] += 1
    for effect in EFFECTS["provider"]:
        if (theirs := money["provider", effect]) != (ours := money["payments", effect]):
            yield f"{effect}: the provider has {_listed(theirs)}, our books have {_listed(ours)}"
    charged, refunded = money["provider", "charge"], money["provider", "refund"]
    if charged and refunded and charged != refunded:
        yield f"charged {_listed(charged)}, refunded {_listed(refunded)}"


def _end(outcome: str | None, counts: Counter[str], *, placed: bool) -> Iterator[str]:
    if not placed:
        yield "never placed, and yet in a ledger"
    if outcome is None:
        yield "not at an end: neither shipped, cancelled, declined nor rejected"
    elif counts["shipping.shipment"] and counts["shipping.cancellation"]:
        yield "shipped and cancelled"
    elif counts["inventory.reject"] and sum(counts.values()) > counts["inventory.reject"]:
        yield "rejected, and yet something was done for it"


def _stock(article: StockRow, *, none_open: bool) -> Iterator[str]:
    _, opening, available, held, issued = article
    if available + held + issued != opening or min(available, held, issued) < 0:
        yield f"{opening} pieces at the beginning, now {available} available, {held} held, {issued} issued"
    elif held and none_open:
        yield f"{held} pieces held, and no order is open"


def _reasons(rows: Iterable[LedgerRow], ledger: str, effect: str) -> Mapping[str, int]:
    return Counter(row.reason or "" for row in rows if (row.ledger, row.effect) == (ledger, effect))


def _sums(rows: Iterable[LedgerRow], effect: str) -> Mapping[str, Decimal]:
    sums: defaultdict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        if row.ledger == "provider" and row.effect == effect and row.amount is not None:
            sums[row.currency or ""] += row.amount
    return dict(sorted(sums.items()))


def _listed(money: Counter[tuple[Decimal | None, str | None]]) -> str:
    texts = [" ".join(str(part) for part in each if part is not None) or "one" for each in money.elements()]
    return ", ".join(texts) or "none"
