"""What is there in the end against what was published: ledgers, rows and topics, each counted."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from choreo.envelope import read as read_envelope
from choreo.record import Record
from handlers.order_fulfilment.ledger import LedgerRow, Reconciliation
from tests.integration.chaos.load import Made
from tests.integration.chaos.watching import KINDS
from tests.integration.killing import out_of_order, scattered
from tests.integration.swapping import overtaken

INPUTS = frozenset({"order.placed", "entry.made"})
EMITTED = {
    "inventory.hold": "stock.reserved",
    "inventory.reject": "stock.rejected",
    "inventory.release": "stock.released",
    "provider.charge": "payment.captured",
    "provider.decline": "payment.declined",
    "provider.refund": "payment.refunded",
    "shipping.shipment": "order.shipped",
    "shipping.cancellation": "shipment.cancelled",
}
"""What says so on the log, by effect."""
PAIRS = {
    "inventory": "SQLite",
    "payments": "SQLite",
    "shipping": "SQLite",
    "bookkeeper": "PostgreSQL",
    "clerk": "Redis",
    "mirror": "changelog",
}


DELAYED = "Your order will be a little later"
"""The one message that is neither the first nor the last of an order."""


class Said(NamedTuple):
    """One record, and what of it counts."""

    record: Record
    id: str
    type: str
    source: str
    data: Mapping[str, Any]

    @property
    def fact(self) -> tuple[object, ...]:
        """What it says, whatever its id: two facts with two ids are one thing done twice."""
        found = self.data
        return (self.type, *(found.get(name) for name in ("order_id", "attempt", "account", "number")))


class Kept(NamedTuple):
    """What the services' tables hold. `rows`: kind, account and number as bookkeeper wrote them, in that order."""

    books: Reconciliation
    ledgers: Sequence[LedgerRow]
    attempts: Sequence[tuple[object, ...]]
    messages: Sequence[tuple[object, ...]]
    rows: Sequence[tuple[str, str, int]]


@dataclass
class Outcome:
    """Counts, each with how many it was counted in (`lost_of` and so on).

    Attributes:
        resent: Records on the log beyond the first of an id, by pair; `input` for what was published again.
        problems: What is wrong, in words, the first of each kind.
    """

    orders: int
    entries: int
    events_in: int = 0
    events_out: int = 0
    records: int = 0
    lost: int = 0
    lost_of: int = 0
    twice: int = 0
    twice_of: int = 0
    reordered: int = 0
    reordered_of: int = 0
    resent: Counter[str] = field(default_factory=Counter)
    dead_letters: int = 0
    problems: list[str] = field(default_factory=list)

    def note(self, what: str, found: Collection[object]) -> int:
        """How many; a few of them are kept in words."""
        if found:
            self.problems.append(f"{what}: {len(found)}, such as {list(found)[:5]}")
        return len(found)


def outcome_of(records: Sequence[Record], kept: Kept, *, placed: Collection[str], made: Collection[Made]) -> Outcome:
    """Compare; `records` as sorted by place, of topics of events and dead letters."""
    outcome = Outcome(len(placed), len(made), records=len(records))
    dead = [each for each in records if each.topic.endswith(".dlq")]
    outcome.dead_letters = outcome.note("dead letters", [f"{each.topic}: {each.headers}" for each in dead])
    alive = [each for each in records if not each.topic.endswith(".dlq")]
    said = [_said(each) for each in alive]
    firsts: dict[str, Said] = {}
    for each in said:
        if each.id in firsts:
            outcome.resent["input" if each.type in INPUTS else PAIRS[each.source.strip("/")]] += 1
        firsts.setdefault(each.id, each)
    outcome.events_in = sum(each.type in INPUTS for each in firsts.values())
    outcome.events_out = len(firsts) - outcome.events_in
    _lost(outcome, list(firsts.values()), kept, placed, made)
    _twice(outcome, list(firsts.values()), kept)
    _reordered(outcome, alive, firsts, kept)
    outcome.note("orders that do not add up", [f"{key}: {found}" for key, found in kept.books.problems.items()])
    return outcome


def _said(record: Record) -> Said:
    envelope, value = read_envelope(record.headers, record.value or b"")
    return Said(record, envelope.id, envelope.type, envelope.source, orjson.loads(value))


def _lost(
    outcome: Outcome, firsts: Sequence[Said], kept: Kept, placed: Collection[str], made: Collection[Made]
) -> None:
    on_log: defaultdict[str, set[object]] = defaultdict(set)
    for each in firsts:
        found = each.data
        on_log[each.type].add(found["order_id"] if "order_id" in found else (found["account"], found["number"]))
    done: defaultdict[str, set[object]] = defaultdict(set)
    for row in kept.ledgers:
        done[EMITTED.get(f"{row.ledger}.{row.effect}", "")].add(row.order_id)
    for kind, account, number in kept.rows:
        done[f"row {kind}"].add((account, number))
    ended: dict[str, set[object]] = {"order.placed": set(placed), **{kind: set(made) for kind in KINDS}}
    ended["entry.made"] = set(made)
    wanted = [(f"{kind} on the log", found, on_log[kind]) for kind, found in ended.items()]
    wanted += [(f"row of {kind}", set(made), done[f"row {kind}"]) for kind in KINDS]
    wanted += [(f"{kind} on the log", done[kind], on_log[kind]) for kind in EMITTED.values()]
    thanked = {order for order, text in kept.messages if str(text).startswith("Thank you")}
    told = {order for order, text in kept.messages if not str(text).startswith(("Thank you", DELAYED))}
    wanted += [("thanks", set(placed), thanked), ("message of the end", set(placed), told)]
    for what, due, there in wanted:
        outcome.lost += outcome.note(f"lost, {what}", due - there)
        outcome.note(f"there, though nothing led to it, {what}", there - due)
        outcome.lost_of += len(due)
    outcome.lost += kept.books.outcomes.get("open", 0)
    outcome.lost_of += len(placed)


def _twice(outcome: Outcome, firsts: Sequence[Said], kept: Kept) -> None:
    counted: Mapping[str, Iterable[object]] = {
        "ledger": ((row.ledger, row.order_id, row.effect) for row in kept.ledgers),
        "attempt": kept.attempts,
        "message": kept.messages,
        "row": kept.rows,
        "event under two ids": (each.fact for each in firsts if each.type not in INPUTS),
    }
    for what, found in counted.items():
        counts = Counter(found)
        again = [each for each, count in counts.items() for _ in range(count - 1)]
        outcome.twice += outcome.note(f"{what} twice", again)
        outcome.twice_of += len(counts)


def _reordered(outcome: Outcome, alive: Sequence[Record], firsts: Mapping[str, Said], kept: Kept) -> None:
    """First records of an id stand for it, as whoever reads drops the later ones."""
    entries = [each for each in firsts.values() if "account" in each.data]
    numbered = [(f"{each.type} {each.data['account']}", each.data["number"]) for each in entries]
    rows = dict.fromkeys(kept.rows)  # a second one is counted as such
    numbered += [(f"row {kind} {account}", number) for kind, account, number in rows]
    tries = [(f"{order}", int(str(attempt))) for order, attempt in dict.fromkeys(kept.attempts)]
    outcome.reordered_of = len(numbered) + len(tries) + len(firsts) - len(entries)
    late = overtaken(numbered) + overtaken(tries)
    outcome.note("overtaken, by key", range(late))
    causes = outcome.note("before its cause", out_of_order(alive))
    outcome.note("keys in two partitions", scattered(alive))
    outcome.reordered = late + causes
