"""What log, tables and logs hold after a rolling restart of the order flow: lost, doubled, out of order, stood still.

Pure: `restart_stage` reads, this counts.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import NamedTuple

from choreo.envelope import Envelope
from choreo.envelope import read as read_envelope
from choreo.record import Record
from handlers.order_fulfilment.events import OrderPlaced, ShipmentDelayed
from handlers.order_fulfilment.inventory import service as shelf
from handlers.order_fulfilment.ledger import StockRow
from handlers.order_fulfilment.payments.fake_provider import Entry
from tests.integration.killing import out_of_order, scattered
from tests.integration.swapping import overtaken

ENDS = frozenset({"order.shipped", "stock.rejected", "stock.released", "payment.refunded"})
CHARGED_BACK = frozenset({"stock.released", "payment.refunded"})
"""Both end an order that was paid and found no carrier."""
TOLD = frozenset({"order.placed", "stock.rejected", "payment.declined", "payment.refunded", "order.shipped"})
Place = tuple[str, str, int]
"""A service, and a topic and partition that it reads."""


class Told(NamedTuple):
    """A line of notifications: when, and of which event."""

    at_ms: int
    id: str


class Restart(NamedTuple):
    """One process replaced: from the first thing that was done until it was over; `drained_s` from its SIGTERM."""

    service: str
    began_ms: int
    over_ms: int
    drained_s: float


class Wait(NamedTuple):
    """A partition had something to do, and none of it was done: ms since the epoch."""

    since_ms: int
    until_ms: int


class Fact(NamedTuple):
    """An event on the log, the first of its id."""

    record: Record
    envelope: Envelope

    @property
    def order(self) -> str:
        """Its key."""
        return (self.record.key or b"").decode()

    @property
    def says(self) -> tuple[str, str, int]:
        """What must be said once, under whatever id."""
        delayed = self.envelope.type == ShipmentDelayed.event_type
        attempt = ShipmentDelayed.from_payload(self.record.value or b"").attempt if delayed else 0
        return self.order, self.envelope.type, attempt


@dataclass(frozen=True)
class Outcome:
    """What is there in the end.

    Attributes:
        presses: By order, how often its customer pressed the button: each an event of its own, numbered from 0.
        told: In the order of the lines of each process.
        stock, held: Inventory's articles, and how many lines are held for orders.
        statement: The payment provider's.
    """

    presses: Mapping[str, int]
    records: Sequence[Record]
    told: Sequence[Told]
    stock: Sequence[StockRow]
    held: int
    statement: Sequence[Entry]
    dead: Sequence[Record] = field(default=())

    @cached_property
    def facts(self) -> Mapping[str, Fact]:
        """By event id."""
        found: dict[str, Fact] = {}
        for record in sorted(self.records, key=lambda each: each[:3]):
            envelope, _ = read_envelope(record.headers, record.value or b"")
            found.setdefault(envelope.id, Fact(record, envelope))
        return found

    @property
    def sent_again(self) -> int:
        """Records beyond one an event id: those the load publishes twice among them."""
        return len(self.records) - len(self.facts)

    @property
    def told_again(self) -> int:
        """Handlers without a transaction that were run again; legal, and rare."""
        return len(self.told) - len({each.id for each in self.told})

    def lost(self) -> list[str]:
        """Presses that are on no log, orders without an end, events that nobody was told of."""
        ended = {each.order for each in self.facts.values() if each.envelope.type in ENDS}
        told = {each.id for each in self.told}
        due = {id_ for id_, each in self.facts.items() if each.envelope.type in TOLD}
        pressed = {press(order, number) for order, count in self.presses.items() for number in range(count)}
        found = [f"{order} has no end" for order in self.presses.keys() - ended]
        found += [f"{id_} is not on the log" for id_ in pressed - self.facts.keys()]
        return found + [f"nobody was told of {id_}" for id_ in due - told]

    def doubled(self) -> list[str]:
        """One thing under two ids, an order that ends in two ways, goods and money that do not add up."""
        says = Counter(each.says for each in self.facts.values() if each.envelope.type != OrderPlaced.event_type)
        found = [f"{count} times {said}" for said, count in says.items() if count > 1]
        ends: defaultdict[str, set[str]] = defaultdict(set)
        for order, type_, _ in says:
            if type_ in ENDS:
                ends[order].add(type_)
        found += [f"{order} ends as {each}" for order, each in ends.items() if len(each) > 1 and each != CHARGED_BACK]
        moved = Counter((each.order_id, each.effect) for each in self.statement)
        return found + [f"{count} times {what}" for what, count in moved.items() if count > 1] + self._goods()

    def _goods(self) -> list[str]:
        """What was shipped has left the shelf, once, and nothing else has."""
        lines = {
            each.order: OrderPlaced.from_payload(each.record.value or b"").lines
            for each in self.facts.values()
            if each.envelope.type == OrderPlaced.event_type
        }
        shipped: Counter[str] = Counter()
        for each in self.facts.values():
            if each.envelope.type == "order.shipped":
                shipped += shelf.quantities(lines[each.order])
        found = [f"{self.held} lines are held for orders that have ended"] if self.held else []
        for row in self.stock:
            if (row.held, row.issued, row.available) != (0, shipped[row.sku], row.opening - shipped[row.sku]):
                found.append(f"{row}, and {shipped[row.sku]} were shipped")
        return found

    def reordered(self) -> list[str]:
        """Presses of one customer told of in another order, attempts to ship too, effects before their causes."""
        numbers = [press_of(each.id) for each in sorted(dict.fromkeys(self.told), key=lambda each: each.at_ms)]
        attempts = [each.says for each in self.facts.values() if each.envelope.type == ShipmentDelayed.event_type]
        found = [f"{count} presses" for count in [overtaken(first(each for each in numbers if each))] if count]
        late = overtaken((order, attempt) for order, _, attempt in attempts)
        found += [f"{late} attempts to ship"] if late else []
        return found + out_of_order(self.records) + [f"{key!r} has two partitions" for key in scattered(self.records)]

    def problems(self) -> list[str]:
        """Whatever may not be."""
        dead = [f"a dead letter on {each.topic}: {each.headers}" for each in self.dead]
        return [*self.lost(), *self.doubled(), *self.reordered(), *dead]

    def waits(self) -> Mapping[Place, Sequence[Wait]]:
        """By partition that a service reads, when it had something to do and did none of it.

        Of events that lead to something: an emit, which has a time on the log, or a line of notifications.
        """
        done: dict[tuple[str, str], int] = {}
        for fact in self.facts.values():
            if (cause := fact.envelope.causationid) is not None:
                key = fact.envelope.source.strip("/"), cause
                done[key] = min(fact.record.timestamp_ms, done.get(key, fact.record.timestamp_ms))
        for line in self.told:
            key = "notifications", line.id
            done[key] = min(line.at_ms, done.get(key, line.at_ms))
        work: defaultdict[Place, list[tuple[int, int]]] = defaultdict(list)
        for (service, cause), at_ms in done.items():
            if cause in self.facts:
                came = self.facts[cause].record
                work[service, came.topic, came.partition].append((came.timestamp_ms, at_ms))
        return {place: waits(each) for place, each in work.items()}


def press(order: str, number: int) -> str:
    """Id of the event of one press."""
    return f"{order}/{number}"


def press_of(id_: str) -> tuple[str, int] | None:
    """The other way round; None for other events."""
    order, slash, number = id_.partition("/")
    return (order, int(number)) if slash and number.isdigit() else None


def first(numbers: Iterable[tuple[str, int] | None]) -> list[tuple[str, int]]:
    """Without those that came before."""
    return [each for each in dict.fromkeys(numbers) if each is not None]


def waits(work: Sequence[tuple[int, int]]) -> list[Wait]:
    """From the times at which events came and were done: each wait ends with the next that is done."""
    moments = sorted([(came, 0, 1) for came, _ in work] + [(max(came, done), 1, -1) for came, done in work])
    found, waiting, since_ms = list[Wait](), 0, 0
    for at_ms, _, change in moments:
        if change < 0:
            found.append(Wait(since_ms, at_ms))
        if change < 0 or not waiting:
            since_ms = at_ms
        waiting += change
    return found


def pauses_s(outcome: Outcome, restarts: Sequence[Restart], *, after_ms: int) -> list[float]:
    """The longest wait of each partition at each restart of a service that reads it, sorted.

    A restart is felt until the next one of its service, at most `after_ms` after it was over.
    """
    found = []
    for index, each in enumerate(restarts):
        next_ms = min(
            (other.began_ms for other in restarts[index + 1 :] if other.service == each.service), default=2**62
        )
        found += longest_s(outcome, each.began_ms, min(next_ms, each.over_ms + after_ms), each.service)
    return sorted(found)


def longest_s(outcome: Outcome, since_ms: int, until_ms: int, *services: str) -> list[float]:
    """The longest wait of each partition within a time; of all services unless some are named."""
    found = []
    for (service, _, _), each in outcome.waits().items():
        if not services or service in services:
            lasted = [
                wait.until_ms - wait.since_ms
                for wait in each
                if since_ms < wait.until_ms and wait.since_ms < until_ms
            ]
            found += [max(lasted) / 1000] if lasted else []
    return sorted(found)


def opening() -> Mapping[str, int]:
    """Pieces of each article at the beginning."""
    catalogue = json.loads(files(shelf.__package__).joinpath("catalogue.json").read_bytes())
    return {article["sku"]: article["opening"] for article in catalogue["articles"]}
